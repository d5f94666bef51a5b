"""How far from the truth the pictures still lead a limb back, with the true volume and skinning weights given.

The recipe's loss over the limb's angle is a curve whose wells can be read off. A narrow camera hardly sees a turn
towards it: a limb gets shorter by the cosine, and one that points to the camera looks like one that points away. Then
gradient descent starts at poses that are off by some degrees, and it is counted how many come back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...articulation.fitting import part_centroids
from ...articulation.poses import compose, transform, turn_about
from .scene import BODY, LIMB, Scene, poses_of, signed_turn

RATE = 0.03  # of Adam at first; it falls to 0
RADIANS = 2.0  # that count as much as a shift of 1: a limb's end is a quarter off its middle
BACK = 5.0  # degrees from the truth at which a limb is back


@dataclass(frozen=True)
class Curve:
    """The loss over the limb's angle in one frame, whose true angle is `truth`; degrees."""

    truth: float
    angles: tuple[float, ...]  # all around, evenly spaced
    losses: tuple[float, ...]

    def well(self) -> tuple[float, float]:
        """How far below and above the minimum nearest to the truth the loss rises without a break, in degrees."""
        n, k = len(self.losses), self._minimum()
        reach = []
        for sign in (-1, 1):
            steps = 0
            while steps < n // 2 and self.losses[(k + sign * (steps + 1)) % n] > self.losses[(k + sign * steps) % n]:
                steps += 1
            reach.append(steps * 360 / n)
        return reach[0], reach[1]

    def off(self) -> float:
        """Degrees from the truth to the minimum that its own well has."""
        return abs((self.angles[self._minimum()] - self.truth + 180) % 360 - 180)

    def minima(self) -> int:
        """Local minima all around."""
        n, x = len(self.losses), self.losses
        return sum(x[k - 1] > x[k] <= x[(k + 1) % n] for k in range(n))

    def at(self, angle: float) -> float:
        """The loss at the nearest angle of the curve."""
        return self.losses[self._nearest(angle)]

    def _nearest(self, angle: float) -> int:
        step = 360 / len(self.angles)
        return round((angle - self.angles[0]) / step) % len(self.angles)

    def _minimum(self) -> int:
        """Downhill from the truth."""
        n, k, x = len(self.losses), self._nearest(self.truth), self.losses
        while min(x[k - 1], x[(k + 1) % n]) < x[k]:
            k = (k - 1) % n if x[k - 1] < x[(k + 1) % n] else (k + 1) % n
        return k


@torch.no_grad()
def loss_curve(scene: Scene, frame: int, count: int) -> Curve:
    """The curve of a frame at `count` angles."""
    angles = torch.arange(count) * 360.0 / count - 180
    frames = torch.full((count,), frame)
    losses = scene.loss_of_each(scene.volume, poses_of(scene.shape.axis, angles), frames)
    return Curve(scene.angles[frame].item(), tuple(angles.tolist()), tuple(losses.tolist()))


def returned(
    scene: Scene, frames: Tensor, errors: tuple[float, ...], steps: int, angle_alone: bool
) -> dict[float, float]:
    """Share of the limbs of `frames` that come back from errors of so many degrees to either side.

    angle_alone: the limb turns about its joint and axis. Else it turns about its middle as it likes, and shifts across
    the picture, as parts do in the recipe.
    """
    starts = [(frame, sign * error) for error in errors for sign in (1, -1) for frame in frames.tolist()]
    shown, off = torch.tensor([f for f, _ in starts]), torch.tensor([e for _, e in starts])
    angles = scene.angles[shown] + off
    poses = poses_of(scene.shape.axis, angles)
    middle = transform(poses[:, LIMB], part_centroids(scene.volume[0])[None, LIMB])[..., 0, :]
    moves = torch.zeros(len(starts), 1 if angle_alone else 5, requires_grad=True)
    optimizer = torch.optim.Adam([moves], lr=RATE)

    def moved() -> Tensor:
        if angle_alone:
            return poses_of(scene.shape.axis, angles + torch.rad2deg(RADIANS * moves[:, 0]))
        limb = compose(turn_about(middle, RADIANS * moves[:, :3], moves[:, 3:]), poses[:, LIMB])
        return torch.stack([poses[:, BODY], limb], dim=1)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.zero_grad()
        scene.loss_of_each(scene.volume, moved(), shown).sum().backward()
        optimizer.step()
    left = signed_turn(moved().detach()[:, LIMB, :, :3], scene.shape.axis) - scene.angles[shown]
    back = ((left + 180) % 360 - 180).abs() < BACK
    return {error: back[off.abs() == error].float().mean().item() for error in errors}
