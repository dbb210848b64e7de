"""Read a LoRA in any key format into complete, correctly scaled updates, or say why that is not possible.

    >>> tensors, metadata = read_lora("pcm_sdxl_smallcfg_4step_converted.safetensors")
    >>> updates, report = fit(tensors, ModelWeights(names=names, shapes=shapes), metadata=metadata)

``python -m pcm_core.lora FILE`` prints the report; ``--convert OUT`` writes a file that other tools load.
"""

from .command import main as main
from .convert import convert as convert
from .convert import portable as portable
from .joining import join as join
from .keys import has_model_updates as has_model_updates
from .normalize import ModelWeights as ModelWeights
from .normalize import fit as fit
from .normalize import normalize as normalize
from .read import read_lora as read_lora
from .report import LoraReport as LoraReport
from .tensors import Update as Update

normalise = normalize  # the name in 0.1.0
