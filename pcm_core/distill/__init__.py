"""Distil a PCM LoRA from any model that can be called.

``objective`` is the loss, ``low_rank`` and ``adapters`` the weights that turn one network into teacher, student and
target, ``adversarial`` the optional discriminator, ``data`` the latents, ``loop`` and ``trainer`` the steps. Read them
in that order.
"""

from .adapters import Adapters
from .adversarial import (
    BlockFeatures,
    Discriminator,
    DiscriminatorHeads,
    hinge_discriminator,
    hinge_generator,
    renoise,
    renoise_std,
)
from .autograd import blocks, differentiable_weights
from .config import ADVERSARIAL_LR, ADVERSARIAL_SPAN, DistillConfig, Diverged, distill_metadata, usual_warmup
from .data import Data, LatentSet
from .file import write_lora
from .loop import Processes, StepReport
from .low_rank import LowRankPair, LowRankSet, adaptable
from .objective import (
    Denoiser,
    PhasedPair,
    Prediction,
    SolverGrid,
    add_noise,
    as_denoiser,
    guided,
    jump_batch,
    matching_grid,
    phased_loss,
    phased_pair,
    pseudo_huber,
)
from .simple import DistilledLora, distill
from .trainer import Trainer

__all__ = [
    "ADVERSARIAL_LR",
    "ADVERSARIAL_SPAN",
    "Adapters",
    "BlockFeatures",
    "Data",
    "Denoiser",
    "Discriminator",
    "DiscriminatorHeads",
    "DistillConfig",
    "DistilledLora",
    "Diverged",
    "LatentSet",
    "LowRankPair",
    "LowRankSet",
    "PhasedPair",
    "Prediction",
    "Processes",
    "SolverGrid",
    "StepReport",
    "Trainer",
    "adaptable",
    "add_noise",
    "as_denoiser",
    "blocks",
    "differentiable_weights",
    "distill",
    "distill_metadata",
    "guided",
    "hinge_discriminator",
    "hinge_generator",
    "jump_batch",
    "matching_grid",
    "phased_loss",
    "phased_pair",
    "pseudo_huber",
    "renoise",
    "renoise_std",
    "usual_warmup",
    "write_lora",
]
