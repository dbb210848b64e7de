"""The images that the nodes draw."""
