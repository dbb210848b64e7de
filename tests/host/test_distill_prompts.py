"""Nothing but captions: the model draws its own training latents, on the node and on the command line."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file

from scripts.distill import command, prompts

SETTINGS = {
    "rank": 4, "steps": 2, "batch_size": 2, "phases": 2, "learning_rate": 3e-3, "cfg_min": 5.0, "cfg_max": 5.0,
    "solver_grid": 4, "preview_every": 0, "width": 64, "height": 64,
}  # fmt: skip


@pytest.fixture
def distil(host, monkeypatch, tmp_path):
    """Run the node without latents; what it draws lies in ``tmp_path``, and 4 latents are enough."""
    monkeypatch.setattr(host.pack("nodes.host.lora"), "states_folder", lambda: tmp_path)
    states = host.pack("nodes.training.states")
    monkeypatch.setattr(states, "_AT_LEAST", 4)
    monkeypatch.setattr(states, "STEPS", 3)

    def run(given: tiny.Tiny, **settings):
        cls = host.node("PCMDistillLora")
        required = cls.INPUT_TYPES()["required"]
        inputs = {name: options[0]["default"] for name, (_, *options) in required.items()
                  if options and "default" in options[0]}  # fmt: skip
        inputs |= {"model": given.model, **SETTINGS, **settings}
        texts = inputs.pop("positive", [given.positive, given.cond(7)])
        lists = {name: [value] for name, value in inputs.items()}
        lists |= {"positive": texts, "negative": [given.negative]}
        with torch.inference_mode():
            return cls.execute(**lists).args

    return run


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def teacher(host, given: tiny.Tiny, shape, seed: int) -> torch.Tensor:
    """The host's own sampler, without guidance, on the second caption from a known noise."""
    import comfy.sample

    noise = torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed))[None]
    with torch.inference_mode():
        return comfy.sample.sample(
            given.model, noise, 3, 1.0, "euler", "simple", given.cond(7), given.negative, torch.zeros_like(noise)
        ).clone()


@pytest.mark.parametrize("family", ["eps", "sd3", "wan"])
def test_a_lora_from_captions_alone(host, zoo, distil, tmp_path, family):
    """What is drawn is what the teacher samples from those captions, and it is used again."""
    given = zoo[family]
    first = distil(given)
    (place,) = tmp_path.iterdir()
    parts = sorted(place.glob("*.safetensors"))
    kept = torch.cat([load_file(part)["latents"] for part in parts])
    frames = (1,) if family == "wan" else ()
    assert kept.shape == (4, given.shapes[0][0], *frames, 8, 8) and torch.isfinite(kept).all()
    assert first[2] == 2
    sampled = teacher(host, given, kept[2:3].shape, seed=2)
    torch.testing.assert_close(kept[2:3], sampled, rtol=1e-4, atol=1e-4 * float(sampled.abs().max()))
    written = [part.stat().st_mtime_ns for part in parts]
    assert same(distil(given)[0], first[0])
    assert [part.stat().st_mtime_ns for part in parts] == written
    distil(given, seed=5)
    assert len(list(tmp_path.iterdir())) == 2, "other settings, other latents"


def test_latents_are_of_the_model_as_it_is_patched(host, zoo, distil, tmp_path):
    """Whatever clone left its LoRA in the weights that they share, and with a LoRA of its own they are others."""
    given = zoo["sd3"]
    names = [name for name in given.model.model_state_dict() if name.endswith("qkv.weight")]
    patched = given.model.clone()
    patched.add_patches({name: (torch.ones_like(given.model.model_state_dict()[name]),) for name in names})
    clone = dataclasses.replace(given, model=patched)
    teacher(host, clone, (1, *given.shapes[0]), seed=0)  # leaves its weights loaded
    distil(given)
    distil(given)
    assert len(list(tmp_path.iterdir())) == 1
    distil(clone)
    distil(clone)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_cut_short_goes_on_to_the_same_bits(host, zoo, distil, tmp_path, monkeypatch):
    given, states = zoo["sd3"], host.pack("nodes.training.states")
    whole = distil(given)
    (place,) = tmp_path.iterdir()
    parts = {part.name: load_file(part)["latents"].clone() for part in place.glob("*.safetensors")}
    assert len(parts) == 2
    last = max(place.glob("*.safetensors"))
    last.write_bytes(last.read_bytes()[:100])  # cut off while it was written
    draw, drawn = states._draw, []
    monkeypatch.setattr(states, "_draw", lambda *a: drawn.append(1) or draw(*a))
    assert same(distil(given)[0], whole[0])
    assert len(drawn) == 1, "only what was missing"
    assert all(torch.equal(load_file(place / name)["latents"], value) for name, value in parts.items())


def test_a_folder_that_cannot_be_written_is_named(zoo, distil, tmp_path):
    distil(zoo["sd3"])
    (place,) = tmp_path.iterdir()
    for part in place.glob("*.safetensors"):
        part.unlink()
        part.with_suffix(".part").mkdir()  # what stands where a part is to be written
    with pytest.raises(ValueError, match=r"cannot be written .*Expected: a writable folder"):
        distil(zoo["sd3"])


def test_each_latent_is_the_teachers_own_whatever_the_batch(host, zoo, distil, tmp_path, monkeypatch):
    given, states = zoo["sd3"], host.pack("nodes.training.states")
    distil(given, positive=[given.positive])
    (place,) = tmp_path.iterdir()
    together = torch.cat([load_file(part)["latents"] for part in sorted(place.glob("*.safetensors"))])
    import shutil

    shutil.rmtree(place)
    monkeypatch.setattr(states, "_ROWS", 1)
    distil(given, positive=[given.positive])
    alone = torch.cat([load_file(part)["latents"] for part in sorted(place.glob("*.safetensors"))])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5 * float(together.abs().max()))


def test_it_says_what_that_costs(zoo, distil, caplog):
    caplog.set_level("INFO")
    distil(zoo["sd3"])
    said = [record.getMessage() for record in caplog.records if "draws" in record.getMessage()]
    cost = "12 evaluations of the model, about as long as 1 steps of training."
    assert said == [f"Distill PCM LoRA: draws 4 latents from 2 captions first: {cost}"]


@pytest.mark.parametrize(
    ("texts", "steps", "batch", "accumulate", "each"),
    [(2, 10, 4, 1, 32), (100, 10, 4, 1, 1), (3, 10, 4, 1, 22), (2, 1000, 4, 1, 125), (100, 1000, 4, 2, 5)],
)  # fmt: skip
def test_a_longer_run_draws_more(host, texts, steps, batch, accumulate, each):
    """64 at least, and as many that each is used 16 times at most."""
    assert host.pack("nodes.training.states").latents_per_text(steps * batch * accumulate, texts) == each


def test_sizes_that_cannot_be_drawn(host, zoo, distil):
    error = host.pack("pcm_core.errors").PCMError
    with pytest.raises(error, match=r"The size is 4 x 64 x 1\. Expected: at least 8 x 8 pixels"):
        distil(zoo["sd3"], width=4)
    states = host.pack("nodes.training.states")
    assert states.Size(64, 128, 33).latent(zoo["wan"].model) == (16, 9, 16, 8)
    assert states.Size(64, 128, 33).latent(zoo["eps"].model) == (4, 16, 8)


def test_a_folder_that_cannot_be_written(host, zoo, distil, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(host.pack("nodes.host.lora"), "states_folder", lambda: tmp_path / "file")
    with pytest.raises(host.pack("pcm_core.errors").PCMError, match="cannot be written"):
        distil(zoo["sd3"])


def options(folder, **given):
    values = {
        "prompts": folder / "prompts.txt", "cache": folder / "cache.pt", "latents": None,
        "out": folder / "x.safetensors", "clip": [folder / "clip"],
        "clip_type": "sd3", "model": folder / "model", "size": 64, "length": 1,
        "cfg": (4.0, 6.0), "seed": 0, "steps": 1, "batch": 2, "accumulate": 1, **given,
    }  # fmt: skip
    for name in ("clip", "model"):
        (folder / name).touch()
    return SimpleNamespace(**values)


def test_the_command_line_draws_once(host, zoo, tmp_path, monkeypatch, capsys):
    """Captions from a file, the cache that --latents reads, and nothing drawn again while nothing changed."""
    given, states = zoo["sd3"], host.pack("nodes.training.states")
    monkeypatch.setattr(states, "_AT_LEAST", 2)
    monkeypatch.setattr(states, "STEPS", 2)
    (tmp_path / "prompts.txt").write_text("\ufeffa red circle\n\n  a blue square \n", "utf-8")
    loaders = host.pack("nodes.host.loaders")
    encoded = []

    def encode(files, kind, texts):
        encoded.append(texts)
        return [given.cond(i) for i, _ in enumerate(texts)]

    monkeypatch.setattr(loaders, "encode_texts", encode)
    monkeypatch.setattr(command, "load_model", lambda path, pack: given.model)
    chosen = options(
        tmp_path, rank=4, alpha=None, targets="", checkpointing=False, adapter_dtype="fp32", memory="off",
        stage="consistency", start=None,
        bank=None, new_bank=False,
    )  # fmt: skip
    config = host.pack("pcm_core.distill").DistillConfig(steps=1, batch=2, cfg=(4.0, 6.0))

    def draw() -> None:
        prompts.draw_latents(chosen, host.pack, lambda cached: command.make_job(chosen, host.pack, config, cached))

    draw()
    assert encoded == [["", "a red circle", "a blue square"]]
    job = command.make_job(chosen, host.pack, config)
    assert [tuple(latent.shape) for latent in job.latents] == [(1, 16, 8, 8)] * 2 and len(job.texts) == 2
    assert [path.name for path in tmp_path.glob("cache*")] == ["cache.pt"], "the parts are gone"
    draw()
    assert len(encoded) == 1 and "is up to date with 2 captions" in capsys.readouterr().err
    (tmp_path / "prompts.txt").write_text("a green star\n", "utf-8")
    draw()
    assert len(encoded) == 2 and "is out of date (changed: captions, " in capsys.readouterr().err
    chosen.steps, config = 100, host.pack("pcm_core.distill").DistillConfig(steps=100, batch=2, cfg=(4.0, 6.0))
    draw()
    assert len(encoded) == 3 and "is out of date (changed: number of latents)" in capsys.readouterr().err
    (latents,) = command.make_job(chosen, host.pack, config).latents
    assert len(latents) == 13, "each 16 times at most"


@pytest.mark.parametrize(("text", "found"), [(b"", "holds no captions"), (b"\xff\xfe\xfa", "cannot be read")])
def test_prompts_that_are_none(tmp_path, text, found):
    (tmp_path / "prompts.txt").write_bytes(text)
    with pytest.raises(SystemExit, match=found):
        prompts.draw_latents(options(tmp_path), None, None)
    with pytest.raises(SystemExit, match="--prompts needs --clip"):
        (tmp_path / "prompts.txt").write_text("a star")
        prompts.draw_latents(options(tmp_path, clip=None), None, None)
