"""From volumes to pictures (Eq. 6-7): `render_rays` picks the backend, `render_views` takes pictures of objects.

Three backends compute the same function: `reference` (PyTorch, one tensor entry per sample), and kernels for a CPU
(`cpu`) and for CUDA (`cuda`), which `fused` puts behind one torch operator. None of them knows of this module.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import check_memory, fused_backend
from .cameras import Cameras
from .fused import DTYPES, render_rays_fused
from .rays import Rendering, RenderingError, check_shapes, check_values
from .reference import render_rays_reference

EARLY_STOP = 1e-4  # evaluation: a ray ends where less than this share of its light is left


def render_rays(
    volume: Tensor,
    origins: Tensor,
    directions: Tensor,
    num_samples: int,
    *,
    stratified_seed: int | Tensor | None = None,
    stop: float = 0.0,
    near: float = 0.0,
    far: float = float("inf"),
    skip_empty: bool = False,
    rectified: bool = False,
    backend: str = "auto",
    check: bool = True,
) -> Rendering:
    """Render density and colour along rays (Eq. 6-7).

    Args:
        volume: (b, 1 + 3, d, h, w), density >= 0 first; further channels are ignored.
        origins, directions: (b, r, 3) in the world, directions of unit length.
        num_samples: samples between a ray's entry into the cube and its exit.
        stratified_seed: None samples bin centres; an integer draws one point per bin, reproducibly. As a tensor (an
            int64 on the volume's device) it is read when the picture is made, also where that is recorded in a graph.
        stop: a ray ends where less than this share of its light is left (0: never).
        near, far: bounds on the depth along the ray.
        skip_empty: without gradients, the fused CPU kernel may jump over parts that absorb at most `stop` of the
            light in all; the others march through everything.
        rectified: the density is a ReLU's output (or 0 for another reason that lets no gradient through where it is
            0). Then the fused kernels jump over empty cells in training as well: the picture and what reaches the
            ReLU's input are the same, the volume's own gradient lacks a part where its density is 0.
        backend: 'reference', 'fused', or 'auto': fused where a kernel exists for the device and the volume's
            precision, and no gradient of the rays is asked for. `Rendering.backend` says what was taken.
        check: validate the values (a pass over the volume); loops that made them may skip it. NaN then stays NaN.

    Raises:
        RenderingError: NaN, infinite or negative density, rays not unit, near >= far, shapes that do not fit, a volume
            larger than memory.
    """
    check_shapes(volume, origins, directions, num_samples)
    check_memory(volume)
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
        return render_rays_fused(*arguments, skip_empty, rectified)
    raise RenderingError(f"backend is {backend!r}, expected 'auto', 'reference' or 'fused'")


def render_images(
    volume: Tensor,
    cameras: Cameras,
    num_samples: int,
    *,
    stratified_seed: int | Tensor | None = None,
    rectified: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour (b, v, h, w, 3), occupancy and depth (b, v, h, w) of volumes (b, 1 + 3, d, h, w) in training.

    cameras: v of each object, one object after the other. Nothing is checked, nothing read back; where there is a
    CUDA kernel it makes the rays as well. `stratified_seed` and `rectified` as in `render_rays`.

    Raises:
        RenderingError: cameras that do not divide among the volumes, or a shape without a picture.
    """
    b, height, width = len(volume), cameras.height, cameras.width
    if b == 0 or len(cameras) % b:
        raise RenderingError(f"{len(cameras)} cameras for {b} volumes, expected as many for each")
    options = {"stratified_seed": stratified_seed, "rectified": rectified}
    if fused_backend(volume.device) == "triton" and volume.dtype in DTYPES:
        check_shapes(volume, torch.empty(b, 1, 3), torch.empty(b, 1, 3), num_samples)
        places, lenses = (x.unflatten(0, (b, -1)) for x in (cameras.world_to_camera, cameras.intrinsics))
        rendering = render_rays_fused(volume, places, lenses, num_samples, image=(height, width), **options)
    else:
        origins, directions = (x.view(b, -1, 3) for x in cameras.rays())
        rendering = render_rays(volume, origins, directions, num_samples, check=False, **options)
    return rendering.images(height, width)


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
