"""Patches of the host and of other packs: PCM Sampler with them equals stock sampling with them.

Each is compared with KSampler euler + simple at steps = phases, and must change the picture, or nothing was tested.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_lora_node import put
from test_sampler import close, pcm, stock, with_profile
from tiny import Tiny

CFG = 3.0


def check(host, tiny, model, *, reference=None, **inputs):
    """The same latent from both, and not the one of ``reference``."""
    patched = Tiny(model, tiny.shapes, tiny.tokens, tiny.width, tiny.extra, tiny.pooled)
    latent = inputs.pop("latent_image", None) or tiny.latent()
    conds = {"positive": tiny.positive, "negative": tiny.negative, **inputs}
    (own, _) = pcm(host, patched, steps=4, spacing="trailing", cfg=str(CFG), latent_image=latent, **conds)
    (theirs,) = host.call(
        "KSampler", model=model, seed=7, steps=4, cfg=CFG, sampler_name="euler", scheduler="simple",
        latent_image=latent, denoise=1.0, **conds,
    )  # fmt: skip
    close(own, theirs)
    plain = reference or stock(host, tiny, steps=4, cfg=CFG, latent=latent)
    assert not torch.allclose(own["samples"], plain["samples"], rtol=1e-3, atol=1e-3), "the patch did nothing"


@pytest.mark.parametrize(
    ("name", "node", "settings"),
    [
        ("eps_deep", "FreeU", {"b1": 1.5, "b2": 1.6, "s1": 0.5, "s2": 0.2}),
        ("eps_deep", "FreeU_V2", {"b1": 1.5, "b2": 1.6, "s1": 0.5, "s2": 0.2}),
        ("eps", "PerturbedAttentionGuidance", {"scale": 3.0}),
        ("eps", "APG", {"eta": 0.5, "norm_threshold": 2.0, "momentum": 0.5}),
        ("sd3", "APG", {"eta": 0.5, "norm_threshold": 2.0, "momentum": 0.0}),
        ("sd3", "SkipLayerGuidanceSD3", {"layers": "1", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0}),
        ("eps", "RescaleCFG", {"multiplier": 0.7}),
        ("v", "RescaleCFG", {"multiplier": 0.7}),
        ("eps", "ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": False}),
        ("eps", "ModelSamplingDiscrete", {"sampling": "x0", "zsnr": False}),
        ("v", "ModelSamplingContinuousEDM", {"sampling": "v_prediction", "sigma_max": 20.0, "sigma_min": 0.01}),
        ("sd3", "ModelSamplingSD3", {"shift": 1.0}),
        ("sd3", "ModelSamplingSD3", {"shift": 7.0}),
        ("wan", "ModelSamplingAuraFlow", {"shift": 2.0}),
        ("flux", "ModelSamplingFlux", {"max_shift": 2.0, "base_shift": 0.1, "width": 512, "height": 512}),
    ],
)
def test_model_patches(host, zoo, name, node, settings):
    tiny = zoo[name]
    known = {**host.node(node).INPUT_TYPES()["required"], **host.node(node).INPUT_TYPES().get("optional", {})}
    (model,) = host.call(node, model=tiny.model, **{k: v for k, v in settings.items() if k in known})
    check(host, tiny, model)


@pytest.mark.parametrize("shift", [1.0, 6.0])
def test_model_sampling_before_or_after_our_loader(host, zoo, shift):
    """The schedule is read from the model that is sampled, whatever the order of the nodes."""
    tiny = zoo["sd3"]
    (first,) = host.call("ModelSamplingSD3", model=tiny.model, shift=shift)
    before = with_profile(host, Tiny(first, tiny.shapes, tiny.tokens, tiny.width), phases=4)
    (after,) = host.call("ModelSamplingSD3", model=with_profile(host, tiny, phases=4), shift=shift)
    (a, _), (b, _) = (pcm(host, tiny, model=model, cfg="1") for model in (before, after))
    assert torch.equal(a["samples"], b["samples"])
    sigmas, *_ = host.call("PCMPhaseScheduler", model=after)
    expected = [shift * t / (1 + (shift - 1) * t) for t in (1, 0.75, 0.5, 0.25, 0)]
    torch.testing.assert_close(sigmas, torch.tensor(expected), atol=1e-6, rtol=0)


def test_attention_patches_as_ip_adapter_sets_them(host, zoo):
    tiny = zoo["eps"]
    image = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(5))

    def add_image_tokens(q, k, v, extra_options):
        tokens = image[..., : k.shape[-1]].repeat(k.shape[0], 1, 1).to(k)
        return q, torch.cat([k, tokens], 1), torch.cat([v, tokens], 1)

    model = tiny.model.clone()
    model.set_model_attn2_patch(add_image_tokens)
    check(host, tiny, model)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_block_patches_as_ip_adapters_of_transformers_set_them(host, zoo, name):
    tiny = zoo[name]

    def add_to_the_image(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": out["img"] + 0.3 * out["img"].flip(1)}

    model = tiny.model.clone()
    model.set_model_patch_replace(add_to_the_image, "dit", "double_block", 0)
    check(host, tiny, model)


SAMPLINGS = [
    ("eps", "ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": False}),
    ("sd3", "ModelSamplingSD3", {"shift": 6.0}),
    ("wan", "ModelSamplingSD3", {"shift": 2.0}),
]


@pytest.mark.parametrize(("name", "node", "settings"), SAMPLINGS)
def test_model_sampling_around_the_real_loader(host, zoo, name, node, settings):
    """Either order is the host's own LoRA loader under euler and simple; the LoRA says four phases and no shift."""
    tiny = zoo[name]
    file = put(
        host, tiny.model, f"four_{name}", count=1000, value=0.1, metadata={"pcm_phases": "4", "pcm_cfg": str(CFG)}
    )

    def loaded(model):
        return host.call("PCMLoraLoader", model=model, lora_name=file, strength=1.0, allow_partial=False)[0]

    (first,) = host.call(node, model=tiny.model, **settings)
    (after,) = host.call(node, model=loaded(tiny.model), **settings)
    (theirs,) = host.call("LoraLoaderModelOnly", model=first, lora_name=file, strength_model=1.0)
    expected = stock(host, replace(tiny, model=theirs), steps=4, cfg=CFG)
    for model in (loaded(first), after):
        close(pcm(host, tiny, model=model)[0], expected)
    for model in (first, loaded(tiny.model)):  # without the LoRA, without the patch
        assert not torch.allclose(pcm(host, tiny, model=model, steps=4, cfg=str(CFG))[0]["samples"],
                                  expected["samples"], rtol=1e-3, atol=1e-3)  # fmt: skip


@pytest.fixture(scope="module")
def control_net(host):
    """A tiny ControlNet of the host's own class, for the tiny eps UNet."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.model_management
    import comfy.ops
    from tiny import fill

    network = comfy.cldm.cldm.ControlNet(
        image_size=32, in_channels=4, hint_channels=3, model_channels=32, num_res_blocks=[1], channel_mult=[1],
        transformer_depth=[1], transformer_depth_middle=1, context_dim=24, use_spatial_transformer=True,
        use_linear_in_transformer=False, num_heads=8, num_head_channels=-1, legacy=False, use_checkpoint=False,
        dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return comfy.controlnet.ControlNet(fill(network, 3), load_device=comfy.model_management.get_torch_device())


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.3, 0.8)])
def test_control_net_steers_both_alike(host, zoo, control_net, start, end):
    tiny = zoo["eps"]
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    positive, negative = host.call(
        "ControlNetApplyAdvanced", positive=tiny.positive, negative=tiny.negative, control_net=control_net,
        image=image, strength=1.0, start_percent=start, end_percent=end,
    )  # fmt: skip
    check(host, tiny, tiny.model, positive=positive, negative=negative)


class TestMasks:
    @pytest.mark.parametrize("name", ["eps", "sd3"])
    def test_differential_diffusion_with_a_soft_mask(self, host, zoo, name):
        tiny = zoo[name]
        (model, *_) = host.call("DifferentialDiffusion", model=tiny.model)
        latent = {**tiny.latent(seed=4), "noise_mask": torch.linspace(0, 1, 8).repeat(1, 8, 1)}
        check(host, tiny, model, latent_image=latent)

    @pytest.mark.parametrize("name", ["eps", "sd3"])
    def test_outpainting(self, host, zoo, name):
        """A picture in the middle of a larger empty latent, the border to fill."""
        tiny = zoo[name]
        picture = tiny.latent(seed=4)["samples"][..., :4, :4]
        samples, mask = torch.zeros(1, tiny.shapes[0][0], 8, 8), torch.ones(1, 8, 8)
        samples[..., 2:6, 2:6], mask[..., 2:6, 2:6] = picture, 0
        latent = {"samples": samples, "noise_mask": mask}
        check(host, tiny, tiny.model, latent_image=latent, reference=stock(host, tiny, steps=4, cfg=CFG))
        (out, _) = pcm(host, tiny, steps=4, cfg="3", latent_image=latent)
        torch.testing.assert_close(out["samples"][..., 2:6, 2:6], picture, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["eps", "sd3"])
def test_area_prompts_and_ranges(host, zoo, name):
    """Two prompts, one for a part of the picture, one for the second half of the steps."""
    tiny = zoo[name]
    (left,) = host.call("ConditioningSetArea", conditioning=tiny.cond(5), width=32, height=64, x=0, y=0, strength=1.0)
    (late,) = host.call("ConditioningSetTimestepRange", conditioning=tiny.cond(6), start=0.5, end=1.0)
    check(host, tiny, tiny.model, positive=[*tiny.positive, *left, *late])
