"""Sampling settings of few-step files: the table ``methods.json``, looked up by name, checksum or metadata."""

from .lookup import method_choices as method_choices
from .lookup import profile_for as profile_for
from .lookup import profile_from_checksum as profile_from_checksum
from .lookup import profile_from_name as profile_from_name
from .lookup import profile_of_method as profile_of_method
from .lookup import source_by_name as source_by_name
from .metadata import profile_from_metadata as profile_from_metadata
from .metadata import profile_to_metadata as profile_to_metadata
from .profile import PCMProfile as PCMProfile
from .profile import SamplingClass as SamplingClass
from .profile import Source as Source
