"""The users' commands: ``pcm NAME``, or ``python -m scripts.NAME`` in a clone; pip installs it as ``pcm_commands``."""
