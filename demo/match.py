"""The matching stage on the demo world's LoRAs, with the library's own trainer. It needs no pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pcm_core import distill

from .distill import GRID, TABLE, Denoiser
from .teacher import load_teacher
from .train_vae import WEIGHTS
from .train_video import load_video_teacher
from .video_world import FRAMES, all_video_prompts, embed_video
from .world import all_prompts, embed


@dataclass(frozen=True)
class Matched:
    """A world's teacher and what its bank is made of.

    Attributes:
        texts: the embedding of every prompt and, last, of none; each [P + 1, ...].
        shape: of one latent.
    """

    teacher: nn.Module
    texts: tuple[Tensor, ...]
    shape: tuple[int, ...]

    @classmethod
    def pictures(cls, folder: Path = WEIGHTS) -> Matched:
        return cls(load_teacher(folder), tuple(embed([*all_prompts(), None])), (16, 8, 8))

    @classmethod
    def clips(cls, folder: Path = WEIGHTS) -> Matched:
        shape = (16, 1 + FRAMES // 4, 6, 6)
        return cls(load_video_teacher(folder), (embed_video([*all_video_prompts(), None]),), shape)

    def backbone(self, x: Tensor, sigma: Tensor, captions: Tensor) -> Tensor:
        return Denoiser(self.teacher, tuple(text[captions] for text in self.texts))(x, sigma)

    def walks(self, pairs: int, cfg: float, folder: Path | None = None) -> distill.Bank:
        """The guided teacher's walks from pure noise; one bank serves LoRAs of every number of phases.

        Kept in ``folder`` if there is one.
        """
        plan = self._plan(1, pairs, cfg)
        print(plan.announcement(), flush=True)
        # Of a LoRA that no walk uses.
        adapters = distill.Adapters(self._matrices(), 1, generator=torch.Generator().manual_seed(0))
        store = distill.BankStore(folder, plan, distill.fingerprint(adapters))
        return store.make(lambda captions: self._models(adapters, captions, cfg), "cpu")

    def train(
        self, start: dict[str, Tensor], config: distill.MatchingConfig, pairs: int, walks: distill.Bank | None = None,
        rank: int | None = None, on_step: Callable[[distill.StepReport], None] | None = None,
        kind: type[distill.MatchingTrainer] = distill.MatchingTrainer,
    ) -> dict[str, Tensor]:  # fmt: skip
        """One matching stage from the LoRA ``start``. Returns the averaged LoRA.

        Its bank has ``pairs``, the first of ``walks`` where they are given.
        ``rank`` is at least that of ``start``, the default.
        """
        rank = rank or max(len(value) for name, value in start.items() if name.endswith("lora_down.weight"))
        adapters = distill.Adapters(self._matrices(), rank, generator=torch.Generator().manual_seed(config.seed))
        adapters.load_lora(widened({name: value.float() for name, value in start.items()}, adapters.lora()))
        plan = self._plan(config.phases, pairs, config.teacher_cfg, whole=config.walk == "path")

        def models(captions: Tensor) -> tuple[distill.Denoiser, distill.Denoiser]:
            return self._models(adapters, captions, config.teacher_cfg)

        with adapters.attached():
            if walks is not None:
                bank = distill.with_student(walks.rows(0, plan.held + pairs), plan, models, "cpu")
            else:
                bank = distill.BankStore(None, plan, distill.fingerprint(adapters)).make(models, "cpu")
            kind(self.backbone, adapters, bank, plan, TABLE, config, flow=True).run(on_step)
        return adapters.lora(ema=True)

    def _matrices(self) -> dict[str, nn.Module]:
        return {n: module for n, module in distill.adaptable(self.teacher).items() if isinstance(module, nn.Linear)}

    def _plan(self, phases: int, pairs: int, cfg: float, whole: bool = True) -> distill.BankPlan:
        return distill.BankPlan.of(
            TABLE, phases, GRID, "zero", whole=whole, shape=self.shape, texts=len(self.texts[0]) - 1, pairs=pairs,
            chunk=64, cfg=cfg, flow=True, held_texts=16,
        )  # fmt: skip

    def _models(
        self, adapters: distill.Adapters, captions: Tensor, cfg: float
    ) -> tuple[distill.Denoiser, distill.Denoiser]:
        def student(x: Tensor, sigma: Tensor) -> Tensor:
            with adapters.use("student"):
                return self.backbone(x, sigma, captions)

        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            both = torch.cat([captions, torch.full_like(captions, -1)])
            with adapters.use("off"):
                with_text, without = self.backbone(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
            return distill.guided(with_text, without, torch.full((len(x),), cfg))

        return student, guided


def widened(start: dict[str, Tensor], fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """``start`` with the rank of ``fresh``, whose ``up`` is zero, so that both change the model alike."""
    wide = {name: value.clone() for name, value in fresh.items()}
    for name, value in start.items():
        if name.endswith("lora_down.weight"):
            stem, rank = name.removesuffix("lora_down.weight"), len(value)
            scale = start[f"{stem}alpha"] / rank * len(wide[name]) / fresh[f"{stem}alpha"]
            wide[name][:rank] = value
            wide[f"{stem}lora_up.weight"][:, :rank] = start[f"{stem}lora_up.weight"] * scale
    return wide
