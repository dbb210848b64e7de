"""Distil a PCM LoRA from any model that can be called.

``objective`` is the loss, ``low_rank`` and ``adapters`` the weights that turn one network into teacher, student and
target, ``adversarial`` the optional discriminator, ``data`` the latents, ``loop`` and ``trainer`` the steps of the
consistency stage. ``matching``, ``bank``, ``diagnosis`` and ``matching_trainer`` are the stage after it. Read them in
that order.
"""

from ..callable_module import make_callable
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
from .bank import Bank, BankPlan, BankStore, fingerprint, with_student
from .config import ADVERSARIAL_LR, ADVERSARIAL_SPAN, DistillConfig, Diverged, distill_metadata, usual_warmup
from .data import Data, LatentSet
from .diagnosis import Collapsed, Diagnosis
from .file import write_lora
from .loop import Backbone, Processes, StepReport, TrainingLoop
from .low_rank import LowRankPair, LowRankSet, adaptable
from .matching import (
    fake_loss,
    matching_gradient,
    matching_loss,
    renoised_path,
    stratified_levels,
    subinterval_target,
    unroll,
)
from .matching_config import MatchingConfig, matching_after, matching_metadata
from .matching_trainer import MatchingReport, MatchingTrainer
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
    "Backbone",
    "Bank",
    "BankPlan",
    "BankStore",
    "BlockFeatures",
    "Collapsed",
    "Data",
    "Denoiser",
    "Diagnosis",
    "Discriminator",
    "DiscriminatorHeads",
    "DistillConfig",
    "DistilledLora",
    "Diverged",
    "LatentSet",
    "LowRankPair",
    "LowRankSet",
    "MatchingConfig",
    "MatchingReport",
    "MatchingTrainer",
    "PhasedPair",
    "Prediction",
    "Processes",
    "SolverGrid",
    "StepReport",
    "Trainer",
    "TrainingLoop",
    "adaptable",
    "add_noise",
    "as_denoiser",
    "blocks",
    "differentiable_weights",
    "distill",
    "distill_metadata",
    "fake_loss",
    "fingerprint",
    "guided",
    "hinge_discriminator",
    "hinge_generator",
    "jump_batch",
    "matching_after",
    "matching_gradient",
    "matching_grid",
    "matching_loss",
    "matching_metadata",
    "phased_loss",
    "phased_pair",
    "pseudo_huber",
    "renoise",
    "renoise_std",
    "renoised_path",
    "stratified_levels",
    "subinterval_target",
    "unroll",
    "usual_warmup",
    "with_student",
    "write_lora",
]

make_callable(__name__, distill)
