"""The solid that all subjects start as: inflated from what the camera sees of them."""

from __future__ import annotations

import pytest
import torch

from vader.articulation.config import ArticulationConfig
from vader.articulation.poses import fixed_camera
from vader.articulation.start import inflated_silhouette
from vader.checks import ConfigError

CAMERA = fixed_camera(ArticulationConfig(), 64)


def discs(radius: float) -> torch.Tensor:
    """Masks (4, 64, 64) of a disc before the centre, its radius in the cube's units; one frame shows nothing."""
    rays = CAMERA.rays()[1].view(64, 64, 3)
    across = rays[..., :2].norm(dim=-1) / rays[..., 2].abs() * CAMERA.centres()[0].norm()
    disc = (across < radius).to(torch.uint8) * 255
    return torch.stack([disc, disc, disc, 0 * disc])


def test_a_disc_becomes_a_ball():
    solid = inflated_silhouette(discs(0.5), CAMERA, 33)
    axis = torch.linspace(-1, 1, 33)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    from_centre = (x.square() + y.square() + z.square()).sqrt()
    assert (solid[from_centre < 0.4] > 0.5).all() and (solid[from_centre > 0.6] < 0.5).all()
    middle = solid[:, 16, 16]  # on the camera's axis, where perspective plays no part
    assert torch.equal(middle, middle.flip(0)) and solid.min() >= 0 and solid.max() <= 1


def test_a_band_becomes_a_cylinder_as_deep_as_it_is_wide():
    rows = CAMERA.rays()[1].view(64, 64, 3)
    height = (rows[..., 1] / rows[..., 2].abs() * CAMERA.centres()[0].norm()).abs()
    solid = inflated_silhouette((height < 0.3).float()[None], CAMERA, 33)
    inside = solid[:, 16, 16] > 0.5  # along z through the centre
    assert inside.sum() * 2 / 32 == pytest.approx(0.6, abs=0.1)
    assert torch.allclose(solid[:, 16, 6], solid[:, 16, 26], atol=1e-3)


def test_where_the_subject_is_seen_in_less_than_half_of_the_frames_there_is_nothing():
    masks = discs(0.5)
    masks[2:] = 0
    masks[1, :, :32] = 0  # the right half in two of four frames, the left half in one
    with pytest.raises(ConfigError, match="no pixel shows the subject in half of the frames"):
        inflated_silhouette(masks, CAMERA, 9)
