"""``pcm distill``: train a PCM LoRA from the command line, on one CPU, one GPU or many."""
