"""Procedural objects as volumes, as a perfect autodecoder of that resolution would make them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..meshes.raycast import LIGHT_RIG, Primitive, albedo_at

SOLID = (
    3.0  # density inside of solids, in units of ln 2 / voxel: a voxel that is covered by a third stops half the light
)
SUBSAMPLES = 3  # points per voxel and axis


def inside(primitive: Primitive, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the points (3, n) lie in a solid, (n,), and their unit coordinates in it (3, n)."""
    local = np.linalg.solve(primitive.frame[:, :3], points - primitive.frame[:, 3:])
    x, y, z = np.abs(local)
    if primitive.kind == "ball":
        return (local**2).sum(0) <= 1, local
    wx, wz = (1 - (1 - taper) * (local[1] + 1) / 2 for taper in primitive.taper)
    across = (x <= wx) & (z <= wz) if primitive.kind == "box" else x**2 + z**2 <= wx**2
    return (y <= 1) & across, local


def voxelise(primitives: list[Primitive], resolution: int) -> Tensor:
    """The volume (4, S, S, S) = density, r, g, b of solids, S = resolution, over the cube with voxel centres on its
    faces. Density grows with the covered share of a voxel; colours are lit as in the images, 0 outside."""
    step = 2 / (resolution - 1)
    fine = (np.arange(resolution * SUBSAMPLES) + 0.5) / SUBSAMPLES - 0.5  # in voxels
    covered = np.zeros((resolution,) * 3)
    colour = np.zeros((3, *covered.shape))
    taken = np.zeros((len(fine),) * 3, bool)  # (z, y, x); where solids overlap, the first one counts
    for i, primitive in enumerate(primitives):
        low, high, _ = primitive.bounds()
        ranges = [np.flatnonzero((fine * step - 1 >= low[k]) & (fine * step - 1 <= high[k])) for k in (2, 1, 0)]
        if not all(map(len, ranges)):
            continue
        z, y, x = np.meshgrid(*ranges, indexing="ij")
        within, local = inside(primitive, np.stack([fine[a].ravel() * step - 1 for a in (x, y, z)]))
        within &= ~taken[z.ravel(), y.ravel(), x.ravel()]
        cells = tuple(a.ravel()[within] for a in (z, y, x))
        taken[cells] = True
        albedo = albedo_at(
            primitives, torch.full((len(cells[0]),), i), torch.tensor(local[:, within], dtype=torch.float32)
        )
        voxel = tuple(a // SUBSAMPLES for a in cells)
        np.add.at(covered, voxel, 1.0)
        for channel in range(3):
            np.add.at(colour[channel], voxel, albedo[channel].numpy())
    colour /= np.maximum(covered, 1)
    share = covered / SUBSAMPLES**3
    density = SOLID * math.log(2) / step * share
    return torch.tensor(np.concatenate([density[None], np.clip(colour * _light(share), 0, 1)]), dtype=torch.float32)


def _light(share: np.ndarray) -> np.ndarray:
    """Intensity (d, h, w) of the light rig on a surface whose normals point to where less is covered."""
    slope = np.stack(np.gradient(share))[::-1]  # x, y, z
    normal = -slope / np.maximum(np.linalg.norm(slope, axis=0), 1e-6)
    light = LIGHT_RIG["ambient"] + LIGHT_RIG["ambient_from_above"] * normal[1]
    for name in ("key", "fill", "back"):
        towards = np.array(LIGHT_RIG[name]["direction"])
        towards = towards / np.linalg.norm(towards)
        light = light + LIGHT_RIG[name]["intensity"] * np.tensordot(towards, normal, 1).clip(min=0)
    return light
