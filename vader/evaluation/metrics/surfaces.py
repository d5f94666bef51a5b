"""Point clouds from density volumes: marching cubes at a density threshold, then area-weighted samples (A.1).

The paper does not state its threshold. Here a voxel on the surface stops half of the light that crosses
it: sigma* = ln 2 / voxel, 22 for 64^3 in the cube [-1, 1]^3. Results should be reported for half and for
twice that as well (`SWEEP`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...rendering import surface
from ...rendering.rays import RenderingError
from ...rendering.surface import density_threshold
from . import MetricError, optional_import

SWEEP = (0.5, 1.0, 2.0)  # factors of the threshold
POINTS = 2048


@dataclass(frozen=True)
class SurfaceClouds:
    """Clouds of the volumes that have a surface, and how many have none."""

    clouds: np.ndarray  # (n, p, 3) float32, canonical coordinates (x, y, z)
    objects: np.ndarray  # (n,) int64, which volume each cloud is of
    without_surface: int  # volumes that nowhere exceed the threshold


def extract_surface(density: Tensor, threshold: float | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """`rendering.surface.extract_surface`, with its errors as `MetricError`."""
    try:
        return surface.extract_surface(density, threshold)
    except RenderingError as error:
        raise MetricError(str(error)) from error


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, generator: np.random.Generator, points: int = POINTS
) -> np.ndarray:
    """`points` points uniform over the area of a triangle mesh, (points, 3) float32.

    Raises `MetricError` for a mesh without a finite, positive area.
    """
    corners = vertices[faces].astype(np.float64)  # (f, 3, 3)
    edges = corners[:, 1:] - corners[:, :1]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1) / 2
    if not (len(area) and np.isfinite(area).all() and area.sum() > 0):
        raise MetricError(f"a mesh of {len(faces)} faces and area {area.sum():g}, expected a finite positive area")
    u = generator.random((3, points))
    cumulative = np.cumsum(area)
    face = np.minimum(np.searchsorted(cumulative, u[0] * cumulative[-1], side="right"), len(area) - 1)
    root = np.sqrt(u[1])  # uniform over the triangle: fold the unit square's area into barycentric weights
    weights = np.stack([1 - root, root * (1 - u[2]), root * u[2]], -1)
    return np.einsum("pk,pkc->pc", weights, corners[face]).astype(np.float32)


def surface_cloud(
    density: Tensor, index: int, threshold: float | None = None, points: int = POINTS, seed: int = 0
) -> np.ndarray | None:
    """The cloud (points, 3) of the volume with number `index`, or None without a surface; `seed` and the number decide
    where its points lie."""
    surface = extract_surface(density, threshold)
    return None if surface is None else sample_surface(*surface, np.random.default_rng((seed, index)), points)


def surface_clouds(
    densities: Iterable[Tensor], threshold: float | None = None, points: int = POINTS, seed: int = 0
) -> SurfaceClouds:
    """Clouds of `points` points for every density volume (d, h, w) that has a surface; the others are counted.

    Cloud k depends on `seed`, k and its volume only. Raises `MetricError` naming the volume at fault.
    """
    clouds, objects, total = [], [], 0
    for k, density in enumerate(densities):
        total += 1
        try:
            cloud = surface_cloud(density, k, threshold, points, seed)
        except MetricError as error:
            raise MetricError(f"volume {k}: {error}") from error
        if cloud is not None:
            clouds.append(cloud)
            objects.append(k)
    stacked = np.stack(clouds) if clouds else np.empty((0, points, 3), np.float32)
    return SurfaceClouds(stacked, np.array(objects, np.int64), total - len(clouds))


def solid_parts(density: Tensor, threshold: float | None = None) -> tuple[int, float]:
    """Voxels of a density (d, h, w) above `threshold` (default: `density_threshold` of the width), and the share of
    them outside of the largest connected part, neighbours sharing a corner at least; 0 and 0.0 where there are none.

    Spurious density scatters, so that its share is large. NaN counts as empty.
    """
    ndimage = optional_import("scipy.ndimage")
    level = density_threshold(density.shape[-1]) if threshold is None else threshold
    parts, count = ndimage.label(density.float().cpu().numpy() > level, np.ones((3, 3, 3)))
    if count == 0:
        return 0, 0.0
    sizes = np.bincount(parts.ravel())[1:]
    return int(sizes.sum()), float(1 - sizes.max() / sizes.sum())
