"""A pair of experts, sampled by stock nodes and by the nodes that "Use PCM nodes" puts in their place: one clip."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "check"))
import tiny_video
from right_graphs import build_pair

from pcm_core.workflow_check import apply_mends
from pcm_core.workflow_check.check import check_graph
from pcm_core.workflow_check.pcm_nodes import Exchanges
from pcm_core.workflow_check.read import read_workflow
from pcm_core.workflow_check.schedules import ClosedForm


class Evaluation:
    """An API prompt run node by node; nodes that would load files give what they are told to."""

    def __init__(self, host: Any, prompt: dict[str, Any], given: dict[str, Any]) -> None:
        self.host, self.prompt, self.given, self.made = host, prompt, given, dict[str, tuple[Any, ...]]()

    def value(self, entry: Any) -> Any:
        return self.outputs(entry[0])[entry[1]] if isinstance(entry, list) else entry

    def outputs(self, name: str) -> tuple[Any, ...]:
        if name not in self.made:
            node = self.prompt[name]
            inputs = {key: self.value(entry) for key, entry in node["inputs"].items()}
            make = self.given.get(node["class_type"])
            self.made[name] = make(inputs) if make else self.host.call(node["class_type"], **inputs)
        return self.made[name]

    def result(self) -> torch.Tensor:
        (last,) = [node for node in self.prompt.values() if node["class_type"] == "SaveLatent"]
        return self.value(last["inputs"]["samples"])["samples"]


@pytest.mark.parametrize("split", [1, 2, 3])
def test_two_samplers_and_what_takes_their_place_make_one_clip(host, zoo, tmp_path, split):
    experts = {"high": zoo["wan"], "low": tiny_video.wan_twin(tmp_path)}
    settings, profiles = host.pack("nodes.sampling.settings"), host.pack("pcm_core.profiles")

    def ours(inputs: dict[str, Any]) -> tuple[Any, ...]:
        return (settings.configure(inputs["model"], profiles.profile_from_name(inputs["lora_name"]))[0], "")

    some = experts["high"]
    given = {
        "UNETLoader": lambda inputs: (experts["high" if "high" in inputs["unet_name"] else "low"].model,),
        "LoraLoaderModelOnly": lambda inputs: (inputs["model"],),
        "PCMLoraLoader": ours,
        "CLIPLoader": lambda inputs: (None,),
        "CLIPTextEncode": lambda inputs: (some.positive if inputs["text"] == "a fox" else some.negative,),
        "EmptyLatentImage": lambda inputs: (some.latent(),),
    }
    prompt = build_pair()
    for node in prompt.values():
        for name in ("end_at_step", "start_at_step"):
            if node["inputs"].get(name) == 2:
                node["inputs"][name] = split
    stock = Evaluation(host, prompt, given).result()
    graph = read_workflow(prompt)
    report = check_graph(graph, ClosedForm())
    found = Exchanges(graph, report, ClosedForm()).of(report.files[0])
    exchanged, left = apply_mends(prompt, found.steps)
    assert not left and "PCMVideoSampler" in {node["class_type"] for node in exchanged.values()}
    mine = Evaluation(host, exchanged, given).result()
    assert float((mine - stock).norm() / stock.norm()) < 1e-5


def test_the_bar_shows_the_part_and_the_expert_that_ran(host, zoo, tmp_path, monkeypatch):
    settings, profiles = host.pack("nodes.sampling.settings"), host.pack("pcm_core.profiles")
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(host.pack("nodes.sampling.plan"), "show_bar", shown.append)
    some, twin = zoo["wan"], tiny_video.wan_twin(tmp_path)
    profile = profiles.profile_from_name("lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors")
    models = [settings.configure(model.model, profile)[0] for model in (some, twin)]
    words = {"positive": some.positive, "negative": some.negative, "latent_image": some.latent(), "seed": 1}
    host.call("PCMSampler", model=models[0], **words, start_step=1, end_step=3, return_with_leftover_noise=True)
    assert shown[-1]["ran"] == (1, 3) and len(shown[-1]["levels"]) == 5
    host.call("PCMSampler", model=models[0], **words)
    assert shown[-1]["ran"] is None
    host.call("PCMVideoSampler", model=models[0], second_model=models[1], **words)
    assert shown[-1]["second"] == 2 and shown[-1]["windows"] is None
    host.call("PCMVideoSampler", model=models[0], **words)
    assert shown[-1]["second"] is None
