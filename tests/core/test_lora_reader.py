"""The reader survives any file: it raises a PCMError or loads it correctly, quickly and in bounded memory."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from pathlib import Path

import lora_files as files
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from pcm_core import safetensors_file
from pcm_core.errors import PCMError
from pcm_core.lora import normalize, read_lora
from pcm_core.safetensors_file import MAX_TENSORS, read_header

LIMIT_SECONDS = 1.0
SPARE_BYTES = 32 * 2**20
STATUS = Path("/proc/self/status")
PAIR = ["diffusion_model.joint_blocks.0.x_block.attn.qkv", "transformer.transformer_blocks.1.attn.to_out.0"]
SOUND = save(files.lora(PAIR)[0], metadata={"format": "pt"})
F32 = files.entry("F32", [1], 0, 4)


def peak_memory(*, reset: bool = False) -> int:
    """The most memory this process ever held in RAM, in bytes, or since the last reset; 0 where Linux does not say."""
    if not STATUS.exists():
        return 0
    if reset:
        STATUS.with_name("clear_refs").write_text("5")
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))


def survive(path, content: bytes) -> bool:
    """Read and normalize a file; True if it loads, False for a PCMError.

    Anything else, a second gone, or memory of more than twice the file and 32 MB fails the test. The second is this
    thread's own: other work on the machine does not count.
    """
    files.put(path, content)
    before, started = peak_memory(reset=True), time.thread_time()
    try:
        tensors, metadata = read_lora(path)
        normalize(tensors, files.key_map(), files.SHAPES, metadata=metadata, base_model="sd3")
        loaded = True
    except PCMError:
        loaded = False
    assert time.thread_time() - started < LIMIT_SECONDS
    assert peak_memory() - before < 2 * len(content) + SPARE_BYTES
    return loaded


def test_a_sound_file_loads(tmp_path):
    assert survive(tmp_path / "a.safetensors", SOUND)


BAD_HEADERS = {
    "empty file": b"",
    "seven bytes": b"\x00" * 7,
    "length beyond the file": struct.pack("<Q", 500) + b"{}",
    "length 2^63": struct.pack("<Q", 2**63) + b"{}",
    "length 2^64 - 1": struct.pack("<Q", 2**64 - 1) + b"{}",
    "length 0": struct.pack("<Q", 0),
    "truncated": SOUND[: len(SOUND) // 2],
    "one byte short": SOUND[:-1],
    "one byte long": SOUND + b"\x00",
    "pickle": b"\x80\x02}q\x00X\x05\x00\x00\x00" + b"\x00" * 64,
    "not JSON": files.pack("{'a': 1}"),
    "not UTF-8": files.pack(b'{"\xff\xfe": 1}'),
    "a list": files.pack("[]"),
    "a number": files.pack("12"),
    "deep": files.pack('{"a":' * 100_000 + "1" + "}" * 100_000),
    "deep list": files.pack("[" * 200_000 + "]" * 200_000),
    "duplicate key": files.pack(f'{{"a":{json.dumps(F32)},"a":{json.dumps(F32)}}}', b"\x00" * 4),
    "duplicate entry": files.pack('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\x00" * 4),
    "NaN offset": files.pack('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,NaN]}}', b"\x00" * 4),
    "float offset": files.pack('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}}', b"\x00" * 4),
    "true as a size": files.pack('{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', b"\x00" * 4),
    "huge integer": files.pack('{"a":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}', b"\x00" * 4),
    "string shape": files.pack({"a": {"dtype": "F32", "shape": "abc", "data_offsets": [0, 4]}}, b"\x00" * 4),
    "no shape": files.pack({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"\x00" * 4),
    "null entry": files.pack({"a": None}),
    "list as dtype": files.pack({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"\x00" * 4),
    "three offsets": files.pack({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"\x00" * 4),
    "unknown dtype": files.pack({"a": files.entry("F33", [1], 0, 4)}, b"\x00" * 4),
    "shape 2^63": files.pack({"a": files.entry("F32", [2**63], 0, 4)}, b"\x00" * 4),
    "product overflows to the size": files.pack({"a": files.entry("F32", [2**32, 2**32, 1], 0, 0)}),
    "negative size": files.pack({"a": files.entry("F32", [-1, -1], 0, 4)}, b"\x00" * 4),
    "offsets past the end": files.pack({"a": files.entry("F32", [1], 4, 8)}, b"\x00" * 4),
    "offsets backwards": files.pack({"a": files.entry("F32", [0], 4, 0)}, b"\x00" * 4),
    "overlap": files.pack({"a": F32, "b": F32}, b"\x00" * 4),
    "hole": files.pack({"a": F32, "b": files.entry("F32", [1], 8, 12)}, b"\x00" * 12),
    "metadata with numbers": files.pack({"__metadata__": {"a": 1}, "a": F32}, b"\x00" * 4),
    "metadata a list": files.pack({"__metadata__": [], "a": F32}, b"\x00" * 4),
    "long name": files.pack({"a" * 5000: F32}, b"\x00" * 4),
    "long shape": files.pack({"a": files.entry("F32", [1] * 70, 0, 4)}, b"\x00" * 4),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_broken_files_are_refused(tmp_path, case):
    assert not survive(tmp_path / "bad.safetensors", BAD_HEADERS[case])


def test_null_metadata_is_no_metadata(tmp_path):
    path = files.put(tmp_path / "a.safetensors", files.pack({"__metadata__": None, "a": F32}, bytes(4)))
    assert read_header(path).metadata == {}


@pytest.mark.parametrize("name", ["lora.ckpt", "lora.pt", "lora.bin", "lora"])
def test_other_formats_are_never_opened(tmp_path, name):
    path = files.put(tmp_path / name, SOUND)
    with pytest.raises(PCMError, match=r"a \.safetensors file"):
        read_lora(path)


def test_missing_file_and_folder(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("missing.safetensors", "folder.safetensors"):
        with pytest.raises(PCMError, match=name):
            read_lora(tmp_path / name)


def many(count: int, body: str) -> bytes:
    """A header with ``count`` entries, written without building Python objects."""
    return files.pack("{" + ",".join(f'"{i:x}":{body}' for i in range(count)) + "}")


HEAVY = {
    "1e6 keys": lambda: many(1_000_000, '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'),
    "4e5 keys": lambda: many(400_000, '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'),
    "just too many keys": lambda: many(MAX_TENSORS + 1, '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'),
    "small objects": lambda: files.pack("[" + ",".join(["{}"] * 3_000_000) + "]"),
    "small strings": lambda: files.pack('{"a":[' + ",".join('"ab"' for _ in range(2_000_000)) + "]}"),
    "one long string": lambda: files.pack('{"a":"' + "x" * 20_000_000 + '"}'),
    "zeros": lambda: bytes(50_000_000),
}


@pytest.mark.parametrize("case", HEAVY)
def test_heavy_headers_cost_neither_time_nor_memory(tmp_path, case):
    path, content = tmp_path / "heavy.safetensors", HEAVY[case]()
    size = len(content)
    assert not survive(path, content)
    del content
    tracemalloc.start()
    with pytest.raises(PCMError):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * size + SPARE_BYTES


def test_as_many_keys_as_allowed_load(tmp_path):
    count = MAX_TENSORS // 2
    tensors = {
        f"diffusion_model.blocks.{i}.x.lora_{side}.weight": torch.ones(1, 1)
        for i in range(count)
        for side in ("up", "down")
    }
    path = tmp_path / "many.safetensors"
    save_file(tensors, path)
    assert len(read_lora(path)[0]) == 2 * count


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "C64", "I64", "U64", "BOOL"])
def test_types_no_lora_has(tmp_path, dtype):
    bits = {"F4": 4, "F6_E2M3": 6, "F8_E8M0": 8, "C64": 64, "I64": 64, "U64": 64, "BOOL": 8}[dtype]
    size = 8 * 8 * bits // 8
    header = {
        f"a.lora_{side}.weight": files.entry(dtype, [8, 8], i * size, (i + 1) * size)
        for i, side in enumerate(("up", "down"))
    }
    assert not survive(tmp_path / "a.safetensors", files.pack(header, b"\x00" * 2 * size))


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(SOUND)
    checked = safetensors_file.read_header

    def then_cut(file):
        header = checked(file)
        path.write_bytes(SOUND[:-8])
        return header

    monkeypatch.setattr(safetensors_file, "read_header", then_cut)
    with pytest.raises(PCMError, match="it changed while it was read"):
        read_lora(path)


# Random damage


def damage(data, content: bytes) -> bytes:
    """One to four edits: flipped bytes, cut, inserted, repeated or exchanged pieces, and lies about the length."""
    for _ in range(data.draw(st.integers(1, 4))):
        header = 8 + struct.unpack("<Q", SOUND[:8])[0]
        end = data.draw(st.sampled_from([header, len(content)])) or 1
        at = data.draw(st.integers(0, min(end, len(content))))
        width = data.draw(st.integers(1, 40))
        piece = data.draw(st.one_of(st.binary(max_size=40), st.sampled_from(TOKENS)))
        kind = data.draw(st.sampled_from(["overwrite", "insert", "delete", "repeat", "length"]))
        if kind == "overwrite":
            content = content[:at] + piece + content[at + len(piece) :]
        elif kind == "insert":
            content = content[:at] + piece + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + width :]
        elif kind == "repeat":
            content = content[: at + width] + content[at:]
        else:
            content = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1))) + content[8:]
    return content


TOKENS = [
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"-1", b"0", b"1e9", b"18446744073709551616", b"null", b"NaN", b"true",
    b'"F16"', b'"F8_E4M3"', b'"shape"', b"data_offsets", b"lora_A", b"alpha", b".", b"\\u0000", b"\xff", b" ",
]  # fmt: skip


def mutate(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    survive(path, damage(data, SOUND))


DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I32": 4, "BOOL": 1, "C64": 8}
STEMS = st.sampled_from([*files.key_map(), "unet.x", "lora_unet_y", "lora_te_a", "z"])
SUFFIXES = st.sampled_from([
    ".lora_A.weight", ".lora_B.weight", ".lora_up.weight", ".lora_down.weight", ".alpha", ".diff", ".diff_b", ".weight",
    ".lora_mid.weight", ".dora_scale", ".reshape_weight", ".set_weight", ".w_norm", ".lokr_w1", ".lokr_w2_a",
    ".hada_w1_a", "",
])  # fmt: skip
SIZES = st.lists(st.sampled_from([0, 1, 2, 6, 18, 24]), max_size=4)


def compose(tmp_path_factory, data):
    """A well-formed file with any content: any keys, shapes, types and values."""
    keys = data.draw(st.lists(st.tuples(STEMS, SUFFIXES, SIZES, st.sampled_from(sorted(DTYPES))), max_size=8))
    header, body = {}, b""
    for stem, suffix, shape, dtype in keys:
        size = DTYPES[dtype] * torch.Size(shape).numel()
        if stem + suffix in header:
            continue
        header[stem + suffix] = files.entry(dtype, shape, len(body), len(body) + size)
        byte = data.draw(st.sampled_from([b"\x00", b"\x3c", b"\x7f", b"\xff"]))
        body += byte * size
    survive(tmp_path_factory.getbasetemp() / "composed.safetensors", files.pack(header, body))


VALUES = st.sampled_from([0.0, 1.0, -1.0, 6.0, 18.0, 1e30, float("nan"), float("inf")])
NEAR = st.sampled_from([(), (1,), (2,), (6,), (18,), (0, 6), (18, 6), (6, 6), (18, 2), (2, 6), (2, 2), (18, 2, 1, 1)])
KINDS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.float64])


def dress(tmp_path_factory, data):
    """A valid LoRA with tensors added or replaced: of nearly the right shape, with any values."""
    tensors, _ = files.lora(data.draw(st.lists(st.sampled_from(sorted(files.key_map())), min_size=1, max_size=4)))
    for stem in data.draw(st.lists(st.sampled_from(sorted({key.rsplit(".lora_")[0] for key in tensors})), max_size=4)):
        value = data.draw(VALUES)
        kind = data.draw(KINDS)
        if kind == torch.int64 and not abs(value) < 100:
            value = 3.0
        tensors[stem + data.draw(SUFFIXES)] = torch.full(data.draw(NEAR), value).to(kind)
    survive(tmp_path_factory.getbasetemp() / "dressed.safetensors", save(tensors))


QUIET = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=250, **QUIET)
@given(data=st.data())
def test_mutated_files(tmp_path_factory, data):
    mutate(tmp_path_factory, data)


@settings(max_examples=250, **QUIET)
@given(data=st.data())
def test_composed_files(tmp_path_factory, data):
    compose(tmp_path_factory, data)


@settings(max_examples=250, **QUIET)
@given(data=st.data())
def test_dressed_files(tmp_path_factory, data):
    dress(tmp_path_factory, data)


@pytest.mark.long
@settings(max_examples=3000, **QUIET)
@given(data=st.data())
def test_dressed_files_long(tmp_path_factory, data):
    dress(tmp_path_factory, data)


@pytest.mark.long
@settings(max_examples=3000, **QUIET)
@given(data=st.data())
def test_mutated_files_long(tmp_path_factory, data):
    mutate(tmp_path_factory, data)


@pytest.mark.long
@settings(max_examples=3000, **QUIET)
@given(data=st.data())
def test_composed_files_long(tmp_path_factory, data):
    compose(tmp_path_factory, data)
