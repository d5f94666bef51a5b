"""One training loop, for a laptop, a GPU or many: checkpoints, ranks, divided weights.

It knows tasks (`loop.Task`), not models. `vader.stages` says which runs the two stages are.
"""

from __future__ import annotations

from .distributed import select_device, stream_seed
from .launch import PAUSED, torchrun_command
from .loop import CHECKPOINT_SECONDS, LOG_POINTS, Task, fit, learning_rate_factor

__all__ = [
    "CHECKPOINT_SECONDS", "LOG_POINTS", "PAUSED", "Task", "fit", "learning_rate_factor", "select_device",
    "stream_seed", "torchrun_command",
]  # fmt: skip
