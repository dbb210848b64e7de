"""``pcm generate``: a folder of pictures or clips from a file of prompts, on one process or many."""
