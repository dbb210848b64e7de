"""The official settings of a template beside what the pack would do on auto, on the host's own sigma tables."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from pcm_core.plan import plan
from pcm_core.profiles import PCMProfile
from pcm_core.sigma_table import SigmaTable

from .uses import Use

TOLERANCE = 2e-4
# Base models: the host's configuration and the parametrisation its model class has.
CONFIGURATIONS = {
    "sdxl": ("SDXL", "EPS"), "flux1": ("Flux", "FLUX"), "flux1-schnell": ("FluxSchnell", "FLOW"),
    "flux2": ("Flux2", "FLUX"), "qwen-image": ("QwenImage", "FLUX"),
    "krea2": ("Krea2", "FLUX"), "lens": ("Lens", "FLUX"), "mage-flow": ("MageFlow", "FLOW"),
    "z-image": ("ZImage", "FLOW"), "hidream": ("HiDream", "FLOW"), "hidream-o1": ("HiDreamO1", "FLOW"),
    "boogu": ("Boogu", "FLOW"), "ernie-image": ("ErnieImage", "FLOW"), "anima": ("Anima", "FLOW"),
    "ace-step-1.5": ("ACEStep15", "FLOW"), "stable-audio-3": ("StableAudio3", "FLOW"), "pid": ("PiD", "FLOW"),
    "seedvr2": ("SeedVR2", "FLOW"), "wan": ("WAN21_T2V", "FLOW"), "minimax-h3": ("MiniMaxH3", "FLOW"),
    "hunyuan-video-1.5-sr": ("HunyuanVideo15_SR_Distilled", "FLOW"), "ltx-2": ("LTXAV", "FLUX"),
}  # fmt: skip
# Architectures of later hosts, with the table that their templates run on.
NEWER = {
    "flux3": "FLUX.3", "qwen-image-2.1": "Qwen-Image 2.1", "fibo2": "Fibo 2", "ming-image": "Ming-Image",
    "wan-animate-2": "Wan-Animate 2",
}  # fmt: skip
Verdict = Literal["same", "same with the template's shift node", "same by denoise", "other"]


@dataclass(frozen=True)
class Comparison:
    """One use of one file.

    Attributes:
        official: sigmas that the template walks.
        ours: sigmas on auto, without the template's shift node.
        verdict: of steps, cfg and sigmas.
        denoise: to ask for; 1 but for a later stage, which enters its list at a lower level.
    """

    use: Use
    profile: PCMProfile
    official: tuple[float, ...]
    ours: tuple[float, ...]
    verdict: Verdict
    denoise: float = 1.0


def compare(use: Use, profile: PCMProfile) -> Comparison | None:
    """``None`` for an architecture the host does not have, or sigmas that no node of the table makes."""
    if profile.base_model not in CONFIGURATIONS:
        return None
    official = official_sigmas(use, _configuration(profile))
    if official is None:
        return None
    if use.sigmas[-1][0] == "ManualSigmas" and official[0] < 1:
        return _later_stage(use, profile, official)
    ours = _split(use, our_sigmas(use, profile, profile.shift))
    same_cfg = math.isclose(profile.cfg, 1.0 if use.cfg is None else use.cfg, rel_tol=1e-6)
    verdict: Verdict = "other"
    if same_cfg and _equal(official, ours):
        verdict = "same"
    elif same_cfg and use.shift is not None and profile.sigmas is None:
        kept = _split(use, our_sigmas(use, replace(profile, dynamic_shift="", levels=None), None, use.shift))
        verdict = "same with the template's shift node" if _equal(official, kept) else "other"
    return Comparison(use, profile, official, ours, verdict)


def _later_stage(use: Use, profile: PCMProfile, official: tuple[float, ...]) -> Comparison:
    """A list that starts below pure noise: the denoise that enters there."""
    table = _table(profile, profile.shift)
    denoise = round((table.index(official[0]) + 1) / len(table), 4)
    ours = tuple(plan(profile, table, denoise=denoise).sigmas.tolist())
    return Comparison(use, profile, official, ours, "same by denoise" if _equal(official, ours) else "other", denoise)


def our_sigmas(
    use: Use, profile: PCMProfile, shift: float | None, node: tuple[str, tuple[Any, ...]] | None = None
) -> tuple[float, ...]:
    """What PCM Sampler walks on auto."""
    pixels = _asked_pixels(use) or use.pixels
    return tuple(plan(profile, _table(profile, shift, node), pixels=pixels).sigmas.tolist())


def _table(profile: PCMProfile, shift: float | None, node: tuple[str, tuple[Any, ...]] | None = None) -> SigmaTable:
    sampling = _sampling(_configuration(profile))
    if node is not None:
        _apply(sampling, node)
    elif shift is not None and hasattr(sampling, "shift"):
        flux = isinstance(sampling, importlib.import_module("comfy.model_sampling").ModelSamplingFlux)
        sampling.set_parameters(shift=math.log(shift) if flux else shift)
    return SigmaTable.of(sampling.sigmas.float(), flow=profile.base_model != "sdxl")


def _configuration(profile: PCMProfile) -> str:
    """The entry of CONFIGURATIONS: FLUX.1 schnell has one of its own."""
    return "flux1-schnell" if profile.method == "FLUX-schnell" else profile.base_model


def official_sigmas(use: Use, configuration: str) -> tuple[float, ...] | None:
    """What the template walks; ``None`` if its sigmas come from a node or a pack that is not known here."""
    sampling = _sampling(configuration)
    if use.shift is not None:
        _apply(sampling, use.shift)
    kind, values = use.sigmas[-1] if use.sigmas else ("", ())
    made = _made(kind, dict(values), sampling, use.sampler)
    return None if made is None else _split(use, made)


def _made(kind: str, values: dict[str, Any], sampling: Any, sampler: str) -> tuple[float, ...] | None:
    samplers: Any = importlib.import_module("comfy.samplers")
    if kind == "BasicScheduler":
        if values["scheduler"] not in samplers.SCHEDULER_NAMES:
            return None
        denoise, steps = values.get("denoise") or 1.0, values["steps"]
        total = steps if denoise > 0.9999 else int(steps / denoise)
        drop = sampler in samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
        sigmas = samplers.calculate_sigmas(sampling, values["scheduler"], total + drop).tolist()
        sigmas = [*sigmas[:-2], sigmas[-1]] if drop else sigmas
        return tuple(sigmas[-(steps + 1) :])
    if kind == "ManualSigmas":
        return tuple(float(part) for part in values["sigmas"].split(",") if part.strip())
    if kind == "SDTurboScheduler":
        steps = int(values["steps"])
        return (*(float(sampling.sigmas[1000 - 100 * i - 1]) for i in range(steps)), 0.0)
    nodes = {"Flux2Scheduler": "comfy_extras.nodes_flux", "LTXVScheduler": "comfy_extras.nodes_lt"}
    if kind not in nodes:
        return None
    node = getattr(importlib.import_module(nodes[kind]), kind)
    if kind == "Flux2Scheduler":
        values = {**values, **{name: values.get(name) or 1024 for name in ("width", "height")}}
    return tuple(node.execute(**{name: value for name, value in values.items()}).args[0].tolist())


def _sampling(configuration: str) -> Any:
    """A sampling object as the host makes it, without the model."""
    supported: Any = importlib.import_module("comfy.supported_models")
    base: Any = importlib.import_module("comfy.model_base")
    name, kind = CONFIGURATIONS[configuration]
    config = getattr(supported, name)
    return base.model_sampling(config({"hidden_size": 64, **config.unet_config}), getattr(base.ModelType, kind))


def _apply(sampling: Any, node: tuple[str, tuple[Any, ...]]) -> None:
    """A ModelSampling node's shift, as the linear one or as mu where the object wants that."""
    kind, values = node
    flux = isinstance(sampling, importlib.import_module("comfy.model_sampling").ModelSamplingFlux)
    if kind == "ModelSamplingFlux":
        top, bottom = (float(value) for value in values[:2])
        width, height = (value or 1024 for value in values[2:4])
        mu = bottom + (top - bottom) * (width * height / 256 - 256) / (4096 - 256)
    else:
        mu = math.log(float(values[0]))
    sampling.set_parameters(shift=mu if flux else math.exp(mu))


def _asked_pixels(use: Use) -> int:
    """The size that a scheduler or a shift node of the template was told."""
    told = [dict(values) for kind, values in use.sigmas if kind == "Flux2Scheduler"]
    sizes = [(values.get("width"), values.get("height")) for values in told]
    sizes += [use.shift[1][2:4]] if use.shift is not None and use.shift[0] == "ModelSamplingFlux" else []
    return next((w * h for w, h in sizes if isinstance(w, int) and isinstance(h, int)), 0)


def _split(use: Use, sigmas: tuple[float, ...]) -> tuple[float, ...]:
    for kind, values in reversed(use.sigmas):
        if kind == "SplitSigmas":
            told = dict(values)
            sigmas = sigmas[: told["step"] + 1] if told["slot"] == 0 else sigmas[told["step"] :]
    return sigmas


def _equal(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= TOLERANCE * max(1.0, abs(x)) for x, y in zip(a, b, strict=True))
