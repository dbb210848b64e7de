"""Distil a PCM LoRA from any model that can be called.

``objective`` is the loss, ``adapters`` the low-rank weights that turn one network into teacher, student and target,
``adversarial`` the optional discriminator, ``data`` the latents, ``trainer`` the loop. Read them in that order.
"""

from .adapters import Adapters, adaptable, blocks, differentiable_weights
from .adversarial import Adversary, BlockFeatures, Heads, hinge_discriminator, hinge_generator, renoise, renoise_std
from .config import ADVERSARIAL_LR, ADVERSARIAL_SPAN, DistillConfig, Diverged, distill_metadata, usual_warmup
from .data import Data, LatentSet
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
from .trainer import Processes, StepReport, Trainer

__all__ = [
    "ADVERSARIAL_LR",
    "ADVERSARIAL_SPAN",
    "Adapters",
    "Adversary",
    "BlockFeatures",
    "Data",
    "Denoiser",
    "DistillConfig",
    "Diverged",
    "Heads",
    "LatentSet",
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
]
