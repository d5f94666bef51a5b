"""Exact images, masks and meshes of shapes made of convex primitives, by ray casting.

A primitive is a unit solid placed by an affine map (so it may be turned, stretched and sheared):

    box    |x| <= w_x(y), |z| <= w_z(y), |y| <= 1     a slab whose cross-section tapers towards y = +1
    round  x^2 + z^2 <= w_x(y)^2,        |y| <= 1     a cylinder, or the frustum of a cone
    ball   x^2 + y^2 + z^2 <= 1                       an ellipsoid

with w(-1) = 1 and w(+1) = taper, linear between. Points and directions are stored as (3, n), one row
per coordinate. World and cameras follow `vader.rendering.cameras`. Shading is diffuse (plus a small
highlight of the key light) under lights fixed in the world; there are no shadows and no reflections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...rendering.cameras import Cameras

LIGHT_RIG = {  # directions point from the object to the light; intensities multiply the albedo
    "ambient": 0.40,
    "ambient_from_above": 0.08,  # times the normal's y
    "key": {"direction": (0.45, 0.80, 0.40), "intensity": 0.45},
    "fill": {"direction": (-0.80, 0.25, 0.35), "intensity": 0.22},
    "back": {"direction": (0.10, 0.30, -0.95), "intensity": 0.30},
    "highlight_exponent": 24,
}
TEXTURES = ("plain", "wood", "stripes", "checker")
RAYS_AT_ONCE = 2**19
HALF_EXTENT, SPHERE_RADIUS = 0.9, 1.2  # what objects are normalised to, in the cube [-1, 1]^3


@dataclass(frozen=True)
class Material:
    """albedo: rgb in [0, 1]. frequency: periods per unit length. contrast: how much the texture darkens."""

    albedo: tuple[float, float, float]
    texture: Literal["plain", "wood", "stripes", "checker"] = "plain"
    frequency: float = 4.0
    contrast: float = 0.0
    gloss: float = 0.0  # intensity of the highlight


@dataclass(frozen=True, eq=False)
class Primitive:
    """frame: (3, 4), world = frame[:, :3] @ local + frame[:, 3]; taper: size at y = +1, in (0, 1], along x and z."""

    kind: Literal["box", "round", "ball"]
    frame: np.ndarray
    material: Material
    part: str  # "seat", "leg", ...
    taper: tuple[float, float] = (1.0, 1.0)

    def bounds(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Exact axis-aligned bounding box (low, high), and an upper bound of the distance from the world's origin."""
        axes, centre = self.frame[:, :3], self.frame[:, 3]
        if self.kind == "ball":
            reach = np.linalg.norm(axes, axis=1)
            return centre - reach, centre + reach, np.linalg.norm(centre) + np.linalg.norm(axes, 2)
        if self.kind == "box":
            outline, order = np.array([[1, 1, -1, -1], [1, -1, 1, -1]]), 1
        else:  # the corners of a polygon around the circle
            angles = np.arange(48) * 2 * math.pi / 48
            outline, order = np.stack([np.cos(angles), np.sin(angles)]) / math.cos(math.pi / 48), 2
        low, high, radius = [], [], 0.0
        for y, (wx, wz) in ((-1, (1.0, 1.0)), (1, self.taper)):  # the two ends
            end = centre + y * axes[:, 1]
            section = axes[:, [0, 2]] * (wx, wz if self.kind == "box" else wx)
            reach = np.linalg.norm(section, order, axis=1)
            low.append(end - reach)
            high.append(end + reach)
            radius = max(radius, np.linalg.norm(end[:, None] + section @ outline, axis=0).max())
        return np.min(low, 0), np.max(high, 0), radius


@dataclass(frozen=True, eq=False)
class Hits:
    """First intersections of n rays: those that hit nothing have primitive -1 and infinite distance."""

    distance: Tensor  # (n,) along unit directions
    primitive: Tensor  # (n,) int64
    normal: Tensor  # (3, n) outward, unit, world
    local: Tensor  # (3, n) in the primitive's unit coordinates


def fit_to_cube(primitives: list[Primitive]) -> list[Primitive]:
    """Centre the bounding box at the origin and scale uniformly, as large as HALF_EXTENT (of the box) and
    SPHERE_RADIUS (around the origin) allow."""
    low, high, _ = zip(*(p.bounds() for p in primitives), strict=True)
    centre = (np.min(low, 0) + np.max(high, 0)) / 2

    def moved(p: Primitive, scale: float) -> Primitive:
        frame = scale * np.column_stack([p.frame[:, :3], p.frame[:, 3] - centre])
        return Primitive(p.kind, frame, p.material, p.part, p.taper)

    extent = (np.max(high, 0) - np.min(low, 0)).max() / 2
    reach = max(moved(p, 1.0).bounds()[2] for p in primitives)
    scale = min(HALF_EXTENT / extent, SPHERE_RADIUS / reach)
    return [moved(p, scale) for p in primitives]


# ---------------------------------------------------------------------------------------- rays against primitives


def cast(primitives: list[Primitive], origins: Tensor, directions: Tensor, candidates=None) -> Hits:
    """First hits of rays (3, n) with unit directions, whose origins lie outside of all primitives.

    candidates: function of a primitive that returns the indices of the rays that may hit it; None tests all.
    """
    n = directions.shape[1]
    distance, primitive = torch.full((n,), math.inf), torch.full((n,), -1)
    normal, local = torch.zeros(3, n), torch.zeros(3, n)
    for i, p in enumerate(primitives):
        rays = torch.arange(n) if candidates is None else candidates(p)
        o, d = origins[:, rays], directions[:, rays]
        # Measure from the point nearest to the centre: thin parts far away would lose their digits otherwise.
        from_centre = o - torch.tensor(p.frame[:, 3:], dtype=torch.float32)
        start = -_dot(from_centre, d)
        inverse = np.linalg.inv(p.frame[:, :3])
        o, d = _linear(inverse, from_centre + start * d), _linear(inverse, d)
        t, n_local = _SOLIDS[p.kind](o, d, p.taper)
        ahead = t + start
        closer = ((ahead > 0) & (ahead < distance[rays])).nonzero()[:, 0]
        hit = rays[closer]
        distance[hit], primitive[hit] = ahead[closer], i
        local[:, hit] = (o + t * d)[:, closer]
        normal[:, hit] = _unit(_linear(inverse.T, n_local[:, closer]))
    return Hits(distance, primitive, normal, local)


def _linear(matrix: np.ndarray, vectors: Tensor) -> Tensor:
    """matrix (3, 3) times vectors (3, n), term by term, so that the result depends on no BLAS."""
    x, y, z = vectors
    return torch.stack([x * float(a) + y * float(b) + z * float(c) for a, b, c in matrix])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _unit(vectors: Tensor) -> Tensor:
    return vectors / _dot(vectors, vectors).sqrt()


def _hit_box(o: Tensor, d: Tensor, taper: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Entry of rays into the unit box with tapering sides, an intersection of six half-spaces m . p <= c."""
    sx, sz = (1 - k for k in taper)  # side x: |x| <= 1 - sx (y + 1) / 2
    sides = [(1, sx / 2, 0), (-1, sx / 2, 0), (0, sz / 2, 1), (0, sz / 2, -1), (0, 1, 0), (0, -1, 0)]
    limits = [1 - sx / 2, 1 - sx / 2, 1 - sz / 2, 1 - sz / 2, 1, 1]
    enter, leave = torch.full_like(o[0], -math.inf), torch.full_like(o[0], math.inf)
    normal = torch.zeros_like(o)
    for m, c in zip(sides, limits, strict=True):
        speed = sum(a * row for a, row in zip(m, d, strict=True) if a)
        room = c - sum(a * row for a, row in zip(m, o, strict=True) if a)
        t = room / speed
        leave = torch.where(speed > 0, torch.minimum(leave, t), leave)
        later = (speed < 0) & (t > enter)
        enter = torch.where(later, t, enter)
        normal = torch.where(later, torch.tensor(m, dtype=o.dtype)[:, None], normal)
        leave = torch.where((speed == 0) & (room < 0), -math.inf, leave)  # parallel and outside
    return torch.where(enter < leave, enter, math.inf), normal


def _hit_round(o: Tensor, d: Tensor, taper: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Entry into the frustum x^2 + z^2 <= (m + s y)^2, |y| <= 1: the first of side and caps that is on the surface."""
    m, s = (1 + taper[0]) / 2, (taper[0] - 1) / 2
    w, dw = m + s * o[1], s * d[1]
    a = d[0] ** 2 + d[2] ** 2 - dw**2
    b = o[0] * d[0] + o[2] * d[2] - w * dw
    c = o[0] ** 2 + o[2] ** 2 - w**2
    root = (b**2 - a * c).sqrt()  # NaN where the ray misses the infinite cone
    best, on_side = torch.full_like(a, math.inf), torch.zeros_like(a, dtype=torch.bool)
    cap = torch.zeros_like(a)
    for t in ((-b - root) / a, (-b + root) / a):
        found = ((o[1] + t * d[1]).abs() <= 1) & (t < best)
        best, on_side = torch.where(found, t, best), on_side | found
    for y, radius in ((-1.0, 1.0), (1.0, taper[0])):
        t = (y - o[1]) / d[1]
        found = ((o[0] + t * d[0]) ** 2 + (o[2] + t * d[2]) ** 2 <= radius**2) & (t < best)
        best, on_side, cap = torch.where(found, t, best), on_side & ~found, torch.where(found, y, cap)
    x, y, z = o + best * d
    side = torch.stack([x, -s * (m + s * y), z])
    return best, torch.where(on_side, side, torch.stack([torch.zeros_like(cap), cap, torch.zeros_like(cap)]))


def _hit_ball(o: Tensor, d: Tensor, taper: tuple[float, float]) -> tuple[Tensor, Tensor]:
    a, b, c = _dot(d, d), _dot(o, d), _dot(o, o) - 1
    t = (-b - (b**2 - a * c).sqrt()) / a
    t = torch.where(t.isfinite(), t, math.inf)
    return t, o + t * d


_SOLIDS = {"box": _hit_box, "round": _hit_round, "ball": _hit_ball}


# ---------------------------------------------------------------------------------------- colour


def albedo_at(primitives: list[Primitive], index: Tensor, local: Tensor) -> Tensor:
    """Surface colour (3, n) of points given by primitive (n,) and unit coordinates (3, n).

    Textures are solid, in lengths along the part: wood grain runs along its longest axis, stripes across it,
    and checks are squares on its two longest axes.
    """
    lengths = np.array([np.linalg.norm(p.frame[:, :3], axis=0) for p in primitives])  # (p, 3)
    order = np.argsort(-lengths, axis=1, kind="stable")
    position = local * torch.tensor(lengths.T, dtype=torch.float32)[:, index]
    along, across = (position.gather(0, torch.tensor(order[:, k])[index][None])[0] for k in (0, 1))

    def of(attribute: str) -> Tensor:
        return torch.tensor([getattr(p.material, attribute) for p in primitives], dtype=torch.float32)[index]

    turns = 2 * math.pi * of("frequency")
    grain = 0.5 + 0.5 * torch.sin(turns * (across + 0.06 * torch.sin(5.0 * along + index)))
    stripes = (torch.sin(turns * along) > 0).float()
    checker = (torch.sin(turns * along) * torch.sin(turns * across) > 0).float()
    patterns = torch.stack([torch.zeros_like(grain), grain, stripes, checker])
    kind = torch.tensor([TEXTURES.index(p.material.texture) for p in primitives])[index]
    depth = of("contrast") * patterns.gather(0, kind[None])[0]
    return torch.tensor([p.material.albedo for p in primitives], dtype=torch.float32).T[:, index] * (1 - depth)


def shade(primitives: list[Primitive], hits: Hits, directions: Tensor) -> Tensor:
    """Colours (3, n) in [0, 1] of rays that hit something, under `LIGHT_RIG`."""
    light = LIGHT_RIG["ambient"] + LIGHT_RIG["ambient_from_above"] * hits.normal[1]
    for name in ("key", "fill", "back"):
        towards = _unit(torch.tensor(LIGHT_RIG[name]["direction"]))
        light = light + LIGHT_RIG[name]["intensity"] * _dot(hits.normal, towards).clamp(min=0)
    half = _unit(_unit(torch.tensor(LIGHT_RIG["key"]["direction"]))[:, None] - directions)
    gloss = torch.tensor([p.material.gloss for p in primitives], dtype=torch.float32)[hits.primitive]
    highlight = gloss * _dot(hits.normal, half).clamp(min=0) ** LIGHT_RIG["highlight_exponent"]
    return (albedo_at(primitives, hits.primitive, hits.local) * light + highlight).clamp(0, 1)


def render(primitives: list[Primitive], cameras: Cameras, supersampling: int) -> tuple[Tensor, Tensor]:
    """Images (v, h, w, 3) on black and masks (v, h, w), uint8, box-filtered from supersampling^2 rays per pixel."""
    return render_labelled(primitives, [0] * len(primitives), cameras, supersampling)[:2]


def render_labelled(
    primitives: list[Primitive], labels: list[int], cameras: Cameras, supersampling: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and masks as of `render`, labels (v, h, w) int64 and normals (v, h, w, 3) float32 in the world. A pixel
    has the label, one per primitive, that most of its rays hit: the lowest of equals, -1 where none hits. Its normal is
    the mean outward one of its rays' hits, of length <= 1, 0 without any."""
    rays_per_view = cameras.height * cameras.width * supersampling**2
    step = max(1, RAYS_AT_ONCE // rays_per_view)
    parts = [_render(primitives, labels, cameras[i : i + step], supersampling) for i in range(0, len(cameras), step)]
    images, masks, hit, normals = (torch.cat(layer) for layer in zip(*parts, strict=True))
    return images, masks, hit, normals


def _render(
    primitives: list[Primitive], labels: list[int], cameras: Cameras, supersampling: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    s, v, h, w = supersampling, len(cameras), cameras.height, cameras.width
    scale = torch.tensor([s, s, 1.0])[:, None]
    fine = Cameras(cameras.world_to_camera, cameras.intrinsics * scale, h * s, w * s)
    origins, directions = (x.reshape(-1, 3).T.contiguous() for x in fine.rays())  # (3, v * hs * ws)
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    rows, columns = torch.arange(h * s) + 0.5, torch.arange(w * s) + 0.5

    def candidates(p: Primitive) -> Tensor:
        """Rays inside the rectangle around the projected corners of the primitive's frame, which enclose it."""
        pixels = fine.project(torch.tensor(corners @ p.frame[:, :3].T + p.frame[:, 3], dtype=torch.float32))
        low, high = pixels.amin(1) - 1, pixels.amax(1) + 1  # (v, 2), one ray of slack for rounding
        in_x = (columns >= low[:, :1]) & (columns <= high[:, :1])
        in_y = (rows >= low[:, 1:]) & (rows <= high[:, 1:])
        return (in_y[:, :, None] & in_x[:, None, :]).flatten().nonzero()[:, 0]

    hits = cast(primitives, origins, directions, candidates)
    seen = (hits.primitive >= 0).nonzero()[:, 0]
    found = Hits(hits.distance[seen], hits.primitive[seen], hits.normal[:, seen], hits.local[:, seen])
    layers = torch.zeros(7, v * h * s * w * s)  # rgb, coverage, normal times coverage
    shaded = shade(primitives, found, directions[:, seen])
    layers[:, seen] = torch.cat([shaded, torch.ones(1, len(seen)), found.normal])
    *layers, coverage, x, y, z = layers.view(7, v, h, s, w, s).mean((3, 5))
    rgb, mask = ((value * 255 + 0.5).to(torch.uint8) for value in (torch.stack(layers, -1), coverage))
    normals = torch.stack([x, y, z], -1) / coverage.clamp(min=1e-6)[..., None]
    return rgb, mask, _most_hit(hits.primitive, labels, (v, h, s, w, s)), normals


def _most_hit(primitive: Tensor, labels: list[int], shape: tuple[int, int, int, int, int]) -> Tensor:
    """The commonest label (v, h, w) among the rays of a pixel, (v * h * s * w * s,) in the order of `shape`."""
    known = sorted(set(labels))
    place = torch.tensor([known.index(label) for label in labels] + [-1])[primitive].view(shape)  # -1: no hit
    counts = torch.stack([(place == k).sum((2, 4)) for k in range(len(known))])
    return torch.where(counts.amax(0) > 0, torch.tensor(known)[counts.argmax(0)], -1)


# ---------------------------------------------------------------------------------------- mesh


def mesh(primitives: list[Primitive], spacing: float = 0.08):
    """The same solids as one trimesh.Trimesh with vertex colours, one closed surface per primitive (they overlap).

    Every solid is a cube's surface, gridded at about `spacing`, then mapped to its shape. Curved parts are
    inscribed polyhedra.
    """
    import trimesh

    solids = []
    for i, p in enumerate(primitives):
        lengths = 2 * np.linalg.norm(p.frame[:, :3], axis=0)
        counts = [8] * 3 if p.kind != "box" else [int(np.clip(math.ceil(x / spacing), 1, 24)) for x in lengths]
        if p.kind == "round":
            counts[1] = int(np.clip(math.ceil(lengths[1] / spacing), 1, 24))
        points, faces = _cube_surface(counts)
        if p.kind == "ball":
            points = np.tan(points * math.pi / 4)  # evens the angles between grid lines
            points /= np.linalg.norm(points, axis=1, keepdims=True)
        else:
            if p.kind == "round":
                square = np.abs(points[:, [0, 2]]).max(1, keepdims=True)
                angles = np.tan(points[:, [0, 2]] / np.maximum(square, 1e-9) * math.pi / 4)
                points[:, [0, 2]] = square * angles / np.maximum(np.linalg.norm(angles, axis=1, keepdims=True), 1e-9)
            taper = np.array(p.taper if p.kind == "box" else (p.taper[0], p.taper[0]))
            points[:, [0, 2]] *= 1 - (1 - taper) * (points[:, 1:2] + 1) / 2
        colours = albedo_at(primitives, torch.full((len(points),), i), torch.tensor(points.T, dtype=torch.float32))
        if np.linalg.det(p.frame[:, :3]) < 0:
            faces = faces[:, ::-1]
        vertices = points @ p.frame[:, :3].T + p.frame[:, 3]
        rgb = (colours.T.numpy() * 255 + 0.5).astype(np.uint8)
        solids.append(trimesh.Trimesh(vertices, faces, vertex_colors=rgb, process=False))
    return trimesh.util.concatenate(solids)


def _cube_surface(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Surface of [-1, 1]^3 with counts[k] cells along axis k: points (n, 3) without duplicates, outward triangles."""
    index: dict[tuple[int, int, int], int] = {}
    faces = []
    for k in range(3):
        a, b = (k + 1) % 3, (k + 2) % 3
        for side in (0, counts[k]):
            for i in range(counts[a]):
                for j in range(counts[b]):
                    quad = []
                    for di, dj in ((0, 0), (1, 0), (1, 1), (0, 1)):
                        corner = [0, 0, 0]
                        corner[k], corner[a], corner[b] = side, i + di, j + dj
                        quad.append(index.setdefault(tuple(corner), len(index)))
                    q0, q1, q2, q3 = quad if side else quad[::-1]
                    faces += [(q0, q1, q2), (q0, q2, q3)]
    return 2 * np.array(list(index), dtype=np.float64) / counts - 1, np.array(faces)
