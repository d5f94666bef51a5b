"""Initial solids in the neutral pose, inflated from mean silhouettes.

A narrow camera that stands still cannot tell a turn to the left of a face that bulges from one to the right of a face
that is hollow. Both explain a video, and each subject would choose for itself. The predictor, which all subjects share,
would get opposite targets and learn no turn. Once all subjects bulge, a turn means the same for each of them. UVA [63]
has nothing like it, and trains far longer on far more videos.

Colours on that solid are a mean over frames, too. Where subjects turn far and move their limbs, little is left in these
colours to tell one pose from another. Both bodies and heads have two equal sides: a frame that looks like its mirror
image shows them from the front or from behind. Training can begin with such frames, whose mean is sharp, and take in
the others by and by (`asymmetry`, `ArticulationConfig.neutral_share`).

Nor can such a camera tell a subject that turns from a deeper one that turns less (the bas-relief ambiguity of Belhumeur
et al.). The deeper one is easier to learn, and turns come out at a third of their true size. So density is kept out of
all depths beyond the silhouette's width (`half_depth`, `ArticulationConfig.depth_weight`). This begins only once turns
are known (`free_depth_images`): flattening the subject then enlarges them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...rendering.cameras import Cameras
from ...rendering.rays import voxel_centres
from ...settings.checks import require
from ..poses import half_width, neutral, project

EDGE = 0.04  # half-width of the solid's soft surface
COVERED = 0.5  # share of all frames that a pixel of the mean silhouette is covered in
MIRRORS = 6  # pixels to both sides of the centre of mass between which the mirror may stand, in steps of a half


def inflated_silhouette(masks: Tensor, camera: Cameras, resolution: int) -> Tensor:
    """A solid (S, S, S) = (z, y, x) in [0, 1] that `camera` sees as the mean of masks (n, h, w), S = `resolution`.

    A pixel whose distance to the outline is d, of at most D, is sqrt(2 d D - d^2) deep to both sides of z = 0: a disc
    becomes a ball, a band a cylinder.

    masks: in [0, 255] if their dtype is uint8, else in [0, 1].

    Raises ConfigError where no pixel is covered in half of the masks.
    """
    distance = _inner_distance(masks, camera)
    depth = (2 * distance * distance.max() - distance.square()).sqrt()

    points = voxel_centres(resolution)
    seen = project(neutral(1), points[None], camera).view(1, 1, -1, 2)
    depth = F.grid_sample(depth[None, None], seen, align_corners=False).view(resolution, resolution, resolution)
    return ((depth - points[:, 2].view_as(depth).abs()) / EDGE).sigmoid() * (depth > 0)


def half_depth(masks: Tensor, camera: Cameras) -> float:
    """Radius of the largest disc in the mean silhouette of masks (n, h, w), in the world's units: half the depth of
    `inflated_silhouette`. Raises ConfigError as that does."""
    return _inner_distance(masks, camera).max().item()


def _inner_distance(masks: Tensor, camera: Cameras) -> Tensor:
    """From each pixel of the mean silhouette to its outline, (h, w), in the world's units at the origin; 0 outside."""
    from scipy.ndimage import distance_transform_edt

    unit = 255.0 if masks.dtype == torch.uint8 else 1.0
    covered = masks.float().mean(0) / unit > COVERED
    require(bool(covered.any()), "no pixel shows the subject in half of the frames, expected some to start from")
    pixel = 2 * half_width(camera) * camera.centres()[0].norm().item() / camera.width  # its width at the origin
    return pixel * torch.from_numpy(distance_transform_edt(covered.cpu().numpy())).float()


def asymmetry(frames: Tensor, masks: Tensor, covered: float = 0.0) -> Tensor:
    """How far frames (n, h, w, 3) with masks (n, h, w), all uint8, are from their mirror images: (n,), 0 if equal.

    The mean difference of colours and masks over the subject, left and right exchanged at the upright line near its
    centre of mass that makes it smallest. Background is taken as black. Infinite for a frame without subject.

    covered: leave out pixels that the subject covers in no more than this share of the frames. What swings far is not
    symmetric in a frame from the front either.
    """
    mask = masks.float() / 255
    mask = mask * (mask.mean(0) > covered)
    images = torch.cat([frames.float() / 255 * mask[..., None], mask[..., None]], dim=-1)
    n, _, w, c = images.shape
    area, columns = mask.sum((1, 2)), torch.arange(w, device=masks.device)
    centre = (mask.sum(1) * columns).sum(1) / area.clamp_min(1e-6)
    best = torch.full((n,), torch.inf, device=masks.device)
    for shift in range(-MIRRORS, MIRRORS + 1):
        opposite = (2 * centre + shift).round().long()[:, None] - columns  # (n, w), the column that each is mirrored to
        inside = (opposite >= 0) & (opposite < w)
        index = opposite.clamp(0, w - 1)[:, None, :, None].expand_as(images)
        mirrored = images.gather(2, index) * inside[:, None, :, None]
        best = torch.minimum(best, (images - mirrored).abs().sum((1, 2, 3)) / (c * area))
    return torch.where(area > 0, best, torch.inf)


def centre_shifts(masks: Tensor, camera: Cameras) -> Tensor:
    """World translations (n, 3), in the plane through the origin, that move a subject as the centres of a video's masks
    (n, h, w) move about their mean; `camera` is `fixed_camera`, x to its right and y up."""
    mask = masks.float()
    n, h, w = mask.shape
    x, y = ((2 * torch.arange(size, device=masks.device) + 1) / size - 1 for size in (w, h))
    area = mask.sum((1, 2)).clamp_min(1e-6)
    centre = torch.stack([(mask.sum(1) * x).sum(1) / area, -(mask.sum(2) * y).sum(1) / area, torch.zeros(n)], dim=1)
    return (centre - centre.mean(0)) * half_width(camera) * camera.centres()[0].norm().item()
