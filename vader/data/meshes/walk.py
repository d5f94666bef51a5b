"""A walk round an object in a room, drawn: photographs whose cameras and masks are known.

The object stands on a floor between walls. Floor and walls carry patterns of blots in many sizes, so that structure
from motion has something to hold on to, as a lived-in room would give it. The camera goes round at a changing height
and distance and looks near the object, as a hand holds it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ...rendering.cameras import Cameras, intrinsics_from_fov, look_at
from ..formats.wavefront import Part
from .render import MeshRenderer

HALF_ROOM, HEIGHT = 5.0, 4.5  # half the length of a wall, and the height of the room, in cube units
DISTANCE, FIELD_OF_VIEW = 3.4, 50.0  # of the camera from the object's middle; degrees
SWAY = 0.08  # of distance and aim, relative to the distance
TEXELS = 512


def blots(seed: int, side: int = TEXELS) -> np.ndarray:
    """A pattern (side, side, 3) uint8: noise of five sizes, cut at levels so that blots have edges, in three hues."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((side, side, 3))
    for size in (1.5, 3, 6, 12, 24):
        noise = gaussian_filter(rng.standard_normal((side, side)), size, mode="wrap")
        level = np.digitize(noise / noise.std(), (-1.0, -0.3, 0.4, 1.1))
        picture += rng.uniform(0.1, 1.0, (5, 3))[level]
    return np.round(255 * picture / picture.max()).astype(np.uint8)


def room(floor: float, seed: int = 0) -> list[Part]:
    """A floor at the height `floor` (y) and four walls, each with a pattern of its own."""
    a, top = HALF_ROOM, floor + HEIGHT
    sides = {
        "floor": [(-a, floor, a), (a, floor, a), (a, floor, -a), (-a, floor, -a)],
        "back": [(-a, floor, -a), (a, floor, -a), (a, top, -a), (-a, top, -a)],
        "front": [(a, floor, a), (-a, floor, a), (-a, top, a), (a, top, a)],
        "left": [(-a, floor, a), (-a, floor, -a), (-a, top, -a), (-a, top, a)],
        "right": [(a, floor, -a), (a, floor, a), (a, top, a), (a, top, -a)],
    }
    uv, faces = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=float), np.array([(0, 1, 2), (0, 2, 3)])
    return [
        Part(name, np.array(corners, dtype=float), faces, np.ones(3), uv, blots(5 * seed + i))
        for i, (name, corners) in enumerate(sides.items())
    ]


def walk(views: int, resolution: int, seed: int = 0) -> Cameras:
    """Cameras of one round, in the order they are taken."""
    rng = np.random.default_rng(seed)
    turn = np.arange(views) * 2 * np.pi / views
    rise = np.deg2rad(24 + 10 * np.sin(2 * turn + 0.5))
    distance = DISTANCE * (1 + SWAY * rng.uniform(-1, 1, views))
    eyes = distance[:, None] * np.stack([np.cos(rise) * np.sin(turn), np.sin(rise), np.cos(rise) * np.cos(turn)], 1)
    aims = SWAY * DISTANCE * rng.uniform(-0.5, 0.5, (views, 3))
    poses = torch.cat(
        [look_at(torch.from_numpy(e)[None], torch.from_numpy(a)) for e, a in zip(eyes, aims, strict=True)]
    )
    k = intrinsics_from_fov(FIELD_OF_VIEW, resolution, resolution).expand(views, 3, 3).contiguous()
    return Cameras(poses.float(), k.float(), resolution, resolution)


def photographs(parts: list[Part], cameras: Cameras, supersampling: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures (v, h, w, 3) of a model (canonical parts) in the room, and its masks (v, h, w), uint8."""
    floor = min(part.vertices[:, 1].min() for part in parts) - 1e-3  # below the feet
    with MeshRenderer(parts) as renderer:
        masks = renderer.render(cameras, supersampling)[1]
    with MeshRenderer([*parts, *room(floor, seed)], reach=4 * HALF_ROOM) as renderer:
        pictures = renderer.render(cameras, supersampling)[0]
    return pictures, masks


def write_photographs(folder: Path, pictures: Tensor, masks: Tensor) -> Path:
    """As the format `photographs` has them: images/000.png and masks/000.png of each view."""
    for name, content in (("images", pictures), ("masks", masks)):
        (folder / name).mkdir(parents=True)
        for number, pixels in enumerate(content.numpy()):
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder
