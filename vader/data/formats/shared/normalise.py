"""Objects into the cube [-1, 1]^3, y up; and the visual hull of their masks, which says where they are.

The visual hull is the set of points that every view which sees them has inside its mask. It is sampled along the rays
of mask pixels, so that no grid limits it: Laurentini, "The visual hull concept for silhouette-based image
understanding", 1994. The paper refers to its normalisation (Sec. 4.1) and does not describe it; this one is ours.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from ....rendering.cameras import Cameras
from ...meshes.raycast import HALF_EXTENT, SPHERE_RADIUS
from ...prepared import DataError
from ...sequence import Sequence
from .scenes import Placing

SAMPLES = 128  # along a ray
RAYS = 4096  # that look for the object's place
AGREEMENT = 0.95  # share of the views that see a point and have it inside their masks, for the object's place
CIRCUMSCRIBED = 1.75  # more than sqrt(3): a sphere that holds the cube


# ---------------------------------------------------------------------------------------- visual hull


def support(
    points: Tensor, cameras: Cameras, covered: Tensor, agreement: float = 0.0, slack: bool = False
) -> tuple[Tensor, Tensor]:
    """Of points (n, 3): how many views see them (in front, inside the picture), and how many have them inside their
    masks `covered` (v, h, w) bool; both (n,) int64. Points that are sure to miss the `agreement` are not looked at to
    the end.

    slack: one of the four pixels around a point will do, since the edge of what was sampled at pixel centres may lie
    half a pixel further out.
    """
    seen = torch.zeros(len(points), dtype=torch.int64)
    inside = torch.zeros_like(seen)
    h, w = covered.shape[1:]
    if slack:  # (v, h + 1, w + 1)
        covered = torch.nn.functional.max_pool2d(covered[:, None].float(), 2, stride=1, padding=1)[:, 0] > 0
    points = points.double()
    allowed = (1 - agreement) * len(cameras)
    for view in range(len(cameras)):
        left = (seen - inside <= allowed).nonzero()[:, 0]  # the others cannot reach the agreement any more
        pose, k = cameras.world_to_camera[view].double(), cameras.intrinsics[view].double()
        at = (points[left] @ pose[:, :3].T + pose[:, 3]) @ k.T
        x, y = (at[:, i] / at[:, 2].clamp(min=1e-12) for i in (0, 1))
        there = (at[:, 2] > 0) & (x >= 0) & (x < w) & (y >= 0) & (y < h)
        x, y = ((v + 0.5 * slack).clamp(0, size - 1 + slack).long() for v, size in ((x, w), (y, h)))
        seen[left] += there
        inside[left] += there & covered[view][y, x]
    return seen, inside


def hull_points(
    cameras: Cameras,
    masks: Tensor,
    view: int,
    pixels: Tensor,
    centre: Tensor,
    radius: float,
    agreement: float = 1.0,
    slack: bool = False,
) -> tuple[Tensor, Tensor]:
    """Samples of the visual hull on the rays of a view's pixels (n, 2), (row, column), inside a sphere.

    Returns points (n, SAMPLES, 3) float64 and whether they belong to the hull (n, SAMPLES). A point counts where at
    least half of the views, and two, see it and `agreement` of these have any coverage there; slack as in `support`.
    """
    points, there = _on_rays(cameras, view, pixels, centre, radius)
    return points, there & _in_hull(points, cameras, masks, agreement, slack)


def _in_hull(points: Tensor, cameras: Cameras, masks: Tensor, agreement: float, slack: bool) -> Tensor:
    """Which points (..., 3) belong to the hull, as `hull_points` says."""
    seen, inside = support(points.reshape(-1, 3), cameras, masks > 0, agreement, slack)
    enough = (seen >= max(min(2, len(cameras)), len(cameras) / 2)) & (inside >= agreement * seen)
    return enough.view(points.shape[:-1])


def _on_rays(cameras: Cameras, view: int, pixels: Tensor, centre: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Samples (n, SAMPLES, 3) float64 on the rays of a view's pixels inside a sphere, and which are before the
    camera, on rays that meet the sphere."""
    one, dtype = cameras[view], torch.float64
    k, pose = one.intrinsics[0].to(dtype), one.world_to_camera[0].to(dtype)
    homogeneous = torch.cat([pixels.flip(1).to(dtype) + 0.5, torch.ones(len(pixels), 1, dtype=dtype)], dim=1)
    directions = torch.nn.functional.normalize(homogeneous @ torch.linalg.inv(k).T @ pose[:, :3], dim=-1)
    offset = -pose[:, :3].T @ pose[:, 3] - centre
    along = directions @ offset
    half = (along**2 - offset @ offset + radius**2).clamp(min=0).sqrt()
    steps = (torch.arange(SAMPLES, dtype=dtype) + 0.5) / SAMPLES
    depth = (-along - half)[:, None] + 2 * half[:, None] * steps
    points = centre + offset + depth[..., None] * directions[:, None]
    return points, (depth > 0) & (half > 0)[:, None]


def hull_silhouette(cameras: Cameras, masks: Tensor, view: int) -> Tensor:
    """Which pixels (h, w) of a view's mask (at least half covered) show the visual hull of all views, in the cube,
    with half a pixel of slack."""
    pixels = (masks[view] >= 128).nonzero()
    picture = torch.zeros(masks.shape[1:], dtype=torch.bool)
    _, found = hull_points(cameras, masks, view, pixels, torch.zeros(3).double(), CIRCUMSCRIBED, slack=True)
    picture[pixels[:, 0], pixels[:, 1]] = found.any(1)
    return picture


def hull_iou(cameras: Cameras, masks: Tensor, views: list[int] | None = None) -> float:
    """Intersection over union of the hull's silhouettes and the masks: how much of the masks some object in the cube
    explains. 1 for exact cameras and masks; near 0 for cameras of another axis convention, or inverted poses.

    The hull is inside of each mask by its definition, so that this is the share of mask pixels that show it.
    """
    views = list(range(len(cameras))) if views is None else views
    shown = sum(int(hull_silhouette(cameras, masks, v).sum()) for v in views)
    return shown / max(sum(int((masks[v] >= 128).sum()) for v in views), 1)


# ---------------------------------------------------------------------------------------- placing


def merged(given: Placing, own: Placing, habit: str) -> Placing:
    """What is asked for, else what the data say, else the format's habit (of up)."""
    names = [f.name for f in dataclasses.fields(Placing) if getattr(given, f.name) is None]
    both = dataclasses.replace(given, **{name: getattr(own, name) for name in names})
    return both if both.up is not None else dataclasses.replace(both, up=habit)


def normalised(sequence: Sequence, placing: Placing, where: str) -> Sequence:
    """The Sequence with its object in the cube: largest half side HALF_EXTENT, at most SPHERE_RADIUS from the origin.

    placing: what is None in it is found by the visual hull. Cameras become float32. Raises DataError where cameras and
    masks have no common object, or where a camera is inside of it.
    """
    cameras = sequence.cameras
    turn = up_rotation(placing.up or "y", cameras)
    centre, scale, box = placing.centre, placing.scale, None
    if centre is None or scale is None:
        low, high = hull_box(cameras, sequence.masks, turn, where)
        centre = tuple((turn.T @ (low + high) / 2).tolist()) if centre is None else centre
        middle = turn @ np.array(centre)
        half = np.maximum(high - middle, middle - low)
        if scale is None:
            scale = float(min(HALF_EXTENT / half.max(), SPHERE_RADIUS / np.linalg.norm(half)))
        box = scale * half
    placed = moved(cameras, np.array(centre, dtype=float), scale, turn)
    centres = placed.centres().double().numpy()
    within = (np.abs(centres) < (1.0 if box is None else box)).all(1)
    if within.any():
        view = int(np.argmax(within))
        raise DataError(
            f"{where}: view {view}: its camera is inside of the object (at {centres[view].round(3).tolist()} "
            "in the cube), expected cameras around it"
        )
    found = {"centre": [float(x) for x in centre], "scale": float(scale), "turn": turn.tolist()}
    return dataclasses.replace(sequence, cameras=placed, attributes=sequence.attributes | {"placing": found})


def moved(cameras: Cameras, centre: np.ndarray, scale: float, turn: np.ndarray) -> Cameras:
    """Cameras of the world x' = scale * turn (x - centre), float32."""
    pose = cameras.world_to_camera.double()
    turn, centre = torch.from_numpy(turn), torch.from_numpy(centre)
    rotation = pose[:, :, :3] @ turn.T
    translation = scale * (pose[:, :, :3] @ centre + pose[:, :, 3])
    matrices = torch.cat([rotation, translation[..., None]], dim=-1)
    return Cameras(matrices.float(), cameras.intrinsics.float(), cameras.height, cameras.width)


def up_rotation(up: str, cameras: Cameras) -> np.ndarray:
    """Rotation (3, 3) that turns the axis `up` of a world ("y", "-z", ..., or "cameras": their mean) to +y, by the
    shortest way; half a turn is about x."""
    if up == "cameras":
        axis = -cameras.world_to_camera[:, 1, :3].double().mean(0).numpy()
        if np.linalg.norm(axis) < 1e-6:
            return np.eye(3)
        axis = axis / np.linalg.norm(axis)
    else:
        axis = np.zeros(3)
        axis["xyz".index(up[-1])] = -1.0 if up.startswith("-") else 1.0
    y = np.array([0.0, 1.0, 0.0])
    if axis[1] < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    v = np.cross(axis, y)
    skew = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + axis[1])


def hull_box(cameras: Cameras, masks: Tensor, turn: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Bounding box (low, high) of the visual hull, in the turned world. Raises DataError where the hull is empty."""
    centre, radius = _first_guess(cameras, masks, where)
    for _ in range(2):  # the second time around what was found: samples are closer then
        points = _some_hull_points(cameras, masks, centre, radius)
        if len(points) == 0:
            raise DataError(
                f"{where}: the visual hull is empty: no point is inside of all masks, expected cameras and masks "
                "that show one object (another axis convention, or inverted poses?)"
            )
        low, high = points.amin(0), points.amax(0)
        centre = (low + high) / 2
        radius = 1.1 * float((points - centre).norm(dim=1).max()) + 1e-9
    turned = points.numpy() @ turn.T
    return turned.min(0), turned.max(0)


def _some_hull_points(cameras: Cameras, masks: Tensor, centre: Tensor, radius: float) -> Tensor:
    found = []
    for view in range(len(cameras)):
        pixels = (masks[view] >= 128).nonzero()
        every = max(1, len(pixels) * len(cameras) // RAYS)
        if len(pixels := pixels[::every]) == 0:
            continue
        points, there = _on_rays(cameras, view, pixels, centre, radius)
        found.append(points[there])
    if not found:
        return torch.zeros(0, 3)
    points = torch.cat(found)  # of all views at once: operations on few points take as long as on many
    return points[_in_hull(points, cameras, masks, AGREEMENT, False)]


def _first_guess(cameras: Cameras, masks: Tensor, where: str) -> tuple[Tensor, float]:
    """The point nearest to the rays through the masks' centres, and a sphere around it that holds the object."""
    pose, k = cameras.world_to_camera.double(), cameras.intrinsics.double()
    rays, pictured = [], []
    for view in range(len(cameras)):
        at = (masks[view] >= 128).nonzero().double().flip(1) + 0.5
        if len(at) == 0:
            raise DataError(f"{where}: view {view}: mask is nowhere half covered, expected some of the object")
        at = torch.cat([at, torch.ones(len(at), 1, dtype=torch.float64)], dim=1) @ torch.linalg.inv(k[view]).T
        pictured.append(at)
        rays.append(torch.nn.functional.normalize(at.mean(0) @ pose[view, :, :3], dim=0))
    directions, origins = torch.stack(rays), cameras.centres().double()
    across = torch.eye(3, dtype=torch.float64) - directions[:, :, None] * directions[:, None]
    total = across.sum(0)
    if torch.linalg.eigvalsh(total)[0] < 1e-4 * len(cameras):
        raise DataError(f"{where}: all views look the same way, expected some from different sides to place the object")
    centre = torch.linalg.solve(total, (across @ origins[..., None]).sum(0)[:, 0])
    reach = []
    for view in range(len(cameras)):
        here = pose[view, :, :3] @ centre + pose[view, :, 3]
        if here[2] > 0:
            reach.append(here[2] * (pictured[view] - here / here[2]).norm(dim=1).max())
    if len(reach) < len(cameras) / 2:
        raise DataError(
            f"{where}: the views' axes meet behind most cameras, expected in front of them (another axis convention, "
            "or inverted poses?)"
        )
    return centre, 1.2 * float(torch.stack(reach).median() * 1.5)
