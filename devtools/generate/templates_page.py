"""Write docs/templates.md: every few-step file of ComfyUI's own templates, its official settings and ours.

``COMFYUI_PATH=... python -m devtools.generate.templates_page``
"""

from __future__ import annotations

from collections import Counter

from ..environment import TEMPLATES
from ..paths import ROOT
from ..templates.convert import Prompt, convert
from ..templates.graph import templates
from ..templates.review import File, few_step_files, reason, reviewed
from ..templates.uses import Use
from ..templates.verdict import NEWER, Comparison
from . import host_nodes

# Templates that tests/host/test_converted_templates.py runs both ways.
CONVERTED = (
    "flux_schnell", "image_anima_base_v1", "image_ernie_image_turbo", "image_flux2_klein_image_edit_4b_distilled",
    "image_krea2_turbo_t2i", "image_mage_flow_turbo_t2i_int8", "image_qwen_image_2512_with_2steps_lora",
    "image_qwen_image_edit_2509", "image_z_image_turbo", "video_ltx2_3_t2v", "video_minimax_h3_t2v",
    "video_wan2_2_14B_t2v",
)  # fmt: skip
PAGE = ROOT / "docs" / "templates.md"
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
- The workflow check does this where nodes can be replaced one for one: "Use PCM nodes" on the card of the file.

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
    PAGE.write_text(page(), encoding="utf-8", newline="\n")


def page() -> str:
    """The whole page."""
    files = few_step_files()
    parts = [_HEAD.format(package=TEMPLATES.replace("==", " "))]
    parts.append(_converted())
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


def _converted() -> str:
    """The templates that are converted and run both ways, with what goes and what comes."""
    found = {name: convert(workflow) for name, workflow in templates() if name in CONVERTED}
    lines: list[str] = []
    for name in CONVERTED:
        made = found[name]
        assert made is not None, name
        gone, come = _classes(made.official) - _classes(made.ours), _classes(made.ours) - _classes(made.official)
        files = ", ".join(dict.fromkeys(file.title for file in made.files))
        lines.append(f"| {name} | {files} | {_listed(gone)} | {_listed(come)} |")
    return (
        "## Converted and run both ways\n\n"
        "`tests/host/test_converted_templates.py` converts these as the workflow check does, and runs both forms on "
        "tiny models in ComfyUI.\nThe latents are equal to 1e-5, sound included. Where the template takes "
        "res_multistep, its own form runs with euler, which\nthe files are made for.\n\n"
        "| template | few-step files | goes | comes |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def _classes(prompt: Prompt) -> Counter[str]:
    return Counter(node["class_type"] for node in prompt.values())


def _listed(classes: Counter[str]) -> str:
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in sorted(classes.items()))


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
