"""Sampling in the host: the sampler function, cfg per phase, clips, and comparisons."""
