"""``pcm table benchmarks/demo.toml``, killed while it generates and while it measures, and held to ``demo.score``.

    python -m benchmarks.table_killed               the whole table, minutes; needs COMFYUI_PATH
    python -m benchmarks.table_killed --count 24    the same with fewer prompts

Says how long the command took, whether an image was made twice, and how far its figures are from what ``demo.score``
computes: from the same images, and from images that it samples itself from the same noise.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from demo.score import METHODS, Method, World, features_of, generate, grade, moments, prompts_for

from .common import markdown

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "demo.toml"
FIRST_KILL = 0.4  # of all images
REFERENCE = Method("reference", cfg=3.0)
# What demo.score calls the cells that draw no noise but at the start; {n} is the step count.
ALIKE = {
    "teacher-euler-or-ddim-simple": "teacher, Euler, CFG 3",
    "pcm-lora-of-as-many-phases": "PCM, M = {n}",
    "lcm-lora-lcm-sampler": "M = {n}, deterministic",  # of one step
}


def images(out: Path) -> dict[str, int]:
    """When each image was written, by its path."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.glob("images/*/*/*/*.png")}


def run(table: Path, out: Path, kill: Callable[[], bool] = lambda: False) -> int:
    """The command, to its end or until ``kill`` says so; returns how many images it says it made."""
    words = [sys.executable, "-m", "scripts.table", str(table), "--out", str(out)]
    with (out.parent / "said.txt").open("w+", encoding="utf-8") as said:
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None and not kill():
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
        code = process.wait()
        said.seek(0)
        text = said.read()
    if code > 0:
        sys.exit(text)
    return sum(int(count) for count in re.findall(r"Process \d+ made (\d+);", text))


def killed_twice(table: Path, out: Path, total: int) -> list[str]:
    """Run it in three parts; how many of ``total`` images were there after each, and which were written again."""
    lines, before = list[str](), dict[str, int]()

    def measured() -> int:
        return sum(1 for _ in out.glob("figures/*.json"))

    parts: list[tuple[str, Callable[[], bool]]] = [
        ("killed while generating", lambda: len(images(out)) >= FIRST_KILL * total),
        ("killed while measuring", lambda: measured() > 0),
        ("to its end", lambda: False),
    ]
    for name, kill in parts:
        started = time.monotonic()
        said = run(table, out, kill)
        now = images(out)
        again = sum(now[image] != at for image, at in before.items())
        rest = "table written" if (out / "table.json").exists() else f"{measured()} cells measured, no table yet"
        lines.append(
            f"- {name}, after {time.monotonic() - started:.0f} s: {len(now)} of {total} images are there, {again} were "
            f"made again, {said} are of folders that it finished; {rest}"
        )
        before = now
    return lines


def pictures(folder: Path) -> Tensor:
    """[N, 3, H, W] in 0..1, in the order of their names."""
    rows = [torch.from_numpy(np.array(Image.open(path))).movedim(-1, 0) for path in sorted(folder.glob("*.png"))]
    return torch.stack(rows) / 255


def compared(table: dict[str, Any], out: Path, world: World) -> list[list[str]]:
    """Every cell: our figures, how far ``grade`` is from them, and what ``demo.score`` makes of the same noise."""
    count, seed = table["images"], table["seed"]
    prompts = prompts_for(count)
    (folder,) = out.glob("images/*/reference-teacher/0")
    ours = moments(features_of(world.judge, pictures(folder)))
    theirs = moments(features_of(world.judge, generate(world, REFERENCE, 50, prompts, 9000, noise(9000, count))))
    rows: list[list[str]] = []
    for row in (row for row in table["rows"] if row["figures"]):
        name, steps = slug(row["system"]), row["steps"]
        (folder,) = out.glob(f"images/*/{name}/{steps}")
        figures = tuple(row["figures"][label] for label in ("FDt", "accuracy", "edges"))
        same = grade(world.judge, pictures(folder), prompts, ours)
        method = next((one for one in METHODS if one.name == ALIKE.get(name, "").format(n=steps)), None)
        own = "-"
        if method is not None:
            made = generate(world, method, steps, prompts, seed, noise(seed, count))
            own = told(grade(world.judge, made, prompts, theirs))
        worst = max(abs(a - b) / abs(b) for a, b in zip(figures, same, strict=True))
        rows.append([row["system"], str(steps), told(figures), f"{worst:.1e}", own])
    return rows


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")


def told(figures: tuple[float, ...]) -> str:
    return "{:.3f}, {:.3f}, {:.3f}".format(*figures)


def noise(seed: int, count: int) -> Tensor:
    """What ComfyUI starts image n from: the seed ``seed`` + n."""
    rows = [torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(seed + n)) for n in range(count)]
    return torch.cat(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help="prompts; default: as many as the table has")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = TABLE.read_text("utf-8").replace('"../', f'"{ROOT.as_posix()}/')
        if options.count:
            text = re.sub(r"^count = \d+$", f"count = {options.count}", text, flags=re.MULTILINE)
        (table := Path(folder) / "demo.toml").write_text(text, "utf-8", newline="\n")
        count = int(re.findall(r"^count = (\d+)$", text, re.MULTILINE)[0])
        out = Path(folder) / "out"
        started, cells = time.monotonic(), cells_of(table)
        lines = killed_twice(table, out, cells * count)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        took, cpu = time.monotonic() - started, used.ru_utime + used.ru_stime
        rows = compared(json.loads((out / "table.json").read_text("utf-8"))["tables"][0], out, World.load())
    print(f"{cells} folders of {count} images, {torch.get_num_threads()} threads: {took / 60:.1f} minutes, of them")
    print(f"{cpu / 60:.1f} of CPU time, with what the kills lost and three starts of ComfyUI.\n")
    print("\n".join(lines), end="\n\n")
    print("FDt, accuracy and edges of every cell; the largest relative difference to `demo.score.grade` of the same")
    print("images; and what `demo.score` says of images that it samples itself from the same noise, unrounded.\n")
    print(markdown(["system", "steps", "pcm table", "grade differs by", "demo.score's own images"], rows))


def cells_of(table: Path) -> int:
    """How many folders of images the table needs, by its own commands."""
    words = [sys.executable, "-m", "scripts.table", str(table), "--commands"]
    text = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sum(line.startswith("pcm generate") for line in text.splitlines())


if __name__ == "__main__":
    main()
