"""Rays through the cube [-1, 1]^3: entry and exit, checks, and the result of rendering them.

Shapes. Volumes are (b, c, d, h, w) = (b, c, z, y, x) over [-1, 1]^3 with voxel centres on the faces
(`align_corners=True`); channel 0 is the density sigma per unit length, channels 1..3 the colour.
Rays are (b, r, 3), depths (b, r) are distances along unit directions, samples (b, r, n).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class RenderingError(ValueError):
    """A volume or a ray that has no rendering."""


@dataclass(frozen=True)
class Rendering:
    """Per ray: colour (b, r, 3) on black, occupancy (b, r) in [0, 1], depth (b, r) = sum of w_i t_i; and its maker."""

    colour: Tensor
    occupancy: Tensor
    depth: Tensor
    backend: str

    def images(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Colour (b, v, h, w, 3), occupancy and depth (b, v, h, w) of rays that are v row-major views."""
        b, r = self.colour.shape[:2]
        shape = (b, r // (height * width), height, width)
        return self.colour.view(*shape, 3), self.occupancy.view(shape), self.depth.view(shape)


def check_shapes(volume: Tensor, origins: Tensor, directions: Tensor, num_samples: int) -> None:
    """Raise `RenderingError` on shapes that do not fit together: volume (b, 4 or more, d, h, w), rays (b, r, 3)."""
    if volume.ndim != 5 or volume.shape[1] < 4 or min(volume.shape[2:]) < 2:
        raise RenderingError(f"volume has shape {tuple(volume.shape)}, expected (b, 1 + 3, d, h, w) with d, h, w >= 2")
    if origins.shape != directions.shape or origins.ndim != 3 or origins.shape[-1] != 3:
        raise RenderingError(
            f"origins {tuple(origins.shape)} and directions {tuple(directions.shape)}, expected both (b, r, 3)"
        )
    if origins.shape[0] != volume.shape[0]:
        raise RenderingError(f"{volume.shape[0]} volumes but rays for {origins.shape[0]}, expected one set each")
    if num_samples < 1:
        raise RenderingError(f"num_samples is {num_samples}, expected at least 1")


def check_values(volume: Tensor, origins: Tensor, directions: Tensor) -> None:
    """Raise `RenderingError` on anything not finite, negative density, or directions that are not unit."""
    # everything is asked at once, since an answer from a GPU waits for all that it is still doing
    length, density = directions.norm(dim=-1), volume[:, 0]
    asked = [origins.isfinite().all() & directions.isfinite().all(), ((length - 1).abs() < 1e-3).all()]
    finite_rays, unit, finite, positive = torch.stack([*asked, volume.isfinite().all(), ~(density < 0).any()]).tolist()
    if not finite_rays:
        raise RenderingError("a ray has a NaN or infinite origin or direction, expected finite numbers")
    if not unit:
        worst = length.flatten()[(length - 1).abs().argmax()].item()
        raise RenderingError(f"a ray direction has length {worst:.4g}, expected unit length")
    if not finite:
        raise RenderingError("volume has a NaN or infinite value, expected finite density and colour")
    if not positive:
        raise RenderingError(f"density reaches {density.min().item():.3g}, expected none below 0")


def check_bounds(near: float, far: float) -> None:
    """Raise `RenderingError` unless something lies between these depths."""
    if not near < far:
        raise RenderingError(f"near is {near:g} and far is {far:g}, expected near < far")


def clip_to_cube(origins: Tensor, directions: Tensor, near: float, far: float) -> tuple[Tensor, Tensor]:
    """Depths (b, r) at which rays enter and leave [-1, 1]^3 within [near, far]; equal where a ray misses."""
    check_bounds(near, far)
    # A ray along a pair of faces never crosses them: it lies between them (faces included) or misses the cube.
    along = directions.abs() < 1e-9
    inverse = 1 / torch.where(along, torch.ones_like(directions), directions)
    t0, t1 = (-1 - origins) * inverse, (1 - origins) * inverse
    enter = torch.minimum(t0, t1).masked_fill(along, -torch.inf).amax(-1).clamp(near, far)
    leave = torch.maximum(t0, t1).masked_fill(along, torch.inf).amin(-1).clamp(near, far)
    misses = (along & (origins.abs() > 1)).any(-1)
    return enter, torch.where(misses, enter, torch.maximum(enter, leave))


def voxel_centres(resolution: int, device: torch.device | str = "cpu") -> Tensor:
    """x, y and z of a volume's voxels, (S^3, 3) in the order of (z, y, x): a grid over [-1, 1]^3, faces included."""
    axis = torch.linspace(-1, 1, resolution, device=device)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).view(-1, 3)
