"""``pcm check``: do workflows sample their few-step files as intended?"""
