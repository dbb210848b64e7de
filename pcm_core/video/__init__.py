"""Few-step video: families of models and their presets (``presets.json``), and noise for clips."""

from .families import AUTO as AUTO
from .families import VideoFamily as VideoFamily
from .families import choose as choose
from .families import expert_edge as expert_edge
from .families import families as families
from .families import family_of as family_of
from .families import preset_names as preset_names
from .families import with_sigmas as with_sigmas
