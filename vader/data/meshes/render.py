"""Pictures of triangle meshes with materials, drawn by VTK under one fixed light rig.

`to_canonical` puts the parts of a model (see `wavefront`) into the cube [-1, 1]^3, y up and front towards +z.
`recoloured` and `stretch_factors` make variants. `MeshRenderer` takes the pictures.

The light rig (`LIGHT_RIG`) has white directional lights fixed in the world plus an ambient term. It has no specular
reflection and no shadows, so a surface point looks the same from everywhere. A radiance field without view dependence
can represent that. Every surface is opaque and lit from both sides. Glass is opaque as well, so that the mask is the
silhouette of the mesh. Albedo is lifted into [MIN_ALBEDO, 1], because black paint on the black background would be a
hole.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Sequence as Items
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...rendering.cameras import CameraError, Cameras
from ..formats.wavefront import Part
from ..prepared import DataError

if TYPE_CHECKING:
    import trimesh

LIGHT_RIG = {
    "ambient": 0.42,
    # (direction from the origin towards the light, intensity); x right, y up, z front
    "key": ((-0.45, 0.75, 0.55), 0.52),
    "fill": ((0.85, 0.25, 0.35), 0.25),
    "back": ((0.10, 0.45, -0.90), 0.20),
}
MIN_ALBEDO = 0.15
CREASE_ANGLE = 40.0  # degrees; edges sharper than this are not smoothed over
HALF_EXTENT, RADIUS = 0.9, 1.2  # largest half side of the bounding box, and distance of a vertex from the origin
MAX_LAYERS = 16  # translucent surfaces behind each other that are told apart
STRETCH = 0.12  # variants: largest relative change of an axis
# OpenGL's samples a pixel, averaged before the box filter of `supersampling`: coverage as it is, but colours in linear
# light, as displayed (sRGB). Edges come out brighter than without, by 0.35 of 255 in an object's mean level. What the
# committed runs were trained on looks like this, so the number is stated and not left to a library's default.
MULTISAMPLES = 4


# ---------------------------------------------------------------------------------------------- geometry


def to_canonical(
    parts: Items[Part], rotation: np.ndarray, size: Items[float], stretch: Items[float], where: str
) -> list[Part]:
    """Parts in the canonical cube: y up, front towards +z, bounding-box centre at the origin.

    `rotation` (3, 3) stands the model upright. Then each axis is scaled so that the bounding box
    has the catalogue's `size` (width x, height y, depth z), as the application does, times
    `stretch` (3,). A last uniform scale makes the largest half side at most HALF_EXTENT and the
    farthest vertex at most RADIUS from the origin. Raises DataError if the model has no extent.
    """
    rotated = [part.vertices @ np.asarray(rotation, dtype=float).T for part in parts]
    low = np.min([v.min(0) for v in rotated], axis=0)
    high = np.max([v.max(0) for v in rotated], axis=0)
    extent = high - low
    if not (extent > 1e-9 * extent.max()).all():
        raise DataError(f"{where}: the model's bounding box measures {extent.tolist()}, expected a solid")
    scale = np.asarray(size, dtype=float) * np.asarray(stretch, dtype=float) / extent
    placed = [(v - (low + high) / 2) * scale for v in rotated]
    half = max(np.abs(v).max() for v in placed)
    radius = max(np.linalg.norm(v, axis=1).max() for v in placed)
    fit = min(HALF_EXTENT / half, RADIUS / radius)
    return [replace(part, vertices=v * fit) for part, v in zip(parts, placed, strict=True)]


def corner_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (f, 3, 3) of the triangles' corners, smooth across edges flatter than CREASE_ANGLE.

    A corner's normal is the area-weighted mean of the faces around its point (points are matched by
    position, whatever the texture seams) that lie within the crease angle of its own face. Faces of
    opposite winding count with opposite sign: windings in the data are not consistent.
    """
    triangles = vertices[faces]
    area = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])  # (f, 3), twice the area
    unit = area / np.maximum(np.linalg.norm(area, axis=1, keepdims=True), 1e-300)
    point = np.unique(np.round(vertices, 6), axis=0, return_inverse=True)[1].reshape(-1)[faces].ravel()  # (3f,)
    face = np.repeat(np.arange(len(faces)), 3)
    order = np.argsort(point, kind="stable")
    count = np.bincount(point)
    start = np.cumsum(count) - count
    # all pairs (corner, corner at the same point): a row of `order` for each corner
    pairs = count[point]
    corner = np.repeat(np.arange(len(point)), pairs)
    offset = np.arange(len(corner)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    other = face[order[start[point[corner]] + offset]]
    cosine = (unit[face[corner]] * unit[other]).sum(1)
    weight = np.where(np.abs(cosine) >= math.cos(math.radians(CREASE_ANGLE)), np.sign(cosine), 0.0)
    total = np.stack([np.bincount(corner, weight * area[other, axis], len(point)) for axis in range(3)], axis=1)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    normals = np.where(length > 0, total / np.maximum(length, 1e-300), unit[face])
    return normals.reshape(-1, 3, 3)


def reference_mesh(parts: Items[Part]) -> trimesh.Trimesh:
    """All parts as one mesh with vertex colours (texture, or material colour), for geometry metrics."""
    import trimesh

    colours = [_vertex_colours(part) for part in parts]
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts])
    return trimesh.Trimesh(
        np.concatenate([p.vertices for p in parts]),
        np.concatenate([p.faces + offset for p, offset in zip(parts, offsets, strict=False)]),
        vertex_colors=np.round(255 * _lift(np.concatenate(colours))).astype(np.uint8),
        process=False,
    )


def _vertex_colours(part: Part) -> np.ndarray:
    if part.texture is not None:
        return _at(part.texture[..., :3], part.uv)
    return np.broadcast_to(part.colour, part.vertices.shape) if part.colours is None else part.colours


def is_translucent(part: Part) -> bool:
    """Whether something behind the part is seen through it."""
    return part.opacity < 1 or (part.texture is not None and part.texture.shape[-1] == 4)


def _at(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Nearest texel (n, 3) in [0, 1] at texture coordinates (n, 2), origin bottom left, repeating."""
    h, w, _ = texture.shape
    column, row = (uv[:, 0] % 1.0 * w).astype(int) % w, ((1 - uv[:, 1]) % 1.0 * h).astype(int) % h
    return texture[row, column] / 255.0


# ---------------------------------------------------------------------------------------------- variants

# Woods, fabrics, paints and metals that a recoloured material is drawn from.
PALETTE = {
    "maple": "e0c49a", "oak": "c09a62", "cherry": "9c5a3c", "walnut": "6b4a33", "wenge": "46352c", "ash": "d8cdb8",
    "linen": "cfc4ad", "wool": "8f8a80", "denim": "4a6184", "burgundy": "7d2b38", "olive": "77793f", "moss": "4f6b45",
    "mustard": "c99a2e", "terracotta": "b9603e", "teal": "2f7f86", "lavender": "9587b4", "rose": "c98a93",
    "white": "ececea", "signal red": "c23a30", "sky": "6fa5cf", "navy": "31446e", "lime": "9dbb4a", "orange": "dd8a3a",
    "steel": "a9adb2", "brass": "bfa25e", "graphite": "4b4e53",
}  # fmt: skip


def recoloured(parts: Items[Part], rng: np.random.Generator) -> list[Part]:
    """Each material in a colour of PALETTE, up to 15 % lighter or darker; a texture is tinted and keeps its pattern."""
    result = []
    for part in parts:
        code = PALETTE[list(PALETTE)[rng.integers(len(PALETTE))]]
        target = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)]) / 255 * rng.uniform(0.85, 1.15)
        target = np.minimum(target, 1.0)
        texture = part.texture
        if texture is not None:
            grey = texture.mean(-1, keepdims=True)
            # contrast of the pattern relative to its mean, on the new colour
            texture = np.clip(grey / max(grey.mean(), 1.0) * target * 255, 0, 255).round().astype(np.uint8)
        result.append(replace(part, colour=target, texture=texture))
    return result


def stretch_factors(rng: np.random.Generator) -> np.ndarray:
    """Relative scale (3,) of the x, y and z axes, uniform in 1 +- STRETCH."""
    return rng.uniform(1 - STRETCH, 1 + STRETCH, 3)


# ---------------------------------------------------------------------------------------------- pictures


def _lift(colour: np.ndarray) -> np.ndarray:
    """Albedo [0, 1] -> [MIN_ALBEDO, 1], monotonic."""
    return MIN_ALBEDO + (1 - MIN_ALBEDO) * np.clip(colour, 0.0, 1.0)


def _require_off_screen() -> None:
    """Without a display VTK draws through EGL or OSMesa, and lacking both it would crash; raise DataError instead."""
    if sys.platform != "linux" or os.environ.get("DISPLAY"):
        return
    for library in ("libEGL.so.1", "libOSMesa.so.8", "libOSMesa.so.6"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        if library.startswith("libEGL"):
            # spares VTK a try at X11, and us its warning
            os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
        return
    raise DataError(
        "rendering furniture without a display needs libEGL or libOSMesa, and neither is there; "
        "'apt-get install libegl1 libgl1-mesa-dri' installs the first"
    )


class MeshRenderer:
    """Pictures of a model (canonical parts) by VTK, off screen. Use as a context manager.

    reach: nothing further from the origin is drawn.
    """

    def __init__(self, parts: Items[Part], reach: float = 2 * RADIUS) -> None:
        self.reach = reach
        try:
            import pyvista
        except ImportError as error:
            raise ImportError(
                "rendering furniture needs pyvista, which the extra 'data' installs: pip install 'vader[data]'"
            ) from error
        _require_off_screen()
        with contextlib.suppress(ImportError):
            # torch imports it with its first optimizer, which crashes where LLVM came with Mesa's driver before
            import_module("triton")
        self.plotter = pyvista.Plotter(off_screen=True, lighting="none", notebook=False)  # no widgets
        self.plotter.set_background("black")
        parts = list(parts)
        # Layers of glass are peeled one by one, which VTK does without multisampling only.
        self.samples = 0 if any(map(is_translucent, parts)) else MULTISAMPLES
        self.plotter.render_window.SetMultiSamples(self.samples)  # once it exists, or pyvista's default wins
        for part in parts:
            self._add(pyvista, part)
        for name in ("key", "fill", "back"):
            direction, intensity = LIGHT_RIG[name]
            self.plotter.add_light(
                pyvista.Light(position=direction, focal_point=(0, 0, 0), intensity=intensity, light_type="scene light")
            )

    def _add(self, pyvista, part: Part) -> None:
        corners = part.faces.ravel()
        triangles = np.concatenate(
            [np.full((len(part.faces), 1), 3), np.arange(len(corners)).reshape(-1, 3)], axis=1
        ).ravel()
        mesh = pyvista.PolyData(part.vertices[corners], triangles)
        mesh.point_data.active_normals = corner_normals(part.vertices, part.faces).reshape(-1, 3)
        style = dict(ambient=LIGHT_RIG["ambient"], diffuse=1.0, specular=0.0, smooth_shading=True)
        if part.opacity < 1:
            style["opacity"] = part.opacity
        if is_translucent(part):
            self.plotter.enable_depth_peeling(number_of_peels=MAX_LAYERS, occlusion_ratio=0.0)
        if part.texture is None and part.colours is not None:
            colours = np.round(255 * _lift(part.colours[corners])).astype(np.uint8)
            self.plotter.add_mesh(mesh, scalars=colours, rgb=True, **style)
            return
        if part.texture is None:
            self.plotter.add_mesh(mesh, color=_lift(part.colour).tolist(), **style)
            return
        mesh.active_texture_coordinates = part.uv[corners]
        texels = np.round(255 * _lift(part.texture[..., :3] / 255.0)).astype(np.uint8)
        texture = pyvista.Texture(np.concatenate([texels, part.texture[..., 3:]], axis=-1))
        texture.SetMipmap(True)
        texture.SetInterpolate(True)
        texture.SetMaximumAnisotropicFiltering(1.0)  # Mesa's software anisotropic filter can take minutes a picture
        self.plotter.add_mesh(mesh, texture=texture, color="white", **style)

    def __enter__(self) -> MeshRenderer:
        return self

    def __exit__(self, *exception) -> None:
        self.plotter.close()

    def render(self, cameras: Cameras, supersampling: int = 1) -> tuple[Tensor, Tensor]:
        """Images (v, h, w, 3) and masks (v, h, w), uint8: box-filtered over supersampling x supersampling pixels.

        Raises CameraError unless pixels are square and there is no skew, which VTK cannot picture, and DataError where
        OpenGL grants another number of samples a pixel, which would change the level of edges.
        """
        h, w = cameras.height, cameras.width
        self.plotter.window_size = (w * supersampling, h * supersampling)
        images, masks = [], []
        for view in range(len(cameras)):
            self._point(cameras[view])
            if view == 0:
                self.plotter.show(auto_close=False)  # pyvista wants it once before pictures
            self.plotter.render()
            if (granted := self.plotter.render_window.GetMultiSamples()) != self.samples:
                raise DataError(f"OpenGL grants {granted} samples a pixel here, expected {self.samples}: edges differ")
            pixels = self.plotter.screenshot(transparent_background=True, return_img=True)  # alpha is the coverage
            rgba = torch.from_numpy(np.array(pixels)).view(h, supersampling, w, supersampling, 4)
            rgba = rgba.float().mean((1, 3)).round().byte()
            images.append(rgba[..., :3])
            masks.append(rgba[..., 3])
        return torch.stack(images), torch.stack(masks)

    def _point(self, one: Cameras) -> None:
        """Aim VTK's camera as the single camera `one`."""
        k = one.intrinsics[0].double()
        if abs(k[0, 0] / k[1, 1] - 1) > 1e-6 or abs(k[0, 1]) > 1e-6 * k[0, 0]:
            raise CameraError(f"expected square pixels without skew, got intrinsics {k.tolist()}")
        rotation, centre = one.world_to_camera[0, :, :3].double(), one.centres()[0].double()
        camera = self.plotter.camera
        camera.SetPosition(*centre.tolist())
        camera.SetFocalPoint(*(centre + rotation[2]).tolist())
        camera.SetViewUp(*(-rotation[1]).tolist())
        camera.SetViewAngle(math.degrees(2 * math.atan(0.5 * one.height / k[1, 1].item())))
        camera.SetWindowCenter(1 - 2 * k[0, 2].item() / one.width, 2 * k[1, 2].item() / one.height - 1)
        distance = centre.norm().item()
        camera.SetClippingRange(max(distance - self.reach, 0.01), distance + self.reach)
