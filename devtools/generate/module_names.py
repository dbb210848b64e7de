"""Write pcm_core/lora/module_names.json: the names that the modules of every base model go by in LoRA files.

    COMFYUI_PATH=... python -m devtools.generate.module_names

They are taken from the host's own classes, in the tiny sizes of the tests: every name its key map knows, every
parameter, and the names of diffusers that ``pcm_core.lora.diffusers_names`` adds. Numbers are replaced by ``N``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "pcm_core" / "lora" / "module_names.json"
# Base model to the tiny model that has all of its modules.
MODELS = {
    "unet": ("sd15", "sdxl"), "sd3": ("sd3",), "flux1": ("flux",), "flux2": ("flux2",), "wan": ("wan", "wan_i2v_old"),
    "hunyuan-video": ("hunyuan_video",), "hunyuan-video-1.5": ("hunyuan_video15_glyphs",), "ltxv": ("ltxv",),
    "ltx-2": ("ltx2",), "mochi": ("mochi",), "qwen-image": ("qwen_image",), "z-image": ("z_image",),
    "krea2": ("krea2",), "cogvideox": ("cogvideo",), "lens": ("lens",), "ernie-image": ("ernie_image",),
    "auraflow": ("auraflow",), "minimax-h3": ("minimax_h3",), "pixart": ("pixart",), "hidream": ("hidream",),
}  # fmt: skip


def names(host_path: Path) -> dict[str, list[str]]:
    """Base model to its names, sorted."""
    sys.path[:] = [*(p for p in sys.path if Path(p or ".").resolve() != ROOT), str(ROOT / "tests" / "host"), str(ROOT)]
    from scripts import pack

    pack.install()
    conftest, tiny, image, video = map(importlib.import_module, ("conftest", "tiny", "tiny_image", "tiny_video"))
    folder = Path(tempfile.mkdtemp())
    host = conftest._boot(host_path, folder)
    files, known = host.pack("nodes.host.lora"), host.pack("pcm_core.lora.diffusers_names")
    canonical = host.pack("pcm_core.lora.keys").canonical
    pattern_of = host.pack("pcm_core.lora.base_models").pattern_of
    zoo = tiny.Zoo(folder, image.FACTORIES | video.FACTORIES)
    found: dict[str, list[str]] = {}
    for base_model, models in MODELS.items():
        patterns: set[str] = set()
        for model in models:
            weights = files.model_weights(zoo[model].model)
            spellings = [*weights.names, *known.extra_targets(base_model, weights.shapes)]
            patterns |= {pattern_of(canonical(spelling)) for spelling in spellings}
        found[base_model] = sorted(pattern for pattern in patterns if not pattern.endswith("_bias"))
    return found


def main() -> None:
    found = names(Path(os.environ["COMFYUI_PATH"]).resolve())
    OUT.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8", newline="\n")
    print(f"{OUT.name}: {sum(map(len, found.values()))} names of {len(found)} base models")


if __name__ == "__main__":
    main()
