"""Run the quick-start workflows on a running ComfyUI, once per method and prompt, and draw the grids.

``python dev.py demo`` starts the server and calls this: ``python -m demo.quickstart --url http://127.0.0.1:8188``.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import sys
import urllib.error
from dataclasses import dataclass
from pathlib import Path

import websocket
from PIL import Image

from .client import Client, Graph, PromptError
from .grid import draw_grid

WORKFLOW = Path(__file__).parent / "workflows" / "api" / "quickstart.json"
OUTPUT = Path(__file__).resolve().parent.parent / "output" / "demo"
MODEL, LORA, PROMPT, SAMPLER, SAVE, REPORT = "1", "2", "3", "6", "9", "10"
TEACHER_CFG = 3.0

COLUMNS = (
    ("a red circle on white", 11),
    ("a yellow cross on black", 12),
    ("a blue square on pink", 13),
    ("a purple triangle on green", 14),
    ("an orange circle on blue", 15),
    ("a green cross on gray", 16),
)


@dataclass(frozen=True)
class Method:
    """A row of the grid. ``sampler`` selects the stock KSampler, None our node; without a LoRA it is the teacher."""

    title: str
    detail: str
    steps: int
    lora: str | None = None
    sampler: str | None = None


METHODS = (
    Method("Teacher, 25 steps", "CFG 3: 50 evaluations", 25, sampler="euler"),
    Method("Teacher, 4 steps", "CFG 3: 8 evaluations", 4, sampler="euler"),
    Method("LCM, 4 steps", "stock lcm: 4 evaluations", 4, "demo_lcm_matched", "lcm"),
    Method("PCM, 1 phase", "1 evaluation", 1, "demo_pcm_1phase_matched"),
    Method("PCM, 2 phases", "2 evaluations", 2, "demo_pcm_2phase_matched"),
    Method("PCM, 4 phases", "4 evaluations", 4, "demo_pcm_4phase_matched"),
    Method("PCM, 8 phases", "no matching: 8 evaluations", 8, "demo_pcm_8phase"),
)


def variant(graph: Graph, method: Method, prompt: str, seed: int) -> Graph:
    """The quick-start graph with a method's LoRA, sampler and steps, for one prompt and seed."""
    graph = copy.deepcopy(graph)
    graph[PROMPT]["inputs"]["text"] = prompt
    ours = graph[SAMPLER]["inputs"]
    if method.lora:
        graph[LORA]["inputs"]["lora_name"] = f"{method.lora}.safetensors"
    if method.sampler is None:
        ours |= {"seed": seed, "steps": method.steps}
        return graph
    del graph[REPORT]
    model = [LORA, 0] if method.lora else [MODEL, 0]
    shared = {name: ours[name] for name in ("positive", "negative", "latent_image")}
    settings = {"seed": seed, "steps": method.steps, "cfg": 1.0 if method.lora else TEACHER_CFG, "denoise": 1.0}
    stock = {"model": model, "sampler_name": method.sampler, "scheduler": "simple"}
    graph[SAMPLER] = {"class_type": "KSampler", "inputs": shared | settings | stock, "_meta": {"title": "KSampler"}}
    if method.lora:
        inputs = {"model": [MODEL, 0], "lora_name": f"{method.lora}.safetensors", "strength_model": 1.0}
        graph[LORA] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs, "_meta": {"title": "Load LoRA"}}
    else:
        del graph[LORA]
    return graph


class Bar:
    """A progress bar over all sampling steps: redrawn in place on a terminal, otherwise one line per method."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.live = sys.stdout.isatty()

    def show(self, within: int, what: str) -> None:
        if self.live:
            done = min(self.done + within, self.total)
            filled = 30 * done // self.total
            print(f"\r[{'#' * filled}{'.' * (30 - filled)}] {done}/{self.total} steps  {what:<20}", end="", flush=True)

    def add(self, steps: int) -> None:
        self.done += steps

    def end(self, what: str) -> None:
        if not self.live:
            print(f"{what}: done ({self.done}/{self.total} steps)", flush=True)
        elif self.done == self.total:
            print()


def make_pictures(client: Client, graph: Graph) -> list[tuple[str, str, list[Image.Image]]]:
    """The rows of the grid, made by the server."""
    bar = Bar(len(COLUMNS) * sum(method.steps for method in METHODS))
    rows: list[tuple[str, str, list[Image.Image]]] = []
    for method in METHODS:
        pictures: list[Image.Image] = []
        for prompt, seed in COLUMNS:
            bar.show(0, method.title)
            outputs = client.run(
                variant(graph, method, prompt, seed), lambda step, _, method=method: bar.show(step, method.title)
            )
            pictures += [Image.open(io.BytesIO(png)) for png in client.pictures(outputs)]
            bar.add(method.steps)
        bar.end(method.title)
        rows.append((method.title, method.detail, pictures))
    return rows


def main() -> int:
    from .quickstart_video import make_clips, save_animation  # imported here because it imports this module

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="a running server with our packs")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of grid.png and video.webp")
    options = parser.parse_args()
    try:
        with Client(options.url) as client:
            rows = make_pictures(client, json.loads(WORKFLOW.read_text("utf-8")))
            clips = make_clips(client)
    except PromptError as error:
        print(f"\nComfyUI did not run the quick-start workflow: {error}", file=sys.stderr)
        return 1
    except (urllib.error.URLError, websocket.WebSocketException, OSError) as error:
        print(f"\nLost the connection to ComfyUI at {options.url}: {error}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "grid.png"
    draw_grid(rows, [prompt for prompt, _ in COLUMNS]).save(path, optimize=True)
    print(f"Wrote {path}")
    save_animation(clips, options.output / "video.webp")
    print(f"Wrote {options.output / 'video.webp'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
