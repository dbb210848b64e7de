"""Refusals that the nodes' own check of their inputs meets first, and that scripts and other packs still meet."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pcm_core import distill as core_distill
from pcm_core.errors import PCMError
from pcm_core.profiles import PCMProfile
from pcm_core.video import models as video_models
from phased_consistency.nodes import host as nodes_host
from phased_consistency.nodes import load_lora as load_lora_node
from phased_consistency.nodes.host import loaders as host_loaders
from phased_consistency.nodes.host import training as host_training
from phased_consistency.nodes.sampling import clip as clip_sampling
from phased_consistency.nodes.sampling import plan as planning
from phased_consistency.nodes.sampling import video_setup
from phased_consistency.nodes.training import job as training_job
from phased_consistency.nodes.training import session as training_session


@pytest.fixture
def error(host):
    return PCMError


@pytest.mark.parametrize("denoise", [-0.1, 1.5, math.nan])
def test_denoise_is_a_share(host, zoo, error, denoise):
    """Also where the LoRA has a list of sigmas, which no schedule checks."""
    listed = PCMProfile(method="listed", sigmas=(1.0, 0.5, 0.0))
    for model in (zoo["sd3"].model, nodes_host.attach_profile(zoo["sd3"].model, listed)):
        with pytest.raises(error, match="denoise is"):
            planning.make_plan(model, denoise=denoise)


@pytest.mark.parametrize("values", [(-0.5, -1.0), (-1.0, 2.0), (math.nan, -1.0)])
def test_noise_is_a_share(host, error, values):
    with pytest.raises(error, match=r"is (-0.5|2.0|nan)\."):
        planning.noise_settings(*values)


@pytest.mark.parametrize("shift", [-1.0, math.inf, math.nan])
def test_a_shift_is_a_number(host, zoo, error, shift):
    with pytest.raises(error, match="shift is"):
        video_setup.set_up(zoo["wan"].model, "auto", 0, shift)


def test_a_preset_and_a_method_are_two_answers(host, zoo, error):
    with pytest.raises(error, match=r"preset is .* and method is .*\. Expected: one of them"):
        video_setup.set_up(zoo["wan"].model, video_models.preset_names()[0], 0, 0.0, method="none")


@pytest.mark.parametrize("guidance", [-0.5, math.inf, math.nan])
def test_an_embedded_guidance_is_a_number(host, zoo, error, guidance):
    given = zoo["wan"]
    setup = video_setup.set_up(given.model, "auto", 0, 0.0)
    with pytest.raises(error, match="embedded_guidance is"):
        clip_sampling.condition(setup, given.positive, given.negative, given.latent()["samples"].shape, guidance)


def test_a_host_without_windows_for_audio_is_named(host, zoo, error, monkeypatch):
    """So are the oldest of the supported ones; a newer one is made like them."""
    import comfy.context_windows

    monkeypatch.delattr(comfy.context_windows.IndexListContextHandler, "_build_window_state", raising=False)
    with pytest.raises(error, match="no windows for video with audio"):
        nodes_host.with_context_windows(zoo["wan"].model, 4, 1, 2, nested=True)


def job(host, given, **settings):
    config = core_distill.DistillConfig(**settings)
    return {
        "model": given.model, "latents": [given.latent()["samples"]], "texts": [given.positive], "rank": 2,
        "negative": given.negative, "config": config,
    }  # fmt: skip


def test_distillation_needs_a_text(host, zoo, error):
    with pytest.raises(error, match="no positive conditioning"):
        training_job.Job.checked(**job(host, zoo["sd3"]) | {"texts": []})


def test_a_model_without_blocks_has_no_adversary(host, zoo, error, monkeypatch):
    """No model of the host is without: this one hides them."""
    training = training_job
    monkeypatch.setattr(training.distill, "blocks", lambda root: [])
    asked = training.Job.checked(**job(host, zoo["sd3"], steps=1, batch=1, adversarial=0.1))
    with pytest.raises(error, match="no list of blocks"):
        training_session.run(asked, lambda steps: {})


def test_steps_of_a_hostile_file_are_not_counted(host, zoo):
    import torch
    from safetensors.torch import save_file

    path = host.base / "models" / "loras" / "counted.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    for taken, whole in (("41", "42"), ("9" * 6000, "1"), ("-3", "1"), ("\u0664\u0661", "42")):
        save_file({"a.lora_up.weight": torch.ones(1, 1)}, path, metadata={"pcm_train_steps": taken})
        config = core_distill.DistillConfig()
        written = training_job.metadata_for(zoo["sd3"].model, config, path.name)(1)
        assert written["pcm_train_steps"] == whole


@pytest.mark.parametrize("strength", [math.inf, math.nan])
def test_a_strength_is_a_number(host, zoo, error, tmp_path, strength):
    with pytest.raises(error, match="strength is"):
        load_lora_node.load_lora(zoo["sd3"].model, tmp_path / "none.safetensors", strength)


def test_files_for_scripts_are_what_they_should_be(host, zoo, error):
    files = host_loaders
    with pytest.raises(error, match="holds no VAE"):
        files.load_vae([zoo["sd3"].path])
    with pytest.raises(error, match=r'text encoder type is "sd9".*one of .*sd3'):
        files.load_clip([zoo["sd3"].path], "sd9")


# What a node's own check refuses first


def test_an_unknown_input_is_named(host, error):
    """The host drops those that a prompt sets, and hands on those that are linked."""
    with pytest.raises(error, match=r'no input "eta"\. Expected: one of determinism, gamma\.'):
        host.call("SamplerPCM", eta=0.5)


@pytest.mark.parametrize(
    ("node", "inputs", "words"),
    [
        ("SamplerPCM", {"gamma": "a"}, 'gamma is "a". Expected: a number from -1 to 1.'),
        ("SamplerPCM", {"gamma": None}, "gamma is missing"),
        ("SamplerPCM", {"gamma": 10**400}, "gamma is 1000"),
        ("SamplerPCM", {"gamma": math.inf}, "gamma is inf"),
        ("PCMPhaseScheduler", {"model": {"a": 1}}, "model is a dict. Expected: a MODEL."),
        ("PCMPhaseScheduler", {"steps": 2.5}, "steps is 2.5. Expected: a whole number from 0 to 64."),
        ("PCMPhaseScheduler", {"steps": True}, "steps is True. Expected: a whole number from 0 to 64."),
        ("PCMPhaseScheduler", {"steps": []}, "steps is a list"),
        ("PCMPhaseScheduler", {"spacing": "karras"}, "Expected: one of auto, trailing, aligned, tcd."),
        ("PCMPhaseScheduler", {"spend_extra_steps": "no"}, "Expected: true or false."),
        ("PCMGuider", {"positive": []}, "positive is a list. Expected: a CONDITIONING with at least one text."),
        ("PCMGuider", {"positive": [[1, {}]]}, "positive is a list"),
        ("PCMGuider", {"cfg": [5.0]}, "cfg is a list. Expected: a number or a text."),
        ("PCMSampler", {"latent_image": {"samples": 1}}, "latent_image is a dict. Expected: a LATENT."),
        ("PCMSampler", {"seed": -1}, "seed is -1. Expected: a whole number from 0 to 18446744073709551615."),
        ("PCMPhasePlot", {"sigmas": [1.0, 0.0]}, "sigmas is a list. Expected: SIGMAS."),
        ("PCMCompare", {"vae": "v"}, 'vae is "v". Expected: a VAE.'),
        ("PCMCompare", {"clip_vision": 1}, "clip_vision is 1. Expected: a CLIP_VISION."),
        ("PCMCompare", {"models": {"model_b": 5}}, "model is 5. Expected: a MODEL."),
        ("PCMCompare", {"prompts": 5}, "positive is 5. Expected: a CONDITIONING"),
        ("PCMSaveLora", {"lora": {}}, "lora is a dict. Expected: a trained LoRA."),
        ("PCMLoraLoader", {"lora_name": 5}, "lora_name is 5"),
    ],
)  # fmt: skip
def test_an_input_of_the_wrong_kind_is_named(host, zoo, error, node, inputs, words):
    """Everything else is as it should be."""
    given = zoo["sd3"]
    sound = {
        "model": given.model, "positive": given.positive, "negative": given.negative, "latent_image": given.latent(),
        "lora_name": "a.safetensors",
    }  # fmt: skip
    taken = {entry.id for entry in host.node(node).define_schema().inputs}
    with pytest.raises(error) as refusal:
        host.call(node, **{name: value for name, value in sound.items() if name in taken} | inputs)
    assert words in str(refusal.value)


def test_a_folder_that_cannot_be_made_is_said(host, error):
    files = host_training
    folder = Path(files.folder_paths.get_output_directory()) / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "taken").write_text("a file")
    with pytest.raises(error, match=r"cannot be written \(.*taken"):
        files.new_lora_path("taken/lora")
