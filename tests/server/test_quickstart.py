"""The quick-start workflow on the real server: right picture, same bits, clear refusals, and it goes on after them."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from demo.client import Client, Graph, PromptError
from demo.quickstart import LORA, PROMPT, REPORT, SAMPLER, WORKFLOW
from demo.world import BACKGROUNDS, COLOURS, parse_prompt

LATENT = "5"


def quickstart(**sampler: Any) -> Graph:
    graph = json.loads(WORKFLOW.read_text("utf-8"))
    graph[SAMPLER]["inputs"] |= sampler
    return graph


def picture(client: Client, graph: Graph, steps: list[tuple[int, int]] | None = None) -> Tensor:
    """The one picture of a graph: float [3, H, W] in 0..1. Sampler progress is appended to ``steps``."""
    outputs = client.run(graph, None if steps is None else lambda done, total: steps.append((done, total)))
    (png,) = client.pictures(outputs)
    return pil_to_tensor(Image.open(io.BytesIO(png)).convert("RGB")) / 255


def share_near(image: Tensor, colour: tuple[float, float, float]) -> float:
    """Share of the pixels within 0.15 of a colour, per channel."""
    return ((image - torch.tensor(colour)[:, None, None]).abs().amax(0) < 0.15).float().mean().item()


@pytest.mark.parametrize(
    "text", ["a red circle on white", "a yellow cross on black", "a blue square on pink", "a green triangle on gray"]
)
def test_the_picture_has_the_colours_of_the_prompt(client: Client, text: str) -> None:
    graph = quickstart(seed=5)
    graph[PROMPT]["inputs"]["text"] = text
    image = picture(client, graph)
    prompt = parse_prompt(text)
    assert prompt is not None
    assert image.shape == (3, 64, 64)
    background = share_near(image, list(BACKGROUNDS.values())[prompt.background])
    shape = share_near(image, list(COLOURS.values())[prompt.colour])
    assert background > 0.5, f"{background:.0%} of the picture is background"
    assert 0.04 < shape < 0.45, f"{shape:.0%} of the picture has the colour of the shape"


def test_every_step_is_reported_and_the_report_names_the_phases(client: Client) -> None:
    steps: list[tuple[int, int]] = []
    graph = quickstart(seed=6)
    picture(client, graph, steps)
    assert [step for step in steps if step[1] == 4][-1] == (4, 4)
    outputs = client.run(graph)
    assert re.search(r"phases: 4\b", outputs[REPORT]["text"][0])


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_picture(client: Client) -> None:
    first = picture(client, quickstart(seed=7))
    client.post("/free", {"free_memory": True, "unload_models": True})  # else the host answers from its cache
    # The host reads that flag when it next looks: perhaps only after the prompt that follows, never after two.
    other = picture(client, quickstart(seed=8))
    steps: list[tuple[int, int]] = []
    again = picture(client, quickstart(seed=7), steps)
    assert steps, "the second run came from the host's cache and shows nothing"
    assert torch.equal(first, again)
    assert (other - first).abs().mean() > 0.02


@pytest.mark.parametrize("phases", [2, 4, 8])
def test_our_sampler_equals_stock_euler_simple(client: Client, phases: int) -> None:
    """Trailing phases on a flow model are the timesteps of ``simple``; the PNGs may differ by one rounding."""
    graph = quickstart(seed=9)
    graph[LORA]["inputs"]["lora_name"] = f"demo_pcm_{phases}phase.safetensors"
    ours = picture(client, graph)
    shared = {name: graph[SAMPLER]["inputs"][name] for name in ("model", "positive", "negative", "latent_image")}
    settings = {"seed": 9, "steps": phases, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    graph[SAMPLER] = {"class_type": "KSampler", "inputs": shared | settings, "_meta": {"title": "KSampler"}}
    assert (picture(client, graph) - ours).abs().max() <= 1 / 255 + 1e-6


Change = Callable[[Graph], object]


def sampler_input(name: str, value: Any) -> Change:
    return lambda graph: graph[SAMPLER]["inputs"].update({name: value})


def lora_file(name: str) -> Change:
    return lambda graph: graph[LORA]["inputs"].update(lora_name=f"{name}.safetensors")


def linked_int(node: str, name: str, value: int) -> Change:
    """Feed a number through a link, past the host's own check of minimum and maximum."""

    def change(graph: Graph) -> None:
        graph["20"] = {"class_type": "PrimitiveInt", "inputs": {"value": value}, "_meta": {"title": "Int"}}
        graph[node]["inputs"][name] = ["20", 0]

    return change


def lcm_table(graph: Graph) -> None:
    """The host's own LCM patch leaves 50 of the 1000 sigmas."""
    graph["20"] = {
        "class_type": "ModelSamplingDiscrete",
        "inputs": {"model": graph[SAMPLER]["inputs"]["model"], "sampling": "lcm", "zsnr": False},
        "_meta": {"title": "ModelSamplingDiscrete"},
    }
    graph[SAMPLER]["inputs"]["model"] = ["20", 0]


# Change, node that must complain, what the message must say. "not in list" and "bigger than max" are the host's words.
BAD = {
    "truncated file": (lora_file("truncated"), "PCMLoraLoader", r"truncated"),
    "not a safetensors": (lora_file("not_safetensors"), "PCMLoraLoader", r"not_safetensors"),
    "another family": (lora_file("pcm_sd15_smallcfg_4step_converted"), "PCMLoraLoader", r"(?i)sd ?1\.?5|stable diff"),
    "missing file": (lora_file("nowhere"), "PCMLoraLoader", r"nowhere.*not in"),
    "10000 steps": (sampler_input("steps", 10000), "PCMSampler", r"10000 bigger than max"),
    "10000 steps by link": (linked_int(SAMPLER, "steps", 10000), "PCMSampler", r"10000"),
    "-1 steps by link": (linked_int(SAMPLER, "steps", -1), "PCMSampler", r"-1"),
    "cfg NaN": (sampler_input("cfg", "nan"), "PCMSampler", r"(?i)cfg.*nan"),
    "cfg words": (sampler_input("cfg", "strong"), "PCMSampler", r"cfg.*strong"),
    "denoise NaN": (sampler_input("denoise", math.nan), "PCMSampler", r"denoise is nan"),
    "empty latent": (linked_int(LATENT, "batch_size", 0), "PCMSampler", r"(?i)latent"),
    "table of 50 sigmas": (lcm_table, "PCMSampler", r"50 entries"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_sentence_and_the_next_prompt_works(client: Client, case: str) -> None:
    change, node, words = BAD[case]
    graph = quickstart(seed=20)
    change(graph)
    with pytest.raises(PromptError) as refusal:
        client.run(graph)
    assert node in str(refusal.value), str(refusal.value)
    assert re.search(words, str(refusal.value)), str(refusal.value)
    if "exception_type" in refusal.value.details:  # refused by our code, not by the host's validation
        assert refusal.value.details["exception_type"].endswith("PCMError"), refusal.value.details["exception_type"]
    seed = 100 + list(BAD).index(case)
    assert picture(client, quickstart(seed=seed)).std() > 0.05


def test_a_bad_prompt_says_which_words_exist(client: Client) -> None:
    graph = quickstart(seed=21)
    graph[PROMPT]["inputs"]["text"] = "a red dog on blue"
    with pytest.raises(PromptError, match="exactly one shape of: circle, square, triangle, cross"):
        client.run(graph)
