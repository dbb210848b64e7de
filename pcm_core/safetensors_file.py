"""Read an untrusted safetensors file: the header is checked before any tensor is read.

Layout (https://github.com/huggingface/safetensors): 8 bytes little-endian header length n, n bytes of JSON that map
each tensor name to dtype, shape and data offsets, then the data. Nothing is ever unpickled.

All checks take O(header) time: a file with false sizes, offsets or nesting can neither make us wait nor make us
allocate more than twice its size plus 32 MB.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from .errors import PCMError

MAX_HEADER = 32 * 2**20
MAX_TENSORS = 20_000
MAX_NAME = 1024
# JSON values of a valid header: about seven per tensor, and some metadata.
_MAX_VALUES = 250_000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The place of one tensor in the file: ``start`` and ``end`` are byte offsets into the data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header: every tensor lies inside the file, has the size its shape says and overlaps no other.

    ``data`` is where the data part begins, in bytes.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data: int


def read_header(path: str | Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        PCMError: if the file is missing, is not a safetensors file, is truncated or inconsistent.
    """
    path = Path(path)
    if path.suffix.lower() not in (".safetensors", ".sft"):
        raise PCMError(
            f"{path.name} is a {path.suffix or 'file without extension'}.",
            "a .safetensors file; other formats can run code when opened.",
            "Download the safetensors version, or convert it with a tool you trust.",
        )
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else -1
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                _broken(path, f"its header is said to be {length} bytes long in a file of {size}")
            raw = file.read(length)
    except OSError as error:
        raise PCMError(f"{path.name} cannot be opened ({error.strerror}).", "a readable file.", "Check it.") from error
    return _check(path, _parse(path, raw), 8 + length, size)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a checked file, memory-mapped on the CPU, and its metadata.

    Raises:
        PCMError: as ``read_header``, or if torch has no such dtype.
    """
    path = Path(path)
    header = read_header(path)
    lacking = next((info.dtype for info in header.tensors.values() if info.dtype not in _DTYPES), None)
    if lacking is not None:
        _broken(path, f"torch has no values of type {lacking}")
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        tensors = {name: _mapped(mapped, header.data, info) for name, info in header.tensors.items()}
    except (OSError, ValueError) as error:
        _broken(path, f"it changed while it was read ({error})", error)
    return tensors, header.metadata


def _mapped(file: mmap.mmap, data: int, info: TensorInfo) -> Tensor:
    """A tensor of a mapped file; pages are read when they are used, and never written back."""
    dtype, count = _DTYPES[info.dtype], math.prod(info.shape)
    flat = torch.frombuffer(file, dtype=dtype, count=count, offset=data + info.start) if count else torch.empty(0)
    return flat.to(dtype).reshape(info.shape)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    if (count := raw.count(b'"data_offsets"')) > MAX_TENSORS:
        _broken(path, f"it lists {count:,} tensors, and no LoRA has more than {MAX_TENSORS:,}")
    if raw.count(b",") + raw.count(b"{") + raw.count(b"[") > _MAX_VALUES:
        _broken(path, f"its header holds more than {_MAX_VALUES:,} values")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _broken(path, f"its header is not valid JSON ({str(error)[:80]})", error)
    if not isinstance(header, dict):
        _broken(path, "its header is not a JSON object")
    return cast(dict[str, Any], header)


def _check(path: Path, header: dict[str, Any], data: int, size: int) -> Header:
    metadata: Any = header.pop("__metadata__", {})
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in cast(dict[str, Any], metadata).values()):
        _broken(path, "its metadata is not a table of strings")
    if any(len(name) > MAX_NAME for name in header):
        _broken(path, f"it has a tensor with a name of more than {MAX_NAME} letters")
    tensors = {name: _tensor(path, name, entry) for name, entry in header.items()}
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            _broken(path, f'the data of "{name[:80]}" starts at byte {info.start} instead of {position}')
        position = info.end
    if position != size - data:
        _broken(path, f"its tensors need {position} bytes and the file holds {size - data}")
    return Header(tensors, cast(dict[str, str], metadata), data)


def _tensor(path: Path, name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = (*shape, start, end)
        whole = {*map(type, numbers)} == {int} and min(numbers) >= 0 and max(numbers) < 2**63
        bits = _BITS[dtype]
    except (KeyError, TypeError, ValueError) as error:
        _broken(path, f'the entry of "{name[:80]}" is not a tensor', error)
    if not whole or len(shape) > 8 or end < start or math.prod(shape) * bits != (end - start) * 8:
        _broken(path, f'"{name[:80]}" has shape {str(shape)[:60]} in {dtype} but bytes {start} to {end}')
    return TensorInfo(dtype, tuple(shape), start, end)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice")
    return table


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _broken(path: Path, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise PCMError(
        f"{path.name} is damaged or not a safetensors file: {reason}.",
        "a complete safetensors file.",
        "Download it again.",
    ) from cause
