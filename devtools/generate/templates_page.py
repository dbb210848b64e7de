"""Write docs/templates.md: every few-step file of ComfyUI's own templates, its official settings and ours.

``COMFYUI_PATH=... python -m devtools.generate.templates_page``
"""

from __future__ import annotations

from ..environment import TEMPLATES
from ..paths import ROOT
from ..templates.review import File, few_step_files, reason, reviewed
from ..templates.uses import Use
from ..templates.verdict import NEWER, Comparison
from . import host_nodes

PAGE = ROOT / "docs" / "templates.md"
_VIDEO = ("wan", "ltx-2", "hunyuan-video-1.5-sr", "minimax-h3")
_HEAD = """# ComfyUI's templates with the nodes of this pack

Written by `python -m devtools.generate.templates_page` from {package} and a ComfyUI checkout. Do not edit.

Every few-step file of the official workflow templates, how the templates sample it, and what the PCM nodes do with it
on auto. Steps, cfg and sigmas are compared, on the host's own sigma tables, at the size of the template. Solvers are
not: PCM nodes take deterministic Euler steps, or renoise where the method does.

To convert a template:

- A LoRA: `LoraLoaderModelOnly` becomes Load PCM LoRA with strength 1; it applies the strength the file is made for.
- A checkpoint needs no loader of ours: it is recognized by its file name.
- `KSampler`, or `SamplerCustomAdvanced` with its guider, sampler, scheduler and noise, becomes PCM Sampler on auto; for
  video PCM Video Sampler. Two `KSamplerAdvanced` of Wan 2.2 become one PCM Video Sampler with the second model.
- A node that sets the shift may go. Kept behind the loader it keeps its value; a note says what the authors have.
- FluxGuidance stays, or goes: the method's own guidance is then set.

| result | what it says |
|---|---|
| same | equal on auto |
| same, shift node kept | equal where the template's shift node stays; without it the authors' shift is set |
| same, denoise *d* | the second stage: set denoise to *d* |
| other | differs on purpose, with the reason |
| newer | the model needs a newer ComfyUI than the one this page was measured on |
"""


def main() -> None:
    """Boot the host, compare, write the page."""
    host_nodes.boot()
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page."""
    files = few_step_files()
    parts = [_HEAD.format(package=TEMPLATES.replace("==", " "))]
    for title, lora in (("LoRAs", True), ("Checkpoints", False)):
        rows = [row for file in files if file.lora == lora and file.uses for row in _rows(file)]
        parts.append(
            f"## {title}\n\n| file | method | official | ours | result |\n|---|---|---|---|---|\n"
            + "\n".join(rows)
            + "\n"
        )
    loaded = [f"- {file.name} ({file.profile.method})" for file in files if not file.uses]
    parts.append("## Loaded by a template and not sampled there\n\n" + "\n".join(loaded) + "\n")
    no = [f"- {name}: {why}" for name, why in reviewed()["no_few_step"].items()]
    parts.append("## Taken for a few-step file by its name, and none\n\n" + "\n".join(no) + "\n")
    return "\n".join(parts)


def _rows(file: File) -> list[str]:
    if file.profile.sampling_class == "unsupported":
        return [f"| {file.name} | {file.profile.method} | | | refused: {file.profile.note} |"]
    lines: dict[str, str] = {}
    for found in file.compared:
        lines.setdefault(found.use.text(), f"{_ours(file, found)} | {_result(found)}")
    for use in file.unmeasured:
        lines.setdefault(use.text(), f"{_settings(file)} | {_why(file, use)}")
    return [f"| {file.name} | {file.profile.method} | {text} | {line} |" for text, line in lines.items()]


def _ours(file: File, found: Comparison) -> str:
    listed = " ".join(f"{sigma:.4g}" for sigma in found.ours)
    return f"{_settings(file)}: {listed}" if found.verdict == "other" else _settings(file)


def _settings(file: File) -> str:
    profile = file.profile
    shift = "" if profile.shift is None else f", shift {profile.shift:.4g}"
    shift = f", shift by size ({profile.dynamic_shift})" if profile.dynamic_shift else shift
    audio = "" if profile.audio_shift is None else f", audio shift {profile.audio_shift:g}"
    return f"{profile.steps} steps, cfg {profile.cfg:g}{shift}{audio}, {profile.sampling_class}"


def _result(found: Comparison) -> str:
    if found.verdict == "same by denoise":
        return f"same, denoise {found.denoise:.3g}"
    kept = "same, shift node kept"
    return {"same": "same", "other": f"other: {reason(found.use)}"}.get(found.verdict, kept)


def _why(file: File, use: Use) -> str:
    return f"newer: {NEWER[file.profile.base_model]}" if file.profile.base_model in NEWER else f"other: {reason(use)}"


if __name__ == "__main__":
    main()
