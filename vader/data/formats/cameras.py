"""Cameras of other tools: PyTorch3D, and `transforms.json` as Blender scripts, NeRF-synthetic and Nerfstudio write it.

Three conventions meet. Camera axes: ours are OpenCV's (x right, y down, z forward), PyTorch3D's are x left, y up,
z forward, and transforms.json has OpenGL's (x right, y up, z backward). Direction: ours and PyTorch3D's matrices map
world to camera (PyTorch3D's act on row vectors), transforms.json maps camera to world. World: ours and PyTorch3D's
have y up, Blender's has z up. The centre of the top-left pixel is (0.5, 0.5) in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from ...rendering.cameras import Cameras
from ..prepared import DataError

if TYPE_CHECKING:
    from pytorch3d.renderer import PerspectiveCameras

PYTORCH3D_AXES = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
OPENGL_AXES = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
Z_UP_TO_Y_UP = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


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


def to_transforms(cameras: Cameras, up: Literal["y", "z"] = "z") -> dict[str, Any]:
    """Content of a transforms.json in a world with that axis up: one frame per view, with its own intrinsics."""
    matrix = cameras.world_to_camera.double()
    world = Z_UP_TO_Y_UP if up == "z" else torch.eye(3, dtype=torch.float64)
    rotation = world.mT @ (matrix[:, :, :3].mT * OPENGL_AXES)
    centre = (world.mT @ cameras.centres().double()[..., None])[..., 0]
    frames = []
    for view in range(len(cameras)):
        k = cameras.intrinsics[view].tolist()
        rows = torch.cat([rotation[view], centre[view, :, None]], dim=1).tolist()
        fields = {"fl_x": k[0][0], "fl_y": k[1][1], "cx": k[0][2], "cy": k[1][2]}
        frames.append({**fields, "transform_matrix": [*rows, [0.0, 0.0, 0.0, 1.0]]})
    return {"w": cameras.width, "h": cameras.height, "frames": frames}


def from_transforms(
    content: Mapping[str, Any], source: str, up: Literal["y", "z"] = "z", size: tuple[int, int] | None = None
) -> Cameras:
    """Cameras of a transforms.json.

    Args:
        content: the parsed file: `frames` with a camera-to-world `transform_matrix` (4, 4) each, and, for all frames
            or in each, fl_x (and fl_y, cx, cy) in pixels or camera_angle_x in radians; w and h in pixels.
        source: the file's name, for error messages.
        up: the vertical axis of its world; 'z' (Blender) is turned into y.
        size: (height, width) where the file has no w and h, as in NeRF-synthetic.

    Raises:
        DataError: a missing or malformed field, lens distortion, views of different sizes.
        CameraError: matrices that are no cameras.
    """
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{source}: frames is missing or empty, expected a list with one entry per view")
    views = [_frame(content, frame, f"{source}: frames[{i}]", size) for i, frame in enumerate(frames)]
    matrices, intrinsics, sizes = zip(*views, strict=True)
    if len(set(sizes)) > 1:
        raise DataError(f"{source}: views have sizes {sorted(set(sizes))}, expected one (height, width)")
    camera_to_world = torch.stack(matrices)
    world = Z_UP_TO_Y_UP if up == "z" else torch.eye(3, dtype=torch.float64)
    rotation = ((world @ camera_to_world[:, :3, :3]) * OPENGL_AXES).mT
    translation = -(rotation @ world @ camera_to_world[:, :3, 3:])
    world_to_camera = torch.cat([rotation, translation], dim=-1)
    return Cameras(world_to_camera.float(), torch.stack(intrinsics).float(), *sizes[0]).validate(source)


def _frame(content, frame, name, size):
    """Camera-to-world (4, 4), intrinsics (3, 3) and (height, width) of one frame."""
    fields = {**content, **frame}

    def number(key: str, default: float | None = None) -> float:
        value = fields.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{name}: {key} is {value!r}, expected a finite number")
        return float(value)

    for key in DISTORTION:
        if number(key, 0.0) != 0:
            raise DataError(f"{name}: {key} is {fields[key]}, expected undistorted images (0)")
    height, width = size or (int(number("h")), int(number("w")))
    if "fl_x" in fields:
        focal_x = number("fl_x")
        focal_y = number("fl_y", focal_x)
    else:
        focal_x = focal_y = 0.5 * width / math.tan(0.5 * number("camera_angle_x"))
    cx, cy = number("cx", width / 2), number("cy", height / 2)
    try:
        matrix = torch.tensor(fields.get("transform_matrix"), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: transform_matrix is not a table of numbers, expected (4, 4)") from error
    if tuple(matrix.shape) != (4, 4):
        raise DataError(f"{name}: transform_matrix has shape {tuple(matrix.shape)}, expected (4, 4)")
    intrinsics = torch.tensor([[focal_x, 0, cx], [0, focal_y, cy], [0, 0, 1]], dtype=torch.float64)
    return matrix, intrinsics, (height, width)
