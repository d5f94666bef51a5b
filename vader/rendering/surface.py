"""Surfaces of volumes: marching cubes at a density, or carved so that the mesh looks as the rendering does.

A solid has no half-transparent parts. Where a volume has, no single density tells what of it is solid: at
`density_threshold` legs that are thinner than a voxel are gone, and at a fraction of it the rest swells.
`carved_surface` asks the renderer instead: a point is solid where more than half of the light through it is stopped,
seen from nearly all sides. That is space carving (Kutulakos & Seitz 2000) by the volume's own silhouettes.
"""

from __future__ import annotations

import importlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..settings.experiment import DataConfig
from .cameras import spread_orbit
from .rays import RenderingError, voxel_centres
from .render import render_rays, render_views

VIEWS, PIXELS = 96, 192  # silhouettes that carve, and their size
CONTRARY = 0.1  # share of views that may see through a solid point: thin parts are transparent from some sides
THINNEST = 0.3  # share of `density_threshold` below which nothing is solid, so that hollows no view sees into stay
CHUNK = 2**15  # points that are looked at at once, from all views
GRID = 96  # the carved surface lies in a grid about as fine


def density_threshold(resolution: int) -> float:
    """sigma* = ln 2 / voxel for a resolution^3 volume over [-1, 1]^3 with voxel centres on the cube's faces."""
    return math.log(2) * (resolution - 1) / 2


def extract_surface(density: Tensor, threshold: float | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """Marching cubes over a density volume (d, h, w) = (z, y, x), sigma per unit length.

    Returns vertices (v, 3) as canonical (x, y, z) and faces (f, 3), normals outwards, or None where the
    density nowhere exceeds `threshold` (default: `density_threshold` of the width). Outside of the cube there is no
    density, so that a solid which touches a face is closed there. Raises `RenderingError` for NaN, infinity
    and other shapes, and ImportError where scikit-image is missing.
    """
    if density.ndim != 3 or min(density.shape) < 2:
        raise RenderingError(f"density has shape {tuple(density.shape)}, expected (d, h, w), each at least 2")
    volume = density.detach().cpu().float().numpy()
    if not np.isfinite(volume).all():
        raise RenderingError("density holds NaN or infinity, expected finite values")
    level = density_threshold(density.shape[-1]) if threshold is None else threshold
    if level <= 0:
        raise RenderingError(f"threshold {level:g}, expected a positive density")
    if volume.max() <= level:
        return None
    try:
        measure = importlib.import_module("skimage.measure")
    except ModuleNotFoundError as error:
        raise ImportError("surfaces need scikit-image: pip install 'vader[eval]'") from error
    vertices, faces, _, _ = measure.marching_cubes(np.pad(volume, 1), level)
    last = np.array(volume.shape, np.float32) - 1
    # padding shifts indices by one; a closing face lies on the cube, not half a voxel outside
    canonical = 2 * np.clip(vertices - 1, 0, last) / last - 1
    return np.ascontiguousarray(canonical[:, ::-1], dtype=np.float32), faces.astype(np.int64)


@torch.no_grad()
def carved_surface(volume: Tensor, view: DataConfig, num_samples: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The surface of a volume (4, S, S, S) that looks as its rendering does; as `extract_surface` returns it.

    view: where cameras are, those that the volume is meant to be seen from. num_samples: of the renderer, per ray.
    """
    size = volume.shape[-1]
    fine = (size - 1) * max(1, round(GRID / size)) + 1
    density = F.interpolate(volume[None, :1].float(), size=(fine,) * 3, mode="trilinear", align_corners=True)
    solid = density.flatten() / (THINNEST * density_threshold(size))
    dense = (solid > 0.5).nonzero()[:, 0]  # a margin around what can be solid, where the surface runs
    if len(dense):
        solid[dense] = torch.minimum(solid[dense], _opacity(volume, view, num_samples, fine, dense) / 0.5)
    return extract_surface(solid.view(fine, fine, fine), 1.0)


def _opacity(volume: Tensor, view: DataConfig, num_samples: int, fine: int, points: Tensor) -> Tensor:
    """Share of the light through `points` (p,) of a fine^3 grid that is stopped, seen from all but `CONTRARY` of the
    views at least, (p,)."""
    cameras = spread_orbit(VIEWS, view, PIXELS).to(volume.device)
    occupancy = render_views(volume[None].float(), cameras, num_samples, normals=False)["occupancy"][0]
    centres, lowest = voxel_centres(fine, volume.device), 1 + int(CONTRARY * VIEWS)
    opacity = []
    for chunk in points.split(CHUNK):
        grid = (2 * cameras.project(centres[chunk]) / PIXELS - 1)[:, None]  # (v, 1, p, 2)
        seen = F.grid_sample(occupancy[:, None], grid, align_corners=False)[:, 0, 0]  # (v, p)
        opacity.append(seen.kthvalue(lowest, dim=0).values)
    return torch.cat(opacity)


@torch.no_grad()
def surface_colours(volume: Tensor, vertices: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Colours (v, 3) in [0, 1] of a surface's vertices: what the renderer sees of each, looking straight at it.

    vertices, normals: (v, 3) in the world, normals of unit length and outwards. The ray starts a voxel outside of the
    surface and ends one and a half inside; its colour is what it collects, over its occupancy.
    """
    voxel = 2 / (volume.shape[-1] - 1)
    outwards = torch.from_numpy(np.array(normals, np.float32)).to(volume.device)
    origins = torch.from_numpy(np.array(vertices, np.float32)).to(volume.device) + voxel * outwards
    seen = render_rays(volume[None].float(), origins[None], -outwards[None], num_samples=16, far=2.5 * voxel)
    return (seen.colour / seen.occupancy[..., None].clamp_min(1e-3))[0].clamp(0, 1).cpu().numpy()
