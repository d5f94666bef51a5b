"""Where learning poses starts: solids inflated from silhouettes, and the frames that training begins with."""

from __future__ import annotations

import pytest
import torch

from vader.articulation.learning.solids import asymmetry, centre_shifts, half_depth, inflated_silhouette
from vader.articulation.poses import fixed_camera, neutral, project
from vader.settings.articulation import ArticulationConfig
from vader.settings.checks import ConfigError

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


@pytest.mark.parametrize("radius", [0.3, 0.6])
def test_half_the_depth_of_a_disc_is_its_radius(radius):
    pixel = 2 / 64  # about, in the cube's units
    assert half_depth(discs(radius), CAMERA) == pytest.approx(radius, abs=2 * pixel)
    solid = inflated_silhouette(discs(radius), CAMERA, 65)[:, 32, 32]
    assert (solid > 0.5).sum() / 2 * 2 / 64 == pytest.approx(radius, abs=0.05)


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


def test_a_frame_is_as_symmetric_as_its_best_mirror_wherever_the_subject_stands():
    torch.manual_seed(0)
    half = torch.randint(50, 256, (16, 6, 3), dtype=torch.uint8)
    subject = torch.cat([half, half.flip(1)], dim=1)  # (16, 12, 3)
    lopsided = subject.clone()
    lopsided[:, :3] = 0
    frames, masks = torch.full((4, 32, 32, 3), 99, dtype=torch.uint8), torch.zeros(4, 32, 32, dtype=torch.uint8)
    for i, (patch, column) in enumerate(((subject, 10), (subject, 3), (lopsided, 10))):
        frames[i, 8:24, column : column + 12], masks[i, 8:24, column : column + 12] = patch, 255
    masks[2, 8:24, 10:13] = 0
    found = asymmetry(frames, masks)
    assert found[0] == found[1] == 0, "background is none of the subject's, whatever its colour"
    assert 0.05 < found[2] < 1 and found[3] == torch.inf
    torch.testing.assert_close(asymmetry(frames.flip(2), masks.flip(2)), found)


def test_shifts_put_a_solid_where_the_mask_is():
    """A point moved by the shift is seen where the mask's centre moved; right in the image is +x, up is +y."""
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 20:30, 20:30] = 255
    masks[1, 14:24, 34:44] = 255  # 14 pixels to the right, 6 up
    shifts = centre_shifts(masks, CAMERA)
    torch.testing.assert_close(shifts[0], -shifts[1])
    poses = torch.cat([neutral(2)[..., :3], shifts[:, :, None]], dim=-1)
    seen = project(poses[:, None], torch.zeros(1, 1, 3), CAMERA)[:, 0, 0]
    torch.testing.assert_close(32 * (seen[1] - seen[0]), torch.tensor([14.0, -6.0]), atol=1e-3, rtol=0)


def test_what_swings_far_does_not_count_for_symmetry_where_asked():
    """A body whose stripe moves to the side, with an arm that is up on one side in the frames from the front only."""
    frames, masks = torch.zeros(6, 16, 16, 3, dtype=torch.uint8), torch.zeros(6, 16, 16, dtype=torch.uint8)
    masks[:, 2:14, 5:11] = 255
    frames[:, 2:14, 5:11] = 100
    for k in range(6):
        stripe = 7 if k < 2 else 5
        frames[k, 2:14, stripe : stripe + 2] = 250
    for k in range(2):
        masks[k, 3:9, 11:16], frames[k, 3:9, 11:16] = 255, 180
    everything, core = asymmetry(frames, masks), asymmetry(frames, masks, 0.9)
    assert everything[:2].min() > everything[2:].max(), "the arm outweighs the stripe"
    assert core[:2].max() < 0.01 and core[2:].min() > 0.05
    torch.testing.assert_close(core[2:], everything[2:])
