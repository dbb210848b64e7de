"""What ran can be read (faults.md 35): the output ``info``, and the pictures of Save Image and PCM Save Image."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from test_lora_node import load, put

from pcm_core.errors import PCMError

# Of the Stable Diffusion web UI, modules/infotext_utils.py.
RE_PARAM = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
SETTINGS = {"steps": 4, "cfg": "3, 1, 1, 1", "seed": 11, "denoise": 1.0}


def parsed(text):
    """As the web UI's ``parse_generation_parameters`` reads it: the prompt, the negative prompt, the values."""
    *lines, last = text.strip().split("\n")
    if len(RE_PARAM.findall(last)) < 3:
        lines, last = [*lines, last], ""
    prompt, _, negative = "\n".join(lines).partition("Negative prompt:")
    return prompt.strip(), negative.strip(), {key: value.strip('"') for key, value in RE_PARAM.findall(last)}


def tensors_hash(path):
    """The hash that kohya's scripts and the web UI make of a LoRA, of the bytes behind the header."""
    content = path.read_bytes()
    return hashlib.sha256(content[8 + struct.unpack("<Q", content[:8])[0] :]).hexdigest()


@pytest.fixture
def graph(host, zoo, stand_ins):
    """A prompt: model with a LoRA, PCM Sampler, VAE Decode, Save Image; and the LoRA's path."""
    given = zoo["eps"]
    name = put(host, given.model, "pcm_sd15_normalcfg_4step_converted")
    model, *_ = load(host, given.model, name, 0.75)
    vae = SimpleNamespace(decode=lambda samples: torch.full((len(samples), 16, 24, 3), 0.5))
    stand_ins(GiveModel=("MODEL", model), GiveCond=("CONDITIONING", given.positive),
              GiveLatent=("LATENT", given.latent()), GiveVae=("VAE", vae))  # fmt: skip

    def make(save="SaveImage", /, prefix="record", texts=(), **settings):
        inputs = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
        nodes = {
            "1": ("GiveModel", {}), "2": ("GiveCond", {}), "3": ("GiveLatent", {}), "4": ("GiveVae", {}),
            "5": ("PCMSampler", inputs | SETTINGS | settings),
            "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["4", 0]}),
            "7": (save, {"images": ["6", 0], "filename_prefix": prefix}), "8": ("Take", {"value": ["5", 2]}),
        }  # fmt: skip
        if save == "PCMSaveImage":
            nodes["7"][1].update({"info": ["5", 2], **dict(texts)})
        return {key: {"class_type": c, "inputs": i, "_meta": {"title": c}} for key, (c, i) in nodes.items()}

    make.lora = host.base / "models" / "loras" / name
    make.taken = stand_ins()
    return make


def saved(host, run):
    """What is written in the picture of a run."""
    assert run.success, [data for kind, data in run.status_messages if kind == "execution_error"]
    (image,) = run.history_result["outputs"]["7"]["images"]
    with Image.open(host.base / "output" / image["subfolder"] / image["filename"]) as picture:
        return dict(picture.text)


def test_info_reads_as_a1111_writes_it(host, graph):
    assert host.run_prompt(graph()).success
    prompt, _, values = parsed(graph.taken[-1])
    assert prompt == "<lora:pcm_sd15_normalcfg_4step_converted:0.75>"
    assert values["Lora hashes"] == f"pcm_sd15_normalcfg_4step_converted: {tensors_hash(graph.lora)[:12]}"
    assert {key: values[key] for key in ("Steps", "Sampler", "CFG scale", "Seed", "Schedule type")} == {
        "Steps": "4", "Sampler": "PCM", "CFG scale": "3", "Seed": "11", "Schedule type": "trailing"
    }  # fmt: skip
    assert (values["Method"], values["Phases"], values["CFG per phase"], values["Determinism"]) == (
        "PCM", "4", "3 1 1 1", "1"
    )  # fmt: skip
    sigmas = [float(sigma) for sigma in values["Sigmas"].split()]
    assert len(sigmas) == 5 and sigmas[0] == pytest.approx(14.6146, rel=1e-4) and sigmas[-1] == 0
    assert re.fullmatch(r"\d+x\d+", values["Size"])


def test_save_image_writes_what_ran_beside_the_workflow(host, graph):
    text = saved(host, host.run_prompt(graph(), {"workflow": {"nodes": []}}))
    (run,) = json.loads(text["phased_consistency"])["5"]
    _, _, values = parsed(graph.taken[-1])
    assert (run["steps"], run["cfg"], run["seed"], run["method"]) == (4, [3, 1, 1, 1], 11, "PCM")
    assert run["loras"] == [{"name": graph.lora.stem, "strength": 0.75, "hash": tensors_hash(graph.lora)[:12]}]
    assert " ".join(f"{sigma:g}" for sigma in run["sigmas"]) == values["Sigmas"]
    assert json.loads(text["workflow"]) == {"nodes": []}
    assert saved(host, host.run_prompt(graph())).keys() == {"prompt"}, "a client that sends no workflow"


def test_a_part_of_the_steps_is_what_ran(host, graph):
    run = saved(host, host.run_prompt(graph(start_step=1, end_step=3, denoise=1.0), {}))["phased_consistency"]
    (part,) = json.loads(run)["5"]
    assert part["steps"] == 2 and len(part["sigmas"]) == 3 and part["sigmas"][-1] == 0


@pytest.mark.parametrize("beside", [{"phased_consistency": "x"}, {"phased_consistency": None}, []])
def test_what_a_client_sends_for_pictures_is_not_trusted(host, graph, beside):
    assert host.run_prompt(graph(), beside).success


def test_a_lora_that_was_replaced_since_has_no_hash(host, graph):
    assert host.run_prompt(graph()).success
    graph.lora.write_bytes(graph.lora.read_bytes() + b" ")
    assert host.run_prompt(graph(seed=12)).success
    first, second = (parsed(text)[2] for text in graph.taken)
    assert "Lora hashes" in first and "Lora hashes" not in second


def test_the_hash_in_the_header_is_taken(host, zoo):
    name = put(host, zoo["eps"].model, "noted_hash", metadata={"sshs_model_hash": "ab" * 32})
    model, *_ = load(host, zoo["eps"].model, name)
    assert host.pack("nodes.host").loras_of(model)[0].short_hash == "ab" * 6


def test_names_with_separators_leave_the_other_values_alone(host, zoo):
    name = put(host, zoo["eps"].model, "a, b: <c>")
    model, *_ = load(host, zoo["eps"].model, name)
    given = zoo["eps"]
    *_, info = host.call("PCMSampler", model=model, positive=given.positive, negative=given.negative,
                         latent_image=given.latent(), seed=3, steps=2)  # fmt: skip
    prompt, _, values = parsed(info)
    assert prompt == "<lora:a_ b_ _c_:1>" and values["Lora hashes"].startswith("a_ b_ _c_: ")
    assert values["Steps"] == "2" and values["Seed"] == "3"


def test_the_video_sampler_names_the_loras_of_both_experts(host, zoo):
    given = zoo["wan"]
    high, low = (load(host, given.model, put(host, given.model, f"wan_{side}_noise_style"), strength)[0]
                 for side, strength in (("high", 1.0), ("low", 0.5)))  # fmt: skip
    latent = given.latent()
    *_, info = host.call("PCMVideoSampler", model=high, second_model=low, positive=given.positive,
                         negative=given.negative, latent_image=latent, seed=5, steps=4)  # fmt: skip
    prompt, _, values = parsed(info)
    assert prompt == "<lora:wan_high_noise_style:1><lora:wan_low_noise_style:0.5>"
    assert values["Latent frames"] == str(latent["samples"].shape[2]) and values["Steps"] == "4"


# PCM Save Image


def test_the_parameters_of_a_picture_are_read_by_a1111(host, graph):
    texts = {"positive_text": "a fox: red, <b> \u00e4\u72d0", "negative_text": "blurry"}
    text = saved(host, host.run_prompt(graph("PCMSaveImage", texts=texts), {"workflow": {"nodes": []}}))
    prompt, negative, values = parsed(text["parameters"])
    assert prompt == "a fox: red, <b> \u00e4\u72d0 <lora:pcm_sd15_normalcfg_4step_converted:0.75>"
    assert negative == "blurry"
    assert (values["Steps"], values["CFG scale"], values["Seed"], values["Sampler"]) == ("4", "3", "11", "PCM")
    assert values["Lora hashes"].endswith(tensors_hash(graph.lora)[:12])
    assert json.loads(text["prompt"])["5"]["class_type"] == "PCMSampler"
    assert json.loads(text["workflow"]) == {"nodes": []} and "5" in json.loads(text["phased_consistency"])


def test_other_readers_of_parameters(host, graph):
    """The patterns of LoRA Manager (recipes/parsers/automatic.py), of Civitai and of the SD Prompt Reader."""
    text = saved(host, host.run_prompt(graph("PCMSaveImage", texts={"positive_text": "a fox"})))["parameters"]
    name, digest = graph.lora.stem, tensors_hash(graph.lora)[:12]
    assert re.search(r"Steps: \d+", text) and re.findall(r"<(lora|hypernet):([^:]+):(-?[0-9.]+)>", text) == [
        ("lora", name, "0.75")
    ]
    assert re.search(r', Lora hashes:\s*"([^"]+)"', text)[1] == f"{name}: {digest}"
    assert [line for line in text.split("\n") if line.startswith("Steps: ")] == [text.split("\n")[-1]]
    assert re.findall(r"<(lora|hypernet):([a-zA-Z0-9_\.\-]+):([0-9.]+)>", text)[0][1] == name
    found = dict(re.findall(r"\s*([^:,]+):\s*([^,]+)", text[text.index("\nSteps:") :].strip()))
    assert (found["Steps"], found["Sampler"], found["CFG scale"], found["Seed"]) == ("4", "PCM", "3", "11")


def test_a_sampler_from_the_cache(host, graph):
    """It does not run again: Save Image then writes the workflow alone, PCM Save Image has it by its link."""
    first = host.run_prompt(graph(), {})
    assert "phased_consistency" in saved(host, first)
    again = host.run_prompt(graph(prefix="again"), {}, executor=first)
    assert "phased_consistency" not in saved(host, again)
    with_node = host.run_prompt(graph("PCMSaveImage", prefix="again"), {}, executor=first)
    assert parsed(saved(host, with_node)["parameters"])[2]["Seed"] == "11"
    assert len(graph.taken) == 1, "the sampler ran once"


def test_two_passes_have_their_own_parameters(host, graph):
    prompt = graph("PCMSaveImage")
    second = {**prompt["5"]["inputs"], "latent_image": ["5", 0], "denoise": 0.5, "seed": 12}
    prompt |= {
        "15": {**prompt["5"], "inputs": second},
        "16": {**prompt["6"], "inputs": {"samples": ["15", 0], "vae": ["4", 0]}},
        "17": {**prompt["7"], "inputs": {"images": ["16", 0], "info": ["15", 2], "filename_prefix": "second"}},
    }
    run = host.run_prompt(prompt, {})
    first = parsed(saved(host, run)["parameters"])[2]
    (image,) = run.history_result["outputs"]["17"]["images"]
    with Image.open(host.base / "output" / image["filename"]) as picture:
        last = parsed(picture.text["parameters"])[2]
    assert (first["Seed"], first["Steps"]) == ("11", "4") and "Denoising strength" not in first
    assert (last["Seed"], last["Steps"], last["Denoising strength"]) == ("12", "2", "0.5")


def test_a_batch_has_numbers_and_no_file_is_overwritten(host):
    images = torch.rand(2, 8, 8, 3)
    for _ in range(2):
        host.call("PCMSaveImage", images=images, info="Steps: 4", filename_prefix="folder/batch_%batch_num%_%width%")
    names = sorted(path.name for path in (host.base / "output" / "folder").glob("batch_*"))
    assert names == [f"batch_{n}_8_0000{m}_.png" for n, m in ((0, 1), (0, 2), (1, 2), (1, 3))]
    with Image.open(host.base / "output" / "folder" / names[0]) as picture:
        assert picture.size == (8, 8) and picture.text["parameters"] == "Steps: 4"


@pytest.mark.parametrize("prefix", ["../outside", "/outside", "a/../../b", "a\0b", "a\ud800b", "x" * 300])
def test_a_prefix_outside_the_output_folder_is_refused(host, prefix):
    with pytest.raises(PCMError, match="a name inside the output folder"):
        host.call("PCMSaveImage", images=torch.rand(1, 8, 8, 3), info="x", filename_prefix=prefix)


def test_metadata_can_be_switched_off_as_in_the_hosts_own_nodes(host, graph, monkeypatch):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "disable_metadata", True)
    assert saved(host, host.run_prompt(graph("PCMSaveImage"), {})) == {}


def test_a_folder_that_cannot_be_written_is_said(host):
    (host.base / "output").mkdir(exist_ok=True)
    (host.base / "output" / "a file").write_bytes(b"")
    with pytest.raises(PCMError, match=r"The image cannot be written .*a writable folder"):
        host.call("PCMSaveImage", images=torch.rand(1, 8, 8, 3), info="x", filename_prefix="a file/b")


def test_hostile_texts_are_written_without_what_no_png_holds(host):
    host.call("PCMSaveImage", images=torch.rand(1, 8, 8, 3), info="Steps: 4\0\ud800", filename_prefix="hostile")
    (path,) = (host.base / "output").glob("hostile_*")
    with Image.open(path) as picture:
        assert picture.text["parameters"] == "Steps: 4?"


@pytest.mark.parametrize("images", [torch.rand(8, 8, 3), torch.rand(1, 8, 8, 1), [1, 2], None])
def test_what_is_no_image_is_refused(host, images):
    with pytest.raises(PCMError, match="Expected: an IMAGE"):
        host.call("PCMSaveImage", images=images, info="x", filename_prefix="x")
