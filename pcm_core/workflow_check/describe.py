"""A report as text and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import one_line
from .check import Report, sentences
from .files import FewStepFile
from .finding import Finding, Mend

_MARKS = {"wrong": "WRONG", "doubtful": "doubtful", "note": "note"}


def as_text(report: Report, *, skipped: bool = True) -> str:
    """The report for a terminal: what others wrote stays one line of printable characters."""
    if not report.files:
        return "No few-step file that is known here."
    used = _used(report)
    lines = [_file_line(file, file.node.id in used) for file in report.files]
    lines += [_finding_lines(found) for found in report.findings]
    if not report.findings:
        lines.append("Nothing to mend.")
    lines += [f"  not judged  {one_line(note.sentence())}" for note in report.skipped] if skipped else []
    return "\n".join(lines)


def _file_line(file: FewStepFile, used: bool) -> str:
    state = "" if used else ", not in use" if file.active else ", switched off"
    return one_line(f"{file.title}: {file.profile.method}{state}")


def _finding_lines(found: Finding) -> str:
    does, wants = (one_line(text) for text in sentences(found))
    where = one_line(f"{found.title} ({found.node})")
    mends = "; ".join(one_line(mend_text(mend)) for mend in found.mends)
    why = f"\n              {one_line(found.why)}" if found.why else ""
    mend = f"\n              mend: {mends}" if mends else ""
    return f"  {_MARKS[found.level]:<10}  {where} {does}; {wants}.{mend}{why}"


def mend_text(mend: Mend) -> str:
    """One mend in a few words."""
    values: dict[str, Any] = dataclasses.asdict(mend)
    if "widget" in values:
        return f"{values['widget']} of node {values['node']} = {values['value']}"
    if "type" in values:
        widgets = ", ".join(f"{name} {value}" for name, value in values["values"])
        return f"{values['type']} ({widgets}) before node {values['node']}"
    if "source" in values:
        return f"{values['input']} of node {values['node']} from node {values['source']}"
    return f"bypass node {values['node']}"


def as_json(report: Report, language: str = "en") -> dict[str, Any]:
    """The report as an object of plain JSON, with its sentences in a language."""
    used = _used(report)
    return {
        "files": [
            {
                "name": file.name,
                "title": file.title,
                "node": file.node.id,
                "kind": file.kind,
                "method": file.profile.method,
                "base_model": file.profile.base_model,
                "active": file.active,
                "used": file.node.id in used,
            }
            for file in report.files
        ],
        "findings": [_finding(found, language) for found in report.findings],
        "skipped": [note.sentence(language) for note in report.skipped],
        "wrong": report.wrong,
    }


def _finding(found: Finding, language: str) -> dict[str, Any]:
    does, wants = sentences(found, language)
    return {
        "rule": found.rule,
        "level": found.level,
        "node": found.node,
        "title": found.title,
        "file": found.file,
        "does": does,
        "wants": wants,
        "why": found.why,
        "mends": [{"kind": type(mend).__name__, **dataclasses.asdict(mend)} for mend in found.mends],
    }


def _used(report: Report) -> set[str]:
    """The nodes whose files a sampler uses."""
    return {file.node.id for run in report.runs for file in (*run.files, *run.second)}
