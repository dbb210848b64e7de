"""``python -m pcm_core.lora FILE`` reports on a LoRA file; ``--convert OUT`` writes one that other tools load."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
