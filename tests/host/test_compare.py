"""PCM Compare against the nodes it stands for: PCM Sampler, KSampler and VAE Decode."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import fill, fingerprint, make_vae

from pcm_core import metrics as core_metrics
from pcm_core.errors import PCMError
from pcm_core.profiles import PCMProfile
from phased_consistency.nodes import host as nodes_host

CELL = 64  # what a latent of 8 x 8 decodes to: pictures go on the sheet unscaled


@pytest.fixture(scope="module")
def vae(host):
    return make_vae(16)


def compare(host, tiny, vae, columns, **inputs):
    """(sheet [H, W, 3], figures) of PCMCompare."""
    own = {"model": tiny.model, "positive": tiny.positive, "negative": tiny.negative, "latent_image": tiny.latent()}
    grid, text = host.call(
        "PCMCompare", **{**own, "vae": vae, "columns": columns, "cell_size": CELL, "seed": 3, **inputs}
    )
    assert grid.ndim == 4 and len(grid) == 1 and grid.dtype == torch.float32
    assert 0 <= float(grid.min()) and float(grid.max()) <= 1
    return grid[0], text


def pcm(host, tiny, *, seed=3, latent=None, positive=None, **settings):
    out, *_ = host.call(
        "PCMSampler", model=tiny.model, positive=positive or tiny.positive, negative=tiny.negative, seed=seed,
        latent_image=latent or tiny.latent(), **settings,
    )  # fmt: skip
    return out


def pictures(host, vae, latent):
    return host.call("VAEDecode", samples=latent, vae=vae)[0]


def eight_bit(image):
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)


def place(sheet, picture):
    """(row, column) of the one spot where the sheet shows the picture exactly."""
    big, small = eight_bit(sheet), eight_bit(picture)
    height, width = small.shape[:2]
    corners = (big == small[0, 0]).all(-1).nonzero().tolist()
    found = [(y, x) for y, x in corners if torch.equal(big[y : y + height, x : x + width], small)]
    assert len(found) == 1, f"the picture is on the sheet {len(found)} times"
    return found[0]


def table(text):
    """Figures by column title."""
    head, *lines = text.splitlines()[1:]
    spans = [head.index(word) for word in ("steps", "cfg")]
    return {line[: spans[0]].strip(): line[spans[0] :].split() for line in lines}


def test_every_cell_is_what_the_sampler_nodes_make(host, zoo, vae):
    tiny = zoo["sd3"]
    (teacher,) = host.call(
        "KSampler", model=tiny.model, seed=3, steps=6, cfg=2.0, sampler_name="euler", scheduler="beta",
        positive=tiny.positive, negative=tiny.negative, latent_image=tiny.latent(), denoise=1.0,
    )  # fmt: skip
    latents = [pcm(host, tiny, steps=1), pcm(host, tiny, steps=4, cfg="1.5"), teacher]
    sheet, text = compare(host, tiny, vae, "1, 4 cfg 1.5, euler/beta@6 cfg 2 = teacher")
    shown = [pictures(host, vae, latent)[0] for latent in latents]
    spots = [place(sheet, picture) for picture in shown]
    assert [x for _, x in spots] == sorted({x for _, x in spots}), "columns in order"
    assert len({y for y, _ in spots}) == 1, "one row"
    core = core_metrics
    figures = table(text)
    assert list(figures) == ["1 step", "4 steps", "teacher (beta)"]
    for (_, values), latent, picture in zip(figures.items(), latents, shown, strict=True):
        expected = (
            core.cosine(latent["samples"], teacher["samples"]),
            core.psnr(picture[None], shown[-1][None]),
            core.ssim(picture[None], shown[-1][None]),
        )
        assert [float(v) for v in values[2:]] == pytest.approx(expected, abs=1e-4)
    assert [values[:2] for values in figures.values()] == [["1", "auto"], ["4", "1.5"], ["6", "2"]]
    assert figures["teacher (beta)"][2:] == ["1.0000", "inf", "1.0000"]
    assert float(figures["1 step"][2]) < 0.999, "a figure that says 1 for everything is no figure"


def test_rows_are_prompts_by_seeds_by_batch(host, zoo, vae):
    tiny = zoo["sd3"]
    other = tiny.cond(5)
    sheet, _ = compare(
        host, tiny, vae, "2", latent_image=tiny.latent(2), seeds=2, prompts={"positive_2": other}, row_labels="one"
    )
    rows = [
        place(sheet, picture)
        for positive in (tiny.positive, other)
        for seed in (3, 4)
        for picture in pictures(
            host, vae, pcm(host, tiny, steps=2, seed=seed, positive=positive, latent=tiny.latent(2))
        )
    ]
    assert len({x for _, x in rows}) == 1
    assert rows == sorted(rows) and len({y for y, _ in rows}) == 8


def test_other_models_and_their_own_settings(host, zoo, vae):
    tiny = zoo["sd3"]
    profile = PCMProfile(method="PCM", phases=2, steps=2, cfg=1.5)
    model_b = nodes_host.attach_profile(tiny.model, profile)
    _, text = compare(host, tiny, vae, "1, 3", models={"model_b": model_b, "model_c": tiny.model})
    assert {title: values[:2] for title, values in table(text).items()} == {
        "1 step": ["1", "auto"], "3 steps": ["3", "auto"], "b: auto": ["2", "1.5"], "c: auto": ["4", "auto"],
    }  # fmt: skip
    assert table(text)["b: auto"][2:] != table(text)["c: auto"][2:]
    error = PCMError
    with pytest.raises(error, match="model_d"):
        compare(host, tiny, vae, "1, d: 2")
    with pytest.raises(error, match="euler"):
        compare(host, tiny, vae, "eulr/simple@4")
    with pytest.raises(error, match="sgm_uniform"):
        compare(host, tiny, vae, "euler/sgm_unifrm@4")


SYSTEMS = {
    "a": "pcm_sdxl_smallcfg_4step_converted", "b": "lcm-lora-sdxl", "c": "TCD-SDXL-LoRA",
    "d": "Hyper-SDXL-4steps-lora", "e": "sd_xl_turbo_lora_v1", "f": "sdxl_lightning_4step_lora",
}  # fmt: skip
STOCK = {
    "b: lcm/sgm_uniform@4": ("lcm", "sgm_uniform", 4, 1.0),
    "g: ddim/ddim_uniform@3 cfg 5 = DDIM": ("ddim", "ddim_uniform", 3, 5.0),
    "g: dpmpp_2m/karras@3 cfg 5 = DPM++": ("dpmpp_2m", "karras", 3, 5.0),
}


def released(host, tiny, name):
    """The tiny model with a small LoRA under a released name, through Load PCM LoRA: name and settings are real."""
    from safetensors.torch import save_file

    target = "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_q"
    rows, columns = tiny.model.model.state_dict()[f"{target}.weight"].shape
    noise = torch.Generator().manual_seed(len(name))
    down, up = torch.randn(4, columns, generator=noise) * 0.2, torch.randn(rows, 4, generator=noise) * 0.2
    path = host.base / "models" / "loras" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(4.0)}
    save_file({f"{target}.{key}": value for key, value in tensors.items()}, path)
    model, *_ = host.call("PCMLoraLoader", model=tiny.model, lora_name=path.name, strength=1.0, allow_partial=False)
    return model


def test_every_few_step_system_and_the_stock_samplers_in_one_run(host, zoo):
    """PCM, LCM, TCD, CTM (Hyper-SD), Turbo, Lightning, DDIM and DPM++, each as its own node would sample it."""
    tiny, vae = zoo["sdxl"], make_vae(4)
    models = {letter: released(host, tiny, name) for letter, name in SYSTEMS.items()} | {"g": tiny.model}
    given = {"latent_image": tiny.latent(), "positive": tiny.positive, "negative": tiny.negative}
    columns = [*(f"{letter}: auto = {name}" for letter, name in SYSTEMS.items()), *STOCK]
    others = {f"model_{letter}": model for letter, model in models.items() if letter != "a"}
    _, text = compare(host, tiny, vae, "\n".join(columns), model=models["a"], models=others)
    figures = table(text)
    alone = [host.call("PCMSampler", model=models[letter], seed=3, **given)[0] for letter in SYSTEMS]
    for column, (sampler, scheduler, steps, cfg) in STOCK.items():
        alone += host.call("KSampler", model=models[column[0]], seed=3, steps=steps, cfg=cfg, sampler_name=sampler,
                           scheduler=scheduler, denoise=1.0, **given)  # fmt: skip
    cosine = core_metrics.cosine
    expected = [cosine(latent["samples"], alone[-1]["samples"]) for latent in alone]
    assert [float(values[2]) for values in figures.values()] == pytest.approx(expected, abs=1e-4)
    assert len(figures) == len(alone) == 9 and len(set(expected)) == 9, "no two are one sampler"
    steps = {title: values[0] for title, values in figures.items()}
    assert steps["sd_xl_turbo_lora_v1"] == "1" and steps["sdxl_lightning_4step_lora"] == "4"
    assert steps["DPM++ (karras)"] == "3"


def test_denoise_reaches_both_kinds_of_column(host, zoo, vae):
    tiny = zoo["sd3"]
    latent = tiny.latent(seed=9)
    (stock,) = host.call(
        "KSampler", model=tiny.model, seed=3, steps=3, cfg=1.0, sampler_name="euler", scheduler="simple",
        positive=tiny.positive, negative=tiny.negative, latent_image=latent, denoise=0.5,
    )  # fmt: skip
    sheet, _ = compare(host, tiny, vae, "4, euler/simple@3", latent_image=latent, denoise=0.5)
    for result in (pcm(host, tiny, steps=4, denoise=0.5, latent=latent), stock):
        place(sheet, pictures(host, vae, result)[0])


def test_clip_vision_gives_the_figure_of_the_paper(host, zoo, vae, tmp_path):
    import comfy.clip_vision

    config = {
        "attention_dropout": 0.0, "hidden_act": "quick_gelu", "hidden_size": 32, "image_size": 28,
        "intermediate_size": 32, "layer_norm_eps": 1e-5, "model_type": "clip_vision_model", "num_attention_heads": 2,
        "num_channels": 3, "num_hidden_layers": 2, "patch_size": 14, "projection_dim": 16, "torch_dtype": "float32",
    }  # fmt: skip
    path = tmp_path / "clip.json"
    path.write_text(json.dumps(config))
    clip = comfy.clip_vision.ClipVisionModel(str(path))
    fill(clip.model)
    tiny = zoo["sd3"]
    _, text = compare(host, tiny, vae, "1, 4", clip_vision=clip)
    with torch.inference_mode():
        one, four = (
            clip.encode_image(pictures(host, vae, pcm(host, tiny, steps=n)))["image_embeds"].flatten() for n in (1, 4)
        )
    expected = float(torch.nn.functional.cosine_similarity(one, four, dim=0))
    assert "CLIP cosine" in text
    assert float(table(text)["1 step"][2]) == pytest.approx(expected, abs=1e-4)


def test_clips_show_their_middle_frame(host, zoo):
    class Frames:
        """Three frames per latent frame of one grey each; the host's video VAEs return [B, T, H, W, C]."""

        def decode(self, samples):
            grey = torch.linspace(0, 1, samples.shape[2]).reshape(1, -1, 1, 1, 1)
            return grey.expand(len(samples), -1, CELL, CELL, 3)

    tiny = zoo["wan"]
    sheet, _ = compare(host, tiny, Frames(), "1")
    assert (eight_bit(sheet) == 128).all(-1).sum() >= CELL * CELL


def test_same_bits_again_and_nothing_written(host, zoo):
    tiny, vae = zoo["eps"], make_vae(4)
    latent, positive, negative = tiny.latent(seed=2), tiny.positive, tiny.negative
    before = fingerprint([latent, positive, negative])
    inputs = {"latent_image": latent, "positive": positive, "negative": negative, "denoise": 0.6}
    first, text = compare(host, tiny, vae, "2, dpmpp_2m_sde/karras@4 cfg 3", **inputs)
    second, again = compare(host, tiny, vae, "2, dpmpp_2m_sde/karras@4 cfg 3", **inputs)
    assert torch.equal(first, second) and text == again
    assert fingerprint([latent, positive, negative]) == before


def test_columns_are_checked_before_anything_runs(host):
    node = host.node("PCMCompare")
    assert node.validate_inputs(columns="1, 2") is True
    assert node.validate_inputs(columns=None) is True, "linked: not known yet"
    assert '"four"' in node.validate_inputs(columns="four")
    assert node.validate_inputs(columns=[1, 2, 3]) is True, "the host has refused it already"
    assert "empty" in node.validate_inputs(columns="")
