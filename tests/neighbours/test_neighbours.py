"""One graph with each of nine well-known packs: ``python dev.py test -- tests/neighbours --packs DIR``.

The right value is the stock node's on the same model, seed and names; a neighbour's node that calls the host's sampling
code must give its bits. ``SAME`` is for nodes that compute in another order.
"""

from __future__ import annotations

import json

import pytest
import torch
from graphs import BASE, LORA, MODEL, OTHER_STYLE, STYLE, Bench, ksampler, node, prompts, world

SAME = 2e-5  # of latents around 1; fp32 in another order over four steps
PIXEL = 2.0  # of 255: two roundings to 8 bits

NAMES = {"sampler_name": "pcm", "scheduler": "pcm"}
SIMPLE = {"sampler_name": "pcm", "scheduler": "simple"}  # for packs whose own list of schedulers lacks pcm


def stock(bench: Bench, **settings) -> torch.Tensor:
    return bench.latent(world(out=ksampler(**settings)), "out")


def near(a: torch.Tensor, b: torch.Tensor, limit: float = SAME) -> None:
    assert a.shape == b.shape and float((a - b).abs().max()) <= limit, float((a - b).abs().max())


# Nodes that take the names


@pytest.mark.pack("Impact Pack")
def test_impact_basic_pipe(bench):
    """KSampler (pipe) by name: the bits of KSampler"""
    graph = world(
        clip=node("TestNoClip"),
        pipe=node("ToBasicPipe", model=MODEL, clip=["clip", 0], vae=["vae", 0], **prompts()),
        out=node("ImpactKSamplerBasicPipe", basic_pipe=["pipe", 0], seed=7, steps=4, cfg=1.0, **SIMPLE,
                 latent_image=["latent", 0], denoise=1.0),
    )  # fmt: skip
    assert not bench.said(lambda: near(bench.latent(graph, "out", 1), stock(bench), 0))


@pytest.mark.pack("Impact Pack")
def test_impact_detailer(bench):
    """Detailer (SEGS) with pcm at denoise 0.5: the image of euler, no warning"""

    def detailed(sampler):
        return world(
            clip=node("TestNoClip"),
            first=ksampler(),
            picture=node("VAEDecode", samples=["first", 0], vae=["vae", 0]),
            mask=node("TestMiddleMask", size=64),
            segs=node("MaskToSEGS", mask=["mask", 0], combined=False, crop_factor=1.5, bbox_fill=False, drop_size=1,
                      contour_fill=False),
            out=node("DetailerForEach", image=["picture", 0], segs=["segs", 0], model=MODEL, clip=["clip", 0],
                     vae=["vae", 0], guide_size=64, guide_size_for=True, max_size=64, seed=3, steps=4, cfg=1.0,
                     sampler_name=sampler, scheduler="simple", **prompts(), denoise=0.5, feather=2, noise_mask=True,
                     force_inpaint=True, wildcard="", cycle=1),
        )  # fmt: skip

    assert not bench.said(lambda: bench.image(detailed("pcm"), "out"))
    near(bench.image(detailed("pcm"), "out"), bench.image(detailed("euler"), "out"), PIXEL)


@pytest.mark.pack("Impact Pack")
def test_impact_regional(bench):
    """RegionalSampler with pcm: parts of a schedule, no false warning, the latent of euler"""

    def regional(sampler):
        settings = {"cfg": 1.0, "sampler_name": sampler, "scheduler": "simple", "sigma_factor": 1.0}
        return world(
            clip=node("TestNoClip"),
            pipe=node("ToBasicPipe", model=MODEL, clip=["clip", 0], vae=["vae", 0], **prompts()),
            advanced=node("KSamplerAdvancedProvider", basic_pipe=["pipe", 0], **settings),
            mask=node("TestMiddleMask", size=64),
            regions=node("RegionalPrompt", mask=["mask", 0], advanced_sampler=["advanced", 0]),
            out=node("RegionalSampler", seed=7, seed_2nd=0, seed_2nd_mode="ignore", steps=4, base_only_steps=1,
                     denoise=1.0, samples=["latent", 0], base_sampler=["advanced", 0],
                     regional_prompts=["regions", 0], overlap_factor=2, restore_latent=True, additional_mode="DISABLE",
                     additional_sampler="AUTO", additional_sigma_ratio=0.3),
        )  # fmt: skip

    assert not bench.said(lambda: bench.latent(regional("pcm"), "out"))
    near(bench.latent(regional("pcm"), "out"), bench.latent(regional("euler"), "out"))


@pytest.mark.pack("Impact Pack")
@pytest.mark.parametrize(("steps", "denoise"), [(4, 1.0), (2, 0.5)])
def test_impact_scheduler_func(bench, steps, denoise):
    """SCHEDULER_FUNC of PCM Phase Scheduler in KSampler (pipe), denoise 1 and 0.5: the phase edges, as by name"""
    graph = world(
        clip=node("TestNoClip"),
        first=ksampler(),
        sigmas=node("PCMPhaseScheduler", model=MODEL),
        pipe=node("ToBasicPipe", model=MODEL, clip=["clip", 0], vae=["vae", 0], **prompts()),
        out=node("ImpactKSamplerBasicPipe", basic_pipe=["pipe", 0], seed=7, steps=steps, cfg=1.0, sampler_name="pcm",
                 scheduler="karras", latent_image=["first", 0], denoise=denoise, scheduler_func_opt=["sigmas", 1]),
    )  # fmt: skip
    named = ksampler(scheduler="simple", steps=steps, denoise=denoise, latent_image=["first", 0])
    near(bench.latent(graph, "out", 1), bench.latent(world(first=ksampler(), out=named), "out"))


@pytest.mark.pack("Efficiency Nodes")
def test_efficiency(bench):
    """KSampler (Efficient) by name: the bits of KSampler"""
    graph = world(out=node(
        "KSampler (Efficient)", model=MODEL, seed=7, steps=4, cfg=1.0, **SIMPLE, **prompts(),
        latent_image=["latent", 0], denoise=1.0, preview_method="none", vae_decode="false", optional_vae=["vae", 0],
    ))  # fmt: skip
    near(bench.latent(graph, "out", 3), stock(bench, scheduler="simple"), 0)


@pytest.mark.pack("Easy-Use")
def test_easy_use(bench):
    """easy fullkSampler by name: the bits of KSampler"""
    graph = world(
        pipe=node("easy pipeIn", model=MODEL, pos=["positive", 0], neg=["negative", 0], latent=["latent", 0],
                  vae=["vae", 0]),
        out=node("easy fullkSampler", pipe=["pipe", 0], steps=4, cfg=1.0, **NAMES, denoise=1.0, image_output="Hide",
                 link_id=0, save_prefix="x", seed=7),
    )  # fmt: skip
    near(bench.latent(graph, "out", 5), stock(bench), 0)


@pytest.mark.pack("rgthree")
def test_rgthree_config(bench):
    """KSampler Config: the names pcm by links into KSampler"""
    graph = world(
        config=node("KSampler Config (rgthree)", steps_total=4, refiner_step=2, cfg=1.0, **NAMES),
        out=ksampler(sampler=["config", 3], scheduler=["config", 4], steps=["config", 0], cfg=["config", 2]),
    )
    near(bench.latent(graph, "out"), stock(bench), 0)


# What RES4LYF's samplers share; they draw their own noise, in float64, so that only they compare with each other.
CLOWN = {"model": MODEL, **prompts(), "latent_image": ["latent", 0], "steps": 4, "steps_to_run": -1, "denoise": 1.0,
         "cfg": 1.0, "seed": 7, "sampler_mode": "standard"}  # fmt: skip


def clownshark(scheduler="simple", **more):
    """ClownsharKSampler as a plain Euler sampler."""
    plain = {"eta": 0.0, "sampler_name": "linear/euler", "bongmath": False}
    return node("ClownsharKSampler_Beta", **CLOWN, **plain, scheduler=scheduler, **more)


@pytest.mark.pack("RES4LYF")
def test_res4lyf_shark(bench):
    """SharkSampler with SamplerPCM and scheduler pcm: the picture of its own euler on simple"""
    graph = world(
        sampler=node("SamplerPCM"),
        out=node("SharkSampler_Beta", **CLOWN, sampler=["sampler", 0], scheduler="pcm"),
    )
    near(bench.latent(graph, "out"), bench.latent(world(out=clownshark()), "out"), 1e-3)


@pytest.mark.pack("RES4LYF")
def test_res4lyf_clownshark(bench):
    """ClownsharKSampler with scheduler pcm, and with our SIGMAS: the latent of simple"""
    want = bench.latent(world(out=clownshark()), "out")
    near(bench.latent(world(out=clownshark("pcm")), "out"), want, 0)
    graph = world(sigmas=node("PCMPhaseScheduler", model=MODEL), out=clownshark(sigmas=["sigmas", 0]))
    near(bench.latent(graph, "out"), want)


@pytest.mark.pack("UltimateSDUpscale")
def test_ultimate_upscale(bench):
    """Ultimate SD Upscale in four tiles with pcm and pcm: the image of euler and simple"""

    def upscaled(sampler, scheduler):
        return world(
            first=ksampler(),
            picture=node("VAEDecode", samples=["first", 0], vae=["vae", 0]),
            large=node("ImageScale", image=["picture", 0], upscale_method="nearest-exact", width=128, height=128,
                       crop="disabled"),
            out=node("UltimateSDUpscaleNoUpscale", upscaled_image=["large", 0], model=MODEL, **prompts(),
                     vae=["vae", 0], seed=3, steps=4, cfg=1.0, sampler_name=sampler, scheduler=scheduler, denoise=0.5,
                     mode_type="Linear", tile_width=64, tile_height=64, mask_blur=4, tile_padding=0,
                     seam_fix_mode="None", seam_fix_denoise=1.0, seam_fix_width=64, seam_fix_mask_blur=8,
                     seam_fix_padding=16, force_uniform_tiles=True, tiled_decode=False, batch_size=1),
        )  # fmt: skip

    near(bench.image(upscaled("pcm", "pcm"), "out"), bench.image(upscaled("euler", "simple"), "out"), PIXEL)


# LoRA loaders beside ours


def power(model, *names):
    """rgthree's Power Lora Loader with files at strength 1."""
    rows = {f"lora_{i}": {"on": True, "lora": name, "strength": 1.0} for i, name in enumerate(names, 1)}
    return node("Power Lora Loader (rgthree)", model=model, **rows)


@pytest.mark.pack("rgthree")
@pytest.mark.parametrize("order", ["before", "after"])
def test_rgthree_power_lora(bench, order):
    """Power Lora Loader with two styles before and after Load PCM LoRA: the latent of the stock loaders"""

    def plain(model, name):
        return node("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=1.0)

    ours = world()["lora"]
    if order == "before":
        theirs = world(power=power(BASE, STYLE, OTHER_STYLE), lora=ours | {"inputs": ours["inputs"] | {
            "model": ["power", 0]}}, out=ksampler())  # fmt: skip
        want = world(one=plain(BASE, STYLE), two=plain(["one", 0], OTHER_STYLE), three=plain(["two", 0], LORA),
                     out=ksampler(["three", 0], "euler", "simple"))  # fmt: skip
    else:
        theirs = world(power=power(MODEL, STYLE, OTHER_STYLE), out=ksampler(["power", 0]))
        want = world(one=plain(BASE, LORA), two=plain(["one", 0], STYLE), three=plain(["two", 0], OTHER_STYLE),
                     out=ksampler(["three", 0], "euler", "simple"))  # fmt: skip
    got = bench.latent(theirs, "out")
    near(got, bench.latent(want, "out"))
    assert float((got - stock(bench)).abs().max()) > 0.01, "the styles do nothing"


@pytest.mark.pack("rgthree")
def test_rgthree_same_file(bench):
    """The same few-step file in Power Lora Loader and in ours: Load PCM LoRA says so"""
    ours = world()["lora"]
    graph = world(power=power(BASE, LORA), lora=ours | {"inputs": ours["inputs"] | {"model": ["power", 0]}},
                  shown=node("PreviewAny", source=["lora", 1]))  # fmt: skip
    (report,) = bench.client.run(graph)["shown"]["text"]
    assert "The model already carries this very LoRA" in report


def stacked(bench, **stack):
    """Load PCM LoRA with a LORA_STACK, and the same by the stock loader before it."""
    ours = world()["lora"]
    given = world(stack=stack["stack"], lora=ours | {"inputs": ours["inputs"] | {"lora_stack": ["stack", 0]}},
                  out=ksampler())  # fmt: skip
    style = node("LoraLoaderModelOnly", model=BASE, lora_name=STYLE, strength_model=0.8)
    want = world(style=style, lora=ours | {"inputs": ours["inputs"] | {"model": ["style", 0]}}, out=ksampler())
    near(bench.latent(given, "out"), bench.latent(want, "out"))


@pytest.mark.pack("Efficiency Nodes")
def test_efficiency_stack(bench):
    """LoRA Stacker into Load PCM LoRA: the latent of the stock loader before it"""
    kinds = (("lora_name", "None"), ("lora_wt", 1.0), ("model_str", 1.0), ("clip_str", 1.0))
    slots = {f"{name}_{i}": value for i in range(1, 51) for name, value in kinds}
    slots |= {"lora_name_1": STYLE, "lora_wt_1": 0.8, "model_str_1": 0.8}
    stacked(bench, stack=node("LoRA Stacker", input_mode="simple", lora_count=1, **slots))


@pytest.mark.pack("Easy-Use")
def test_easy_stack(bench):
    """easy loraStack into Load PCM LoRA: the latent of the stock loader before it"""
    stacked(bench, stack=node("easy loraStack", toggle=True, mode="simple", num_loras=1, lora_1_name=STYLE,
                              lora_1_strength=0.8, lora_1_model_strength=0.8, lora_1_clip_strength=1.0))  # fmt: skip


# Other bases, guiders and tables


@pytest.mark.pack("KJNodes")
def test_kjnodes(bench):
    """DiffusionModelLoaderKJ, Load PCM LoRA, ScheduledCFGGuidance and SamplerPCM: the latent of KSampler"""
    graph = world(
        base=node("DiffusionModelLoaderKJ", model_name="demo_sd3.safetensors", weight_dtype="default",
                  compute_dtype="default", patch_cublaslinear=False, sage_attention="disabled",
                  enable_fp16_accumulation=False),
        passed=node("ModelPassThrough", model=MODEL),
        guider=node("ScheduledCFGGuidance", model=["passed", 0], **prompts(), cfg=1.0, start_percent=0.0,
                    end_percent=1.0),
        noise=node("RandomNoise", noise_seed=7),
        sampler=node("SamplerPCM"),
        sigmas=node("PCMPhaseScheduler", model=["passed", 0]),
        out=node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["sampler", 0],
                 sigmas=["sigmas", 0], latent_image=["latent", 0]),
    )  # fmt: skip
    near(bench.latent(graph, "out"), stock(bench))


@pytest.mark.pack("GGUF")
def test_gguf(bench):
    """Load PCM LoRA on a Q8_0 file: every tensor, the bits of the stock LoRA loader on it"""
    base = node("UnetLoaderGGUF", unet_name="demo_sd3_q8.gguf")
    graph = world(base=base, out=ksampler(sampler="euler", scheduler="simple"), shown=node("PreviewAny",
                  source=["lora", 1]))  # fmt: skip
    report = bench.client.run({**graph, "keep": node("SaveLatent", samples=["out", 0], filename_prefix="x")})
    tensors = json.loads(json.dumps(report["shown"]["text"]))[0]
    assert "applied" in tensors, tensors
    want = world(base=base, lora=node("LoraLoaderModelOnly", model=BASE, lora_name=LORA, strength_model=1.0),
                 out=ksampler(sampler="euler", scheduler="simple"))  # fmt: skip
    got = bench.latent(graph, "out")
    near(got, bench.latent(want, "out"), 0)
    near(got, stock(bench), 0.2)  # of the same model unpacked


@pytest.mark.pack("RES4LYF")
def test_res4lyf_table(bench):
    """ModelSamplingAdvanced, a table that its own shift does not describe: it is said, and sampled as it is"""
    graph = world(table=node("ModelSamplingAdvanced", model=MODEL, scaling="exponential", shift=3.0),
                  out=node("PCMSampler", model=["table", 0], **prompts(), latent_image=["latent", 0],
                           seed=7))  # fmt: skip
    said = bench.said(lambda: bench.latent(graph, "out"))
    assert any("shift" in sentence for sentence in said), said


@pytest.mark.pack("AnimateDiff-Evolved")
def test_animatediff(bench):
    """Use Evolved Sampling with Context Options, then PCM Sampler and KSampler by name: the same latent"""
    more = {
        "latent": node("EmptySD3LatentImage", width=64, height=64, batch_size=8),
        "context": node("ADE_StandardUniformContextOptions", context_length=4, context_stride=1, context_overlap=1),
        "evolved": node("ADE_UseEvolvedSampling", model=MODEL, beta_schedule="use existing",
                        context_options=["context", 0]),
    }  # fmt: skip
    ours = node("PCMSampler", model=["evolved", 0], **prompts(), latent_image=["latent", 0], seed=7)
    near(bench.latent(world(**more, out=ours), "out"), bench.latent(world(**more, out=ksampler(["evolved", 0])), "out"))


@pytest.mark.pack("AnimateDiff-Evolved")
def test_animatediff_video(bench):
    """Use Evolved Sampling, then PCM Video Sampler: the latent without it"""
    more = {
        "base": node("UNETLoader", unet_name="demo_wan.safetensors", weight_dtype="default"),
        "lora": node("PCMLoraLoader", model=BASE, lora_name="demo_wan_pcm_4phase.safetensors", strength=1.0,
                     allow_partial=False),
        "positive": node("PCMDemoVideoPrompt", text="a red circle moving left"),
        "negative": node("PCMDemoVideoPrompt", text=""),
        "latent": node("EmptyHunyuanLatentVideo", width=48, height=48, length=13, batch_size=1),
        "evolved": node("ADE_UseEvolvedSampling", model=MODEL, beta_schedule="autoselect"),
    }  # fmt: skip

    def video(model):
        return node("PCMVideoSampler", model=model, **prompts(), latent_image=["latent", 0], seed=7)

    near(bench.latent(world(**more, out=video(["evolved", 0])), "out"),
         bench.latent(world(**more, out=video(MODEL)), "out"))  # fmt: skip
