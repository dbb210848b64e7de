"""What a pack adds to the start of ComfyUI: seconds and modules, for this pack and for others by path.

Each run is a process of its own. It imports the host's modules first, as main.py does before it loads custom nodes;
then the host's loader imports the pack, with cached bytecode as on every start but the first. Packs take turns within a
round. Needs COMFYUI_PATH.

    python -m benchmarks.pack_import [--runs 5] [--pack FOLDER ...]
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import markdown, pack_label
from devtools.generate.host_nodes import ROOT, boot

TARGET = 0.05  # seconds
HEAVY = ("matplotlib", "scipy", "transformers", "diffusers")
NAMES = 6  # number of third-party packages to print


def measure(pack: str) -> dict[str, Any]:
    """Load one pack in this process."""
    nodes = boot()
    before = set(sys.modules)
    cpu, wall = time.process_time(), time.perf_counter()
    loaded = asyncio.run(nodes.load_custom_node(pack, module_parent="custom_nodes"))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    if not loaded:
        sys.exit(f"{pack} did not load; see the messages above.")
    added = set(sys.modules) - before
    own = {name for name in added if name.startswith(pack.replace(".", "_x_"))}
    return {"cpu": cpu, "wall": wall, "own": len(own), "foreign": sorted(added - own)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pack", type=Path, action="append", default=[], help="folder of another node pack")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    packs = {"this pack": str(ROOT)} | {pack_label(pack): str(pack.resolve()) for pack in options.pack}
    for path in packs.values():
        compileall.compile_dir(path, quiet=1, maxlevels=3)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in packs}
    for _ in range(options.runs):
        for name, path in packs.items():
            command = [sys.executable, "-m", "benchmarks.pack_import", "--one", path]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows: list[list[str]] = []
    for name, results in runs.items():
        foreign = results[0]["foreign"]
        packages = sorted({module.split(".")[0] for module in foreign})
        shown = ", ".join(packages[:NAMES]) + (f" and {len(packages) - NAMES} more" if len(packages) > NAMES else "")
        times = [f"{1e3 * statistics.median(result[key] for result in results):.0f}" for key in ("cpu", "wall")]
        rows.append([name, *times, str(results[0]["own"]), str(len(foreign)), shown or "none"])
    ours = statistics.median(result["cpu"] for result in runs["this pack"])
    heavy = sorted({module.split(".")[0] for module in runs["this pack"][0]["foreign"]} & set(HEAVY))
    print(f"Median of {options.runs} runs.\n")
    print(markdown(["pack", "CPU ms", "wall ms", "own modules", "others it brings in", "of the packages"], rows))
    print(f"\nTarget: {TARGET * 1e3:.0f} ms, {'reached' if ours < TARGET else 'missed'} in CPU time. Of")
    print(f"{', '.join(HEAVY)} it brings in {', '.join(heavy) or 'none'}.")


if __name__ == "__main__":
    main()
