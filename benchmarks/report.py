"""Run benchmarks and write ``benchmarks/results.md``: one section each, with its date, command, hardware and versions.

    python -m benchmarks.report                         every benchmark that takes minutes
    python -m benchmarks.report --quick                 the same with fewer repetitions
    python -m benchmarks.report sampler_overhead        one of them; the other sections do not change
    python -m benchmarks.report sampler_overhead -- --peer ../ComfyUI-TCD      with its own options

Experiments that take hours are not run again: their stored results, in ``benchmarks/results``, are included unchanged.
``python dev.py bench`` does the same and sets up everything it needs. Needs COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from devtools.paths import commit

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.md"
STORED = ROOT / "benchmarks" / "results"
HEAD = """# Benchmarks

Written by `python dev.py bench`; edit the scripts in `benchmarks/`, not this file. Each section says when, on what and
by which command it was measured; sections that were not run again keep theirs. Times on a shared machine are upper
bounds: read the ratios, whose two sides ran in turns within one run.
"""


@dataclass(frozen=True)
class Part:
    """A benchmark module and the options that make it quick."""

    title: str
    quick: Sequence[str] = ()


PARTS = {
    "sampler_overhead": Part("Sampler overhead per step", ["--rounds", "10"]),
    "end_to_end": Part("End to end at equal quality, demo world", ["--rounds", "3"]),
    "phase_cfg": Part("CFG per phase, demo world", ["--pictures", "272"]),
    "table_killed": Part("A table that is killed twice, demo world", ["--count", "24"]),
    "pack_import": Part("Start-up of the host with the pack", ["--runs", "2"]),
    "lora_load": Part("Loading a LoRA of SDXL's size", ["--runs", "1"]),
    "distill_cost": Part("Cost of a distillation step", ["--updates", "20"]),
    "matching_cost": Part("Cost of a matching update", ["--updates", "10"]),
    "video_memory": Part("Memory of long clips", ["--frames", "16", "32", "64"]),
    "cost_curves": Part("How cost grows", ["--rounds", "2"]),
    "streaming_cost": Part("What streaming of the weights costs in time", ["--rounds", "2"]),
    "real_size": Part("Models of real size, stock nodes against ours", ["--rounds", "1"]),
}


def run(name: str, arguments: Sequence[str]) -> str:
    """One section: command, date, hardware, and the output of the benchmark.

    Raises:
        SystemExit: if the benchmark fails; its own message has been printed.
    """
    command = ["python", "-m", f"benchmarks.{name}", *arguments]
    load = f", load {os.getloadavg()[0]:.1f} before it began" if hasattr(os, "getloadavg") else ""
    source = commit()
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed; its message is above.")
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    shown = shlex.join(Path(word).name if Path(word).is_absolute() else word for word in command)
    return f"`{shown}`, {when}, {source}. {machine()}{load}.\n\n{done.stdout.strip()}"


def machine() -> str:
    """Hardware and versions in one line."""
    parts = [f"{processor()}, {os.cpu_count()} cores", platform.system(), f"Python {platform.python_version()}"]
    parts.append(f"torch {version('torch')}")
    source = Path(os.environ.get("COMFYUI_PATH", "")) / "comfyui_version.py"
    if source.is_file() and (found := re.search(r'"([\d.]+)"', source.read_text(encoding="utf-8"))):
        parts.append(f"ComfyUI {found[1]}")
    return ", ".join(parts)


def processor() -> str:
    """The CPU's model name if the system gives it (Linux), else the architecture."""
    source = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", source.read_text("utf-8")) if source.exists() else None
    return found[1].strip() if found else platform.machine()


def stored() -> dict[str, str]:
    """The stored sections by title: the files in ``benchmarks/results`` and the scores of the demo world."""
    found: dict[str, str] = {}
    for path in (*sorted(STORED.glob("*.md")), *sorted((ROOT / "demo").glob("results*.md"))):
        title, _, text = path.read_text(encoding="utf-8").partition("\n")
        name = path.relative_to(ROOT).as_posix()
        log = ["git", "-C", str(ROOT), "log", "-1", "--format=%cs", "--", name]
        date = subprocess.run(log, capture_output=True, text=True, check=False).stdout.strip() or "not committed yet"
        text = re.sub(r"(\]\()(?![/#]|https?:)", rf"\1{os.path.relpath(path.parent, RESULTS.parent)}/", text)
        text = re.sub(r"^#+ ", "### ", text, flags=re.MULTILINE).strip()
        found[title.removeprefix("# ").strip()] = f"Taken as stored in `{name}` ({date}).\n\n{text}"
    return found


def sections(report: str) -> dict[str, str]:
    """The sections of an earlier report, by title."""
    _, *parts = re.split(r"^## ", report, flags=re.MULTILINE)
    return {title.strip(): text.strip() for title, _, text in (part.partition("\n") for part in parts)}


def assemble(measured: Mapping[str, str], kept: Mapping[str, str]) -> str:
    """The whole report: the benchmarks in order, then the stored sections."""
    titles: Iterable[str] = (part.title for part in PARTS.values())
    present = {title: measured[title] for title in titles if title in measured} | dict(kept)
    return HEAD + "".join(f"\n## {title}\n\n{text}\n" for title, text in present.items())


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which, of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    options = parser.parse_args(given[:split])
    names, extra = options.names or list(PARTS), given[split + 1 :]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no benchmark {unknown[0]}; there are {', '.join(PARTS)}")
    if extra and len(names) != 1:
        parser.error("what follows -- goes to one benchmark: name it")
    for name in names:
        part = PARTS[name]
        print(f"{name}: {part.title}", flush=True)
        text = run(name, [*(part.quick if options.quick else ()), *extra])
        print(f"\n{text}\n", flush=True)
        measured = sections(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        RESULTS.write_text(assemble(measured | {part.title: text}, stored()), encoding="utf-8", newline="\n")
    print(f"Report: {RESULTS}")


if __name__ == "__main__":
    main()
