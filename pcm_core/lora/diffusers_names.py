"""Names of diffusers' video models for which the host has no map, as rules on the host's native names.

Checked against diffusers' own model classes (tests/reference/test_lora_names.py): every weight of theirs finds its
place in the native layout. ``#`` stands for a block number. Several names for one weight split its rows in that order
(a fused qkv); ``~`` says that the halves of the rows are exchanged between the two layouts; ``|`` separates spellings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .keys import Target, canonical

_QKV = ("to_q", "to_k", "to_v")
_ATTN_QKV = tuple(f"attn.{name}" for name in _QKV)
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def _attention(native: str, theirs: str, names: tuple[str, ...] = _QKV) -> tuple[str, tuple[str, ...]]:
    return native, tuple(f"{theirs}.{name}" for name in names)


_REFINER = "txt_in.individual_token_refiner.blocks.#"
_THEIR_REFINER = "context_embedder.token_refiner.refiner_blocks.#"
_EMBEDDERS = {
    "time_in": "time_text_embed.timestep_embedder",
    "vector_in": "time_text_embed.text_embedder",
    "guidance_in": "time_text_embed.guidance_embedder",
    "txt_in.t_embedder": "context_embedder.time_text_embed.timestep_embedder",
    "txt_in.c_embedder": "context_embedder.time_text_embed.text_embedder",
}
_WAN: dict[str, tuple[str, ...]] = {
    **{f"blocks.#.self_attn.{n}": (f"blocks.#.attn1.to_{n}",) for n in "qkv"},
    **{f"blocks.#.cross_attn.{n}": (f"blocks.#.attn2.to_{n}",) for n in "qkv"},
    **{f"blocks.#.self_attn.norm_{n}": (f"blocks.#.attn1.norm_{n}",) for n in "qk"},
    **{f"blocks.#.cross_attn.norm_{n}": (f"blocks.#.attn2.norm_{n}",) for n in "qk"},
    "blocks.#.self_attn.o": ("blocks.#.attn1.to_out.0",),
    "blocks.#.cross_attn.o": ("blocks.#.attn2.to_out.0",),
    "blocks.#.cross_attn.k_img": ("blocks.#.attn2.add_k_proj",),
    "blocks.#.cross_attn.v_img": ("blocks.#.attn2.add_v_proj",),
    "blocks.#.cross_attn.norm_k_img": ("blocks.#.attn2.norm_added_k",),
    "blocks.#.ffn.0": ("blocks.#.ffn.net.0.proj",),
    "blocks.#.ffn.2": ("blocks.#.ffn.net.2",),
    "blocks.#.norm3": ("blocks.#.norm2",),
    "text_embedding.0": ("condition_embedder.text_embedder.linear_1",),
    "text_embedding.2": ("condition_embedder.text_embedder.linear_2",),
    "time_embedding.0": ("condition_embedder.time_embedder.linear_1",),
    "time_embedding.2": ("condition_embedder.time_embedder.linear_2",),
    "time_projection.1": ("condition_embedder.time_proj",),
    "img_emb.proj.1": ("condition_embedder.image_embedder.ff.net.0.proj",),
    "img_emb.proj.3": ("condition_embedder.image_embedder.ff.net.2",),
    "head.head": ("proj_out",),
}  # fmt: skip
_HUNYUAN: dict[str, tuple[str, ...]] = {
    "double_blocks.#.img_mod.lin": ("transformer_blocks.#.norm1.linear",),
    "double_blocks.#.txt_mod.lin": ("transformer_blocks.#.norm1_context.linear",),
    **dict([
        _attention("double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn"),
        _attention("double_blocks.#.txt_attn.qkv", "transformer_blocks.#.attn", _ADDED),
        _attention("single_blocks.#.linear1", "single_transformer_blocks.#", (*_ATTN_QKV, "proj_mlp")),
        _attention(f"{_REFINER}.self_attn.qkv", f"{_THEIR_REFINER}.attn"),
    ]),
    "double_blocks.#.img_attn.proj": ("transformer_blocks.#.attn.to_out.0",),
    "double_blocks.#.txt_attn.proj": ("transformer_blocks.#.attn.to_add_out",),
    "double_blocks.#.img_attn.norm.query_norm": ("transformer_blocks.#.attn.norm_q",),
    "double_blocks.#.img_attn.norm.key_norm": ("transformer_blocks.#.attn.norm_k",),
    "double_blocks.#.txt_attn.norm.query_norm": ("transformer_blocks.#.attn.norm_added_q",),
    "double_blocks.#.txt_attn.norm.key_norm": ("transformer_blocks.#.attn.norm_added_k",),
    "double_blocks.#.img_mlp.0": ("transformer_blocks.#.ff.net.0.proj",),
    "double_blocks.#.img_mlp.2": ("transformer_blocks.#.ff.net.2",),
    "double_blocks.#.txt_mlp.0": ("transformer_blocks.#.ff_context.net.0.proj",),
    "double_blocks.#.txt_mlp.2": ("transformer_blocks.#.ff_context.net.2",),
    "single_blocks.#.linear2": ("single_transformer_blocks.#.proj_out",),
    "single_blocks.#.modulation.lin": ("single_transformer_blocks.#.norm.linear",),
    "single_blocks.#.norm.query_norm": ("single_transformer_blocks.#.attn.norm_q",),
    "single_blocks.#.norm.key_norm": ("single_transformer_blocks.#.attn.norm_k",),
    "img_in.proj": ("x_embedder.proj",),
    "txt_in.input_embedder": ("context_embedder.proj_in",),
    **{f"{ours}.{side}_layer": (f"{theirs}.linear_{i}",)
       for ours, theirs in _EMBEDDERS.items() for i, side in ((1, "in"), (2, "out"))},
    f"{_REFINER}.adaLN_modulation.1": (f"{_THEIR_REFINER}.norm_out.linear",),
    f"{_REFINER}.self_attn.proj": (f"{_THEIR_REFINER}.attn.to_out.0",),
    f"{_REFINER}.mlp.0": (f"{_THEIR_REFINER}.ff.net.0.proj",),
    f"{_REFINER}.mlp.2": (f"{_THEIR_REFINER}.ff.net.2",),
    f"{_REFINER}.norm1": (f"{_THEIR_REFINER}.norm1",),
    f"{_REFINER}.norm2": (f"{_THEIR_REFINER}.norm2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("~norm_out.linear",),
}  # fmt: skip
_MOCHI: dict[str, tuple[str, ...]] = {
    "blocks.#.mod_x": ("transformer_blocks.#.norm1.linear",),
    "blocks.#.mod_y": ("transformer_blocks.#.norm1_context.linear|transformer_blocks.#.norm1_context.linear_1",),
    **dict([
        _attention("blocks.#.attn.qkv_x", "transformer_blocks.#.attn1"),
        _attention("blocks.#.attn.qkv_y", "transformer_blocks.#.attn1", _ADDED),
    ]),
    "blocks.#.attn.q_norm_x": ("transformer_blocks.#.attn1.norm_q",),
    "blocks.#.attn.k_norm_x": ("transformer_blocks.#.attn1.norm_k",),
    "blocks.#.attn.q_norm_y": ("transformer_blocks.#.attn1.norm_added_q",),
    "blocks.#.attn.k_norm_y": ("transformer_blocks.#.attn1.norm_added_k",),
    "blocks.#.attn.proj_x": ("transformer_blocks.#.attn1.to_out.0",),
    "blocks.#.attn.proj_y": ("transformer_blocks.#.attn1.to_add_out",),
    "blocks.#.mlp_x.w1": ("~transformer_blocks.#.ff.net.0.proj",),
    "blocks.#.mlp_x.w2": ("transformer_blocks.#.ff.net.2",),
    "blocks.#.mlp_y.w1": ("~transformer_blocks.#.ff_context.net.0.proj",),
    "blocks.#.mlp_y.w2": ("transformer_blocks.#.ff_context.net.2",),
    "x_embedder.proj": ("patch_embed.proj",),
    "t_embedder.mlp.0": ("time_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_embed.timestep_embedder.linear_2",),
    **{f"t5_y_embedder.{n}": (f"time_embed.pooler.{n}",) for n in ("to_kv", "to_q", "to_out")},
    "t5_yproj": ("time_embed.caption_proj",),
    "final_layer.linear": ("proj_out",),
    "final_layer.mod": ("~norm_out.linear",),
}  # fmt: skip
_LTXV_WORDS = {"patchify_proj": "proj_in", "adaln_single": "time_embed", "q_norm": "norm_q", "k_norm": "norm_k"}
_TABLES = {"wan": _WAN, "hunyuan-video": _HUNYUAN, "mochi": _MOCHI}


def extra_targets(family: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Target]:
    """Canonical diffusers name to target, for the families the host does not map.

    Args:
        family: ``wan``, ``hunyuan-video``, ``mochi`` or ``ltxv``; others have nothing to add.
        shapes: state dict name of every weight (``diffusion_model.*``) to its shape.
    """
    targets: dict[str, Target] = {}
    for weight, shape in shapes.items() if family in (*_TABLES, "ltxv") else ():
        if not weight.startswith("diffusion_model.") or not weight.endswith(".weight"):
            continue
        native = weight.removeprefix("diffusion_model.").removesuffix(".weight")
        for name, rows, swap in _their_names(family, native, shape):
            targets |= {canonical(spelling): Target(weight, rows, swap) for spelling in name.split("|")}
    return targets


def _their_names(family: str, native: str, shape: Sequence[int]) -> list[tuple[str, tuple[int, int] | None, bool]]:
    if family == "ltxv":
        words = [_LTXV_WORDS.get(word, word) for word in native.split(".")]
        return [(".".join(words), None, False)]
    block = re.search(r"\.(\d+)\.", native)
    pattern = native if block is None else f"{native[: block.start()]}.#.{native[block.end() :]}"
    table = _TABLES.get(family, {})
    names = table.get(pattern) or table.get(native, ())
    number = block[1] if block else ""
    rows = _split_rows(len(names), shape)
    return [(n.lstrip("~").replace("#", number), r, n.startswith("~")) for n, r in zip(names, rows, strict=True)]


def _split_rows(count: int, shape: Sequence[int]) -> list[tuple[int, int] | None]:
    """Rows of q, k and v, one third each, or as wide as the input where the rest (an mlp) follows."""
    if count <= 1:
        return [None] * count
    third = shape[0] // 3 if count == 3 else shape[1]
    rest = [(3 * third, shape[0] - 3 * third)] * (count - 3)
    return [*((i * third, third) for i in range(3)), *rest]


def native_name(family: str, name: str) -> str:
    """The native spelling of a dotted diffusers name, where one weight has one name; else the name as it is."""
    block = re.search(r"\.(\d+)\.", name)
    pattern = name if block is None else f"{name[: block.start()]}.#.{name[block.end() :]}"
    plain = {theirs[0]: ours for ours, theirs in _TABLES.get(family, {}).items() if len(theirs) == 1}
    return plain.get(pattern, pattern).replace("#", block[1] if block else "")
