"""What noise on keypoints costs a part of few pixels, and where the limbs of the sets are.

k keypoints spread with r pixels (root mean square along each axis) around their middle, each with noise of s pixels
along each image axis. A turn by w moves a keypoint at x by w times x. Both image axes see one across the picture, and
its least-squares error is s / (r sqrt(2 k)). A turn about an axis in the picture moves keypoints by their depth
times the angle, along one image axis, and its error is s / (r sqrt(k)). No unbiased reader of such keypoints does
better (Cramer-Rao), and EPnP, which solves linear equations, does worse.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...articulation.keypoints import CanonicalKeypoints
from ...articulation.poses import fixed_camera, project, solve_poses, turn_about
from ...articulation.refinement import refine_poses
from ...data.sets.puppets import MOTIONS, place, pose_parts, puppet
from ...data.video import video_camera
from ...evaluation.metrics.poses import nearest_rotation, rotation_angle
from ...settings.profiles import experiment
from .scene import ACROSS, TOWARDS, pixel_width, recipe

TURN = 0.3  # standard deviation of the true turns' components, radians
SOLVED = ("EPnP", "least squares")


def predicted_error(noise: float, spread: float, count: int, axis: str | None = None) -> float:
    """Degrees: the least error of a turn about an axis, or of all three together, from keypoints with independent
    noise; noise and spread in pixels."""
    variances = {ACROSS: 0.5, TOWARDS: 1.0, None: 2.5}
    return math.degrees(noise / spread * math.sqrt(variances[axis] / count))


def epnp_strain(noise: float, spread: float, count: int, resolution: int) -> float:
    """Noise that is left after averaging, over how far perspective moves a keypoint (both in pixels).

    EPnP's equations say nothing of a turn where a view is affine. What perspective adds is r^2 p / D pixels, for pixels
    that are p wide at the origin and a camera at distance D.
    """
    camera = fixed_camera(recipe().articulation, resolution)
    perspective = spread**2 * pixel_width(camera) / camera.centres()[0].norm().item()
    return noise / math.sqrt(count) / perspective


def recipe_spread(per_axis: int, extent: float, resolution: int) -> float:
    """Pixels by which the recipe's grid of 3D keypoints spreads, root mean square along each axis."""
    settings = recipe().replace(articulation=dict(keypoints_per_axis=per_axis)).articulation
    grid = extent * CanonicalKeypoints(settings, 1)()[0].detach()
    return grid.square().mean().sqrt().item() / pixel_width(fixed_camera(settings, resolution))


def expected_correlation(turn: float, error: float) -> float:
    """Of true turns with read ones whose error is independent of them; both root mean squares in degrees."""
    return turn / math.hypot(turn, error)


def measured_errors(
    spread: float, noise: float, per_axis: int, resolution: int, trials: int, seed: int = 0
) -> dict[str, float]:
    """Root mean square of the rotation error in degrees, by solver.

    spread, noise: in pixels of a picture of `resolution`. per_axis: keypoints on each edge of the recipe's grid.
    """
    config = recipe().replace(articulation=dict(keypoints_per_axis=per_axis))
    camera = fixed_camera(config.articulation, resolution)
    generator = torch.Generator().manual_seed(seed)
    grid = CanonicalKeypoints(config.articulation, 1)()[0].detach().double()
    grid = grid * spread * pixel_width(camera) / grid.square().mean().sqrt()
    middle = torch.tensor([0.45, 0.15, 0.0], dtype=torch.float64)
    points = (middle + grid).expand(trials, -1, 3)
    vectors = TURN * torch.randn(trials, 3, generator=generator, dtype=torch.float64)
    truth = turn_about(middle.expand(trials, 3), vectors, torch.zeros(trials, 2, dtype=torch.float64))
    seen = project(truth, points, camera)
    seen = seen + noise / (resolution / 2) * torch.randn(seen.shape, generator=generator, dtype=torch.float64)
    still = turn_about(middle.expand(trials, 3), 0 * vectors, torch.zeros(trials, 2, dtype=torch.float64))
    found = {
        "EPnP": solve_poses(points, seen, camera)[0],
        "least squares": refine_poses(points, seen, camera, still, 12)[0],
    }
    return {name: _rms(rotation_angle(poses[..., :3], truth[..., :3])) for name, poses in found.items()}


def _rms(angles: Tensor) -> float:
    return angles.square().mean().sqrt().item()


@dataclass(frozen=True)
class LimbFacts:
    """Means over limbs of a set: lengths in pixels of the set's frames, turns and shifts root mean squares about their
    own mean, against the torso. A turn is split into that across the picture, that towards the camera and that about
    the limb itself, which no picture of a plain limb shows."""

    limbs: int
    length_px: float
    width_px: float
    spread_px: float  # of the limb's solid, root mean square along each axis
    across_deg: float
    towards_deg: float
    twist_deg: float
    end_px: float  # how far the far end moves in the picture by these turns


def limb_facts(name: str, puppets: int) -> LimbFacts:
    """Facts about arms and legs of the first puppets of a set, from its geometry alone."""
    config = experiment("laptop", name).data
    count, pixel = config.train_views + config.heldout_views, pixel_width(video_camera(config))
    rows = [row for index in range(puppets) for row in _limbs_of(config.seed, index, count, name, pixel)]
    values = np.mean([dataclasses.astuple(row)[1:] for row in rows], axis=0)
    return LimbFacts(len(rows), *map(float, values))


def _limbs_of(seed: int, index: int, count: int, name: str, pixel: float) -> list[LimbFacts]:
    figure = puppet(seed, index)
    poses = pose_parts(figure, seed, index, count, MOTIONS[name])
    _, _, rigid = place(figure, poses)
    moved, own = (np.linalg.norm(x[:, 1, :3, 3] - x[:, 0, :3, 3], axis=-1).mean() for x in (rigid, poses))
    unit = moved / own / pixel  # pixels of a metre
    torso, rows = torch.tensor(poses[:, 0, :3, :3]), []
    for number, part in enumerate(figure.names):
        if part in ("torso", "head"):
            continue
        low, high = (np.array([s.bounds()[k] for s in figure.solids[part]]) for k in (0, 1))
        length, width = unit * (high.max(0) - low.min(0))[1], unit * (high[0] - low[0])[0]
        against = torso.mT @ torch.tensor(poses[:, number, :3, :3])
        mean = nearest_rotation(against.sum(0))
        vectors = _rotation_vectors(against @ mean.mT)
        along = mean @ torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
        depth = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        across = torch.nn.functional.normalize(depth - (depth @ along) * along, dim=0)
        towards = torch.linalg.cross(along, across)
        turns = [torch.rad2deg((vectors @ axis).square().mean().sqrt()).item() for axis in (across, towards, along)]
        end = torch.tensor([0.0, low.min(0)[1], 0.0], dtype=torch.float64)
        shift = unit * (torso @ (against - mean) @ end)[:, :2]
        spread = math.sqrt((length**2 + 2 * width**2) / 36)  # of a box: edge^2 / 12 along each axis
        rows.append(LimbFacts(1, length, width, spread, *turns, shift.square().sum(1).mean().sqrt().item()))
    return rows


def _rotation_vectors(rotations: Tensor) -> Tensor:
    from scipy.spatial.transform import Rotation

    return torch.tensor(Rotation.from_matrix(rotations.numpy()).as_rotvec())
