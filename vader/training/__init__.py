"""Training, on a laptop, a GPU or many of them: `autodecoder_run` and `diffusion_run` are how the rest of the package
asks for trained weights. As a command:

    python -m vader.training --profile laptop --data furniture_chairs [--stage all] [--max-seconds 540]
    torchrun --standalone --nproc-per-node=8 -m vader.training --profile gpu --data furniture_chairs --microbatches 8
"""

from __future__ import annotations

from ..distributed import select_device, stream_seed
from .command import main, plan
from .launch import PAUSED, torchrun_command
from .loop import CHECKPOINT_SECONDS, LOG_POINTS, Task, fit, learning_rate_factor
from .stages import articulated_run, autodecoder_run, autodecoder_settings, diffusion_run

__all__ = [
    "CHECKPOINT_SECONDS", "LOG_POINTS", "PAUSED", "Task", "articulated_run", "autodecoder_run", "autodecoder_settings",
    "diffusion_run", "fit", "learning_rate_factor", "main", "plan", "select_device", "stream_seed", "torchrun_command",
]  # fmt: skip
