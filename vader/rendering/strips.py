"""Pictures to look at: an object from several sides in a row, with depth and normals."""

from __future__ import annotations

import torch
from torch import Tensor

from ..settings.experiment import DataConfig
from .cameras import turntable
from .render import render_views

REACH = 1.2  # objects stay within this radius of the origin


def picture_row(volume: Tensor, config: DataConfig, num_samples: int, resolution: int = 96) -> Tensor:
    """One object (4, S, S, S) as a strip (h, 6 w, 3): four views, then depth and normals of the first."""
    views = render_views(volume[None].float(), turntable(config, resolution=resolution), num_samples)
    colour, depth = views["colour"][0].cpu(), views["depth"][0, 0].cpu()
    shade = depth_shade(depth, config)[..., None].expand(-1, -1, 3)
    normals = normal_colours(views["normals"][0, 0], views["occupancy"][0, 0]).cpu()
    return torch.cat([*colour, shade, normals], dim=1).clamp(0, 1)


def three_views(volume: Tensor, config: DataConfig, num_samples: int, resolution: int = 96) -> Tensor:
    """One object (4, S, S, S) as a block (2 h, 4 w, 3): three views, their normals below, and depth of the third."""
    views = render_views(volume[None].float(), turntable(config, resolution=resolution)[:3], num_samples)
    views = {name: values[0].cpu() for name, values in views.items()}
    shade = depth_shade(views["depth"][2], config)[..., None].expand(-1, -1, 3)
    above = torch.cat([*views["colour"], shade], dim=1)
    below = torch.cat([*normal_colours(views["normals"], views["occupancy"]), torch.zeros_like(shade)], dim=1)
    return torch.cat([above, below]).clamp(0, 1)


def depth_shade(depth: Tensor, config: DataConfig) -> Tensor:
    """Depth (...) as a grey level: near is bright, and 0, where nothing is hit, stays black."""
    near, far = config.camera_distance - REACH, config.camera_distance + REACH
    return torch.where(depth > 0, 1 - 0.8 * ((depth - near) / (far - near)).clamp(0, 1), torch.zeros_like(depth))


def normal_colours(normals: Tensor, occupancy: Tensor) -> Tensor:
    """World-space normals (..., 3) as colours, x, y, z from -1 to 1 as red, green, blue; black where nothing is hit."""
    return 0.5 * (normals + 1) * occupancy[..., None]
