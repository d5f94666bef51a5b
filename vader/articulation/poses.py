"""Poses from keypoints: EPnP [36] through PyTorch3D, with a bound on the gradients that it hands back (B.1).

A *pose* (..., 3, 4) = [R | t] maps a part from the canonical cube to its place in the world, x -> R x + t. The world
is the cube that the fixed camera looks at: x right, y up, z towards the camera, which stands on the z axis. In the
neutral pose, the identity, a part is where the canonical cube has it. The paper's camera pose of a part, from canonical
space to the camera, is the camera's world-to-camera matrix after ours.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rendering.cameras import Cameras, intrinsics_from_fov, look_at
from ..settings.articulation import ArticulationConfig

# What the solver refuses: points as good as equal, weights as good as zero, 3D points as good as in a plane.
MIN_SPREAD = 1e-4  # of 2D keypoints around their mean, root mean square, in units of half the image
MIN_WEIGHT = 1e-6  # mean of the weights
MIN_FLATNESS = 1e-3  # smallest over largest singular value of the centred 3D keypoints
MAX_GAIN = 10.0  # of a gradient on its way from a pose to its 2D or its 3D points; 0.3 is usual


class PoseError(ValueError):
    """Keypoints, poses or images that do not fit together; the message names the field and what was expected."""


def fixed_camera(settings: ArticulationConfig, resolution: int) -> Cameras:
    """The one camera of all videos (n = 1), in the units of the canonical cube."""
    eye = torch.tensor([[0.0, 0.0, settings.distance]])
    intrinsics = intrinsics_from_fov(math.degrees(settings.field_of_view), resolution, resolution)
    return Cameras(look_at(eye), intrinsics[None], resolution, resolution)


def orbit(settings: ArticulationConfig, resolution: int, azimuths: Tensor, elevation: float = 0.0) -> Cameras:
    """Cameras like the fixed one, moved around the cube by `azimuths` (n,), in degrees, 0 where that one is."""
    angle, height = torch.deg2rad(torch.as_tensor(azimuths, dtype=torch.float32)), math.radians(elevation)
    cosine, sine = math.cos(height), math.sin(height)
    eyes = torch.stack([cosine * angle.sin(), torch.full_like(angle, sine), cosine * angle.cos()], dim=-1)
    intrinsics = intrinsics_from_fov(math.degrees(settings.field_of_view), resolution, resolution)
    return Cameras(
        look_at(settings.distance * eyes), intrinsics.expand(len(eyes), 3, 3).contiguous(), resolution, resolution
    )


def neutral(*shape: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Neutral poses (*shape, 3, 4)."""
    return torch.eye(3, 4, device=device, dtype=dtype).expand(*shape, 3, 4)


def transform(poses: Tensor, points: Tensor) -> Tensor:
    """R x + t: poses (..., 3, 4), points (..., n, 3) -> (..., n, 3)."""
    return points @ poses[..., :3].mT + poses[..., None, :, 3]


def invert(poses: Tensor) -> Tensor:
    """The rigid maps back, [R^T | -R^T t]."""
    rotation = poses[..., :3].mT
    return torch.cat([rotation, -rotation @ poses[..., 3:]], dim=-1)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """First `inner`, then `outer`, (..., 3, 4)."""
    rotation = outer[..., :3] @ inner[..., :3]
    return torch.cat([rotation, outer[..., :3] @ inner[..., 3:] + outer[..., 3:]], dim=-1)


def turn_about(points: Tensor, vectors: Tensor, shifts: Tensor) -> Tensor:
    """Poses (..., 3, 4) that turn by rotation vectors (..., 3) about points (..., 3) and shift by (..., 2) in x and y:
    a narrow camera does not see how far away a part is."""
    rotation = rotation_matrices(vectors)
    moved = points - (rotation @ points[..., None])[..., 0]
    moved = moved + torch.cat([shifts, torch.zeros_like(shifts[..., :1])], dim=-1)
    return torch.cat([rotation, moved[..., None]], dim=-1)


def project(poses: Tensor, points: Tensor, camera: Cameras) -> Tensor:
    """Image positions of posed points: poses (..., 3, 4), points (..., n, 3) -> (..., n, 2) in [-1, 1]."""
    x = transform(compose(camera.world_to_camera[0].to(poses), poses), points)
    return x[..., :2] / x[..., 2:] / half_width(camera)


def half_width(camera: Cameras) -> float:
    """Half the image at depth 1: what keypoint coordinates are multiplied with to be directions (x/z, y/z)."""
    return camera.width / 2 / camera.intrinsics[0, 0, 0].item()


class Guard:
    """Counts of the solver's degenerate problems, and a bound on the gradients that it hands back.

    refused: degenerate problems, which got the neutral pose without a gradient.
    not_finite, once backward has run: problems whose gradients were NaN or infinite and are dropped.
    clipped, once backward has run: problems whose gradients the solver had enlarged by more than `MAX_GAIN`, from the
        norm of a pose's gradient to that of its points. They are scaled down to it.
    """

    def __init__(self, usable: Tensor):
        self.problems, self.refused = len(usable), int((~usable).sum())
        self._incoming = torch.zeros(len(usable), device=usable.device)
        self._dropped, self._scaled = torch.zeros_like(usable), torch.zeros_like(usable)

    @property
    def not_finite(self) -> int:
        return int(self._dropped.sum())

    @property
    def clipped(self) -> int:
        return int(self._scaled.sum())

    def watch(self, poses: Tensor, *points: Tensor) -> None:
        """Clean the gradients that go from poses (m, 3, 4) to points (m, k, d)."""
        if poses.requires_grad:
            poses.register_hook(self._note)
        for tensor in points:
            if tensor.requires_grad:
                tensor.register_hook(self._clean)

    def _note(self, gradient: Tensor) -> None:
        self._incoming = torch.linalg.vector_norm(gradient.flatten(1), dim=1)

    def _clean(self, gradient: Tensor) -> Tensor:
        finite = torch.isfinite(gradient).flatten(1).all(1)
        gradient = torch.where(finite[:, None, None], gradient, torch.zeros_like(gradient))
        norm, bound = torch.linalg.vector_norm(gradient.flatten(1), dim=1), MAX_GAIN * self._incoming
        self._dropped |= ~finite
        self._scaled |= norm > bound
        return gradient * torch.where(norm > bound, bound / norm, 1.0)[:, None, None]

    def shares(self) -> dict[str, Tensor]:
        """For the log: shares of the problems."""
        counts = {"refused": self.refused, "not_finite": self.not_finite, "clipped": self.clipped}
        return {f"pnp_{name}": torch.tensor(count / self.problems) for name, count in counts.items()}


def solve_poses(
    points3d: Tensor, points2d: Tensor, camera: Cameras, weights: Tensor | None = None
) -> tuple[Tensor, Guard]:
    """EPnP [36]: the poses in which `camera` sees 3D keypoints where an image has them.

    Args:
        points3d: (m, k, 3) in the canonical cube. points2d: (m, k, 2) in [-1, 1], see `keypoints`. k is 4 or more.
        camera: the fixed one (n = 1).
        weights: (m, k) >= 0 of the points; None weighs them alike.

    Returns:
        Poses (m, 3, 4) of points2d's dtype, solved in float64, and what the guard did. Degenerate problems (points
        not finite or as good as equal, 3D points in a plane, weights of zero) get the neutral pose and hand back no
        gradient; those of the others are finite and bounded. All of it is counted.

    Raises:
        PoseError: shapes that do not fit.
    """
    check_problems(points3d, points2d, weights)
    usable = solvable(points3d.detach(), points2d.detach(), weights)

    # A refused problem is replaced by one that is solved by the neutral pose: a cube of corners, as the camera sees it.
    k = points2d.shape[1]
    corners = 0.5 * torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=torch.float64)
    stand_in = corners.to(points2d.device)[torch.arange(k, device=points2d.device) % len(corners)]
    seen = project(neutral(dtype=torch.float64, device=points2d.device), stand_in, camera)
    keep = usable[:, None, None]
    x = torch.where(keep, points3d.double(), stand_in)
    y = torch.where(keep, points2d.double(), seen)
    w = None if weights is None else torch.where(usable[:, None], weights.double(), 1.0)
    from_camera = invert(camera.world_to_camera.to(points2d.device).double())[0]
    poses = compose(from_camera, _efficient_pnp(x, half_width(camera) * y, w))
    usable = usable & torch.isfinite(poses.detach()).flatten(1).all(1)
    guard = Guard(usable)
    guard.watch(poses, x, y)
    substitute = neutral(len(poses), device=poses.device, dtype=poses.dtype)
    return torch.where(usable[:, None, None], poses, substitute).to(points2d.dtype), guard


def cross_matrices(vectors: Tensor) -> Tensor:
    """[v]x (..., 3, 3) of vectors (..., 3): [v]x w = v x w."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def rotation_matrices(vectors: Tensor) -> Tensor:
    """Rotations (..., 3, 3) by |vector| radians about vectors (..., 3); differentiable at 0, too."""
    return torch.linalg.matrix_exp(cross_matrices(vectors))


def _efficient_pnp(x: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
    """PyTorch3D's solution as maps to the camera, (m, 3, 4); y are directions (x/z, y/z)."""
    try:
        from pytorch3d.ops import efficient_pnp
    except ImportError as error:
        raise ImportError("pose estimation needs PyTorch3D with its compiled parts: pip install easypytorch3d") from (
            error
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # points behind the camera, low rank: the guard deals with them
        solution = efficient_pnp(x, y, weights)
    return torch.cat([solution.R.mT, solution.T[..., None]], dim=-1)  # its R multiplies row vectors


def solvable(points3d: Tensor, points2d: Tensor, weights: Tensor | None = None) -> Tensor:
    """Which problems (m,) are fit for the solver, whose decompositions raise on NaN and have no gradient on a point."""
    finite = torch.isfinite(points3d).flatten(1).all(1) & torch.isfinite(points2d).flatten(1).all(1)
    share = torch.full(points2d.shape[:2], 1 / points2d.shape[1], dtype=torch.float64, device=points2d.device)
    if weights is not None:
        w = weights.detach().double()
        finite &= torch.isfinite(w).all(1) & (w >= 0).all(1) & (w.mean(1) > MIN_WEIGHT)
        share = w / w.sum(1, keepdim=True).clamp_min(1e-300)
    x, y, share = (torch.where(finite[:, None, None], t.double(), 0.0) for t in (points3d, points2d, share[..., None]))
    y = y - (share * y).sum(1, keepdim=True)
    spread = (share * y.square()).sum((1, 2)).sqrt()
    x = x - (share * x).sum(1, keepdim=True)
    singular = torch.linalg.eigvalsh((share * x).mT @ x).clamp_min(0).sqrt()
    return finite & (spread > MIN_SPREAD) & (singular[:, 0] > MIN_FLATNESS * singular[:, 2])


def check_problems(points3d: Tensor, points2d: Tensor, weights: Tensor | None = None) -> None:
    """Raises PoseError for shapes that are not (m, k, 3), (m, k, 2) and (m, k) of four points or more."""
    if points3d.ndim != 3 or points3d.shape[-1] != 3 or points2d.shape != (*points3d.shape[:2], 2):
        raise PoseError(
            f"points3d {tuple(points3d.shape)} and points2d {tuple(points2d.shape)}, expected (m, k, 3) and (m, k, 2)"
        )
    if points3d.shape[1] < 4:
        raise PoseError(f"{points3d.shape[1]} keypoints a part, expected at least 4")
    if weights is not None and weights.shape != points2d.shape[:2]:
        raise PoseError(f"weights have shape {tuple(weights.shape)}, expected {tuple(points2d.shape[:2])}")


def random_affine(n: int, sigma: float, generator: torch.Generator | None = None) -> Tensor:
    """Affine maps of the image plane near the identity, (n, 2, 3): each entry moved by N(0, sigma^2) [63]."""
    return torch.eye(2, 3) + sigma * torch.randn(n, 2, 3, generator=generator)


def warp_points(maps: Tensor, points: Tensor) -> Tensor:
    """Affine maps (n, 2, 3) of image points (n, k, 2)."""
    return points @ maps[:, :, :2].mT + maps[:, None, :, 2]


def unwarp_points(maps: Tensor, points: Tensor) -> Tensor:
    """The points (n, k, 2) that affine maps (n, 2, 3) take to the given ones: where a warped image has them."""
    return torch.linalg.solve(maps[:, None, :, :2], (points - maps[:, None, :, 2])[..., None])[..., 0]


def warp_images(maps: Tensor, images: Tensor) -> Tensor:
    """Images (n, h, w, 3) that show at u what the given ones show at A u; black where that is outside."""
    grid = F.affine_grid(maps, [len(images), 3, *images.shape[1:3]], align_corners=False)
    return F.grid_sample(images.movedim(-1, 1), grid, align_corners=False).movedim(1, -1)
