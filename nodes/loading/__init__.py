"""LoRA files on a model: what fits, what a stack of other nodes' files adds, and the text encoder."""
