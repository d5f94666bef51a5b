"""Pictures of the gallery: films as strips of frames side by side, one file for both the still and the turntable.

A page shows the first frame of a strip, and moves it by a frame at a time while it is looked at. An animated file could
not be stopped by the page, would not keep step with the video beside it, and would need a still of its own.
"""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from ...rendering.cameras import Cameras, turntable
from ...rendering.render import render_views
from ...settings.experiment import DataConfig

FRAMES, SIZE = 24, 128  # of a turntable, and its pixels along a side
START = 30.0  # degrees of azimuth at which turntables and the viewer begin
WIDEST = 16383  # pixels, WebP's own limit


def turn(view: DataConfig, size: int = SIZE, frames: int = FRAMES) -> Cameras:
    """The cameras of a turntable."""
    return turntable(view, [START + 360 * i / frames for i in range(frames)], size)


def film(volume: Tensor, cameras: Cameras, num_samples: int) -> Tensor:
    """A volume (4, S, S, S) seen from each camera, (v, h, w, 3) uint8."""
    return as_bytes(render_views(volume[None, :4].float(), cameras, num_samples, normals=False)["colour"][0])


def as_bytes(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] as uint8, on the CPU."""
    return (255 * pictures.clamp(0, 1)).round().to(torch.uint8).cpu()


def strip(frames: Tensor, quality: int = 75) -> bytes:
    """Frames (n, h, w, 3) uint8 side by side in one WebP."""
    n, h, w, _ = frames.shape
    if n * w > WIDEST:
        raise ValueError(f"{n} frames of {w} pixels are wider than {WIDEST}")
    file = io.BytesIO()
    flat = frames.permute(1, 0, 2, 3).reshape(h, n * w, 3)
    Image.fromarray(flat.numpy()).save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()


def grid(rows: list[Tensor]) -> Tensor:
    """Rows of pictures (n, h, w, 3) uint8 of one size as one picture, (1, rows * h, n * w, 3)."""
    return torch.cat([torch.cat(list(row), dim=1) for row in rows], dim=0)[None]
