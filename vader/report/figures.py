"""Pictures for notebooks: objects from several views, with depth and normals beside them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data import SequenceSet
from ..data.hull_check import HullCheck
from ..data.sequence import Sequence as Object
from ..evaluation.metrics.features import to_uint8
from ..rendering.cameras import AZIMUTHS, ELEVATION
from ..rendering.strips import picture_row, three_views
from ..settings.experiment import DataConfig

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


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


def captioned_objects(
    volumes: Tensor, captions: Iterable[str], config: DataConfig, num_samples: int, title: str, columns: int = 3
) -> Figure:
    """Objects (n, 4, S, S, S) as in Figures 4 and 5: three views above their normals, depth of the right-most view,
    and the caption below."""
    from matplotlib.figure import Figure

    rows = -(-len(volumes) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.2 * rows + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, volume, text in zip(axes, volumes, captions, strict=False):
        axis.imshow(three_views(volume, config, num_samples).numpy(), interpolation="nearest")
        axis.set_xlabel(
            textwrap.shorten(text, 120, placeholder=" ...") if len(text) > 120 else text, fontsize=7, wrap=True
        )
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


def hull_rows(objects: list[tuple[Object, HullCheck]], title: str) -> Figure:
    """Objects under each other: the cameras around the cube, and the frames of the check, green where the visual hull
    is, red where it leaves the mask empty."""
    from matplotlib.figure import Figure

    frames = max(len(check.frames) for _, check in objects)
    figure = Figure(figsize=(2.6 * (frames + 1), 2.8 * len(objects) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for row, (sequence, check) in enumerate(objects):
        place = row * (frames + 1) + 1
        _draw_cameras(figure.add_subplot(len(objects), frames + 1, place, projection="3d"), sequence)
        for column, (frame, mask, hull) in enumerate(zip(check.frames, check.masks, check.hulls, strict=True), 1):
            axis = figure.add_subplot(len(objects), frames + 1, place + column)
            picture = sequence.images[frame].permute(2, 0, 1)[None].float() / 255
            grey = torch.nn.functional.interpolate(picture, mask.shape)[0].mean(0)
            colour = torch.stack([mask & ~hull, hull, torch.zeros_like(hull)], dim=-1).float()
            axis.imshow((0.55 * grey[..., None] + 0.45 * colour).numpy(), interpolation="nearest")
            axis.set_title(f"view {frame}", fontsize=8)
            axis.axis("off")
        figure.axes[row * (frames + 1)].set_title(f"{check.key}\nhull IoU {check.iou:.3f}", fontsize=8)
    return figure


def _draw_cameras(axis, sequence: Object) -> None:
    """Pyramids of the cameras' pictures, each from its centre, and the cube; y is up."""
    cameras = sequence.cameras
    centres = cameras.centres().double()
    reach = centres.norm(dim=1).max().item()
    corners = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]).double()
    corners = corners * torch.tensor([cameras.width, cameras.height])
    pixels = torch.cat([corners, torch.ones(5, 1)], dim=1)
    for number, centre in enumerate(centres):
        rays = pixels @ torch.linalg.inv(cameras.intrinsics[number].double()).T
        edge = centre + 0.12 * reach * rays @ cameras.world_to_camera[number, :, :3].double()
        lines = torch.cat([edge, torch.stack([centre, edge[1], edge[2], centre, edge[3]])])
        axis.plot(*(lines[:, i].numpy() for i in (2, 0, 1)), linewidth=0.5, color="tab:blue")
    for along in range(3):  # the cube's edges
        for a, b in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            edge = torch.tensor([[float(a), float(b)]] * 2)
            ends = torch.cat([edge[:, :along], torch.tensor([[-1.0], [1.0]]), edge[:, along:]], dim=1)
            axis.plot(*(ends[:, i].numpy() for i in (2, 0, 1)), linewidth=0.8, color="tab:orange")
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach), xticks=[], yticks=[], zticks=[])
    axis.set_box_aspect((1, 1, 1))
