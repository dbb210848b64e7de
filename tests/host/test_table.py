"""``pcm table`` on the real host: the demo world's table, its resumption, its failures, the paper's on stand-ins."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageSequence
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


LATE = '[[systems]]\nname = "late"\nbase = "teacher"\n'


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("FAILING", LATE + 'sampling = "eulr/simple@{n}"', r'late, 2 steps: There is no sampler "eulr"\..*Try euler'),
        ("FAILING", LATE + 'sampling = "euler/simple"', r'late, 2 steps: columns contains "euler/simple"'),
        ("FAILING", LATE + 'sampling = "2, 4"', r'--sampling is "2, 4"\. Name one way'),
        ("FAILING", LATE + "gamma = 0.5\ndeterminism = 0.5", r"--gamma and --determinism say the same in two ways"),
        ("FAILING", LATE + 'lora = "strangers"', r"strangers does not exist or is not a file"),
        ('"strangers"', '"empty"', r"empty holds no images\. Give a folder of"),
        ('"strangers"', '"cut"', r"000000_1\.png cannot be read as an image"),
    ],
)
def test_what_no_row_can_be_is_said_before_anything_is_generated(run, tmp_path, old, new, said):
    """In one sentence; the mistake is in the last row."""
    for name in ("strangers", "empty", "cut"):
        (tmp_path / name).mkdir()
    for name in ("000000_1", "holiday"):
        Image.effect_noise((64, 64), 40).convert("RGB").save(tmp_path / "strangers" / f"{name}.png")
    whole = (tmp_path / "strangers" / "000000_1.png").read_bytes()
    (tmp_path / "cut" / "000000_1.png").write_bytes(whole[: len(whole) // 2])
    text = SMALL.replace('"demo_edges"', '"demo_edges", {measure = "psnr", reference = "folder"}') + "FAILING"
    text = text.replace("[bases.teacher]", '[references.folder]\nfolder = "strangers"\n[bases.teacher]')
    with pytest.raises(SystemExit, match=said) as refused:
        run(text.replace(old, new).replace("FAILING", ""))
    assert "\n" not in str(refused.value) and not (tmp_path / "out" / "images").exists()


def test_a_prompt_file_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(SystemExit, match=r"There are no prompts: .*no\.txt does not exist\. Expected: a text file"):
        run(SMALL.replace('prompts = "demo"\ncount = 12', 'prompts = "no.txt"'))


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def launch(
    table: Path, out: Path, *words: str, processes: int = 1, program: Sequence[str] = ("-m", "scripts.table")
) -> subprocess.Popen[str]:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"]
        start += [f"--nproc_per_node={processes}"]
    words = (*program, str(table), "--out", str(out), *words)
    return subprocess.Popen([*start, *words], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def made_by(process: subprocess.Popen[str]) -> int:
    _, said = process.communicate(timeout=1500)
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


@pytest.fixture
def paper(host, zoo, tmp_path, monkeypatch) -> Path:
    """``benchmarks/paper.toml`` for tiny models under the real file names."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "core")
    import paper_stand_ins

    return paper_stand_ins.make(host, zoo, tmp_path)


def rows_of(out: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    found = json.loads((out / "table.json").read_text("utf-8"))
    return {(table["name"], row["system"], row["steps"]): row for table in found["tables"] for row in table["rows"]}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_tables_of_the_paper_on_stand_ins_by_one_process_and_by_two(paper, tmp_path, monkeypatch):
    """Every row is there, InstaFlow and NitroFusion among them; absent files are named, and numbers beside ours."""
    pytest.importorskip("accelerate")
    import paper_stand_ins

    paper_stand_ins.make_networks(tmp_path / "paper", monkeypatch)
    program, comfyui = ROOT / "tests" / "host" / "paper_stand_ins.py", os.environ["COMFYUI_PATH"]
    made = [
        made_by(launch(paper, tmp_path / name, "--comfyui", comfyui, program=[str(program)], processes=processes))
        for name, processes in (("one", 1), ("two", 2))
    ]
    one, two = ((tmp_path / name / "table.json").read_text("utf-8") for name in ("one", "two"))
    assert one == two and made[0] == made[1] == len(list((tmp_path / "one" / "images").glob("*/*/*/0*.*")))

    every_row(rows_of(tmp_path / "one"))
    every_measure(rows_of(tmp_path / "one"), tmp_path)
    text = (tmp_path / "one" / "table.md").read_text("utf-8")
    for row in (
        "| PCM SD1.5 | -",
        "- CTM SD1.5: No LoRA of CTM was released: its sampler on LCM's",
        "| *PCM SD1.5, published (Table 1)* | 8.27 | 9.79 | 5.81 | 5.00 | 4.70 |",
    ):
        assert row in text
    for file in ("pcm_sd15_smallcfg_1step_converted.safetensors", "sdxl_lightning_16step_lora.safetensors",
                 "pcm_sdxl_without_adv_8step.safetensors", "v3_sd15_mm.ckpt", "pcm_animatediff_2step.safetensors",
                 f"{paper.parent}/paper/cc12m_30k"):  # fmt: skip
        assert f"{file} does not exist" in text, file
    assert {path.name for path in (tmp_path / "one").glob("*.svg")} == {
        "sd15-coco.svg", "sd15-cc12m.svg", "sdxl-coco.svg", "sdxl-cc12m.svg", "video.svg"}  # fmt: skip


def every_row(rows: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    unreleased = ("PCM SD1.5", "PCM SDXL")
    for (table, system, steps), row in rows.items():
        where = (table, system, steps, row["why"])
        if system in ("PCM SDXL, no adversarial loss", "PCM video", "DDIM video", "DPM video"):
            assert row["why"].endswith("does not exist"), where
        elif (system in unreleased and steps == 1) or (system == "SDXL-Lightning" and steps in (1, 16)):
            assert row["why"].endswith("does not exist"), where
        elif row["why"] != "not asked for":
            assert not row["why"] and "CLIP score" in row["figures"], where
    assert len(rows) == 7 * 5 * 2 + 8 * 5 * 2 + 4 * 3
    assert rows["sd15-coco", "InstaFlow", 4]["evaluations"] == 4 and rows["sd15-coco", "InstaFlow", 1]["figures"]
    assert rows["sdxl-coco", "NitroFusion", 1]["absent"] == {"consistency": "NitroFusion, 16 steps: not asked for"}


def every_measure(rows: dict[tuple[str, str, int], dict[str, Any]], folder: Path) -> None:
    """A figure for each; FID and FID-SD as torch-fidelity has them of the same two folders."""
    fidelity = pytest.importorskip("torch_fidelity")
    one, clips = rows["sd15-coco", "LCM SD1.5", 2], rows["video", "AnimateLCM", 4]
    assert set(one["figures"]) == {"FID", "FID-CLIP", "FID-SD", "CLIP score", "consistency", "HPS v2", "AES",
                                   "PickScore"}  # fmt: skip
    assert set(clips["figures"]) == {"CLIP score", "flow magnitude", "CLIP consistency"}
    assert 0 < one["figures"]["consistency"] < 1 and clips["figures"]["flow magnitude"] > 0
    absent = rows["sd15-cc12m", "TCD SD1.5", 2]["absent"]
    assert set(absent) == {"FID", "FID-CLIP"} and absent["FID"].endswith("cc12m_30k does not exist")
    (ours,) = (folder / "one" / "images").glob("*/lcm-sd1.5/2")
    (teacher,) = (folder / "one" / "images").glob("*/reference-sd15/0")
    weights = folder / "paper" / "weights-inception-2015-12-05-6726825d.pth"
    for label, other in (("FID", folder / "paper" / "coco_30k"), ("FID-SD", teacher)):
        theirs = fidelity.calculate_metrics(
            input1=str(ours), input2=str(other), feature_extractor_weights_path=str(weights), fid=True, cuda=False,
            cache=False, verbose=False,
        )  # fmt: skip
        assert one["figures"][label] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4), label


def only_video(paper: Path, steps: str) -> None:
    """Leave the table of clips alone."""
    text = paper.read_text("utf-8")
    first, last = text.index("[[tables]]"), text.rindex("[[tables]]")
    text = text[:first] + text[last:].replace("steps = [1, 2, 4]", f"steps = {steps}", 1)
    paper.write_text(text.split("\n[[published]]\n")[0], "utf-8")


def test_clips_whose_frames_are_the_batch(host, paper, tmp_path, monkeypatch):
    """The table of clips alone, AnimateDiff's way; a network that is not there is named by its file."""
    import paper_stand_ins
    from test_metrics import tiny_clip

    loaders = host.pack("nodes.host.loaders")
    monkeypatch.setattr(loaders, "load_checkpoint", paper_stand_ins.load_checkpoint(loaders))
    monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, paper_stand_ins.LOADER, paper_stand_ins.Motion)
    monkeypatch.setattr(command, "load_pack", lambda _: host.pack)
    only_video(paper, "[1, 2]")
    paper.write_text(paper.read_text("utf-8").replace("[128, 128]", "[64, 64]"), "utf-8")
    tiny_clip(tmp_path / "paper" / "clip-vit-large-patch14")
    command.main([str(paper), "--out", str(tmp_path / "out"), "--comfyui", os.environ["COMFYUI_PATH"], "--single"])
    rows = rows_of(tmp_path / "out")
    made = [rows["video", "AnimateLCM", n] for n in (1, 2)]
    assert all(not row["why"] and 0 < row["figures"]["CLIP consistency"] < 1 for row in made)
    assert made[0]["absent"] == {"flow magnitude": "raft_large_C_T_SKHT_V2-ff5fadd5.pth does not exist"}


def test_motion_modules_need_the_pack_that_loads_them(host, zoo, tmp_path):
    from scripts.generate.motion import with_motion

    with pytest.raises(SystemExit, match="needs ComfyUI-AnimateDiff-Evolved"):
        with_motion(zoo["sd15"].model, tmp_path / "mm.ckpt", tmp_path)


@pytest.fixture
def animatediff(request) -> Path:
    """The folder of ComfyUI-AnimateDiff-Evolved among ``--packs``."""
    given = request.config.getoption("--packs", default=None)
    found = [] if given is None else sorted(Path(given).expanduser().resolve().glob("*[Aa]nimate[Dd]iff-[Ee]volved*"))
    if not found:
        pytest.skip("ComfyUI-AnimateDiff-Evolved is not among --packs DIR")
    return found[0]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_motion_modules_by_the_real_animatediff_evolved(animatediff, paper, tmp_path):
    """AnimateLCM's row and AnimateDiff's own: the pack's betas reach the sampler, its modules the frames."""
    import motion_stand_in as stand_in

    files, fps = tmp_path / "paper", "fps = 8.0"
    stand_in.make_unet(files / "v1-5-pruned-emaonly.safetensors")
    stand_in.make_motion(files / "AnimateLCM_sd15_t2v.ckpt", positions=False)
    stand_in.make_motion(files / "v3_sd15_mm.ckpt", positions=True)
    only_video(paper, "[2]")
    text = paper.read_text("utf-8").replace("[128, 128]", "[64, 64]").replace('    "flow",\n', "")
    paper.write_text(text.replace(fps, f"{fps}\ncount = 1"), "utf-8")
    comfyui = stand_in.with_custom_node(Path(os.environ["COMFYUI_PATH"]), animatediff, tmp_path / "comfyui")
    program = str(ROOT / "tests" / "host" / "paper_stand_ins.py")
    for name, start in (("real", [program, "--real-motion"]), ("still", [program])):
        assert made_by(launch(paper, tmp_path / name, "--comfyui", str(comfyui), "--single", program=start)) == 3
    first = {}
    for system in ("animatelcm", "ddim-video", "dpm-video"):
        (real,), (still,) = ((tmp_path / name / "images").glob(f"*/{system}/2") for name in ("real", "still"))
        first[system] = json.loads((real / "manifest.jsonl").read_text("utf-8").splitlines()[0])["sigmas"][0]
        clips = [list(ImageSequence.Iterator(Image.open(folder / "000000_0.webp"))) for folder in (real, still)]
        pixels = [[np.asarray(frame.convert("RGB"), np.float32) for frame in clip] for clip in clips]
        assert len(pixels[0]) == 2 and np.isfinite(pixels[0]).all(), system
        assert np.abs(np.subtract(*pixels)).mean() > 1, "the module changes the frames"
    assert first == pytest.approx(dict.fromkeys(first, 25.146115), rel=1e-4)
