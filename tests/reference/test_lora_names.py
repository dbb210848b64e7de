"""``lora_names`` against diffusers: every weight of its video models, through its own converters from native names."""

from __future__ import annotations

import pytest
import torch

from pcm_core.lora.diffusers_names import extra_targets
from pcm_core.lora.keys import canonical

utils = pytest.importorskip("diffusers.loaders.single_file_utils")

WIDTH = 6


def wan():
    """Native names and shapes, as in Wan's repository."""
    shapes = {"patch_embedding": (WIDTH, 4, 1, 2, 2), "head.head": (8, WIDTH), "time_projection.1": (6 * WIDTH, WIDTH)}
    shapes |= {f"{kind}_embedding.{i}": (WIDTH, WIDTH) for kind in ("text", "time") for i in (0, 2)}
    for block in range(2):
        shapes |= {f"blocks.{block}.{a}_attn.{n}": (WIDTH, WIDTH) for a in ("self", "cross") for n in "qkvo"}
        shapes |= {f"blocks.{block}.ffn.0": (4 * WIDTH, WIDTH), f"blocks.{block}.ffn.2": (WIDTH, 4 * WIDTH)}
        shapes |= {f"blocks.{block}.cross_attn.{n}_img": (WIDTH, WIDTH) for n in "kv"}
    return shapes | {"img_emb.proj.1": (WIDTH, WIDTH), "img_emb.proj.3": (WIDTH, WIDTH)}


def hunyuan():
    """Native names as in the host; the original repository uses other separators in some of them."""
    w, mlp = WIDTH, 4 * WIDTH
    shapes = {"img_in.proj": (w, 4, 1, 2, 2), "txt_in.input_embedder": (w, 5), "final_layer.linear": (8, w)}
    shapes["final_layer.adaLN_modulation.1"] = (2 * w, w)
    for n in ("time_in", "vector_in", "guidance_in", "txt_in.t_embedder", "txt_in.c_embedder"):
        shapes |= {f"{n}.{side}_layer": (w, w) for side in ("in", "out")}
    for i in range(2):
        for side in ("img", "txt"):
            block = f"double_blocks.{i}.{side}"
            shapes |= {f"{block}_mod.lin": (6 * w, w), f"{block}_attn.qkv": (3 * w, w), f"{block}_attn.proj": (w, w)}
            shapes |= {f"{block}_mlp.0": (mlp, w), f"{block}_mlp.2": (w, mlp)}
        single = f"single_blocks.{i}"
        # The converter has the width 3072 built in.
        shapes |= {f"{single}.linear1": (3 * 3072 + mlp, 3072), f"{single}.linear2": (w, w + mlp)}
        shapes[f"{single}.modulation.lin"] = (3 * w, w)
        refiner = f"txt_in.individual_token_refiner.blocks.{i}"
        shapes |= {f"{refiner}.self_attn.qkv": (3 * w, w), f"{refiner}.self_attn.proj": (w, w)}
        shapes |= {
            f"{refiner}.mlp.0": (mlp, w),
            f"{refiner}.mlp.2": (w, mlp),
            f"{refiner}.adaLN_modulation.1": (2 * w, w),
        }
    return shapes


_ORIGINAL = (
    ("_mod.lin", "_mod.linear"), ("modulation.lin", "modulation.linear"), ("_attn.qkv", "_attn_qkv"),
    ("_attn.proj", "_attn_proj"), ("_mlp.0", "_mlp.fc1"), ("_mlp.2", "_mlp.fc2"), (".mlp.0", ".mlp.fc1"),
    (".mlp.2", ".mlp.fc2"),
)  # fmt: skip


def original_hunyuan(name):
    """The spelling of the HunyuanVideo repository, which diffusers converts from."""
    for ours, theirs in _ORIGINAL:
        name = name.replace(ours, theirs)
    if name.startswith("txt_in.c_embedder"):
        return name.replace("in_layer", "linear_1").replace("out_layer", "linear_2")
    if "_in." in name or "t_embedder" in name:
        embedder = name.startswith(("time_in", "guidance_in", "txt_in.t_embedder"))
        name = name.replace("in_layer", "mlp.0").replace("out_layer", "mlp.2") if embedder else name
    return name


def mochi():
    w, mlp = WIDTH, 4 * WIDTH
    shapes = {
        "x_embedder.proj": (w, 4, 2, 2),
        "final_layer.linear": (8, w),
        "final_layer.mod": (2 * w, w),
        "t5_yproj": (w, 5),
    }
    shapes |= {"t_embedder.mlp.0": (w, w), "t_embedder.mlp.2": (w, w)}
    shapes |= {f"t5_y_embedder.{n}": (w, w) for n in ("to_kv", "to_q", "to_out")}
    for i in range(48):  # the converter has the depth built in
        block = f"blocks.{i}"
        last = i == 47
        shapes |= {f"{block}.mod_x": (4 * w, w), f"{block}.mod_y": (w if last else 4 * w, w)}
        shapes |= {f"{block}.attn.qkv_{s}": (3 * w, w) for s in "xy"}
        for side in "x" if last else "xy":
            shapes |= {f"{block}.attn.proj_{side}": (w, w)}
            shapes |= {f"{block}.mlp_{side}.w1": (2 * mlp, w), f"{block}.mlp_{side}.w2": (w, mlp)}
    return shapes


def ltxv():
    w = WIDTH
    shapes = {"patchify_proj": (w, 8), "proj_out": (8, w), "adaln_single.linear": (6 * w, w)}
    shapes |= {f"adaln_single.emb.timestep_embedder.linear_{i}": (w, w) for i in (1, 2)}
    shapes |= {f"caption_projection.linear_{i}": (w, w) for i in (1, 2)}
    for a in ("attn1", "attn2"):
        shapes |= {f"transformer_blocks.0.{a}.{n}": (w, w) for n in ("to_q", "to_k", "to_v", "to_out.0")}
    return shapes | {"transformer_blocks.0.ff.net.0.proj": (4 * w, w), "transformer_blocks.0.ff.net.2": (w, 4 * w)}


def flux2():
    w, shapes = WIDTH, {"img_in": (WIDTH, 4), "txt_in": (WIDTH, 5), "final_layer.linear": (8, WIDTH)}
    shapes |= {f"{n}.{side}_layer": (w, w) for n in ("time_in", "guidance_in") for side in ("in", "out")}
    shapes |= {f"double_stream_modulation_{n}.lin": (6 * w, w) for n in ("img", "txt")}
    shapes |= {"single_stream_modulation.lin": (3 * w, w), "final_layer.adaLN_modulation.1": (2 * w, w)}
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        shapes |= {f"{block}_attn.qkv": (3 * w, w), f"{block}_attn.proj": (w, w)}
        shapes |= {f"{block}_mlp.0": (6 * w, w), f"{block}_mlp.2": (w, 3 * w)}
    return shapes | {"single_blocks.0.linear1": (9 * w, w), "single_blocks.0.linear2": (w, 4 * w)}


def minimax():
    w, shapes = WIDTH, {"video_patch_proj": (WIDTH, 4), "audio_patch_proj": (WIDTH, 5), "condition_proj": (WIDTH, 7)}
    shapes |= {f"time_embedder.proj_{side}": (w, w) for side in ("in", "out")}
    for block in ("blocks.0", "token_refiner.blocks.1"):
        shapes |= {f"{block}.attn.qkv_proj": (3 * w, w), f"{block}.attn.out_proj": (w, w)}
        shapes |= {f"{block}.mlp.fc1": (4 * w, w), f"{block}.mlp.fc2": (w, 2 * w)}
    shapes |= {"blocks.0.adaln_proj.linear": (12 * w, w), "final_layer.adaln_proj.linear": (4 * w, w)}
    return shapes | {"final_layer.video_out": (8, w), "final_layer.audio_out": (9, w)}


def ltx2():
    w, shapes = WIDTH, {}
    for side in ("", "audio_"):
        shapes |= {f"{side}patchify_proj": (w, 8), f"{side}proj_out": (8, w), f"{side}adaln_single.linear": (6 * w, w)}
        shapes |= {f"{side}caption_projection.linear_{i}": (w, w) for i in (1, 2)}
        shapes |= {f"transformer_blocks.0.{side}attn{i}.{n}": (w, w) for i in (1, 2) for n in ("to_q", "to_out.0")}
        shapes[f"transformer_blocks.0.{side}ff.net.0.proj"] = (4 * w, w)
    shapes |= {f"av_ca_{n}_adaln_single.linear": (4 * w, w)
               for n in ("video_scale_shift", "audio_scale_shift", "a2v_gate", "v2a_gate")}  # fmt: skip
    return shapes | {f"transformer_blocks.0.{n}.to_k": (w, w) for n in ("audio_to_video_attn", "video_to_audio_attn")}


FAMILIES = {
    "flux2": (flux2, "convert_flux2_transformer_checkpoint_to_diffusers", str),
    "minimax-h3": (minimax, "convert_minimax_h3_transformer_checkpoint_to_diffusers", str),
    "ltx-2": (ltx2, "convert_ltx2_transformer_to_diffusers", str),
    "wan": (wan, "convert_wan_transformer_to_diffusers", str),
    "hunyuan-video": (hunyuan, "convert_hunyuan_video_transformer_to_diffusers", original_hunyuan),
    "mochi": (mochi, "convert_mochi_transformer_checkpoint_to_diffusers", str),
    "ltxv": (ltxv, "convert_ltx_transformer_checkpoint_to_diffusers", str),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_lands_where_diffusers_takes_it_from(family):
    names, converter, spell = FAMILIES[family]
    generator = torch.Generator().manual_seed(0)
    # Rows differ, columns repeat: the wide ones cost no memory.
    weights = {n: torch.randn(s[0], *[1] * (len(s) - 1), generator=generator).expand(s) for n, s in names().items()}
    original = {f"{spell(name)}.weight": value for name, value in weights.items()}
    if family == "mochi":
        for i in range(48):  # norms and biases the converter insists on
            for n in ("q_norm_x", "k_norm_x", "q_norm_y", "k_norm_y"):
                original[f"blocks.{i}.attn.{n}.weight"] = torch.ones(2)
        original["pos_frequencies"] = torch.ones(3)
    extra = {}
    for key in list(original):
        if key.endswith("weight") and original[key].ndim > 1:
            extra[key.removesuffix("weight") + "bias"] = torch.zeros(original[key].shape[0])
    options = {"config": {}} if family == "minimax-h3" else {}
    converted = getattr(utils, converter)({**original, **extra}, **options)
    targets = extra_targets(family, {f"diffusion_model.{n}.weight": tuple(w.shape) for n, w in weights.items()})
    checked = 0
    for key, theirs in converted.items():
        if not key.endswith(".weight") or theirs.ndim < 2:
            continue
        name = canonical(key.removesuffix(".weight"))
        target = targets.get(name)
        if target is None:  # the same name in both layouts
            ours = next(w for n, w in weights.items() if canonical(n) == name)
        else:
            ours = weights[target.weight.removeprefix("diffusion_model.").removesuffix(".weight")]
            ours = ours if target.rows is None else ours.narrow(0, *target.rows)
            ours = torch.cat(ours.chunk(2)[::-1]) if target.swap else ours
        assert torch.equal(ours, theirs), key
        checked += 1
    assert checked >= len(weights)
