"""``python -m scripts.table``: the same as ``pcm table``."""

import sys

from ..commands import run

sys.exit(run("table", sys.argv[1:]))
