"""Where learning poses starts: all subjects are one solid in the neutral pose, inflated from their mean silhouette.

A narrow camera that stands still cannot tell a turn to the left of a face that bulges from one to the right of a face
that is hollow. Both explain a video, each subject would choose for itself, and the predictor, which all of them share,
would be told opposite things: no turn is learned. Once all subjects bulge, a turn means the same for each of them.
UVA [63] has nothing like it, and trains far longer on far more videos.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import require
from ..rendering.cameras import Cameras
from .poses import half_width, neutral, project

EDGE = 0.04  # half-width of the solid's soft surface
COVERED = 0.5  # share of all frames that a pixel of the mean silhouette is covered in


def inflated_silhouette(masks: Tensor, camera: Cameras, resolution: int) -> Tensor:
    """A solid (S, S, S) = (z, y, x) in [0, 1] that `camera` sees as the mean of masks (n, h, w), S = `resolution`.

    A pixel whose distance to the outline is d, of at most D, is sqrt(2 d D - d^2) deep to both sides of z = 0: a disc
    becomes a ball, a band a cylinder. masks are in [0, 255] or [0, 1], as their dtype is uint8 or not.

    Raises ConfigError where no pixel is covered in half of the masks.
    """
    from scipy.ndimage import distance_transform_edt

    unit = 255.0 if masks.dtype == torch.uint8 else 1.0
    covered = masks.float().mean(0) / unit > COVERED
    require(bool(covered.any()), "no pixel shows the subject in half of the frames, expected some to start from")
    pixel = 2 * half_width(camera) * camera.centres()[0].norm().item() / camera.width  # its width at the origin
    distance = pixel * torch.from_numpy(distance_transform_edt(covered.cpu().numpy())).float()
    depth = (2 * distance * distance.max() - distance.square()).sqrt()

    axis = torch.linspace(-1, 1, resolution)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    seen = project(neutral(1), torch.stack([x, y, z], dim=-1).view(1, -1, 3), camera).view(1, 1, -1, 2)
    depth = F.grid_sample(depth[None, None], seen, align_corners=False).view(resolution, resolution, resolution)
    return ((depth - z.abs()) / EDGE).sigmoid() * (depth > 0)
