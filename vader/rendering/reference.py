"""The reference volume renderer: emission-absorption through a voxel cube (Eq. 6-7).

Written for reading and for checking: every sample is a tensor entry. `fused.py` computes the same
function without them, and `render_rays` picks between the two.

Shapes. Volumes are (b, c, d, h, w) = (b, c, z, y, x) over [-1, 1]^3 with voxel centres on the faces
(`align_corners=True`); channel 0 is the density sigma per unit length, channels 1..3 the colour.
Rays are (b, r, 3), depths (b, r) are distances along unit directions, samples (b, r, n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras

EARLY_STOP = 1e-4  # evaluation: a ray ends where less than this share of its light is left


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
        b = self.colour.shape[0]
        shape = (b, -1, height, width)
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
    if not (torch.isfinite(origins).all() and torch.isfinite(directions).all()):
        raise RenderingError("a ray has a NaN or infinite origin or direction, expected finite numbers")
    length = directions.norm(dim=-1)
    if not ((length - 1).abs() < 1e-3).all():
        worst = length.flatten()[(length - 1).abs().argmax()].item()
        raise RenderingError(f"a ray direction has length {worst:.4g}, expected unit length")
    if not torch.isfinite(volume).all():
        raise RenderingError("volume has a NaN or infinite value, expected finite density and colour")
    if (volume[:, 0] < 0).any():
        raise RenderingError(f"density reaches {volume[:, 0].min().item():.3g}, expected none below 0")


def clip_to_cube(origins: Tensor, directions: Tensor, near: float, far: float) -> tuple[Tensor, Tensor]:
    """Depths (b, r) at which rays enter and leave [-1, 1]^3 within [near, far]; equal where a ray misses."""
    if not near < far:
        raise RenderingError(f"near is {near:g} and far is {far:g}, expected near < far")
    # A ray along a pair of faces never crosses them: it lies between them (faces included) or misses the cube.
    along = directions.abs() < 1e-9
    inverse = 1 / torch.where(along, torch.ones_like(directions), directions)
    t0, t1 = (-1 - origins) * inverse, (1 - origins) * inverse
    enter = torch.minimum(t0, t1).masked_fill(along, -torch.inf).amax(-1).clamp(near, far)
    leave = torch.maximum(t0, t1).masked_fill(along, torch.inf).amin(-1).clamp(near, far)
    misses = (along & (origins.abs() > 1)).any(-1)
    return enter, torch.where(misses, enter, torch.maximum(enter, leave))


def hash_uniform(seed: int, index: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) from a 32-bit integer hash of (seed, index): the same on every device and backend."""
    x = (index + (seed & 0xFFFFFFFF) * 0x9E3779B9) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    x = x ^ (x >> 16)
    return (x >> 8).float() * 2**-24


def sample_depths(enter: Tensor, leave: Tensor, num_samples: int, stratified_seed: int | None) -> Tensor:
    """One depth in each of `num_samples` equal bins of [enter, leave], (b, r, n): bin centres, or random if seeded."""
    b, r = enter.shape
    if stratified_seed is None:
        offset = torch.full((b, r, num_samples), 0.5, device=enter.device, dtype=enter.dtype)
    else:
        index = torch.arange(b * r * num_samples, device=enter.device).view(b, r, num_samples)
        offset = hash_uniform(stratified_seed, index).to(enter.dtype)
    step = (leave - enter)[..., None] / num_samples
    return enter[..., None] + (torch.arange(num_samples, device=enter.device) + offset) * step


def voxel_centres(resolution: int, device: torch.device | str = "cpu") -> Tensor:
    """x, y and z of a volume's voxels, (S^3, 3) in the order of (z, y, x): a grid over [-1, 1]^3, faces included."""
    axis = torch.linspace(-1, 1, resolution, device=device)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).view(-1, 3)


def sample_volume(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear values (b, c, ...) of `volume` (b, c, d, h, w) at world points (b, ..., 3); 0 outside the cube."""
    b, c = volume.shape[:2]
    dtype = torch.promote_types(volume.dtype, points.dtype)
    grid = points.reshape(b, 1, 1, -1, 3).to(dtype)
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
    stratified_seed: int | None = None,
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
    stratified_seed: int | None = None,
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


def render_rays(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    num_samples: int,
    *,
    stratified_seed: int | None = None,
    stop: float = 0.0,
    near: float = 0.0,
    far: float = float("inf"),
    skip_empty: bool = False,
    backend: str = "auto",
    check: bool = True,
) -> Rendering:
    """Render density and colour along rays (Eq. 6-7).

    Args:
        volume: (b, 1 + 3, d, h, w), density >= 0 first; further channels are ignored.
        origins, directions: (b, r, 3) in the world, directions of unit length.
        num_samples: samples between a ray's entry into the cube and its exit.
        stratified_seed: None samples bin centres; an integer draws one point per bin, reproducibly.
        stop: a ray ends where less than this share of its light is left (0: never).
        near, far: bounds on the depth along the ray.
        skip_empty: without gradients, the fused CPU kernel may jump over parts that absorb at most `stop` of the
            light in all; the others march through everything.
        backend: 'reference', 'fused', or 'auto': fused where a kernel exists for the device and the volume's
            precision, and no gradient of the rays is asked for. `Rendering.backend` says what was taken.
        check: validate the values (a pass over the volume); loops that made them may skip it. NaN then stays NaN.

    Raises:
        RenderingError: NaN, infinite or negative density, rays not unit, near >= far, shapes that do not fit.
    """
    from .fused import DTYPES, fused_backend, render_rays_fused

    check_shapes(volume, origins, directions, num_samples)
    if not 0 <= stop < 1:
        raise RenderingError(f"stop is {stop:g}, expected a share of the light in [0, 1)")
    if check:
        check_values(volume, origins, directions)
    arguments = (volume, origins, directions, num_samples, stratified_seed, stop, near, far)
    if backend == "auto":
        wants_ray_gradient = torch.is_grad_enabled() and (origins.requires_grad or directions.requires_grad)
        has_kernel = fused_backend(volume.device) is not None and volume.dtype in DTYPES
        backend = "fused" if has_kernel and not wants_ray_gradient else "reference"
    if backend == "reference":
        return render_rays_reference(*arguments)
    if backend == "fused":
        return render_rays_fused(*arguments, skip_empty)
    raise RenderingError(f"backend is {backend!r}, expected 'auto', 'reference' or 'fused'")


def normal_volume(density: Tensor) -> Tensor:
    """Unit surface normals -grad(sigma) / |grad(sigma)| (b, 3, d, h, w) in world axes (x, y, z); 0 where flat."""
    gradients = torch.gradient(density, dim=(3, 2, 1))  # x, y, z
    normals = -torch.stack(gradients, dim=1)
    return normals / normals.norm(dim=1, keepdim=True).clamp_min(1e-8)


@torch.no_grad()
def render_views(
    volume: Tensor,
    cameras: Cameras,
    num_samples: int,
    *,
    normals: bool = True,
    stop: float = EARLY_STOP,
    backend: str = "auto",
) -> dict[str, Tensor]:
    """Pictures of volumes (b, 4, d, h, w) from v cameras, shared by all of them.

    Returns colour (b, v, h, w, 3) and occupancy (b, v, h, w) in [0, 1], depth (b, v, h, w) (expected distance where
    something is hit, 0 elsewhere) and, unless `normals` is False, normals (b, v, h, w, 3): composited world-space
    normals of length <= 1, which cost a second pass.

    Raises:
        RenderingError, CameraError: a volume or a camera without a picture.
    """
    b, v = volume.shape[0], len(cameras)
    cameras.to("cpu").validate("cameras")
    origins, directions = (x.reshape(1, -1, 3).expand(b, -1, -1) for x in cameras.to(volume.device).rays())
    options = {"stop": stop, "skip_empty": True, "backend": backend}
    rendering = render_rays(volume, origins, directions, num_samples, **options)
    colour, occupancy, depth = rendering.images(cameras.height, cameras.width)
    views = {
        "colour": colour.clamp(0, 1),
        "occupancy": occupancy,
        "depth": torch.where(occupancy > 0.5, depth / occupancy.clamp_min(0.5), torch.zeros_like(depth)),
    }
    if normals:
        shading = torch.cat([volume[:, :1], normal_volume(volume[:, 0])], dim=1)
        shaded = render_rays(shading, origins, directions, num_samples, check=False, **options)
        views["normals"] = shaded.colour.view(b, v, cameras.height, cameras.width, 3)
    return views
