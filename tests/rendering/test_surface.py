"""Surfaces of volumes, and whether they look as the volumes do when they are rendered.

Marching cubes at a density is tested in `tests/evaluation/metrics/test_surfaces.py`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vader.rendering.cameras import sample_orbit, spread_orbit, turntable
from vader.rendering.rays import RenderingError, voxel_centres
from vader.rendering.render import render_views
from vader.rendering.surface import carved_surface, density_threshold, extract_surface, surface_colours
from vader.settings.experiment import DataConfig

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("skimage")

VIEW = DataConfig("anything", resolution=48)
SAMPLES = 64


def solid(inside: torch.Tensor, density: float, colour=(0.8, 0.5, 0.2)) -> torch.Tensor:
    """(4, S, S, S) of one density and colour where `inside` (S, S, S) is 1, and in proportion where it is less."""
    return torch.cat([density * inside[None].float(), torch.tensor(colour).view(3, 1, 1, 1).expand(3, *inside.shape)])


def grid(size: int) -> tuple[torch.Tensor, ...]:
    """x, y, z of the voxels, (S, S, S) each."""
    return tuple(voxel_centres(size).view(size, size, size, 3).unbind(-1))


def silhouettes(vertices: np.ndarray, faces: np.ndarray, cameras) -> torch.Tensor:
    """Which pixels (v, h, w) a ray through their centres hits a triangle in, by brute force."""
    seen = []
    for points in cameras.project(torch.from_numpy(vertices)):
        corners = points[torch.from_numpy(faces)]  # (f, 3, 2)
        hit = torch.zeros(cameras.height, cameras.width, dtype=torch.bool)
        low, high = corners.amin(1).floor().long().clamp_min(0), corners.amax(1).ceil().long()
        for triangle, (x0, y0), (x1, y1) in zip(corners.tolist(), low.tolist(), high.tolist(), strict=True):
            y, x = torch.meshgrid(torch.arange(y0, y1) + 0.5, torch.arange(x0, x1) + 0.5, indexing="ij")
            sides = [
                (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
                for a, b in zip(triangle, triangle[1:] + triangle[:1], strict=True)
            ]
            inside = torch.stack([s >= 0 for s in sides]).all(0) | torch.stack([s <= 0 for s in sides]).all(0)
            hit[y0:y1, x0:x1] |= inside[: cameras.height - y0, : cameras.width - x0]
        seen.append(hit)
    return torch.stack(seen)


def agreement(vertices: np.ndarray, faces: np.ndarray, volume: torch.Tensor, views: int = 2) -> float:
    """IoU of a mesh's silhouettes with those of the rendered volume, in random views."""
    cameras = sample_orbit(views, VIEW, torch.Generator().manual_seed(1))
    seen = render_views(volume[None], cameras, SAMPLES, normals=False)["occupancy"][0] > 0.5
    mesh = silhouettes(vertices, faces, cameras)
    return ((mesh & seen).sum() / (mesh | seen).sum()).item()


def test_the_carved_surface_of_an_opaque_ball_is_the_ball():
    x, y, z = grid(24)
    radius = (x**2 + y**2 + z**2).sqrt()
    vertices, faces = carved_surface(solid((4 - 5 * radius).clamp(0, 1), 200.0), VIEW, SAMPLES)
    assert np.abs(np.linalg.norm(vertices, axis=1) - 0.8).max() < 0.06  # half a voxel, and the views' own pixels
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.8**3, rel=0.15), "normals point outwards"


def test_where_density_is_low_and_parts_are_thin_the_carved_surface_looks_as_the_rendering_does():
    """A ball of mist on four thin legs: one density leaves no mist, another thickens the legs."""
    x, y, z = grid(24)
    mist = ((x**2 + (y - 0.3) ** 2 + z**2) < 0.2).float() * 3.0
    legs = ((x.abs() - 0.3).abs() < 0.045).float() * ((z.abs() - 0.3).abs() < 0.045) * (y < 0.1) * (y > -0.9) * 14.0
    density = torch.maximum(mist, legs)
    volume = solid(density, 1.0)
    carved = agreement(*carved_surface(volume, VIEW, SAMPLES), volume)
    level = density_threshold(24)
    others = [agreement(*extract_surface(volume[0], factor * level), volume) for factor in (0.25, 1.0)]
    assert carved > 0.9 and carved > max(others) + 0.05, (carved, others)


def test_axes_are_not_exchanged_or_mirrored():
    """One block at each axis, of its own length, on its positive side."""
    x, y, z = grid(20)
    arms = [(0.9, x, y, z), (0.7, y, z, x), (0.5, z, x, y)]
    inside = torch.stack([(a > 0) & (a < n) & (b.abs() < 0.2) & (c.abs() < 0.2) for n, a, b, c in arms]).any(0)
    vertices, _ = carved_surface(solid(inside, 300.0), VIEW, SAMPLES)
    np.testing.assert_allclose(vertices.max(0), [0.9, 0.7, 0.5], atol=0.12)
    np.testing.assert_allclose(vertices.min(0), [-0.2, -0.2, -0.2], atol=0.12)


def test_a_hollow_that_no_view_sees_into_stays_hollow():
    x, y, z = grid(24)
    radius = (x**2 + y**2 + z**2).sqrt()
    shell = solid((radius < 0.8) & (radius > 0.4), 200.0)
    mesh = trimesh.Trimesh(*carved_surface(shell, VIEW, SAMPLES), process=False)
    inner = min(mesh.split(only_watertight=True), key=lambda part: part.extents[0])
    assert mesh.body_count == 2 and inner.volume < 0 and inner.extents == pytest.approx(3 * [2 * 0.4], abs=0.05)


def test_an_empty_volume_and_a_transparent_one_have_no_surface():
    assert carved_surface(torch.zeros(4, 12, 12, 12), VIEW, SAMPLES) is None
    assert carved_surface(solid(torch.ones(12, 12, 12), 0.1), VIEW, SAMPLES) is None


def test_a_solid_that_fills_the_cube_is_closed():
    mesh = trimesh.Trimesh(*carved_surface(solid(torch.ones(8, 8, 8), 100.0), VIEW, SAMPLES), process=False)
    assert mesh.is_watertight and np.abs(mesh.vertices).max() == 1
    assert mesh.volume == pytest.approx(8, rel=0.1)


def test_a_volume_that_is_not_finite_has_no_surface_but_an_error():
    volume = solid(torch.ones(8, 8, 8), 100.0)
    volume[0, 3, 3, 3] = torch.nan
    with pytest.raises(RenderingError, match="NaN|not finite|finite"):
        carved_surface(volume, VIEW, SAMPLES)


def test_a_vertex_has_the_colour_that_is_seen_there():
    """A ball, red in front and blue behind, with green inside, which nobody sees."""
    x, y, z = grid(32)
    radius = (x**2 + y**2 + z**2).sqrt()
    volume = solid((6.4 - 8 * radius).clamp(0, 1), 300.0)
    volume[1:] = torch.stack([(z > 0).float(), torch.zeros_like(z), (z <= 0).float()])
    volume[1:, radius < 0.5] = torch.tensor([0.0, 1.0, 0.0])[:, None]
    volume[1:, radius > 0.9] = torch.tensor([0.0, 1.0, 0.0])[:, None]  # where there is no density
    vertices, faces = carved_surface(volume, VIEW, SAMPLES)
    colours = surface_colours(volume, vertices, trimesh.Trimesh(vertices, faces, process=False).vertex_normals)
    assert colours.shape == vertices.shape and colours.min() >= 0 and colours.max() <= 1
    front, back = vertices[:, 2] > 0.15, vertices[:, 2] < -0.15
    np.testing.assert_allclose(colours[front], np.tile([1.0, 0, 0], (front.sum(), 1)), atol=0.05)
    np.testing.assert_allclose(colours[back], np.tile([0, 0, 1.0], (back.sum(), 1)), atol=0.05)


def test_views_are_spread_evenly_over_where_cameras_are_drawn():
    drawn = sample_orbit(4000, VIEW, torch.Generator().manual_seed(0)).centres()
    spread = spread_orbit(400, VIEW, 32)
    assert (spread.height, spread.width, len(spread)) == (32, 32, 400)
    spread.validate("spread")
    centres = spread.centres()
    assert torch.allclose(centres.norm(dim=1), torch.full((400,), VIEW.camera_distance), atol=1e-4)
    assert torch.allclose(centres.mean(0), drawn.mean(0), atol=0.1)
    assert torch.allclose(centres.std(0), drawn.std(0), atol=0.1)
    nearest = torch.cdist(centres, centres).fill_diagonal_(9).amin(1)
    assert nearest.min() > 0.4 * nearest.mean(), "no two views coincide"


def test_a_turntable_goes_once_around():
    cameras = turntable(VIEW, [0.0, 90.0, 180.0, 270.0], 8)
    directions = cameras.centres() / VIEW.camera_distance
    up, out = math.sin(math.radians(20)), math.cos(math.radians(20))
    expected = [[0, up, out], [out, up, 0], [0, up, -out], [-out, up, 0]]
    assert torch.allclose(directions, torch.tensor(expected), atol=1e-5)
