"""Write the quick-start workflow in API and UI form, from the few values that matter and the host's own node list.

Run it after an input of a node was added or moved: ``python dev.py serve``, then ``python -m demo.make_workflows``.
The browser test loads the UI form in the real frontend and compares what that would queue with the API form.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .client import Client, Graph

FOLDER = Path(__file__).parent / "workflows"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")

NOTE = """## PCM quick start

A tiny model that knows sentences like **a yellow cross on pink**: red, green, blue, yellow, purple or orange; circle, square, triangle or cross; on white, black, gray, blue, green or pink.

The LoRA file carries its settings, so the PCM Sampler needs none:
* `demo_pcm_4phase` runs 4 steps at cfg 1. Pick `demo_pcm_2phase` or `demo_pcm_8phase` and the steps follow.
* At cfg 1 the negative prompt is not used and a step costs one evaluation.
* The same seed gives the same picture, bit for bit.
"""  # noqa: E501

# Node id: (class, title, (x, y, width, height), the inputs that differ from the defaults)
Nodes = dict[str, tuple[str, str, tuple[int, int, int, int], dict[str, Any]]]
QUICKSTART: Nodes = {
    "1": ("UNETLoader", "Load Diffusion Model", (0, 0, 320, 90), {"unet_name": "demo_sd3.safetensors"}),
    "2": ("PCMLoraLoader", "Load PCM LoRA", (0, 140, 320, 130),
          {"model": ["1", 0], "lora_name": "demo_pcm_4phase.safetensors"}),
    "3": ("PCMDemoPrompt", "Prompt", (360, 0, 300, 100), {"text": "a red circle on blue"}),
    "4": ("PCMDemoPrompt", "Negative prompt", (360, 150, 300, 100), {"text": ""}),
    "5": ("EmptySD3LatentImage", "Empty Latent Image", (360, 300, 300, 110), {"width": 64, "height": 64}),
    "6": ("PCMSampler", "PCM Sampler", (700, 0, 320, 540),
          {"model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0], "seed": 1}),
    "7": ("VAELoader", "Load VAE", (360, 460, 300, 60), {"vae_name": "taesd3"}),
    "8": ("VAEDecode", "VAE Decode", (1060, 0, 200, 50), {"samples": ["6", 0], "vae": ["7", 0]}),
    "9": ("SaveImage", "Save Image", (1060, 100, 340, 380), {"images": ["8", 0], "filename_prefix": "pcm"}),
    "10": ("PreviewAny", "What the LoRA says", (0, 320, 320, 240), {"source": ["2", 1]}),
}  # fmt: skip


def is_link(value: Any) -> bool:
    return isinstance(value, list)


def input_specs(info: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Type and options of each input of an ``/object_info`` entry, in the order in which the frontend makes widgets."""
    specs: dict[str, tuple[Any, dict[str, Any]]] = {}
    for kind in ("required", "optional"):
        for name in info["input_order"].get(kind, []):
            type_, *options = info["input"][kind][name]
            specs[name] = (type_, options[0] if options else {})
    return specs


def is_widget(type_: Any, options: dict[str, Any]) -> bool:
    return (isinstance(type_, list) or type_ in WIDGETS) and not options.get("forceInput")


def default_of(type_: Any, options: dict[str, Any]) -> Any:
    choices = type_ if isinstance(type_, list) else options.get("options", [None])
    return options.get("default", choices[0])


def to_api(nodes: Nodes, infos: dict[str, Any]) -> Graph:
    """The API form, every widget spelled out: the host does not fill in defaults."""
    graph: Graph = {}
    for node_id, (class_type, title, _, inputs) in nodes.items():
        specs = input_specs(infos[class_type])
        defaults = {name: default_of(*spec) for name, spec in specs.items() if is_widget(*spec)}
        graph[node_id] = {"class_type": class_type, "inputs": defaults | inputs, "_meta": {"title": title}}
    return graph


def to_ui(nodes: Nodes, graph: Graph, infos: dict[str, Any], note: str, note_box: tuple[int, ...]) -> dict[str, Any]:
    """The UI form, schema 0.4 of the frontend: nodes with ``widgets_values``, links as lists."""
    links: list[list[Any]] = []
    drawn = [ui_node(node_id, nodes[node_id], graph[node_id]["inputs"], infos, links) for node_id in nodes]
    by_id = {node["id"]: node for node in drawn}
    for link_id, source, slot, *_ in links:
        by_id[source]["outputs"][slot]["links"].append(link_id)
    last = max(by_id) + 1
    drawn.append(
        {"id": last, "type": "MarkdownNote", "title": "Read me", "pos": list(note_box[:2]), "size": list(note_box[2:]),
         "flags": {}, "order": len(drawn), "mode": 0, "inputs": [], "outputs": [], "properties": {},
         "widgets_values": [note]}
    )  # fmt: skip
    return {"version": 0.4, "last_node_id": last, "last_link_id": len(links), "nodes": drawn, "links": links,
            "groups": [], "config": {}, "extra": {}}  # fmt: skip


def ui_node(node_id: str, node: tuple[Any, ...], values: dict[str, Any], infos: dict[str, Any],
            links: list[list[Any]]) -> dict[str, Any]:  # fmt: skip
    """One node; the links that end in it are appended to ``links``."""
    class_type, title, (x, y, width, height), _ = node
    inputs: list[dict[str, Any]] = []
    widgets: list[Any] = []
    for name, (type_, options) in input_specs(infos[class_type]).items():
        if is_link(values.get(name)):
            source, slot = values[name]
            links.append([len(links) + 1, int(source), slot, int(node_id), len(inputs), type_])
            inputs.append({"name": name, "type": type_, "link": len(links)})
        elif is_widget(type_, options):
            widgets.append(values[name])
            widgets += ["fixed"] if options.get("control_after_generate") else []
        else:
            inputs.append({"name": name, "type": type_, "link": None})
    info = infos[class_type]
    outputs = [
        {"name": name, "type": type_, "links": [], "slot_index": slot}
        for slot, (name, type_) in enumerate(zip(info["output_name"], info["output"], strict=True))
    ]
    properties = {"Node name for S&R": class_type}
    if class_type.startswith("PCM") and class_type != "PCMDemoPrompt":
        properties |= {"cnr_id": "phased-consistency"}
    return {"id": int(node_id), "type": class_type, "title": title, "pos": [x, y], "size": [width, height],
            "flags": {}, "order": int(node_id) - 1, "mode": 0, "inputs": inputs, "outputs": outputs,
            "properties": properties, "widgets_values": widgets}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="a running server with our packs")
    client = Client(parser.parse_args().url)
    infos = json.loads(client.get("/object_info"))
    api = to_api(QUICKSTART, infos)
    ui = to_ui(QUICKSTART, api, infos, NOTE, (-400, 0, 360, 340))
    for path, content in ((FOLDER / "api" / "quickstart.json", api), (FOLDER / "quickstart.json", ui)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        print(path)


if __name__ == "__main__":
    main()
