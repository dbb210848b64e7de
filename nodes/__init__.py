"""The nodes: one file each; ``extension`` lists them. Importing this package imports nothing of ComfyUI."""
