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

    def train(
        self, start: dict[str, Tensor], config: distill.MatchingConfig, *, pairs: int, folder: Path | None = None,
        only_bank: bool = False, on_step: Callable[[distill.StepReport], None] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """One matching stage from the LoRA ``start``. Returns the averaged LoRA.

        ``pairs`` is the size of the bank, kept in ``folder`` if there is one; with ``only_bank`` nothing is trained.
        """
        rank = next(len(value) for name, value in start.items() if name.endswith("lora_down.weight"))
        matrices = {n: module for n, module in distill.adaptable(self.teacher).items() if isinstance(module, nn.Linear)}
        adapters = distill.Adapters(matrices, rank, generator=torch.Generator().manual_seed(config.seed))
        adapters.load_lora({name: value.float() for name, value in start.items()})
        plan = distill.BankPlan.of(
            TABLE, config.phases, GRID, config.terminal, whole=config.walk == "path", shape=self.shape,
            texts=len(self.texts[0]) - 1, pairs=pairs, chunk=64, cfg=config.teacher_cfg, flow=True, held_texts=16,
        )  # fmt: skip
        print(plan.announcement(), flush=True)
        with adapters.attached():
            store = distill.BankStore(folder, plan, distill.fingerprint(adapters))
            bank = store.make(lambda captions: self._models(adapters, captions, config.teacher_cfg), "cpu")
            if not only_bank:
                distill.MatchingTrainer(self.backbone, adapters, bank, plan, TABLE, config, flow=True).run(on_step)
        return adapters.lora(ema=True)

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
