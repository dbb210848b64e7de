"""Sampling in the host: the sampler function, guidance by phase, clips, and what is compared."""
