"""Are the gradients right? Autograd against finite differences, through skinning, renderer and solvers (float64).

The objective is the recipe's loss on the scene's true pictures. Variables are the limb's turn and shift, the 2D
keypoints in front of EPnP or of the least-squares steps, and the 3D keypoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...articulation.keypoints import CanonicalKeypoints
from ...articulation.poses import compose, project, solve_poses, transform, turn_about
from ...articulation.refinement import refine_poses
from .scene import Scene, poses_of

STEP = 1e-6
AWAY = 20.0  # degrees
SOLVERS = ("EPnP", "least squares")


def worst_difference(objective: Callable[[Tensor], Tensor], at: Tensor, directions: int, seed: int = 0) -> float:
    """Largest difference between autograd and central differences along random directions in the space of `at`, as a
    share of the largest derivative among them."""
    leaf = at.detach().clone().requires_grad_()
    objective(leaf).backward()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(directions):
        along = torch.randn(at.shape, generator=generator, dtype=at.dtype)
        along = along / along.norm()
        with torch.no_grad():
            ends = [objective(at + sign * STEP * along) for sign in (1, -1)]
        found.append(torch.stack([(leaf.grad * along).sum(), (ends[0] - ends[1]) / (2 * STEP)]))
    by_autograd, by_difference = torch.stack(found, dim=1)
    return ((by_autograd - by_difference).abs().max() / by_difference.abs().max()).item()


def check_gradients(scene: Scene, directions: int = 6) -> dict[str, dict[str, float]]:
    """`worst_difference` at the true poses and `AWAY` degrees from them: {variable: {place: share}}."""
    volume, camera = scene.volume.double(), scene.camera
    found: dict[str, dict[str, float]] = {}
    for place, error in (("at the true pose", 0.0), (f"{AWAY:g} degrees away", AWAY)):
        poses = poses_of(scene.shape.axis, scene.angles.double() + error)
        for variable, (objective, at) in _variables(scene, volume, poses, camera).items():
            found.setdefault(variable, {})[place] = worst_difference(objective, at, directions)
    return found


def _variables(scene: Scene, volume: Tensor, poses: Tensor, camera) -> dict[str, tuple[Callable, Tensor]]:
    t = len(poses)
    keypoints3d = CanonicalKeypoints(scene.config.articulation, 2)().detach().double()  # (2, k, 3)
    seen = project(poses, keypoints3d, camera)
    noise = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1), dtype=seen.dtype)
    seen = (seen + 1e-3 * noise).flatten(0, 1)  # exact keypoints leave least squares without a curvature to get wrong
    points = keypoints3d.expand(t, 2, -1, 3).flatten(0, 1)
    middle = transform(poses, torch.tensor([[0.45, 0.15, 0.0]], dtype=poses.dtype))[..., 0, :]

    def solved(solver: str, x: Tensor, y: Tensor) -> Tensor:
        if solver == "EPnP":
            return solve_poses(x, y, camera)[0]
        # gradients go through the last step alone, so it has to start where the steps end
        with torch.no_grad():
            end = refine_poses(x, y, camera, poses.flatten(0, 1), 20)[0]
        return refine_poses(x, y, camera, end, 1)[0]

    def of_poses(found: Tensor) -> Tensor:
        return scene.loss(volume, found.view(t, 2, 3, 4))[0]

    def of_moves(moves: Tensor) -> Tensor:
        return of_poses(compose(turn_about(middle, moves[..., :3], moves[..., 3:]), poses))

    variables = {"turn and shift": (of_moves, torch.zeros(t, 2, 5, dtype=poses.dtype))}
    for solver in SOLVERS:
        variables[f"2D keypoints, {solver}"] = (lambda y, s=solver: of_poses(solved(s, points, y)), seen)
    variables["3D keypoints, EPnP"] = (
        lambda x: of_poses(solved("EPnP", x.expand(t, *x.shape).flatten(0, 1), seen)),
        keypoints3d,
    )
    return variables
