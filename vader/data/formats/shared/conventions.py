"""Whether poses were written in another convention than they are read in, told by the visual hull.

With right cameras the hull of the masks fills every mask. Cameras of another axis convention, or inverted poses, leave
little or nothing of it. So each convention is tried, and the hull says which one the files have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ....rendering.cameras import Cameras
from ...prepared import DataError
from ...sequence import Sequence
from .normalise import hull_iou, normalised
from .scenes import Placing

# Signs of the camera's x, y and z axis against OpenCV's (x right, y down, z forward).
AXES = {"OpenCV": (1, 1, 1), "OpenGL": (1, -1, -1), "PyTorch3D": (-1, -1, 1)}
DIRECTIONS = ("camera-to-world", "world-to-camera")
SIDE, VIEWS = 64, 24  # pixels and number of the views that conventions are tried on, at most
CLEARLY = 0.25  # how much better the hull of another convention has to be
FAIR = 0.6  # and its hull IoU
Convention = tuple[str, str]  # of DIRECTIONS, of AXES


def said(convention: Convention) -> str:
    return f"{convention[0]} in {convention[1]} axes"


def reduced(cameras: Cameras, masks: Tensor, side: int = SIDE, views: int = VIEWS) -> tuple[Cameras, Tensor]:
    """Cameras and masks of at most so many views, spread evenly, and so many pixels."""
    chosen = sorted({i * len(masks) // min(views, len(masks)) for i in range(min(views, len(masks)))})
    cameras, masks = cameras[chosen], masks[chosen]
    h, w = masks.shape[1:]
    if max(h, w) <= side:
        return cameras, masks
    small = (max(1, round(h * side / max(h, w))), max(1, round(w * side / max(h, w))))
    masks = adaptive_avg_pool2d(masks[:, None].float(), small)[:, 0].round().byte()
    scale = torch.tensor([small[1] / w, small[0] / h, 1.0], dtype=cameras.intrinsics.dtype)
    intrinsics = scale[:, None] * cameras.intrinsics
    return Cameras(cameras.world_to_camera, intrinsics, *small), masks


def hull_quality(cameras: Cameras, masks: Tensor) -> float:
    """Hull IoU of cameras in any world, on three views, where the hull itself says where the object is; 0 without."""
    sequence = Sequence("object", torch.zeros(*masks.shape, 3, dtype=torch.uint8), masks, cameras)
    try:
        placed = normalised(sequence, Placing(up="y"), "object")
    except DataError:
        return 0.0
    return hull_iou(placed.cameras, masks, sorted({0, len(masks) // 3, 2 * len(masks) // 3}))


def as_written(cameras: Cameras, read: Convention, written: Convention) -> Cameras:
    """Cameras that were read as `read`, had they been read as `written`."""
    poses = torch.eye(4, dtype=torch.float64).repeat(len(cameras), 1, 1)
    poses[:, :3] = cameras.world_to_camera.double()
    own, other = (torch.diag(torch.tensor([*AXES[c[1]], 1], dtype=torch.float64)) for c in (read, written))
    stored = own @ poses
    if read[0] != written[0]:
        stored = torch.linalg.inv(stored)
    return replace(cameras, world_to_camera=(other @ stored)[:, :3])


def others(read: Convention) -> Iterator[Convention]:
    """All conventions but one, those first that differ in one thing."""
    known = [(direction, axes) for axes in AXES for direction in DIRECTIONS if (direction, axes) != read]
    yield from sorted(known, key=lambda c: (c[1] == "PyTorch3D") * 2 + (c[0] != read[0]) + (c[1] != read[1]))


def advice(cameras: Cameras, masks: Tensor, read: Convention) -> str | None:
    """A sentence that names another convention, if its visual hull is far better than that of the cameras as they were
    read. cameras: in the world of the files; masks (v, h, w) uint8."""
    cameras, masks = reduced(cameras, masks)
    quality = hull_quality(cameras, masks)
    found = {c: hull_quality(as_written(cameras, read, c), masks) for c in others(read)}
    best = max(found, key=found.__getitem__)
    if found[best] < max(FAIR, quality + CLEARLY):
        return None
    return f"poses look like {said(best)}: hull IoU {quality:.2f} as read ({said(read)}), {found[best]:.2f} with that"


def unplaced(sequence: Sequence) -> Cameras:
    """Cameras in the world of the files, from where `normalised` has put the object."""
    placing = sequence.attributes.get("placing")
    if placing is None:
        return sequence.cameras
    turn, centre = (torch.from_numpy(np.array(placing[name], dtype=float)) for name in ("turn", "centre"))
    pose = sequence.cameras.world_to_camera.double()
    rotation = pose[:, :, :3] @ turn
    translation = pose[:, :, 3] / placing["scale"] - rotation @ centre
    return replace(sequence.cameras, world_to_camera=torch.cat([rotation, translation[..., None]], dim=-1))
