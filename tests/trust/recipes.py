"""Graphs of the demo world that use every node of the pack, and graphs that must fail, as ``text -> graph``.

The text is the prompt. Blanks at its end change nothing but the host's cache key, so a recipe can run again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence
from safetensors.numpy import load_file

from demo.client import Graph
from demo.quickstart import LORA, MODEL, PROMPT, SAMPLER, SAVE, WORKFLOW
from demo.quickstart_video import WORKFLOW as VIDEO_WORKFLOW

Recipe = Callable[[str], Graph]
NEGATIVE, LATENT, VAE, DECODE = "4", "5", "7", "8"
KEEP, OTHER, WEIGHTS, BROKEN = "90", "91", "92", "93"  # nodes that the recipes add
LORAS = ("demo_pcm_2phase", "demo_pcm_4phase", "demo_pcm_8phase", "demo_lcm")


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def picture(text: str, lora: str = LORAS[1], *, batch: int = 1, strength: float = 1.0, **sampler: Any) -> Graph:
    """The quick start; its latent is saved too, because a PNG rounds."""
    graph: Graph = json.loads(WORKFLOW.read_text("utf-8"))
    graph[LORA]["inputs"] |= {"lora_name": f"{lora}.safetensors", "strength": strength}
    graph[PROMPT]["inputs"]["text"] = "a red circle on blue" + text
    graph[SAMPLER]["inputs"] |= sampler
    graph[LATENT]["inputs"]["batch_size"] = batch
    graph[KEEP] = node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="latents/trust")
    return graph


def saved(text: str) -> Graph:
    """The quick start, with what ran in the parameters of its picture."""
    graph = picture(text)
    graph[SAVE] = node("PCMSaveImage", images=[DECODE, 0], info=[SAMPLER, 2], filename_prefix="trust/saved")
    return graph


def broken(text: str) -> Graph:
    """A model that returns NaN at the third step."""
    graph = picture(text)
    graph[BROKEN] = node("TestBrokenModel", model=[LORA, 0], below=0.8)
    graph[SAMPLER]["inputs"]["model"] = [BROKEN, 0]
    return graph


def stock(text: str, *, lora: bool, sampler: str, scheduler: str, cfg: float) -> Graph:
    """KSampler, on the plain model or on the one with the LoRA."""
    graph = picture(text)
    shared = {name: graph[SAMPLER]["inputs"][name] for name in ("positive", "negative", "latent_image")}
    graph[SAMPLER] = node(
        "KSampler", **shared, model=[LORA if lora else MODEL, 0], seed=3, steps=4, cfg=cfg, sampler_name=sampler,
        scheduler=scheduler, denoise=1.0,
    )  # fmt: skip
    return graph


def blocks(text: str) -> Graph:
    """Scheduler, sampler, guider and plot as nodes of their own."""
    graph = picture(text)
    schedule = {"steps": 0, "phases": 0, "denoise": 1.0, "spacing": "auto", "terminal": "auto", "grid": 0}
    graph |= {
        "20": node("PCMPhaseScheduler", model=[LORA, 0], spend_extra_steps=False, **schedule),
        "21": node("SamplerPCM", determinism=-1.0, gamma=-1.0),
        "22": node("PCMGuider", model=[LORA, 0], positive=[PROMPT, 0], negative=[NEGATIVE, 0], cfg="3, 1, 1, 1",
                   phases=0, spacing="auto", grid=0),
        "23": node("RandomNoise", noise_seed=5),
        "24": node("PCMPhasePlot", model=[LORA, 0], sigmas=["20", 0], cfg="3, 1, 1, 1", theme="dark", width=640,
                   height=480, **schedule),
        "25": node("PreviewImage", images=["24", 0]),
        SAMPLER: node("SamplerCustomAdvanced", noise=["23", 0], guider=["22", 0], sampler=["21", 0], sigmas=["20", 0],
                      latent_image=[LATENT, 0]),
    }  # fmt: skip
    return graph


def settings(text: str) -> Graph:
    """The stock loader, and the settings apart from it."""
    graph = picture(text)
    loaded = graph[LORA]["inputs"]
    graph[LORA] = node("LoraLoaderModelOnly", model=loaded["model"], lora_name=loaded["lora_name"], strength_model=1.0)
    graph["40"] = node("PCMSettings", model=[LORA, 0], method="auto", file_name=loaded["lora_name"], replace=False)
    graph[SAMPLER]["inputs"]["model"] = ["40", 0]
    return {name: entry for name, entry in graph.items() if entry["class_type"] != "PreviewAny"}


def video(text: str, lora: str, **sampler: Any) -> Graph:
    graph: Graph = json.loads(VIDEO_WORKFLOW.read_text("utf-8"))
    graph[LORA]["inputs"]["lora_name"] = f"{lora}.safetensors"
    graph[PROMPT]["inputs"]["text"] += text
    graph[SAMPLER]["inputs"] |= sampler
    graph[KEEP] = node("SaveLatent", samples=[SAMPLER, 0], filename_prefix="latents/trust")
    return graph


def compare(text: str) -> Graph:
    graph = picture(text)
    graph[OTHER] = node(
        "PCMCompare", model=[LORA, 0], positive=[PROMPT, 0], negative=[NEGATIVE, 0], latent_image=[LATENT, 0],
        vae=[VAE, 0], seed=1, seeds=1, columns="2, 4\nb: euler/simple@4 cfg 3 = teacher", denoise=1.0, cell_size=64,
        row_labels="", **{"models.model_b": [MODEL, 0]},
    )  # fmt: skip
    graph[SAVE]["inputs"]["images"] = [OTHER, 0]
    return graph


def distil(text: str, steps: int = 3) -> Graph:
    """A few steps on what the quick start makes; the LoRA is saved, loaded and sampled in the same graph."""
    graph = picture(text)
    settings = {
        "phases": 4, "steps": steps, "batch_size": 2, "grad_accumulation": 1, "learning_rate": 1e-3, "rank": 4,
        "cfg_min": 3.0, "cfg_max": 3.0, "caption_dropout": 0.0, "adversarial": 0.0, "loss": "huber", "ema": 0.0,
        "seed": 0, "existing_lora": "[none]", "targets": "", "solver_grid": 0, "gradient_checkpointing": False,
        "compute": "model", "preview_every": 0, "width": 64, "height": 64,  # the size that the demo model was made for
    }  # fmt: skip
    again = {**graph[SAMPLER]["inputs"], "model": ["32", 0]}
    graph |= {
        "30": node("PCMDistillLora", model=[MODEL, 0], latents=[SAMPLER, 0], positive=[PROMPT, 0],
                   negative=[NEGATIVE, 0], **settings),
        "31": node("PCMSaveLora", lora=["30", 0], prefix="trust/lora", dtype="fp32"),
        "32": node("PCMLoraLoader", model=[MODEL, 0], lora_name=["31", 0], strength=1.0, allow_partial=False),
        "33": node("PCMSampler", **again),
        KEEP: node("SaveLatent", samples=["33", 0], filename_prefix="latents/trust"),
    }  # fmt: skip
    return graph


def lcm_table(text: str) -> Graph:
    """The host's own LCM patch leaves 50 of the 1000 sigmas."""
    graph = picture(text, model=[OTHER, 0])
    graph[OTHER] = node("ModelSamplingDiscrete", model=[LORA, 0], sampling="lcm", zsnr=False)
    return graph


def with_weights(graph: Graph) -> Graph:
    """The same, and then a hash of the weights that the model without LoRA has in memory."""
    return graph | {WEIGHTS: node("TestModelWeights", model=[MODEL, 0], after=[SAMPLER, 0])}


GOOD: dict[str, Recipe] = {
    **{f"picture {lora}": partial(picture, lora=lora) for lora in LORAS},
    "half strength": partial(picture, strength=0.5),
    "batch, cfg 2": partial(picture, batch=3, cfg="2", seed=2),
    "gamma, denoise": partial(picture, gamma=0.3, denoise=0.7, seed=4),
    "teacher": partial(stock, lora=False, sampler="euler", scheduler="simple", cfg=3.0),
    "stock names": partial(stock, lora=True, sampler="pcm", scheduler="pcm", cfg=1.0),
    "blocks": blocks,
    "settings apart from the LoRA": settings,
    "parameters in the picture": saved,
    "video 2 phases": partial(video, lora="demo_wan_pcm_2phase"),
    "video 4 phases, windows": partial(video, lora="demo_wan_pcm_4phase", window=9, overlap=4),
    "compare": compare,
    "distil": distil,
}
# With what the answer must say.
BAD: dict[str, tuple[Recipe, str]] = {
    "truncated": (partial(picture, lora="truncated"), "truncated"),
    "no safetensors": (partial(picture, lora="not_safetensors"), "not_safetensors"),
    "another family": (partial(picture, lora="pcm_sd15_smallcfg_4step_converted"), "(?i)sd ?1.?5|stable diff"),
    "a video LoRA": (partial(picture, lora="demo_wan_pcm_4phase"), "demo_wan_pcm_4phase"),
    "cfg nan": (partial(picture, cfg="nan"), "(?i)cfg.*nan"),
    "denoise nan": (partial(picture, denoise=math.nan), "denoise is nan"),
    "cfg too large": (partial(picture, cfg="1e30"), "cfg contains .1e30"),
    "not a number": (broken, "NaN or infinity at step 3"),
    "50 sigmas": (lcm_table, "50 entries"),
}
# Seconds inside one node, so that an interrupt at a step comes while it runs.
SLOW: dict[str, Recipe] = {
    "slow picture": partial(picture, batch=16, model=[MODEL, 0], steps=64, cfg="3"),
    "slow distil": partial(distil, steps=3000),
}


def digest(base: Path, outputs: dict[str, Any]) -> str:
    """A hash of everything a prompt saved, by value: metadata and file names differ from run to run."""
    found = hashlib.sha256()
    for name in sorted(outputs):
        for kind in ("images", "latents"):
            for file in outputs[name].get(kind, []):
                path = base / file["type"] / file["subfolder"] / file["filename"]
                for array in _arrays(path):
                    found.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
    return found.hexdigest()


def _arrays(path: Path) -> list[np.ndarray]:
    if path.suffix == ".latent":
        return [array for _, array in sorted(load_file(path).items())]
    with Image.open(path) as picture:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
