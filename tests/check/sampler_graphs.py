"""One picture, sampled by every stock sampler there is, wrong or right; and any workflow put into a subgraph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from right_graphs import CLASSES, Builder, Prompt

CLASSES |= {
    "BasicGuider": ({"model": "MODEL", "conditioning": "CONDITIONING"}, [], ["GUIDER"]),
    "SplitSigmas": ({"sigmas": "SIGMAS"}, ["step"], ["SIGMAS", "SIGMAS"]),
    "AlignYourStepsScheduler": ({}, ["model_type", "steps", "denoise"], ["SIGMAS"]),
    "DisableNoise": ({}, [], ["NOISE"]),
    "PCMDemoPrompt": ({}, ["text"], ["CONDITIONING"]),
    "EmptySD3LatentImage": ({}, ["width", "height", "batch_size"], ["LATENT"]),
    "VAELoader": ({}, ["vae_name"], ["VAE"]),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, [], ["IMAGE"]),
    "SaveImage": ({"images": "IMAGE"}, ["filename_prefix"], []),
}
KINDS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "CFGGuider", "BasicGuider", "halves", "SplitSigmas")
INNER, OUTER = "5e1f0000-0000-4000-8000-00000000abcd", "5e1f0000-0000-4000-8000-00000000abce"
FILE = "demo_pcm_4phase.safetensors"


def demo(kind: str, steps: int = 4, cfg: float = 1.0, file: str = FILE, base: str = "demo_sd3.safetensors") -> Prompt:
    """The quick start of the demo world with stock nodes. ``file`` empty: the base model alone."""
    builder = Builder()
    model = builder.add("UNETLoader", unet_name=base, weight_dtype="default")
    if file:
        model = builder.add("LoraLoaderModelOnly", model=model, lora_name=file, strength_model=1.0)
    words = [builder.add("PCMDemoPrompt", text=text) for text in ("a red circle on blue", "")]
    latent = builder.add("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    decoded = builder.add(
        "VAEDecode", samples=_sampled(builder, kind, model, words, latent, steps, cfg),
        vae=builder.add("VAELoader", vae_name="taesd3"),
    )  # fmt: skip
    builder.add("SaveImage", images=decoded, filename_prefix="check")
    return builder.prompt


def _sampled(builder: Builder, kind: str, model: Any, words: Any, latent: Any, steps: int, cfg: float) -> Any:
    both = {"positive": words[0], "negative": words[1]}
    names = {"sampler_name": "euler", "scheduler": "simple"}
    if kind == "KSampler":
        return builder.add(kind, model=model, **both, latent_image=latent, seed=1, steps=steps, cfg=cfg, **names,
                           denoise=1.0)  # fmt: skip
    advanced = {"noise_seed": 1, "steps": steps, "cfg": cfg, **names}
    if kind in ("KSamplerAdvanced", "halves"):
        cuts = [(0, 10000)] if kind == "KSamplerAdvanced" else [(0, steps // 2), (steps // 2, 10000)]
        for start, end in cuts:
            latent = builder.add(
                "KSamplerAdvanced", model=model, **both, **advanced, latent_image=latent,
                add_noise="disable" if start else "enable", start_at_step=start, end_at_step=end,
                return_with_leftover_noise="disable" if end == 10000 else "enable",
            )  # fmt: skip
        return latent
    sigmas = builder.add("BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0)
    sampler = builder.add("KSamplerSelect", sampler_name="euler")
    if kind == "SamplerCustom":
        return builder.add(kind, model=model, **both, sampler=sampler, sigmas=sigmas, latent_image=latent,
                           add_noise=True, noise_seed=1, cfg=cfg)  # fmt: skip
    guider = builder.add("BasicGuider", model=model, conditioning=words[0]) if kind == "BasicGuider" else (
        builder.add("CFGGuider", model=model, **both, cfg=cfg))  # fmt: skip
    noise = builder.add("RandomNoise", noise_seed=1)
    parts = [sigmas]
    if kind == "SplitSigmas":
        cut = builder.add("SplitSigmas", sigmas=sigmas, step=steps // 2)
        parts = [cut, [cut[0], 1]]
    for part in parts:
        latent = builder.add("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=part,
                             latent_image=latent)  # fmt: skip
        noise = builder.add("DisableNoise") if len(parts) > 1 else noise
    return latent


def in_subgraph(
    ui: Mapping[str, Any], outside: tuple[str, ...] = (), promoted: str = "", name: str = INNER
) -> dict[str, Any]:  # fmt: skip
    """A workflow whose nodes lie in a subgraph, but those of some types.

    Args:
        ui: the UI form, version 0.4.
        outside: types that stay where they are.
        promoted: a widget that becomes one of the subgraph's own.
        name: of the subgraph.
    """
    ui = copy.deepcopy(dict(ui))
    inner = [node for node in ui["nodes"] if node["type"] not in outside]
    ids = {node["id"] for node in inner}
    instance: dict[str, Any] = {
        "id": ui["last_node_id"] + 1, "type": name, "pos": [0, 0], "size": [300, 200], "flags": {}, "order": 0,
        "mode": 0, "properties": {}, "inputs": [], "outputs": [], "widgets_values": [],
    }  # fmt: skip
    graph: dict[str, Any] = {
        "id": name, "version": 1, "name": "Sampled", "revision": 0, "config": {}, "groups": [], "widgets": [],
        "state": {"lastGroupId": 0, "lastNodeId": ui["last_node_id"], "lastLinkId": 1000, "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [-200, 0, 120, 80]},
        "outputNode": {"id": -20, "bounding": [2000, 0, 120, 80]}, "inputs": [], "outputs": [], "nodes": inner,
        "links": [],
    }  # fmt: skip
    outer: list[list[Any]] = []
    for link in ui["links"]:
        number, origin, slot, target, entry, kind = link
        if origin in ids and target in ids:
            graph["links"].append(_as_object(number, origin, slot, target, entry, kind))
        elif origin in ids:
            _cross(graph, instance, ui, link, outer, leaving=True)
        elif target in ids:
            _cross(graph, instance, ui, link, outer, leaving=False)
        else:
            outer.append(link)
    if promoted:
        _promote(graph, instance, promoted)
    others = ui.get("definitions", {}).get("subgraphs", [])
    ui |= {
        "nodes": [node for node in ui["nodes"] if node["id"] not in ids] + [instance], "links": outer,
        "last_node_id": instance["id"], "definitions": {"subgraphs": [graph, *others]},
    }  # fmt: skip
    return ui


def _as_object(number: int, origin: int, slot: int, target: int, entry: int, kind: str) -> dict[str, Any]:
    return {"id": number, "origin_id": origin, "origin_slot": slot, "target_id": target, "target_slot": entry,
            "type": kind}  # fmt: skip


def _cross(
    graph: dict[str, Any], instance: dict[str, Any], ui: dict[str, Any], link: list[Any], outer: list[list[Any]], *,
    leaving: bool,
) -> None:  # fmt: skip
    """A link that goes through the wall of the subgraph keeps its number outside; inside it gets one of its own."""
    number, origin, slot, target, entry, kind = link
    ends, own = (graph["outputs"], instance["outputs"]) if leaving else (graph["inputs"], instance["inputs"])
    place, inside = len(ends), 500 + number
    label = f"{kind.lower()}_{place}"
    ends.append({"id": f"{label}-{number}", "name": label, "type": kind, "linkIds": [inside], "pos": [0, 0]})
    by_id = {node["id"]: node for node in (*graph["nodes"], *ui["nodes"])}
    if leaving:
        graph["links"].append(_as_object(inside, origin, slot, -20, place, kind))
        outer.append([number, instance["id"], place, target, entry, kind])
        own.append({"name": label, "type": kind, "links": [number]})
        links = by_id[origin]["outputs"][slot]["links"]
        links[links.index(number)] = inside
    else:
        graph["links"].append(_as_object(inside, -10, place, target, entry, kind))
        outer.append([number, origin, slot, instance["id"], place, kind])
        own.append({"name": label, "type": kind, "link": number})
        by_id[target]["inputs"][entry]["link"] = inside


def _promote(graph: dict[str, Any], instance: dict[str, Any], widget: str) -> None:
    place, number = len(graph["inputs"]), 900
    for node in graph["nodes"]:
        names = CLASSES[node["type"]][1] if node["type"] in CLASSES else list(node.get("promoted", ()))
        named = next((name for name in (widget, f"noise_{widget}") if name in names), "")
        if named:
            widget = named
            value = node["widgets_values"][names.index(widget)]
            own = next((slot for slot in node["inputs"] if slot["name"] == widget), None)
            if own is None:
                own = {"name": widget, "type": "INT", "widget": {"name": widget}}
                node["inputs"].append(own)
            own["link"] = number
            graph["inputs"].append({"id": f"{widget}-1", "name": widget, "type": "INT", "linkIds": [number]})
            target = _as_object(number, -10, place, node["id"], node["inputs"].index(own), "INT")
            graph["links"].append(target)
            instance["inputs"].append({"name": widget, "type": "INT", "link": None, "widget": {"name": widget}})
            instance["widgets_values"].append(value)
            instance["promoted"] = [widget]
            return
