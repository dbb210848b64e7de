"""Read a LoRA in any of its spellings and hand the host a complete, correctly scaled one, or say why not.

    >>> tensors, metadata = read_lora("pcm_sdxl_smallcfg_4step_converted.safetensors")
    >>> loadable, report = normalize(tensors, key_map, shapes, metadata=metadata)

``python -m pcm_core.lora FILE`` prints the report; ``--convert OUT`` writes a file that other tools load.
"""

from ..safetensors_file import read_tensors
from .command import main as main
from .convert import convert as convert
from .normalize import normalize as normalize
from .normalize import with_profile as with_profile
from .report import LoraReport as LoraReport

read_lora = read_tensors
normalise = normalize  # the name in 0.1.0
