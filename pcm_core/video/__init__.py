"""Few-step video: video models and their presets (``presets.json``), and noise for clips."""

from .models import AUTO as AUTO
from .models import VideoModel as VideoModel
from .models import choose as choose
from .models import expert_edge as expert_edge
from .models import preset_names as preset_names
from .models import video_model_of as video_model_of
from .models import video_models as video_models
from .models import with_sigmas as with_sigmas
