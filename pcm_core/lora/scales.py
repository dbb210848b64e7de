"""The scale of each update: alpha by module, from the file's tensors, its header, or the known default of its trainer.

PEFT scales an update by alpha / r, or by alpha / sqrt(r) with ``use_rslora``; ``alpha_pattern`` sets the alpha of
single modules (https://huggingface.co/docs/peft/package_reference/lora). diffusers stores PEFT's configuration as JSON
in the header, with each value under its component's name: ``transformer.lora_alpha``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch

from ..profiles import PCMProfile
from .keys import Module, dotted, wrapper
from .tensors import rank_of, scale_of

# PEFT's default, which the authors' training scripts leave untouched (pcm.md 4.2, 4.3; issue 33 of their repository).
PEFT_ALPHA = 8.0
PCM_SCALE = 0.125
PEFT_METADATA = "lora_adapter_metadata"
# PEFT's other products, whose alpha is called so.
_PEFT_PRODUCTS = ("LOHA", "LOKR")
# Plain header entries of other trainers; kohya's is ss_network_alpha.
_HEADER_ALPHA = ("lora_alpha", "network_alpha", "ss_network_alpha")
_UNETS = frozenset({"sd15", "sd21", "sdxl", "unet"})
_PCM_SD3 = ("to_q", "to_k", "to_v", "to_out", "to_add_out", "net_0_proj", "net_2", "linear", "linear_1", "linear_2",
            "proj", "proj_out", "context_embedder")  # fmt: skip


def find_alphas(
    modules: Sequence[Module], metadata: Mapping[str, str], base_models: Collection[str], profile: PCMProfile
) -> tuple[dict[str, float], str]:
    """Alpha by module stem, so that ``alpha / rank`` is the scale, and a note on anything added or unusual.

    Args:
        modules: the modules of the file.
        metadata: its header.
        base_models: the possible base models.
        profile: its sampling settings.
    """
    alphas = {module.stem: float(module.parts["alpha"]) for module in modules if "alpha" in module.parts}
    pairs = [module for module in modules if rank_of(module)]
    if alphas:
        return alphas, _unusual_scale(pairs, alphas, base_models, profile)
    alphas, source = _peft_alphas(modules, metadata), "the file's PEFT metadata"
    if not alphas and (given := _header_alpha(metadata)) is not None:
        alphas, source = dict.fromkeys((module.stem for module in pairs), given), "the file's header"
    if not alphas and pairs and _is_raw_peft(pairs, base_models):
        alphas = dict.fromkeys((module.stem for module in pairs), PEFT_ALPHA)
        source = "PEFT's default, which the PCM training scripts use"
    if not alphas:
        return {}, ""
    given = ", ".join(dict.fromkeys(f"{alpha:g}" for alpha in list(alphas.values())[:3]))
    scales = sorted({round(scale_of(module, alphas), 6) for module in pairs if module.stem in alphas})
    if not scales:
        return alphas, f"The file has no alpha; {given} was added from {source}."
    shown = ", ".join(f"{scale:g}" for scale in scales[:3]) + (", ..." if len(scales) > 3 else "")
    return alphas, f"The file has no alpha; {given} was added from {source}: alpha/rank {shown}."


def _unusual_scale(
    pairs: Sequence[Module], alphas: Mapping[str, float], base_models: Collection[str], profile: PCMProfile
) -> str:
    scales = sorted({round(scale_of(module, alphas), 4) for module in pairs})
    expected = profile.method == "PCM" and not set(base_models).isdisjoint({"sd15", "sdxl"})
    if not expected or scales == [PCM_SCALE]:
        return ""
    shown = ", ".join(f"{scale:g}" for scale in scales[:3])
    return f"alpha/rank is {shown}, and {PCM_SCALE} is expected of PCM's own files. Left as it is."


def _peft_alphas(modules: Sequence[Module], metadata: Mapping[str, str]) -> dict[str, float]:
    """Alpha of every low-rank module according to PEFT; empty if the header has no PEFT configuration."""
    configs = _peft_configs(metadata)
    alphas: dict[str, float] = {}
    for module in modules if configs else ():
        config = _config_of(module, configs)
        alpha = _peft_alpha(module, config)
        if alpha is not None and (rank_of(module) or _is_product(module)):
            rslora = config.get("use_rslora") is True and rank_of(module) > 0
            alphas[module.stem] = alpha * math.sqrt(rank_of(module)) if rslora else alpha
    return alphas


def _peft_alpha(module: Module, config: Mapping[str, Any]) -> float | None:
    """Its alpha: of the first pattern that fits, of the configuration, or PEFT's default for one that says nothing."""
    word = "alpha" if config.get("peft_type") in _PEFT_PRODUCTS else "lora_alpha"
    value = _by_pattern(config.get("alpha_pattern"), dotted(module.stem))
    value = config.get(word) if value is None else value
    return PEFT_ALPHA if value is None and "r" in config else _number(value)


def whole_products(modules: Sequence[Module], metadata: Mapping[str, str]) -> dict[str, float]:
    """The factors of LoKr updates of two whole matrices: PEFT scales them by alpha / r too, and other tools do not."""
    configs = _peft_configs(metadata)
    factors: dict[str, float] = {}
    for module in modules if configs else ():
        config = _config_of(module, configs)
        if config.get("peft_type") in _PEFT_PRODUCTS and {"lokr_w1", "lokr_w2"} <= set(module.parts):
            ranked = _by_pattern(config.get("rank_pattern"), dotted(module.stem))
            rank = _positive(config.get("r", PEFT_ALPHA) if ranked is None else ranked)
            factors[module.stem] = (_peft_alpha(module, config) or 0.0) / (rank or PEFT_ALPHA)
    return factors


def _is_product(module: Module) -> bool:
    return any(role.startswith(("hada", "lokr")) for role in module.parts)


def _peft_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's configuration by component: ``transformer``, ``text_encoder``, ...; empty for a file of one component."""
    try:
        entries: Any = json.loads(metadata.get(PEFT_METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    configs: dict[str, dict[str, Any]] = {}
    for key, value in cast(dict[str, Any], entries).items() if isinstance(entries, dict) else ():
        component, _, name = key.rpartition(".")
        configs.setdefault(component, {})[name] = value
    return configs


def _config_of(module: Module, configs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The configuration of the component in a module's prefix, else the only one that is not a text encoder's."""
    named = [component for component in configs if component and module.stem.startswith(f"{component}.")]
    networks = [component for component in configs if not component.startswith("text_encoder")]
    if named or len(networks) == 1:
        return configs[(named or networks)[0]]
    return configs.get("", {})


def _by_pattern(patterns: Any, name: str) -> Any:
    """The value of the first pattern that PEFT would match: the end of the name, from a dot on, as a regex."""
    for pattern, value in cast(dict[str, Any], patterns).items() if isinstance(patterns, dict) else ():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error:
            continue
    return None


def _header_alpha(metadata: Mapping[str, str]) -> float | None:
    return next((alpha for name in _HEADER_ALPHA if (alpha := _positive(metadata.get(name))) is not None), None)


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _is_raw_peft(pairs: Sequence[Module], base_models: Collection[str]) -> bool:
    """Whether this is the direct output of the authors' training scripts, before their converter scales it.

    UNets: PEFT's own prefix, which only these scripts and LCM's keep. SD3: fp32, rank 32, and no module outside their
    target list; their converter halves both matrices and stores fp16.
    """
    if not _UNETS.isdisjoint(base_models):
        return all(wrapper(module.stem).endswith("base_model.model.") for module in pairs)
    if "sd3" not in base_models:
        return False
    return all(
        module.parts["down"].dtype == torch.float32
        and rank_of(module) == 32
        and module.name.endswith(_PCM_SD3)
        and wrapper(module.stem) in ("transformer.", "base_model.model.")
        for module in pairs
    )
