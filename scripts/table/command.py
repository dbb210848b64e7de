"""Systems by step counts: generate what is missing, measure it, write the table.

    pcm table benchmarks/demo.toml --comfyui ComfyUI
    accelerate launch -m scripts.table benchmarks/paper.toml --comfyui ComfyUI        the same, on every GPU
    pcm table paper.toml --commands                             what it would run, as commands of pcm generate
    pcm table --compare output/tables/demo other/table.json     the figures of two runs, and their differences

A row whose files are missing is named and left out, and a row that fails does not stop the others. After an
interruption the same command continues. It writes ``table.md``, ``table.csv``, ``table.json`` and a plot per table into
``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pcm_core.errors import PCMError

from ..generate.maker import SayOnce
from ..metrics.sources import SourceError
from ..workers import Workers, load_pack
from .cells import Maker
from .entries import slug
from .plan import read_plan
from .plot import svg
from .report import as_csv, compared, content, markdown
from .run import Run


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pcm table", description="Generate and measure a table of systems.")
    parser.add_argument("table", type=Path, nargs="?", help="a table file, .toml; see benchmarks/demo.toml")
    parser.add_argument("--comfyui", metavar="PATH", type=Path, help="a ComfyUI checkout; default: COMFYUI_PATH")
    parser.add_argument("--out", type=Path, help="folder for images and tables; default: output/tables/NAME")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the Markdown to this file too")
    parser.add_argument(
        "--commands", action="store_true", help="only print the commands of pcm generate, and the missing files"
    )
    parser.add_argument("--measure", action="store_true", help="measure the images that exist, and generate none")
    parser.add_argument("--device", help="device of the measures' networks; default: the GPU, if there is one")
    parser.add_argument("--single", action="store_true", help="one process, without Accelerate")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two runs: folders or table.json")
    return parser


def write(out: Path, run: Run) -> str:
    """Measure and write everything; returns the Markdown."""
    results = run.measure()
    found = content(run.plan, results)
    text = markdown(found)
    if run.workers.first:
        (out / "table.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8", newline="\n")
        (out / "table.csv").write_text(as_csv(found), "utf-8", newline="\n")
        (out / "table.md").write_text(text, "utf-8", newline="\n")
        for table in found["tables"]:
            (out / f"{slug(table['name'])}.svg").write_text(svg(table), "utf-8", newline="\n")
    return text


def commands(run: Run) -> list[str]:
    """Commands of ``pcm generate``, then as comments every missing file and what needs it."""
    cells = run.cells()
    needed: dict[str, list[str]] = {}
    for cell in cells:
        for file in cell.lacks:
            needed.setdefault(file, []).append(cell.name)
    for name, file in run.networks.files.absent.items():
        needed.setdefault(file, []).append(f"the measures of [networks] {name}")
    made = [shlex.join(["pcm", "generate", *cell.words]) for cell in cells if cell.words]
    return made + [f"# {file} does not exist, for {_first(names)}" for file, names in needed.items()]


def _first(names: Sequence[str]) -> str:
    return "; ".join(names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"])


def carry_out(options: argparse.Namespace) -> None:
    comfyui = options.comfyui or (Path(path) if (path := os.environ.get("COMFYUI_PATH")) else None)
    plan = read_plan(options.table, comfyui=comfyui)
    out: Path = options.out or Path("output") / "tables" / options.table.stem
    maker = Maker(plan, out, comfyui)
    if options.commands:
        print("\n".join(commands(Run(plan, maker, Workers(), load_pack, "cpu"))))
        return
    on_cpu = not torch.cuda.is_available()
    workers = Workers.start(options.single, on_cpu=on_cpu, patient=True)
    device = options.device or ("cpu" if on_cpu else str(workers.device))
    run = Run(plan, maker, workers, lambda: load_pack(None if comfyui is None else str(comfyui)), device)
    with workers.together():
        if workers.first:
            run.check()
    if not options.measure:
        run.make()
    text = write(out, run)
    if workers.first:
        if options.report:
            options.report.write_text(text, "utf-8", newline="\n")
        print(text)
        print(f"Written: {out / 'table.md'}, table.csv, table.json and plots", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if (options.table is None) == (options.compare is None):
        sys.exit("Give a table file, or --compare and two runs.")
    try:
        if options.compare:
            print(compared(*options.compare), end="")
        else:
            with SayOnce():
                carry_out(options)
    except (PCMError, SourceError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command continues from there.")
