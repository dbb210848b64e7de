"""How the templates use each model file: what is sampled with it, for how many steps, along which sigmas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from .graph import Graph, Node, Value, templates, variants

SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
SHIFTS = ("ModelSamplingAuraFlow", "ModelSamplingSD3", "ModelSamplingFlux", "MiniMaxH3SigmaShift")
MODEL_FILE = re.compile(r"[^/\\]+\.(?:safetensors|sft|gguf|ckpt|pth)$")
_LORA_LOADER, _LOADER = re.compile("lora", re.I), re.compile("unet|checkpoint|diffusion|model", re.I)
_NOT_SAMPLED = re.compile(r"clip|vae|vision|control|upscale|encoder|detector|audio|style|patch|ipadapter|gligen", re.I)


@dataclass(frozen=True)
class Use:
    """One sampler of one template, with the file.

    Attributes:
        sigmas: how they are made: (node type, its values), nearest to the sampler first.
        shift: the shift that the sigmas are made with: (node type, its values); ``None`` for the model's own.
        part: of the steps, ``None`` for all of them.
        pixels: of the image where the template says; else 0.
        together: every model file behind that sampler.
    """

    template: str
    file: str
    lora: bool
    sampler: str
    cfg: float | None
    sigmas: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]
    shift: tuple[str, tuple[Any, ...]] | None
    strength: float | None = None
    part: tuple[int, int] | None = None
    pixels: int = 0
    together: tuple[str, ...] = ()

    @property
    def steps(self) -> int | None:
        """Asked of a scheduler; ``None`` for a list of sigmas."""
        found = (dict(values).get("steps") for _, values in self.sigmas)
        return next((steps for steps in found if isinstance(steps, int)), None)

    def text(self) -> str:
        """In one line."""
        made = " < ".join(f"{kind} {' '.join(f'{v}' for _, v in values)}".strip() for kind, values in self.sigmas)
        part = "" if self.part is None else f", steps {self.part[0]} to {self.part[1]}"
        shift = "" if self.shift is None else f", {self.shift[0]}({', '.join(_short(v) for v in self.shift[1])})"
        cfg = "" if self.cfg is None else f", cfg {self.cfg:g}"
        strength = "" if self.strength in (None, 1) else f", strength {self.strength:g}"
        return f"{self.sampler}, {made}{part}{cfg}{shift}{strength}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else "size" if value is None else str(value)


@dataclass
class _Chain:
    files: list[tuple[str, bool, float | None]] = field(default_factory=list)
    shift: tuple[str, tuple[Any, ...]] | None = None


def _chain(graph: Graph, node: Node, name: str) -> _Chain:
    """The files and the shift behind a MODEL input; the shift nearest to it counts."""
    chain = _Chain()
    for _ in range(60):
        found = graph.source(node, name)
        if found is None or isinstance(found, Value):
            break
        node = found[0]
        if node.type in SHIFTS and chain.shift is None:
            names = [key for key in node.values if key]
            chain.shift = node.type, tuple(graph.value(node, key) for key in names)
        for file in node_files(graph, node):
            strength = graph.value(node, "strength_model")
            chain.files.append((file, bool(_LORA_LOADER.search(node.type)), strength))
        entries = (
            e["name"] for e in node.raw.get("inputs") or () if e.get("type") == "MODEL" and e["name"] in node.links
        )
        name = next(entries, "")
        if not name:
            break
    return chain


def node_files(graph: Graph, node: Node) -> list[str]:
    """The model files that a loader's widgets name."""
    values = [graph.value(node, name) for name in node.values if name] or list(node.values.get("", ()))
    return [v for v in values if isinstance(v, str) and MODEL_FILE.fullmatch(v.replace("\\", "/").rpartition("/")[2])]


def _sigmas(graph: Graph, node: Node) -> tuple[list[tuple[str, tuple[tuple[str, Any], ...]]], _Chain | None]:
    made: list[tuple[str, tuple[tuple[str, Any], ...]]] = []
    chain, name = None, "sigmas"
    for _ in range(8):
        found = graph.source(node, name)
        if found is None or isinstance(found, Value):
            break
        node, slot = found
        values = [(key, graph.value(node, key)) for key in node.values if key]
        made.append((node.type, (*values, *([("slot", slot)] if node.type.startswith("Split") else []))))
        if "model" in node.links and chain is None:
            chain = _chain(graph, node, "model")
        if "sigmas" not in node.links:
            break
    return made, chain


def _pixels(graph: Graph, node: Node) -> int:
    """Width times height of the empty latent behind a sampler, if the template says."""
    for _ in range(12):
        found = graph.source(node, next((n for n in ("latent_image", "samples", "latent") if n in node.links), ""))
        if found is None or isinstance(found, Value):
            return 0
        node = found[0]
        width, height = graph.value(node, "width"), graph.value(node, "height")
        if isinstance(width, int) and isinstance(height, int):
            return width * height
    return 0


def _of_sampler(graph: Graph, node: Node, template: str) -> Iterator[Use]:
    values = {name: graph.value(node, name) for name in node.values if name}
    sigmas, chain = _sigmas(graph, node)
    cfg, part = values.get("cfg"), None
    model, model_input = node, "model"
    sampler = values.get("sampler_name")
    if node.type.startswith("KSampler"):
        names = ("scheduler", "steps", "denoise")
        sigmas = [("BasicScheduler", tuple((name, values.get(name, 1.0)) for name in names))]
        if node.type == "KSamplerAdvanced":
            part = (values.get("start_at_step") or 0, values.get("end_at_step") or 10000)
    else:
        found = graph.source(node, "sampler")
        if isinstance(found, tuple):
            sampler = graph.value(found[0], "sampler_name") or found[0].type
            eta = graph.value(found[0], "eta")
            sampler = sampler if eta is None else f"{sampler} eta {eta:g}"
        guider = graph.source(node, "guider")
        if isinstance(guider, tuple):
            model = guider[0]
            cfg = graph.value(model, "cfg") if "cfg" in model.values else None
            names = [e["name"] for e in model.raw.get("inputs") or () if e.get("type") == "MODEL"]
            model_input = next((name for name in names if name in model.links), "model")
    own = _chain(graph, model, model_input)
    shift = (chain or own).shift
    for file, lora, strength in own.files:
        yield Use(
            template, file, lora, str(sampler), cfg if isinstance(cfg, (int, float)) else None, tuple(sigmas), shift,
            strength if isinstance(strength, (int, float)) and lora else None, part, _pixels(graph, node),
            tuple(name for name, _, _ in own.files),
        )  # fmt: skip


@cache
def all_uses() -> dict[str, list[Use]]:
    """Every way a sampled model file is used, by file; a file that is only loaded has none."""
    found: dict[str, list[Use]] = {}
    for name, workflow in templates():
        for i, graph in enumerate(variants(workflow)):
            for node in graph.nodes.values():
                if i == 0 and (_LORA_LOADER.search(node.type) or _LOADER.search(node.type)):
                    for file in node_files(graph, node) if not _NOT_SAMPLED.search(node.type) else ():
                        found.setdefault(file, [])
                if node.type in SAMPLERS:
                    for use in _of_sampler(graph, node, name):
                        if use not in found.setdefault(use.file, []):
                            found[use.file].append(use)
    return found
