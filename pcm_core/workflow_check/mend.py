"""Applies mends to a workflow, in the form it came in."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from ..errors import PCMError
from .api_json import is_api
from .finding import Bypass, Connect, Mend, SetWidget
from .shapes import at, fields, is_list, is_object, items
from .ui_edit import UIEditor


def apply_mends(data: Any, mends: Iterable[Mend]) -> tuple[Any, list[Mend]]:
    """A copy of a workflow with the mends applied, each once.

    Returns:
        The workflow, and the mends that found no place in it.

    Raises:
        PCMError: if it is no workflow.
    """
    result = copy.deepcopy(data)
    wanted = list(dict.fromkeys(mends))
    editor: UIEditor | APIEditor
    if is_list(at(result, "nodes")):
        editor = UIEditor(fields(result))
    elif is_api(fields(result)):
        editor = APIEditor(fields(result))
    else:
        raise PCMError("This is no workflow.", "the UI or API form of one.", "Give another file.")
    return result, [mend for mend in wanted if not _apply(editor, mend)]


def _apply(editor: UIEditor | APIEditor, mend: Mend) -> bool:
    if isinstance(mend, SetWidget):
        return editor.set_widget(mend.node, mend.widget, mend.value)
    if isinstance(mend, Bypass):
        return editor.bypass(mend.node)
    if isinstance(mend, Connect):
        return editor.connect(mend.node, mend.input, mend.source, mend.slot)
    return editor.insert(mend.node, mend.input, mend.type, dict(mend.values))


class APIEditor:
    """The same changes to an API prompt."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def _inputs(self, node: str) -> dict[str, Any] | None:
        inputs = at(self.data, node, "inputs")
        return fields(inputs) if is_object(inputs) else None

    def set_widget(self, node: str, name: str, value: Any) -> bool:
        inputs = self._inputs(node)
        if inputs is None:
            return False
        row, _, key = name.partition(".")
        if key and is_object(inputs.get(row)):
            inputs[row][key] = value
        else:
            inputs[name] = value
        return True

    def bypass(self, node: str) -> bool:
        inputs = self._inputs(node)
        if inputs is None:
            return False
        through = [value for name, value in inputs.items() if name in ("model", "clip") and is_list(value)]
        for entry in self.data.values():
            others = fields(at(entry, "inputs"))
            for name, value in list(others.items()):
                if items(value)[:1] == [node] and len(items(value)) == 2 and value[1] in range(len(through)):
                    others[name] = through[value[1]]
        return True

    def connect(self, node: str, name: str, source: str, slot: int) -> bool:
        inputs = self._inputs(node)
        if inputs is None or source not in self.data:
            return False
        inputs[name] = [source, slot]
        return True

    def insert(self, node: str, name: str, kind: str, values: dict[str, Any]) -> bool:
        inputs = self._inputs(node)
        if inputs is None or not is_list(inputs.get(name)):
            return False
        numbers = [int(part) for key in self.data for part in key.split(":") if part.isdigit()]
        made = str(max(numbers, default=0) + 1)
        self.data[made] = {
            "class_type": kind,
            "inputs": {"model": inputs[name], **values},
            "_meta": {"title": kind},
        }
        inputs[name] = [made, 0]
        return True
