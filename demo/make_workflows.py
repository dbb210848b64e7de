"""Write the quick-start workflows in API and UI form from a few values and the node list of a running host.

Run it after adding or moving an input of a node: ``python dev.py serve``, then ``python -m demo.make_workflows``.
The browser test loads the UI form in the real frontend and compares the prompt it would queue with the API form.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from devtools.generate.workflow_builder import Graph
from devtools.generate.workflows import dump, version

from .client import Client

FOLDER = Path(__file__).parent / "workflows"

NOTE = """
## PCM quick start

A tiny model that knows sentences like **a yellow cross on pink**: red, green, blue, yellow, purple or orange; circle,
square, triangle or cross; on white, black, gray, blue, green or pink.

The LoRA file carries its settings, so the PCM Sampler needs none:
* `demo_pcm_4phase` runs 4 steps at cfg 1. Pick `demo_pcm_2phase` or `demo_pcm_8phase` and the steps follow. Those with
  `matched` in their names draw better, in as many steps as they have phases.
* At cfg 1 the negative prompt is not used and a step costs one evaluation.
* The same seed gives the same picture, bit for bit.
"""


VIDEO_NOTE = """
## PCM video quick start

A tiny Wan that knows sentences like **a red circle moving left**: red, green, blue, yellow, purple or orange; circle,
square or triangle; moving left, right, up, down, or standing still.

The LoRA file carries its settings, so the PCM Video Sampler needs none:
* `demo_wan_pcm_4phase` runs 4 steps at cfg 1 and shift 3. Pick `demo_wan_pcm_2phase` and the steps follow.
* The same seed gives the same clip, bit for bit.
"""


def quickstart(infos: dict[str, Any]) -> Graph:
    """The graph of ``dev.py demo``; its node ids are the constants in ``demo.quickstart``."""
    graph = Graph(infos, version())
    graph.note(NOTE)
    model = graph.add("UNETLoader", 0, unet_name="demo_sd3.safetensors")
    lora = graph.add("PCMLoraLoader", 0, model=model[0], lora_name="demo_pcm_4phase.safetensors")
    positive = graph.add("PCMDemoPrompt", 1, title="Prompt", text="a red circle on blue")
    negative = graph.add("PCMDemoPrompt", 1, title="Negative prompt", text="")
    latent = graph.add("EmptySD3LatentImage", 1, title="Empty Latent Image", width=64, height=64)
    sampler = graph.add(
        "PCMSampler", 2, model=lora[0], positive=positive[0], negative=negative[0], latent_image=latent[0], seed=1
    )
    vae = graph.add("VAELoader", 1, vae_name="taesd3")
    picture = graph.add("VAEDecode", 3, samples=sampler[0], vae=vae[0])
    graph.add("SaveImage", 3, images=picture[0], filename_prefix="pcm")
    graph.add("PreviewAny", 0, title="What the LoRA says", source=lora[1])
    return graph


def video(infos: dict[str, Any]) -> Graph:
    """The video graph of ``dev.py demo``, with the same node ids as the quick start."""
    graph = Graph(infos, version())
    graph.note(VIDEO_NOTE)
    model = graph.add("UNETLoader", 0, unet_name="demo_wan.safetensors")
    lora = graph.add("PCMLoraLoader", 0, model=model[0], lora_name="demo_wan_pcm_4phase.safetensors")
    positive = graph.add("PCMDemoVideoPrompt", 1, title="Prompt", text="a red circle moving left")
    negative = graph.add("PCMDemoVideoPrompt", 1, title="Negative prompt", text="")
    latent = graph.add(
        "EmptyHunyuanLatentVideo", 1, title="Empty video latent", width=48, height=48, length=13, batch_size=1
    )
    sampler = graph.add(
        "PCMVideoSampler", 2, model=lora[0], positive=positive[0], negative=negative[0], latent_image=latent[0], seed=1
    )
    vae = graph.add("VAELoader", 1, vae_name="demo_wan_vae.safetensors")
    pictures = graph.add("VAEDecode", 3, samples=sampler[0], vae=vae[0])
    graph.add("SaveAnimatedWEBP", 3, images=pictures[0], filename_prefix="pcm_video", fps=10.0)
    graph.add("PreviewAny", 0, title="What the LoRA says", source=lora[1])
    return graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="a running server with our packs")
    infos = json.loads(Client(parser.parse_args().url).get("/object_info"))
    for name, info in infos.items():
        info["ours"] = name.startswith("PCM")
    write("quickstart", quickstart(infos))
    write("video", video(infos))


def write(name: str, graph: Graph) -> None:
    """Write both forms of a graph."""
    ui = graph.to_ui()
    for node in ui["nodes"]:
        if node["type"].startswith("PCMDemo"):  # its pack is not published
            del node["properties"]["cnr_id"], node["properties"]["ver"]
        if node["type"] == "PreviewAny":  # it grows with its text, which is there only after a run
            node["size"][1] = 260
    for path, content in ((FOLDER / "api" / f"{name}.json", graph.to_api()), (FOLDER / f"{name}.json", ui)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(content), "utf-8", newline="\n")
        print(path)


if __name__ == "__main__":
    main()
