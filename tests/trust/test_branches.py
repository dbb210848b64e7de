"""``devtools.untested_raises`` finds the refusals that did not run, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from coverage import CoverageData

from devtools import untested_raises

SOURCE = """\
from typing import NoReturn

def refuse(text: str) -> NoReturn:
    raise ValueError(text)

def check(number: int) -> int:
    if number < 0:
        refuse("negative")
    if number > 9:
        raise ValueError(
            f"{number} is large"
        )
    try:
        print(number)
    except OSError:
        raise
    return number
"""


@pytest.mark.parametrize(
    ("ran", "missed"),
    [
        (range(1, 18), []),
        ([4, 8, 16], [10]),
        ([4, 8, 11, 16], []),  # any line of a statement that takes several
        ([4, 10, 16], [8]),
        ([1, 3, 6, 7, 9], [4, 8, 10, 16]),
        ([], [4, 8, 10, 16]),
    ],
)
def test_what_did_not_run_is_named(tmp_path: Path, ran: list[int], missed: list[int]) -> None:
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    data = CoverageData(no_disk=True)
    data.add_lines({str(path): ran})
    assert untested_raises.missed([path], data) == (4, [f"{path}:{line}" for line in missed])


def test_the_exit_code_says_whether_any_is_left(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(untested_raises, "ROOT", tmp_path)
    path = tmp_path / "nodes" / "module.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    files = [str(tmp_path / name) for name in ("a", "b")]
    for file, lines in zip(files, ([4, 8], [10, 16]), strict=True):
        data = CoverageData(file)
        data.add_lines({str(path): lines})
        data.write()
    assert untested_raises.main(files[:1]) == 1
    assert capsys.readouterr().out.splitlines() == [f"{path}:10", f"{path}:16", "2 of 4 refusals ran"]
    assert untested_raises.main(files) == 0
