"""Names of diffusers' models for which the host has no key map, as rules on the host's native names.

Checked against diffusers' own model classes (tests/reference/test_lora_names.py): every weight of theirs is found in
the native layout. ``#`` stands for a block number. Several names for one weight split its rows in that order (a fused
qkv); ``~`` means that the halves of the rows are exchanged between the two layouts; ``|`` separates alternative names.
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
    "patch_embedding": ("patch_embedding",),
    "img_emb.proj.0": ("condition_embedder.image_embedder.norm1",),
    "img_emb.proj.4": ("condition_embedder.image_embedder.norm2",),
    "blocks.#.modulation": ("blocks.#.scale_shift_table",),
    "head.modulation": ("scale_shift_table",),
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
_HUNYUAN_15 = _HUNYUAN | {
    "time_in.in_layer": ("time_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_embed.timestep_embedder.linear_2",),
    "time_r_in.in_layer": ("time_embed.timestep_embedder_r.linear_1",),
    "time_r_in.out_layer": ("time_embed.timestep_embedder_r.linear_2",),
    **{f"byt5_in.fc{i}": (f"context_embedder_2.linear_{i}",) for i in (1, 2, 3)},
    "byt5_in.layernorm": ("context_embedder_2.norm",),
    "vision_in.proj.0": ("image_embedder.norm_in",),
    "vision_in.proj.1": ("image_embedder.linear_1",),
    "vision_in.proj.3": ("image_embedder.linear_2",),
    "vision_in.proj.4": ("image_embedder.norm_out",),
    "cond_type_embedding": ("cond_type_embed",),
}  # fmt: skip
_FLUX_2: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    **{f"{ours}.{side}_layer": (f"time_guidance_embed.{theirs}_embedder.linear_{i}",)
       for ours, theirs in (("time_in", "timestep"), ("guidance_in", "guidance"))
       for i, side in ((1, "in"), (2, "out"))},
    **{f"{n}.lin": (f"{n}.linear",)
       for n in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")},
    **dict([
        _attention("double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn"),
        _attention("double_blocks.#.txt_attn.qkv", "transformer_blocks.#.attn", _ADDED),
    ]),
    "double_blocks.#.img_attn.proj": ("transformer_blocks.#.attn.to_out.0",),
    "double_blocks.#.txt_attn.proj": ("transformer_blocks.#.attn.to_add_out",),
    "double_blocks.#.img_attn.norm.query_norm": ("transformer_blocks.#.attn.norm_q",),
    "double_blocks.#.img_attn.norm.key_norm": ("transformer_blocks.#.attn.norm_k",),
    "double_blocks.#.txt_attn.norm.query_norm": ("transformer_blocks.#.attn.norm_added_q",),
    "double_blocks.#.txt_attn.norm.key_norm": ("transformer_blocks.#.attn.norm_added_k",),
    "double_blocks.#.img_mlp.0": ("transformer_blocks.#.ff.linear_in",),
    "double_blocks.#.img_mlp.2": ("transformer_blocks.#.ff.linear_out",),
    "double_blocks.#.txt_mlp.0": ("transformer_blocks.#.ff_context.linear_in",),
    "double_blocks.#.txt_mlp.2": ("transformer_blocks.#.ff_context.linear_out",),
    "single_blocks.#.linear1": ("single_transformer_blocks.#.attn.to_qkv_mlp_proj",),
    "single_blocks.#.linear2": ("single_transformer_blocks.#.attn.to_out",),
    "single_blocks.#.norm.query_norm": ("single_transformer_blocks.#.attn.norm_q",),
    "single_blocks.#.norm.key_norm": ("single_transformer_blocks.#.attn.norm_k",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("~norm_out.linear",),
}  # fmt: skip
_MINIMAX: dict[str, tuple[str, ...]] = {
    "time_embedder.proj_in": ("time_embedder.linear_1",),
    "time_embedder.proj_out": ("time_embedder.linear_2",),
    "video_patch_proj": ("proj_in",),
    "audio_patch_proj": ("audio_proj_in",),
    "condition_proj": ("context_embedder",),
    "final_layer.norm": ("norm_out.norm",),
    "final_layer.adaln_proj.linear": ("norm_out.linear",),
    "final_layer.video_out": ("proj_out",),
    "final_layer.audio_out": ("audio_proj_out",),
    **{f"{ours}.{name}": tuple(f"{theirs}.{word}" for word in words)
       for ours, theirs in (("blocks.#", "transformer_blocks.#"),
                            ("token_refiner.blocks.#", "token_refiner.refiner_blocks.#"))
       for name, words in (
           ("attn.qkv_proj", _ATTN_QKV), ("attn.out_proj", ("attn.to_out.0",)), ("attn.q_norm", ("attn.norm_q",)),
           ("attn.k_norm", ("attn.norm_k",)), ("mlp.fc2", ("ff.net.2",)), ("norm1", ("norm1",)), ("norm2", ("norm2",)),
           ("adaln_proj.linear", ("adaln_proj.linear",)))},
    "blocks.#.mlp.fc1": ("~transformer_blocks.#.ff.net.0.proj",),
    "token_refiner.blocks.#.mlp.fc1": ("~token_refiner.refiner_blocks.#.ff.net.0.proj",),
}  # fmt: skip
_COGVIDEOX: dict[str, tuple[str, ...]] = {
    **{f"blocks.#.{n}": (f"transformer_blocks.#.attn1.to_{n}",) for n in "qkv"},
    "blocks.#.attn_out": ("transformer_blocks.#.attn1.to_out.0",),
    **{f"blocks.#.norm_{n}": (f"transformer_blocks.#.attn1.norm_{n}",) for n in "qk"},
    **{f"blocks.#.{n}": (f"transformer_blocks.#.{n}",)
       for n in ("norm1.linear", "norm1.norm", "norm2.linear", "norm2.norm")},
    "blocks.#.ff_proj": ("transformer_blocks.#.ff.net.0.proj",),
    "blocks.#.ff_out": ("transformer_blocks.#.ff.net.2",),
    **{f"time_embedding_linear_{i}": (f"time_embedding.linear_{i}",) for i in (1, 2)},
}  # fmt: skip
# Families of one name each, word by word.
_WORDS = {
    "ltxv": {"patchify_proj": "proj_in", "adaln_single": "time_embed", "q_norm": "norm_q", "k_norm": "norm_k"},
    "ltx-2": {
        "patchify_proj": "proj_in", "audio_patchify_proj": "audio_proj_in", "adaln_single": "time_embed",
        "audio_adaln_single": "audio_time_embed", "q_norm": "norm_q", "k_norm": "norm_k",
        "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
        "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
        "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
        "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
        "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
        "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
        "video_embeddings_connector": "video_connector", "audio_embeddings_connector": "audio_connector",
        "transformer_1d_blocks": "transformer_blocks",
    },
}  # fmt: skip
_TABLES = {"wan": _WAN, "hunyuan-video": _HUNYUAN, "hunyuan-video-1.5": _HUNYUAN_15, "flux2": _FLUX_2,
           "mochi": _MOCHI, "minimax-h3": _MINIMAX, "cogvideox": _COGVIDEOX}  # fmt: skip


def extra_targets(base_model: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Target]:
    """Canonical diffusers name to target, for base models that the host maps incompletely or not at all.

    Args:
        base_model: a key of ``_TABLES`` or ``_WORDS``; others have nothing to add.
        shapes: state dict name of every weight (``diffusion_model.*``) to its shape.
    """
    targets: dict[str, Target] = {}
    for weight, shape in shapes.items() if base_model in (*_TABLES, *_WORDS) else ():
        if not weight.startswith("diffusion_model.") or weight.endswith(".bias"):
            continue
        native = weight.removeprefix("diffusion_model.").removesuffix(".weight")
        for name, rows, swap in _their_names(base_model, native, shape):
            targets |= {canonical(spelling): Target(weight, rows, swap) for spelling in name.split("|")}
    return targets


def _their_names(base_model: str, native: str, shape: Sequence[int]) -> list[tuple[str, tuple[int, int] | None, bool]]:
    if base_model in _WORDS:
        words = [_WORDS[base_model].get(word, word) for word in native.split(".")]
        return [(".".join(words), None, False)]
    block = re.search(r"\.(\d+)\.", native) or re.search(r"\.(\d+)$", native)
    pattern = native if block is None else f"{native[: block.start()]}.#{native[block.end(1) :]}"
    table = _TABLES[base_model]
    names = table.get(pattern) or table.get(native, ())
    number = block[1] if block else ""
    rows = _split_rows(len(names), shape)
    return [(n.lstrip("~").replace("#", number), r, n.startswith("~")) for n, r in zip(names, rows, strict=True)]


def _split_rows(count: int, shape: Sequence[int]) -> list[tuple[int, int] | None]:
    """Rows of q, k and v: one third each, or as many as the input is wide if further rows (an MLP) follow."""
    if count <= 1:
        return [None] * count
    third = shape[0] // 3 if count == 3 else shape[1]
    rest = [(3 * third, shape[0] - 3 * third)] * (count - 3)
    return [*((i * third, third) for i in range(3)), *rest]


def native_name(base_model: str, name: str) -> str:
    """The native form of a dotted diffusers name, if the weight has a single name; else the name unchanged."""
    block = re.search(r"\.(\d+)\.", name)
    pattern = name if block is None else f"{name[: block.start()]}.#.{name[block.end() :]}"
    plain = {theirs[0]: ours for ours, theirs in _TABLES.get(base_model, {}).items() if len(theirs) == 1}
    return plain.get(pattern, pattern).replace("#", block[1] if block else "")
