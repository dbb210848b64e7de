"""Load PCM LoRA with a CLIP and a LORA_STACK: what the host's chain of LoraLoaders gives, to the bit."""

from __future__ import annotations

import math

import pytest
import tiny
import tiny_image
import torch
from devices import hosts_fp8
from safetensors.torch import load_file, save_file
from test_lora_node import put
from test_lora_quantised import sample, unlike

from pcm_core.errors import PCMError

PCM = "pcm_deterministic_4step_shift3"
LAYER = "clip_l.transformer.text_model.encoder.layers.{}.self_attn.q_proj"


def text_encoder(layers=2, width=8):
    """A CLIP of the host with a text encoder of some linear layers under the names of CLIP-L."""
    import comfy.model_patcher
    import comfy.sd

    model, device = torch.nn.Module(), torch.device("cpu")
    for index in range(layers):
        parent = model
        for part in LAYER.format(index).split(".")[:-1]:
            if not hasattr(parent, part):
                parent.add_module(part, torch.nn.Module())
            parent = getattr(parent, part)
        parent.add_module("q_proj", torch.nn.Linear(width, width))
    clip = comfy.sd.CLIP(no_init=True)
    clip.patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
    clip.cond_stage_model, clip.tokenizer, clip.layer_idx = model, None, None
    clip.tokenizer_options, clip.use_clip_schedule, clip.apply_hooks_to_conds = {}, False, None
    return clip


def with_text(host, model, name, seed, layers=2, width=8, count=4):
    """A LoRA for the diffusion model and for text encoders, in kohya's names."""
    file = put(host, model, name, count=count, value=0.01 * seed)
    path = host.base / "models" / "loras" / file
    tensors, draw = dict(load_file(path)), torch.Generator().manual_seed(seed)
    for index in range(layers):
        stem = f"lora_te_text_model_encoder_layers_{index}_self_attn_q_proj"
        for side, shape in (("up", (width, 2)), ("down", (2, width))):
            tensors[f"{stem}.lora_{side}.weight"] = torch.randn(shape, generator=draw)
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    return file


def computed(patcher):
    """Every patched weight as the host computes it when it loads the model."""
    import comfy.lora

    state = patcher.model.state_dict()
    return {
        key: comfy.lora.calculate_weight(patches, state[key].float().clone(), key)
        for key, patches in patcher.patches.items()
    }


def equal(ours, theirs):
    mine, right = computed(ours), computed(theirs)
    assert mine.keys() == right.keys() and mine
    assert all(torch.equal(mine[key], right[key]) for key in mine)


def loaded(host, model, name, **options):
    return host.call("PCMLoraLoader", model=model, lora_name=name, **options)


@pytest.fixture
def files(host, zoo):
    """Two styles with text encoders, and a few-step LoRA with one too."""
    model = zoo["sd3"].model
    return [with_text(host, model, name, seed) for seed, name in ((1, "style one"), (2, "style two"), (3, PCM))]


def test_a_stack_and_a_clip_give_what_a_chain_of_the_hosts_loaders_gives(host, zoo, files):
    model, clip = zoo["sd3"].model, text_encoder()
    one, two, pcm = files
    stack = [(one, 0.8, 0.5), (two, -0.3, 1.2)]
    right, right_clip = model, clip
    for name, strength, strength_clip in [*stack, (pcm, 1.0, 0.7)]:
        right, right_clip = host.call("LoraLoader", model=right, clip=right_clip, lora_name=name,
                                      strength_model=strength, strength_clip=strength_clip)  # fmt: skip
    ours, report, our_clip = loaded(host, model, pcm, clip=clip, lora_stack=stack, strength_clip=0.7)
    equal(ours, right)
    equal(our_clip.patcher, right_clip.patcher)
    assert not model.patches and not clip.patcher.patches, "what was given stays"
    assert host.pack("nodes.host").profile_of(ours).method == "PCM"
    assert (
        "From lora_stack, before it: style one.safetensors, 8 of 8 tensors at strength 0.8, 2 weights of the CLIP"
        in report
    )
    assert "text encoder: 6 tensors change 2 weights of the CLIP, at strength 0.7" in report
    names = [(lora.name, lora.strength) for lora in host.pack("nodes.host").loras_of(ours)]
    assert names == [("style one", 0.8), ("style two", -0.3), (PCM, 1.0)]


def test_without_them_everything_is_as_it_was(host, zoo, files):
    model = zoo["sd3"].model
    ours, report, clip = loaded(host, model, files[2])
    (right,) = host.call("LoraLoaderModelOnly", model=model, lora_name=files[2], strength_model=1.0)
    equal(ours, right)
    assert clip is None and "text encoder: 6 tensors left out; connect a CLIP to apply them" in report


def test_a_file_without_text_encoders_leaves_the_clip_as_it_is(host, zoo):
    model, clip = zoo["sd3"].model, text_encoder()
    _, report, same = loaded(host, model, put(host, model, PCM), clip=clip)
    assert same is clip and "text encoder" not in report


def test_text_encoders_of_another_kind_are_said(host, zoo, files):
    clip = text_encoder(layers=0)
    _, report, same = loaded(host, zoo["sd3"].model, files[2], clip=clip)
    assert same is clip and "none of them fits this CLIP" in report
    _, report, same = loaded(host, zoo["sd3"].model, files[2], clip=text_encoder(), strength_clip=0.0)
    assert not same.patcher.patches and "left out; strength_clip is 0" in report


def test_strengths_of_0_and_none_are_skipped(host, zoo, files):
    model, clip = zoo["sd3"].model, text_encoder()
    stack = [("None", 1.0, 1.0), (files[0], 0.0, 0.0), (files[1], 0.0, 1.0)]
    ours, report, our_clip = loaded(host, model, files[2], clip=clip, lora_stack=stack, strength_clip=0.0)
    (right,) = host.call("LoraLoaderModelOnly", model=model, lora_name=files[2], strength_model=1.0)
    _, right_clip = host.call("LoraLoader", model=model, clip=clip, lora_name=files[1], strength_model=0.0,
                              strength_clip=1.0)  # fmt: skip
    equal(ours, right)
    equal(our_clip.patcher, right_clip.patcher)
    assert "style one" not in report and "style two" in report


def test_a_file_for_text_encoders_alone_may_be_in_the_stack(host, zoo, files):
    model, clip = zoo["sd3"].model, text_encoder()
    path = host.base / "models" / "loras" / files[0]
    save_file({key: value for key, value in load_file(path).items() if key.startswith("lora_te")}, path)
    ours, report, our_clip = loaded(host, model, files[2], clip=clip, lora_stack=[(files[0], 1.0, 1.0)])
    assert len(our_clip.patcher.patches) == 2 and "style one.safetensors, 2 weights of the CLIP" in report
    (right,) = host.call("LoraLoaderModelOnly", model=model, lora_name=files[2], strength_model=1.0)
    equal(ours, right)


@pytest.mark.parametrize(
    ("stack", "found"),
    [
        ([("Hyper-SD3-8steps-CFG-lora.safetensors", 1.0, 1.0)], "lora_stack has Hyper-SD3.*, a Hyper-SD3 LoRA"),
        ([("style one.safetensors", math.nan, 1.0)], "the strength nan. Expected: a finite number"),
        ([("style one.safetensors", "1", 1.0)], "the strength 1. Expected: a finite number"),
        ([("style one.safetensors", 1.0)], "lora_stack holds a tuple. Expected: a list of"),
        ("style one.safetensors", 'lora_stack holds "style one.safetensors"'),
        ([("nowhere.safetensors", 1.0, 1.0)], 'no LoRA "nowhere.safetensors"'),
        ([("../../secret.safetensors", 1.0, 1.0)], "There is no LoRA"),
        ([("style one.safetensors", 1.0, 1.0), ("sdxl.safetensors", 1.0, 1.0)], "sdxl.safetensors"),
    ],
)
def test_a_stack_that_cannot_be_is_refused_and_nothing_is_half_applied(host, zoo, files, stack, found):
    model, clip = zoo["sd3"].model, text_encoder()
    put(host, model, "Hyper-SD3-8steps-CFG-lora")
    put(host, zoo["sdxl"].model, "sdxl", count=40)
    with pytest.raises(PCMError, match=found):
        loaded(host, model, files[2], clip=clip, lora_stack=stack)
    assert not model.patches and not clip.patcher.patches


@pytest.mark.parametrize("scheme", [pytest.param("float8_e4m3fn", marks=hosts_fp8), "int8_tensorwise"])
def test_on_quantised_weights_a_stack_is_a_chain_of_our_loaders(host, zoo, tmp_path, scheme):
    base = zoo["sd3"]
    quantised = tiny_image.quantised_sd3(base, tmp_path, scheme).model
    plain = tiny.load(base.path)
    style, pcm = (put(host, plain, name, count=9, value=value) for name, value in (("a style", 0.05), (PCM, 0.06)))
    chain = loaded(host, loaded(host, quantised, style, strength=0.5)[0], pcm)[0]
    ours = loaded(host, quantised, pcm, lora_stack=[(style, 0.5, 0.5)])[0]
    assert unlike(sample(host, base, ours), sample(host, base, chain)) == 0
