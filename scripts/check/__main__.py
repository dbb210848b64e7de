"""``python -m scripts.check``: the command in a clone where nothing was installed."""

import sys

from .command import main

sys.exit(main())
