"""The cost of a picture at equal measured quality in the demo world: PCM against its teacher.

Quality is the Frechet distance that ``python -m demo.score`` stored in ``demo/results.md``. For each PCM row with as
many steps as phases, one phase included, the teacher's step count with the same distance is interpolated in its own row
(linear in log distance over log steps) and rounded up. Then both make the same pictures in turns, decoder included. The
teacher needs two evaluations per step for its guidance; the LoRA has the guidance built in.

    python -m benchmarks.end_to_end [--rounds 15] [--pictures 1]
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import markdown, ratio_of
from benchmarks.demo_pictures import painter
from demo.score import CFG, METHODS, World, prompts_for
from demo.train_vae import WEIGHTS

RESULTS = Path(__file__).resolve().parent.parent / "demo" / "results.md"
TARGET = 8  # times fewer evaluations
Row = dict[int, float]


def distances(text: str, title: str = "FDt") -> dict[str, Row]:
    """The Frechet distance, or another table of ``demo/results.md``, by sampler and step count."""
    table = text.split(f"**{title}")[1].split("\n**")[0].splitlines()
    (_, *steps), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table if line[:1] == "|")
    return {
        name: {int(count): float(cell.split("+-")[0]) for count, cell in zip(steps, cells, strict=True) if cell}
        for name, *cells in rows
    }


def steps_for(distance: float, row: Mapping[int, float]) -> int | None:
    """The step count at which a row reaches a distance; ``None`` if it never does."""
    for (few, worse), (many, better) in pairwise(sorted(row.items())):
        if better <= distance <= worse:
            share = math.log(worse / distance) / math.log(worse / better)
            return math.ceil(few * (many / few) ** share - 1e-9)
    return None


def seconds(sides: dict[str, Callable[[int], Tensor]], pictures: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per picture for every side and round; the first two rounds are warm-up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 2):
        for name, paint in sides.items() if i % 2 else reversed(sides.items()):
            began = time.perf_counter()
            paint(i)
            times[name].append((time.perf_counter() - began) / pictures)
    return {name: values[2:] for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pictures", type=int, default=1, help="in a batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = RESULTS.read_text(encoding="utf-8")
    world, prompts = World.load(), prompts_for(options.pictures)
    stored, right = distances(text), distances(text, "Prompt accuracy")
    teacher, *students = METHODS
    rows: list[list[str]] = []
    for student in students:
        phases = re.fullmatch(r"(?:PCM, )?M = (\d+)(?:, deterministic|, matched)?", student.name)  # every row but LCM's
        if not phases:
            continue
        steps = int(phases[1])
        distance = stored[student.name][steps]
        accuracy = f"{right[student.name][steps]:.3f}"
        equal = steps_for(distance, stored[teacher.name])
        if equal is None:
            rows.append([student.name, str(steps), f"{distance:.2f}", accuracy, "the teacher never is", "", "", ""])
            continue
        sides = {
            "student": painter(world, WEIGHTS / str(student.lora), [1.0] * steps, prompts),
            "teacher": painter(world, None, [CFG] * equal, prompts),
        }
        times = seconds(sides, options.pictures, options.rounds)
        low, middle, high = ratio_of(times["teacher"], times["student"])
        each = " and ".join(f"{1e3 * statistics.median(times[side]):.0f}" for side in sides)
        rows.append(
            [student.name, str(steps), f"{distance:.2f}", accuracy, f"{equal} ({2 * equal})",
             f"{2 * equal / steps:.1f} x", each, f"{middle:.1f} x ({low:.1f} to {high:.1f})"]
        )  # fmt: skip
    head = ["sampler", "evaluations", "distance", "accuracy", "teacher's steps (evaluations)", "fewer", "ms a picture"]
    print(f"One thread, {options.pictures} picture(s) at a time, {options.rounds} rounds. Distances as stored in")
    print(f"`demo/results.md`. Target: {TARGET} x fewer evaluations.\n")
    print(markdown([*head, "faster"], rows))
    reached = [f"{row[5]} at {row[0]}" for row in rows if row[5]]
    missed = [text if float(text.split()[0]) >= TARGET else f"{text} (missed)" for text in reached]
    print(f"\nReached: {', '.join(missed)}.")
    known = ", ".join(f"{100 * rate:.1f} % at {steps}" for steps, rate in right[teacher.name].items())
    print(f"*Accuracy* is the share of prompts met; the teacher's is {known} steps.")
    print("A network this small leaves much of a picture to the decoder: *faster* stays below *fewer*.")


if __name__ == "__main__":
    main()
