"""Pictures for notebooks: objects from several views, with depth and normals beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import SequenceSet
from ..evaluation.metrics.features import to_uint8
from ..rendering.cameras import Cameras, intrinsics_from_fov, look_at
from ..rendering.render import render_views
from ..settings.experiment import DataConfig

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

AZIMUTHS = (30.0, 120.0, 210.0, 300.0)  # degrees from the front, of the four views of a row
ELEVATION = 20.0


def turntable(config: DataConfig, azimuths: Sequence[float] = AZIMUTHS, resolution: int = 96) -> Cameras:
    """Cameras around the object at the data's distance and field of view, at any resolution."""
    angle = torch.deg2rad(torch.tensor(azimuths, dtype=torch.float64))
    height = torch.deg2rad(torch.tensor(ELEVATION, dtype=torch.float64))
    eyes = torch.stack([angle.sin() * height.cos(), height.sin().expand_as(angle), angle.cos() * height.cos()], -1)
    intrinsics = intrinsics_from_fov(config.field_of_view, resolution, resolution)
    world_to_camera = look_at(config.camera_distance * eyes).float()
    return Cameras(world_to_camera, intrinsics.expand(len(eyes), 3, 3).contiguous(), resolution, resolution)


def picture_row(volume: Tensor, config: DataConfig, num_samples: int, resolution: int = 96) -> Tensor:
    """One object (4, S, S, S) as a strip (h, 6 w, 3): four views, then depth and normals of the first."""
    views = render_views(volume[None].float(), turntable(config, resolution=resolution), num_samples)
    colour, depth = views["colour"][0].cpu(), views["depth"][0, 0].cpu()
    near, far = config.camera_distance - 1.2, config.camera_distance + 1.2  # objects stay within this radius
    shade = torch.where(depth > 0, 1 - 0.8 * ((depth - near) / (far - near)).clamp(0, 1), torch.zeros_like(depth))
    occupancy = views["occupancy"][0, 0].cpu()[..., None]
    normals = (0.5 * (views["normals"][0, 0].cpu() + 1)) * occupancy
    return torch.cat([*colour, shade[..., None].expand(-1, -1, 3), normals], dim=1).clamp(0, 1)


def object_grid(volumes: dict[str, Tensor], config: DataConfig, num_samples: int, title: str) -> Figure:
    """Rows of objects under the name of their system: {name: volumes (n, 4, S, S, S)}."""
    from matplotlib.figure import Figure

    strips = {name: [picture_row(v, config, num_samples) for v in batch] for name, batch in volumes.items()}
    rows = max(len(s) for s in strips.values())
    figure = Figure(figsize=(6.2 * len(strips), 1.05 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, len(strips), squeeze=False)[0]
    for axis, (name, images) in zip(axes, strips.items(), strict=True):
        axis.imshow(torch.cat(images, dim=0).numpy(), interpolation="nearest")
        axis.set_title(f"{name}: four views, depth, normals", fontsize=8)
        axis.axis("off")
    return figure


def data_grid(data: SequenceSet, objects: int, title: str, views: int = 8) -> Figure:
    """The first views of the first objects of a data set."""
    from matplotlib.figure import Figure

    rows = [torch.cat(list(sequence.images[:views]), dim=1) for sequence in list(data)[:objects]]
    figure = Figure(figsize=(views * 0.9, len(rows) * 0.9 + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axis = figure.subplots()
    axis.imshow(torch.cat(rows, dim=0).numpy(), interpolation="nearest")
    axis.axis("off")
    return figure


def neighbour_grid(samples: Tensor, neighbours: Tensor, title: str) -> Figure:
    """Samples (n, h, w, 3) above pictures of their nearest training objects (n, h, w, 3); floats in [0, 1] or uint8."""
    from matplotlib.figure import Figure

    rows = [to_uint8(x) if x.is_floating_point() else x for x in (samples, neighbours)]
    figure = Figure(figsize=(0.9 * len(samples), 2.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axis = figure.subplots()
    axis.imshow(torch.cat([torch.cat(list(row), dim=1) for row in rows], dim=0).numpy(), interpolation="nearest")
    axis.axis("off")
    return figure


def image_rows(rows: dict[str, Tensor], title: str) -> Figure:
    """Rows of images under each other, each with its name on the left: {name: (n, h, w, 3) in [0, 1]}."""
    from matplotlib.figure import Figure

    widest = max(len(images) for images in rows.values())
    figure = Figure(figsize=(0.9 * widest + 1.6, 0.9 * len(rows) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axis, (name, images) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True):
        axis.imshow(torch.cat(list(images.detach().cpu().clamp(0, 1)), dim=1).numpy(), interpolation="nearest")
        axis.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
    return figure


def cloud_grid(clouds: dict[str, np.ndarray], title: str) -> Figure:
    """Rows of point clouds under each other, each with its name on the left: {name: (n, p, 3) canonical x, y, z}.

    Seen from the right and above, without perspective; nearer points are darker.
    """
    from matplotlib.figure import Figure

    a, e = (math.radians(angle) for angle in (AZIMUTHS[0], ELEVATION))
    right = (math.cos(a), 0.0, -math.sin(a))
    up = (-math.sin(a) * math.sin(e), math.cos(e), -math.cos(a) * math.sin(e))
    towards = (math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e))
    widest = max(len(row) for row in clouds.values())
    figure = Figure(figsize=(1.2 * widest + 1.6, 1.2 * len(clouds) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, (name, row) in zip(figure.subplots(len(clouds), widest, squeeze=False), clouds.items(), strict=True):
        for axis, cloud in zip(axes, row, strict=False):
            x, y, depth = (cloud @ direction for direction in (right, up, towards))
            axis.scatter(x, y, c=-depth, s=0.4, cmap="viridis", vmin=-1.2, vmax=1.2, linewidths=0)
        for axis in axes:
            axis.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=[], yticks=[], aspect="equal")
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    return figure
