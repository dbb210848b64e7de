"""The packs that people have beside ours: how their folder is called, and one node that each must bring."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

# Name here, and the node without which the pack was not imported.
PACKS = {
    "Impact Pack": "ImpactKSamplerBasicPipe",
    "Efficiency Nodes": "KSampler (Efficient)",
    "Easy-Use": "easy fullkSampler",
    "rgthree": "Power Lora Loader (rgthree)",
    "KJNodes": "DiffusionModelLoaderKJ",
    "RES4LYF": "SharkSampler_Beta",
    "AnimateDiff-Evolved": "ADE_UseEvolvedSampling",
    "GGUF": "UnetLoaderGGUF",
    "UltimateSDUpscale": "UltimateSDUpscaleNoUpscale",
}
# Folders as git and the Manager make them, without case, dashes and underscores.
FOLDERS = {
    "comfyuiimpactpack": "Impact Pack",
    "efficiencynodescomfyui": "Efficiency Nodes",
    "comfyuieasyuse": "Easy-Use",
    "rgthreecomfy": "rgthree",
    "comfyuikjnodes": "KJNodes",
    "res4lyf": "RES4LYF",
    "comfyuianimatediffevolved": "AnimateDiff-Evolved",
    "comfyuigguf": "GGUF",
    "comfyuiultimatesdupscale": "UltimateSDUpscale",
}


@dataclass(frozen=True)
class Pack:
    """A pack that was found, and where it stood: the commit and its day, if the folder is a git checkout."""

    name: str
    folder: Path
    commit: str


def find_packs(folder: Path) -> dict[str, Pack]:
    """The packs of ``PACKS`` among the folders of ``folder``, by name."""
    found: dict[str, Pack] = {}
    for path in sorted(folder.iterdir()):
        name = FOLDERS.get(path.name.lower().replace("-", "").replace("_", ""))
        if name and path.is_dir():
            found[name] = Pack(name, path, commit_of(path))
    return found


def commit_of(folder: Path) -> str:
    """``<hash> of <day>``, or what to say where there is no commit."""
    if not (folder / ".git").exists():
        return "no git checkout"
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h of %cs", "--abbrev=10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"
