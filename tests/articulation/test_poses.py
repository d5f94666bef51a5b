"""Poses from keypoints: exact where the problem is, guarded where the solver breaks."""

from __future__ import annotations

import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from vader.articulation import poses as poses_module
from vader.articulation.keypoints import CanonicalKeypoints
from vader.articulation.poses import (
    MAX_GAIN,
    PoseError,
    compose,
    fixed_camera,
    invert,
    neutral,
    orbit,
    project,
    random_affine,
    solve_poses,
    transform,
    unwarp_points,
    warp_images,
    warp_points,
)
from vader.settings.articulation import ArticulationConfig

pytest.importorskip("pytorch3d")

SETTINGS = ArticulationConfig(keypoints_per_axis=3)
CAMERA = fixed_camera(SETTINGS, 64)
PROBLEMS = 10_000  # random and adversarial ones, on which the guard is tried


def random_poses(m: int, generator: torch.Generator, angle: float = 1.0) -> torch.Tensor:
    """Rotations by about `angle` radians and small shifts, (m, 3, 4)."""
    w = angle * torch.randn(m, 3, generator=generator)
    zero = torch.zeros(m)
    skew = torch.stack([zero, -w[:, 2], w[:, 1], w[:, 2], zero, -w[:, 0], -w[:, 1], w[:, 0], zero], 1).view(m, 3, 3)
    return torch.cat([torch.linalg.matrix_exp(skew), 0.1 * torch.randn(m, 3, 1, generator=generator)], dim=-1)


def keypoints(m: int, generator: torch.Generator) -> torch.Tensor:
    grid = CanonicalKeypoints(SETTINGS, 1)().detach()
    return grid + 0.05 * torch.randn(m, SETTINGS.keypoints, 3, generator=generator)


def angle_between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Degrees (m,), precise for small ones."""
    chord = (a[..., :3] - b[..., :3]).double().flatten(1).norm(dim=1)
    return torch.rad2deg(2 * torch.asin((chord / 8**0.5).clamp(max=1)))


def backward(x, y, weights=None, generator=None):
    """Poses, guard, and the gradients of x and y per problem as multiples of that of the pose."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    poses, guard = solve_poses(x, y, CAMERA, weights)
    incoming = torch.randn(poses.shape, generator=generator or torch.Generator().manual_seed(0))
    (poses * incoming).sum().backward()
    norm = incoming.flatten(1).norm(dim=1)
    return poses.detach(), guard, x.grad.flatten(1).norm(dim=1) / norm, y.grad.flatten(1).norm(dim=1) / norm


# ------------------------------------------------------------------------------------------------- conventions


def test_fixed_camera_sees_the_cube_as_uva_does():
    depth = transform(CAMERA.world_to_camera, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]))[0, :, 2]
    assert (depth * SETTINGS.margin).tolist() == pytest.approx([10.5 - 1.075, 10.5 + 1.075], abs=1e-4)
    point = torch.tensor([[[0.3, 0.2, 0.1]]])
    at = project(neutral(1), point, CAMERA)[0, 0]
    pixels = CAMERA.project(point[0])[0, 0]
    torch.testing.assert_close(at, 2 * pixels / 64 - 1, atol=1e-5, rtol=0)
    assert at[0] > 0 and at[1] < 0  # right, and up, where y is negative
    # 11.5 tan(0.175 / 2) = 1.009 at the far end of the cube
    edge = project(neutral(1), torch.tensor([[[1.0091 / 1.075, 0.0, -1 / 1.075]]]), CAMERA)
    assert edge[0, 0, 0].item() == pytest.approx(1.0, abs=1e-3)


def test_orbit_starts_at_the_fixed_camera_and_turns_to_the_right():
    cameras = orbit(SETTINGS, 64, torch.tensor([0.0, 90.0]))
    torch.testing.assert_close(cameras.world_to_camera[:1], CAMERA.world_to_camera)
    torch.testing.assert_close(cameras.centres()[1], torch.tensor([SETTINGS.distance, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_composition_and_inverse():
    a, b = random_poses(5, torch.Generator().manual_seed(0)), random_poses(5, torch.Generator().manual_seed(1))
    x = torch.randn(5, 7, 3)
    torch.testing.assert_close(transform(compose(a, b), x), transform(a, transform(b, x)))
    torch.testing.assert_close(transform(invert(a), transform(a, x)), x)


# -------------------------------------------------------------------------------------------------- the solver


def test_exact_keypoints_give_the_pose_back():
    generator = torch.Generator().manual_seed(0)
    x, truth = keypoints(50, generator).double(), random_poses(50, generator).double()
    poses, guard = solve_poses(x, project(truth, x, CAMERA), CAMERA)
    assert angle_between(poses, truth).max() < 1e-3  # degrees
    torch.testing.assert_close(poses[:, :, 3], truth[:, :, 3], atol=1e-4, rtol=0)
    assert (guard.refused, guard.not_finite, guard.clipped) == (0, 0, 0)
    weighted, _ = solve_poses(x, project(truth, x, CAMERA), CAMERA, torch.rand(50, 27, generator=generator) + 0.1)
    assert angle_between(weighted, truth).max() < 1e-3


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), noise=st.sampled_from([1e-3, 3e-3]))
def test_noise_on_keypoints_moves_the_pose_by_as_little(seed, noise):
    generator = torch.Generator().manual_seed(seed)
    x, truth = keypoints(2, generator), random_poses(2, generator)
    seen = project(truth, x, CAMERA)
    poses, _ = solve_poses(x, seen + noise * torch.randn(seen.shape, generator=generator), CAMERA)
    assert (angle_between(poses, truth) < 500 * noise).all()  # 27 points, half a unit apart


def test_a_weight_of_zero_takes_a_point_out():
    generator = torch.Generator().manual_seed(0)
    x, truth = keypoints(4, generator), random_poses(4, generator)
    seen = project(truth, x, CAMERA)
    seen[:, 3] += 0.5
    weights = torch.ones(4, 27)
    weights[:, 3] = 0
    assert angle_between(solve_poses(x, seen, CAMERA)[0], truth).min() > 0.5
    assert angle_between(solve_poses(x, seen, CAMERA, weights)[0], truth).max() < 0.05


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    x = keypoints(6, generator).double()
    y = project(random_poses(6, generator).double(), x, CAMERA)
    y = y + 0.01 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    incoming = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64)
    leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
    poses, guard = solve_poses(*leaves, CAMERA)
    (poses * incoming).sum().backward()
    free = [i for i in range(6) if i not in guard._scaled.nonzero().flatten().tolist()]
    assert len(free) >= 4 and guard.not_finite == 0
    for which in (0, 1):
        direction = torch.randn(leaves[which].shape, generator=generator, dtype=torch.float64)
        if which == 0:  # the solver's control points follow the mean of the 3D points, and are held fixed in backward
            direction = direction - direction.mean(1, keepdim=True)
        step, values = 1e-6, []
        for sign in (1, -1):
            moved = [x, y]
            moved[which] = moved[which] + sign * step * direction
            values.append((solve_poses(*moved, CAMERA)[0] * incoming).sum((1, 2)))
        difference = ((values[0] - values[1]) / (2 * step))[free]
        exact = (leaves[which].grad * direction).sum((1, 2))[free]
        torch.testing.assert_close(exact, difference, rtol=1e-3, atol=1e-5)


# --------------------------------------------------------------------------------------------------- the guard


def cases(m: int) -> dict[str, tuple[torch.Tensor, ...]]:
    """Random and adversarial keypoints: name -> x (m, k, 3), y (m, k, 2) and perhaps weights (m, k)."""
    g = torch.Generator().manual_seed(0)
    x = keypoints(m, g)
    y = project(random_poses(m, g), x, CAMERA)
    mean = y.mean(1, keepdim=True)
    flat, tilted, near_flat, line = x.clone(), x.clone(), x.clone(), x.clone()
    flat[..., 2] = 0
    tilted[..., 2] = 0.3 * tilted[..., 0] - 0.2 * tilted[..., 1]
    near_flat[..., 2] *= 0.02
    line[..., 1:] = 0
    noise = torch.randn(y.shape, generator=g)
    grid = CanonicalKeypoints(SETTINGS, 1)().detach().expand(m, -1, -1)
    broken = y.clone()
    broken[::3, 5, 0] = float("nan")
    broken[1::3, 2, 1] = float("inf")
    return {
        "good": (x, y + 0.01 * noise),
        "noisy": (x, y + 0.1 * noise),
        "unrelated": (x, 2 * torch.rand(y.shape, generator=g) - 1),
        "corners of the image": (x, noise.sign()),
        "mirrored": (x, -y),
        "shuffled": (x, y[:, torch.randperm(y.shape[1], generator=g)]),
        "on a line of the image": (x, y * torch.tensor([1.0, 0.0])),
        "collapsed to 1e-2": (x, mean + 1e-2 * (y - mean)),
        "collapsed to 1e-3": (x, mean + 1e-3 * (y - mean)),
        "noise of 1e-3": (x, 1e-3 * noise),
        "collapsed to 1e-6": (x, mean + 1e-6 * (y - mean)),
        "all equal": (x, mean.expand_as(y)),
        "exact grid": (grid, project(neutral(m), grid, CAMERA)),
        "grid without perspective": (grid, grid[..., :2] * torch.tensor([1.0, -1.0])),
        "planar": (flat, y),
        "tilted plane": (tilted, y),
        "nearly planar": (near_flat, y),
        "3D points on a line": (line, y),
        "3D points equal": (x[:, :1].expand_as(x), y),
        "four points": (x[:, :4], y[:, :4]),
        "random weights": (x, y, torch.rand(m, x.shape[1], generator=g)),
        "few weights": (x, y, (torch.rand(m, x.shape[1], generator=g) > 0.8).float()),
        "all-zero weights": (x, y, torch.zeros(m, x.shape[1])),
        "NaN and infinity": (x, broken),
    }


@pytest.mark.parametrize("name", list(cases(1)))
def test_guard_on_random_and_adversarial_problems(name):
    m = -(-PROBLEMS // len(cases(1)))
    x, y, *weights = cases(m)[name]
    poses, guard, of_x, of_y = backward(x, y, *weights)
    assert torch.isfinite(poses).all()
    assert torch.isfinite(of_x).all() and torch.isfinite(of_y).all()
    assert max(of_x.max(), of_y.max()) <= MAX_GAIN * 1.001
    rotation = poses[..., :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation), atol=1e-4, rtol=0)
    refused = {"collapsed to 1e-6", "all equal", "planar", "tilted plane", "3D points on a line", "3D points equal"}
    if name in refused | {"all-zero weights"}:
        assert guard.refused == m
        torch.testing.assert_close(poses, neutral(m))
        assert of_x.max() == of_y.max() == 0
    if name in ("good", "exact grid", "random weights", "mirrored"):
        assert guard.refused == guard.not_finite == 0
        assert of_y.min() > 0
    if name == "NaN and infinity":
        assert guard.refused == len(range(0, m, 3)) + len(range(1, m, 3))
    print(f"{name}: {m} problems, {guard.refused} refused, {guard.not_finite} not finite, {guard.clipped} clipped")


def test_the_bare_solver_breaks_where_the_guard_does_not():
    """What the guard is for: the same problems, handed to PyTorch3D as they are."""
    from pytorch3d.ops import efficient_pnp

    broken = {}
    for name in ("collapsed to 1e-3", "all equal", "all-zero weights"):
        x, y, *weights = cases(40)[name]
        y = y.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = efficient_pnp(x, y, *weights)
        (solution.R.sum() + solution.T.sum()).backward()
        size = y.grad.flatten(1).norm(dim=1)
        broken[name] = int((~torch.isfinite(size) | (size > 1e6)).sum())
    assert all(count > 0 for count in broken.values()), broken


def test_one_broken_problem_leaves_the_others_as_they_are():
    x, y, *_ = cases(6)["good"]
    _, _, _, alone = backward(x, y)
    mixed = y.clone()
    mixed[2] = 0
    poses, guard, of_x, of_y = backward(x, mixed)
    assert guard.refused == 1 and of_y[2] == 0 == of_x[2]
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(of_y[others], alone[others])
    torch.testing.assert_close(poses[others], solve_poses(x, y, CAMERA)[0][others])


def test_gradients_that_are_not_finite_are_dropped_and_counted(monkeypatch):
    solver = poses_module._efficient_pnp

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.clone()
            gradient[1] = float("nan")
            gradient[3] *= 1e6
            return gradient

    monkeypatch.setattr(poses_module, "_efficient_pnp", lambda x, y, w: solver(x, Spoil.apply(y), w))
    _, guard, of_x, of_y = backward(*cases(5)["good"])
    assert (guard.refused, guard.not_finite, guard.clipped) == (0, 1, 1)
    assert of_y[1] == 0 and of_x[1] > 0  # 3D points had a finite gradient
    assert of_y[3].item() == pytest.approx(MAX_GAIN, rel=1e-3)
    shares = {name: value.item() for name, value in guard.shares().items()}
    assert shares == pytest.approx({"pnp_refused": 0.0, "pnp_not_finite": 0.2, "pnp_clipped": 0.2})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 5, 3), (2, 4, 2)), r"points3d \(2, 5, 3\) and points2d \(2, 4, 2\)"),
        (((2, 3, 3), (2, 3, 2)), "3 keypoints a part, expected at least 4"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(PoseError, match=message):
        solve_poses(*(torch.zeros(shape) for shape in shapes), CAMERA)


def test_weights_of_another_shape_are_refused():
    with pytest.raises(PoseError, match=r"weights have shape \(2, 4\), expected \(2, 5\)"):
        solve_poses(torch.zeros(2, 5, 3), torch.zeros(2, 5, 2), CAMERA, torch.zeros(2, 4))


# -------------------------------------------------------------------------------------------------- affine maps


def test_warped_image_shows_at_u_what_the_image_shows_at_its_map():
    """A bright pixel near A u is seen at u: points found in the warped image, mapped by A, are those of the image."""
    axis = (2 * torch.arange(64) + 1) / 64 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    at = torch.tensor([0.3, -0.2])
    image = torch.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 0.08**2))[None, ..., None].expand(3, -1, -1, 3)
    maps = random_affine(3, 0.1, torch.Generator().manual_seed(0))
    seen = warp_images(maps, image)[..., 0]
    centre = torch.stack([(seen * t).sum((1, 2)) / seen.sum((1, 2)) for t in (x, y)], dim=-1)
    assert (centre - at).norm(dim=1).min() > 0.01
    torch.testing.assert_close(warp_points(maps, centre[:, None])[:, 0], at.expand(3, 2), atol=5e-3, rtol=0)
    torch.testing.assert_close(unwarp_points(maps, at.expand(3, 1, 2))[:, 0], centre, atol=5e-3, rtol=0)
