"""Check the inputs of a node against its schema.

The host checks the widget values in a prompt. It does not check for NaN, values that come through a link, and values in
place of a link.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable, Iterable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..pcm_core.errors import PCMError

# Lists of files: a file may be newer than its list, and opening it gives a better error.
_FILES = ("lora_name", "existing_lora")


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Decorate a node's ``execute``, below ``@classmethod``, to check that every input has its declared type and range.

    Raises:
        PCMError: from the decorated method; names the input.
    """

    @functools.wraps(execute)
    def run(cls: type[io.ComfyNode], **inputs: Any) -> io.NodeOutput:
        schema = cls.define_schema()
        known = {entry.id for entry in schema.inputs}
        if unknown := sorted(inputs.keys() - known):  # the host passes on any linked input
            raise PCMError(
                f'There is no input "{unknown[0]}".', f"one of {', '.join(sorted(known))}.", "Disconnect it."
            )
        if not schema.is_input_list:  # a node that takes lists has lists for defaults, in its signature
            inputs = _defaults(schema) | inputs
        for entry in schema.inputs:
            if entry.id in inputs:
                for value in _values(entry, inputs[entry.id], listed=schema.is_input_list):
                    _check(entry, value)
        return execute(cls, **inputs)

    return run


def _defaults(schema: io.Schema) -> dict[str, Any]:
    """What the optional inputs mean that a prompt leaves out."""
    values = {entry.id: _default(entry) for entry in schema.inputs if entry.optional}
    return {name: value for name, value in values.items() if value is not None}


def _default(entry: io.Input) -> Any:
    return getattr(entry.input_override if isinstance(entry, io.MultiType.Input) else entry, "default", None)


def _values(entry: io.Input, value: Any, *, listed: bool) -> Iterable[Any]:
    """The values of one input: several if the node takes lists or the input grows."""
    if isinstance(entry, io.Autogrow.Input):
        return value.values() if isinstance(value, dict) else (value,)
    if listed and value is not None:
        return value or (None,)
    return (value,)


def _check(entry: io.Input, value: Any) -> None:
    if isinstance(entry, io.Autogrow.Input):
        entry, optional = entry.template.input, True
    else:
        optional = entry.optional and _default(entry) is None  # a widget always has a value
    if value is None and optional:
        return
    kind = entry.get_io_type()
    if isinstance(entry, (io.Int.Input, io.Float.Input)):
        _, what, form = _NUMBERS[kind]
        fits, expected = _in_range(value, entry), f"{what} from {entry.min:{form}} to {entry.max:{form}}."
    elif isinstance(entry, io.Combo.Input):
        options = [str(option) for option in entry.options or ()]
        fits = isinstance(value, str) and (entry.id in _FILES or value in options)
        expected = f"one of {', '.join(options)}."
    elif isinstance(entry, io.MultiType.Input):
        fits, expected = _is_text_or_number(value), "a number or a text."
    else:
        test, expected = _KINDS.get(kind, (_anything, ""))
        fits = test(value)
    if not fits:
        raise PCMError(f"{entry.id} is {_shown(value)}.", expected, f"Set {entry.id}, or connect another.")


def _in_range(value: Any, entry: io.Int.Input | io.Float.Input) -> bool:
    assert entry.min is not None and entry.max is not None, "every number of this pack has its limits"
    number = isinstance(value, _NUMBERS[entry.get_io_type()][0]) and not isinstance(value, bool)
    return number and entry.min <= value <= entry.max  # never for NaN


def _is_text_or_number(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, str):
        return f'"{value[:80]}"'
    return str(value)[:80] if isinstance(value, numbers.Number) else f"a {type(value).__name__}"


def _is_conditioning(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(_is_text, value))


def _is_text(part: Any) -> bool:
    """Whether ``part`` is an entry of a CONDITIONING; its tensor is ``None`` for a model without text."""
    return (
        isinstance(part, (list, tuple))
        and len(part) == 2
        and (part[0] is None or isinstance(part[0], Tensor))
        and isinstance(part[1], dict)
    )


def _anything(_: Any) -> bool:
    return True


_NUMBERS = {"INT": (numbers.Integral, "a whole number", "d"), "FLOAT": (numbers.Real, "a number", "g")}
# Checked by the attributes that the nodes use: other packs have their own classes.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "MODEL": (lambda value: hasattr(value, "get_model_object"), "a MODEL."),
    "CONDITIONING": (_is_conditioning, "a CONDITIONING with at least one text."),
    "LATENT": (lambda value: isinstance(value, dict) and hasattr(value.get("samples"), "is_nested"), "a LATENT."),
    "SIGMAS": (lambda value: isinstance(value, Tensor), "SIGMAS."),
    "IMAGE": (lambda value: isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] in (3, 4), "an IMAGE."),
    "CLIP": (lambda value: hasattr(value, "cond_stage_model"), "a CLIP."),
    "VAE": (lambda value: hasattr(value, "decode"), "a VAE."),
    "CLIP_VISION": (lambda value: hasattr(value, "encode_image"), "a CLIP_VISION."),
    "LORA_MODEL": (
        lambda value: isinstance(value, dict) and bool(value) and all(isinstance(v, Tensor) for v in value.values()),
        "a trained LoRA.",
    ),
    "STRING": (lambda value: isinstance(value, str), "a text."),
    "BOOLEAN": (lambda value: isinstance(value, int), "true or false."),
}
