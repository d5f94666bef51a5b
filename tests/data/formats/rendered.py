"""A small rendered object that the tests' writers lay out on disk, and what is asked of what was read back."""

from __future__ import annotations

import numpy as np
import torch

from vader.data.formats.shared.normalise import hull_iou
from vader.data.meshes.raycast import render
from vader.data.sequence import Sequence
from vader.data.synthetic.factors import draw
from vader.data.synthetic.shapes import build
from vader.rendering.cameras import Cameras, look_at

VIEWS, SIDE = 14, 64


def orbit(views: int, height: int, width: int, focal: float, distance: float = 3.2, principal=None) -> Cameras:
    """Cameras around the origin, at changing heights, in order of azimuth."""
    turn = torch.arange(views, dtype=torch.float64) * 2 * torch.pi / views
    rise = torch.deg2rad(torch.tensor([10.0, 30.0, 50.0])).double()[torch.arange(views) % 3]
    eyes = distance * torch.stack([rise.cos() * turn.sin(), rise.sin(), rise.cos() * turn.cos()], dim=1)
    cx, cy = principal or (width / 2, height / 2)
    k = torch.tensor([[focal, 0, cx], [0, focal, cy], [0, 0, 1]]).expand(views, 3, 3).contiguous()
    return Cameras(look_at(eyes).float(), k, height, width)


def pictured(cameras: Cameras, supersampling: int = 1, index: int = 0) -> Sequence:
    """A procedural table as these cameras see it."""
    images, masks = render(build("tables", draw("tables", 0, index)), cameras, supersampling)
    return Sequence("table", images, masks, cameras)


def check(found: Sequence, expected: Sequence, exact: bool = True, order=None) -> None:
    """Cameras reproject within 0.05 pixels, colours and masks are equal, and the hull fills the masks."""
    order = list(range(len(expected))) if order is None else order
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    error = (found.cameras.project(points) - expected.cameras[order].project(points)).norm(dim=-1)
    assert error.max() <= 0.05
    tolerance = 0 if exact else 2
    assert (found.images.int() - expected.images[order].int()).abs().max() <= tolerance
    assert (found.masks.int() - expected.masks[order].int()).abs().max() <= tolerance
    assert hull_iou(found.cameras, found.masks, [0, len(found) // 2]) >= 0.95


def rigid_inverse(matrix: np.ndarray) -> np.ndarray:
    """Of (4, 4), by transposition, not by the solver that the readers use."""
    out = np.eye(4)
    out[:3, :3] = matrix[:3, :3].T
    out[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
    return out


class World:
    """Another world that the object stands in: x_world = axes^T x / scale + centre, in which files are written."""

    def __init__(self, axes=np.eye(3), scale: float = 1.0, centre=(0.0, 0.0, 0.0)) -> None:  # noqa: B008
        self.axes, self.scale, self.centre = np.asarray(axes, dtype=float), scale, np.asarray(centre, dtype=float)

    def camera_to_world(self, cameras: Cameras) -> np.ndarray:
        """(v, 4, 4), OpenCV camera axes."""
        out = []
        for pose in cameras.world_to_camera.double().numpy():
            back = rigid_inverse(np.vstack([pose, [0, 0, 0, 1]]))
            there = np.eye(4)
            there[:3, :3] = self.axes.T @ back[:3, :3]
            there[:3, 3] = self.axes.T @ back[:3, 3] / self.scale + self.centre
            out.append(there)
        return np.stack(out)


def check_in_its_place(found: Sequence, truth: Sequence, world: World, order: list[int]) -> None:
    """`found` at any resolution and wherever it was put: points of the files' world are where the truth has them, to
    0.05 pixels, and the hull fills the masks. order: of the truth's views."""
    place = {name: torch.tensor(value).double() for name, value in found.attributes["placing"].items()}
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)).double() * 1.2 - 0.6
    in_files = points @ torch.from_numpy(world.axes) / world.scale + torch.from_numpy(world.centre)
    cube = (place["scale"] * (in_files - place["centre"]) @ place["turn"].T).float()
    seen = truth.cameras.project(points.float())[order] * found.cameras.width / truth.cameras.width
    assert (found.cameras.project(cube) - seen).norm(dim=-1).max() <= 0.05
    assert hull_iou(found.cameras, found.masks, [0, len(found) // 2]) >= 0.95
