"""The workflow check: does a workflow sample its few-step files the way their authors intend?

``check(data)`` takes a workflow as JSON (UI or API form) and returns a ``Report``. It reads the graph only: no model is
loaded and ComfyUI is not needed. What only the host's schedulers can say is left to a ``Schedules`` it may be given.
"""

from __future__ import annotations

from .check import Report as Report
from .check import check as check
from .check import sentences as sentences
from .finding import Finding as Finding
from .mend import apply_mends as apply_mends
from .read import read_file as read_file
