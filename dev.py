#!/usr/bin/env python3
"""The developers' commands: ``python dev.py demo | serve | test | bench``. Standard library only."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

from devtools import environment, host
from devtools.base import make_base
from devtools.browser import ensure_chromium
from devtools.errors import DevError
from devtools.host_table import report_path
from devtools.paths import BASE, ROOT, commit
from devtools.server import Server

TIMEOUT = "--timeout=600"  # of one test, in seconds
COVERAGE = ("--cov=pcm_core", "--cov=nodes", "--cov-report=term:skip-covered")
WORKERS = min(os.cpu_count() or 1, 4)  # each starts its own ComfyUI


def own_checkout(options: argparse.Namespace) -> str | None:
    """The user's own ComfyUI checkout, if given; the option takes precedence over COMFYUI_PATH."""
    return options.comfyui or (None if options.comfyui_version else os.environ.get("COMFYUI_PATH"))


def prepare(options: argparse.Namespace) -> Path:
    """Set up ``.venv``, the host with its requirements, and the base directory. Returns the host."""
    given = own_checkout(options)
    chosen = host.existing_host(given) if given else None
    environment.make_venv()
    if chosen is None:
        newest = host.pinned_host(host.NEWEST)  # its requirements work for every pinned version
        chosen = host.pinned_host(options.comfyui_version or host.NEWEST)
        environment.install(newest / "requirements.txt", pinned=True)
    else:
        environment.install(chosen / "requirements.txt", pinned=False)
    make_base(BASE)
    return chosen


def run_python(*arguments: str, **extra_environment: str) -> int:
    """Run the interpreter of ``.venv`` at the root of the repository and return its exit code."""
    command = [str(environment.venv_python()), *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | extra_environment, check=False).returncode


def demo(options: argparse.Namespace) -> int:
    chosen = prepare(options)
    print("Starting ComfyUI")
    with Server(environment.venv_python(), chosen, BASE, port=options.port) as server:
        code = run_python("-m", "demo.quickstart", "--url", server.url)
        if code:
            print(f"ComfyUI's log: {server.log}", file=sys.stderr)
            return 1
    if (ROOT / "demo" / "score.py").exists():
        if run_python("-m", "demo.score", "--quick"):
            raise DevError("The pictures are made, but demo/score.py failed; its message is above.")
    print(f"\nPictures and table: {ROOT / 'output' / 'demo'}")
    print("To look at the same graph in the browser: python dev.py serve")
    return 0


def serve(options: argparse.Namespace) -> int:
    chosen = prepare(options)
    print("Starting ComfyUI")
    with Server(environment.venv_python(), chosen, BASE, port=options.port) as server:
        print(f"ComfyUI is at {server.url} (log: {server.log})")
        print('Open the workflow "PCM quick start" in the sidebar. Ctrl-C stops the server.')
        assert server.process is not None
        code = server.process.wait()
    raise DevError(f"ComfyUI ended by itself with exit code {code} (log: {server.log}).")


def test(options: argparse.Namespace) -> int:
    chosen = prepare(options)
    ensure_chromium()
    selection = [] if options.long else ["-m", "not long"]
    if options.rest:
        named = ("-o", f"junit_suite_name={commit()}")
        return run_python("-m", "pytest", TIMEOUT, *named, *selection, *options.rest, COMFYUI_PATH=str(chosen))
    others = [] if own_checkout(options) else other_hosts(options)
    hosts = [host.pinned_host(version) for version in others]  # download them now: some slow tests compare versions
    if code := run_suite(chosen, *selection, *(COVERAGE if options.long else ())):
        return code
    for comfyui in hosts:  # run all of them, even if one fails
        print(f"\nComfyUI {comfyui.name}")
        code = run_suite(comfyui, "-m", "not long", "tests/host") or code
    return code or (run_python("-m", "devtools.untested_raises") if options.long else 0)


def other_hosts(options: argparse.Namespace) -> list[str]:
    """The other ComfyUI versions for the host tests: the oldest supported one, with ``--long`` all of them."""
    versions = list(host.SDISTS) if options.long else [host.OLDEST]
    return [version for version in versions if version != (options.comfyui_version or host.NEWEST)]


def run_suite(comfyui: Path, *selection: str) -> int:
    """Run whole files in parallel, one thread per worker: more threads than cores slow each other down."""
    how = ["-n", str(WORKERS), "--dist", "loadfile", f"--junitxml={report_path(comfyui.name)}",
           "-o", f"junit_suite_name={commit()}"]  # fmt: skip
    settings = {"COMFYUI_PATH": str(comfyui), "OMP_NUM_THREADS": "1"}
    return run_python("-m", "pytest", TIMEOUT, *how, *selection, **settings)


def bench(options: argparse.Namespace) -> int:
    chosen = prepare(options)
    quick = ["--quick"] if options.quick else []
    rest = ["--", *options.rest] if options.rest else []
    return run_python("-m", "benchmarks.report", *quick, *options.names, *rest, COMFYUI_PATH=str(chosen))


COMMANDS = {
    demo: "the quick start: a grid of pictures from the real ComfyUI",
    serve: "ComfyUI with the pack and the demo models, to open in a browser",
    test: "the test suite; what follows -- goes to pytest",
    bench: "the benchmarks, into benchmarks/results.md; what follows -- goes to the one that is named",
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the options; ``rest`` holds what follows ``--``."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="dev.py", description="Make everything, then run one of these commands.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for function, text in COMMANDS.items():
        command = commands.add_parser(function.__name__, help=text, description=text)
        command.set_defaults(function=function)
        which = command.add_mutually_exclusive_group()
        which.add_argument("--comfyui", metavar="PATH", help="a ComfyUI checkout (default: COMFYUI_PATH)")
        which.add_argument(
            "--comfyui-version", choices=[*host.SDISTS], help=f"a pinned ComfyUI (default: {host.NEWEST})"
        )
        if function in (demo, serve):
            command.add_argument("--port", type=int, help="0: any free one (default: 8188 for serve, 0 for demo)")
        if function is test:
            command.add_argument(
                "--long", action="store_true", help="slow tests too, every supported host, and coverage"
            )
        if function is bench:
            command.add_argument("--quick", action="store_true", help="fewer repetitions")
            command.add_argument("names", nargs="*", metavar="NAME", help="which of them (default: all)")
    options = parser.parse_args(arguments[:split])
    options.rest = arguments[split + 1 :]
    if options.function is serve and options.port is None:
        options.port = 8188
    return options


def main(arguments: list[str]) -> int:
    """Exit code: the command's own, 1 after one sentence on stderr, 130 after Ctrl-C."""
    if sys.version_info < (3, 11):
        print("dev.py needs Python 3.11 or newer.", file=sys.stderr)
        return 1
    for stream in (sys.stdout, sys.stderr):  # a console that lacks a letter of a path gets an escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = parse(arguments)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM stops the server too
    try:
        return options.function(options)
    except (DevError, OSError) as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
