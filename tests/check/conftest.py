"""Modules that these tests share (``import right_graphs``) lie beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
