"""ComfyUI's own workflow templates (the package comfyui-workflow-templates-json), read and held against the pack."""
