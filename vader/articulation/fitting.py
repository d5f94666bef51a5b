"""Poses fitted to frames: the predicted poses are refined until the rendering looks like the frame.

The keypoint predictor is the weakest link of a small model. Poses that follow the pictures themselves show what volume
and skinning can do. Learned cameras are evaluated so, too (BARF, Lin et al. 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rendering.cameras import Cameras
from ..rendering.rays import voxel_centres
from .poses import PoseError, compose, transform, turn_about
from .skinning import render_posed

UNITS = (0.5, 0.5, 2.0)  # radians about x, y and z that count as much as shifts of 1
RATE = 0.02  # of Adam, at first; it falls to 0
FRAMES_AT_ONCE = 4


def fit_poses(
    volume: Tensor, poses: Tensor, frames: Tensor, camera: Cameras, num_samples: int, steps: int = 40
) -> Tensor:
    """Poses whose renderings are closest to frames, by gradient descent on the squared error of colours.

    Parts turn about the middle of what they hold and are shifted across the picture, since a narrow camera does not see
    how far away they are. Each frame is on its own.

    Args:
        volume: (1 + 3 + p, S, S, S). poses: (t, p, 3, 4) to begin with. frames: (t, h, w, 3), float in [0, 1] or uint8.
        camera: the fixed one (n = 1) at the frames' size. num_samples: along a ray. steps: 0 changes nothing.

    Raises:
        PoseError: frames of another number or size, or another number of parts than the volume has.
    """
    if poses.ndim != 4 or len(poses) != len(frames) or poses.shape[1] != len(volume) - 4:
        raise PoseError(
            f"poses are {tuple(poses.shape)} for {len(frames)} frames and a volume of {len(volume) - 4} parts, "
            "expected (t, p, 3, 4)"
        )
    if frames.shape[1:] != (camera.height, camera.width, 3):
        raise PoseError(
            f"frames are {tuple(frames.shape)}, expected (t, {camera.height}, {camera.width}, 3) as the camera's"
        )
    frames = (frames.float() / 255 if frames.dtype == torch.uint8 else frames).to(volume.device)
    rays = [x[None].to(volume.device) for x in camera.rays()]
    pivots = part_centroids(volume)
    chunks = zip(poses.split(FRAMES_AT_ONCE), frames.split(FRAMES_AT_ONCE), strict=True)
    return torch.cat([_fit(volume, *chunk, rays, pivots, num_samples, steps) for chunk in chunks])


def part_centroids(volume: Tensor) -> Tensor:
    """Centroids (p, 3) of each part's density in a volume (1 + 3 + p, S, S, S), near the origin for an empty part."""
    held = (volume[4:].softmax(0) * volume[0]).flatten(1)
    points = voxel_centres(volume.shape[-1], volume.device)
    return held @ points / held.sum(1, keepdim=True).clamp_min(1e-6)


@torch.enable_grad()
def _fit(
    volume: Tensor, poses: Tensor, frames: Tensor, rays: list[Tensor], pivots: Tensor, num_samples: int, steps: int
) -> Tensor:
    volume, poses = volume.detach(), poses.detach()
    moves = torch.zeros(*poses.shape[:2], 5, device=poses.device, requires_grad=True)
    at = transform(poses, pivots[:, None])[..., 0, :]

    def moved() -> Tensor:
        return compose(turn_about(at, moves[..., :3] * moves.new_tensor(UNITS), moves[..., 3:]), poses)

    optimizer = torch.optim.Adam([moves], lr=RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        seen = render_posed(volume[None], moved()[None], *rays, num_samples)
        error = (seen.colour[0].view_as(frames) - frames).square()
        error.mean(dim=(1, 2, 3)).sum().backward()
        optimizer.step()
    return moved().detach()
