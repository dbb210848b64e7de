"""The demo world's text encoder as a node; no real text encoder is small enough to ship with a demo."""


async def comfy_entrypoint():
    from .prompt_node import DemoExtension

    return DemoExtension()


__all__ = ["comfy_entrypoint"]
