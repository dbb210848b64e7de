"""``pcm generate``: make a folder of images or clips from a file of prompts, in one process or many."""
