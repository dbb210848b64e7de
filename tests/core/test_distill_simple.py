"""Distillation in one call: the model is unchanged, the file configures itself, and invalid input is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_distill_trainer import FLOW_TABLE, Velocity
from torch import nn

from pcm_core import distill
from pcm_core.errors import PCMError
from pcm_core.profiles.metadata import profile_from_metadata

LATENTS = torch.randn(32, 2, generator=torch.Generator().manual_seed(0)) * 0.2 + 1


class Model:
    """A flow model with the interface of ``Denoiser``; without ``captioned`` it is called with x and sigma only."""

    def __init__(self, captioned: bool) -> None:
        self.network, self.sigmas, self.flow = Velocity().requires_grad_(True), FLOW_TABLE, True
        self.seen: set[int] = set()
        self.call = self.with_captions if captioned else self.without

    def with_captions(self, x, sigma, captions=None):
        captions = torch.zeros(len(x), dtype=torch.int64) if captions is None else captions
        self.seen |= set(captions.tolist())
        return x - sigma[:, None] * self.network(x, sigma, captions)

    def without(self, x, sigma):
        return self.with_captions(x, sigma)


def denoiser(captioned: bool):
    """A callable with the attributes of a Denoiser and either number of arguments."""
    model = Model(captioned)
    call = model.call

    class Callable(nn.Module):
        if captioned:

            def forward(self, x, sigma, captions=None):
                return call(x, sigma, captions)
        else:

            def forward(self, x, sigma):
                return call(x, sigma)

    result = Callable()
    result.network, result.sigmas, result.flow = model.network, model.sigmas, True
    return result, model


@pytest.mark.parametrize("captioned", [True, False])
def test_one_call_trains_saves_and_leaves_the_model_as_it_was(captioned, tmp_path: Path):
    model, inner = denoiser(captioned)
    before = {name: value.clone() for name, value in inner.network.state_dict().items()}
    seen = []
    lora = distill.distill(
        model, LATENTS, phases=2, steps=30, rank=4, lr=1e-2, batch=16, targets=["blocks", "leave"],
        after_step=lambda report: seen.append(report.step),
    )  # fmt: skip
    assert seen == list(range(1, 31))
    assert sum(lora.losses[-8:]) < 0.8 * sum(lora.losses[:8])
    assert all(torch.equal(value, before[name]) for name, value in inner.network.state_dict().items())
    assert all(parameter.requires_grad for parameter in inner.network.parameters())
    assert not any(module._forward_hooks for module in inner.network.modules())
    lora.save(tmp_path / "mine.safetensors", torch.float16)
    stored = load_file(tmp_path / "mine.safetensors")
    assert stored.keys() == lora.tensors.keys()
    assert {value.dtype for value in stored.values() if value.ndim} == {torch.float16}
    with safe_open(tmp_path / "mine.safetensors", "pt") as file:
        profile = profile_from_metadata(file.metadata())
    assert profile is not None and (profile.phases, profile.steps, profile.cfg) == (2, 2, 1.0)


def test_guidance_uses_the_captions_and_the_null_caption():
    model, inner = denoiser(True)
    distill.distill(model, [LATENTS[:16], LATENTS[16:]], phases=2, steps=4, rank=2, cfg=3.0, captions=[1] * 32)
    assert inner.seen == {1, -1}


def test_guidance_without_captions_is_refused():
    with pytest.raises(PCMError, match=r"cfg is 3, but the model takes no captions\."):
        distill.distill(denoiser(False)[0], LATENTS, cfg=3.0)


def test_a_model_without_its_table_is_refused():
    model, _ = denoiser(True)
    del model.sigmas
    with pytest.raises(PCMError, match=r"The model has no sigmas\."):
        distill.distill(model, LATENTS)


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path):
    model, _ = denoiser(True)
    lora = distill.distill(model, LATENTS, phases=2, steps=1, rank=2)
    with pytest.raises(PCMError, match="cannot be written"):
        lora.save(tmp_path / "missing" / "mine.safetensors")
