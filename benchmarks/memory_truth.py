"""What a run on the CPU really takes: by torch's allocator, and by the process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile


class Allocated:
    """The most bytes that torch's allocator had given out at once, over what it had at the start."""

    peak = 0

    def __enter__(self) -> Allocated:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        changes: list[tuple[int, int]] = []
        stack = list(self._profile.profiler.kineto_results.experimental_event_tree())
        while stack:
            event = stack.pop()
            stack += event.children
            if event.tag.name == "Allocation":
                changes.append((event.start_time_ns, event.extra_fields.alloc_size))
        now = 0
        for _, change in sorted(changes, key=lambda change: change[0]):
            now += change
            self.peak = max(self.peak, now)


def resident() -> int:
    """Bytes of this process that lie in memory; where the system does not say, the most there were."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
