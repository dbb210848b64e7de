"""Changes to the API form of a workflow."""

from __future__ import annotations

from typing import Any

from .finding import InsertAfter, Replace
from .shapes import at, fields, is_list, is_object, items, put


class APIEditor:
    """Changes a prompt in place. Every method says whether it could."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def _inputs(self, node: str) -> dict[str, Any] | None:
        inputs = at(self.data, node, "inputs")
        return fields(inputs) if is_object(inputs) else None

    def set_widget(self, node: str, name: str, value: Any) -> bool:
        inputs = self._inputs(node)
        if inputs is None:
            return False
        row, *keys = name.split(".")
        held = inputs.get(row)
        held = fields(held).get("__value__", held)
        if keys and name not in inputs and held is not None:
            return put(held, keys, value)
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
        inputs[name] = [self._add(kind, {"model": inputs[name], **values}), 0]
        return True

    def insert_after(self, step: InsertAfter) -> bool:
        if self._inputs(step.node) is None:
            return False
        made = self._add(step.type, dict(step.values))
        self._move(step.node, step.slot, [made, 0])
        self.data[made]["inputs"]["model"] = [step.node, step.slot]
        return True

    def replace(self, step: Replace) -> bool:
        if self._inputs(step.at) is None:
            return False
        made = self._add(step.type, dict(step.values))
        for name, node, old in step.inputs:
            value = (self._inputs(node) or {}).get(old)
            if value is not None:
                self.data[made]["inputs"][name] = value
        for node, slot, new in step.outputs:
            self._move(node, slot, [made, new])
        for node, slot, old in step.through:
            value = (self._inputs(node) or {}).get(old)
            if value is not None:
                self._move(node, slot, value)
        return True

    def remove(self, node: str) -> bool:
        return self.data.pop(node, None) is not None

    def _add(self, kind: str, inputs: dict[str, Any]) -> str:
        numbers = [int(part) for key in self.data for part in key.split(":") if part.isdigit()]
        made = str(max(numbers, default=0) + 1)
        self.data[made] = {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}
        return made

    def _move(self, node: str, slot: int, origin: list[Any]) -> None:
        """Everything that an output feeds is fed from somewhere else."""
        for entry in self.data.values():
            inputs = fields(at(entry, "inputs"))
            for name, value in list(inputs.items()):
                if len(items(value)) == 2 and str(value[0]) == node and value[1] == slot:
                    inputs[name] = origin
