"""Every spelling of every family loads completely, and the patched weight is W + strength * alpha / rank * B A."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

RANK, ALPHA, STRENGTH = 3, 1.5, 0.7
UNETS, DITS = ("sd15", "sdxl", "eps", "v"), ("sd3", "flux", "wan", "hunyuan_video", "ltxv", "mochi")
# Each is taken as one of the above; every spelling of every one of them takes a minute.
MORE = ("wan22", "ltx2", "cogvideo", "auraflow", "z_image", "qwen_image", "flux_schnell", "flux2", "hunyuan_video15",
        "ernie_image", "krea2")  # fmt: skip
DOWN_UP = {
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "default": (".lora_A.default.weight", ".lora_B.default.weight"),
    "diffusers": (".lora.down.weight", ".lora.up.weight"),
    "processor": ("_lora.down.weight", "_lora.up.weight"),
    "bare": (".lora_A", ".lora_B"),
}


def native_modules(model):
    """Matrices and convolutions of a model, by dotted native name without the prefix."""
    state = model.model.state_dict()
    names = [key for key, value in state.items() if key.startswith("diffusion_model.") and value.ndim > 1]
    return {
        key.removeprefix("diffusion_model.").removesuffix(".weight"): key for key in names if key.endswith("weight")
    }


def theirs(model):
    """diffusers name to what the host's own converters say it means: a key, or a key with rows and a function."""
    import comfy.model_base
    import comfy.utils

    config = model.model.model_config.unet_config
    if isinstance(model.model, comfy.model_base.SD3):
        found = comfy.utils.mmdit_to_diffusers(config, output_prefix="diffusion_model.")
    elif isinstance(model.model, comfy.model_base.Flux):
        found = comfy.utils.flux_to_diffusers(config, output_prefix="diffusion_model.")
    elif isinstance(model.model, comfy.model_base.AuraFlow):
        found = comfy.utils.auraflow_to_diffusers(config, output_prefix="diffusion_model.")
    elif isinstance(model.model, comfy.model_base.Lumina2):
        found = comfy.utils.z_image_to_diffusers(config, output_prefix="diffusion_model.")
    else:
        found = {k: f"diffusion_model.{v}" for k, v in comfy.utils.unet_to_diffusers(config).items()}
    keys = {
        k.removesuffix(".weight"): v if isinstance(v, tuple) else (v,)
        for k, v in found.items()
        if k.endswith(".weight")
    }
    state, single = model.model.state_dict(), {}
    for name, target in keys.items():  # the host knows two names for a few weights; no file uses both
        if target[0] in state and state[target[0]].ndim > 1 and not name.endswith("to_qkv_mlp_proj"):
            single.setdefault((target[0], target[1] if len(target) > 1 else None), name)
    return {name: keys[name] for name in single.values()}


def pair(shape, generator, rank=RANK):
    """down and up for a weight of that shape, scaled so that the update is as large as the weight."""
    down = torch.randn(rank, *shape[1:], generator=generator)
    up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) * 0.05
    return down, up


def delta(down, up, shape, scale):
    return ((up.flatten(1) @ down.flatten(1)) * scale).reshape(shape)


def patched_weight(host, model, key):
    """The weight after the host's own patching, and before it, fp32 on the CPU."""
    import comfy.lora

    weight = model.model.state_dict()[key].float().cpu()
    return comfy.lora.calculate_weight(model.patches.get(key, []), weight.clone(), key), weight


def write(host, sd, name="a_lora.safetensors", metadata=None):
    folder = host.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(sd, folder / name, metadata=metadata)
    return name


def make(shapes, spell, style, dtype=torch.float32, alpha=True, seed=0):
    """A LoRA file for ``{name: shape}`` and the update of every name at strength 1."""
    generator = torch.Generator().manual_seed(seed)
    sd, deltas = {}, {}
    for name, shape in shapes.items():
        down, up = (t.to(dtype) for t in pair(shape, generator))
        stem = spell(name)
        a, b = DOWN_UP[style]
        sd[stem + a], sd[stem + b] = down, up
        if alpha:
            sd[f"{stem}.alpha"] = torch.tensor(ALPHA)
        deltas[name] = delta(down.float(), up.float(), shape, ALPHA / RANK if alpha else 1.0)
    return sd, deltas


def load_and_compare(host, model, sd, expected, **options):
    """Load through the node; every expected weight (key to update) must come out to 1e-6 of its scale, and no other."""
    loaded, report, *_ = host.call(
        "PCMLoraLoader", model=model, lora_name=write(host, sd), strength=STRENGTH, allow_partial=False, **options
    )
    assert f"tensors: {len(sd)} of {len(sd)} applied" in report, report
    assert set(loaded.patches) == set(expected)
    for key, update in expected.items():
        after, before = patched_weight(host, loaded, key)
        want = before + STRENGTH * update
        assert torch.allclose(after, want, rtol=0, atol=1e-6 * max(1.0, float(want.abs().max()))), key
    return report


SPELLINGS = {
    "diffusion_model": lambda n: f"diffusion_model.{n}",
    "lora_unet": lambda n: "lora_unet_" + n.replace(".", "_"),
    "bare": lambda n: n,
    "transformer": lambda n: f"transformer.{n}",
    "peft": lambda n: f"base_model.model.{n}",
    "unet_peft": lambda n: f"unet.base_model.model.{n}",
    "unet": lambda n: f"unet.{n}",
    "model": lambda n: f"model.diffusion_model.{n}",
    "peft_model": lambda n: f"base_model.model.diffusion_model.{n}",
    "lycoris": lambda n: "lycoris_" + n.replace(".", "_"),
}
STYLE_OF = {"lora_unet": "kohya", "bare": "bare", "peft": "default", "unet": "diffusers", "lycoris": "kohya"}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("family", [*UNETS, *DITS, *(pytest.param(name, marks=pytest.mark.long) for name in MORE)])
def test_native_names(host, zoo, family, spelling):
    model = zoo[family].model
    modules = native_modules(model)
    state = model.model.state_dict()
    shapes = {name: tuple(state[key].shape) for name, key in modules.items()}
    sd, deltas = make(shapes, SPELLINGS[spelling], STYLE_OF.get(spelling, "peft"))
    load_and_compare(host, model, sd, {modules[name]: update for name, update in deltas.items()})


def processor(name):
    head, _, tail = name.rpartition(".to_")
    return f"unet.{head}.processor.to_{'out' if tail == 'out.0' else tail}" if head else f"unet.{name}"


THEIR_SPELLINGS = {
    "kohya": (lambda n: "lora_unet_" + n.replace(".", "_"), "kohya"),
    "peft": (lambda n: f"base_model.model.{n}", "peft"),
    "unet_peft": (lambda n: f"unet.base_model.model.{n}", "default"),
    "unet": (lambda n: f"unet.{n}", "peft"),
    "transformer": (lambda n: f"transformer.{n}", "peft"),
    "bare": (lambda n: n, "kohya"),
    "onetrainer": (lambda n: "lora_transformer_" + n.replace(".", "_"), "kohya"),
    "processor": (processor, "processor"),
}


THEIR_MORE = ("flux_schnell", "auraflow", "z_image")


@pytest.mark.parametrize("spelling", THEIR_SPELLINGS)
@pytest.mark.parametrize(
    "family", [*UNETS, "sd3", "flux", *(pytest.param(name, marks=pytest.mark.long) for name in THEIR_MORE)]
)
def test_diffusers_names(host, zoo, family, spelling):
    names = theirs(zoo[family].model)
    assert len(names) > 10
    check_their_names(host, zoo[family].model, names, spelling)


def check_their_names(host, model, names, spelling):
    """A file with an update under every one of diffusers' ``names``, as ``theirs`` gives them, loads as computed."""
    state, shapes = model.model.state_dict(), {}
    for name, (key, *rest) in names.items():
        shape = tuple(state[key].shape)
        shapes[name] = (rest[0][2], *shape[1:]) if rest and rest[0] else shape
    spell, style = THEIR_SPELLINGS[spelling]
    sd, deltas = make(shapes, spell, style)
    expected = {}
    for name, (key, *rest) in names.items():
        update = deltas[name] if len(rest) < 2 else rest[1](deltas[name])
        if rest and rest[0]:
            whole = expected.setdefault(key, torch.zeros(state[key].shape))
            whole.narrow(*rest[0]).add_(update)
        else:
            expected[key] = update
    load_and_compare(host, model, sd, expected)


def fused(native, theirs, parts=("to_q", "to_k", "to_v")):
    """Names of diffusers for equal parts of the rows of one weight, in their order."""
    return {f"{theirs}.{part}": (native, i, len(parts)) for i, part in enumerate(parts)}


ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
# diffusers' name of a weight in block 0, by hand from its model classes: a native name, which part of how many equal
# parts of its rows, and whether the halves are exchanged. Every name of them: tests/reference/test_lora_names.py.
VIDEO_NAMES = {
    "wan": {
        **{f"blocks.0.attn1.to_{p}": (f"blocks.0.self_attn.{p}",) for p in "qkv"},
        **{f"blocks.0.attn2.to_{p}": (f"blocks.0.cross_attn.{p}",) for p in "qkv"},
        "blocks.0.attn1.to_out.0": ("blocks.0.self_attn.o",), "blocks.0.attn2.to_out.0": ("blocks.0.cross_attn.o",),
        "blocks.0.ffn.net.0.proj": ("blocks.0.ffn.0",), "blocks.0.ffn.net.2": ("blocks.0.ffn.2",),
        "condition_embedder.time_proj": ("time_projection.1",),
        "condition_embedder.text_embedder.linear_1": ("text_embedding.0",), "proj_out": ("head.head",),
    },
    "hunyuan_video": {
        **fused("double_blocks.0.img_attn.qkv", "transformer_blocks.0.attn"),
        **fused("double_blocks.0.txt_attn.qkv", "transformer_blocks.0.attn", ADDED),
        "transformer_blocks.0.attn.to_out.0": ("double_blocks.0.img_attn.proj",),
        "transformer_blocks.0.attn.to_add_out": ("double_blocks.0.txt_attn.proj",),
        "transformer_blocks.0.ff.net.0.proj": ("double_blocks.0.img_mlp.0",),
        "transformer_blocks.0.ff_context.net.2": ("double_blocks.0.txt_mlp.2",),
        "transformer_blocks.0.norm1.linear": ("double_blocks.0.img_mod.lin",),
        **{f"single_transformer_blocks.0.attn.to_{p}": ("single_blocks.0.linear1", i, 7) for i, p in enumerate("qkv")},
        "single_transformer_blocks.0.proj_mlp": ("single_blocks.0.linear1", slice(3, 7), 7),  # mlp_ratio 4
        "single_transformer_blocks.0.proj_out": ("single_blocks.0.linear2",),
        **fused("txt_in.individual_token_refiner.blocks.0.self_attn.qkv",
                "context_embedder.token_refiner.refiner_blocks.0.attn"),
        "norm_out.linear": ("final_layer.adaLN_modulation.1", 0, 1, "swap"), "proj_out": ("final_layer.linear",),
    },
    "mochi": {
        **fused("blocks.0.attn.qkv_x", "transformer_blocks.0.attn1"),
        **fused("blocks.0.attn.qkv_y", "transformer_blocks.0.attn1", ADDED),
        "transformer_blocks.0.attn1.to_out.0": ("blocks.0.attn.proj_x",),
        "transformer_blocks.0.attn1.to_add_out": ("blocks.0.attn.proj_y",),
        "transformer_blocks.0.norm1_context.linear": ("blocks.0.mod_y",),
        "transformer_blocks.0.ff.net.0.proj": ("blocks.0.mlp_x.w1", 0, 1, "swap"),
        "transformer_blocks.0.ff.net.2": ("blocks.0.mlp_x.w2",),
        "time_embed.caption_proj": ("t5_yproj",), "norm_out.linear": ("final_layer.mod", 0, 1, "swap"),
    },
    "ltxv": {
        **{f"transformer_blocks.0.attn{i}.to_{p}": (f"transformer_blocks.0.attn{i}.to_{p}",)
           for i in (1, 2) for p in ("q", "k", "v", "out.0")},
        "transformer_blocks.0.ff.net.0.proj": ("transformer_blocks.0.ff.net.0.proj",),
        "proj_in": ("patchify_proj",), "time_embed.linear": ("adaln_single.linear",),
    },
}  # fmt: skip


@pytest.mark.parametrize("spelling", [name for name in THEIR_SPELLINGS if name != "processor"])
@pytest.mark.parametrize("family", VIDEO_NAMES)
def test_diffusers_names_of_video_models(host, zoo, family, spelling):
    """Families whose names the host does not know."""
    import comfy.utils

    state, names = zoo[family].model.model.state_dict(), {}
    for name, entry in VIDEO_NAMES[family].items():
        native, part, count, *swap = entry if len(entry) > 1 else (*entry, 0, 1)
        key = f"diffusion_model.{native}.weight"
        rows = state[key].shape[0] // count
        part = part if isinstance(part, slice) else slice(part, part + 1)
        whole = None if count == 1 else (0, part.start * rows, (part.stop - part.start) * rows)
        names[name] = (key, whole, comfy.utils.swap_scale_shift) if swap else (key, whole) if whole else (key,)
    check_their_names(host, zoo[family].model, names, spelling)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("family", ["sd15", "sd3"])
def test_dtypes(host, zoo, family, dtype):
    model = zoo[family].model
    if family == "sd3":  # fused q, k, v are joined, which fp8 cannot do itself
        names = {n: v for n, v in theirs(model).items() if n.endswith(("to_q", "to_k", "to_v"))}
        shapes = {n: (v[1][2], model.model.state_dict()[v[0]].shape[1]) for n, v in names.items()}
    else:
        shapes = {n: tuple(model.model.state_dict()[k].shape) for n, k in native_modules(model).items()}
    sd, deltas = make(
        shapes, lambda n: f"transformer.{n}" if family == "sd3" else f"diffusion_model.{n}", "peft", dtype
    )
    expected = {}
    for name, update in deltas.items():
        if family == "sd3":
            key, rows = names[name][:2]
            expected.setdefault(key, torch.zeros(model.model.state_dict()[key].shape)).narrow(*rows).add_(update)
        else:
            expected[f"diffusion_model.{name}.weight"] = update
    load_and_compare(host, model, sd, expected)


def test_unequal_scales_in_one_fused_weight(host, zoo):
    """q, k and v with their own alphas, and v absent: its rows stay untouched."""
    model = zoo["sd3"].model
    names = {n: v for n, v in theirs(model).items() if n.endswith(("0.attn.to_q", "0.attn.to_k"))}
    shapes = {n: (v[1][2], model.model.state_dict()[v[0]].shape[1]) for n, v in names.items()}
    sd, deltas = make(shapes, lambda n: f"transformer.{n}", "peft", torch.float16)
    odd = next(n for n in names if n.endswith("to_k"))
    sd[f"transformer.{odd}.alpha"] = torch.tensor(0.3)
    deltas[odd] = deltas[odd] * 0.3 / ALPHA
    (key,) = {v[0] for v in names.values()}
    whole = torch.zeros(model.model.state_dict()[key].shape)
    for name, update in deltas.items():
        whole.narrow(*names[name][1]).add_(update)
    load_and_compare(host, model, sd, {key: whole})


def test_weight_and_bias_differences(host, zoo):
    """Kijai-style .diff and .diff_b, also on a weight without a .weight of its own (modulation)."""
    model, generator = zoo["wan"].model, torch.Generator().manual_seed(1)
    state, sd, expected = model.model.state_dict(), {}, {}
    for stem, key, role in [
        ("diffusion_model.blocks.0.norm3", "diffusion_model.blocks.0.norm3.weight", "diff"),
        ("diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.self_attn.q.bias", "diff_b"),
        ("diffusion_model.blocks.0.modulation", "diffusion_model.blocks.0.modulation", "diff"),
    ]:
        update = torch.randn(state[key].shape, generator=generator)
        sd[f"{stem}.{role}"], expected[key] = update, update
    down, up = pair((128, 128), generator)
    sd["diffusion_model.blocks.0.self_attn.q.lora_down.weight"] = down
    sd["diffusion_model.blocks.0.self_attn.q.lora_up.weight"] = up
    expected["diffusion_model.blocks.0.self_attn.q.weight"] = delta(down, up, (128, 128), 1.0)
    load_and_compare(host, model, sd, expected)


def test_lokr_is_only_renamed(host, zoo):
    model, generator = zoo["sd15"].model, torch.Generator().manual_seed(2)
    w1, w2 = torch.randn(2, 2, generator=generator), torch.randn(160, 160, 1, 1, generator=generator)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    sd, update = {f"{stem}.lokr_w1": w1, f"{stem}.lokr_w2": w2}, torch.kron(w1[..., None, None], w2)
    load_and_compare(host, model, sd, {"diffusion_model.middle_block.1.proj_in.weight": update})
