"""The reference renderer: emission-absorption through a voxel cube (Eq. 6-7).

Written for reading and for checking: every sample is a tensor entry. Shapes are those of `rays`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .rays import Rendering, clip_to_cube


def hash_uniform(seed: int | Tensor, index: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) from a 32-bit integer hash of (seed, index): the same on every device and backend."""
    x = (index + (seed & 0xFFFFFFFF) * 0x9E3779B9) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    return (x >> 8).float() * 2**-24


def sample_depths(enter: Tensor, leave: Tensor, num_samples: int, stratified_seed: int | Tensor | None) -> Tensor:
    """One depth in each of `num_samples` equal bins of [enter, leave], (b, r, n): bin centres, or random if seeded."""
    b, r = enter.shape
    if stratified_seed is None:
        offset = torch.full((b, r, num_samples), 0.5, device=enter.device, dtype=enter.dtype)
    else:
        index = torch.arange(b * r * num_samples, device=enter.device).view(b, r, num_samples)
        offset = hash_uniform(stratified_seed, index).to(enter.dtype)
    step = (leave - enter)[..., None] / num_samples
    return enter[..., None] + (torch.arange(num_samples, device=enter.device) + offset) * step


def sample_volume(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear values (b, c, ...) of `volume` (b, c, d, h, w) at world points (b, ..., 3); 0 outside the cube."""
    b, c = volume.shape[:2]
    dtype = torch.promote_types(volume.dtype, points.dtype)
    grid = points.flatten(1, -2)[:, None, None].to(dtype)
    values = F.grid_sample(volume.to(dtype), grid, align_corners=True, padding_mode="zeros")
    return values.view(b, c, *points.shape[1:-1])


def composite(density: Tensor, colour: Tensor, depths: Tensor, step: Tensor, stop: float = 0.0) -> tuple[Tensor, ...]:
    """Eq. 6-7 over samples: density and depths (b, r, n), colour (b, 3, r, n), step (b, r) -> colour, occupancy, depth.

    alpha_i = 1 - exp(-sigma_i step) and w_i = T_i alpha_i with T_i the light that reaches sample i. Samples
    that less than `stop` of the light reaches are dropped, which moves a colour in [0, 1] by at most `stop`.
    """
    optical = density * step[..., None]
    before = torch.cumsum(optical, dim=-1) - optical
    transmittance = torch.exp(-before)
    weights = transmittance * -torch.expm1(-optical)
    if stop > 0:
        weights = weights * (transmittance >= stop)
    return (weights[:, None] * colour).sum(-1).movedim(1, -1), weights.sum(-1), (weights * depths).sum(-1)


# density (b, r, n) and colours or other features (b, c, r, n) at points (b, r, n, 3), seen along directions (b, r, 3)
Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def render_field(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    num_samples: int,
    stratified_seed: int | Tensor | None = None,
    stop: float = 0.0,
    near: float = 0.0,
    far: float = float("inf"),
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 6-7 for any radiance field in the cube: features (b, r, c), occupancy and depth (b, r) of rays (b, r, 3)."""
    enter, leave = clip_to_cube(origins, directions, near, far)
    depths = sample_depths(enter, leave, num_samples, stratified_seed)
    points = origins[:, :, None] + depths[..., None] * directions[:, :, None]  # (b, r, n, 3)
    density, features = field(points.clamp(-1, 1), directions)
    return composite(density, features, depths, (leave - enter) / num_samples, stop)


def render_rays_reference(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    num_samples: int,
    stratified_seed: int | Tensor | None = None,
    stop: float = 0.0,
    near: float = 0.0,
    far: float = float("inf"),
) -> Rendering:
    """`render_rays` with `grid_sample` and one tensor entry per sample; differentiable in volume and rays."""

    def field(points: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        values = sample_volume(volume[:, :4], points)
        return values[:, 0], values[:, 1:]

    colour, occupancy, depth = render_field(field, origins, directions, num_samples, stratified_seed, stop, near, far)
    return Rendering(colour, occupancy, depth, "reference")
