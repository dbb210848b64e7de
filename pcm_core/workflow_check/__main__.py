"""``python -m pcm_core.workflow_check``: the command without ComfyUI."""

import sys

from .command import main

sys.exit(main())
