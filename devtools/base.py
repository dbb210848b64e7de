"""The base directory of the server: custom nodes, models, input, output and user settings outside the host."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from .errors import DevError
from .paths import ROOT, WEIGHTS

PACKS = {"phased-consistency": ROOT, "comfyui_pcm_demo": ROOT / "demo" / "comfyui_pcm_demo"}
WORKFLOW = ROOT / "demo" / "workflows" / "quickstart.json"
VIDEO_WORKFLOW = ROOT / "demo" / "workflows" / "video.json"
MODEL_FOLDERS = ("diffusion_models", "loras", "vae", "vae_approx", "checkpoints")


def make_base(base: Path) -> None:
    """Create or refresh a base directory with both packs, the demo weights and the quick-start workflows.

    Raises:
        DevError: if something else is in the place of a link, or the file system has no links.
    """
    for folder in ("custom_nodes", "input", "output", *(f"models/{name}" for name in MODEL_FOLDERS)):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name, source in PACKS.items():
        link_folder(base / "custom_nodes" / name, source)
    for file in sorted(WEIGHTS.glob("*.safetensors")):
        folder = model_folder(file.name)
        if folder is not None:
            link_file(base / "models" / folder / file.name, file)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.exists():  # otherwise the template dialog covers the canvas on the first visit
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), "utf-8", newline="\n")
    workflows = base / "user" / "default" / "workflows"
    for title, source in (("PCM quick start", WORKFLOW), ("PCM video quick start", VIDEO_WORKFLOW)):
        if source.exists() and not (workflows / f"{title}.json").exists():
            workflows.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, workflows / f"{title}.json")


def model_folder(file: str) -> str | None:
    """The host's model folder for a file of ``demo/weights``; None for files it does not use (the judge)."""
    if file.startswith("taesd"):
        return "vae_approx"
    if file.endswith("_vae.safetensors"):
        return "vae"
    if file in ("demo_sd3.safetensors", "demo_wan.safetensors"):
        return "diffusion_models"
    return "loras" if file.startswith("demo_") else None


def link_folder(link: Path, source: Path) -> None:
    """Create a symlink, or on Windows a junction, which needs no privilege."""
    if link.exists() and link.resolve() == source.resolve():
        return
    if link.is_symlink():
        link.unlink()
    if link.exists():
        raise DevError(f"{link} exists and is not our link to {source}; move it away.")
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(source), str(link))  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        link.symlink_to(source, target_is_directory=True)
    except OSError as error:  # exFAT and some network folders
        raise DevError(f"{link.parent} cannot hold a link ({error}); put this repository on another disk.") from error


def link_file(link: Path, source: Path) -> None:
    """Create a symlink if that needs no privilege, else a copy that is kept up to date."""
    if os.name == "nt":
        shutil.copy2(source, link)
        return
    if link.is_symlink() and link.resolve() == source.resolve():
        return
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(source)
    except OSError:
        shutil.copy2(source, link)
