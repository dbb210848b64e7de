"""``pcm metrics``: measure a folder of pictures or clips, alone or against another."""
