"""Phased Consistency for ComfyUI. The nodes are imported when the host asks for them, never before."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes.extension import PhasedConsistencyExtension

    return PhasedConsistencyExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
