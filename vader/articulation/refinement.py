"""Least-squares poses of parts, started at the pose of the whole subject. They replace EPnP's answer for each part.

EPnP [36] solves linear equations. Around a limb a part's keypoints lie close to each other, and noise on them turns its
answer far too much. The sum of squared reprojection errors weighs such noise rightly, and Gauss-Newton finds its
minimum. A narrow camera does not see how far away a part is, so the centroid of its keypoints keeps the depth of the
pose that the steps begin with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rendering.cameras import Cameras
from .poses import (
    Guard,
    check_problems,
    compose,
    cross_matrices,
    half_width,
    invert,
    rotation_matrices,
    solvable,
)

DAMPING = 1e-6  # of the normal equations, a share of their diagonal
LONGEST_TURN = 0.5  # radians in one step


def refine_poses(
    points3d: Tensor, points2d: Tensor, camera: Cameras, start: Tensor, steps: int
) -> tuple[Tensor, Guard]:
    """Poses that lessen the reprojection error, in Gauss-Newton steps.

    Args:
        points3d, points2d, camera: as in `poses.solve_poses`. start: poses (m, 3, 4). steps: at least 1.

    Returns:
        Poses (m, 3, 4) of points2d's dtype, computed in float64, and what the guard did. Gradients reach the points
        through the last step alone, which at a minimum with small errors is what the implicit function theorem says.
        Degenerate problems, those that `poses.solve_poses` refuses, keep `start` and hand back no gradient.

    Raises:
        PoseError: shapes that do not fit.
    """
    check_problems(points3d, points2d)
    usable = solvable(points3d.detach(), points2d.detach())
    keep = usable[:, None, None]
    x, y = torch.where(keep, points3d.double(), 0.0), torch.where(keep, points2d.double(), 0.0)
    to_camera = camera.world_to_camera[0].to(points2d.device).double()
    start = start.detach().double()
    middle = x.detach().mean(1)
    rotation, shift = compose(to_camera, start).split([3, 1], dim=-1)
    centre = (rotation @ middle[..., None] + shift)[..., 0]
    seen = half_width(camera) * y
    with torch.no_grad():
        for _ in range(steps - 1):
            rotation, centre = _step(x, seen, middle, rotation, centre)
    rotation, centre = _step(x, seen, middle, rotation, centre)
    shift = centre[..., None] - rotation @ middle[..., None]
    poses = compose(invert(to_camera), torch.cat([rotation, shift], dim=-1))
    usable = usable & torch.isfinite(poses.detach()).flatten(1).all(1)
    guard = Guard(usable)
    guard.watch(poses, x, y)
    return torch.where(usable[:, None, None], poses, start).to(points2d.dtype), guard


def _step(x: Tensor, seen: Tensor, middle: Tensor, rotation: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Another rotation (m, 3, 3) and centroid (m, 3) in the camera's frame; `seen` are directions (x/z, y/z)."""
    arm = (x - middle[:, None]) @ rotation.mT
    at = arm + centre[:, None]
    error = at[..., :2] / at[..., 2:] - seen
    with torch.no_grad():  # the error alone has a gradient: what is multiplied with it vanishes where the error does
        of_point = torch.zeros(*error.shape, 3, dtype=x.dtype, device=x.device)  # (m, k, 2, 3)
        of_point[..., 0, 0] = of_point[..., 1, 1] = 1
        of_point[..., 2] = -at[..., :2] / at[..., 2:]
        of_point = of_point / at[..., None, 2:]
        jacobian = torch.cat([of_point @ cross_matrices(-arm), of_point[..., :2]], dim=-1).flatten(1, 2)  # (m, 2 k, 5)
        normal = jacobian.mT @ jacobian
        diagonal = normal.diagonal(dim1=1, dim2=2)
        normal = normal + torch.diag_embed(DAMPING * diagonal.clamp_min(DAMPING))
        solver = torch.linalg.solve(normal, jacobian.mT)
    turn, move = (-(solver @ error.flatten(1)[..., None])[..., 0]).split([3, 2], dim=-1)
    length = turn.detach().norm(dim=-1, keepdim=True)
    turn = turn * (LONGEST_TURN / length.clamp_min(LONGEST_TURN))
    return rotation_matrices(turn) @ rotation, centre + torch.cat([move, torch.zeros_like(move[:, :1])], dim=-1)


def at_distance(poses: Tensor, camera: Cameras) -> Tensor:
    """Poses (..., 3, 4) whose canonical origin is moved along its ray to the depth of the world's origin."""
    to_camera = camera.world_to_camera[0].to(poses)
    rotation, shift = compose(to_camera, poses).split([3, 1], dim=-1)
    shift = shift * (to_camera[2, 3] / shift[..., 2:, :])
    return compose(invert(to_camera), torch.cat([rotation, shift], dim=-1))
