"""``python -m scripts``: the command ``pcm`` in a clone where nothing was installed."""

import sys

from .commands import main

sys.exit(main())
