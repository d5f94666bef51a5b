"""Poses of parts in least squares: the minimum that scipy finds, its gradient, and no harm by degenerate keypoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from vader.articulation.pose_model import PoseModel
from vader.articulation.poses import (
    MAX_GAIN,
    PoseError,
    compose,
    fixed_camera,
    neutral,
    project,
    rotation_matrices,
    solve_poses,
    transform,
)
from vader.articulation.refinement import at_distance, refine_poses
from vader.settings.articulation import ArticulationConfig
from vader.settings.profiles import experiment

from .test_poses import PROBLEMS, angle_between, backward, cases, keypoints, random_poses

CAMERA = fixed_camera(ArticulationConfig(), 64)
STEPS = 8


def turned_about(middle: torch.Tensor, vectors: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Poses (m, 3, 4) that turn about `middle` (m, 3) and move it by `shift` (m, 3)."""
    rotation = rotation_matrices(vectors)
    return torch.cat([rotation, (middle + shift)[..., None] - rotation @ middle[..., None]], dim=-1)


def local_problem(m: int, extent: float, generator: torch.Generator):
    """Keypoints around some place, the poses that they are in, which do not move their centroid towards the camera."""
    x = extent * keypoints(m, generator).double() + 0.3 * torch.randn(m, 1, 3, generator=generator).double()
    vectors = 0.4 * torch.randn(m, 3, generator=generator).double()
    shift = 0.2 * torch.randn(m, 3, generator=generator).double() * torch.tensor([1.0, 1.0, 0.0])
    return x, turned_about(x.mean(1), vectors, shift)


def test_exact_keypoints_give_the_pose_back():
    generator = torch.Generator().manual_seed(0)
    x, truth = local_problem(50, 0.5, generator)
    poses, guard = refine_poses(x, project(truth, x, CAMERA), CAMERA, neutral(50), STEPS)
    assert angle_between(poses, truth).max() < 1e-4
    torch.testing.assert_close(poses, truth, atol=1e-6, rtol=0)
    assert (guard.refused, guard.not_finite, guard.clipped) == (0, 0, 0)


def test_noisy_keypoints_give_the_minimum_that_scipy_finds():
    generator = torch.Generator().manual_seed(1)
    x, truth = local_problem(5, 0.5, generator)
    y = project(truth, x, CAMERA)
    y = y + 0.02 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    poses, _ = refine_poses(x, y, CAMERA, neutral(5), STEPS)
    for points, seen, pose in zip(x, y, poses, strict=True):
        middle = points.mean(0)

        def errors(p, points=points, seen=seen, middle=middle):
            rotation = torch.tensor(Rotation.from_rotvec(p[:3]).as_matrix())
            shift = middle + torch.tensor([*p[3:], 0.0]) - rotation @ middle
            return (project(torch.cat([rotation, shift[:, None]], 1), points, CAMERA) - seen).flatten().numpy()

        best = least_squares(errors, np.zeros(5), xtol=1e-12, ftol=1e-12)
        expected = torch.tensor(Rotation.from_rotvec(best.x[:3]).as_matrix())
        torch.testing.assert_close(pose[:, :3], expected, atol=1e-4, rtol=0)
        at = transform(pose, middle[None])[0]
        assert at.tolist() == pytest.approx((middle + torch.tensor([*best.x[3:], 0.0])).tolist(), abs=1e-4)


def test_keypoints_around_a_limb_say_more_than_epnp_reads_from_them():
    generator = torch.Generator().manual_seed(2)
    x, truth = local_problem(200, 0.45, generator)
    y = project(truth, x, CAMERA)
    y = y + 0.03 * torch.randn(y.shape, generator=generator, dtype=torch.float64)  # a pixel of 64
    refined, epnp = refine_poses(x, y, CAMERA, neutral(200), STEPS)[0], solve_poses(x, y, CAMERA)[0]
    error, of_epnp = angle_between(refined, truth).median(), angle_between(epnp, truth).median()
    assert error < 4 and of_epnp > 2 * error


def test_gradients_are_those_of_the_minimum():
    """Finite differences of poses after many steps, against the gradient of the last one."""
    generator = torch.Generator().manual_seed(3)
    x, truth = local_problem(6, 0.6, generator)
    y = project(truth, x, CAMERA)
    y = y + 1e-3 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    incoming = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    leaf = y.clone().requires_grad_()
    poses, guard = refine_poses(x, leaf, CAMERA, neutral(6), STEPS)
    (poses * incoming).sum().backward()
    assert guard.clipped == guard.not_finite == 0
    direction, step = torch.randn(y.shape, generator=generator, dtype=torch.float64), 1e-5
    ends = [refine_poses(x, y + s * step * direction, CAMERA, neutral(6), 20)[0] for s in (1, -1)]
    difference = ((ends[0] - ends[1]) * incoming).sum((1, 2)) / (2 * step)
    torch.testing.assert_close((leaf.grad * direction).sum((1, 2)), difference, rtol=0.02, atol=1e-3)


def test_keypoints_of_the_canonical_cube_get_a_gradient_too():
    generator = torch.Generator().manual_seed(4)
    x, truth = local_problem(4, 0.6, generator)
    y = project(truth, x, CAMERA)
    leaf = x.clone().requires_grad_()
    poses, _ = refine_poses(leaf, y, CAMERA, neutral(4), STEPS)
    (poses[..., :3] ** 3).sum().backward()
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    direction = direction - direction.mean(1, keepdim=True)  # the place that parts turn about is held fixed in backward
    step = 1e-5
    ends = [refine_poses(x + s * step * direction, y, CAMERA, neutral(4), 20)[0] for s in (1, -1)]
    difference = (ends[0][..., :3] ** 3 - ends[1][..., :3] ** 3).sum((1, 2)) / (2 * step)
    torch.testing.assert_close((leaf.grad * direction).sum((1, 2)), difference, rtol=0.02, atol=1e-3)


UNWEIGHTED = [name for name, case in cases(1).items() if len(case) == 2]


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_guard_on_random_and_adversarial_problems(name):
    m = -(-PROBLEMS // len(UNWEIGHTED))
    x, y = (t.clone().requires_grad_() for t in cases(m)[name])
    start = random_poses(m, torch.Generator().manual_seed(5))
    poses, guard = refine_poses(x, y, CAMERA, start, STEPS)
    incoming = torch.randn(poses.shape, generator=torch.Generator().manual_seed(0))
    (poses * incoming).sum().backward()
    norm = incoming.flatten(1).norm(dim=1)
    of_x, of_y = (t.grad.flatten(1).norm(dim=1) / norm for t in (x, y))
    assert torch.isfinite(poses).all()
    assert torch.isfinite(of_x).all() and torch.isfinite(of_y).all()
    assert max(of_x.max(), of_y.max()) <= MAX_GAIN * 1.001
    rotation = poses.detach()[..., :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-4, rtol=0)
    _, by_epnp, *_ = backward(x.detach(), y.detach())
    assert guard.refused == by_epnp.refused, "both refuse the same problems"
    if guard.refused == m:
        torch.testing.assert_close(poses.detach(), start)
        assert of_x.max() == of_y.max() == 0
    print(f"{name}: {m} problems, {guard.refused} refused, {guard.not_finite} not finite, {guard.clipped} clipped")


def test_at_distance_moves_along_the_ray_of_the_origin():
    poses = random_poses(6, torch.Generator().manual_seed(6), angle=0.3)
    moved = at_distance(poses, CAMERA)
    origin = torch.zeros(6, 1, 3)
    torch.testing.assert_close(project(moved, origin, CAMERA), project(poses, origin, CAMERA))
    assert transform(moved, origin)[..., 2].abs().max() < 1e-5 < poses[:, 2, 3].abs().min()
    torch.testing.assert_close(moved[..., :3], poses[..., :3])


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_pose_model_reads_turned_limbs_from_keypoints_near_them(monkeypatch, noise):
    """Keypoints as a good predictor would have them: the whole subject is turned, its parts against it."""
    config = experiment("laptop", "puppets")
    generator = torch.Generator().manual_seed(7)
    refined, epnp = (PoseModel(config.replace(articulation=dict(refine_steps=n))).eval() for n in (6, 0))
    centres = 0.3 * torch.randn(10, 3, generator=generator).clamp(-1, 1)
    for model in (refined, epnp):
        model.keypoints.gather_around(centres, 0.4)
    root = rotation_matrices(0.5 * torch.randn(3, 1, 3, generator=generator))
    root = torch.cat([root, torch.zeros(3, 1, 3, 1)], dim=-1)
    middle = refined.keypoints().mean(1).detach()
    own = turned_about(middle, 0.3 * torch.randn(3, 10, 3, generator=generator), torch.zeros(3, 10, 3))
    truth = compose(root.expand(3, 10, 3, 4), own)
    seen = refined.project(truth).detach()
    seen = seen + noise * torch.randn(seen.shape, generator=generator)  # 0.02 is two thirds of a pixel of 64
    errors = {}
    for name, model in (("refined", refined), ("epnp", epnp)):
        monkeypatch.setattr(model.predictor, "forward", lambda images: seen)
        found = model(torch.zeros(3, 64, 64, 3))
        assert found.guard.refused == 0
        errors[name] = angle_between(found.poses.flatten(0, 1), truth.flatten(0, 1)).median().item()
        if name == "refined":
            at, expected = (project(p, middle[:, None], CAMERA) for p in (found.poses, truth))
            torch.testing.assert_close(at, expected, atol=5e-3 + noise, rtol=0)
            depth = transform(found.poses, middle[:, None])[..., 0, 2] - transform(truth, middle[:, None])[..., 0, 2]
            assert depth.abs().max() < 0.1, "parts are as deep as the whole subject has them"
    assert errors["refined"] < 2 + 200 * noise
    assert not noise or errors["epnp"] > 2 * errors["refined"]


def test_keypoints_are_gathered_within_the_visible_cube():
    keypoints3d = PoseModel(experiment("laptop", "puppets")).keypoints
    before = keypoints3d().detach().clone()
    centres = torch.tensor([[0.2, -0.3, 0.1]]).repeat(10, 1)
    centres[3] = 2.0  # outside
    keypoints3d.gather_around(centres, 0.5)
    expected = centres[0] + 0.5 * before[0]
    torch.testing.assert_close(keypoints3d()[0].detach(), expected, atol=1e-5, rtol=0)
    assert keypoints3d()[3].abs().max() < keypoints3d.extent and torch.isfinite(keypoints3d.raw).all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(PoseError, match=r"points3d \(2, 5, 3\) and points2d \(2, 4, 2\)"):
        refine_poses(torch.zeros(2, 5, 3), torch.zeros(2, 4, 2), CAMERA, neutral(2), 1)
