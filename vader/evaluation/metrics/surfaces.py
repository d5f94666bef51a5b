"""Point clouds from density volumes: marching cubes at a density threshold, then area-weighted samples (A.1).

The paper does not state its threshold. Here a voxel on the surface stops half of the light that crosses
it: sigma* = ln 2 / voxel, 22 for 64^3 in the cube [-1, 1]^3. Results should be reported for half and for
twice that as well (`SWEEP`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from . import MetricError, optional_import

SWEEP = (0.5, 1.0, 2.0)  # factors of the threshold
POINTS = 2048


@dataclass(frozen=True)
class SurfaceClouds:
    """Clouds of the volumes that have a surface, and how many have none."""

    clouds: np.ndarray  # (n, p, 3) float32, canonical coordinates (x, y, z)
    objects: np.ndarray  # (n,) int64, which volume each cloud is of
    without_surface: int  # volumes that nowhere exceed the threshold


def density_threshold(resolution: int) -> float:
    """sigma* = ln 2 / voxel for a resolution^3 volume over [-1, 1]^3 with voxel centres on the cube's faces."""
    return math.log(2) * (resolution - 1) / 2


def extract_surface(density: Tensor, threshold: float | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """Marching cubes over a density volume (d, h, w) = (z, y, x), sigma per unit length.

    Returns vertices (v, 3) as canonical (x, y, z) and faces (f, 3), normals outwards, or None where the
    density nowhere exceeds `threshold` (default: `density_threshold` of the width). Outside of the cube there is no
    density, so that a solid which touches a face is closed there. Raises `MetricError` for NaN, infinity
    and other shapes.
    """
    if density.ndim != 3 or min(density.shape) < 2:
        raise MetricError(f"density has shape {tuple(density.shape)}, expected (d, h, w), each at least 2")
    volume = density.detach().cpu().float().numpy()
    if not np.isfinite(volume).all():
        raise MetricError("density holds NaN or infinity, expected finite values")
    level = density_threshold(density.shape[-1]) if threshold is None else threshold
    if level <= 0:
        raise MetricError(f"threshold {level:g}, expected a positive density")
    if volume.max() <= level:
        return None
    measure = optional_import("skimage.measure")
    vertices, faces, _, _ = measure.marching_cubes(np.pad(volume, 1), level)
    last = np.array(volume.shape, np.float32) - 1
    # padding shifts indices by one; a closing face lies on the cube, not half a voxel outside
    canonical = 2 * np.clip(vertices - 1, 0, last) / last - 1
    return np.ascontiguousarray(canonical[:, ::-1], dtype=np.float32), faces.astype(np.int64)


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
