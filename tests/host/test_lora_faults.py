"""LoRA files that people load and that went wrong, each with its right value from PEFT, torch or the host's loader."""

from __future__ import annotations

import json

import gguf
import peft
import pytest
import tiny
import torch
from test_lora_formats import native_modules, pair, patched_weight, write

CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture
def error(host):
    return host.pack("pcm_core.errors").PCMError


def load(host, model, tensors, name="a_lora.safetensors", metadata=None, **options):
    """The node on a file with those tensors: the model and the report."""
    options = {"strength": 1.0, "allow_partial": False} | options
    return host.call("PCMLoraLoader", model=model, lora_name=write(host, tensors, name, metadata), **options)[:2]


def weight_of(host, model, key):
    """A weight with its patches, and without, fp32 on the CPU."""
    return patched_weight(host, model, key)


def applied(count, report):
    assert f"tensors: {count} of {count} applied" in report, report


# 1. Shapes come from the parameters


class PackedWeight(torch.nn.Parameter):
    """A weight as ComfyUI-GGUF keeps it: packed bytes whose shape is that of the weight."""

    @property
    def shape(self):
        return self.true_shape


def packed_model(base, quantisation):
    """``base`` with its matrices packed as in a GGUF file: its state dict holds packed sizes, as ComfyUI-GGUF's."""
    packed = tiny.load(base.path)
    for name, module in packed.model.diffusion_model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Linear) and weight.shape[1] % 32 == 0 and "blocks" in name:
            blocks = gguf.quants.quantize(weight.detach().float().numpy(), quantisation)
            value = PackedWeight(torch.from_numpy(blocks), requires_grad=False)
            value.true_shape = weight.shape
            module.weight = value
    return packed


@pytest.mark.parametrize("quantisation", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0])
@pytest.mark.parametrize("family", ["sd3", "flux", "wan"])
def test_a_gguf_base_takes_every_tensor(host, zoo, family, quantisation):
    base = zoo[family]
    model = packed_model(base, quantisation)
    true = base.model.model.state_dict()
    assert any(value.shape != true[key].shape for key, value in model.model.state_dict().items())
    modules = native_modules(base.model)
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, key in modules.items():
        shape = base.model.model.state_dict()[key].shape
        down, up = pair(shape, generator)
        tensors |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
    loaded, report = load(host, model, tensors)
    applied(len(tensors), report)
    (stock,) = host.call("LoraLoaderModelOnly", model=model, lora_name="a_lora.safetensors", strength_model=1.0)
    assert set(loaded.patches) == set(stock.patches)
    import comfy.lora

    for key in modules.values():  # ComfyUI-GGUF unpacks a weight and hands it to this function
        unpacked = true[key].float()
        want, got = (comfy.lora.calculate_weight(m.patches[key], unpacked.clone(), key) for m in (stock, loaded))
        assert torch.equal(got, want), key


# 2 to 5. Names


def test_wans_modulation(host, zoo):
    """LightX2V's image-to-video files: ``blocks.N.diff_m`` beside pairs, ``diff`` and ``diff_b``."""
    model, generator = zoo["wan"].model, torch.Generator().manual_seed(1)
    state = model.model.state_dict()
    modulation, head = "diffusion_model.blocks.0.modulation", "diffusion_model.head.modulation"
    down, up = pair(state["diffusion_model.blocks.0.ffn.0.weight"].shape, generator)
    tensors = {
        "diffusion_model.blocks.0.diff_m": torch.randn(state[modulation].shape, generator=generator),
        "diffusion_model.head.diff_m": torch.randn(state[head].shape, generator=generator),
        "diffusion_model.blocks.0.ffn.0.lora_down.weight": down,
        "diffusion_model.blocks.0.ffn.0.lora_up.weight": up,
        "diffusion_model.blocks.0.norm3.diff": torch.randn(128, generator=generator),
        "diffusion_model.blocks.0.norm3.diff_b": torch.randn(128, generator=generator),
    }
    loaded, report = load(host, model, tensors, strength=0.5)
    applied(len(tensors), report)
    for key, update in ((modulation, "diffusion_model.blocks.0.diff_m"), (head, "diffusion_model.head.diff_m")):
        after, before = weight_of(host, loaded, key)
        assert torch.allclose(after, before + 0.5 * tensors[update], **CLOSE)


def test_text_projections_are_counted_as_text_encoder(host, zoo):
    model = zoo["ltx2"].model
    tensors = native_pairs(model, 3) | {
        f"text_embedding_projection.{name}": torch.ones(2, 2) for name in ("lora_A.weight", "lora_B.weight")
    }
    _, report = load(host, model, tensors)
    applied(len(tensors) - 2, report)
    assert "text encoder: 2 tensors" in report


def native_pairs(model, count, spell=lambda name: f"diffusion_model.{name}"):
    """Pairs for the first modules of a model in its own names."""
    generator, tensors, state = torch.Generator().manual_seed(3), {}, model.model.state_dict()
    for name, key in list(native_modules(model).items())[:count]:
        down, up = pair(state[key].shape, generator)
        tensors |= {f"{spell(name)}.lora_A.weight": down, f"{spell(name)}.lora_B.weight": up}
    return tensors


@pytest.mark.parametrize(
    "prefix",
    ["module.", "net.", "model.", "_orig_mod.", "_fsdp_wrapped_module.", "module._orig_mod.",
     "base_model.model.module.", "_fsdp_wrapped_module._orig_mod.diffusion_model.", "transformer._orig_mod.",
     "model.module.diffusion_model.", "lora_unet__orig_mod_"],
)  # fmt: skip
def test_wrappers_of_training_tools(host, zoo, prefix):
    model = zoo["wan"].model
    under = prefix.startswith("lora_")
    tensors = native_pairs(model, 8, lambda name: prefix + (name.replace(".", "_") if under else name))
    loaded, report = load(host, model, tensors)
    applied(16, report)
    want, _ = load(host, model, native_pairs(model, 8))
    for key in want.patches:
        assert torch.equal(weight_of(host, loaded, key)[0], weight_of(host, want, key)[0])


def test_wrappers_between_blocks(host, zoo):
    model = zoo["wan"].model
    tensors = native_pairs(
        model,
        12,
        lambda n: "_fsdp_wrapped_module." + n.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._orig_mod."),
    )
    applied(24, load(host, model, tensors)[1])


@pytest.mark.parametrize(("name", "expert"), [("high_noise", 0), ("low_noise", 1)])
def test_both_experts_in_one_file(host, zoo, name, expert, error):
    """diffusers' Wan 2.2: ``transformer`` is the high-noise expert, ``transformer_2`` the low-noise one."""
    key, stem = "diffusion_model.blocks.0.self_attn.q.weight", "blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(4)
    model = zoo["wan"].model.clone()
    halves = [pair(model.model.state_dict()[key].shape, generator) for _ in range(2)]
    tensors = {}
    for prefix, (down, up) in zip(("transformer", "transformer_2"), halves, strict=True):
        tensors |= {f"{prefix}.{stem}.lora_A.weight": down, f"{prefix}.{stem}.lora_B.weight": up}
    with pytest.raises(error, match=r"both experts.*high_noise"):
        load(host, model, tensors, "both.safetensors")
    model.cached_patcher_init = (tiny.load, (f"/models/wan2.2_t2v_{name}_14B.safetensors",))
    loaded, report = load(host, model, tensors, "both.safetensors")
    assert f"the {name.split('_')[0]}-noise half" in report
    applied(2, report)
    after, before = weight_of(host, loaded, key)
    assert torch.allclose(after, before + halves[expert][1] @ halves[expert][0], **CLOSE)


# 6. The base model that is named


@pytest.mark.parametrize("family", ["flux2", "hunyuan_video15", "lens", "minimax_h3", "flux", "wan", "z_image"])
def test_extras_in_the_models_own_names(host, zoo, family, error):
    model = zoo[family].model
    extra = {"diffusion_model.something.new.lora_A.weight": torch.ones(2, 4),
             "diffusion_model.something.new.lora_B.weight": torch.ones(4, 2)}  # fmt: skip
    tensors = native_pairs(model, 6)
    with pytest.raises(error, match=r"only 12 of 14 tensors fit.*something\.new.*allow_partial"):
        load(host, model, tensors | extra)
    loaded, report = load(host, model, tensors | extra, allow_partial=True)
    assert "12 of 14 applied" in report and "something.new" in report
    assert set(loaded.patches) == set(load(host, model, tensors)[0].patches)


@pytest.mark.parametrize(
    ("wrong", "right"), [("wan", "sd15"), ("mochi", "sd3"), ("ltx2", "wan"), ("z_image", "flux"), ("sdxl", "sd15")]
)
def test_another_base_model_is_named_right_or_not_at_all(host, zoo, wrong, right, error):
    names = host.pack("pcm_core.lora.base_models")
    base_models = {"wan": "Wan", "mochi": "Mochi", "ltx2": "LTX-2", "z_image": "Z-Image", "sdxl": "SDXL"}
    with pytest.raises(error) as refused:
        load(host, zoo[right].model, native_pairs(zoo[wrong].model, 200))
    others = set(names.BASE_MODEL_NAMES.values()) - {base_models[wrong]} - {"Wan"}
    assert not any(f"LoRA for {other};" in str(refused.value) for other in others)


# 7, 8, 10. Adapters


def fused_target(zoo):
    """A fused qkv of the tiny SD3: its key, diffusers' stem of its parts, and a part's width."""
    model = zoo["sd3"].model
    key = "diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
    return model, key, "transformer.transformer_blocks.0.attn.to_", model.model.state_dict()[key].shape[1]


def random(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def adapter_parts(kind, n):
    """The tensors of an adapter for a square matrix of width ``n``, and the update they mean."""
    if kind == "LoKr":
        w1, w2 = random(4, 4), random(n // 4, n // 4, seed=6)
        return {"lokr_w1": w1, "lokr_w2": w2}, torch.kron(w1, w2)
    if kind == "LoKr low rank":
        w1, a, b = random(4, 4), random(n // 4, 2, seed=6), random(2, n // 4, seed=7)
        return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(1.0)}, torch.kron(w1, a @ b) / 2
    if kind == "LoHa":
        a1, b1, a2, b2 = random(n, 2), random(2, n, seed=6), random(n, 2, seed=7), random(2, n, seed=8)
        parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(1.0)}
        return parts, (a1 @ b1) * (a2 @ b2) / 2
    if kind == "LoRA":
        up, down = random(n, 2), random(2, n, seed=6)
        return {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)}, up @ down / 2
    return {"diff": random(n, n)}, random(n, n)


KINDS = ["LoRA", "LoKr", "LoKr low rank", "LoHa", "diff"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", ["q", "v", "qk", "qkv"])
def test_adapters_on_parts_of_a_fused_weight(host, zoo, kind, parts):
    model, key, stem, n = fused_target(zoo)
    tensors, update = {}, torch.zeros(3 * n, n)
    for letter in parts:
        values, delta = adapter_parts(kind, n)
        tensors |= {f"{stem}{letter}.{name}": value for name, value in values.items()}
        update.narrow(0, "qkv".index(letter) * n, n).copy_(delta)
    loaded, report = load(host, model, tensors, strength=0.6)
    applied(len(tensors), report)
    after, before = weight_of(host, loaded, key)
    assert torch.allclose(after, before + 0.6 * update, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_the_fused_name_are_the_hosts(host, zoo, kind):
    model, key = zoo["sd3"].model, "diffusion_model.joint_blocks.0.x_block.attn.proj.weight"
    values, _ = adapter_parts(kind, model.model.state_dict()[key].shape[0])
    stem = key.removesuffix(".weight")
    loaded, _ = load(host, model, {f"{stem}.{name}": value for name, value in values.items()}, strength=0.6)
    (stock,) = host.call("LoraLoaderModelOnly", model=model, lora_name="a_lora.safetensors", strength_model=0.6)
    assert torch.equal(weight_of(host, loaded, key)[0], weight_of(host, stock, key)[0])


def test_parts_of_a_fused_weight_are_the_hosts_to_the_bit(host, zoo):
    model, key, stem, n = fused_target(zoo)
    tensors = {
        f"{stem}{letter}.{name}": value for letter in "qkv" for name, value in adapter_parts("LoRA", n)[0].items()
    }
    loaded, _ = load(host, model, tensors, strength=0.6)
    (stock,) = host.call("LoraLoaderModelOnly", model=model, lora_name="a_lora.safetensors", strength_model=0.6)
    assert torch.equal(weight_of(host, loaded, key)[0], weight_of(host, stock, key)[0])


class One(torch.nn.Module):
    """A module with one layer, for PEFT."""

    def __init__(self, weight):
        super().__init__()
        rows, columns, *kernel = weight.shape
        layer = torch.nn.Conv2d(columns, rows, kernel, bias=False) if kernel else torch.nn.Linear(columns, rows, False)
        layer.weight.data = weight.clone()
        self.layer = layer


def with_peft(weight, **options):
    """PEFT's adapter on a weight, its numbers moved off their start: state dict by suffix, and the merged weight."""
    torch.manual_seed(0)
    model = peft.get_peft_model(One(weight), peft.LoraConfig(target_modules=["layer"], **{"r": 4, **options}))
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data += 0.05 * torch.randn(value.shape)
    state = peft.get_peft_model_state_dict(model)
    parts = {key.removeprefix("base_model.model.layer."): value.clone() for key, value in state.items()}
    return parts, model.merge_and_unload().layer.weight.detach()


DORA = {
    "square": ("sd3", "diffusion_model.joint_blocks.0.x_block.attn.proj.weight"),
    "tall": ("sd3", "diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"),
    "wide": ("sd3", "diffusion_model.joint_blocks.0.x_block.mlp.fc2.weight"),
    "convolution": ("sd15", "diffusion_model.input_blocks.1.0.in_layers.2.weight"),
}


@pytest.mark.parametrize("spelling", ["PEFT", "LyCORIS"])
@pytest.mark.parametrize("shape", DORA)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_dora_is_pefts_merge(host, zoo, shape, spelling, strength):
    family, key = DORA[shape]
    model, stem = zoo[family].model, key.removesuffix(".weight")
    before = model.model.state_dict()[key].float()
    parts, merged = with_peft(before, use_dora=True, lora_alpha=8)
    if spelling == "LyCORIS":
        magnitude = parts.pop("lora_magnitude_vector")
        parts = {"lora_down.weight": parts["lora_A.weight"], "lora_up.weight": parts["lora_B.weight"],
                 "dora_scale": magnitude.reshape(-1, *[1] * (before.ndim - 1))}  # fmt: skip
    tensors = {f"{stem}.{name}": value for name, value in parts.items()} | {f"{stem}.alpha": torch.tensor(8.0)}
    loaded, report = load(host, model, tensors, strength=strength)
    applied(len(tensors), report)
    after, _ = weight_of(host, loaded, key)
    assert torch.allclose(after, before + strength * (merged - before), rtol=0, atol=1e-5)


@pytest.mark.parametrize("letter", ["q", "v"])
def test_dora_on_the_rows_of_a_fused_weight(host, zoo, letter):
    model, key, stem, n = fused_target(zoo)
    before, start = model.model.state_dict()[key].float(), "qkv".index(letter) * n
    parts, merged = with_peft(before[start : start + n], use_dora=True, lora_alpha=8)
    tensors = {f"{stem}{letter}.{name}": value for name, value in parts.items()}
    loaded, _ = load(host, model, tensors | {f"{stem}{letter}.alpha": torch.tensor(8.0)})
    after, _ = weight_of(host, loaded, key)
    want = before.clone()
    want[start : start + n] = merged
    assert torch.allclose(after, want, rtol=0, atol=1e-5)


def test_dora_of_inputs_is_lycoris(host, zoo):
    """``wd_on_output=False``: one magnitude for each input, [1, in]; the norm of a column of W + update."""
    key = DORA["tall"][1]
    model, stem = zoo["sd3"].model, DORA["tall"][1].removesuffix(".weight")
    before = model.model.state_dict()[key].float()
    up, down, magnitude = (
        random(before.shape[0], 2),
        random(2, before.shape[1], seed=6),
        random(1, before.shape[1]).abs(),
    )
    tensors = {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down, f"{stem}.dora_scale": magnitude}
    after, _ = weight_of(host, load(host, model, tensors)[0], key)
    moved = before + up @ down
    assert torch.allclose(after, magnitude * moved / moved.norm(dim=0, keepdim=True), rtol=0, atol=1e-5)


def test_pefts_bias_of_the_up_matrix(host, zoo):
    """``lora_bias=True``: the bias of lora_B is scaled as the update is."""
    model, stem = zoo["sd3"].model, "diffusion_model.joint_blocks.0.x_block.attn.proj"
    state = model.model.state_dict()
    n = state[f"{stem}.weight"].shape[0]
    bias = random(n, seed=9)
    tensors = {f"{stem}.lora_A.weight": random(4, n), f"{stem}.lora_B.weight": random(n, 4),
               f"{stem}.lora_B.bias": bias,
               f"{stem}.alpha": torch.tensor(2.0)}  # fmt: skip
    loaded, report = load(host, model, tensors)
    applied(4, report)
    after, before = weight_of(host, loaded, f"{stem}.bias")
    assert torch.allclose(after, before + 0.5 * bias, **CLOSE)


# 9. PEFT's scale


@pytest.mark.parametrize(
    ("config", "r"),
    [({"lora_alpha": 16}, 8), ({"lora_alpha": 16, "use_rslora": True}, 16), ({"lora_alpha": 8, "use_rslora": True}, 4),
     ({"lora_alpha": 16, "alpha_pattern": {"layer": 4}}, 8), ({"lora_alpha": 16, "rank_pattern": {"layer": 2}}, 8),
     ({"lora_alpha": 16, "alpha_pattern": {".*ayer": 2}, "rank_pattern": {"layer": 2}, "use_rslora": True}, 8)],
)  # fmt: skip
def test_the_scale_of_pefts_metadata_is_pefts(host, zoo, config, r):
    model, key = zoo["sd3"].model, "diffusion_model.joint_blocks.0.x_block.attn.proj.weight"
    before = model.model.state_dict()[key].float()
    parts, merged = with_peft(before, r=r, **config)
    renamed = {word: {pattern.replace("layer", "to_out.0") if pattern == "layer" else r".*to_out\.0": value
                      for pattern, value in patterns.items()} if isinstance(patterns, dict) else patterns
               for word, patterns in config.items()}  # fmt: skip
    entries = {f"transformer.{word}": value for word, value in {**renamed, "r": r}.items()}
    entries |= {"text_encoder.lora_alpha": 64, "text_encoder.r": 4}
    tensors = {f"transformer.transformer_blocks.0.attn.to_out.0.{name}": value for name, value in parts.items()}
    loaded, report = load(host, model, tensors, metadata={"lora_adapter_metadata": json.dumps(entries)})
    after, _ = weight_of(host, loaded, key)
    assert torch.allclose(after, merged, rtol=0, atol=1e-5), report


@pytest.mark.parametrize(("header", "scale"), [({"lora_alpha": "8"}, 4), ({"ss_network_alpha": "1.0"}, 0.5),
                                               ({"ss_network_alpha": "None"}, 1)])  # fmt: skip
def test_the_scale_of_other_headers(host, zoo, header, scale):
    model, key, stem, n = fused_target(zoo)
    up, down = random(n, 2), random(2, n, seed=6)
    tensors = {f"{stem}q.lora_B.weight": up, f"{stem}q.lora_A.weight": down}
    after, before = weight_of(host, load(host, model, tensors, metadata=header)[0], key)
    assert torch.allclose(after[:n], before[:n] + scale * up @ down, **CLOSE)


# 12, 13. Files of other kinds


def test_oft_and_glora_go_through_the_host(host, zoo):
    model, stem = zoo["sd3"].model, "diffusion_model.joint_blocks.0.x_block.attn.proj"
    n = model.model.state_dict()[f"{stem}.weight"].shape[0]
    kinds = {
        "oft": {"oft_blocks": random(4, n // 4, n // 4), "alpha": torch.tensor(0.5)},
        "glora": {"a1.weight": random(n, 2), "a2.weight": random(2, n, seed=6), "b1.weight": random(n, 2, seed=7),
                  "b2.weight": random(2, n, seed=8)},
    }  # fmt: skip
    for parts in kinds.values():
        loaded, report = load(host, model, {f"{stem}.{name}": value for name, value in parts.items()})
        applied(len(parts), report)
        (stock,) = host.call("LoraLoaderModelOnly", model=model, lora_name="a_lora.safetensors", strength_model=1.0)
        after, before = weight_of(host, loaded, f"{stem}.weight")
        assert torch.equal(after, weight_of(host, stock, f"{stem}.weight")[0]) and not torch.equal(after, before)


OTHERS = {
    "IA3": ("transformer.x.attn.to_k.ia3_l", "IA3"),
    "VeRA": ("base_model.model.x.vera_lambda_d", "VeRA"),
    "OFT in PEFT's layout": ("base_model.model.x.oft_R.weight", "OFT adapter in PEFT"),
    "Control-LoRA": ("lora_controlnet", "Control-LoRA"),
    "embedding": ("emb_params", "embedding"),
    "XLabs": ("double_blocks.0.processor.qkv_lora1.up.weight", "XLabs"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_kinds_are_named(host, zoo, kind, error):
    key, word = OTHERS[kind]
    with pytest.raises(error, match=word):
        load(host, zoo["sd3"].model, {key: torch.ones(4, 4)})


def test_what_lies_beside_the_updates_has_a_sentence(host, zoo):
    model = zoo["sd3"].model
    tensors = native_pairs(model, 2) | {
        "bundle_emb.style.string_to_param.*": torch.ones(1, 4), "bundle_emb.style.clip_g": torch.ones(1, 4),
        "global_step": torch.tensor(3), "diffusion_model.joint_blocks.0.x_block.attn.qkv.scale_weight": torch.ones(1),
    }  # fmt: skip
    _, report = load(host, model, tensors)
    applied(4, report)
    for words in ("left out: 2 tensors of a bundled embedding", "left out: 1 counters", "left out: 1 scales of fp8"):
        assert words in report


def test_a_control_lora_of_black_forest_labs(host, zoo):
    """Its first layer takes twice the channels, its norms are set, its biases are differences: as the host has it."""
    model, generator = zoo["flux"].model, torch.Generator().manual_seed(8)
    state = model.model.state_dict()
    rows, columns = state["diffusion_model.img_in.weight"].shape
    tensors = {"img_in.lora_A.weight": torch.randn(4, 2 * columns, generator=generator),
               "img_in.lora_B.weight": torch.randn(rows, 4, generator=generator),
               "img_in.lora_B.bias": torch.randn(rows, generator=generator)}  # fmt: skip
    for name, key in list(native_modules(model).items())[6:12]:
        down, up = pair(state[key].shape, generator)
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    tensors["single_blocks.0.norm.key_norm.scale"] = torch.rand(
        state["diffusion_model.single_blocks.0.norm.key_norm.weight"].shape, generator=generator
    )
    loaded, report = load(host, model, tensors)
    assert "0 of the wrong shape, 0 unknown" in report
    (stock,) = host.call("LoraLoaderModelOnly", model=model, lora_name="a_lora.safetensors", strength_model=1.0)
    assert set(loaded.patches) == set(stock.patches)
    for key in stock.patches:
        assert torch.equal(weight_of(host, loaded, key)[0], weight_of(host, stock, key)[0]), key
    assert weight_of(host, loaded, "diffusion_model.img_in.weight")[0].shape == (rows, 2 * columns)


# An update that the host cannot compute


def test_an_update_that_the_host_drops_is_found(host, zoo, error, monkeypatch):
    """It logs an error when the model is loaded, and leaves the weight. Here its LoKr is broken."""
    from comfy.weight_adapter.lokr import LoKrAdapter

    model, key, stem, n = fused_target(zoo)
    monkeypatch.setattr(LoKrAdapter, "calculate_weight", lambda self, weight, *_, **__: weight)
    tensors = {f"{stem}q.{name}": value for name, value in adapter_parts("LoKr", n)[0].items()}
    with pytest.raises(error, match=r"cannot apply 2 of 2 tensors"):
        load(host, model, tensors)
    more = tensors | native_pairs(model, 2)
    with pytest.raises(error, match=r"cannot apply 2 of 6 tensors.*allow_partial"):
        load(host, model, more)
    loaded, report = load(host, model, more, allow_partial=True)
    assert "4 of 6 applied" in report and key not in loaded.patches


# 14, 25, two few-step LoRAs


def test_strength_0_gives_the_model_back(host, zoo):
    model = zoo["wan"].model
    loaded, report = load(host, model, native_pairs(model, 2), "lightx2v_T2V_14B_rank64.safetensors", strength=0.0)
    assert loaded is model and "strength is 0" in report and "0 of 4 applied" in report
    assert host.pack("nodes.host").profile_of(loaded) is None


def test_two_few_step_loras_on_purpose(host, zoo, error):
    model, h = zoo["wan"].model, host.pack("nodes.host")
    first, _ = load(host, model, native_pairs(model, 2), "lightx2v_T2V_14B_rank64.safetensors")
    second = {key: value + 0.1 for key, value in native_pairs(model, 2).items()}
    name = "Wan21_CausVid_14B_T2V_lora_rank32.safetensors"
    with pytest.raises(error, match=r"already carries one of .*keep the model's"):
        load(host, first, second, name)
    both, report = load(host, first, second, name, settings="keep the model's")
    assert h.profile_of(both) == h.profile_of(first) and h.flow_shift(both) == h.flow_shift(first)
    assert "stay in force" in report and all(len(patches) == 2 for patches in both.patches.values())
    alone, report = load(host, model, second, name, settings="keep the model's")
    assert h.profile_of(alone) is None and h.flow_shift(alone) == h.flow_shift(model)
    assert "set steps and cfg yourself" in report


@pytest.mark.parametrize("first", ["ours", "LoraLoaderModelOnly"])
def test_the_same_file_twice_is_noticed(host, zoo, first, caplog):
    model, name = zoo["sd3"].model, "a_style.safetensors"
    tensors = native_pairs(model, 4)
    once, report = load(host, model, tensors, name)
    assert "twice" not in report
    if first != "ours":
        (once,) = host.call(first, model=model, lora_name=name, strength_model=1.0)
    _, report = load(host, once, tensors, name)
    assert "applied twice" in report and "applied twice" in caplog.text
    other = {key: value * 1.5 for key, value in tensors.items()}
    assert "twice" not in load(host, once, other, "another.safetensors")[1]


def test_a_file_in_the_models_own_names_is_read_as_the_host_reads_it(host, zoo):
    """The stock loader's values, for a file in the model's own names, to the bit."""
    model = zoo["wan"].model
    tensors = native_pairs(model, 30)
    loaded, _ = load(host, model, tensors, strength=0.3)
    (stock,) = host.call("LoraLoaderModelOnly", model=model, lora_name="a_lora.safetensors", strength_model=0.3)
    for key in stock.patches:
        assert torch.equal(weight_of(host, loaded, key)[0], weight_of(host, stock, key)[0])
