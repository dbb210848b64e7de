"""The groups of nodes that several shipped workflows share, and the note that each carries."""

from __future__ import annotations

from typing import Any

from .workflow_builder import Graph, Link, Model, Node

FOX = "a red fox in deep snow, morning light, photograph"
UGLY = "blurry, low quality, deformed"


def note(graph: Graph, heading: str, settings: list[str], more: str = "") -> None:
    """Add the note of a workflow: what it does, its files, and its three important settings."""
    files = {model.name: model for node in graph.nodes for model in node.models}
    lines = [f"## {heading}", "", "**Files**", ""]
    lines += [f"* [{model.name}]({model.url}) in `models/{model.directory}`" for model in files.values()]
    lines += ["", "**What matters**", "", *(f"{i}. {text}" for i, text in enumerate(settings, 1))]
    graph.note("\n".join([*lines, *(["", more] if more else [])]))


def prompts(graph: Graph, column: int, clip: Link, positive: str = FOX, negative: str = UGLY) -> tuple[Node, Node]:
    """Add the prompt and the negative prompt."""
    return (
        graph.add("CLIPTextEncode", column, title="Prompt", wide=340, clip=clip, text=positive),
        graph.add("CLIPTextEncode", column, title="Negative prompt", wide=340, clip=clip, text=negative),
    )


def save(graph: Graph, column: int, sampled: Node, vae: Link, lora: Node, prefix: str) -> None:
    """Add the decoder beside the sampler, the LoRA's report below it, and the image to the right."""
    pictures = graph.add("VAEDecode", column, beside=sampled, samples=sampled[0], vae=vae)
    report(graph, column, lora)
    graph.add("SaveImage", column + 1, wide=340, beside=sampled, images=pictures[0], filename_prefix=f"pcm/{prefix}")


def report(graph: Graph, column: int, lora: Node) -> None:
    """Add the report of a LoRA as text."""
    graph.add("PreviewAny", column, title="What the LoRA says", source=lora[1])


def load_lora(graph: Graph, column: int, model: Link, lora: Model, title: str = "") -> Node:
    return graph.add("PCMLoraLoader", column, wide=340, title=title, model=model, lora_name=lora)


def sample(graph: Graph, column: int, model: Link, texts: tuple[Node, Node], latent: Link, title: str = "",
           **settings: Any) -> Node:  # fmt: skip
    return graph.add(
        "PCMSampler", column, title=title, model=model, positive=texts[0][0], negative=texts[1][0],
        latent_image=latent, **settings,
    )  # fmt: skip


def video(graph: Graph, column: int, model: Link, texts: tuple[Node, Node], latent: Link, vae: Link, prefix: str,
          **settings: Any) -> None:  # fmt: skip
    """Add the video sampler, its decoder and report, and the clip to the right."""
    clip = graph.add(
        "PCMVideoSampler", column, wide=360, model=model, positive=texts[0][0], negative=texts[1][0],
        latent_image=latent, seed=1, **settings,
    )  # fmt: skip
    frames = graph.add("VAEDecode", column + 1, samples=clip[0], vae=vae)
    graph.add("PreviewAny", column + 1, title="What was used", source=clip[1])
    graph.add("SaveAnimatedWEBP", column + 2, wide=420, images=frames[0], filename_prefix=f"pcm/{prefix}", fps=16.0)
