"""Test modules can import the helper modules beside them, as in ``import lora_files``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
