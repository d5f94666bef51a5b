"""Keypoints (B.1): N_p x N_k learned points in 3D, and a network that predicts their positions in an image.

The 3D keypoints live in the canonical cube and are shared by all subjects. The predictor is the U-Net of the
first-order motion model [62] with one heat map for each of them. Image coordinates are (x, y) in [-1, 1], x to the
right and y down, from edge to edge: pixel i of n has its centre at (2 i + 1) / n - 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..settings.articulation import ArticulationConfig

BORDER = 0.98  # of the visible part of the cube, where keypoints end up that are moved out of it


class DownBlock(nn.Sequential):
    """Convolution -> batch norm -> ReLU -> mean over 2x2: (n, c_in, r, r) -> (n, c_out, r/2, r/2)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.AvgPool2d(2))


class UpBlock(nn.Sequential):
    """Nearest upsampling -> convolution -> batch norm -> ReLU: (n, c_in, r, r) -> (n, c_out, 2r, 2r)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(
            nn.Upsample(scale_factor=2), nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()
        )


class Hourglass(nn.Module):
    """The U-Net of the first-order motion model [62]: (n, c, r, r) -> (n, channels + c, r, r), the input passed on."""

    def __init__(self, c_in: int, channels: int, max_channels: int, blocks: int):
        super().__init__()
        widths = [c_in] + [min(max_channels, channels * 2**level) for level in range(1, blocks + 1)]
        self.down = nn.ModuleList(DownBlock(a, b) for a, b in zip(widths, widths[1:], strict=False))
        up = []
        for level in reversed(range(blocks)):
            skipped = widths[level + 1] if level < blocks - 1 else 0
            up.append(UpBlock(widths[level + 1] + skipped, min(max_channels, channels * 2**level)))
        self.up = nn.ModuleList(up)
        self.out_channels = min(max_channels, channels) + c_in

    def forward(self, x: Tensor) -> Tensor:
        skips = [x]
        for block in self.down:
            skips.append(block(skips[-1]))
        x = skips.pop()
        for block in self.up:
            x = torch.cat([block(x), skips.pop()], dim=1)
        return x


class KeypointPredictor(nn.Module):
    """Image positions of each part's keypoints: images (n, h, w, 3) in [0, 1] -> (n, N_p, N_k, 2) in [-1, 1]."""

    def __init__(self, settings: ArticulationConfig, num_parts: int):
        super().__init__()
        self.settings, self.num_parts = settings, num_parts
        self.hourglass = Hourglass(
            3, settings.predictor_channels, settings.predictor_max_channels, settings.predictor_blocks
        )
        size = settings.predictor_kernel
        self.head = nn.Conv2d(self.hourglass.out_channels, num_parts * settings.keypoints, size, padding=size // 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.resize(images).movedim(-1, 1)
        points = soft_argmax(self.head(self.hourglass(x)), self.settings.temperature)
        return points.view(len(images), self.num_parts, self.settings.keypoints, 2)

    def resize(self, images: Tensor) -> Tensor:
        """Images (n, h, w, 3) at the resolution that the predictor sees them in, (n, r, r, 3)."""
        size = (self.settings.predictor_resolution,) * 2
        if images.shape[1:3] == size:
            return images
        x = F.interpolate(images.movedim(-1, 1), size, mode="bilinear", antialias=True, align_corners=False)
        return x.movedim(1, -1)


def soft_argmax(maps: Tensor, temperature: float) -> Tensor:
    """Mean position under softmax(map / temperature): (n, c, h, w) -> (n, c, 2), (x, y) in [-1, 1]."""
    h, w = maps.shape[-2:]
    shares = F.softmax(maps.flatten(2).float() / temperature, dim=-1).view(*maps.shape)
    x = (shares.sum(-2) * pixel_centres(w, maps.device)).sum(-1)
    y = (shares.sum(-1) * pixel_centres(h, maps.device)).sum(-1)
    return torch.stack([x, y], dim=-1)


def pixel_centres(n: int, device: torch.device | str = "cpu") -> Tensor:
    """Centres of n pixels across an image, (n,) in (-1, 1)."""
    return (2 * torch.arange(n, device=device) + 1) / n - 1


class CanonicalKeypoints(nn.Module):
    """K^3D: the keypoints of all parts in the canonical cube, learned from the grid that all of them start on.

    They stay in the part of the cube that the camera sees in the neutral pose, |x| < 1 / margin.
    """

    def __init__(self, settings: ArticulationConfig, num_parts: int):
        super().__init__()
        n = settings.keypoints_per_axis
        axis = torch.linspace(0, 1, n + 2)[1:-1].logit()
        grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(1, n**3, 3)
        self.raw = nn.Parameter(grid.repeat(num_parts, 1, 1))
        self.extent = 1 / settings.margin

    def forward(self) -> Tensor:
        """(N_p, N_k, 3)."""
        return self.extent * (2 * self.raw.sigmoid() - 1)

    @torch.no_grad()
    def gather_around(self, centres: Tensor, extent: float) -> None:
        """Shrink the keypoints of each part by `extent` and move them, so that `centres` (N_p, 3) are where the cube's
        centre was. What would leave the visible part of the cube stays at its border."""
        points = (centres[:, None] + extent * self()) / self.extent
        self.raw.copy_((points.clamp(-BORDER, BORDER) / 2 + 0.5).logit())
