"""The command: report on a LoRA file, or convert it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..console import any_console
from ..errors import PCMError
from ..profiles import profile_for
from .convert import convert, portable
from .read import read_lora


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: report on a file, or convert it. Returns the exit code."""
    any_console()
    parser = argparse.ArgumentParser(prog="python -m pcm_core.lora", description="Report on a few-step LoRA file.")
    parser.add_argument("file", help="a .safetensors file")
    parser.add_argument("--convert", metavar="OUT", help="write it under names that other tools load")
    options = parser.parse_args(arguments)
    try:
        if options.convert:
            report = convert(options.file, options.convert)
        else:
            tensors, metadata = read_lora(options.file)
            profile = profile_for(options.file, metadata)
            _, report = portable(tensors, metadata=metadata, name=Path(options.file).name, profile=profile)
    except PCMError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(report.text() + "\n")
    return 0
