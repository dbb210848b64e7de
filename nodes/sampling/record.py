"""What a sampler ran, as text and as data: for people, for managers of LoRAs, and for readers of A1111's parameters.

The text is the infotext of the Stable Diffusion web UI, which ``parse_generation_parameters`` reads: a line with
the LoRAs, then ``Steps: 4, Sampler: PCM, CFG scale: 1, ...``. What it has no words for stands behind, without commas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...pcm_core.plan import Plan
from .. import host
from ..host.status import note_in_pictures

SAMPLER = "PCM"
# What separates or encloses values in the text.
_SEPARATORS = re.compile(r'[,:<>"\\\x00-\x1f]')


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of a sampler.

    Attributes:
        plan: the steps that ran.
        seed: of the starting noise.
        denoise: as asked.
        size: width and height of the image in pixels.
        frames: latent frames; 0 for an image.
        model: name of the checkpoint; empty if not known.
        loras: that Load PCM LoRA put on the model, in their order, each once.
    """

    plan: Plan
    seed: int
    denoise: float
    size: tuple[int, int]
    frames: int
    model: str
    loras: tuple[host.LoadedLora, ...]

    def as_json(self) -> dict[str, Any]:
        """The data, of types that JSON has."""
        plan = self.plan
        return {
            "steps": plan.steps, "sampler": SAMPLER, "method": plan.profile.method, "phases": plan.phases,
            "cfg": list(plan.cfg), "sigmas": [_rounded(sigma) for sigma in plan.sigmas.tolist()],
            "determinism": [_rounded(r) for r in plan.r], "spacing": self._spacing, "shift": plan.table.shift,
            "seed": self.seed, "denoise": self.denoise, "width": self.size[0], "height": self.size[1],
            "latent_frames": self.frames, "model": self.model,
            "loras": [{"name": lora.name, "strength": lora.strength, "hash": lora.short_hash} for lora in self.loras],
        }  # fmt: skip

    def infotext(self) -> str:
        """The same as A1111 writes it."""
        found = self.as_json()
        sigmas = found["sigmas"]
        cfg = self.plan.cfg_at(float(self.plan.sigmas[0])) if sigmas else self.plan.cfg[0]
        values: dict[str, Any] = {
            "Steps": found["steps"], "Sampler": SAMPLER, "Schedule type": self._spacing, "CFG scale": f"{cfg:g}",
            "Seed": self.seed, "Size": f"{self.size[0]}x{self.size[1]}", "Model": _plain(self.model),
            "Denoising strength": f"{self.denoise:g}" if self.denoise < 1 else "",
            "Shift": "" if found["shift"] is None else f"{found['shift']:g}", "Method": _plain(found["method"]),
            "Phases": found["phases"], "CFG per phase": _each(self.plan.cfg), "Sigmas": _numbers(sigmas),
            "Determinism": _each(found["determinism"]), "Latent frames": self.frames or "",
            "Lora hashes": _hashes(self.loras),
        }  # fmt: skip
        tags = "".join(f"<lora:{_plain(lora.name)}:{lora.strength:g}>" for lora in self.loras)
        line = ", ".join(f"{name}: {value}" for name, value in values.items() if value != "")
        return f"{tags}\n{line}" if tags else line

    @property
    def _spacing(self) -> str:
        return "list" if self.plan.schedule is None else self.plan.schedule.spacing


def record(
    models: Sequence[Any], latent: host.Latent, plan: Plan, *, seed: int, denoise: float, hidden: Any = None
) -> str:
    """The infotext of a run; the same as data goes into the pictures that this prompt saves.

    Args:
        models: that took the steps, the first of them that the plan was made for.
        latent: the result.
        hidden: the node's hidden inputs.
    """
    shape = host.parts(latent["samples"])[0].shape
    ratio, _ = host.latent_ratios(models[0])
    run = Record(
        plan=plan, seed=seed, denoise=denoise, size=(shape[-1] * ratio, shape[-2] * ratio),
        frames=shape[2] if len(shape) == 5 else 0, model=host.file_name(models[0]),
        loras=tuple(dict.fromkeys(lora for model in models for lora in host.loras_of(model))),
    )  # fmt: skip
    note_in_pictures(hidden, run.as_json())
    return run.infotext()


def with_prompts(info: str, positive: str, negative: str) -> str:
    """An infotext with the prompts in front, where the web UI has them: the LoRAs of ``info`` belong to the prompt."""
    *tags, values = info.strip().split("\n")
    prompt = " ".join(filter(None, [positive.strip(), *tags]))
    lines = [prompt, f"Negative prompt: {negative.strip()}" if negative.strip() else "", values]
    return "\n".join(filter(None, lines))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _each(values: Sequence[float]) -> str:
    """One number if all are the same."""
    return _numbers(values[:1] if len(set(values)) == 1 else values)


def _plain(name: str) -> str:
    """A name that no reader takes apart."""
    return _SEPARATORS.sub("_", name)


def _hashes(loras: Sequence[host.LoadedLora]) -> str:
    known = [f"{_plain(lora.name)}: {lora.short_hash}" for lora in loras if lora.short_hash]
    return '"' + ", ".join(known) + '"' if known else ""
