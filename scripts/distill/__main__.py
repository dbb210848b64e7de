"""``python -m scripts.distill``: the same as ``pcm distill``."""

import sys

from ..commands import run

sys.exit(run("distill", sys.argv[1:]))
