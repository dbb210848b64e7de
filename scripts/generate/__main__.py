"""``python -m scripts.generate``: the same as ``pcm generate``."""

import sys

from ..commands import run

sys.exit(run("generate", sys.argv[1:]))
