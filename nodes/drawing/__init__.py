"""Pictures the nodes draw."""
