"""Poses fitted to frames: they are found from near, by pictures alone, each frame on its own."""

from __future__ import annotations

import pytest
import torch

from vader.articulation.fitting import fit_poses, part_centroids
from vader.articulation.poses import PoseError, fixed_camera, neutral, transform
from vader.articulation.skinning import render_posed
from vader.settings.articulation import ArticulationConfig

CAMERA, SAMPLES = fixed_camera(ArticulationConfig(), 24), 16
CENTRES = torch.tensor([[-0.4, 0.0, 0.0], [0.4, 0.1, 0.0]])


@pytest.fixture(scope="module")
def volume():
    """Two bars, one upright and one lying, each half red and half green."""
    axis = torch.linspace(-1, 1, 24)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    density, logits, red = torch.zeros_like(x), [], torch.zeros_like(x)
    for centre, half in zip(CENTRES, ((0.12, 0.4, 0.12), (0.3, 0.12, 0.12)), strict=True):
        offset = torch.stack([x, y, z], dim=-1) - centre
        inside = (offset.abs() / torch.tensor(half)).amax(-1)
        density += 30 * ((1 - inside) / 0.15).sigmoid()
        red += (inside < 1.5) * (offset.sum(-1) > 0)
        logits.append(-20 * offset.square().sum(-1))
    return torch.stack([density, red.clamp(max=1), 1 - red.clamp(max=1), torch.full_like(x, 0.2), *logits])


def turned(degrees: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Poses (t, 2, 3, 4): parts turned about their centres across the picture, and shifted."""
    angle = torch.deg2rad(degrees)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one]
    rotation = torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
    move = CENTRES + shift - (rotation @ CENTRES[None, :, :, None])[..., 0]
    return torch.cat([rotation, move[..., None]], dim=-1)


def pictures(volume, poses):
    rays = [x[None] for x in CAMERA.rays()]
    return render_posed(volume[None], poses[None], *rays, SAMPLES).colour[0].view(-1, 24, 24, 3)


@pytest.fixture(scope="module")
def problem(volume):
    shift = torch.zeros(5, 2, 3)
    shift[1:, 0, 0], shift[2:, 1, 1] = 0.08, -0.06
    truth = turned(torch.tensor([[0.0, 0], [8, -12], [-10, 5], [12, 12], [6, -6]]), shift)
    return truth, pictures(volume, truth)


def test_pictures_move_parts_to_where_they_are(volume, problem):
    truth, frames = problem
    fitted = fit_poses(volume, neutral(5, 2).clone(), frames, CAMERA, SAMPLES)
    before, after = ((pictures(volume, p) - frames).square().mean() for p in (neutral(5, 2), fitted))
    assert after < 0.05 * before
    points = CENTRES[:, None] + torch.tensor([[0.0, 0, 0], [0.2, 0, 0], [0, 0.2, 0]])
    was, now = (
        (transform(p, points) - transform(truth, points))[..., :2].norm(dim=-1) for p in (neutral(5, 2), fitted)
    )
    assert now.mean() < 0.3 * was.mean() and was.mean() > 0.05
    rotation = fitted[..., :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0)


def test_each_frame_is_on_its_own(volume, problem):
    _, frames = problem
    together = fit_poses(volume, neutral(5, 2).clone(), frames, CAMERA, SAMPLES, steps=6)
    alone = fit_poses(volume, neutral(1, 2).clone(), frames[3:4], CAMERA, SAMPLES, steps=6)
    torch.testing.assert_close(together[3:4], alone, atol=1e-4, rtol=0)
    stored = fit_poses(volume, neutral(1, 2).clone(), (255 * frames[3:4]).round().byte(), CAMERA, SAMPLES, steps=6)
    torch.testing.assert_close(stored, alone, atol=0.02, rtol=0)


def test_no_steps_change_nothing_and_gradients_may_be_off(volume, problem):
    truth, frames = problem
    with torch.no_grad():
        torch.testing.assert_close(fit_poses(volume, truth, frames, CAMERA, SAMPLES, steps=0), truth)
        fitted = fit_poses(volume, neutral(5, 2).clone(), frames, CAMERA, SAMPLES, steps=2)
    assert not torch.equal(fitted, neutral(5, 2)) and not fitted.requires_grad


def test_parts_turn_about_the_middle_of_what_they_hold(volume):
    torch.testing.assert_close(part_centroids(volume), CENTRES, atol=0.02, rtol=0)
    empty = torch.cat([torch.zeros_like(volume[:1]), volume[1:]])
    assert torch.isfinite(part_centroids(empty)).all()


def test_what_does_not_fit_is_refused(volume, problem):
    truth, frames = problem
    with pytest.raises(PoseError, match=r"poses are \(5, 2, 3, 4\) for 4 frames and a volume of 2 parts"):
        fit_poses(volume, truth, frames[:4], CAMERA, SAMPLES)
    with pytest.raises(PoseError, match=r"frames are \(5, 12, 24, 3\), expected \(t, 24, 24, 3\)"):
        fit_poses(volume, truth, frames[:, :12], CAMERA, SAMPLES)
