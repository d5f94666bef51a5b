"""People cut out of videos: Robust Video Matting, frame after frame with a memory of those before.

The released TorchScript files are called as `fgr, pha, *memory = model(frame, *memory, downsample_ratio)`: frame
(1, 3, h, w) in [0, 1], four states of the recurrent network that are None at first, alpha `pha` (1, 1, h, w) in [0, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from ...settings.checks import require
from .models import Loaded, open_torchscript

STATES = 4
DOWNSAMPLED = 512  # pixels of the longer side at which the network's coarse part looks, as the authors' script does


def ratio_for(height: int, width: int) -> float:
    """`downsample_ratio` of frames of a size: 0.27 for 1080p, 0.4 for 720p."""
    return min(1.0, DOWNSAMPLED / max(height, width))


@torch.no_grad()
def matte(frames: Iterable[np.ndarray], loaded: Loaded, downsample_ratio: float | None = None) -> Iterator[np.ndarray]:
    """Frames (h, w, 3) uint8 in their order -> alpha (h, w) uint8 of each, in step; one frame is in memory.

    Raises ConfigError for a ratio outside (0, 1].
    """
    ratio, memory = downsample_ratio, [None] * STATES
    require(ratio is None or 0 < ratio <= 1, f"downsample_ratio is {ratio}, expected in (0, 1]")
    for frame in frames:
        ratio = ratio_for(*frame.shape[:2]) if ratio is None else ratio
        pixels = torch.from_numpy(np.array(frame)).to(loaded.device)
        pixels = pixels.movedim(-1, 0)[None].float() / 255
        _, alpha, *memory = loaded.model(pixels, *memory, ratio)
        yield (255 * alpha[0, 0].clamp(0, 1)).round().to(torch.uint8).cpu().numpy()


@functools.lru_cache(maxsize=1)
def matting(given: str | None = None, device: str = "cpu") -> Loaded:
    """given: a TorchScript file (see `models`). Raises WeightsError."""
    return open_torchscript("matting", given, device)


def robust_video_matting(file: Path, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Masks of a video of people, as `formats.videos.Masker`, by the model that `models` finds. Raises WeightsError."""
    return matte(frames, matting(device="cuda" if torch.cuda.is_available() else "cpu"))
