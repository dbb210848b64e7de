"""Applies mends to a workflow, in the form it came in."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from ..errors import PCMError
from .api_edit import APIEditor
from .api_json import is_api
from .finding import Bypass, Connect, Insert, InsertAfter, Mend, Replace, SetWidget
from .read import unwrapped
from .shapes import at, fields, is_list
from .ui_replace import UIReplacer


def apply_mends(data: Any, mends: Iterable[Mend]) -> tuple[Any, list[Mend]]:
    """A copy of a workflow with the mends applied, each once.

    Returns:
        The workflow, and the mends that found no place in it.

    Raises:
        PCMError: if it is no workflow.
    """
    result = whole = copy.deepcopy(data)
    inner, name = unwrapped(result)
    if name:
        result = whole[name] = inner
    wanted = list(dict.fromkeys(mends))
    editor: UIReplacer | APIEditor
    if is_list(at(result, "nodes")):
        editor = UIReplacer(fields(result))
    elif is_api(fields(result)):
        editor = APIEditor(fields(result))
    else:
        raise PCMError("This is no workflow.", "the UI or API form of one.", "Give another file.")
    return whole, [mend for mend in wanted if not _apply(editor, mend)]


def _apply(editor: UIReplacer | APIEditor, mend: Mend) -> bool:
    if isinstance(mend, SetWidget):
        return editor.set_widget(mend.node, mend.widget, mend.value)
    if isinstance(mend, Bypass):
        return editor.bypass(mend.node)
    if isinstance(mend, Connect):
        return editor.connect(mend.node, mend.input, mend.source, mend.slot)
    if isinstance(mend, Insert):
        return editor.insert(mend.node, mend.input, mend.type, dict(mend.values))
    if isinstance(mend, InsertAfter):
        return editor.insert_after(mend)
    return editor.replace(mend) if isinstance(mend, Replace) else editor.remove(mend.node)
