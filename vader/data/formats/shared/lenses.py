"""Lens distortion as COLMAP, OpenCV and Nerfstudio describe it, and pictures without it.

A lens maps ideal coordinates x = X / Z, y = Y / Z to distorted ones; intrinsics map those to pixels. With r the length
of (x, y), and for fisheye lenses theta = atan(r):

    radial   (x, y) (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6)  plus tangential p1, p2
    fisheye  (x, y) theta / r (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8)

which covers COLMAP's SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL, OPENCV, FULL_OPENCV, OPENCV_FISHEYE,
SIMPLE_RADIAL_FISHEYE and RADIAL_FISHEYE, and all fields of transforms.json.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import grid_sample

NEWTON_STEPS = 50
FARTHEST = 20.0  # tangent of the largest angle to the optical axis that is looked at, 87 degrees


@dataclass(frozen=True)
class Lens:
    """radial: k1 ... k6 (fisheye: k1 ... k4); tangential: p1, p2, of radial lenses only."""

    radial: tuple[float, ...] = ()
    tangential: tuple[float, float] = (0.0, 0.0)
    fisheye: bool = False

    @property
    def ideal(self) -> bool:
        """Whether it distorts nothing: a pinhole. A fisheye lens always distorts."""
        return not self.fisheye and not any(self.radial) and not any(self.tangential)

    def distort(self, points: np.ndarray) -> np.ndarray:
        """Ideal coordinates (..., 2) -> distorted ones."""
        x, y = points[..., 0], points[..., 1]
        r2 = x * x + y * y
        scale = self._scale(r2)
        p1, p2 = self.tangential
        return np.stack(
            [x * scale + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * scale + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y],
            axis=-1,
        )

    def undistort(self, points: np.ndarray) -> np.ndarray:
        """Distorted coordinates (..., 2) -> ideal ones, by Newton's method; NaN where there are none.

        The solution is the one on the branch that holds the centre of the picture: a polynomial folds back far
        outside, where a lens does not.
        """
        wanted = np.asarray(points, dtype=np.float64)
        guess, step = wanted.copy(), 1e-6
        limit = self.reach()
        for _ in range(NEWTON_STEPS):
            error = self.distort(guess) - wanted
            if np.nanmax(np.abs(error), initial=0.0) < 1e-14:
                break
            columns = [
                (self.distort(guess + step * axis) - self.distort(guess - step * axis)) / (2 * step)
                for axis in np.eye(2)
            ]
            (a, c), (b, d) = (np.moveaxis(column, -1, 0) for column in columns)
            det = a * d - b * c
            det = np.where(np.abs(det) < 1e-6, 1e-6, det)
            change = np.stack([d * error[..., 0] - b * error[..., 1], a * error[..., 1] - c * error[..., 0]], axis=-1)
            change /= det[..., None]
            # A step is kept within half the distance to the fold, so that no iterate leaves the branch.
            size = np.linalg.norm(change, axis=-1, keepdims=True)
            room = np.maximum(0.5 * (limit - np.linalg.norm(guess, axis=-1, keepdims=True)), 1e-3 * limit)
            guess = guess - change * np.minimum(1.0, room / np.maximum(size, 1e-300))
        good = np.linalg.norm(self.distort(guess) - wanted, axis=-1) < 1e-9
        good &= np.linalg.norm(guess, axis=-1) <= limit
        return np.where(good[..., None], guess, np.nan)

    def reach(self) -> float:
        """Largest ideal radius up to which the distorted radius grows (tangential terms aside), at most FARTHEST."""
        radii = np.linspace(0, FARTHEST, 20_001)
        falls = np.diff(radii * self._scale(radii**2)) <= 0
        return float(radii[np.argmax(falls)]) if falls.any() else FARTHEST

    def _scale(self, r2: np.ndarray) -> np.ndarray:
        k = self.radial
        if not self.fisheye:
            k = (*k, *[0.0] * (6 - len(k)))
            above = 1 + r2 * (k[0] + r2 * (k[1] + r2 * k[2]))
            return above / (1 + r2 * (k[3] + r2 * (k[4] + r2 * k[5])))
        r = np.sqrt(r2)
        theta = np.arctan(r)
        t2, total = theta * theta, np.zeros_like(theta)
        for coefficient in reversed(k):
            total = (total + coefficient) * t2
        return np.where(r > 1e-9, theta / np.maximum(r, 1e-9), 1.0) * (1 + total)


@dataclass(frozen=True, eq=False)
class Unwarper:
    """Takes the distortion out of pictures of one camera: same size and intrinsics, black where nothing was seen."""

    grid: torch.Tensor  # (1, h, w, 2) float32, where each pixel is found, in grid_sample's [-1, 1]

    @staticmethod
    def of(lens: Lens, intrinsics: np.ndarray, height: int, width: int) -> Unwarper:
        inverse = np.linalg.inv(intrinsics)
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        ideal = np.stack([x, y, np.ones_like(x)], axis=-1) @ inverse.T
        ideal = ideal[..., :2]
        seen = lens.distort(ideal)
        pixels = np.stack([seen[..., 0], seen[..., 1], np.ones_like(x)], axis=-1) @ intrinsics.T
        grid = 2 * pixels[..., :2] / (width, height) - 1
        grid[np.linalg.norm(ideal, axis=-1) > lens.reach()] = 9.0  # beyond the fold there is no picture
        return Unwarper(torch.from_numpy(grid.astype(np.float32))[None])

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (h, w) or (h, w, c) uint8, bilinear between pixel centres."""
        layers = torch.from_numpy(np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1))).permute(2, 0, 1)[None]
        found = grid_sample(layers.float(), self.grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return found[0].permute(1, 2, 0).add(0.5).byte().numpy().reshape(pixels.shape)
