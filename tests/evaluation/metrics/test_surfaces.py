"""Surfaces of densities whose iso-surface is known, and what becomes of those that have none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vader.evaluation.metrics import MetricError, surfaces

pytest.importorskip("skimage")


def grid(d: int, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, y, z of the voxel centres, each (d, h, w)."""
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (d, h, w)), indexing="ij")
    return x, y, z


def ellipsoid(radii: tuple[float, float, float], centre=(0.0, 0.0, 0.0), size=(40, 40, 40)) -> torch.Tensor:
    """Density that falls linearly through the threshold on an ellipsoid with `radii` along x, y, z."""
    scaled = [(p - c) / r for p, c, r in zip(grid(*size), centre, radii, strict=True)]
    level = surfaces.density_threshold(size[-1])
    return (level * (2 - torch.stack(scaled).square().sum(0).sqrt())).clamp_min(0)


def test_threshold_halves_light_in_a_voxel():
    assert math.exp(-surfaces.density_threshold(64) * 2 / 63) == pytest.approx(0.5)
    assert surfaces.density_threshold(64) == pytest.approx(22, abs=0.2)
    assert surfaces.SWEEP == (0.5, 1.0, 2.0)


@pytest.mark.parametrize("size", [(40, 40, 40), (24, 32, 40)])
def test_ellipsoid_in_canonical_coordinates(size):
    """Axes in the right order, in place, to the right size, normals outwards; also for volumes that are no cubes."""
    radii, centre = (0.8, 0.5, 0.3), (0.1, -0.2, 0.4)
    vertices, faces = surfaces.extract_surface(ellipsoid(radii, centre, size))
    scaled = np.linalg.norm((vertices - centre) / radii, axis=1)
    assert np.abs(scaled - 1).max() < 0.02
    np.testing.assert_allclose(vertices.max(0), np.add(centre, radii), atol=0.02)
    np.testing.assert_allclose(vertices.min(0), np.subtract(centre, radii), atol=0.02)
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    volume = (np.cross(a, b) * c).sum() / 6
    assert volume == pytest.approx(4 / 3 * math.pi * np.prod(radii), rel=0.03)


def test_threshold_moves_the_surface():
    density = ellipsoid((0.6, 0.6, 0.6))
    level = surfaces.density_threshold(40)
    for factor, radius in ((0.5, 0.9), (1.0, 0.6), (1.5, 0.3)):  # density = level * (2 - r / 0.6)
        vertices, _ = surfaces.extract_surface(density, factor * level)
        np.testing.assert_allclose(np.linalg.norm(vertices, axis=1), radius, atol=0.02)


def test_solids_are_closed_at_the_cube():
    """Density everywhere above the threshold: the surface of the cube itself, area 24."""
    vertices, faces = surfaces.extract_surface(torch.full((8, 8, 8), 1e6))
    assert np.abs(vertices).max() == 1
    edges = vertices[faces][:, 1:] - vertices[faces][:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1).sum() / 2
    assert area == pytest.approx(24, rel=0.01)


def test_samples_are_uniform_over_area():
    """A mesh of two squares, nine and one in area: points split 9 : 1 and spread evenly over each."""

    def square(side, z):
        return [[0, 0, z], [side, 0, z], [side, side, z], [0, side, z]]

    vertices = np.array(square(3, 0) + square(1, 5), float)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    points = surfaces.sample_surface(vertices, faces, np.random.default_rng(0), 20000)
    assert points.shape == (20000, 3) and points.dtype == np.float32
    large = points[points[:, 2] == 0]
    assert len(large) / 20000 == pytest.approx(0.9, abs=0.01)  # five deviations of 0.002
    counts = np.histogram2d(large[:, 0], large[:, 1], bins=3, range=[[0, 3], [0, 3]])[0]
    assert np.abs(counts / len(large) - 1 / 9).max() < 0.012


def test_clouds_are_seeded_and_missing_surfaces_counted():
    volumes = [
        ellipsoid((0.5, 0.5, 0.5), size=(16, 16, 16)),
        torch.zeros(16, 16, 16),
        ellipsoid((0.9, 0.3, 0.3), size=(16,) * 3),
    ]
    got = surfaces.surface_clouds(volumes, points=100, seed=3)
    assert got.clouds.shape == (2, 100, 3) and got.objects.tolist() == [0, 2] and got.without_surface == 1
    again = surfaces.surface_clouds(iter(volumes), points=100, seed=3)
    np.testing.assert_array_equal(got.clouds, again.clouds)
    assert not np.array_equal(got.clouds, surfaces.surface_clouds(volumes, points=100, seed=4).clouds)
    swapped = surfaces.surface_clouds([volumes[0], volumes[0]], points=100, seed=3)
    np.testing.assert_array_equal(swapped.clouds[0], got.clouds[0])
    assert not np.array_equal(swapped.clouds[0], swapped.clouds[1])
    none = surfaces.surface_clouds([torch.zeros(4, 4, 4)])
    assert none.clouds.shape == (0, surfaces.POINTS, 3) and none.without_surface == 1
    assert surfaces.extract_surface(torch.zeros(4, 4, 4)) is None


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (torch.full((4, 4, 4), torch.nan), "volume 1: density holds NaN or infinity"),
        (torch.full((4, 4, 4), torch.inf), "volume 1: density holds NaN or infinity"),
        (torch.zeros(1, 4, 4, 4), r"volume 1: density has shape \(1, 4, 4, 4\)"),
        (torch.zeros(1, 4, 4), "each at least 2"),
    ],
)
def test_bad_volumes(density, message):
    with pytest.raises(MetricError, match=message):
        surfaces.surface_clouds([torch.zeros(4, 4, 4), density])


def test_bad_threshold_and_mesh():
    with pytest.raises(MetricError, match="threshold 0, expected a positive density"):
        surfaces.extract_surface(torch.zeros(4, 4, 4), 0)
    flat = np.zeros((3, 3)), np.array([[0, 1, 2]])
    with pytest.raises(MetricError, match="1 faces and area 0"):
        surfaces.sample_surface(*flat, np.random.default_rng())
    with pytest.raises(MetricError, match="0 faces"):
        surfaces.sample_surface(np.zeros((3, 3)), np.zeros((0, 3), int), np.random.default_rng())
