"""Inverse skinning and the rendering of posed subjects, against the static renderer and loops written out."""

from __future__ import annotations

import math

import pytest
import torch

from vader.articulation import skinning
from vader.articulation.poses import PoseError, compose, invert, neutral, orbit
from vader.articulation.skinning import inverse_skinning, posed_views, render_posed
from vader.rendering.reference import render_rays_reference
from vader.rendering.render import render_views
from vader.settings.articulation import ArticulationConfig

SETTINGS = ArticulationConfig()


def rotation(angle: float, axis: str) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }
    return torch.tensor(rows[axis])


def pose(angle: float = 0.0, axis: str = "y", shift=(0.0, 0.0, 0.0)) -> torch.Tensor:
    return torch.cat([rotation(angle, axis), torch.tensor(shift)[:, None]], dim=1)


@pytest.fixture
def volume() -> torch.Tensor:
    """Two subjects of three parts: (2, 4 + 3, 7, 7, 7)."""
    values = torch.randn(2, 7, 7, 7, 7, generator=torch.Generator().manual_seed(0))
    values[:, 0] = values[:, 0].relu()
    return values


@pytest.fixture
def poses() -> torch.Tensor:
    """Three frames of each: (2, 3, 3, 3, 4)."""
    generator = torch.Generator().manual_seed(1)
    angles = torch.randn(2, 3, 3, generator=generator).tolist()
    shifts = (0.2 * torch.randn(2, 3, 3, 3, generator=generator)).tolist()
    return torch.stack(
        [
            torch.stack(
                [torch.stack([pose(angles[b][v][p], "xyz"[p], shifts[b][v][p]) for p in range(3)]) for v in range(3)]
            )
            for b in range(2)
        ]
    )


def trilinear(grid: torch.Tensor, point) -> torch.Tensor:
    """Values (c,) of a grid (c, z, y, x) over [-1, 1]^3 at one point (x, y, z), voxel by voxel; 0 outside."""
    size = grid.shape[-1]
    place = [(float(t) + 1) / 2 * (size - 1) for t in point]
    low = [math.floor(t) for t in place]
    total = torch.zeros(grid.shape[0])
    for corner in range(8):
        index, share = [], 1.0
        for axis in range(3):
            bit = corner >> axis & 1
            index.append(low[axis] + bit)
            part = place[axis] - low[axis]
            share *= part if bit else 1 - part
        if all(0 <= i < size for i in index):
            total += share * grid[:, index[2], index[1], index[0]]
    return total


def test_inverse_skinning_is_that_of_a_loop_over_points_and_parts(volume, poses):
    points = 0.8 * (2 * torch.rand(2, 3, 4, 3, generator=torch.Generator().manual_seed(2)) - 1)
    canonical, weights = inverse_skinning(volume, points, poses)
    for b in range(2):
        for v in range(3):
            for m in range(4):
                own = [poses[b, v, p, :, :3].T @ (points[b, v, m] - poses[b, v, p, :, 3]) for p in range(3)]
                logits = torch.stack([trilinear(volume[b, 4 + p : 5 + p], own[p])[0] for p in range(3)])
                share = logits.exp() / logits.exp().sum()
                torch.testing.assert_close(weights[b, :, v, m], share, atol=1e-5, rtol=0)
                expected = sum(share[p] * own[p] for p in range(3))
                torch.testing.assert_close(canonical[b, v, m], expected, atol=1e-5, rtol=0)


def test_equal_poses_move_points_rigidly_whatever_the_weights(volume):
    one = pose(0.7, "z", (0.1, -0.2, 0.3))
    x = torch.rand(2, 1, 5, 3) - 0.5
    posed = x @ one[:, :3].T + one[:, 3]
    back, _ = inverse_skinning(volume, posed, one.expand(2, 1, 3, 3, 4))
    torch.testing.assert_close(back, x, atol=1e-6, rtol=0)


def rays(resolution: int = 8, azimuths=(0.0,)):
    return [x[None] for x in orbit(SETTINGS, resolution, torch.tensor(azimuths)).rays()]


def test_the_neutral_pose_is_the_static_renderer(volume):
    origins, directions = rays(azimuths=(0.0, 40.0))
    seen = render_posed(volume, neutral(2, 2, 3), origins, directions, 12, stratified_seed=5, maps=True)
    flat = [x.expand(2, -1, -1, -1).flatten(1, 2) for x in (origins, directions)]
    # the same rays in the same order draw the same samples
    static = render_rays_reference(volume[:, :4], *flat, 12, stratified_seed=5)
    torch.testing.assert_close(seen.colour.flatten(1, 2), static.colour, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.occupancy.flatten(1, 2), static.occupancy, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.depth.flatten(1, 2), static.depth, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(seen.parts.sum(-1), seen.occupancy)


def test_one_part_is_the_static_renderer_with_the_camera_moved_instead(volume):
    inner = volume[:, :5].clone()  # empty towards its faces, so that the turned cube is cut by neither
    mask = torch.zeros(7, 7, 7)
    mask[2:5, 2:5, 2:5] = 1
    inner[:, 0] *= 20 * mask
    turn = pose(0.6, "y", (0.05, 0.1, -0.1))
    camera = orbit(SETTINGS, 12, torch.tensor([0.0]))
    moved = type(camera)(compose(camera.world_to_camera, turn[None]), camera.intrinsics, 12, 12)
    posed = posed_views(inner, turn.expand(2, 1, 1, 3, 4), camera, 400)
    static = render_views(inner[:, :4], moved, 400, stop=0.0, backend="reference")
    for name in ("colour", "occupancy"):
        torch.testing.assert_close(posed[name], static[name], atol=0.01, rtol=0)
    assert static["occupancy"].max() > 0.5
    turned = static["normals"] @ turn[:, :3].T  # those of the static renderer are in canonical axes
    torch.testing.assert_close(posed["normals"], turned, atol=0.02, rtol=0)


def test_parts_are_carried_where_their_poses_say():
    """A left and a right ball; the right one's part moves up, and only that ball is seen to move."""
    size = 33
    axis = torch.linspace(-1, 1, size)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    ball = lambda cx: (((x - cx) ** 2 + y**2 + z**2) < 0.2**2).float()  # noqa: E731
    volume = torch.zeros(1, 6, size, size, size)
    volume[0, 0] = 50 * (ball(-0.4) + ball(0.4))
    volume[0, 1] = 1
    volume[0, 4], volume[0, 5] = 40 * (x < 0), 40 * (x >= 0)
    poses = torch.stack([pose(), pose(shift=(0.0, 0.3, 0.0))])[None, None]
    seen = posed_views(volume, poses, orbit(SETTINGS, 32, torch.tensor([0.0])), 48)
    left, right = seen["occupancy"][0, 0, :, :16], seen["occupancy"][0, 0, :, 16:]
    rows = torch.arange(32) + 0.5
    centre = [(half.sum(1) * rows).sum() / half.sum() for half in (left, right)]
    assert abs(centre[0] - 16) < 0.5
    pixels = 0.3 / (2 * SETTINGS.distance * math.tan(SETTINGS.field_of_view / 2)) * 32
    assert abs(centre[0] - centre[1] - pixels) < 0.6  # up is towards row 0
    label = seen["parts"][0, 0].argmax(-1)
    assert (label[:, :16][left > 0.9] == 0).all() and (label[:, 16:][right > 0.9] == 1).all()
    assert seen["normals"][0, 0, 15:17, 9:11, 2].mean() > 0.5  # towards the camera, along +z


def test_chunks_change_nothing_but_the_samples_that_are_drawn(volume, poses, monkeypatch):
    origins, directions = rays()
    results = []
    for at_once in (2**24, 2 * 3 * 3 * 10 * 7):  # everything; 7 rays of 64
        monkeypatch.setattr(skinning, "LOOKUPS_AT_ONCE", at_once)
        leaves = [volume.clone().requires_grad_(), poses.clone().requires_grad_()]
        seen = render_posed(*leaves, origins, directions, 10, maps=True)
        (seen.colour.square().sum() + seen.parts.sum() + seen.depth.sum()).backward()
        results.append([seen.colour, seen.normals, seen.parts, seen.part_density, *(x.grad for x in leaves)])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parts", [1, 3])
def test_leaving_out_empty_samples_changes_neither_pictures_nor_gradients(volume, poses, parts):
    volume, poses = volume[:, : 4 + parts].clone(), poses[:, :, :parts]
    inside = torch.zeros_like(volume[:, :1])
    inside[:, :, 1:3, 1:4, 2:4] = 1
    volume[:, :1] *= inside
    origins, directions = rays()
    results = []
    for maps in (False, True):  # with them all samples are computed
        leaves = [volume.clone().requires_grad_(), poses.clone().requires_grad_()]
        seen = render_posed(*leaves, origins, directions, 10, maps=maps)
        loss = seen.colour.square().sum() + seen.occupancy.sum() + seen.depth.sum()
        loss.backward()
        results.append([seen.colour, seen.occupancy, seen.depth, seen.part_density, leaves[1].grad])
        # what draws a density of 0 to more differs, but relu lets none of it through
        results[-1].append(leaves[0].grad * (volume[:, :1] > 0))
    kept = skinning._dense_samples(volume, origins.expand(2, poses.shape[1], -1, -1) + 10 * directions, poses)
    assert kept is not None and 0 < kept.counts.sum() < kept.counts.numel()
    assert seen.occupancy.max() > 0.1
    for sparse, dense in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)


def test_gradients_of_poses_and_volume_are_those_of_finite_differences(volume, poses):
    origins, directions = (x[:, :, ::9].double() for x in rays())
    volume, poses = volume[:1].double(), poses[:1, :1].double()

    def loss(volume, poses):
        seen = render_posed(volume, poses, origins, directions, 6)
        return seen.colour.square().sum() + seen.occupancy.sum()

    leaves = volume.clone().requires_grad_(), poses.clone().requires_grad_()
    loss(*leaves).backward()
    generator = torch.Generator().manual_seed(3)
    for leaf, which in zip(leaves, (0, 1), strict=True):
        direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        step = 1e-6
        shifted = [[volume, poses], [volume, poses]]
        shifted[0][which] = shifted[0][which] + step * direction
        shifted[1][which] = shifted[1][which] - step * direction
        difference = (loss(*shifted[0]) - loss(*shifted[1])) / (2 * step)
        assert abs(difference - (leaf.grad * direction).sum()) < 1e-4 * abs(difference) + 1e-6


def test_part_density_is_the_mean_of_what_the_parts_hold():
    volume = torch.zeros(1, 6, 4, 4, 4)
    volume[:, 0], volume[:, 4] = 2.0, math.log(3)  # weights 3/4 and 1/4 everywhere
    seen = render_posed(volume, neutral(1, 1, 2), *rays(4), 5)
    torch.testing.assert_close(seen.part_density, torch.tensor([1.5, 0.5]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, p: (v, p[:, :, :2]), "poses are of 2 parts, expected the 3 that the volume has"),
        (lambda v, p: (v[:1], p), "poses are of 2 subjects, expected one set for each of 1 volumes"),
        (lambda v, p: (v, p[..., :3]), "expected .* and \\(b, v, p, 3, 4\\)"),
    ],
)
def test_what_does_not_fit_is_said(volume, poses, change, message):
    with pytest.raises(PoseError, match=message):
        render_posed(*change(volume, poses), *rays(), 4)


def test_as_many_cameras_as_frames(volume, poses):
    with pytest.raises(PoseError, match="cameras are 2, expected 1 or one for each of the 3 frames"):
        posed_views(volume, poses, orbit(SETTINGS, 4, torch.tensor([0.0, 10.0])), 4)


def test_inverse_of_a_pose():
    one = pose(0.4, "x", (0.1, 0.2, 0.3))
    torch.testing.assert_close(compose(invert(one), one), neutral(), atol=1e-6, rtol=0)
