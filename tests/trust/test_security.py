"""The promises of SECURITY.md against the real server: hostile names, files and texts, sent past the host's lists."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import recipes
import torch
from safetensors.torch import load_file, save_file

from demo.client import Client, Graph, PromptError
from demo.quickstart import LORA, REPORT
from devtools.server import Server
from pcm_core.errors import PCMError
from pcm_core.lora import read_lora
from pcm_core.profiles import profile_from_metadata

SOUND = "demo_pcm_4phase.safetensors"
DISTIL, SAVE_LORA, SWITCH = "30", "31", "70"


@pytest.fixture
def loras(server: Server) -> Iterator[Path]:
    """The folder of the LoRAs; what a test puts there goes again."""
    folder = server.base / "models" / "loras"
    before = set(folder.iterdir())
    yield folder
    for path in set(folder.iterdir()) - before:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def by_link(graph: Graph, node: str, name: str, value: str) -> Graph:
    """Through the host's switch, past its check that the name is in the list."""
    graph[SWITCH] = recipes.node("ComfySwitchNode", switch=True, on_false=value, on_true=value)
    graph[node]["inputs"][name] = [SWITCH, 0]
    return graph


def refusal(client: Client, graph: Graph) -> str:
    """The sentence with which one of our nodes refuses."""
    with pytest.raises(PromptError) as error:
        client.run(graph)
    assert error.value.details["exception_type"].endswith("PCMError"), error.value.details
    message = error.value.details["exception_message"].strip()
    assert message.isprintable() and "Expected: " in message, repr(message)
    return message


def load_named(name: str) -> Graph:
    return by_link(recipes.picture(""), LORA, "lora_name", name)


def go_on_from(name: str) -> Graph:
    return by_link(recipes.distil("", steps=1), DISTIL, "existing_lora", name)


@pytest.mark.parametrize("graph", [load_named, go_on_from])
def test_a_workflow_cannot_name_a_file_outside_the_folders(
    server: Server, client: Client, loras: Path, graph: Callable[[str], Graph]
) -> None:
    """The file is a sound LoRA, so that reading it would succeed."""
    outside = server.base / "outside.safetensors"
    outside.write_bytes((loras / SOUND).read_bytes())
    (loras / "sub").mkdir()
    names = [
        "../../outside.safetensors", "sub/../../../outside.safetensors", "..\\..\\outside.safetensors", str(outside),
        f"file://{outside}", f"{SOUND}\0", f"/{SOUND}", "sub", "", "C:\\outside.safetensors", "\ud800.safetensors",
    ]  # fmt: skip
    for name in names:
        assert "There is no LoRA" in refusal(client, graph(name)), name
    client.run(load_named(SOUND))


@pytest.mark.parametrize(
    "prefix",
    [
        "../out",
        "a/../../../out",
        "{elsewhere}/out",
        "..\\out",
        "C:\\out",
        "C:out",
        "a\0b",
        "a\nb",
        "\x1b[31m",
        "\ud800",
        " ",
        "9" * 6000,
    ],
)
def test_a_lora_is_saved_in_its_folder_or_not_at_all(
    server: Server, client: Client, tmp_path: Path, prefix: str
) -> None:
    before = {path for path in server.base.rglob("*.safetensors") if "pcm_" not in path.name}
    graph = recipes.distil("", steps=1)
    graph[SAVE_LORA]["inputs"]["prefix"] = prefix.replace("{elsewhere}", str(tmp_path))
    assert "The prefix is" in refusal(client, graph)
    assert {path for path in server.base.rglob("*.safetensors") if "pcm_" not in path.name} == before
    assert not list(Path(server.base).parent.glob("out*")) and not list(tmp_path.iterdir())


class Trap:
    """Pickled, it makes a file when it is opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_pickles_are_not_opened_under_any_name(client: Client, loras: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    raw = loras / "raw.safetensors"
    raw.write_bytes(pickle.dumps(Trap(sprung)))
    torch.save({"a.lora_up.weight": Trap(sprung)}, loras / "zip.safetensors")
    for path in (raw, loras / "zip.safetensors"):
        assert "damaged or not a safetensors file" in refusal(client, load_named(path.name))
        for suffix in (".ckpt", ".pt", ".bin", ".pth"):
            path.with_suffix(suffix).write_bytes(path.read_bytes())
            assert "a .safetensors file" in refusal(client, load_named(path.stem + suffix))
    assert not sprung.exists()
    pickle.loads(raw.read_bytes())  # the trap works
    assert sprung.exists()


@pytest.mark.skipif(os.name == "nt", reason="symlinks need a privilege")
def test_links_out_of_a_folder_are_the_owners_business_and_show_nothing(
    server: Server, client: Client, loras: Path
) -> None:
    """People keep models on other disks: the host follows links that lie in its folders, and so do we."""
    secret = server.base / "secret.txt"
    secret.write_text("password: swordfish\n" * 10)
    (loras / "elsewhere.safetensors").symlink_to((loras / SOUND).resolve())
    (loras / "secret.safetensors").symlink_to(secret)
    client.run(load_named("elsewhere.safetensors"))
    assert "swordfish" not in refusal(client, load_named("secret.safetensors"))


NAMES = [
    "%s%n{0.__class__}{name!r}.safetensors",
    "line\nERROR forged.safetensors",
    "\x1b[31mred\x07.safetensors",
    "\u202ereversed.safetensors",
    "<img src=x onerror=alert(1)>.safetensors",
    "$(id)`id`;id.safetensors",
]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", NAMES)
def test_names_are_only_text(server: Server, client: Client, loras: Path, name: str) -> None:
    """A sound file and a broken one: the report, the log and the error have the name in one printable line."""
    (loras / name).write_bytes((loras / SOUND).read_bytes())
    outputs = client.run(load_named(name))
    lines = outputs[REPORT]["text"][0].splitlines()
    assert all(line.isprintable() for line in lines)
    shown = name if name.isprintable() else name.encode("unicode_escape").decode()
    assert lines[0] == f"file: {shown}"
    (logged,) = [line for line in server.log.read_text("utf-8").splitlines() if f"Load PCM LoRA: {shown}" in line]
    assert logged.count("Load PCM LoRA") == 1 and "tensors applied" in logged
    (loras / name).write_bytes((loras / SOUND).read_bytes()[:5000])
    assert shown in refusal(client, load_named(name))


HOSTILE = {
    "line break": {"pcm_family": "PCM\nERROR: forged"},
    "terminal command": {"pcm_note": "\x1b]0;title\x07"},
    "endless": {"pcm_family": "A" * 100_000},
    "timestep beyond the table": {"pcm_timesteps": "5000, 100"},
    "fewer timesteps than phases": {"pcm_timesteps": "999, 499"},
    "negative timestep": {"pcm_timesteps": "999, -3000"},
    "rising timesteps": {"pcm_timesteps": "100, 900"},
    "a million sigmas": {"pcm_sigmas": ", ".join(str(n) for n in range(100_000, 0, -1)) + ", 0"},
    "6000 digits": {"pcm_steps": "9" * 6000},
    "strength without alpha": {"pcm_strength_no_alpha": "1e30"},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_metadata_is_refused_when_it_is_out_of_bounds(case: str) -> None:
    with pytest.raises(PCMError, match="The metadata says") as error:
        profile_from_metadata({"pcm_phases": "4"} | HOSTILE[case])
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_hostile_metadata_reaches_nobody(client: Client, loras: Path) -> None:
    tensors = load_file(loras / SOUND)
    for number, (case, metadata) in enumerate(HOSTILE.items()):
        save_file(tensors, loras / f"hostile{number}.safetensors", metadata={"pcm_phases": "4"} | metadata)
        assert "The metadata says" in refusal(client, load_named(f"hostile{number}.safetensors")), case


def test_tensor_names_are_only_text(tmp_path: Path) -> None:
    """The names of a file that is no LoRA end up in the sentence that says so."""
    from pcm_core.lora import normalize

    path = tmp_path / "model.safetensors"
    save_file({"a\nb\x1b[2J%s{0}.weight": torch.ones(1)}, path)
    tensors, _ = read_lora(path)
    with pytest.raises(PCMError, match="is a whole model") as error:
        normalize(tensors)
    assert str(error.value).isprintable()


def test_labels_are_only_text(client: Client) -> None:
    graph = recipes.compare("")
    graph[recipes.OTHER]["inputs"] |= {
        "columns": "2 = %s{0}<script>\x1b[31m, 2", "row_labels": "\0\u202e%n{}\ud800",
    }  # fmt: skip
    graph["71"] = recipes.node("PreviewAny", source=[recipes.OTHER, 1])
    table = client.run(graph)["71"]["text"][0]
    assert all(line.isprintable() for line in table.splitlines()) and "%s{0}<script>" in table


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"columns": "2 = " + "long " * 100_000}, "The label"),
        ({"row_labels": "long " * 100_000}, "The label"),
        ({"columns": "2, " * 100_000}, "100000 entries"),
        ({"columns": "9" * 6000}, "columns contains"),
    ],
)
def test_a_sheet_cannot_be_made_so_large_that_it_takes_the_memory(
    client: Client, inputs: dict[str, str], words: str
) -> None:
    graph = recipes.compare("")
    graph[recipes.OTHER]["inputs"] |= inputs
    with pytest.raises(PromptError) as error:
        client.run(graph)
    assert words in str(error.value.details)
