"""Mistakes people make, seeded into right workflows: each a function from a right prompt to a wrong one.

A mistake says which rules of the check would name it, and how to see afterwards that it is mended: by values that were
right before, looked up in the workflow itself.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from right_graphs import LORA_LOADERS, RIGHT, SAMPLERS, Prompt, Right, build, build_pair

Change = Callable[[Prompt, Right, random.Random], "bool | None"]


@dataclass(frozen=True)
class Case:
    """A wrong workflow beside the right one."""

    name: str
    kind: str
    rules: tuple[str, ...]
    right: Prompt
    wrong: Prompt


def _nodes(prompt: Prompt, *kinds: str) -> list[dict[str, Any]]:
    return [node for node in prompt.values() if node["class_type"] in kinds]


def _samplers(prompt: Prompt) -> list[dict[str, Any]]:
    return _nodes(prompt, *SAMPLERS, "KSamplerAdvanced")


def _with(prompt: Prompt, widget: str) -> list[dict[str, Any]]:
    """Nodes with a widget of this name."""
    return [
        node for node in prompt.values() if widget in node["inputs"] and not isinstance(node["inputs"][widget], list)
    ]


def _set(prompt: Prompt, widget: str, value: Any) -> bool:
    found = _with(prompt, widget)
    for node in found:
        node["inputs"][widget] = value
    return bool(found)


def steps_off(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    choices = [20, 30, 50] + ([right.steps // 2] if right.sampler == "euler" else [])
    return _set(prompt, "steps", lot.choice(choices))


def cfg_seven(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    return _set(prompt, "cfg", lot.choice([7.0, 8.0, 7.5])) and right.cfg < 4


def karras(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    return _set(prompt, "scheduler", lot.choice(["karras", "karras", "exponential", "normal", "beta"]))


def wrong_sampler(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    fixed = ["lcm", "euler_ancestral", "dpmpp_sde", "dpmpp_2m_sde"]
    return _set(prompt, "sampler_name", lot.choice(["euler", "dpmpp_2m"] if right.sampler == "lcm" else fixed))


def shift_missing(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    """The node is gone: the model's own shift counts, which is the right one for SD3 and near it for Qwen-Image."""
    if right.shift is None or right.base.startswith(("sd3", "qwen")):
        return False
    name = next(key for key, node in prompt.items() if node["class_type"] == right.patch)
    source = prompt.pop(name)["inputs"]["model"]
    for node in prompt.values():
        node["inputs"] = {k: source if v == [name, 0] else v for k, v in node["inputs"].items()}
    return True


def shift_doubled(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    if right.shift is None:
        return False
    return _set(prompt, "shift", right.shift * lot.choice([2, 2, 3]))


def two_shifts(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    if right.shift is None:
        return False
    name = next(key for key, node in prompt.items() if node["class_type"] == right.patch)
    made = str(max(map(int, prompt)) + 1)
    prompt[made] = {
        "class_type": right.patch,
        "inputs": {"model": prompt[name]["inputs"]["model"], "shift": right.shift},
    }
    prompt[name]["inputs"]["model"] = [made, 0]
    return True


def full_strength(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    if right.strength == 1:
        return False
    return any([_set(prompt, name, 1.0) for name in ("strength_model", "model_weight_1")]) or _row(prompt, 1.0)


def _row(prompt: Prompt, strength: float) -> bool:
    rows = _with(prompt, "lora_1")
    for node in rows:
        node["inputs"]["lora_1"] = {**node["inputs"]["lora_1"], "strength": strength}
    return bool(rows)


def lora_after(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    """The sampler takes the model from before the LoRA; the LoRA stays, beside the way."""
    if not right.lora:
        return False
    name = next(k for k, n in prompt.items() if n["class_type"] in (*LORA_LOADERS, "CR Apply LoRA Stack")
                and "model" in n["inputs"])  # fmt: skip
    source = prompt[name]["inputs"]["model"]
    for key, node in prompt.items():
        if key != name and node["inputs"].get("model") == [name, 0]:
            node["inputs"]["model"] = source
    return True


def two_files(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    """A second few-step LoRA right behind the first."""
    others = [other for other in RIGHT if other.lora and other.base == right.base and other.file != right.file]
    if not right.lora or not others:
        return False
    name = next(k for k, n in prompt.items() if n["class_type"] in (*LORA_LOADERS, "CR Apply LoRA Stack")
                and "model" in n["inputs"])  # fmt: skip
    made = str(max(map(int, prompt)) + 1)
    other = lot.choice(others)
    for node in prompt.values():
        if node["inputs"].get("model") == [name, 0]:
            node["inputs"]["model"] = [made, 0]
    prompt[made] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": [name, 0], "lora_name": other.file, "strength_model": other.strength},
    }
    return True


SINGLE: dict[str, tuple[Change, tuple[str, ...]]] = {
    "steps off": (steps_off, ("steps",)),
    "cfg 7": (cfg_seven, ("cfg", "cfg_range")),
    "scheduler": (karras, ("scheduler", "scheduler_count", "scheduler_name")),
    "sampler of the wrong class": (wrong_sampler, ("sampler_fixed", "sampler_renoised", "sampler_ancestral")),
    "shift missing": (shift_missing, ("shift_missing",)),
    "shift doubled": (shift_doubled, ("shift",)),
    "two shift nodes": (two_shifts, ("shift_twice",)),
    "strength 1 for 0.125": (full_strength, ("strength",)),
    "LoRA after the branch": (lora_after, ("unused",)),
    "two few-step files": (two_files, ("two_files",)),
}


def swap_loras(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    return _swap(prompt, "lora")


def swap_models(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    return _swap(prompt, "unet_name")


def swap_both(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    return _swap(prompt, "lora") and _swap(prompt, "unet_name")


def _swap(prompt: Prompt, what: str) -> bool:
    found = [
        (node["inputs"], name) for node in prompt.values() for name in node["inputs"]
        if (name == "unet_name" if what == "unet_name" else name in ("lora_name", "lora_name_1", "lora_1"))
    ]  # fmt: skip
    (first, name), (second, other) = found
    first[name], second[other] = second[other], first[name]
    return True


def overlap(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    first, second = _nodes(prompt, "KSamplerAdvanced")
    first["inputs"]["end_at_step"], second["inputs"]["start_at_step"] = lot.choice(
        [(3, 2), (2, 1), (4, 2), (2, 0), (1, 2)]
    )
    return True


def no_leftover(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    _nodes(prompt, "KSamplerAdvanced")[0]["inputs"]["return_with_leftover_noise"] = "disable"
    return True


def noise_twice(prompt: Prompt, right: Right, lot: random.Random) -> bool:
    _nodes(prompt, "KSamplerAdvanced")[1]["inputs"]["add_noise"] = "enable"
    return True


PAIR: dict[str, tuple[Change, tuple[str, ...]]] = {
    "LoRAs of the experts swapped": (swap_loras, ("expert_half",)),
    "experts swapped": (swap_models, ("expert_half",)),
    "experts and LoRAs swapped": (swap_both, ("expert_half",)),
    "halves overlapping": (overlap, ("halves",)),
    "no leftover noise": (no_leftover, ("return_with_leftover_noise",)),
    "noise added twice": (noise_twice, ("add_noise",)),
    "steps off": (steps_off, ("steps",)),
    "cfg 7": (cfg_seven, ("cfg",)),
    "scheduler": (karras, ("scheduler", "scheduler_name")),
    "shift missing": (shift_missing, ("shift_missing",)),
    "shift doubled": (shift_doubled, ("shift",)),
}
_WAN = next(entry for entry in RIGHT if entry.file.startswith("lightx2v"))


def cases(seed: int = 2026, per_mistake: int = 30) -> Iterator[Case]:
    """Wrong workflows: every mistake on files, loaders and samplers drawn by lot, and on pairs of experts."""
    lot = random.Random(seed)
    for kind, (change, rules) in SINGLE.items():
        made = 0
        for _ in range(20 * per_mistake):
            right, loader, sampler = lot.choice(RIGHT), lot.choice(LORA_LOADERS), lot.choice(SAMPLERS)
            prompt = build(right, loader, sampler)
            wrong = copy.deepcopy(prompt)
            if change(wrong, right, lot) and wrong != prompt:
                made += 1
                yield Case(f"{kind}: {right.file} in {loader}, {sampler}", kind, rules, prompt, wrong)
            if made == per_mistake:
                break
    for kind, (change, rules) in PAIR.items():
        for index in range(per_mistake // 4):
            loader = LORA_LOADERS[index % len(LORA_LOADERS)]
            prompt = build_pair(loader)
            wrong = copy.deepcopy(prompt)
            if kind == "shift missing":
                for _ in range(2):
                    change(wrong, _WAN, lot)
            else:
                change(wrong, _WAN, lot)
            yield Case(f"{kind}: Wan 2.2 pair, {loader}, {index}", kind, rules, prompt, wrong)
