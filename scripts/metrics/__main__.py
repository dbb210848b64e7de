"""``python -m scripts.metrics``: the same as ``pcm metrics``."""

import sys

from ..commands import run

sys.exit(run("metrics", sys.argv[1:]))
