"""A LoRA from Load PCM LoRA is there for nodes that save, merge or extract, and is noticed when it comes twice."""

from __future__ import annotations

import pytest
import tiny
import tiny_image
import torch
from safetensors.torch import load_file
from test_lora_node import load, put
from test_lora_quantised import meaning, patched

MERGES = {
    "ModelMergeSimple": {"ratio": 0.3},
    "ModelMergeBlocks": {"input": 0.2, "middle": 0.5, "out": 0.8},
    "ModelMergeAdd": {},
    "ModelMergeSubtract": {"multiplier": 1.0},
}


@pytest.fixture(params=["merged", "unmerged"])
def models(host, zoo, tmp_path, request):
    """A base of fp32 or int8 weights, and a plain one with the same values."""
    base = zoo["sd3"]
    if request.param == "merged":
        return base.model, tiny.load(base.path)
    quantised, plain = tiny_image.quantised_sd3(base, tmp_path, "int8_tensorwise").model, tiny.load(base.path)
    plain.model.diffusion_model.load_state_dict(meaning(quantised), strict=False)
    return quantised, plain


@pytest.fixture
def pair(host, models):
    """The base with a LoRA from the host's loader and from ours, and the plain one."""
    model, plain = models
    name = put(host, plain, "style", count=9, value=0.05)
    (stock,) = host.call("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=0.7)
    return stock, load(host, model, name, strength=0.7)[0], plain


@pytest.mark.parametrize("node", MERGES)
def test_merges_are_those_of_the_hosts_loader(host, pair, node):
    stock, ours, plain = pair
    want, got, without = (
        host.call(node, model1=model, model2=plain, **MERGES[node])[0] for model in (stock, ours, plain)
    )
    keys = [key for key in got.patches if key in stock.patches]
    assert len(keys) == 9
    for key in keys:
        assert torch.equal(patched(got, key), patched(want, key)), key
        assert not torch.equal(patched(got, key), patched(without, key)), key


@pytest.mark.parametrize("node", MERGES)
def test_merges_into_another_model(host, zoo, node):
    """As the second model, which the host cannot take where it is quantised."""
    model = zoo["sd3"].model
    name = put(host, model, "style", count=9, value=0.05)
    (stock,) = host.call("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=0.7)
    ours, _ = load(host, model, name, strength=0.7)
    want, got = (host.call(node, model1=model, model2=second, **MERGES[node])[0] for second in (stock, ours))
    for key in stock.patches:
        assert torch.equal(patched(got, key), patched(want, key)), key


@pytest.mark.parametrize("kind", ["standard", "full_diff"])
def test_extraction_finds_the_lora(host, pair, kind):
    stock, ours, plain = pair
    files = []
    for which, model in (("stock", stock), ("ours", ours)):
        (difference,) = host.call("ModelMergeSubtract", model1=model, model2=plain, multiplier=1.0)
        folder = host.base / "output" / f"kept_{which}_{kind}"
        host.call("LoraSave", filename_prefix=f"kept_{which}_{kind}/lora", rank=4, lora_type=kind, bias_diff=False,
                  model_diff=difference)  # fmt: skip
        files.append(load_file(max(folder.glob("*.safetensors"))))
    want, got = files
    assert want.keys() == got.keys() and want
    assert all(torch.equal(got[key], want[key]) for key in want)
    assert any(bool(value.any()) for value in got.values())


@pytest.mark.parametrize("node", ["ModelSave", "CheckpointSave"])
def test_saved_models_hold_the_lora(host, pair, node):
    import comfy.model_management

    files, vae = [], tiny.make_vae(16)
    for which, model in zip(("stock", "ours"), pair, strict=False):
        more = {"clip": None, "vae": vae} if node == "CheckpointSave" else {}
        host.call(node, model=model, filename_prefix=f"kept_{which}_{node}/model", **more)
        with torch.inference_mode():
            comfy.model_management.unload_all_models()
        files.append(load_file(max((host.base / "output" / f"kept_{which}_{node}").glob("*.safetensors"))))
    want, got = files
    assert want.keys() == got.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)


def loaders(host):
    return [
        name for name in ("LoraLoaderModelOnly", "LoraLoaderBypassModelOnly") if name in host.nodes.NODE_CLASS_MAPPINGS
    ]


def test_the_same_file_after_the_hosts_loaders(host, models):
    model, plain = models
    name, other = put(host, plain, "style", count=9, value=0.05), put(host, plain, "another", count=9, value=0.06)
    assert len(loaders(host)) == 2
    for loader in loaders(host):
        (stock,) = host.call(loader, model=model, lora_name=name, strength_model=1.0)
        assert "applied twice" in load(host, stock, name)[1], loader
        assert "twice" not in load(host, stock, other)[1], loader


def test_the_same_file_before_the_hosts_loaders_is_said_by_the_sampler(host, models):
    model, plain = models
    name, other = put(host, plain, "style", count=9, value=0.05), put(host, plain, "another", count=9, value=0.06)
    make_plan = host.pack("nodes.sampling.plan").make_plan
    settings = {"steps": 4, "cfg": "1", "denoise": 1.0}
    ours, _ = load(host, model, name)
    assert not any("twice" in note for note in make_plan(ours, **settings).notes)
    for loader in loaders(host):
        (twice,) = host.call(loader, model=ours, lora_name=name, strength_model=1.0)
        assert any("same LoRA twice" in note for note in make_plan(twice, **settings).notes), loader
        (two,) = host.call(loader, model=ours, lora_name=other, strength_model=1.0)
        assert not any("twice" in note for note in make_plan(two, **settings).notes), loader
    merged = host.call("ModelMergeSimple", model1=ours, model2=load(host, plain, name)[0], ratio=0.5)[0]
    assert not any("twice" in note for note in make_plan(merged, **settings).notes)
