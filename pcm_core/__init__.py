"""Phased Consistency Models in plain torch: schedules, the sampler, LoRA profiles and distillation.

    >>> import pcm_core as pcm
    >>> profile = pcm.profile_for("pcm_sd15_smallcfg_4step_converted.safetensors")
    >>> model = pcm.Denoiser.from_diffusers(pipe.unet, pipe.scheduler, prompt_embeds, negative_prompt_embeds)
    >>> plan = pcm.plan(profile, model.sigmas)
    >>> latent = pcm.sample(model, plan, noise, seed=0)

    >>> lora = pcm.distill(model, latents, phases=4, steps=200, rank=16)
    >>> lora.save("my.safetensors")

``phases`` says where to jump and ``sampling`` jumps: read these two first, then ``distill`` for how a model learns it.
``profiles`` and ``lora`` know what a LoRA file holds and wants. ``diffusers_scheduler`` serves diffusers pipelines.
"""

from typing import TYPE_CHECKING, Any

from .denoiser import Denoiser as Denoiser
from .errors import PCMError as PCMError
from .plan import Plan as Plan
from .plan import sample as sample
from .profiles import PCMProfile as PCMProfile
from .profiles import profile_for as profile_for
from .sampling import sample_pcm as sample_pcm
from .sigma_table import SigmaTable as SigmaTable

# ``plan`` and ``distill`` are modules that can be called as their function of the same name.
if TYPE_CHECKING:
    from . import diffusers_scheduler as diffusers_scheduler
    from . import distill as distill
    from . import lora as lora
    from . import metrics as metrics
    from . import video as video
    from .plan import plan as plan


def __getattr__(name: str) -> Any:
    """Import the larger rooms when somebody enters: any name of theirs binds the room itself here."""
    if name == "diffusers_scheduler":
        from .diffusers_scheduler import PCMScheduler as PCMScheduler
    elif name == "distill":
        from .distill import Trainer as Trainer
    elif name == "lora":
        from .lora import LoraReport as LoraReport
    elif name == "metrics":
        from .metrics import psnr as psnr
    elif name == "video":
        from .video import preset_names as preset_names
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]
