"""The cost of a matching update, compared with plain DMD2 loops that hold three networks.

DMD2 (arXiv 2405.14867) keeps generator, fake and real score as three networks, evaluates the real score's two texts
one after the other, and updates the fake five times per update of the generator, each time on new landings; the trainer
updates its fake on the landings it has. With one phase, no regression and one fake update the maths is the same, and so
are the losses. "with LoRAs" puts LoRA layers as in peft on generator and fake; "whole" trains all their weights, as the
authors do, so its curves are others. All draw the same batches from the same seed, on the demo world's SD3 transformer
with random weights. Times are CPU times of single updates, taken in turn so that all loops see the same load.

    python -m benchmarks.matching_cost [--updates 40] [--batch 8]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import markdown
from benchmarks.distill_cost import Kind, Network, megabytes, new_adapters, transformer, with_lora
from pcm_core import distill


class Ours:
    """The library's trainer: one network."""

    def __init__(self, kind: Kind, config: distill.MatchingConfig, attached: ExitStack) -> None:
        network = Network(kind)
        self.networks = [network]
        self.trainer = trainer_of(kind, network, new_adapters(kind, network.model), config)
        attached.enter_context(self.trainer.adapters.attached())

    def update(self) -> tuple[float, float]:
        """Losses of student and fake."""
        report = self.trainer.step()
        return report.generator_loss, report.discriminator_loss

    def parameters(self) -> list[Tensor]:
        """The weights of all networks."""
        return [*self.networks[0].model.parameters(), *self.trainer.adapters.parameters()]

    def copies(self) -> list[Tensor]:
        """What a diverged run falls back on; on the CPU, whatever the device."""
        return self.trainer._good

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.trainer.optimizer, self.trainer.fake_optimizer]


class Plain:
    """Three networks with the same draws and learning rates, in the order of the authors' script."""

    def __init__(self, kind: Kind, config: distill.MatchingConfig, *, whole: bool = False) -> None:
        self.config = config
        self.networks = [Network(kind) for _ in range(3)]
        self.student, self.fake, self.teacher = self.networks
        adapters = new_adapters(kind, self.teacher.model)
        # Used for its draws and the initial weights of its sets only; its adapters are not attached.
        self.trainer = trainer_of(kind, self.teacher, copy.deepcopy(adapters), config)
        self.trained: list[list[nn.Parameter]] = []
        for network, name in ((self.student, "student"), (self.fake, "fake")):
            if whole:
                network.model.requires_grad_(True)
                self.trained.append(list(network.model.parameters()))
            else:
                self.trained.append(with_lora(network.model, self.trainer.adapters[name]))
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(trained, lr=rate, betas=(0.0, 0.99), weight_decay=0, fused=True)
            for trained, rate in zip(self.trained, (config.lr, config.fake_lr), strict=True)
        ]

    def update(self) -> tuple[float, float]:
        fakes = [self._turn_of_the_fake() for _ in range(self.config.fake_updates - 1)]
        batch = self.trainer.draws.batch()
        image, noised = self._image(batch)
        text, level = batch.captions, batch.level
        with torch.no_grad():
            fake = self.fake(noised, level, text)
            conditional = self.teacher(noised, level, text)
            unconditional = self.teacher(noised, level, torch.full_like(text, -1))
            real = unconditional + self.config.cfg * (conditional - unconditional)
            gradient = ((image - real) - (image - fake)) / (image - real).abs().mean((1, 2, 3), keepdim=True)
        loss = 0.5 * nn.functional.mse_loss(image, (image - gradient).detach())
        for group in self._optimizers[0].param_groups:
            group["lr"] = self.config.learning_rate(self.trainer.step_number)
        self._step(0, loss)
        fakes.append(self._fake_step(batch, image.detach(), noised.detach()))
        self.trainer.step_number += 1
        return float(loss.detach()), sum(fakes) / len(fakes)

    def _image(self, batch: Any) -> tuple[Tensor, Tensor]:
        noise = self.trainer.bank.states[0][batch.rows]
        image, level = self.student(noise, torch.ones(len(noise)), batch.captions), batch.level[:, None, None, None]
        return image, (1 - level) * image + level * batch.noise

    def _turn_of_the_fake(self) -> float:
        batch = self.trainer.draws.batch()
        with torch.no_grad():
            image, noised = self._image(batch)
        return self._fake_step(batch, image, noised)

    def _fake_step(self, batch: Any, image: Tensor, noised: Tensor) -> float:
        velocity = (noised - self.fake(noised, batch.level, batch.captions)) / batch.level[:, None, None, None]
        loss = nn.functional.mse_loss(velocity, batch.noise - image)
        self._step(1, loss)
        return float(loss.detach())

    def _step(self, which: int, loss: Tensor) -> None:
        self._optimizers[which].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained[which], self.config.max_grad_norm)
        self._optimizers[which].step()

    def parameters(self) -> list[Tensor]:
        return [parameter for network in self.networks for parameter in network.model.parameters()]

    def copies(self) -> list[Tensor]:
        return []

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return self._optimizers


def trainer_of(
    kind: Kind, network: Network, adapters: distill.Adapters, config: distill.MatchingConfig
) -> distill.MatchingTrainer:
    """A trainer with a bank of noise only: without regression nothing else of it is used."""
    plan = distill.BankPlan.of(
        kind.table, 1, config.grid, "zero", shape=kind.shape, texts=20, pairs=64, chunk=32, cfg=config.cfg, flow=True
    )  # fmt: skip
    parts = [plan.draw(number, size) for number, size in enumerate(plan.chunks())]
    noise, captions = (torch.cat(part) for part in zip(*parts, strict=True))
    bank = distill.Bank((noise,), torch.zeros_like(noise), captions)
    return distill.MatchingTrainer(network, adapters, bank, plan, kind.table, config, flow=True)


def config_of(updates: int, batch: int, fakes: int) -> distill.MatchingConfig:
    return distill.MatchingConfig(
        phases=1, grid=40, steps=updates, batch=batch, fake_warmup=0, fake_updates=fakes, regression=0.0, ema=0.0,
        collapse=0.0, lr=1e-3, fake_lr=1e-3,
    )  # fmt: skip


def compare(updates: int, batch: int, fakes: int) -> None:
    kind, config = transformer(), config_of(updates, batch, fakes)
    with ExitStack() as attached:
        ours, lora, whole = Ours(kind, config, attached), Plain(kind, config), Plain(kind, config, whole=True)
        loops: dict[str, Any] = {"trainer": ours, "plain, with LoRAs": lora, "plain, whole": whole}
        curves: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        ours.trainer.first_spread = 1.0  # the diagnosis that a run begins with is no part of an update
        for step in range(updates):
            for name, loop in loops.items() if step % 2 else reversed(loops.items()):
                started = time.process_time()
                curves[name].append(loop.update())
                seconds[name].append(time.process_time() - started)
    weights = {name: megabytes(loop.parameters()) for name, loop in loops.items()}
    states = {name: megabytes(chain(*map(state_of, loop.optimizers()))) for name, loop in loops.items()}
    calls = {name: sum(network.calls for network in loop.networks) / updates for name, loop in loops.items()}
    rows = [
        ["model calls", *(f"{calls[name]:.1f}" for name in loops)],
        ["CPU ms, median", *(f"{1e3 * statistics.median(seconds[name]):.1f}" for name in loops)],
        ["MB of weights", *(f"{weights[name]:.2f}" for name in loops)],
        ["MB of copies to fall back on, on the CPU", *(f"{megabytes(loop.copies()):.2f}" for loop in loops.values())],
        ["MB of optimizers", *(f"{states[name]:.2f}" for name in loops)],
    ]
    print(f"\n**Fake updates per update: {fakes}; batch {batch}, {updates} updates**\n")
    print(markdown(["per update", *loops], rows) + "\n")
    for name in list(loops)[1:]:
        pairs = zip(seconds["trainer"], seconds[name], strict=True)
        speed = statistics.median(theirs / mine for mine, theirs in pairs)
        held = weights["trainer"] + megabytes(ours.copies())
        print(f"{weights['trainer'] / weights[name]:.0%} of the weights of \"{name}\" "
              f"({held / weights[name]:.0%} with the copies); {speed:.2f} x its updates a second.")  # fmt: skip
    if fakes == 1:
        both = zip(chain(*curves["trainer"]), chain(*curves["plain, with LoRAs"]), strict=True)
        worst = max(abs(mine - theirs) / theirs for mine, theirs in both)
        print(f"Largest relative difference of the losses of student and fake with LoRAs: {worst:.1e}.")


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a matching update.")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("Targets: at most 45 % of the plain loop's weights, at least 1.2 x its updates a second.")
    for fakes in (1, 5):
        compare(options.updates, options.batch, fakes)


if __name__ == "__main__":
    main()
