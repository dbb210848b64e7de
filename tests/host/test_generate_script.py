"""``scripts.generate``: the pictures of the nodes, in a folder that no kill spoils and any number of processes fill."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageSequence
from safetensors.torch import save_file

from demo.video_world import embed_video, parse_video_prompt
from demo.world import all_prompts, embed, parse_prompt
from devtools.base import link_file, model_folder
from pcm_core.errors import PCMError
from scripts.generate import command as generate
from scripts.metrics import command as metrics
from scripts.metrics import sources as pictures
from scripts.workers import Workers

ROOT = Path(__file__).resolve().parent.parent.parent
WEIGHTS = ROOT / "demo" / "weights"
PCM, WAN = WEIGHTS / "demo_pcm_2phase.safetensors", WEIGHTS / "demo_wan_pcm_2phase.safetensors"
PROMPTS = [str(prompt) for prompt in all_prompts()[::12]]


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n\n", "utf-8")
    return path


def options_of(*words: object) -> Any:
    options = generate.parser().parse_args([str(word) for word in words])
    generate.check(options)
    return options


def run(host: Any, *words: object) -> int:
    """In this process, with the pack that the host loaded."""
    return generate.generate(options_of(*words), host.pack, Workers())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / generate.MANIFEST).read_text("utf-8").splitlines()]


@pytest.fixture
def demo_files(host):
    """The demo's weights where the host's loaders look."""
    for file in WEIGHTS.glob("*.safetensors"):
        if folder := model_folder(file.name):
            (host.base / "models" / folder).mkdir(parents=True, exist_ok=True)
            link_file(host.base / "models" / folder / file.name, file)


def test_a_picture_is_the_one_that_the_nodes_make(host, demo_files, prompts, tmp_path):
    out = tmp_path / "out"
    assert run(host, prompts, out, "--demo", "picture", "--lora", PCM, "--seed", 40) == len(PROMPTS)
    rows = manifest(out)
    assert [row["prompt"] for row in rows] == PROMPTS and names(out) == sorted(
        [row["file"] for row in rows] + [generate.MANIFEST]
    )
    assert rows[3]["file"] == "000003_43.png" and rows[3]["seed"] == 43
    assert (rows[0]["sampler"], rows[0]["steps"], rows[0]["cfg"], rows[0]["shift"]) == ("PCM", 2, "1", 3.0)
    assert set(rows[0]["files"]) >= {"demo_sd3.safetensors", PCM.name} and len(rows[0]["sigmas"]) == 3

    (model,) = host.call("UNETLoader", unet_name="demo_sd3.safetensors", weight_dtype="default")
    model, *_ = host.call("PCMLoraLoader", model=model, lora_name=PCM.name, strength=1.0)
    (vae,) = host.call("VAELoader", vae_name="taesd3")
    (latent,) = host.call("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    for row in (rows[0], rows[5]):
        context, pooled = embed([parse_prompt(row["prompt"])])
        positive = [[context, {"pooled_output": pooled}]]
        latents = host.call("PCMSampler", model=model, positive=positive, negative=positive, latent_image=latent,
                            seed=row["seed"], steps=0)  # fmt: skip
        (pixels,) = host.call("VAEDecode", samples=latents[0], vae=vae)
        made = np.asarray(Image.open(out / row["file"]))
        assert np.array_equal(made, (255.0 * pixels[0].numpy()).clip(0, 255).astype(np.uint8))


def test_a_clip_is_the_one_that_the_video_node_makes(host, demo_files, tmp_path):
    text = "a blue square moving right"
    (tmp_path / "prompts.txt").write_text(text, "utf-8")
    run(host, tmp_path / "prompts.txt", tmp_path / "out", "--demo", "video", "--lora", WAN, "--seed", 7)
    (row,) = manifest(tmp_path / "out")
    assert (row["file"], row["length"], row["steps"]) == ("000000_7.webp", 13, 2)
    (model,) = host.call("UNETLoader", unet_name="demo_wan.safetensors", weight_dtype="default")
    model, *_ = host.call("PCMLoraLoader", model=model, lora_name=WAN.name, strength=1.0)
    (vae,) = host.call("VAELoader", vae_name="demo_wan_vae.safetensors")
    (latent,) = host.call("EmptyHunyuanLatentVideo", width=48, height=48, length=13, batch_size=1)
    positive = [[embed_video([parse_video_prompt(text)]), {}]]
    latents = host.call("PCMVideoSampler", model=model, positive=positive, negative=positive, latent_image=latent,
                        seed=7, preset="auto")  # fmt: skip
    (pixels,) = host.call("VAEDecode", samples=latents[0], vae=vae)
    with Image.open(tmp_path / "out" / row["file"]) as clip:
        made = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(clip)])
    assert np.array_equal(made, (255.0 * pixels.numpy()).clip(0, 255).astype(np.uint8))


def test_what_is_there_stays_and_what_is_missing_is_made(host, prompts, tmp_path):
    words = (prompts, tmp_path / "out", "--demo", "picture", "--lora", PCM, "--per-prompt", 2)
    assert run(host, *words) == 2 * len(PROMPTS)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert whole["000000_0.png"] != whole["000001_1.png"], "two pictures of one prompt have two seeds"
    kept = tmp_path / "out" / "000002_2.png"
    kept.write_bytes(b"not touched")
    for index in (0, 5, 9):
        (tmp_path / "out" / f"{index:06}_{index}.png").unlink()
    (tmp_path / "out" / "000009_9.png.17.part").write_bytes(whole["000009_9.png"][:100])  # killed while it was written
    assert run(host, *words) == 3
    whole[kept.name] = b"not touched"
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == whole
    assert run(host, *words) == 0


def test_a_longer_prompt_file_adds_to_the_folder_and_another_is_refused(host, prompts, tmp_path):
    words = (prompts, tmp_path / "out", "--demo", "picture", "--lora", PCM)
    run(host, *words)
    before = names(tmp_path / "out")
    prompts.write_text("\n".join([*PROMPTS, PROMPTS[0]]), "utf-8")
    assert run(host, *words) == 1
    assert set(before) < set(names(tmp_path / "out"))
    with pytest.raises(SystemExit, match=r'000000_0\.png: cfg "1", not "2"'):
        run(host, *words, "--sampling", "auto cfg 2")
    with pytest.raises(SystemExit, match=r"000000_0\.png: files"):
        run(host, *words[:-1], WEIGHTS / "demo_pcm_4phase.safetensors")
    with pytest.raises(SystemExit, match="and the prompt file does not"):
        run(host, *words, "--seed", "1")
    prompts.write_text("\n".join(["a red circle on gray", *PROMPTS]), "utf-8")
    with pytest.raises(SystemExit, match=r"000000_0\.png: prompt"):
        run(host, *words)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "holiday.png").touch()
    with pytest.raises(SystemExit, match=r"holds holiday\.png and no manifest"):
        run(host, prompts, tmp_path / "other", "--demo", "picture", "--lora", PCM)


def test_two_folders_pair_and_know_their_prompts(host, prompts, tmp_path, capsys):
    """PCM against the teacher's stock sampler, as the README says."""
    run(host, prompts, tmp_path / "pcm", "--demo", "picture", "--lora", PCM)
    run(host, prompts, tmp_path / "teacher", "--demo", "picture", "--sampling", "euler/simple@8 cfg 3")
    row = manifest(tmp_path / "teacher")[0]
    assert (row["sampler"], row["steps"], row["cfg"]) == ("euler/simple", 8, "3") and row["strength"] is None
    metrics.main([str(tmp_path / "pcm"), str(tmp_path / "teacher")])
    assert f"A: {len(PROMPTS)} items, B: {len(PROMPTS)}, {len(PROMPTS)} of one name" in capsys.readouterr().out
    assert [item.prompt for item in pictures.read(str(tmp_path / "pcm"))] == PROMPTS


def test_what_cannot_be_is_said_before_anything_is_made(host, prompts, tmp_path):
    demo = ("--demo", "picture")
    for words, said in (
        (("--sampling", "1, 2", *demo), "Name one way"),
        (("--sampling", "euler/simple@4", "--shift", "-1", *demo), "--shift"),
        (("--size", "64", "63", *demo), "multiples of 8"),
        (("--model", PCM.parent / "no.safetensors"), "does not exist"),
        ((), "There is no model"),
    ):
        with pytest.raises((SystemExit, PCMError), match=said):
            run(host, prompts, tmp_path / "out", *words)
    prompts.write_text("a red dog on blue", "utf-8")
    with pytest.raises(SystemExit, match="exactly one shape"):
        run(host, prompts, tmp_path / "out", *demo)
    prompts.write_text("\n", "utf-8")
    with pytest.raises(SystemExit, match="holds no prompts"):
        run(host, prompts, tmp_path / "out", *demo)
    assert not (tmp_path / "out").exists()


def test_a_picture_appears_when_it_is_whole(tmp_path):
    class Killed:
        def save(self, path: Path, *_: object, **__: object) -> None:
            path.write_bytes(b"half of it")
            raise KeyboardInterrupt

    tasks = [generate.Task("000000_0.png", "a red circle on white", 0)]
    generate.prepare(tmp_path, tasks, {})
    with pytest.raises(KeyboardInterrupt):
        generate.save([Killed()], tmp_path / tasks[0].file, fps=16)  # type: ignore[list-item]
    assert generate.missing(tmp_path, tasks) == tasks
    generate.prepare(tmp_path, tasks, {})
    assert names(tmp_path) == [generate.MANIFEST]


def test_no_process_repeats_the_last_picture():
    """Accelerate hands the last item to every process that has none of its own."""

    class Many:
        num_processes = 3

        def __init__(self, rank: int) -> None:
            self.process_index = rank

        def split_between_processes(self, items):
            from accelerate.state import PartialState

            return PartialState.split_between_processes(self, items)

    pytest.importorskip("accelerate")
    for count in range(8):
        shares = [Workers(Many(rank)).share(range(count)) for rank in range(3)]
        assert sorted(item for share in shares for item in share) == list(range(count))
    assert Workers().share([1, 2]) == [1, 2]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def launch(*words: object, processes: int) -> subprocess.Popen[str]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"]  # on a free port
        command += [f"--nproc_per_node={processes}"]
    command += ["-m", "scripts.generate", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the launcher and its workers, which have sessions of their own."""
    workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in workers:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.kill()
    process.communicate()


def finish(process: subprocess.Popen[str]) -> list[int]:
    """Wait for a run; how many pictures each of its processes made."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return [int(found) for found in re.findall(r"Process \d+ made (\d+);", said)]


@pytest.mark.long
def test_two_processes_killed_in_the_middle_and_resumed_make_the_folder_of_one(host, prompts, tmp_path):
    pytest.importorskip("accelerate")
    words = ("--demo", "picture", "--lora", PCM, "--per-prompt", 5)
    tasks = generate.tasks_for(options_of(prompts, tmp_path / "one", *words))
    expected = tmp_path / "one"
    assert finish(launch(prompts, expected, *words, "--single", processes=1)) == [len(tasks)]

    halves = tasks[: len(tasks) // 2], tasks[len(tasks) // 2 :]
    for attempt in range(3):  # on a busy machine all may be made before the kill
        out = tmp_path / f"two {attempt}"
        process = launch(prompts, out, *words, processes=2)
        while process.poll() is None and not all(any((out / task.file).exists() for task in half) for half in halves):
            time.sleep(0.005)
        kill_all(process)
        there = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
        if len(there) < len(tasks):
            break
    assert 2 <= len(there) < len(tasks), "killed in the middle, with both processes at work"
    assert len(manifest(out)) == len(tasks)
    for path in there:
        assert path.read_bytes() == (expected / path.name).read_bytes(), "a picture is whole or not there"

    made = finish(launch(prompts, out, *words, processes=2))
    assert len(made) == 2 and sum(made) == len(tasks) - len(there), "nothing twice, nothing lost"
    assert all(path.stat().st_mtime_ns == at for path, at in there.items())
    assert names(out) == names(expected)
    for name in names(out):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.long
def test_a_checkpoint_brings_its_own_text_encoder_and_vae(host, zoo, prompts, tmp_path):
    """A tiny SD 1.5 with a full-size CLIP-L of random weights: that part cannot be tiny."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import load_file
    from tiny import fill

    config = json.loads((Path(os.environ["COMFYUI_PATH"]) / "comfy" / "sd1_clip_config.json").read_text("utf-8"))
    clip = fill(CLIPTextModel(config, torch.float32, "cpu", comfy.ops.disable_weight_init))
    vae = fill(TAESD(latent_channels=4))
    state = {f"model.diffusion_model.{key}": value for key, value in load_file(zoo["sd15"].path).items()}
    state |= {f"first_stage_model.{key}": value for key, value in vae.state_dict().items()}
    state |= {f"cond_stage_model.transformer.{key}": value for key, value in clip.state_dict().items()}
    path = tmp_path / "model.safetensors"
    save_file({key: value.detach().half().contiguous() for key, value in state.items()}, path)
    prompts.write_text("a lighthouse\na harbour", "utf-8")
    words = ("--checkpoint", path, "--size", 64, 64, "--sampling", "2 cfg 3", "--negative", "fog")
    assert run(host, prompts, tmp_path / "out", *words) == 2

    (host.base / "models" / "checkpoints").mkdir(parents=True, exist_ok=True)
    link_file(host.base / "models" / "checkpoints" / "full.safetensors", path)
    model, clip, vae = host.call("CheckpointLoaderSimple", ckpt_name="full.safetensors")
    (positive,), (negative,) = (host.call("CLIPTextEncode", clip=clip, text=text) for text in ("a harbour", "fog"))
    (latent,) = host.call("EmptyLatentImage", width=64, height=64, batch_size=1)
    latents = host.call("PCMSampler", model=model, positive=positive, negative=negative, latent_image=latent,
                        seed=1, steps=2, cfg="3")  # fmt: skip
    (pixels,) = host.call("VAEDecode", samples=latents[0], vae=vae)
    made = np.asarray(Image.open(tmp_path / "out" / "000001_1.png"))
    assert np.array_equal(made, (255.0 * pixels[0].numpy()).clip(0, 255).astype(np.uint8))


def test_a_method_and_its_noise_can_be_named(host, prompts, tmp_path):
    """TCD's settings for a LoRA whose own name says something else, by the method's name or a file's."""
    words = ("--demo", "picture", "--lora", WEIGHTS / "demo_lcm.safetensors", "--sampling", "2")
    run(host, prompts, tmp_path / "plain", *words)
    run(host, prompts, tmp_path / "gamma", *words, "--gamma", "0.3")
    run(host, prompts, tmp_path / "method", *words, "--method", "TCD-SDXL-LoRA", "--gamma", "0.3")
    one, two, three = (manifest(tmp_path / name)[0] for name in ("plain", "gamma", "method"))
    assert "gamma" not in one and two["gamma"] == 0.3 and three["method"] == "TCD-SDXL-LoRA"
    assert three["sigmas"] == two["sigmas"]
    images = [(tmp_path / name / "000000_0.png").read_bytes() for name in ("plain", "gamma", "method")]
    assert images[0] != images[1]
    for more, said in (
        (("--method", "Nothing"), 'is "Nothing", which is no few-step method'),
        (("--gamma", "2"), "--gamma is 2. It goes from 0 to 1."),
        (("--gamma", "0.5", "--determinism", "1"), "say the same in two ways"),
    ):
        with pytest.raises(SystemExit, match=said):
            run(host, prompts, tmp_path / "bad", *words, *more)
