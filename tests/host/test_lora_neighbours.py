"""Neighbours of the files of test_lora_faults, in other spellings and with other helpers: exact, or refused."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from test_lora_faults import CLOSE, applied, load, random, weight_of

STEM = "joint_blocks.0.x_block.attn.proj"
KEY = f"diffusion_model.{STEM}.weight"


@pytest.fixture
def error(host):
    return host.pack("pcm_core.errors").PCMError


@pytest.fixture
def model(zoo):
    return zoo["sd3"].model


def width(model):
    return model.model.state_dict()[KEY].shape[0]


def pair(model, stem=f"diffusion_model.{STEM}", down="lora_A.weight", up="lora_B.weight"):
    n = width(model)
    return {f"{stem}.{down}": random(4, n), f"{stem}.{up}": random(n, 4, seed=6)}


def update(model):
    n = width(model)
    return random(n, 4, seed=6) @ random(4, n)


PREFIXES = ("student.", "generator.", "model_ema.", "pipe.transformer.", "mmdit.", "base_model.", "lora_dit_",
            "lora_unet_diffusion_model_", "lora_unet__")  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(host, model, prefix):
    stem = prefix + (STEM.replace(".", "_") if prefix.endswith("_") else STEM)
    loaded, report = load(host, model, pair(model, stem))
    applied(2, report)
    after, before = weight_of(host, loaded, KEY)
    assert torch.allclose(after, before + update(model), **CLOSE)


@pytest.mark.parametrize("helper", ["lora_alpha", "network_alpha"])
def test_alpha_by_its_other_names(host, model, helper):
    loaded, report = load(host, model, pair(model) | {f"diffusion_model.{STEM}.{helper}": torch.tensor(2.0)})
    applied(3, report)
    after, before = weight_of(host, loaded, KEY)
    assert torch.allclose(after, before + update(model) / 2, **CLOSE)


TEXT = ("lora_te3_encoder_block_0", "text_encoder_3.encoder.block.0", "lora_prior_te_text", "lycoris_te1_text_model",
        "te1_text_model_encoder", "base_model.model.text_model.encoder", "text_model.encoder.layers.0",
        "llama_model.layers.0", "lora_llm_layers_0")  # fmt: skip


@pytest.mark.parametrize("stem", TEXT)
def test_text_encoders(host, model, stem):
    _, report = load(host, model, pair(model) | {f"{stem}.lora_A.weight": torch.ones(2, 4),
                                                 f"{stem}.lora_B.weight": torch.ones(4, 2)})  # fmt: skip
    applied(2, report)
    assert "text encoder: 2 tensors" in report


SCALES = ("scale_weight", "weight_scale", "weight.scale_weight", "weight_scale_inv")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("names", [("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")])
def test_scaled_fp8_values_are_refused(host, model, error, scale, names):
    """No loader multiplies with the scale: the update would be wrong by it."""
    tensors = {key: value.to(torch.float8_e4m3fn) for key, value in pair(model, down=names[0], up=names[1]).items()}
    more = {key.removesuffix("weight") + scale: torch.tensor(0.25) for key in tensors}
    with pytest.raises(error, match="fp8 values with scales of their own"):
        load(host, model, tensors | more)
    beside = {f"diffusion_model.{STEM}.{scale}": torch.tensor(0.25)}  # of the model it was trained on
    assert "left out: 1 scales of fp8" in load(host, model, tensors | beside)[1]


INCOMPLETE = {"a1.weight": "b1, b2", "hada_w1_a": "hada_w2_a", "lokr_w2_a": "lokr_w2_b", "hada_t1": "hada_t2"}


@pytest.mark.parametrize("role", INCOMPLETE)
def test_incomplete_products_are_refused(host, model, error, role):
    n = width(model)
    parts = {
        "a1.weight": {"a1.weight": random(n, 2), "a2.weight": random(2, n)},
        "hada_w1_a": {"hada_w1_a": random(n, 2), "hada_w1_b": random(2, n)},
        "lokr_w2_a": {"lokr_w1": random(4, 4), "lokr_w2_a": random(n // 4, 2)},
        "hada_t1": {"hada_t1": random(2, 2, 1, 1), "hada_w1_a": random(2, n), "hada_w1_b": random(2, n),
                    "hada_w2_a": random(n, 2), "hada_w2_b": random(2, n)},
    }[role]  # fmt: skip
    with pytest.raises(error, match=rf"has no .*{INCOMPLETE[role]}"):
        load(host, model, {f"diffusion_model.{STEM}.{name}": value for name, value in parts.items()})


UNKNOWN = [("lora_a.weight", "lora_b.weight"), ("lora.A.weight", "lora.B.weight"), ("LORA_A.WEIGHT", "LORA_B.WEIGHT"),
           ("lora_down.one.weight", "lora_up.one.weight")]  # fmt: skip


@pytest.mark.parametrize("names", UNKNOWN)
def test_unknown_spellings_are_not_called_a_whole_model(host, model, error, names):
    with pytest.raises(error, match="names that no tool known here writes"):
        load(host, model, pair(model, down=names[0], up=names[1]))


@pytest.mark.parametrize(("key", "kind"), [("lora_E", "AdaLoRA"), ("boft_R", "BOFT"), ("boft_s.default", "BOFT")])
def test_adapters_of_peft_that_the_host_lacks(host, model, error, key, kind):
    with pytest.raises(error, match=kind):
        load(host, model, pair(model) | {f"base_model.model.{STEM}.{key}": torch.ones(4, 1)})


CONFIGS = [
    peft.LoHaConfig(r=4, alpha=10), peft.LoHaConfig(r=4, alpha=10, alpha_pattern={"proj": 3}),
    peft.LoKrConfig(r=2, alpha=6), peft.LoKrConfig(r=2, alpha=6, decompose_both=True),
    peft.LoKrConfig(r=500, alpha=8), peft.LoKrConfig(r=500, alpha=8, rank_pattern={"attn.proj": 250}),
    peft.LoraConfig(r=4), peft.LoraConfig(r=4, lora_alpha=3, alpha_pattern={r"joint_blocks\.0.*proj": 5}),
    peft.LoraConfig(r=4, lora_alpha=3, alpha_pattern={"j": 5}), peft.LoraConfig(r=4, lora_alpha=-2),
    peft.LoraConfig(r=4, lora_alpha=3, rank_pattern={r".*\.attn\.proj": 7}, use_rslora=True),
    peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, use_rslora=True),
    peft.LoraConfig(r=4, lora_alpha=6, lora_bias=True),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.peft_type.value} {c.to_dict().get('alpha_pattern')}")
def test_files_that_peft_saves(host, model, config, tmp_path):
    """The same numbers as PEFT's own merge: ``adapter_model.safetensors`` with its ``adapter_config.json``."""
    state = model.model.state_dict()
    base = Blocks(state[KEY].float(), state[KEY.replace("weight", "bias")].float())
    config.target_modules = {"proj"}
    torch.manual_seed(0)
    config.init_weights = False
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False
    wrapped = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if "magnitude" in name else 0.0))
    folder = host.base / "models" / "loras" / "from_peft"
    wrapped.save_pretrained(str(folder))
    loaded, report, *_ = host.call(
        "PCMLoraLoader", model=model, lora_name="from_peft/adapter_model.safetensors", strength=1.0
    )
    merged = wrapped.merge_and_unload().joint_blocks[0].x_block.attn.proj
    after, _ = weight_of(host, loaded, KEY)
    assert torch.allclose(after, merged.weight.detach(), rtol=0, atol=2e-5), report
    after, _ = weight_of(host, loaded, KEY.replace("weight", "bias"))
    assert torch.allclose(after, merged.bias.detach(), rtol=0, atol=2e-5), report
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == config.peft_type.value


class Blocks(torch.nn.Module):
    """One layer under the names it has in SD3."""

    def __init__(self, weight, bias):
        super().__init__()
        layer = torch.nn.Linear(*reversed(weight.shape))
        layer.weight, layer.bias = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())
        attn, block, outer = torch.nn.Module(), torch.nn.Module(), torch.nn.Module()
        attn.proj, block.attn, outer.x_block = layer, attn, block
        self.joint_blocks = torch.nn.ModuleList([outer])

    def forward(self, x):
        return self.joint_blocks[0].x_block.attn.proj(x)
