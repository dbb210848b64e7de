"""What a distillation step costs, against a plain three-model loop as the authors wrote theirs.

The plain loop holds student, teacher and target as three networks, runs the teacher's two texts one after the other,
and with the adversarial loss alternates: one iteration for the discriminator, one for the generator, each with a full
student pass. Both loops draw the same batches from the same seed, so without the adversarial loss their loss curves
must be the same. The network is the demo world's SD3 transformer with random weights.

    python -m benchmarks.distill_cost [--steps 12] [--rounds 3] [--batch 4]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from demo.distill import TABLE
from demo.mmdit import MMDiT
from demo.world import all_prompts, embed
from pcm_core import distill
from pcm_core.distill import objective

MODULES = ["attn", "mlp"]
RANK = 16


class Network:
    """A transformer with its adapters as a denoiser under numbered texts, counting its calls and samples."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.context, self.pooled = embed([*all_prompts(), None])
        self.adapters = distill.Adapters(
            distill.adaptable(model, MODULES), RANK, generator=torch.Generator().manual_seed(1)
        )
        self.calls = self.samples = 0

    def __call__(self, x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        self.calls, self.samples = self.calls + 1, self.samples + len(x)
        velocity = self.model(x, 1000 * sigma, self.context[captions], self.pooled[captions])
        return x - sigma[:, None, None, None] * velocity


def random_model() -> MMDiT:
    torch.manual_seed(0)
    model = MMDiT().eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model


def data() -> distill.LatentSet:
    generator = torch.Generator().manual_seed(2)
    return distill.LatentSet([torch.randn(64, 16, 8, 8, generator=generator)], [i % 20 for i in range(64)])


def adversary(network: Network) -> distill.Adversary:
    found = list(distill.blocks(network.model))
    features = distill.BlockFeatures(network, found)
    with torch.no_grad():
        rows = torch.zeros(1, dtype=torch.int64)
        widths = [part.shape[-1] for part in features(torch.zeros(1, 16, 8, 8), torch.ones(1), rows)]
    return distill.Adversary(features, distill.Heads(widths, 32, torch.Generator().manual_seed(3)))


class Ours:
    """The trainer: one network."""

    def __init__(self, config: distill.DistillConfig) -> None:
        self.networks = [Network(random_model())]
        network = self.networks[0]
        critic = adversary(network) if config.adversarial else None
        self.trainer = distill.Trainer(
            network, network.adapters, data(), TABLE, config, flow=True, adversary=critic
        )  # fmt: skip
        network.calls = network.samples = 0

    def update(self) -> float:
        """One update of the generator, and of the discriminator where there is one."""
        return self.trainer.step().loss


class Plain:
    """Three networks; the same draws, losses and optimiser, in the order of the authors' scripts."""

    def __init__(self, config: distill.DistillConfig) -> None:
        self.config = config
        base = random_model()
        self.networks = [Network(copy.deepcopy(base)) for _ in range(3)]
        self.student, self.teacher, self.target = self.networks
        # Draws and optimisers only; its networks are those above.
        critic = adversary(self.teacher) if config.adversarial else None
        self.trainer = distill.Trainer(
            self.student, self.student.adapters, data(), TABLE, config, flow=True, adversary=critic
        )  # fmt: skip
        for network in self.networks:
            network.calls = network.samples = 0

    def update(self) -> float:
        if self.config.adversarial:
            self.trainer.optimiser.zero_grad()
            self._discriminator(self._pair())
        batch, pair = self._pair()
        loss = total = distill.pseudo_huber(pair.error, self.config.huber_c)
        if self.config.adversarial:
            total = total + self.config.adversarial * distill.hinge_generator(self._scores(batch, pair.prediction, 1))
        self.trainer.optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.student.adapters.parameters(), self.config.clip)
        for group in self.trainer.optimiser.param_groups:
            group["lr"] = self.config.learning_rate(self.trainer.step_number)
        self.trainer.optimiser.step()
        self.trainer.step_number += 1
        self.target.adapters.load(self.student.adapters.state())
        return float(loss.detach())

    def _pair(self) -> tuple[object, objective.PhasedPair]:
        batch = self.trainer._draw()
        null = torch.full_like(batch.captions, -1)

        def student(x: Tensor, sigma: Tensor) -> Tensor:
            with self.student.adapters.use("student"):
                return self.student(x, sigma, batch.captions)

        def teacher(x: Tensor, sigma: Tensor) -> Tensor:
            conditional = self.teacher(x, sigma, batch.captions)
            return distill.guided(conditional, self.teacher(x, sigma, null), batch.cfg.to(x))

        def target(x: Tensor, sigma: Tensor) -> Tensor:
            with self.target.adapters.use("student"):
                return self.target(x, sigma, batch.captions)

        grid = self.trainer.grid
        return batch, distill.phased_pair(
            student, teacher, target, batch.clean, batch.noise, batch.index, grid, flow=True
        )

    def _scores(self, batch: object, x: Tensor, which: int) -> list[Tensor]:
        assert self.trainer.adversary is not None
        edge = self.trainer.grid.edge[batch.index]
        noised = distill.renoise(x, edge, batch.level, batch.renoise[which], flow=True)
        return self.trainer.adversary.heads(self.trainer.adversary.features(noised, batch.level, batch.captions))

    def _discriminator(self, drawn: tuple[object, objective.PhasedPair]) -> None:
        batch, pair = drawn
        assert self.trainer.critic is not None
        real, fake = self._scores(batch, pair.landing, 0), self._scores(batch, pair.prediction.detach(), 1)
        self.trainer.critic.zero_grad()
        distill.hinge_discriminator(real, fake).backward()
        self.trainer.critic.step()


def parameter_bytes(networks: Iterable[Network]) -> int:
    """Weights of the networks and their adapters; gradients and optimiser are the same for both loops."""
    return sum(
        tensor.numel() * tensor.element_size()
        for network in networks
        for tensor in (*network.model.parameters(), *network.adapters.parameters())
    )


def compare(config: distill.DistillConfig, steps: int, rounds: int, attached: ExitStack) -> None:
    ours, plain = Ours(config), Plain(config)
    curves: dict[str, list[float]] = {"ours": [], "plain": []}
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    for network in (*ours.networks, *plain.networks):
        attached.enter_context(network.adapters.attached())
    for _ in range(rounds):  # in turn, so that both see the same load
        for name, loop in (("ours", ours), ("plain", plain)):
            started = time.process_time()
            curves[name] += [loop.update() for _ in range(steps)]
            rates[name].append(steps / (time.process_time() - started))
    count = steps * rounds
    print(f"\nadversarial {config.adversarial:g}, batch {config.batch}, {count} updates")
    print(f"{'':8}{'weights MB':>11}{'calls':>8}{'samples':>9}{'updates per CPU s':>19}")
    for name, loop in (("ours", ours), ("plain", plain)):
        calls, samples = sum(n.calls for n in loop.networks) / count, sum(n.samples for n in loop.networks) / count
        rate, size = statistics.median(rates[name]), parameter_bytes(loop.networks) / 1e6
        print(f"{name:8}{size:11.2f}{calls:8.1f}{samples:9.1f}{rate:19.2f}")
    memory = parameter_bytes(ours.networks) / parameter_bytes(plain.networks)
    speed = statistics.median(a / b for a, b in zip(rates["ours"], rates["plain"], strict=True))
    print(f"weights {memory:.0%} of the plain loop's, {speed:.2f} x its updates per second")
    if not config.adversarial:
        worst = max(abs(a - b) / b for a, b in zip(curves["ours"], curves["plain"], strict=True))
        print(f"largest relative difference of the loss curves: {worst:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a distillation step.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for weight in (0.0, 0.1):
        config = distill.DistillConfig(
            phases=4, grid=40, steps=options.steps * options.rounds, batch=options.batch, lr=1e-3, warmup=4,
            cfg=(4.0, 6.0), adversarial=weight,
        )  # fmt: skip
        with ExitStack() as attached:
            compare(config, options.steps, options.rounds, attached)


if __name__ == "__main__":
    main()
