"""LoRAs on quantised bases: sampled without rounding, and saved, merged and subtracted as after the host's loader."""

from __future__ import annotations

import pytest
import tiny
import tiny_image
import torch
from devices import hosts_fp8
from safetensors.torch import load_file
from test_lora_node import load, put, weights

SCHEMES = [pytest.param("float8_e4m3fn", marks=hosts_fp8), "nvfp4", "int8_tensorwise"]
# fp32 arithmetic in another order, over two steps of a small network; 4e-7 was seen.
SAME = 3e-6


def sample(host, tiny, model):
    (out,) = host.call(
        "KSampler", model=model, seed=0, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple",
        positive=tiny.positive, negative=tiny.negative, latent_image=tiny.latent(), denoise=1.0,
    )  # fmt: skip
    return out["samples"]


def unlike(a, b):
    """Largest difference, as a share of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def meaning(model):
    """The weights of a quantised model, unpacked."""
    return {key: (w.dequantize() if hasattr(w, "dequantize") else w).float()
            for key, w in model.model.diffusion_model.named_parameters()}  # fmt: skip


@pytest.fixture(params=SCHEMES)
def bases(host, zoo, tmp_path, request):
    """The tiny model, a plain model with the values of the quantised one, and the quantised one."""
    base = zoo["sd3"]
    plain, quantised = tiny.load(base.path), tiny_image.quantised_sd3(base, tmp_path, request.param).model
    assert not plain.model.diffusion_model.load_state_dict(meaning(quantised), strict=False).unexpected_keys
    return base, plain, quantised


def test_sampling_is_that_of_merging_into_what_the_weights_mean(host, bases):
    """And so it is with a second LoRA. The weights stay as they are, and the sampler gets its model back."""
    base, plain, quantised = bases
    name, second = (put(host, plain, f"style_{i}", count=9, value=0.05 + 0.01 * i) for i in range(2))
    # Its int8 kernel rounds activations too, with a LoRA as without.
    near = max(SAME, 4 * unlike(sample(host, base, quantised), sample(host, base, plain)))
    state = quantised.model.state_dict()
    before = {key: state[key].clone() for key in state if f"{key}_scale" in state or key.endswith("_scale")}
    loaded, report = load(host, quantised, name)
    assert "18 of 18 applied" in report
    want, got = sample(host, base, load(host, plain, name)[0]), sample(host, base, loaded)
    assert unlike(got, want) < near < 0.1 * unlike(sample(host, base, plain), want)
    assert torch.equal(sample(host, base, loaded), got), "the second run"
    assert before and all(torch.equal(quantised.model.state_dict()[key], value) for key, value in before.items())
    both = sample(host, base, load(host, loaded, second)[0])
    want = sample(host, base, load(host, load(host, plain, name)[0], second)[0])
    assert unlike(both, want) < near < 0.1 * unlike(both, got)


def test_other_nodes_see_what_they_see_after_the_hosts_loader(host, bases):
    """Merges and subtractions, before and after the model was sampled. The host cannot take a quantised model2."""
    base, plain, quantised = bases
    name = put(host, plain, "style", count=9, value=0.05)
    (stock,) = host.call("LoraLoaderModelOnly", model=quantised, lora_name=name, strength_model=1.0)
    ours, _ = load(host, quantised, name)
    for _ in range(2):
        for node, options in (("ModelMergeSimple", {"ratio": 0.3}), ("ModelMergeSubtract", {"multiplier": 1.0})):
            want, got = (host.call(node, model1=model, model2=plain, **options)[0] for model in (stock, ours))
            for key in weights(plain)[:9]:
                assert torch.equal(patched(got, key), patched(want, key)), (node, key)
        sample(host, base, ours)


def patched(model, key):
    """A weight as the host computes it when it loads the model, before it is packed again."""
    import comfy.lora
    from comfy.model_patcher import get_key_weight

    weight, _, convert = get_key_weight(model.model, key)
    weight = convert(weight) if convert else weight
    return comfy.lora.calculate_weight(model.patches.get(key, []), weight.float().clone(), key)


@pytest.mark.parametrize("sampled", [False, True])
def test_a_saved_model_holds_the_lora(host, bases, sampled, tmp_path):
    import comfy.model_management
    import comfy.sd

    base, plain, quantised = bases
    name = put(host, plain, "style", count=9, value=0.05)
    (stock,) = host.call("LoraLoaderModelOnly", model=quantised, lora_name=name, strength_model=1.0)
    files = []
    for which, model in (("stock", stock), ("ours", load(host, quantised, name)[0])):
        if sampled:
            sample(host, base, model)
        files.append(tmp_path / f"{which}.safetensors")
        with torch.inference_mode():
            comfy.sd.save_checkpoint(str(files[-1]), model)
            comfy.model_management.unload_all_models()
    want, got = (load_file(file) for file in files)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[key], got[key]) for key in want)
    prefix, clean = "model.diffusion_model.", load_file(str(base.path))
    assert any(not torch.equal(got[prefix + key], clean[key]) for key in clean if prefix + key in got)


def test_models_larger_than_the_device_are_patched_as_the_host_patches_them(host, zoo, monkeypatch):
    """The device is pretended while loading; the sampling is real."""
    import comfy.model_management

    base = zoo["sd3"]
    model = base.model.clone()
    name = put(host, model, "plain_style", count=9, value=0.05)
    (stock,) = host.call("LoraLoaderModelOnly", model=base.model, lora_name=name, strength_model=1.0)
    want = sample(host, base, stock)
    model.load_device, size = torch.device("cuda"), model.model_size()
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda device: size - 1)
    loaded, _ = load(host, model, name)
    monkeypatch.undo()
    loaded.load_device = base.model.load_device
    assert set(loaded.patches) == set(stock.patches)
    assert torch.equal(sample(host, base, loaded), want)
