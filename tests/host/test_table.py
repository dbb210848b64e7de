"""``pcm table`` on the real host: the demo world's table, its resumption, its failures, the paper's on stand-ins."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scripts.metrics.networks import fingerprint
from scripts.table import command

ROOT = Path(__file__).resolve().parent.parent.parent
WEIGHTS = ROOT / "demo" / "weights"
SMALL = f"""
title = "A small table"
prompts = "demo"
count = 12
seed = 1
steps = [2, 4]
size = [64, 64]
measures = [{{ measure = "demo_distance", reference = "teacher" }}, "demo_accuracy", "demo_edges"]
[bases.teacher]
demo = "picture"
[references.teacher]
base = "teacher"
sampling = "euler/simple@4 cfg 3"
seed = 9000
[[systems]]
name = "PCM"
base = "teacher"
lora = "{WEIGHTS.as_posix()}/demo_pcm_{{n}}phase.safetensors"
sampling = "auto"
[[systems]]
name = "LCM, TCD"
base = "teacher"
lora = "{WEIGHTS.as_posix()}/demo_lcm.safetensors"
gamma = 0.3
steps = [4]
"""
FAILING = """
[[systems]]
name = "broken"
base = "teacher"
lora = "broken.safetensors"
steps = [2]
[[systems]]
name = "absent"
base = "teacher"
lora = "absent_{n}.safetensors"
"""


@pytest.fixture
def run(host, tmp_path, monkeypatch) -> Callable[..., dict[str, Any]]:
    """The command in this process, with the pack that the host loaded; returns table.json."""
    monkeypatch.setattr(command, "load_pack", lambda _: host.pack)

    def carry_out(text: str, *words: str) -> dict[str, Any]:
        (tmp_path / "t.toml").write_text(text, "utf-8")
        command.main([str(tmp_path / "t.toml"), "--out", str(tmp_path / "out"), "--single", *words])
        return json.loads((tmp_path / "out" / "table.json").read_text("utf-8"))

    return carry_out


def figures(found: dict[str, Any]) -> dict[tuple[str, int], dict[str, float]]:
    return {(row["system"], row["steps"]): row["figures"] for row in found["tables"][0]["rows"]}


def images(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.png"))}


def test_the_figures_are_those_of_demo_score(run, tmp_path):
    """The images are what ``demo.score`` samples from the same noise, the figures what it says of them."""
    from demo.score import METHODS, Method, World, features_of, generate, grade, moments, prompts_for

    found = figures(run(SMALL))
    world, prompts = World.load(), prompts_for(12)

    def made(name: str) -> torch.Tensor:
        (folder,) = (tmp_path / "out" / "images").glob(f"*/{name}")
        return torch.stack(
            [torch.from_numpy(np.array(Image.open(path))).movedim(-1, 0) / 255 for path in sorted(folder.glob("*.png"))]
        )

    reference = moments(features_of(world.judge, made("reference-teacher/0")))
    for steps in (2, 4):
        pictures = made(f"pcm/{steps}")
        noise = torch.cat([
            torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1 + n)) for n in range(12)
        ])  # fmt: skip
        (method,) = [one for one in METHODS if one.name == f"PCM, M = {steps}"]
        expected = generate(world, method, steps, prompts, 1, noise)
        assert (pictures - expected).abs().max() < 2.5 / 255, "rounded to 8 bits, and the host's own arithmetic"
        distance, accuracy, edges = grade(world.judge, pictures, prompts, reference)
        ours = found["PCM", steps]
        assert ours["FDt"] == pytest.approx(distance, rel=1e-4)
        assert ours["accuracy"] == pytest.approx(accuracy) and ours["edges"] == pytest.approx(edges, rel=1e-4)
        unrounded, hits, _ = grade(world.judge, expected, prompts, reference)
        assert ours["FDt"] == pytest.approx(unrounded, rel=0.02) and ours["accuracy"] == pytest.approx(hits)
    assert Method is not None and set(found) == {("PCM", 2), ("PCM", 4), ("LCM, TCD", 2), ("LCM, TCD", 4)}


def test_a_row_that_fails_does_not_lose_the_others_and_a_second_run_makes_nothing(run, tmp_path, capsys):
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    found = run(SMALL + FAILING)
    whole = figures(found)
    assert whole["PCM", 2]["FDt"] > 0 and not whole["broken", 2] and not whole["absent", 4]
    why = {(row["system"], row["steps"]): row["why"] for row in found["tables"][0]["rows"]}
    assert "broken.safetensors" in why["broken", 2] and why["absent", 4] == "absent_4.safetensors does not exist"
    text = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "- absent (2): absent_2.safetensors does not exist" in text and "| absent | - | - |" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"table.csv", "table.md", "table.json", "t.svg"}

    before = images(tmp_path / "out")
    assert len(before) == 12 * 4
    next(iter((tmp_path / "out" / "images").glob("*/pcm/4/000003_4.png"))).unlink()
    (tmp_path / "broken.safetensors").write_bytes((WEIGHTS / "demo_pcm_2phase.safetensors").read_bytes())
    capsys.readouterr()
    again = run(SMALL + FAILING)
    made = re.findall(r"Process 0 made (\d+);", capsys.readouterr().err)
    assert made == ["1", "12"], "the one that was missing, and the row that failed"
    after = images(tmp_path / "out")
    changed = {name for name in after if after[name] != before.get(name)}
    assert len(after) == 12 * 5 and len(changed) == 13
    for row, same in ((("PCM", 4), ("PCM", 4)), (("broken", 2), ("PCM", 2))):
        assert figures(again)[row] == pytest.approx(whole[same], rel=1e-5), "features of other batches, the last digits"


def test_what_would_fail_later_is_refused_before_anything_is_generated(run, tmp_path):
    (tmp_path / "strangers").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "strangers" / "holiday.png")
    paired = SMALL.replace('"demo_edges"', '"demo_edges", {measure = "psnr", reference = "folder"}').replace(
        "[bases.teacher]", '[references.folder]\nfolder = "strangers"\n[bases.teacher]'
    )
    with pytest.raises(
        SystemExit, match=r"strangers holds no partner of the images of t\. Expected: items named 000000_1"
    ):
        run(paired)
    weights = tmp_path / "weights.pth"
    torch.save({}, weights)
    (tmp_path / "strangers.features").mkdir()
    kept = tmp_path / "strangers.features" / f"inception-{fingerprint(weights)}.safetensors"
    save_file({"features": torch.zeros(1, 2)}, kept, metadata={"network": "another", "items": "[]"})
    fid = paired.replace('"psnr"', '"fid"').replace(
        "[bases.teacher]", '[networks]\ninception = "weights.pth"\n[bases.teacher]', 1
    )
    with pytest.raises(SystemExit, match=r"holds features of another network \(another\)"):
        run(fid)
    assert not (tmp_path / "out" / "images").exists()


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def launch(table: Path, out: Path, *words: str, processes: int = 1) -> subprocess.Popen[str]:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"]
        start += [f"--nproc_per_node={processes}"]
    words = ("-m", "scripts.table", str(table), "--out", str(out), *words)
    return subprocess.Popen([*start, *words], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def made_by(process: subprocess.Popen[str]) -> int:
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return sum(int(count) for count in re.findall(r"Process \d+ made (\d+);", said))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_twice_and_resumed_nothing_is_made_twice_and_two_processes_give_the_table_of_one(host, tmp_path):
    pytest.importorskip("accelerate")
    table = tmp_path / "t.toml"
    table.write_text(SMALL.replace("count = 12", "count = 100"), "utf-8")
    total = 100 * 4
    assert made_by(launch(table, tmp_path / "one", "--single")) == total
    out, there = tmp_path / "two", dict[str, int]()
    for part in (1 / 4, 3 / 5):
        process = launch(table, out, processes=2)
        while process.poll() is None and len(images(out)) < part * total:
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in [*workers, process]:
            one.kill()
        process.communicate()
        now = images(out)
        assert all(now[name] == at for name, at in there.items()) and len(there) < len(now) < total
        there = now
    assert made_by(launch(table, out, processes=2)) == total - len(there), "nothing twice, nothing lost"
    assert all(images(out)[name] == at for name, at in there.items())
    one, two = ((tmp_path / name / "table.json").read_text("utf-8") for name in ("one", "two"))
    assert one == two


class Words:
    """A text encoder that gives every text a conditioning of its own: CLIP's cannot be tiny."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> Any:
        return self.given.cond(sum(text.encode()) % 1000)


@pytest.fixture
def paper(host, zoo, tmp_path, monkeypatch) -> Path:
    """``benchmarks/paper.toml`` for tiny models under the real file names, two prompts and few teacher steps."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "core")
    import tiny
    from test_lora_node import put
    from test_metrics import save as save_image
    from test_metrics import texture, tiny_clip

    text = (ROOT / "benchmarks" / "paper.toml").read_text("utf-8")
    for old, new in (
        ("[512, 512]", "[64, 64]"),
        ("[1024, 1024]", "[64, 64]"),
        ("@50 ", "@3 "),
        ("length = 16", "length = 2"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "paper.toml").write_text(text, "utf-8")
    files = tmp_path / "paper"
    files.mkdir()
    for name in ("coco_30k", "cc12m_30k", "ucf101"):
        (files / f"{name}.txt").write_text("a cat\nthe sea\n", "utf-8")
    for n in range(2):
        save_image(texture(n, 64), files / "coco_30k" / f"{n}.png")
    tiny_clip(files / "clip-vit-large-patch14")
    kinds = {"sd15": ("v1-5-pruned-emaonly", "sd_turbo", "instaflow_0_9B"),
             "sdxl": ("sd_xl_base_1.0", "sd_xl_turbo_1.0_fp16", "nitrosd-realism_comfyui")}  # fmt: skip
    for kind, names in kinds.items():
        for name in names:
            (files / f"{name}.safetensors").write_bytes(zoo[kind].path.read_bytes())
    loras = {
        "sd15": ["lcm-lora-sdv1-5", "TCD-SD15-LoRA", "AnimateLCM_sd15_t2v_lora"],
        "sdxl": ["lcm-lora-sdxl", *(f"sdxl_lightning_{n}step_lora" for n in (2, 4, 8))],
    }
    for kind, names in loras.items():
        names += [f"pcm_{kind}_smallcfg_{n}step_converted" for n in (2, 4, 8, 16)]
        names += [f"pcm_{kind}_normalcfg_{n}step_converted" for n in (4, 8, 16)]
    for kind, names in loras.items():
        for name in names:
            made = host.base / "models" / "loras" / put(host, zoo[kind].model, name, value=0.02)
            (files / made.name).write_bytes(made.read_bytes())
    (files / "AnimateLCM_sd15_t2v.ckpt").write_bytes(b"motion")

    loaders = host.pack("nodes.host.loaders")

    def load_checkpoint(path: Path) -> tuple[Any, Any, Any]:
        kind = "sdxl" if path.stem in kinds["sdxl"] else "sd15"
        return loaders.load_model(path), Words(zoo[kind]), tiny.make_vae(4)

    monkeypatch.setattr(loaders, "load_checkpoint", load_checkpoint)

    class Motion:
        FUNCTION = "put_on"

        def put_on(self, model: Any, model_name: str, beta_schedule: str) -> tuple[Any]:
            assert (model_name, beta_schedule) == ("AnimateLCM_sd15_t2v.ckpt", "autoselect")
            return (model,)

    monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, "ADE_AnimateDiffLoaderGen1", Motion)
    return tmp_path / "paper.toml"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_tables_of_the_paper_on_stand_ins(host, paper, tmp_path, monkeypatch):
    """Every row is there, InstaFlow and NitroFusion among them; absent files are named, and numbers beside ours."""
    monkeypatch.setattr(command, "load_pack", lambda _: host.pack)
    command.main([str(paper), "--out", str(tmp_path / "out"), "--comfyui", os.environ["COMFYUI_PATH"], "--single"])
    found = json.loads((tmp_path / "out" / "table.json").read_text("utf-8"))
    rows = {(table["name"], row["system"], row["steps"]): row for table in found["tables"] for row in table["rows"]}
    unreleased = ("PCM SD1.5", "PCM SDXL")
    for (table, system, steps), row in rows.items():
        where = (table, system, steps, row["why"])
        if system in ("PCM SDXL, no adversarial loss", "PCM video", "DDIM video", "DPM video"):
            assert row["why"].endswith("does not exist"), where
        elif (system in unreleased and steps == 1) or (system == "SDXL-Lightning" and steps in (1, 16)):
            assert row["why"].endswith("does not exist"), where
        elif row["why"] != "not asked for":
            assert not row["why"] and "CLIP score" in row["figures"], where
    assert rows["sd15-coco", "InstaFlow", 4]["evaluations"] == 4 and rows["sd15-coco", "InstaFlow", 1]["figures"]
    assert rows["sdxl-coco", "NitroFusion", 1]["absent"]["consistency"] == "NitroFusion, 16 steps: not asked for"
    assert rows["sdxl-coco", "LCM SDXL", 1]["figures"]["consistency"] < 1
    assert {"FID-CLIP", "CLIP score", "consistency"} <= set(rows["sd15-coco", "LCM SD1.5", 2]["figures"])
    assert "CLIP consistency" in rows["video", "AnimateLCM", 4]["figures"]
    assert (
        rows["sd15-coco", "LCM SD1.5", 2]["absent"]["FID-SD"] == "give its Inception weights with [networks] inception"
    )
    assert rows["sd15-cc12m", "TCD SD1.5", 2]["absent"]["FID-CLIP"].endswith("cc12m_30k does not exist")
    text = (tmp_path / "out" / "table.md").read_text("utf-8")
    for row in ("| PCM SD1.5 | -", "| *PCM SD1.5, published (Table 1)* | 8.27 | 9.79 | 5.81 | 5.00 | 4.70 |"):
        assert row in text
    assert {path.name for path in (tmp_path / "out").glob("*.svg")} == {
        "sd15-coco.svg", "sd15-cc12m.svg", "sdxl-coco.svg", "sdxl-cc12m.svg", "video.svg"}  # fmt: skip


def test_clips_whose_frames_are_the_batch(host, paper, tmp_path, monkeypatch):
    """The table of clips alone, AnimateDiff's way."""
    text = paper.read_text("utf-8")
    first, last = text.index("[[tables]]"), text.rindex("[[tables]]")
    paper.write_text(text[:first] + text[last:].replace("steps = [1, 2, 4]", "steps = [1, 2]", 1), "utf-8")
    monkeypatch.setattr(command, "load_pack", lambda _: host.pack)
    command.main([str(paper), "--out", str(tmp_path / "out"), "--comfyui", os.environ["COMFYUI_PATH"], "--single"])
    (table,) = json.loads((tmp_path / "out" / "table.json").read_text("utf-8"))["tables"]
    made = {row["steps"]: row for row in table["rows"] if row["system"] == "AnimateLCM"}
    assert all(not row["why"] and 0 < row["figures"]["CLIP consistency"] < 1 for row in made.values())
    assert "flow magnitude" in made[1]["absent"] and len(table["published"]) == 12


def test_motion_modules_need_the_pack_that_loads_them(host, zoo, tmp_path):
    from scripts.generate.motion import with_motion

    with pytest.raises(SystemExit, match="needs ComfyUI-AnimateDiff-Evolved"):
        with_motion(zoo["sd15"].model, tmp_path / "mm.ckpt", tmp_path)
