"""Run the video workflow on a running ComfyUI, once per method and prompt, and draw an animated grid.

``demo.quickstart`` calls this. The graph has the node ids of the quick start, so ``variant`` works on both.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageSequence

from .client import Client, Graph
from .grid import draw_grid
from .quickstart import SAMPLER, Bar, Method, variant
from .teacher import SHIFT

WORKFLOW = Path(__file__).parent / "workflows" / "api" / "video.json"
SHIFT_NODE = "11"
FRAME_MS, LAST_FRAME_MS = 100, 700

COLUMNS = (
    ("a red circle moving left", 21),
    ("a blue square moving right", 22),
    ("a green triangle moving up", 23),
    ("an orange circle moving down", 24),
    ("a purple square standing still", 25),
)

METHODS = (
    Method("Teacher, 25 steps", "CFG 3: 50 evaluations", 25, sampler="euler"),
    Method("Teacher, 4 steps", "CFG 3: 8 evaluations", 4, sampler="euler"),
    Method("LCM, 4 steps", "stock lcm: 4 evaluations", 4, "demo_wan_lcm_matched", "lcm"),
    Method("PCM, 1 phase", "consistency: 1 evaluation", 1, "demo_wan_lcm"),
    Method("PCM, 2 phases", "2 evaluations", 2, "demo_wan_pcm_2phase_matched"),
    Method("PCM, 4 phases", "4 evaluations", 4, "demo_wan_pcm_4phase_matched"),
)

Row = tuple[str, str, list[list[Image.Image]]]


def video_variant(graph: Graph, method: Method, prompt: str, seed: int) -> Graph:
    """``variant`` for clips: a stock sampler needs a node that sets the shift; ours reads it from the LoRA."""
    graph = variant(graph, method, prompt, seed)
    if method.sampler:
        inputs = {"model": graph[SAMPLER]["inputs"]["model"], "shift": SHIFT}
        graph[SHIFT_NODE] = {"class_type": "ModelSamplingSD3", "inputs": inputs, "_meta": {"title": "Shift"}}
        graph[SAMPLER]["inputs"]["model"] = [SHIFT_NODE, 0]
    return graph


def clip_frames(client: Client, graph: Graph, bar: Bar, title: str) -> list[Image.Image]:
    """The frames of the single clip that a graph makes."""
    outputs = client.run(graph, lambda step, _: bar.show(step, title))
    (file,) = client.pictures(outputs)
    return [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(io.BytesIO(file)))]


def make_clips(client: Client) -> list[Row]:
    """The rows of the grid, made by the server: title, detail, and the frames of every column."""
    graph = json.loads(WORKFLOW.read_text("utf-8"))
    bar = Bar(len(COLUMNS) * sum(method.steps for method in METHODS))
    rows: list[Row] = []
    for method in METHODS:
        clips: list[list[Image.Image]] = []
        for prompt, seed in COLUMNS:
            bar.show(0, method.title)
            clips.append(clip_frames(client, video_variant(graph, method, prompt, seed), bar, method.title))
            bar.add(method.steps)
        bar.end(f"Video: {method.title}")
        rows.append((method.title, method.detail, clips))
    return rows


def save_animation(rows: Sequence[Row], path: Path) -> None:
    """Write the grid as an animated WebP that loops and pauses on its last frame."""
    columns = [prompt for prompt, _ in COLUMNS]
    count = len(rows[0][2][0])
    sheets = [
        draw_grid([(title, detail, [clip[i] for clip in clips]) for title, detail, clips in rows], columns)
        for i in range(count)
    ]
    durations = [FRAME_MS] * (count - 1) + [LAST_FRAME_MS]
    sheets[0].save(path, save_all=True, append_images=sheets[1:], duration=durations, loop=0, quality=75, method=4)
