"""Pose and part scores: exact for planted similarities, right for planted errors, equal to an independent library."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from vader.evaluation.metrics import MetricError
from vader.evaluation.metrics.poses import (
    adjusted_rand_index,
    match_parts,
    nearest_rotation,
    normal_error,
    pose_errors,
    rotation_angle,
    silhouette_iou,
)


def rotations(n: int, generator: torch.Generator, angle: float = 0.8) -> torch.Tensor:
    w = angle * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    zero = torch.zeros(n, dtype=torch.float64)
    skew = torch.stack([zero, -w[:, 2], w[:, 1], w[:, 2], zero, -w[:, 0], -w[:, 1], w[:, 0], zero], 1)
    return torch.linalg.matrix_exp(skew.view(n, 3, 3))


def planted(seed: int, n: int = 12):
    """True poses before a camera, and learned ones that are the same up to a similarity (R_s, t_s, k)."""
    g = torch.Generator().manual_seed(seed)
    q, frame = rotations(n, g), rotations(1, g, 2.0)[0]
    u = torch.tensor([0.0, 0.0, 10.5]) + 0.2 * torch.randn(n, 3, generator=g, dtype=torch.float64)
    shift, k = 0.3 * torch.randn(3, generator=g, dtype=torch.float64), 0.5 + torch.rand(1, generator=g).item()
    learned = torch.cat([q @ frame, ((q @ shift + u) / k)[..., None]], dim=-1)
    return learned, torch.cat([q, u[..., None]], dim=-1), frame, k


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_a_similarity_between_the_frames_is_no_error(seed):
    learned, truth, frame, k = planted(seed)
    errors = pose_errors(learned, truth)
    assert errors.rotation.max() < 1e-5 and errors.translation.max() < 1e-8
    assert errors.scale == pytest.approx(k)
    torch.testing.assert_close(errors.frame, frame)


def test_planted_errors_are_measured():
    """Half of the frames turned by +a, half by -a about one axis: the best frame is in between, and a is left."""
    learned, truth, *_ = planted(0)
    angle = math.radians(10)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    learned[::2, :, :3] = learned[::2, :, :3] @ turn.double()
    learned[1::2, :, :3] = learned[1::2, :, :3] @ turn.double().T
    errors = pose_errors(learned, truth)
    torch.testing.assert_close(errors.rotation, torch.full((12,), 10.0, dtype=torch.float64), atol=1e-6, rtol=0)
    learned, truth, _, k = planted(0)
    learned[3, 0, 3] += 0.1 / k
    errors = pose_errors(learned, truth)
    assert 0.05 < errors.translation[3] < 0.1 and errors.translation[3] == errors.translation.max()
    assert errors.rotation.max() < 1e-5


def test_still_poses_of_a_moving_subject_leave_its_motion():
    g = torch.Generator().manual_seed(0)
    angles = torch.linspace(-30, 30, 61).double()
    c, s, zero, one = torch.cos(angles.deg2rad()), torch.sin(angles.deg2rad()), 0 * angles, 0 * angles + 1
    q = torch.stack([c, zero, s, zero, one, zero, -s, zero, c], 1).view(-1, 3, 3)
    truth = torch.cat([q, torch.tensor([0, 0, 10.5]).double().expand(61, 3)[..., None]], -1)
    still = rotations(1, g).expand(61, 3, 3)
    errors = pose_errors(torch.cat([still, truth[..., 3:]], -1), truth)
    torch.testing.assert_close(errors.rotation, angles.abs(), atol=1e-5, rtol=0)


def test_mirrored_motion_is_an_error():
    learned, truth, *_ = planted(0)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0])).double()
    learned[..., :3] = mirror @ learned[..., :3] @ mirror
    assert pose_errors(learned, truth).rotation.median() > 20


def test_nearest_rotation_has_no_reflection():
    r = nearest_rotation(torch.diag(torch.tensor([1.0, 1.0, -0.5])))
    assert torch.det(r).item() == pytest.approx(1)
    torch.testing.assert_close(
        nearest_rotation(2 * rotations(1, torch.Generator().manual_seed(0))[0]).det().item(), 1.0
    )


def test_small_angles_are_exact():
    a = rotations(1, torch.Generator().manual_seed(0))
    angle = 1e-7
    turn = torch.tensor([[1, -angle, 0], [angle, 1, 0], [0, 0, 1]]).double()
    assert rotation_angle(a @ turn, a).item() == pytest.approx(math.degrees(angle), rel=1e-3)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 60), kinds=st.integers(1, 6))
def test_adjusted_rand_index_is_scikit_learns(seed, n, kinds):
    metrics = pytest.importorskip("sklearn.metrics")
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randint(kinds, (n,), generator=g), torch.randint(4, (n,), generator=g)
    assert adjusted_rand_index(a, b) == pytest.approx(metrics.adjusted_rand_score(a.numpy(), b.numpy()), abs=1e-12)


def test_adjusted_rand_index_of_known_cases():
    a = torch.tensor([0, 0, 1, 1])
    assert adjusted_rand_index(a, 5 - a) == 1
    assert adjusted_rand_index(a, torch.zeros(4, dtype=torch.long)) == 0
    assert adjusted_rand_index(a, torch.tensor([0, 1, 0, 1])) == pytest.approx(-0.5)


def test_parts_are_matched_by_the_pixels_they_share():
    learned = torch.tensor([3, 3, 3, 1, 1, 0, 0])
    truth = torch.tensor([0, 0, 2, 2, 2, 2, 0])
    assert match_parts(learned, truth, 4) == [3, -1, 1, -1]


def test_silhouettes():
    a, b = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    a[:, :2], b[0, :2], b[1, 1:3] = 0.6, 1, 1
    assert silhouette_iou(a, b).tolist() == pytest.approx([1, 1 / 3])
    with pytest.raises(MetricError, match="image 0: neither silhouette has a pixel"):
        silhouette_iou(a * 0, b * 0)


def test_normals_are_compared_by_angle_where_both_are_shown():
    truth = torch.tensor([0.0, 0, 1]).expand(2, 2, 2, 3)
    normals = truth.clone()
    normals[0, 0, 0] = torch.tensor([0.0, 3, 0])  # 90 degrees, whatever its length
    normals[0, 1, 1] = torch.tensor([0.0, 0, -0.1])  # 180 degrees, but not shown
    normals[1] = torch.tensor([0.0, 1, 3**0.5])
    shown = torch.ones(2, 2, 2, dtype=torch.bool)
    shown[0, 1, 1] = False
    assert normal_error(normals, truth, shown).tolist() == pytest.approx([30, 30])
    assert normal_error(normals, truth, torch.zeros_like(shown)).isnan().all()
    with pytest.raises(MetricError, match="normals, truth and shown are"):
        normal_error(normals, truth, shown[:1])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 4, 4), (4, 4, 4)), r"expected \(n, 3, 4\) of each"),
        (((4, 3, 4), (5, 4, 4)), r"expected \(n, 3, 4\) of each"),
        (((1, 3, 4), (1, 4, 4)), "poses of one frame"),
    ],
)
def test_bad_poses_are_refused(shapes, message):
    with pytest.raises(MetricError, match=message):
        pose_errors(*(torch.zeros(shape) for shape in shapes))
