"""Terms that were tried beside the losses of a matching stage, for ``benchmarks.experiments_matching --term``.

``consistency``: the phased consistency loss on the states of the bank. ``critic``: a discriminator of frozen
features of every block, between the student's ends and the bank's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from demo.distill import TABLE
from pcm_core import distill
from pcm_core.distill.adversarial import hinge_discriminator, renoise
from pcm_core.distill.matching_draws import MatchingBatch
from pcm_core.distill.objective import SolverGrid, guided, jump_batch, phased_loss

Term = Callable[[MatchingBatch, Tensor], Tensor]


class Consistency:
    """The phased consistency loss on the way down from the bank's states: a random phase, one guided jump to a random
    point of it, then the loss.
    """

    def __init__(self, trainer: distill.MatchingTrainer) -> None:
        config = trainer.config
        self.trainer, self.generator = trainer, torch.Generator().manual_seed(config.seed + 2)
        self.grid = SolverGrid.from_table(TABLE, config.phases, config.grid, config.terminal)

    def __call__(self, batch: MatchingBatch, landing: Tensor) -> Tensor:
        trainer, count = self.trainer, len(batch.rows)
        phase = int(torch.randint(trainer.config.phases, (), generator=self.generator))
        (points,) = torch.where(self.grid.edge == self.grid.edge.unique()[-1 - phase])
        index = points[torch.randint(len(points), (count,), generator=self.generator)]

        def teacher(x: Tensor, sigma: Tensor) -> Tensor:
            captions = torch.cat([batch.captions, torch.full_like(batch.captions, -1)])
            both = _network(trainer, "off", captions)(torch.cat([x, x]), torch.cat([sigma, sigma]))
            with_text, without = both.chunk(2)
            return guided(with_text, without, torch.full((count,), trainer.config.teacher_cfg))

        state, edge = trainer.bank.states[phase][batch.rows], torch.full((count,), trainer.edges[phase])
        with torch.no_grad():
            x = jump_batch(state, teacher(state, edge), edge, self.grid.sigma[index])
        student, average = (_network(trainer, mode, batch.captions) for mode in ("student", "ema"))
        # Between a state and itself lies the state: x is noised already.
        return phased_loss(student, teacher, average, x, x, index, self.grid, flow=True)


class Critic:
    """A hinge loss against the bank's ends, both renoised in the lowest quarter of the last phase."""

    def __init__(self, trainer: distill.MatchingTrainer, teacher: nn.Module, rate: float = 1e-3) -> None:
        self.trainer, self.top = trainer, trainer.edges[-2] / 4
        self.generator = torch.Generator().manual_seed(trainer.config.seed + 3)

        def backbone(x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
            return _network(trainer, "off", captions)(x, sigma)

        self.features = distill.BlockFeatures(backbone, list(distill.blocks(teacher)))
        bank = trainer.bank
        with torch.no_grad():
            seen = self.features(bank.ends[:1], torch.ones(1), bank.captions[:1])
        self.heads = distill.DiscriminatorHeads([part.shape[-1] for part in seen], 64, self.generator)
        self.optimizer = torch.optim.AdamW(self.heads.parameters(), rate, betas=(0.0, 0.99), weight_decay=0.0)

    def __call__(self, batch: MatchingBatch, landing: Tensor) -> Tensor:
        level = self.top * torch.rand(len(landing), generator=self.generator)

        def seen(x: Tensor) -> Sequence[Tensor]:
            noise = torch.randn(x.shape, generator=self.generator)
            return self.features(renoise(x, torch.zeros_like(level), level, noise, flow=True), level, batch.captions)

        student = seen(landing)
        with torch.no_grad():
            real = seen(self.trainer.bank.ends[batch.rows])
        self.optimizer.zero_grad()
        hinge_discriminator(self.heads(real), self.heads([part.detach() for part in student])).backward()
        self.optimizer.step()
        return -torch.stack([score.mean() for score in self.heads(student, frozen=True)]).mean()


def _network(trainer: distill.MatchingTrainer, mode: str, captions: Tensor) -> distill.Denoiser:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        with trainer.adapters.use(mode):
            return trainer.backbone(x, sigma, captions)

    return denoise


TERMS: dict[str, Callable[[distill.MatchingTrainer, nn.Module], Term]] = {
    "consistency": lambda trainer, teacher: Consistency(trainer),
    "critic": Critic,
}


def with_terms(weights: dict[str, float], teacher: nn.Module) -> type[distill.MatchingTrainer]:
    """A trainer whose loss has these terms of ``TERMS`` too."""

    class WithTerms(distill.MatchingTrainer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            if not self.config.regression:
                raise SystemExit("--term needs regression above 0: the terms are counted with it.")
            self.terms = [(weight, TERMS[name](self, teacher)) for name, weight in weights.items()]

        def _regression(self, batch: MatchingBatch, landing: Tensor) -> Tensor:
            total = super()._regression(batch, landing)
            return total + sum(weight * term(batch, landing) for weight, term in self.terms) / self.config.regression

    return WithTerms
