"""Poses as curves over time: what they start as, how they move, and that pictures find them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dct
from scipy.spatial.transform import Rotation

from vader.articulation.learning.tracks import Tracks
from vader.articulation.poses import fixed_camera, neutral, rotation_matrices, transform
from vader.articulation.skinning import render_posed
from vader.settings.articulation import ArticulationConfig


def turned(*vector: float) -> torch.Tensor:
    rotation = torch.tensor(Rotation.from_rotvec(vector).as_matrix(), dtype=torch.float32)
    return torch.cat([rotation, torch.tensor([[0.1], [0.2], [-0.3]])], dim=1)


ROOTS = [torch.stack([turned(0, 0.1 * k, 0.2) for k in range(n)]) for n in (6, 4)]
CENTROIDS = torch.tensor([[[0.3, 0.2, -0.1], [0.0, -0.5, 0.0]], [[0.0, 0.0, 0.0], [0.4, 0.1, 0.2]]])
FRAMES = torch.tensor([[0, 5], [3, 1]])


def test_parts_start_where_the_whole_subject_is():
    tracks = Tracks(ROOTS, CENTROIDS, 3)
    poses = tracks(torch.tensor([0, 1]), FRAMES)
    for i, frames in enumerate(FRAMES):
        for j, frame in enumerate(frames):
            for part in range(2):
                torch.testing.assert_close(poses[i, j, part], ROOTS[i][frame])
    assert [name for name, _ in tracks.named_parameters()] == ["coefficients"] == list(tracks.state_dict())


def test_a_part_turns_about_its_middle_and_is_shifted_across_the_picture_only():
    tracks = Tracks(ROOTS, CENTROIDS, 2)
    with torch.no_grad():
        tracks.coefficients[0, 0, :3, 0] = torch.tensor([0.2, -0.4, 0.7])
        tracks.coefficients[0, 1, 3:, 0] = torch.tensor([0.15, -0.05])
    poses = tracks(torch.tensor([0]), FRAMES[:1])[0]  # (2 frames, 2 parts, 3, 4)
    expected = torch.tensor(Rotation.from_rotvec([0.2, -0.4, 0.7]).as_matrix(), dtype=torch.float32)
    for frame, pose in zip(FRAMES[0], poses, strict=True):
        root = ROOTS[0][frame]
        torch.testing.assert_close(pose[0, :, :3], root[:, :3] @ expected)
        middle = CENTROIDS[0, 0][None]
        torch.testing.assert_close(transform(pose[0], middle), transform(root, middle))
        point = torch.tensor([[0.3, 0.1, 0.2]])
        moved = transform(root, point + torch.tensor([0.15, -0.05, 0.0]))
        torch.testing.assert_close(transform(pose[1], point), moved)
    with torch.no_grad():
        tracks.coefficients.zero_()
    torch.testing.assert_close(tracks(torch.tensor([1]), FRAMES[1:])[0, 0, 1], ROOTS[1][3])


def test_turns_across_the_picture_are_counted_in_units_of_their_own():
    plain, rolling = (Tracks(ROOTS, CENTROIDS, 2, *more) for more in ((), (4.0,)))
    with torch.no_grad():
        plain.coefficients.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
        rolling.coefficients.copy_(plain.coefficients)
        rolling.coefficients[:, :, 2] /= 4
    assert list(rolling.state_dict()) == ["coefficients"]
    torch.testing.assert_close(*(tracks(torch.tensor([0, 1]), FRAMES) for tracks in (plain, rolling)))


def test_curves_are_cosines_of_a_video_s_own_length():
    """Against scipy's inverse cosine transform, for videos of 6 and of 4 frames."""
    tracks, generator = Tracks(ROOTS, CENTROIDS, 3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        tracks.coefficients[:, :, 3:].normal_(generator=generator)
    for video, length in enumerate((6, 4)):
        coefficients = tracks.coefficients[video, 1, 3].detach().double().numpy()
        padded = np.zeros(length)
        padded[:3] = coefficients * [1, 0.5, 0.5]  # its type 3 counts all but the first twice
        curve = dct(padded, type=3)
        poses = tracks(torch.tensor([video]), torch.arange(length)[None])[0, :, 1]
        shift = (poses[:, :, 3] - ROOTS[video][:, :, 3])[:, None] @ ROOTS[video][:, :, :3]
        assert shift[:, 0, 0].tolist() == pytest.approx(curve.tolist(), abs=1e-5)
        assert shift[:, 0, 2].abs().max() < 1e-5


def test_rotations_are_those_of_scipy_and_have_gradients_at_zero():
    vectors = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor(Rotation.from_rotvec(vectors.numpy()).as_matrix(), dtype=torch.float32)
    torch.testing.assert_close(rotation_matrices(vectors), expected, atol=1e-5, rtol=1e-5)
    still = torch.zeros(3, requires_grad=True)
    (rotation_matrices(still) * torch.arange(9.0).view(3, 3)).sum().backward()
    assert still.grad.tolist() == pytest.approx([2.0, -4.0, 2.0])  # d/dw of R is the cross product's matrix


def test_pictures_find_how_a_part_moves():
    """Two balls, one of which swings: its curve is found, and the other's stays near zero."""
    axis = torch.linspace(-1, 1, 24)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    centres = torch.tensor([[-0.45, 0.0, 0.0], [0.4, 0.2, 0.0]])
    near = [((x - a).square() + (y - b).square() + (z - c).square()).sqrt() for a, b, c in centres]
    density = 30 * sum(((0.3 - d) / 0.05).sigmoid() for d in near)
    logits = [20.0 * (d < other) for d, other in zip(near, near[::-1], strict=True)]
    volume = torch.stack([density, *torch.ones(3, 24, 24, 24), *logits])[None]
    camera = fixed_camera(ArticulationConfig(), 24)
    rays = [ray[None] for ray in camera.rays()]
    roots, every = [neutral(8, 1)[:, 0].clone()], torch.arange(8)[None]
    true, learned = (Tracks(roots, centres[None], 3) for _ in range(2))
    with torch.no_grad():
        true.coefficients[0, 1, 3, 1], true.coefficients[0, 1, 4, 2] = 0.12, -0.08

    def occupancy(tracks):
        return render_posed(volume, tracks(torch.tensor([0]), every), *rays, 16).occupancy

    target = occupancy(true).detach()
    optimizer = torch.optim.Adam(learned.parameters(), lr=0.01)
    before = (occupancy(learned) - target).square().mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = (occupancy(learned) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02 * before
    shifts = learned.coefficients.detach()[0, :, 3:]
    torch.testing.assert_close(shifts, true.coefficients.detach()[0, :, 3:], atol=0.02, rtol=0)
