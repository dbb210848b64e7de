"""The settings with which a tiny model learns in seconds."""

from __future__ import annotations

# Few solver points: then the teacher's guided step is a large part of what random networks have to learn.
RANKS = {
    "rank": 4, "steps": 30, "batch_size": 4, "phases": 2, "learning_rate": 3e-3, "cfg_min": 5.0, "cfg_max": 5.0,
    "solver_grid": 4, "preview_every": 0,
}  # fmt: skip
