"""Files of 0.1.0 still work: a run interrupted there ends here with the same bits, and its LoRA is read.

tests/data/0.1.0 was made by commit 92f581a: ``checkpoint.pt`` after 4 of 10 steps, ``end.pt`` and ``lora.safetensors``
after all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_distill_trainer import make, points, same

from pcm_core.distill.checkpoint import migrate
from pcm_core.errors import PCMError
from pcm_core.profiles.metadata import profile_from_metadata
from scripts.distill.files import read_state

STORED = Path(__file__).resolve().parent.parent / "data" / "0.1.0"
SETTINGS = {
    "phases": 2, "steps": 10, "ema": 0.9, "target": "ema", "adversarial": 0.1, "adversarial_span": (0.0, 0.25),
    "cfg": (2.0, 4.0), "caption_dropout": 0.2, "max_grad_norm": 0.5, "batch": 8,
}  # fmt: skip


def finished() -> tuple:
    trainer, network, _ = make(**SETTINGS)
    trainer.load(read_state(STORED / "checkpoint.pt"))
    assert trainer.step_number == 4
    with trainer.adapters.attached():
        trainer.run()
    return trainer, network


def test_a_checkpoint_of_0_1_0_goes_on_to_the_same_bits():
    trainer, network = finished()
    end = torch.load(STORED / "end.pt", weights_only=True)
    average, heads = load_file(STORED / "lora.safetensors"), list(trainer.discriminator.heads.parameters())
    # Another CPU may round a matrix product otherwise; there the numbers must agree closely instead.
    alike = torch.equal(network(*points()), end["probe"])
    tolerance = {"rtol": 0, "atol": 0} if alike else {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(trainer.losses), torch.tensor(end["losses"]), **tolerance)
    for found, expected in ((trainer.adapters.lora(ema=True), average), (trainer.adapters.lora(""), end["student"])):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, **tolerance)
    for weight, value in zip(heads, end["heads"], strict=True):
        torch.testing.assert_close(weight.detach(), value, **tolerance)


def test_a_checkpoint_of_0_1_0_with_other_settings_is_refused():
    state = torch.load(STORED / "checkpoint.pt", weights_only=True)
    trainer, *_ = make(**SETTINGS | {"max_grad_norm": 1.0})
    with pytest.raises(PCMError, match=r"max_grad_norm 0\.5 -> 1\.0"):
        trainer.load(state)


def test_a_checkpoint_of_today_is_not_translated():
    trainer, *_ = make(**SETTINGS)
    state = trainer.state()
    assert migrate(state) is state
    other, *_ = make(**SETTINGS)
    other.load(state)
    assert same(other.adapters.state(), state["adapters"])


def test_a_lora_of_0_1_0_is_gone_on_from():
    trainer, *_ = make()
    trainer.adapters.load_lora(load_file(STORED / "lora.safetensors"))
    assert all(bool(pair.up.any()) for pair in trainer.adapters.pairs.values())
    with safe_open(STORED / "lora.safetensors", "pt") as file:
        profile = profile_from_metadata(file.metadata())
    assert profile is not None and (profile.phases, profile.spacing) == (2, "trailing")
