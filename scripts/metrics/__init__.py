"""``pcm metrics``: measure a folder of images or clips, alone or against another."""
