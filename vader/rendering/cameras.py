"""Pinhole cameras and their rays.

OpenCV axes (x right, y down, z forward). `world_to_camera` (n, 3, 4) maps homogeneous world
points to camera points, `intrinsics` (n, 3, 3) camera points to pixels, and the centre of the
top-left pixel is (0.5, 0.5). The world is the canonical cube [-1, 1]^3 with y up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings.experiment import DataConfig

AZIMUTHS = (30.0, 120.0, 210.0, 300.0)  # degrees from the front, of the four views of a picture row
ELEVATION = 20.0


class CameraError(ValueError):
    """A camera that no lens could be."""


@dataclass(frozen=True)
class Cameras:
    """`n` pinhole cameras that share an image size.

    world_to_camera: (n, 3, 4) float, rotation and translation; intrinsics: (n, 3, 3) float, pixels.
    """

    world_to_camera: Tensor
    intrinsics: Tensor
    height: int
    width: int

    def __len__(self) -> int:
        return self.world_to_camera.shape[0]

    def __getitem__(self, index) -> Cameras:
        """Cameras of an index, slice or index tensor; a single index keeps n = 1."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index >= 0 else slice(index, index + 1 or None)
        return Cameras(self.world_to_camera[index], self.intrinsics[index], self.height, self.width)

    def to(self, device: torch.device | str) -> Cameras:
        return Cameras(self.world_to_camera.to(device), self.intrinsics.to(device), self.height, self.width)

    def validate(self, name: str) -> Cameras:
        """Return self, or raise `CameraError` naming `name`, the view and the field at fault."""
        n = len(self)
        for field, shape in (("world_to_camera", (n, 3, 4)), ("intrinsics", (n, 3, 3))):
            value = getattr(self, field)
            if tuple(value.shape) != shape:
                raise CameraError(f"{name}: {field} has shape {tuple(value.shape)}, expected {shape}")
            bad = ~torch.isfinite(value).flatten(1).all(1)
            if bad.any():
                view = int(bad.nonzero()[0])
                raise CameraError(f"{name}, view {view}: {field} has a NaN or infinite entry, expected finite numbers")
        rotation = self.world_to_camera[:, :, :3].double()
        error = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
        bad = (error > 1e-4) | (torch.linalg.det(rotation) < 0)
        if bad.any():
            view = int(bad.nonzero()[0])
            raise CameraError(
                f"{name}, view {view}: world_to_camera[:, :3] is not a rotation "
                f"(|R R^T - 1| = {error[view]:.1e}, det = {torch.linalg.det(rotation[view]):.3f}, expected 0 and 1)"
            )
        bad = (self.intrinsics[:, 0, 0] <= 0) | (self.intrinsics[:, 1, 1] <= 0)
        if bad.any():
            view = int(bad.nonzero()[0])
            fx, fy = self.intrinsics[view, 0, 0].item(), self.intrinsics[view, 1, 1].item()
            raise CameraError(f"{name}, view {view}: focal lengths are {fx:g} and {fy:g} pixels, expected positive")
        return self

    def centres(self) -> Tensor:
        """Camera centres in the world, (n, 3)."""
        rotation, translation = self.world_to_camera[:, :, :3], self.world_to_camera[:, :, 3]
        return -(rotation.mT @ translation[..., None])[..., 0]

    def rays(self) -> tuple[Tensor, Tensor]:
        """Ray origins and unit directions in the world through all pixel centres, each (n, h * w, 3), row-major."""
        device, dtype = self.world_to_camera.device, self.world_to_camera.dtype
        y, x = torch.meshgrid(
            torch.arange(self.height, device=device, dtype=dtype) + 0.5,
            torch.arange(self.width, device=device, dtype=dtype) + 0.5,
            indexing="ij",
        )
        pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).reshape(1, -1, 3)  # (1, hw, 3)
        in_camera = pixels @ torch.linalg.inv(self.intrinsics).mT  # (n, hw, 3)
        directions = torch.nn.functional.normalize(in_camera @ self.world_to_camera[:, :, :3], dim=-1)
        origins = self.centres()[:, None].expand_as(directions)
        return origins.contiguous(), directions

    def project(self, points: Tensor) -> Tensor:
        """World points (p, 3) to pixels, (n, p, 2)."""
        in_camera = points @ self.world_to_camera[:, :, :3].mT + self.world_to_camera[:, None, :, 3]
        homogeneous = in_camera @ self.intrinsics.mT
        return homogeneous[..., :2] / homogeneous[..., 2:]


def intrinsics_from_fov(field_of_view: float, height: int, width: int) -> Tensor:
    """(3, 3) intrinsics with square pixels and a centred principal point; full horizontal angle in degrees."""
    focal = 0.5 * width / math.tan(math.radians(field_of_view) / 2)
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def look_at(eyes: Tensor, target: Tensor | None = None) -> Tensor:
    """World-to-camera matrices (n, 3, 4) of cameras at `eyes` (n, 3) that look at `target` (3,) with y up."""
    target = torch.zeros(3, dtype=eyes.dtype) if target is None else target
    forward = torch.nn.functional.normalize(target - eyes, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=eyes.dtype).expand_as(forward)
    right = torch.linalg.cross(forward, up)
    if (right.norm(dim=-1) < 1e-6).any():
        raise CameraError("look_at: a camera looks straight up or down, where 'y up' fixes no orientation")
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=1)  # rows are the camera axes in the world
    translation = -(rotation @ eyes[..., None])
    return torch.cat([rotation, translation], dim=-1)


def sample_orbit(n: int, config: DataConfig, generator: torch.Generator) -> Cameras:
    """`n` cameras on a sphere around the origin, uniform in azimuth and in the sine of the elevation."""
    azimuth, height = torch.rand(2, n, generator=generator, dtype=torch.float64)
    low, high = (math.sin(math.radians(e)) for e in config.elevation)
    return _orbit(2 * math.pi * azimuth, low + (high - low) * height, config, config.resolution)


def spread_orbit(n: int, config: DataConfig, resolution: int) -> Cameras:
    """`n` cameras that cover evenly where those of `sample_orbit` are drawn, on a spiral by the golden angle."""
    index = torch.arange(n, dtype=torch.float64) + 0.5
    low, high = (math.sin(math.radians(e)) for e in config.elevation)
    return _orbit(math.pi * (1 + math.sqrt(5)) * index, low + (high - low) * index / n, config, resolution)


def turntable(config: DataConfig, azimuths: Sequence[float] = AZIMUTHS, resolution: int = 96) -> Cameras:
    """Cameras around the object at the data's distance and field of view, ELEVATION degrees up; azimuths in degrees."""
    angle = torch.deg2rad(torch.tensor(azimuths, dtype=torch.float64))
    sine = torch.full_like(angle, math.sin(math.radians(ELEVATION)))
    return _orbit(angle, sine, config, resolution)


def _orbit(azimuth: Tensor, sine: Tensor, config: DataConfig, resolution: int) -> Cameras:
    """Cameras that look at the origin from azimuths (n,) in radians, and elevations whose sines (n,) are given."""
    cosine = (1 - sine**2).sqrt()
    eyes = config.camera_distance * torch.stack([cosine * azimuth.sin(), sine, cosine * azimuth.cos()], dim=-1)
    intrinsics = intrinsics_from_fov(config.field_of_view, resolution, resolution)
    world_to_camera = look_at(eyes).float()
    return Cameras(world_to_camera, intrinsics.expand(len(eyes), 3, 3).contiguous(), resolution, resolution)
