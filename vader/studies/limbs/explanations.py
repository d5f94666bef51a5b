"""What pictures teach when some of volume, skinning weights and poses is given.

A volume of free voxels and poses as curves (`vader/articulation/learning/tracks.py`) are fitted to all frames by the
recipe's image losses. Voxels are what a decoder without limits would make, so nothing here is lost in a decoder or in a
keypoint predictor. Each arm starts at another mixture of truth and chance, and all have the same number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...articulation.learning.tracks import Tracks
from ...articulation.poses import neutral, turn_about
from .scene import AXES, JOINT, LIMB, Scene, correlation, measure

VOXEL_RATE, POSE_RATE = 0.2, 0.01  # of Adam on raw voxels and on curves; both fall to a tenth
EMPTY = -8.0  # raw density of a voxel without any: softplus leaves it a gradient
CHANCE = 0.02  # standard deviation of raw skinning logits


@dataclass(frozen=True)
class Arm:
    """Where a training starts, and whether its poses move."""

    parts: int = 2
    volume: Literal["fog", "true", "one part"] = "fog"  # "one part": what the arm with one part ended with
    weights: Literal["chance", "true"] = "chance"
    poses: Literal["still", "true"] = "still"
    posing: bool = True


ONE, GIVEN, ALL_TRUE, CHANCES = "one part", "poses given", "all true", "all by chance"
STAGED = "weights told, after one part"
ARMS = {
    ONE: Arm(parts=1),
    GIVEN: Arm(poses="true", posing=False),
    ALL_TRUE: Arm(volume="true", weights="true", poses="true"),
    CHANCES: Arm(),
    STAGED: Arm(weights="true", volume="one part"),
}


class Voxels(nn.Module):
    """A volume (1, 4 + p, S, S, S) of free voxels, by the activations of the recipe's decoder but for softplus."""

    def __init__(self, scene: Scene, arm: Arm, seed: int, one_part: Tensor | None = None):
        super().__init__()
        settings, size = scene.config.autodecoder, scene.volume.shape[-1]
        self.density_scale, self.logit_scale = settings.density_scale, settings.lbs_scale
        raw = torch.zeros(1, 4 + arm.parts, size, size, size)
        known = {"true": scene.volume, "one part": one_part, "fog": None}[arm.volume]
        if known is None:
            raw[:, 0] = _inverse_softplus(torch.tensor(settings.density_bias))
        else:
            raw[:, 0] = _inverse_softplus((known[:, 0] / self.density_scale).clamp_min(1e-9)).clamp_min(EMPTY)
            raw[:, 1:4] = known[:, 1:4].clamp(0.01, 0.99).logit()
        if arm.weights == "true":
            raw[:, 4:] = scene.volume[:, 4:] / self.logit_scale
        else:
            generator = torch.Generator().manual_seed(seed)
            raw[:, 4:] = CHANCE * torch.randn(raw[:, 4:].shape, generator=generator)
        self.raw = nn.Parameter(raw)

    def forward(self) -> Tensor:
        density, colour, logits = self.raw.split([1, 3, self.raw.shape[1] - 4], dim=1)
        return torch.cat([self.density_scale * F.softplus(density), colour.sigmoid(), self.logit_scale * logits], 1)


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


def make_tracks(scene: Scene, arm: Arm) -> Tracks:
    """Curves that reach every pose of every frame: as many cosines as frames."""
    t = len(scene.angles)
    centroid = torch.tensor(JOINT) + torch.tensor([scene.shape.length / 2, 0.0, 0.0])
    centroids = torch.zeros(1, arm.parts, 3)
    if arm.weights == "true" or arm.poses == "true":
        centroids[0, LIMB] = centroid
    tracks = Tracks([neutral(t)], centroids, t, scene.config.articulation.track_roll)
    if arm.poses == "true":
        values = torch.zeros(t, 5)
        values[:, :3] = torch.deg2rad(scene.angles)[:, None] * torch.tensor(AXES[scene.shape.axis]) / tracks.radians
        values[:, 3:] = (scene.poses[:, LIMB, :, :3] @ centroid + scene.poses[:, LIMB, :, 3] - centroid)[:, :2]
        phase = (torch.arange(t) + 0.5) / t
        waves = torch.cos(torch.pi * phase[:, None] * torch.arange(t))
        with torch.no_grad():
            tracks.coefficients[0, LIMB] = torch.linalg.solve(waves, values).T
    return tracks


@dataclass(frozen=True)
class Course:
    """Scores of `scene.measure` at some steps, and the volume and poses at the end."""

    scores: dict[int, dict[str, float]]
    volume: Tensor
    poses: Tensor


def fit(scene: Scene, arm: Arm, at: Sequence[int], seed: int = 0, one_part: Tensor | None = None) -> Course:
    """Train an arm for max(at) steps and measure at the steps `at`."""
    voxels, tracks = Voxels(scene, arm, seed, one_part), make_tracks(scene, arm)
    frames, video = torch.arange(len(scene.angles))[None], torch.zeros(1, dtype=torch.int64)
    groups = [{"params": voxels.parameters(), "lr": VOXEL_RATE}]
    if arm.posing:
        groups.append({"params": tracks.parameters(), "lr": POSE_RATE})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    rates, scores = [group["lr"] for group in groups], {}

    def poses() -> Tensor:
        found = tracks(video, frames)[0]
        return found if arm.posing else found.detach()

    for step in range(max(at) + 1):
        if step in at:
            with torch.no_grad():
                scores[step] = measure(scene, voxels(), poses())
        if step < max(at):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.1 ** (step / max(at))
            optimizer.zero_grad(set_to_none=True)
            scene.loss(voxels(), poses(), step=1_000 * seed + step)[0].backward()
            optimizer.step()
    with torch.no_grad():
        return Course(scores, voxels(), poses())


def fit_all(scene: Scene, names: Sequence[str], at: Sequence[int], seed: int = 0) -> dict[str, Course]:
    """Arms by name, in the order of `ARMS`."""
    courses: dict[str, Course] = {}
    for name, arm in ARMS.items():
        if name in names:
            one_part = courses[ONE].volume if arm.volume == "one part" else None
            courses[name] = fit(scene, arm, at, seed, one_part)
    return courses


def first_pull(scene: Scene, volume: Tensor) -> dict[str, float]:
    """Where the pictures pull a limb in the neutral pose whose skinning weights are the true ones.

    volume: (1, 4 or more, S, S, S), density and colour. correlation: of the pull about the limb's axis with the true
    angles, over frames. pull: its root mean square, in the loss's unit per radian.
    """
    whole = torch.cat([volume[:, :4], scene.volume[:, 4:]], dim=1)
    turns = torch.zeros(len(scene.angles), 1, requires_grad=True)
    axis, still = torch.tensor(AXES[scene.shape.axis]), neutral(len(scene.angles))
    limb = turn_about(torch.tensor(JOINT).expand(len(turns), 3), turns * axis, torch.zeros(len(turns), 2))
    loss = scene.loss(whole, torch.stack([still, limb], dim=1))[0]
    [gradient] = torch.autograd.grad(loss, turns)
    pull = -len(turns) * gradient[:, 0]  # of a frame's own loss
    return {"correlation": correlation(pull, scene.angles), "pull": pull.square().mean().sqrt().item()}
