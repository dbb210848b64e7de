"""The bar on our nodes: what it shows for widgets, against numbers worked out by hand."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pcm_core.workflow_check.panel import bar_answer
from pcm_core.workflow_check.schedules import ClosedForm

SDXL = "pcm_sdxl_smallcfg_4step_converted.safetensors"
WAN = "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors"


def bar(kind: str, lora: str = SDXL, base: str = "model.safetensors", second: bool = False, **widgets: Any) -> Any:
    """The bar of one of our nodes behind Load PCM LoRA, or behind the base model alone."""
    prompt: dict[str, Any] = {"1": {"class_type": "UNETLoader", "inputs": {"unet_name": base}}}
    if lora:
        prompt["2"] = {"class_type": "PCMLoraLoader", "inputs": {"model": ["1", 0], "lora_name": lora, "strength": 1.0}}
    model = ["2" if lora else "1", 0]
    more = {"second_model": ["1", 0]} if second else {}
    prompt["3"] = {"class_type": kind, "inputs": {"model": model, **more, **widgets}}
    return bar_answer({"workflow": prompt, "nodes": ["3"]}, ClosedForm())["bars"]["3"]


def test_parts_of_a_schedule():
    whole = bar("PCMSampler")
    assert len(whole["levels"]) == 5 and whole["ran"] is None and not whole["notes"]
    part = bar("PCMSampler", start_step=1, end_step=3, return_with_leftover_noise=True)
    assert part["ran"] == (1, 3) and part["levels"] == whole["levels"]
    assert part["notes"] == ["Step 3 is the last of 4 and leaves the noise of the next step."]
    assert bar("PCMSampler", end_step=2)["notes"] == ["Step 2 is the last of 4 and denoises fully."]
    assert bar("PCMSampler", start_step=9)["notes"] == ["start_step is 9 of 4 steps: nothing runs."]
    assert bar("PCMSampler", start_step=3, end_step=2)["error"] == "start_step is 3 and end_step is 2."


def test_what_is_set_aside_is_said():
    assert bar("PCMSampler", steps=9)["notes"] == ["9 steps were asked of a 4-phase model; ran its 4 phase jumps."]
    chosen = bar("PCMSampler", method="Hyper-SD SDXL 8 steps")
    assert len(chosen["levels"]) == 9 and "which the model carries" in chosen["notes"][0]
    assert "method is none" in bar("PCMPhaseScheduler", method="none")["notes"][0]
    assert bar("PCMSampler", determinism=0.5, gamma=0.5)["error"] == "determinism is 0.5 and gamma is 0.5."
    assert bar("PCMSampler", method="no such")["error"] == 'There is no method "no such".'
    assert bar("PCMSampler", steps="many")["error"] == "steps is no value of its kind."


def test_a_distilled_checkpoint_is_recognized():
    found = bar("PCMSampler", lora="", base="z_image_turbo_bf16.safetensors")
    assert len(found["levels"]) == 9 and not found["notes"]


def test_experts_and_windows():
    """Shift 5 on four equal steps: 1, 0.9375, 0.8333, 0.625. 875 is nearest to 833, the third level."""
    found = bar("PCMVideoSampler", WAN, second=True)
    assert found["levels"] == pytest.approx([1, 0.9375, 0.83333, 0.625, 0], abs=2e-4)
    assert found["second"] == 2 and "2 of 4 steps on the first" in found["notes"][-1]
    assert bar("PCMVideoSampler", WAN, second=True, boundary=940)["second"] == 1
    assert bar("PCMVideoSampler", WAN)["second"] is None
    assert bar("PCMVideoSampler", WAN, window=81)["windows"] == (81, 16)
    assert bar("PCMVideoSampler", WAN, window=80)["error"] == "window is 80."
    assert bar("PCMVideoSampler", WAN, window=13, overlap=16)["error"].startswith("window is 13 frames and overlap")
    assert bar("PCMVideoSampler", WAN, preset="rCM", method="none")["error"] == "preset is rCM and method is none."


def test_the_default_preset_of_a_video_model_is_said():
    found = bar("PCMVideoSampler", "", "wan2.1_t2v_14B_fp16.safetensors")
    assert "assumed LightX2V-Wan2.1" in found["notes"][0] and len(found["levels"]) == 5
    assert bar("PCMVideoSampler", "", "wan2.1.safetensors", preset="rCM")["levels"] != found["levels"]
    assert bar("PCMVideoSampler", WAN, preset="FastMochi")["error"] == "The preset FastMochi is not for Wan."


def test_a_bar_takes_few_milliseconds():
    """Of the 100 that a bar has to follow typing; the rest is the browser's."""
    bar("PCMSampler")
    times = list[float]()
    for steps in range(8):
        started = time.process_time()
        bar("PCMSampler", steps=steps)
        times.append(time.process_time() - started)
    assert min(times) < 0.02, times
