"""Rendering of posed subjects: inverse linear blend skinning (Eq. 8) and the volume renderer's quadrature (Eq. 6-7).

A sample x_d on a ray is taken back by every part's pose, x_p = R_p^T (x_d - t_p). Eq. 8 needs the weights at x_c, which
is not known yet. As in UVA [63] and HumanNeRF [77] the weight of part p is read from V^LBS at its own x_p. The softmax
over parts makes the weights w_p, and x_c = sum_p w_p x_p (footnote 3). With one part this is the rigid case.

Shapes: volumes (b, 1 + 3 + p, d, h, w) as in `rendering.rays`, poses (b, v, p, 3, 4) of v frames as in `poses`, rays
(b, v, r, 3) in the world, samples (b, v, r, n).

Warped samples are not on straight rays and poses need gradients, so the fused kernel does not apply. Most samples lie
where the density is exactly 0, and neither picture nor gradient depends on them. A first pass without gradients finds
the others, and only they are computed again with gradients. Rays beyond `LOOKUPS_AT_ONCE` are rendered in chunks and
computed again for backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..rendering.cameras import Cameras
from ..rendering.rays import clip_to_cube
from ..rendering.reference import composite, sample_depths, sample_volume
from ..rendering.render import normal_volume
from .poses import PoseError, invert, transform

LOOKUPS_AT_ONCE = 2**24  # samples x parts held in memory; a lookup takes about 50 bytes with its gradient


@dataclass(frozen=True)
class PosedRendering:
    """Per ray of v frames: what is seen, and how much of it belongs to which part."""

    colour: Tensor  # (b, v, r, 3) on black
    occupancy: Tensor  # (b, v, r) in [0, 1]
    depth: Tensor  # (b, v, r), sum of w_i t_i
    part_density: Tensor  # (p,) mean of w_p sigma over all samples
    parts: Tensor | None = None  # (b, v, r, p), sums to the occupancy
    normals: Tensor | None = None  # (b, v, r, 3) in the world, of length <= 1


def inverse_skinning(volume: Tensor, points: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 8 backwards: posed points (b, v, m, 3) -> canonical ones (b, v, m, 3) and weights w_p (b, p, v, m)."""
    b, v, p = poses.shape[:3]
    back = invert(poses)  # R^T and -R^T t of each part
    if p == 1:  # the softmax of one logit is 1
        own = transform(back[:, :, 0], points)
        return own, torch.ones_like(own[:, None, ..., 0])
    m = points.shape[2]
    # x_p of all parts in one product, (b, v, m, 3) x (b, v, 3, 3 p)
    linear = back[..., :3].movedim(-1, 2).reshape(b, v, 3, 3 * p)
    own = points @ linear + back[..., 3].reshape(b, v, 1, 3 * p)
    own = own.view(b, v, m, p, 3).permute(0, 3, 1, 2, 4)  # (b, p, v, m, 3)
    logits = volume[:, 4:].reshape(b * p, 1, *volume.shape[2:])
    logits = sample_volume(logits, own.reshape(b * p, v * m, 3)).view(b, p, v, m)
    weights = logits.softmax(dim=1)
    # sum_p w_p x_p with the maps blended before the point is: fewer numbers per sample than the points of all parts
    blend = weights.permute(0, 2, 3, 1) @ back.flatten(3)  # (b, v, m, 12)
    blend = blend.view(b, v, m, 3, 4)
    return (blend[..., :3] * points[..., None, :]).sum(-1) + blend[..., 3], weights


def render_posed(
    volume: Tensor,
    poses: Tensor,
    origins: Tensor,
    directions: Tensor,
    num_samples: int,
    *,
    stratified_seed: int | None = None,
    maps: bool = False,
) -> PosedRendering:
    """Render volumes in the poses of v frames each along given rays; differentiable in volume and poses.

    Args:
        volume: (b, 1 + 3 + p, d, h, w): density, colour, skinning logits of p parts.
        poses: (b, v, p, 3, 4), canonical cube -> world.
        origins, directions: (b, v, r, 3) in the world, directions of unit length. b and v may be 1, for all.
        num_samples: samples between a ray's entry into the cube of the world and its exit.
        stratified_seed: None samples bin centres, an integer draws one point per bin, reproducibly.
        maps: render parts and normals, too.

    Raises:
        PoseError: another number of parts than the volume has, shapes that do not fit.
    """
    _check_shapes(volume, poses, origins, directions)
    b, v, p = poses.shape[:3]
    shading = normal_volume(volume[:, 0]) if maps else None
    rays = [x.expand(b, v, -1, 3) for x in (origins, directions)]
    r = rays[0].shape[2]
    at_once = max(1, LOOKUPS_AT_ONCE // (b * v * num_samples * p))
    pieces = []
    for number, start in enumerate(range(0, r, at_once)):
        chunk = [x[:, :, start : start + at_once] for x in rays]
        seed = None if stratified_seed is None else stratified_seed + number
        arguments = (volume, shading, poses, *chunk, num_samples, seed)
        if torch.is_grad_enabled() and at_once < r:
            pieces.append(checkpoint(_render_chunk, *arguments, use_reentrant=False))
        else:
            pieces.append(_render_chunk(*arguments))
    *per_ray, part_density = zip(*pieces, strict=True)
    colour, occupancy, depth, parts, shaded = (None if x[0] is None else torch.cat(x, dim=2) for x in per_ray)
    share = [x.shape[2] / r for x in per_ray[1]]
    density = sum(weight * x for weight, x in zip(share, part_density, strict=True))
    return PosedRendering(colour, occupancy, depth, density, parts, shaded)


def _render_chunk(
    volume: Tensor,
    shading: Tensor | None,
    poses: Tensor,
    origins: Tensor,
    directions: Tensor,
    num_samples: int,
    seed: int | None,
) -> tuple[Tensor | None, ...]:
    b, v, r, _ = origins.shape
    p, n = poses.shape[2], num_samples
    enter, leave = clip_to_cube(origins.flatten(0, 1), directions.flatten(0, 1), 0.0, math.inf)  # (b v, r)
    depths = sample_depths(enter, leave, n, seed)  # (b v, r, n)
    points = origins[:, :, :, None] + depths.view(b, v, r, n, 1) * directions[:, :, :, None]
    points = points.flatten(2, 3)
    kept = None if shading is not None or not torch.is_grad_enabled() else _dense_samples(volume, points, poses)
    if kept is not None:
        points = points.gather(2, kept.index[..., None].expand(-1, -1, -1, 3))
    canonical, weights = inverse_skinning(volume, points, poses)
    values = sample_volume(volume[:, :4], canonical)  # (b, 4, v, m)
    if kept is not None:
        values = values * kept.counts[:, None]
    part_density = (weights * values[:, :1]).detach().sum(dim=(0, 2, 3)) / (b * v * r * n)
    if kept is not None:
        index = kept.index[:, None].expand(-1, 4, -1, -1)
        values = values.new_zeros(b, 4, v, r * n).scatter_add(3, index, values)
    channels = [values[:, 1:]]
    if shading is not None:
        normal = sample_volume(shading, canonical).movedim(1, -1)  # (b, v, r n, 3)
        # the blend of the parts' rotations, as the point itself is a blend
        turned = torch.einsum("bvpij,bpvm,bvmj->bivm", poses[..., :3], weights, normal)
        channels += [weights, torch.nn.functional.normalize(turned, dim=1) * normal.norm(dim=-1)[:, None]]

    def per_view(x: Tensor) -> Tensor:  # (b, c, v, r n) -> (b v, c, r, n)
        return x.transpose(1, 2).reshape(b * v, -1, r, n)

    step = (leave - enter) / n
    density = per_view(values[:, :1])[:, 0]
    seen, occupancy, depth = composite(density, per_view(torch.cat(channels, 1)), depths, step)
    colour, parts, shaded = seen.view(b, v, r, -1).split([3, *((p, 3) if shading is not None else (0, 0))], dim=-1)
    maps = (None, None) if shading is None else (parts, shaded)
    return colour, occupancy.view(b, v, r), depth.view(b, v, r), *maps, part_density


@dataclass(frozen=True)
class _Kept:
    """Of each frame, the samples to be computed: as many everywhere, so that some are fillers that do not count."""

    index: Tensor  # (b, v, m) among all samples
    counts: Tensor  # (b, v, m) bool


@torch.no_grad()
def _dense_samples(volume: Tensor, points: Tensor, poses: Tensor) -> _Kept | None:
    """Those of the posed points (b, v, s, 3) where the density is not 0; None where that is more than half of them."""
    canonical, _ = inverse_skinning(volume, points, poses)
    dense = sample_volume(volume[:, :1], canonical)[:, 0] > 0  # (b, v, s)
    rank = dense.cumsum(-1)
    most = max(1, int(rank[..., -1].max()))
    if 2 * most > points.shape[2]:
        return None
    index = torch.zeros(*dense.shape[:2], most, dtype=torch.int64, device=points.device)
    i, j, k = dense.nonzero(as_tuple=True)
    index[i, j, rank[i, j, k] - 1] = k
    return _Kept(index, torch.arange(most, device=points.device) < rank[..., -1:])


@torch.no_grad()
def posed_views(volume: Tensor, poses: Tensor, cameras: Cameras, num_samples: int) -> dict[str, Tensor]:
    """Pictures of volumes in the poses (b, v, p, 3, 4) of v frames, from one camera, or from one for each frame.

    Returns colour and normals (b, v, h, w, 3), occupancy and depth (b, v, h, w) as `rendering.render.render_views`,
    and parts (b, v, h, w, p), the share of the occupancy that each part has.

    Raises:
        PoseError, CameraError: parts, poses and cameras that do not fit.
    """
    b, v = poses.shape[:2]
    if len(cameras) not in (1, v):
        raise PoseError(f"cameras are {len(cameras)}, expected 1 or one for each of the {v} frames")
    cameras.to("cpu").validate("cameras")
    h, w = cameras.height, cameras.width
    frames = []
    for frame in range(v):
        camera = cameras.to(volume.device)[frame if len(cameras) > 1 else 0]
        rays = (x[None] for x in camera.rays())
        seen = render_posed(volume, poses[:, frame : frame + 1], *rays, num_samples, maps=True)
        occupancy = seen.occupancy
        depth = torch.where(occupancy > 0.5, seen.depth / occupancy.clamp_min(0.5), torch.zeros_like(occupancy))
        frames.append(
            {
                "colour": seen.colour.clamp(0, 1),
                "occupancy": occupancy.clamp(0, 1),
                "depth": depth,
                "normals": seen.normals,
                "parts": seen.parts,
            }
        )
    joined = {name: torch.cat([frame[name] for frame in frames], dim=1) for name in frames[0]}
    return {name: x.view(b, v, h, w, *x.shape[3:]) for name, x in joined.items()}


def _check_shapes(volume: Tensor, poses: Tensor, origins: Tensor, directions: Tensor) -> None:
    if volume.ndim != 5 or poses.ndim != 5 or poses.shape[-2:] != (3, 4):
        raise PoseError(
            f"volume {tuple(volume.shape)} and poses {tuple(poses.shape)}, "
            "expected (b, 1 + 3 + p, d, h, w) and (b, v, p, 3, 4)"
        )
    parts = volume.shape[1] - 4
    if poses.shape[2] != parts:
        raise PoseError(f"poses are of {poses.shape[2]} parts, expected the {parts} that the volume has")
    if len(poses) != len(volume):
        raise PoseError(f"poses are of {len(poses)} subjects, expected one set for each of {len(volume)} volumes")
    if origins.shape != directions.shape or origins.ndim != 4 or origins.shape[-1] != 3:
        raise PoseError(
            f"origins {tuple(origins.shape)} and directions {tuple(directions.shape)}, expected both (b, v, r, 3)"
        )
