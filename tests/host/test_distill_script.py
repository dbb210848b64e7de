"""The command line: one process, resume, two gloo processes that do what one does, its files and its refusals."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from phased_consistency.nodes import distill as distill_node
from phased_consistency.nodes.training import from_widgets
from phased_consistency.pcm_core.profiles.metadata import profile_from_metadata
from scripts import workers as processes
from scripts.distill import command as distill
from scripts.distill import files as distill_files
from scripts.distill import images

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def inputs(host, zoo, tmp_path_factory):
    """A tiny SD3 checkpoint and a cache of latents and texts for it."""
    given = zoo["sd3"]
    folder = tmp_path_factory.mktemp("distill")
    cache = {
        "latents": [given.latent(1, seed=i)["samples"] for i in range(4)],
        "texts": [given.cond(i) for i in range(4)],
        "negative": given.cond(9),
    }
    torch.save(cache, folder / "cache.pt")
    return given.path, folder / "cache.pt"


def arguments(inputs, folder: Path, name: str, *more: str, processes: int = 1) -> list[str]:
    model, cache = inputs
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"]  # on a free port
        launch += [f"--nproc_per_node={processes}"]
    return [
        *launch, "-m", "scripts.distill", "--model", str(model), "--latents", str(cache),
        "--out", str(folder / f"{name}.safetensors"), "--csv", str(folder / f"{name}.csv"),
        "--state", str(folder / f"{name}.pt"), "--phases", "2", "--batch", "4", "--rank", "4", "--lr", "3e-3",
        "--warmup", "2", *(["--single"] if processes == 1 else []), *more,
    ]  # fmt: skip


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(inputs, folder: Path, name: str, *more: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    words = arguments(inputs, folder, name, *more, processes=processes)
    return subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)


def cut_short(inputs, folder: Path, name: str, *more: str, after: int, by: int) -> str:
    """Start a run and send it a signal once its log has that many steps; returns what it said."""
    process = subprocess.Popen(
        arguments(inputs, folder, name, *more), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    log = folder / f"{name}.csv"
    while process.poll() is None and (not log.exists() or len(log.read_text("utf-8").splitlines()) <= after):
        time.sleep(0.005)
    process.send_signal(by)
    said = process.communicate(timeout=600)[1]
    assert process.returncode != 0, said
    return said


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses(path: Path) -> list[float]:
    return [float(row["loss"]) for row in rows(path)]


def same_lora(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(second[key], first[key]) for key in first)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("words", "steps"), [
    (("--steps", "8"), 8),
    # And four updates of the fake alone; one bank, of which each process makes every other chunk.
    (("--steps", "3", "--stage", "both", "--matching-steps", "4", "--matching-cfg", "2", "--new-bank"), 11),
], ids=["consistency", "both"])  # fmt: skip
def test_two_processes_are_one_run(inputs, tmp_path, words, steps):
    """The same global batch on two gloo processes gives the loss curve of one."""
    pytest.importorskip("accelerate")
    whole = command(inputs, tmp_path, "whole", *words)
    assert whole.returncode == 0, whole.stderr
    assert f"{steps}/{steps}" in whole.stderr
    pair = command(inputs, tmp_path, "pair", *words, processes=2)
    assert pair.returncode == 0, pair.stderr
    expected, found = losses(tmp_path / "whole.csv"), losses(tmp_path / "pair.csv")
    assert len(expected) == len(found) == steps
    assert found == pytest.approx(expected, rel=1e-4)
    made = [sorted(path.name for path in (tmp_path / f"{name}.bank").glob("*")) for name in ("whole", "pair")]
    assert made[0] == made[1] and bool(made[0]) == ("both" in words)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_that_was_killed_or_interrupted_goes_on_to_the_same_bits(inputs, tmp_path):
    steps = ("--steps", "200", "--save-every", "20")
    whole = command(inputs, tmp_path, "whole", *steps)
    assert whole.returncode == 0, whole.stderr

    for _ in range(3):  # the kill may come right after a checkpoint
        for name in ("cut.pt", "cut.csv"):
            (tmp_path / name).unlink(missing_ok=True)
        cut_short(inputs, tmp_path, "cut", *steps, after=30, by=signal.SIGKILL)
        state = torch.load(tmp_path / "cut.pt", weights_only=True)
        assert 20 <= state["step"] < 200 and state["step"] % 20 == 0
        if len(rows(tmp_path / "cut.csv")) > state["step"]:
            break
    assert len(rows(tmp_path / "cut.csv")) > state["step"], "steps after the checkpoint are in the log"

    said = cut_short(inputs, tmp_path, "cut", *steps, after=state["step"] + 25, by=signal.SIGINT)
    stopped = torch.load(tmp_path / "cut.pt", weights_only=True)["step"]
    assert state["step"] + 25 <= stopped < 200 and f"Interrupted at step {stopped}" in said
    assert not (tmp_path / "cut.safetensors").exists()

    (tmp_path / "cut.csv").unlink()
    command(inputs, tmp_path, "cut", *steps)
    assert [row["step"] for row in rows(tmp_path / "cut.csv")] == [str(i) for i in range(stopped + 1, 201)]
    assert rows(tmp_path / "cut.csv") == rows(tmp_path / "whole.csv")[stopped:]
    assert same_lora(tmp_path / "cut.safetensors", tmp_path / "whole.safetensors")

    # A finished checkpoint gives the same LoRA again; with other settings it is refused.
    assert command(inputs, tmp_path, "cut", *steps).returncode == 0
    assert same_lora(tmp_path / "cut.safetensors", tmp_path / "whole.safetensors")
    other = command(inputs, tmp_path, "cut", *steps, "--lr", "1e-3")
    assert other.returncode != 0 and "other settings" in other.stderr


def write(log: distill.StepLog, *steps: int) -> None:
    for step in steps:
        log(SimpleNamespace(step=step, loss=0.5, generator_loss=0.0, discriminator_loss=0.0, grad_norm=1, lr=1e-3))


def test_the_log_goes_on_after_the_checkpoint(tmp_path):
    """Rows of steps that will be run again are dropped, an absent log gets its head."""
    path = tmp_path / "log.csv"
    write(distill.StepLog(path, done=0), 1, 2, 3, 4)
    write(distill.StepLog(path, done=2), 3, 4, 5)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3", "4", "5"]
    with path.open("a", encoding="utf-8") as file:
        file.write("6,0.")  # cut off while it was written
    write(distill.StepLog(path, done=5), 6)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3", "4", "5", "6"]
    with path.open("a", encoding="utf-8") as file:
        file.write("7,0.")  # where the run went on without its log
    write(distill.StepLog(path, done=9), 10)
    assert [row["step"] for row in rows(path)] == ["1", "2", "3", "4", "5", "6", "10"]
    path.unlink()
    write(distill.StepLog(path, done=6), 7)
    assert losses(path) == [0.5]


def test_the_old_log_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    write(distill.StepLog(path, done=0), 1, 2, 3)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(distill_files.csv, "writer", lambda file: SimpleNamespace(writerows=full))
    with pytest.raises(SystemExit, match=r"log\.csv cannot be written .*No space left.* Expected: free space"):
        distill.StepLog(path, done=2)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["log.csv"]


def test_a_log_behind_a_link_stays_there(tmp_path):
    """As does a device: replacing /dev/stdout by a file would be worse than any log."""
    (tmp_path / "link.csv").symlink_to(tmp_path / "far.csv")
    for done in (0, 1):
        write(distill.StepLog(tmp_path / "link.csv", done=done), done + 1)
    assert (tmp_path / "link.csv").is_symlink() and len(rows(tmp_path / "far.csv")) == 2
    assert not distill.StepLog(Path(os.devnull), done=0).path.is_file()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    distill.save_state({"step": 1}, path)

    def full(state, where):
        where.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0")

    monkeypatch.setattr(distill.torch, "save", full)
    with pytest.raises(SystemExit, match="cannot be written"):
        distill.save_state({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_data_must_be_named(tmp_path):
    with pytest.raises(SystemExit, match="Give one of --images, --latents and --prompts"):
        distill.main(["--model", "m", "--out", "o"])


def test_several_processes_need_accelerate(monkeypatch):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="pip install accelerate"):
        processes.Workers.start(single=False, on_cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = processes.Workers.start(single=False, on_cpu=True)
    assert (alone.rank, alone.count, alone.first) == (0, 1, True)


def test_captions_and_encoders_are_asked_for(tmp_path):
    files = type("Files", (), {"PICTURES": (".png",)})
    options = distill.parser().parse_args(["--model", "m", "--out", "o", "--images", str(tmp_path)])
    with pytest.raises(SystemExit, match="--vae and --clip"):
        distill.encode_images(options, files)
    options.vae, options.clip = tmp_path / "v", [tmp_path / "c"]
    with pytest.raises(SystemExit, match="has no images"):
        distill.encode_images(options, files)
    (tmp_path / "._a.png").touch()
    with pytest.raises(SystemExit, match="has no images"):
        distill.encode_images(options, files)
    (tmp_path / "a.png").touch()
    with pytest.raises(SystemExit, match=r"1 captions are missing, the first is a\.txt"):
        distill.encode_images(options, files)


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa red circle\n")
    assert images._caption(tmp_path / "a.txt") == "a red circle"


@pytest.fixture
def run(host, inputs, tmp_path, monkeypatch):
    """The whole script in this process, with the pack that the host loaded; files are named after "run"."""
    monkeypatch.setattr(distill, "load_pack", lambda _: host.pack)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield lambda *more: distill.main(arguments(inputs, tmp_path, "run", *map(str, more))[3:])
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_refusal_is_one_sentence_and_exit_code_1(inputs, tmp_path):
    (tmp_path / "cache.pt").write_bytes(inputs[1].read_bytes()[:1000])
    for latents, said in (("absent.pt", "does not exist"), ("cache.pt", "cannot be read")):
        ended = command(inputs, tmp_path, "bad", "--latents", str(tmp_path / latents))
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        last = ended.stderr.splitlines()[-1]
        assert f"{latents} {said}" in last and " Expected: a " in last, ended.stderr


def bad_file(kind: str, inputs, folder: Path) -> Path:
    """A file that is not what it is given as."""
    model, cache = inputs
    path = folder / kind
    whole = torch.load(cache, weights_only=True)
    if kind == "cut.safetensors":
        path.write_bytes(model.read_bytes()[:1000])
    elif kind == "cut.pt":
        path.write_bytes(cache.read_bytes()[:1000])
    elif kind == "text.pt":
        path.write_text("a text", "utf-8")
    elif kind == "empty.pt":
        path.touch()
    elif kind == "object.pt":
        torch.save(SimpleNamespace(latents=1), path)
    elif kind == "list.pt":
        torch.save([1], path)
    elif kind == "none.pt":
        torch.save({**whole, "latents": []}, path)
    elif kind == "texts.pt":
        torch.save({**whole, "texts": ["a red circle"]}, path)
    elif kind == "negative.pt":
        torch.save({**whole, "negative": torch.zeros(2)}, path)
    elif kind == "cache.pt":
        torch.save(whole, path)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("option", "kind", "said"),
    [
        ("--model", "absent", "absent does not exist or is not a file. Expected: a file."),
        ("--model", "cut.safetensors", "cut.safetensors cannot be loaded ("),
        ("--model", "cache.pt", "cache.pt cannot be loaded ("),
        ("--model", "text.pt", "text.pt cannot be loaded (its contents are not what was expected)"),
        ("--latents", "absent", "absent does not exist or is not a file. Expected: a file."),
        ("--latents", "cut.pt", "cut.pt cannot be read ("),
        ("--latents", "text.pt", "text.pt cannot be read (its contents are not what was expected)"),
        ("--latents", "empty.pt", "empty.pt cannot be read ("),
        ("--latents", "object.pt", "object.pt cannot be read (its contents are not what was expected)"),
        ("--latents", "list.pt", "list.pt does not hold latents and texts. Expected: a cache"),
        ("--latents", "none.pt", "none.pt does not hold latents and texts. Expected: a cache"),
        ("--latents", "texts.pt", "texts.pt does not hold latents and texts. Expected: a cache"),
        ("--latents", "negative.pt", "negative.pt does not hold latents and texts. Expected: a cache"),
        ("--state", "cut.pt", "cut.pt cannot be read ("),
        ("--state", "cache.pt", "cache.pt is not a checkpoint. Expected: a checkpoint"),
        ("--state", "list.pt", "list.pt is not a checkpoint. Expected: a checkpoint"),
        ("--state", "folder", "folder is not a file."),
        ("--out", "folder", "folder is not a file."),
        ("--csv", "folder", "folder cannot be written ("),
        ("--csv", "text.pt/log.csv", "text.pt cannot be made ("),
    ],
)
def test_a_file_that_is_none_is_refused(run, inputs, tmp_path, option, kind, said):
    first, *rest = kind.split("/")
    with pytest.raises(SystemExit) as ended:
        run(option, bad_file(first, inputs, tmp_path).joinpath(*rest), "--steps", 1)
    text = str(ended.value.code)
    assert said in text and " Expected: " in text and "\n" not in text
    assert not (tmp_path / "run.safetensors").exists()


@pytest.mark.parametrize("alpha", ["0", "-1", "nan", "inf"])
def test_an_alpha_that_trains_nothing_is_refused_before_anything_is_loaded(alpha):
    with pytest.raises(SystemExit, match=rf"--alpha is {alpha}\. Expected: a finite number above 0\. Leave it out"):
        distill.main(["--model", "m", "--out", "o", "--latents", "l", "--alpha", alpha])


def test_a_cache_without_a_negative_serves_a_teacher_without_guidance(run, inputs, tmp_path, host):
    cached = torch.load(inputs[1], weights_only=True)
    del cached["negative"]
    torch.save(cached, tmp_path / "positive.pt")
    run("--latents", tmp_path / "positive.pt", "--steps", 2, "--cfg", 1, 1)
    run("--steps", 2, "--cfg", 1, 1, "--out", tmp_path / "with.safetensors", "--state", tmp_path / "other.pt")
    assert same_lora(tmp_path / "run.safetensors", tmp_path / "with.safetensors")
    with pytest.raises(SystemExit, match="There is no negative conditioning"):
        run("--latents", tmp_path / "positive.pt", "--steps", 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_that_cannot_be_begun_ends_the_run(run, tmp_path):
    (tmp_path / "run.csv").symlink_to("/dev/full")
    said = r"run\.csv cannot be written .*No space left.* Expected: free space .*another name"
    with pytest.raises(SystemExit, match=said):
        run("--steps", 1)
    assert (tmp_path / "run.csv").is_symlink() and not (tmp_path / "run.safetensors").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_run_whose_log_fails_goes_on_and_says_so_once(run, tmp_path, monkeypatch, capsys):
    log, write_row = tmp_path / "run.csv", distill.StepLog.__call__

    def fill(step_log, report):
        write_row(step_log, report)
        if report.step == 2:
            log.unlink()
            log.symlink_to("/dev/full")

    monkeypatch.setattr(distill.StepLog, "__call__", fill)
    run("--steps", 5)
    said = [line for line in capsys.readouterr().err.splitlines() if "cannot be written" in line]
    assert len(said) == 1 and "at step 3 (" in said[0] and "The run continues without its log." in said[0]
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 5 and (tmp_path / "run.safetensors").exists()


class Encoders:
    """What ``nodes.host.loaders`` gives the script, counting pictures and texts."""

    PICTURES, PCMError = (".png",), distill_files.PCMError

    def __init__(self) -> None:
        self.seen: list[int] = []

    def encode_pictures(self, vae, pictures, size):
        self.seen.append(len(pictures))
        return [torch.full((1, 4, 8, 8), float(Image.open(path).getpixel((0, 0))[0])) for path in pictures]

    def encode_texts(self, clip, kind, texts):
        return [[[torch.full((1, 2, 3), float(len(text))), {}]] for text in texts]


@pytest.fixture
def pictures(tmp_path):
    """A folder of two pictures with captions, and the words that name it and its encoders."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a" * (number + 1), "utf-8")
    for name in ("vae", "clip", "clip2"):
        (tmp_path / name).write_text(name, "utf-8")
    return folder, ["--images", folder, "--vae", tmp_path / "vae", "--clip", tmp_path / "clip", "--out", tmp_path / "o"]


def encode(words, files=None) -> list[int]:
    """How many pictures each call of the encoder was given."""
    files = files or Encoders()
    options = distill.parser().parse_args(["--model", "m", *map(str, words)])
    distill.encode_images(options, files)
    return files.seen


def test_pictures_are_encoded_once(pictures, tmp_path, capsys):
    folder, words = pictures
    cache = tmp_path / "o.latents.pt"
    assert encode(words) == [2]
    assert capsys.readouterr().err == f"{cache} does not exist yet: encoding 2 images.\n"
    cached = distill_files.read_cache(cache)
    assert [float(latent[0, 0, 0, 0]) for latent in cached["latents"]] == [0, 1]
    assert [float(text[0][0][0, 0, 0]) for text in (cached["negative"], *cached["texts"])] == [0, 1, 2]
    assert encode(words) == []
    assert capsys.readouterr().err == f"{cache} is up to date with 2 images.\n"
    folder = folder.rename(tmp_path / "moved")
    assert encode(["--images", folder, *words[2:]]) == []
    assert sorted(path.name for path in tmp_path.iterdir() if "o." in path.name) == ["o.latents.pt"]


@pytest.mark.parametrize("change", ["picture", "caption", "new", "gone", "date", "size", "vae", "clip", "type", "cut"])
def test_pictures_are_encoded_again_when_anything_changed(pictures, tmp_path, change, capsys):
    folder, words = pictures
    cache = tmp_path / "o.latents.pt"
    assert encode(words) == [2]
    count = 2
    if change == "picture":
        Image.new("RGB", (9, 9)).save(folder / "1.png")
    elif change == "caption":
        (folder / "1.txt").write_text("another", "utf-8")
    elif change == "new":
        Image.new("RGB", (8, 8)).save(folder / "2.png")
        (folder / "2.txt").touch()
        count = 3
    elif change == "gone":
        (folder / "1.png").unlink()
        count = 1
    elif change == "date":
        os.utime(folder / "0.png", (1, 1))
    elif change == "vae":
        (tmp_path / "vae").write_text("eav", "utf-8")  # as many bytes
    elif change == "cut":
        cache.write_bytes(cache.read_bytes()[:500])
    more = {"size": ["--size", 256], "clip": ["--clip", tmp_path / "clip2"], "type": ["--clip-type", "sd3"]}
    words = [*words, *more.get(change, [])]
    capsys.readouterr()
    assert encode(words) == [count]
    parts = {"size": "size", "clip": "encoders", "vae": "encoders", "type": "clip type"}
    what = parts.get(change, "pictures or captions")
    why = "does not say what" if change == "cut" else f"is out of date (changed: {what})"
    said = capsys.readouterr().err
    assert said.startswith(f"{cache} {why}") and said.endswith(f": encoding {count} images.\n")
    assert encode(words) == []


def test_a_cache_that_cannot_be_written_leaves_the_one_before(pictures, tmp_path, monkeypatch):
    folder, words = pictures
    encode(words)
    cache = tmp_path / "o.latents.pt"
    before = cache.read_bytes()
    (folder / "1.txt").write_text("another", "utf-8")

    def full(state, where):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    said = r"o\.latents\.pt cannot be written .* Expected: free space .*Any earlier cache is unchanged"
    with pytest.raises(SystemExit, match=said):
        encode(words)
    assert cache.read_bytes() == before and not list(tmp_path.glob("*.part"))


def test_what_cannot_be_encoded_is_named(pictures, tmp_path):
    folder, words = pictures
    files = Encoders()
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    with pytest.raises(SystemExit, match=r"1\.png cannot be encoded \(.*Expected: images"):
        encode(words, files)
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    files.encode_texts = lambda *_: 1 / 0
    with pytest.raises(SystemExit, match=r"clip cannot encode the captions \(division by zero\)\. Expected: text"):
        encode(words, files)
    files.encode_pictures = lambda *_: 1 / 0
    with pytest.raises(SystemExit, match=r"pictures cannot be encoded \(division by zero\).*--vae is "):
        encode(words, files)
    (folder / "0.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(SystemExit, match=r"0\.txt cannot be read .*Expected: a caption in UTF-8"):
        encode(words)


def test_settings_are_checked_before_pictures_are_encoded(run, host, pictures, inputs, monkeypatch):
    monkeypatch.setattr(distill, "encode_images", lambda *_: pytest.fail("encoded first"))
    words = [str(word) for word in (*pictures[1], "--model", inputs[0], "--single", "--lr", "nan")]
    with pytest.raises(SystemExit, match="lr is nan"):
        distill.main(words)


@pytest.mark.parametrize("steps", [1, 10, 200, 5000])
def test_the_warm_up_is_that_of_the_node(host, zoo, steps):
    words = ["--model", "m", "--out", "o", "--steps", str(steps)]
    ours = distill.make_config(distill.parser().parse_args(words), host.pack)
    node, given = distill_node, zoo["sd3"]
    schema = node.PCMDistillLora.define_schema().inputs
    values = {each.id: each.default for each in schema if hasattr(each, "default")}
    values |= {"model": given.model, "steps": steps, "cfg_min": 1.0, "cfg_max": 1.0}
    theirs = from_widgets.job_of([given.latent(1)], [given.cond(0)], None, values).config
    assert ours.warmup == theirs.warmup
    assert max(ours.learning_rate(step) for step in range(steps)) == pytest.approx(ours.lr)
    words += ["--warmup", "7"]
    assert distill.make_config(distill.parser().parse_args(words), host.pack).warmup == 7


def test_processes_wait_for_the_first_to_encode(monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    made = []
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: made.append(options) or SimpleNamespace(
        process_index=1, num_processes=2))  # fmt: skip
    for waits in (True, False):
        assert processes.Workers.start(single=False, on_cpu=True, patient=waits).rank == 1
    assert [options["cpu"] for options in made] == [True, True]
    (patient,) = made[0]["kwargs_handlers"]
    assert patient.to_kwargs() == {"timeout": timedelta(hours=12)}
    assert not made[1]["kwargs_handlers"], "in training a peer that hangs is noticed as soon as ever"


def test_a_folder_without_comfyui_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"is not a ComfyUI checkout\. Point --comfyui or COMFYUI_PATH at one"):
        processes.load_pack(str(tmp_path))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_both_stages_go_on_where_they_were_stopped(inputs, tmp_path):
    """The bank lies beside the LoRA; a run stopped in the matching stage ends in the bits of one that was not."""
    more = ("--stage", "both", "--steps", "3", "--matching-steps", "20", "--matching-cfg", "2", "--save-every", "1")
    whole = command(inputs, tmp_path, "whole", *more)
    assert whole.returncode == 0, whole.stderr
    assert len(rows(tmp_path / "whole.csv")) == 3 + 20 + 20
    assert list((tmp_path / "whole.bank").glob("*.safetensors"))
    cut_short(inputs, tmp_path, "cut", *more, after=26, by=signal.SIGKILL)
    assert torch.load(tmp_path / "cut.pt", weights_only=True)["stage"] == "matching"
    assert command(inputs, tmp_path, "cut", *more).returncode == 0
    assert same_lora(tmp_path / "cut.safetensors", tmp_path / "whole.safetensors")


def test_a_matching_stage_without_a_start_is_refused(inputs, tmp_path):
    said = command(inputs, tmp_path, "none", "--stage", "matching").stderr
    assert "--stage matching has no LoRA to start from." in said


def test_a_lora_for_renoised_steps_says_so_in_its_file(inputs, tmp_path):
    """One phase, matched at the four noise levels that LCM samples; the profile of the file is LCM's."""
    more = ("--phases", "1", "--stage", "both", "--steps", "1", "--matching-steps", "1", "--matching-cfg", "2",
            "--matching-renoised", "4")  # fmt: skip
    done = command(inputs, tmp_path, "lcm", *more)
    assert done.returncode == 0, done.stderr
    with safe_open(tmp_path / "lcm.safetensors", "pt") as file:
        profile = profile_from_metadata(file.metadata())
    assert profile is not None
    assert (profile.steps, profile.determinism) == (4, 0.0)
    refused = command(inputs, tmp_path, "two", *more, "--phases", "2").stderr
    assert "phases is 2. Expected: 1 with renoised steps." in refused.replace("\n", " ")
