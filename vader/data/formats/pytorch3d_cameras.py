"""Cameras of PyTorch3D. Those of `transforms.json` are in `vader.data.formats.transforms`.

Two conventions meet. Camera axes: ours are OpenCV's (x right, y down, z forward), PyTorch3D's are x left, y up,
z forward. Both matrices map world to camera; PyTorch3D's act on row vectors. Both worlds have y up. The centre of the
top-left pixel is (0.5, 0.5) in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...rendering.cameras import Cameras
from ..prepared import DataError

if TYPE_CHECKING:
    from pytorch3d.renderer import PerspectiveCameras

PYTORCH3D_AXES = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)


def to_pytorch3d(cameras: Cameras) -> PerspectiveCameras:
    """The same cameras as PyTorch3D's, in screen space (pixels). It has no skew: `DataError` if there is some."""
    from pytorch3d.renderer import PerspectiveCameras

    skewed = cameras.intrinsics[:, 0, 1] != 0
    if skewed.any():
        raise DataError(f"view {int(skewed.nonzero()[0])}: intrinsics have skew, which PyTorch3D's cameras have not")
    axes = PYTORCH3D_AXES.to(cameras.world_to_camera)
    k = cameras.intrinsics
    return PerspectiveCameras(
        R=cameras.world_to_camera[:, :, :3].mT * axes,
        T=cameras.world_to_camera[:, :, 3] * axes,
        focal_length=torch.stack([k[:, 0, 0], k[:, 1, 1]], dim=1),
        principal_point=k[:, :2, 2],
        image_size=k.new_tensor([[cameras.height, cameras.width]]).expand(len(cameras), 2),
        in_ndc=False,
        device=k.device,
    )


def from_pytorch3d(cameras: PerspectiveCameras) -> Cameras:
    """Ours from PyTorch3D's in screen space; `DataError` for NDC cameras or views of different sizes."""
    if cameras.in_ndc():
        raise DataError("PyTorch3D cameras are in NDC, expected screen space (in_ndc=False) with an image_size")
    sizes = cameras.image_size
    if sizes is None or (sizes != sizes[0]).any():
        raise DataError(f"PyTorch3D cameras have image_size {sizes}, expected one (height, width) for all of them")
    axes = PYTORCH3D_AXES.to(cameras.R)
    rotation, translation = (cameras.R * axes).mT, cameras.T * axes
    intrinsics = torch.zeros_like(rotation)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = cameras.focal_length.expand(len(rotation), 2).unbind(1)
    intrinsics[:, :2, 2], intrinsics[:, 2, 2] = cameras.principal_point, 1
    height, width = (int(x) for x in sizes[0])
    return Cameras(torch.cat([rotation, translation[..., None]], dim=-1), intrinsics, height, width)
