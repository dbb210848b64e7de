"""What breaks in the middle: a model that returns NaN or runs out of memory, a full disk. The next prompt works."""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import tiny
import torch

from pcm_core import lora as core_lora
from pcm_core.distill import file as core_file
from pcm_core.errors import PCMError
from phased_consistency.nodes.host import lora as host_lora
from phased_consistency.nodes.host import training as host_training
from phased_consistency.nodes.training import lora_file

MNT_DETACH = 2
WALKS = ("PCM Sampler", "SamplerPCM", "the name pcm", "PCM Video Sampler")


def walk(host, given, model, way, latent=None, **settings):
    """The samples of four steps, through each of the nodes that run our sampler."""
    conds = {"model": model, "positive": given.positive, "negative": given.negative}
    inputs = {"latent_image": latent or given.latent(), "seed": 1}
    if way == "PCM Sampler":
        out = host.call("PCMSampler", **conds, **inputs, steps=4, cfg="1", **settings)
    elif way == "PCM Video Sampler":
        out = host.call("PCMVideoSampler", **conds, **inputs, steps=4, cfg="1", **settings)
    elif way == "the name pcm":
        names = {"sampler_name": "pcm", "scheduler": "pcm", "denoise": 1.0}
        out = host.call("KSampler", **conds, **inputs, **names, steps=4, cfg=1.0)
    else:
        sigmas, *_ = host.call("PCMPhaseScheduler", model=model, steps=4)
        (guider,) = host.call("CFGGuider", **conds, cfg=1.0)
        (noise,), (sampler,) = host.call("RandomNoise", noise_seed=1), host.call("SamplerPCM", **settings)
        out = host.call("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
                        latent_image=inputs["latent_image"])  # fmt: skip
    return out[0]["samples"]


def broken_at(given, step, change):
    """A clone of the model whose x0 goes through ``change`` at one step; ``seen`` are the sigmas it was asked for."""
    seen = []

    def hook(args):
        seen.append(float(args["sigma"][0]))
        return change(args["denoised"]) if len(seen) == step else args["denoised"]

    model = given.model.clone()
    model.set_model_sampler_post_cfg_function(hook)
    return model, seen


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("way", WALKS)
def test_a_broken_prediction_names_the_step_and_the_sigma(host, zoo, way, value):
    """One element is enough, and it stops there: no black picture, and no minutes spent on one."""
    given = zoo["wan"]
    before, weights = walk(host, given, given.model, way), tiny.fingerprint(given.model.model.state_dict())

    def one(x0):
        x0 = x0.clone()
        x0.view(-1)[-1] = value
        return x0

    model, seen = broken_at(given, 3, one)
    with pytest.raises(PCMError, match="model returned NaN or infinity at step 3 of 4") as e:
        walk(host, given, model, way)
    assert len(seen) == 3 and f"(sigma {seen[-1]:.4g})" in str(e.value)
    assert tiny.fingerprint(given.model.model.state_dict()) == weights
    assert torch.equal(walk(host, given, given.model, way), before)


def test_the_second_expert_counts_the_steps_on(host, zoo):
    given = zoo["wan"]
    model, seen = broken_at(given, 1, lambda x0: x0 * math.nan)
    with pytest.raises(PCMError, match=r"at step [34] of 4") as error:
        walk(host, given, given.model, "PCM Video Sampler", second_model=model, boundary=700)
    assert f"(sigma {seen[0]:.4g})" in str(error.value)


@pytest.mark.parametrize("way", WALKS)
def test_a_broken_latent_is_not_blamed_on_the_model(host, zoo, way):
    given = zoo["wan"]
    latent = given.latent(seed=2)
    latent["samples"].view(-1)[5] = math.nan
    with pytest.raises(PCMError, match=r"The latent or its noise held NaN .* step 1 of 4"):
        walk(host, given, given.model, way, latent)


def test_huge_but_finite_is_left_alone(host, zoo):
    """Their sum overflows; they are finite all the same."""
    given = zoo["wan"]
    model, _ = broken_at(given, 4, lambda x0: torch.full_like(x0, 1e37))
    assert walk(host, given, model, "SamplerPCM").isfinite().all()


def test_a_broken_column_of_a_stock_sampler_is_named(host, zoo):
    given = zoo["sd3"]
    model, _ = broken_at(given, 2, lambda x0: x0 * math.nan)
    with pytest.raises(PCMError, match=r'Column "teacher" .* NaN or infinity after 3 steps'):
        host.call("PCMCompare", model=model, positive=given.positive, negative=given.negative,
                  vae=SimpleNamespace(decode=pytest.fail), latent_image=given.latent(),
                  columns="euler/simple@3 = teacher")  # fmt: skip


# Out of memory

OUT_OF_MEMORY = {
    "a device": lambda: torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory. (out of memory)"),
    "the CPU": lambda: RuntimeError(
        "[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 GB"
    ),
}


def defaults(host, node):
    """What the widgets of a node say."""
    required = host.node(node).INPUT_TYPES()["required"].items()
    return {name: options[0]["default"] for name, (_, *options) in required if options and "default" in options[0]}


class Faulty:
    """A clone of a model whose network raises at one call, as it would in its own layers; 0 for never."""

    def __init__(self, model, step, error):
        self.calls, self.step, self.error, self.model = 0, step, error, model.clone()
        self.model.set_model_unet_function_wrapper(self._call)

    def _call(self, apply, options):
        self.calls += 1
        if self.calls == self.step:
            raise self.error()
        return apply(options["input"], options["timestep"], **options["c"])


@pytest.fixture
def graph(host, zoo, stand_ins):
    """A prompt of test nodes around ours, for ``host.run_prompt``; and what it took in the end."""
    given = zoo["sd3"]

    def make(model, node, **settings):
        make.taken = stand_ins(GiveModel=("MODEL", model), GiveCond=("CONDITIONING", given.positive),
                               GiveLatent=("LATENT", given.latent(2, seed=3)))  # fmt: skip
        inputs = defaults(host, node)
        latent = "latents" if node == "PCMDistillLora" else "latent_image"
        inputs |= {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], latent: ["3", 0], **settings}
        classes = {"1": ("GiveModel", {}), "2": ("GiveCond", {}), "3": ("GiveLatent", {}), "4": (node, inputs),
                   "5": ("Take", {"value": ["4", 0]})}  # fmt: skip
        return {key: {"class_type": c, "inputs": i, "_meta": {"title": c}} for key, (c, i) in classes.items()}

    return make


# What Distill PCM LoRA says in the place of the device's error, up to where the LoRA is.
OUT_OF_PLAN = (
    r"Memory ran out; the run needs about [^ ]+ GB \(weights .+\).*; [^ ]+ GB are free\. "
    r"Expected: enough of it for one update\. Take a smaller rank, batch or latent, set fit_memory to stream, "
    r"or close what else uses the device\. "
)
RUNS = {
    "PCMSampler": {"steps": 4, "cfg": "2", "seed": 5},
    "PCMDistillLora": {"steps": 6, "rank": 2, "batch_size": 1, "cfg_min": 1.0, "cfg_max": 1.0, "preview_every": 0},
}


@pytest.mark.parametrize("node", RUNS)
@pytest.mark.parametrize("where", OUT_OF_MEMORY)
def test_out_of_memory_at_a_step(host, zoo, graph, monkeypatch, node, where):
    """The host's models are unloaded for a device's error; weights stay whole, the next prompt runs.

    The host sees its own error from PCM Sampler, and from Distill PCM LoRA one that says what was planned.
    """
    import comfy.model_management

    given, unloaded = zoo["sd3"], []
    unload = comfy.model_management.unload_all_models
    monkeypatch.setattr(comfy.model_management, "unload_all_models", lambda: (unloaded.append(1), unload()))
    weights, known = tiny.fingerprint(given.model.model.state_dict()), set(host_lora.lora_names())
    sound = host.run_prompt(graph(Faulty(given.model, 0, None).model, node, **RUNS[node]))
    assert sound.success
    faulty = Faulty(given.model, 3 if node == "PCMSampler" else 7, OUT_OF_MEMORY[where])
    failed = host.run_prompt(graph(faulty.model, node, **RUNS[node]))
    (event,) = [data for kind, data in failed.status_messages if kind == "execution_error"]
    assert "memory" in event["exception_message"] and event["node_type"] == node
    if node == "PCMDistillLora":
        assert event["exception_type"].endswith("pcm_core.errors.PCMError")
        assert re.match(
            OUT_OF_PLAN + r"Saved as pcm_interrupted_\d+_\.safetensors\.$", event["exception_message"].strip()
        )
    else:
        assert event["exception_type"] == ("torch.OutOfMemoryError" if where == "a device" else "RuntimeError")
    assert bool(unloaded) == (where == "a device")
    assert tiny.fingerprint(given.model.model.state_dict()) == weights
    assert not comfy.model_management.in_training
    saved = set(host_lora.lora_names()) - known
    assert len(saved) == (node == "PCMDistillLora") and all("pcm_interrupted" in name for name in saved)
    assert host.run_prompt(graph(Faulty(given.model, 0, None).model, node, **RUNS[node])).success
    first, again = graph.taken
    assert tiny.fingerprint(first) == tiny.fingerprint(again)


# A full disk


@contextmanager
def small_file_system(folder):
    """A file system of its own, of 64 KB."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root on Linux only")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=64k"):
        pytest.skip(f"cannot mount a small file system: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        failed = libc.umount2(os.fsencode(folder), MNT_DETACH)
        assert not failed, os.strerror(ctypes.get_errno())


@contextmanager
def small_files(folder):
    """An empty folder in its place, and no file of this process over 64 KB; Python ignores the signal of that limit."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    aside = folder.rename(folder.with_name("loras aside"))
    folder.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        shutil.rmtree(folder)
        aside.rename(folder)


@pytest.fixture(params=[small_file_system, small_files], ids=lambda small: small.__name__)
def full_disk(host, request):
    """To enter around what writes: output/loras, where more than 64 KB has no room, really or in a way without root."""
    folder = host.base / "output" / "loras"
    folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def enter():
        with request.param(folder):  # not around the whole test: pytest writes its own report to a file, perhaps
            yield folder

    return enter


BIG = {"a.lora_up.weight": torch.ones(200, 200), "a.lora_down.weight": torch.ones(200, 200)}
SMALL = {"a.lora_up.weight": torch.ones(4, 4), "a.lora_down.weight": torch.ones(4, 4)}


def test_a_disk_that_is_really_full(host, full_disk):
    error = PCMError
    with full_disk() as folder:
        (first,) = host.call("PCMSaveLora", lora=SMALL, prefix="lora")
        with pytest.raises(error, match=r"lora_00002_\.safetensors cannot be written .*Free some space"):
            host.call("PCMSaveLora", lora=BIG, prefix="lora")
        assert [path.name for path in folder.iterdir()] == ["lora_00001_.safetensors"]
        (second,) = host.call("PCMSaveLora", lora=SMALL, prefix="lora")
        for name in (first, second):
            tensors, _ = core_lora.read_lora(host_lora.lora_path(name))
            assert tiny.fingerprint(tensors) == tiny.fingerprint(SMALL)


def test_a_save_that_is_interrupted_leaves_no_half_of_a_file(host, tmp_path, monkeypatch):
    """And the interrupt goes on: it says nothing about the disk."""
    path = tmp_path / "mine.safetensors"
    core_file.write_lora(path, SMALL, {"format": "pt"})
    before = path.read_bytes()

    def half(state, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(core_file, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        core_file.write_lora(path, BIG, {"format": "pt"})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_lora_that_cannot_be_written_where_it_was_wanted_is_kept(host, tmp_path):
    training = lora_file
    with pytest.raises(PCMError, match=r"cannot be written .*Saved as pcm_interrupted"):
        training.write_or_rescue(
            tmp_path / "missing" / "mine.safetensors", training.TrainedLora(SMALL, {"pcm_phases": "4"})
        )
    saved = sorted((host.base / "output" / "loras").glob("pcm_interrupted_*.safetensors"))
    assert tiny.fingerprint(core_lora.read_lora(saved[-1])[0]) == tiny.fingerprint(SMALL)


def test_a_checkpoint_on_a_disk_that_is_really_full(full_disk):
    from scripts.distill import command as distill

    with full_disk() as folder:
        path = folder / "state.pt"
        distill.save_state({"step": 1}, path)
        with pytest.raises(SystemExit, match=r"state\.pt cannot be written .*Any earlier checkpoint is unchanged"):
            distill.save_state({"step": 2, **BIG}, path)
        assert torch.load(path, weights_only=True) == {"step": 1}
        assert [file.name for file in folder.iterdir()] == ["state.pt"]


def test_two_that_save_at_once_take_two_names(host):
    """Two ComfyUI with one output folder: each has its name before either has written."""
    training, files = lora_file, host_training
    (one, name), (two, other) = (files.new_lora_path("shared/lora") for _ in range(2))
    assert one != two and name != other
    for path, value in ((two, 2.0), (one, 1.0)):
        training.write_lora(path, {"a.lora_up.weight": torch.full((2, 2), value)}, {"format": "pt"})
    values = [core_lora.read_lora(path)[0]["a.lora_up.weight"].unique().item() for path in (one, two)]
    assert values == [1.0, 2.0]
    assert sorted(path.suffix for path in one.parent.iterdir()) == [".safetensors"] * 2
    one.with_suffix(".part").touch()  # killed while it saved
    assert files.new_lora_path("shared/lora")[0] not in (one, two)


def test_a_disk_full_while_the_rest_is_rescued(host, zoo, full_disk, caplog):
    """What ended the training stays the error, with what was planned; it and the log say that nothing was saved."""
    given = zoo["sd3"]
    inputs = defaults(host, "PCMDistillLora")
    faulty = Faulty(given.model, 7, OUT_OF_MEMORY["the CPU"])
    inputs |= {"model": faulty.model, "rank": 32, **{k: v for k, v in RUNS["PCMDistillLora"].items() if k != "rank"}}
    lists = {name: [value] for name, value in inputs.items() if name not in ("latents", "positive", "negative")}
    with full_disk() as folder:
        (folder / "filler").write_bytes(b"x" * 60_000)
        unsaved = r"It could not be saved: pcm_interrupted_00001_\.safetensors cannot be written"
        with pytest.raises(PCMError, match=OUT_OF_PLAN + unsaved), torch.inference_mode():
            host.node("PCMDistillLora").execute(latents=[given.latent(1, seed=1)], positive=[given.positive], **lists)
        assert [file.name for file in folder.iterdir()] == ["filler"]
    assert "could not be saved: pcm_interrupted_00001_.safetensors cannot be written" in caplog.text
