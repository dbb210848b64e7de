"""Everything the pack asks of ComfyUI: the only folder that imports ``comfy``, ``folder_paths`` or ``latent_preview``.

Supported hosts: 0.16.3 to 0.30.0. When the host changes, this folder changes and no other. What most nodes need is
named here; ``lora``, ``loaders``, ``training`` and ``status`` are imported by those who need them.
"""

from .loaded import LoadedLora as LoadedLora
from .loaded import loras_of as loras_of
from .loaded import with_loras as with_loras
from .model import attach_profile as attach_profile
from .model import base_model_of as base_model_of
from .model import file_name as file_name
from .model import file_of as file_of
from .model import flow_shift as flow_shift
from .model import has_shift as has_shift
from .model import is_flow as is_flow
from .model import latent_ratios as latent_ratios
from .model import model_sampling as model_sampling
from .model import noise_scale as noise_scale
from .model import profile_of as profile_of
from .model import sigma_table as sigma_table
from .model import table_of as table_of
from .model import with_context_windows as with_context_windows
from .model import with_flow_shift as with_flow_shift
from .names import add_sampler as add_sampler
from .names import add_scheduler as add_scheduler
from .sampling import CFGGuider as CFGGuider
from .sampling import Latent as Latent
from .sampling import check_interrupted as check_interrupted
from .sampling import check_names as check_names
from .sampling import fix_latent as fix_latent
from .sampling import ksampler as ksampler
from .sampling import noise_for as noise_for
from .sampling import parts as parts
from .sampling import patcher_of as patcher_of
from .sampling import pixels_of as pixels_of
from .sampling import sample as sample
from .sampling import simple_sigmas as simple_sigmas
from .sampling import steps as steps
from .sampling import stock_sampling as stock_sampling
from .sampling import stock_sigmas as stock_sigmas
