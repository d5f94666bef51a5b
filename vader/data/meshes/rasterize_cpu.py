"""Exact images, masks, parts and normals of triangle meshes with coloured vertices, by a z-buffer compiled by numba.

One sample per sub-pixel centre and a box filter, as in `raycast`. Light is `raycast.LIGHT_RIG` without the highlight,
evaluated at the vertices. It needs no graphics driver, and the same mesh gives the same bits in every process.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ...rendering.cameras import Cameras
from ..synthetic.people_mesh import vertex_normals
from ..video import NO_PART
from .raycast import LIGHT_RIG


def light(normals: np.ndarray) -> np.ndarray:
    """Light of LIGHT_RIG on a white matt surface with unit normals (n, 3) in the world: (n,)."""
    total = LIGHT_RIG["ambient"] + LIGHT_RIG["ambient_from_above"] * normals[:, 1]
    for name in ("key", "fill", "back"):
        way = np.array(LIGHT_RIG[name]["direction"]) / np.linalg.norm(LIGHT_RIG[name]["direction"])
        total = total + LIGHT_RIG[name]["intensity"] * np.maximum(normals @ way, 0)
    return total


def render_mesh(
    vertices: np.ndarray, faces: np.ndarray, albedo: np.ndarray, labels: np.ndarray, camera: Cameras, supersampling: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One picture of a mesh: image (h, w, 3), mask (h, w) and labels (h, w), all uint8, and normals (h, w, 3) float64.

    A pixel has the label that most of its hits have, of labels hit equally often the lowest, and NO_PART where nothing
    is hit. Its normal is the mean of the vertices' normals over its hits, in the world, 0 without any.

    vertices: (n, 3) in the world. faces: (f, 3), drawn from both sides. albedo: (n, 3) in [0, 1]. labels: (f,) uint8
    below NO_PART. camera: a single one without skew. Everything must be in front of the camera.
    """
    pose, k = camera.world_to_camera[0].double().numpy(), camera.intrinsics[0].double().numpy()
    seen = vertices @ pose[:, :3].T + pose[:, 3]
    fine = (seen @ k.T)[:, :2] / seen[:, 2:] * supersampling
    points = np.column_stack([fine, 1 / seen[:, 2]])
    normals = vertex_normals(vertices, faces)
    layers = np.column_stack([np.clip(albedo * light(normals)[:, None], 0, 1), normals])
    h, w = camera.height, camera.width
    return _draw(points, faces.astype(np.int32), layers, labels.astype(np.uint8), h, w, supersampling)


@njit(cache=True, nogil=True)
def _draw(points, faces, layers, labels, h, w, s):
    near = np.zeros((h * s, w * s))  # 1 / depth of what is nearest so far
    fine = np.zeros((h * s, w * s, 6))
    label = np.full((h * s, w * s), NO_PART, np.uint8)
    for f in range(len(faces)):
        a, b, c = faces[f]
        ax, ay, az = points[a]
        bx, by, bz = points[b]
        cx, cy, cz = points[c]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        # sub-pixels whose centres (at half integers) lie in the triangle's box
        left, right = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0), min(int(max(ax, bx, cx) - 0.5), w * s - 1)
        top, bottom = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0), min(int(max(ay, by, cy) - 0.5), h * s - 1)
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                t = 1 - u - v
                if u < 0 or v < 0 or t < 0:
                    continue
                inverse = u * az + v * bz + t * cz  # 1 / depth is linear in the picture
                if inverse <= near[row, column]:
                    continue
                near[row, column] = inverse
                label[row, column] = labels[f]
                for k in range(6):
                    fine[row, column, k] = (
                        u * az * layers[a, k] + v * bz * layers[b, k] + t * cz * layers[c, k]
                    ) / inverse
    image = np.zeros((h, w, 3), np.uint8)
    mask = np.zeros((h, w), np.uint8)
    parts = np.full((h, w), NO_PART, np.uint8)
    normals = np.zeros((h, w, 3))
    for row in range(h):
        for column in range(w):
            count, most, total = np.zeros(256, np.int64), 0, 0
            summed = np.zeros(6)
            for i in range(row * s, row * s + s):
                for j in range(column * s, column * s + s):
                    if near[i, j] > 0:
                        total += 1
                        count[label[i, j]] += 1
                        summed += fine[i, j]
            if total == 0:
                continue
            for k in range(256):
                if count[k] > most:
                    most = count[k]
                    parts[row, column] = k
            for k in range(3):
                image[row, column, k] = int(255 * summed[k] / s**2 + 0.5)
                normals[row, column, k] = summed[3 + k] / total
            mask[row, column] = int(255 * total / s**2 + 0.5)
    return image, mask, parts, normals
