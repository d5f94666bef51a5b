"""Explicit radiance fields, one fitted to the views of each object: the training data of DiffRF (Müller et al. 2023).

A field x is a grid (4, S, S, S), z, y, x as every volume here, with all values in [-1, 1], which is also what diffusion
runs on: no statistics of the data are needed. Density and colour are

    sigma = (tau / voxel) softplus(beta x_0) / softplus(beta),    c = (x_1..3 + 1) / 2,    voxel = 2 / (S - 1),

so that a voxel at x_0 = 1 has optical depth tau, one at -1 next to none, and small errors around -1 stay invisible,
where a linear map would turn them into fog. Certain of the original: an explicit grid of density and colour for each
object at 32^3, trilinear interpolation, a photometric loss over the rays of posed images. The fitting's regularisers
and the map from a grid's values to densities are not certain: total variation and sparsity are usual for explicit
grids (Plenoxels), and the softplus is DVGO's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import SequenceSet
from ..rendering.backends import how_it_renders
from ..rendering.render import render_rays
from ..settings.diffrf import CHANNELS, FieldsConfig
from ..store import runs
from ..store.files import read_weights, save_weights
from ..store.runs import Run, RunError
from ..training import fit, select_device


def to_volume(fields: Tensor, config: FieldsConfig) -> Tensor:
    """Fields (b, 4, S, S, S) in [-1, 1] to volumes (b, 4, S, S, S) of density per unit length and colour in [0, 1]."""
    voxel, beta = 2 / (config.resolution - 1), config.sharpness
    densest = config.optical_depth / voxel
    density = densest / math.log1p(math.exp(beta)) * F.softplus(beta * fields[:, :1])
    return torch.cat([density, (fields[:, 1:] + 1) / 2], dim=1)


# -------------------------------------------------------------------------------------------------------- rays


@dataclass(frozen=True, eq=False)
class Rays:
    """k rays of each of b objects and what their pixels show."""

    origins: Tensor  # (b, k, 3) in the world
    directions: Tensor  # (b, k, 3), unit
    colour: Tensor  # (b, k, 3) in [0, 1]
    mask: Tensor  # (b, k) in [0, 1]


class TrainingRays:
    """The rays of all training views of the training objects of a set, to be drawn from."""

    def __init__(self, data: SequenceSet, device: torch.device) -> None:
        objects, views = data.split("train"), data.train_views
        self.keys = [s.key for s in objects]
        self.images = torch.stack([s.images[:views] for s in objects]).to(device)  # (n, v, h, w, 3) uint8
        self.masks = torch.stack([s.masks[:views] for s in objects]).to(device)
        cameras = [s.cameras[:views] for s in objects]
        self.rotation = torch.stack([c.world_to_camera[:, :, :3] for c in cameras]).to(device)  # (n, v, 3, 3)
        self.unproject = torch.stack([torch.linalg.inv(c.intrinsics) for c in cameras]).to(device)
        self.centres = torch.stack([c.centres() for c in cameras]).to(device)  # (n, v, 3)

    def draw(self, objects: Tensor, count: int) -> Rays:
        """`count` rays of each of the objects (b,), uniform over views and pixels, from the current random stream."""
        device, (_, v, h, w) = self.images.device, self.masks.shape
        view, row, column = (torch.randint(size, (len(objects), count)).to(device) for size in (v, h, w))
        return self.at(objects.to(device)[:, None].expand_as(view), view, row, column)

    def at(self, objects: Tensor, view: Tensor, row: Tensor, column: Tensor) -> Rays:
        """The rays through these pixels, indices (b, k) each."""
        pixels = torch.stack([column + 0.5, row + 0.5, torch.ones_like(row)], dim=-1).to(self.centres.dtype)
        in_camera = self.unproject[objects, view] @ pixels[..., None]
        directions = F.normalize((self.rotation[objects, view].mT @ in_camera)[..., 0], dim=-1)
        colour, mask = (x[objects, view, row, column].float() / 255 for x in (self.images, self.masks))
        return Rays(self.centres[objects, view], directions, colour, mask)


def photometric_loss(
    volume: Tensor, rays: Rays, num_samples: int, mask_weight: float, stratified_seed: int, backend: str = "auto"
) -> Tensor:
    """Mean squared error of the rendered colours, plus `mask_weight` times that of the occupancies: (b,)."""
    rendering = render_rays(
        volume,
        rays.origins,
        rays.directions,
        num_samples,
        stratified_seed=stratified_seed,
        backend=backend,
        check=False,
    )
    colour = (rendering.colour - rays.colour).square().mean((1, 2))
    return colour + mask_weight * (rendering.occupancy - rays.mask).square().mean(1)


def total_variation(x: Tensor) -> Tensor:
    """Mean over neighbouring voxels and channels of the squared difference, summed over the axes: (b,)."""
    return sum(x.diff(dim=axis).square().flatten(1).mean(1) for axis in (2, 3, 4))


# ----------------------------------------------------------------------------------------------------- fitting


class FieldFitting:
    """The task of `training.fit` that fits all fields: a step updates `objects_per_step` of them, which take turns.

    Objects share nothing, so how many are in a step changes speed only, apart from the first few updates: SparseAdam
    moves the rows of a step alone but corrects the bias of their moments by the steps of all.
    """

    name = "fields"
    warmup = 0

    def __init__(self, config: FieldsConfig, data: SequenceSet, seed: int, device: torch.device) -> None:
        self.config, self.device, self.seed = config, device, seed
        self.rays = TrainingRays(data, device)
        n = len(self.rays.keys)
        self.batch = min(config.objects_per_step, n)
        self.per_step = self.batch * config.rays_per_step
        self.total = -(-config.updates * n // self.batch) * self.per_step
        self.fields = nn.Embedding(n, CHANNELS * config.resolution**3, sparse=True)
        with torch.no_grad():  # thin fog, grey
            self.fields.weight.zero_().unflatten(1, (CHANNELS, -1))[:, 0] = -0.4
        self.fields.to(device)
        self.optimizer = torch.optim.SparseAdam(self.fields.parameters(), lr=config.learning_rate, betas=config.betas)

    def turn(self, clock: int) -> Tensor:
        """The objects (b,) of the step at `clock`."""
        first = clock // self.per_step * self.batch
        return (first + torch.arange(self.batch, device=self.device)) % self.fields.num_embeddings

    def step(self, clock: int) -> dict[str, Tensor]:
        config, objects = self.config, self.turn(clock)
        fields = self.fields(objects).view(-1, *config.shape)
        rays = self.rays.draw(objects, config.rays_per_step)
        seed = int(torch.randint(2**31, ()))
        losses = {
            "photometric": photometric_loss(
                to_volume(fields, config), rays, config.num_samples, config.mask_weight, seed
            ),
            "density_variation": config.density_variation * total_variation(fields[:, :1]),
            "colour_variation": config.colour_variation * total_variation(fields[:, 1:]),
            "sparsity": config.sparsity * (fields[:, 0].flatten(1).mean(1) + 1),
        }
        sum(losses.values()).sum().backward()  # each object's own loss: Adam then steps as if it were alone
        means = {name: values.detach().mean() for name, values in losses.items()}
        return {"loss": sum(means.values()), **means}

    @torch.no_grad()
    def after_step(self, clock: int) -> None:
        """Keep values within [-1, 1]."""
        objects = self.turn(clock)
        self.fields.weight[objects] = self.fields.weight[objects].clamp_(-1, 1)

    def state(self) -> dict[str, nn.Module]:
        return {"fields": self.fields}

    def facts(self) -> dict[str, Any]:
        """Facts that the run's record keeps beside the usual ones."""
        return {"objects": self.rays.keys, "renderer": how_it_renders(self.device)}

    def save(self, work: Path) -> None:
        fields = self.fields.weight.detach().view(-1, *self.config.shape)
        metadata = {"fields": self.config, "objects": self.rays.keys}
        save_weights(work / "fields.safetensors", {"fields": fields}, metadata, torch.float16)


def fields_settings(config: FieldsConfig, data: SequenceSet, seed: int = 0) -> dict[str, Any]:
    """The settings that decide the fields of a data set."""
    return {"stage": "radiance fields", "data": data.digest, "fields": config, "seed": seed}


def fields_run(
    config: FieldsConfig, data: SequenceSet, seed: int = 0, device: str = "auto", max_seconds: float | None = None
) -> Run:
    """The run that holds the fields of all training objects of a set: found, or fitted."""

    def train(work: Path) -> None:
        task = FieldFitting(config, data, seed, select_device(device))
        record = runs.Record(work, seed, task.device, pixels=data.pixel_record(), **task.facts())
        fit(task, work, record, max_seconds)

    return runs.get(f"{data.name}-fields", fields_settings(config, data, seed), train, data)


def load_fields(run: Run, config: FieldsConfig, data: SequenceSet) -> Tensor:
    """The fields (n, 4, S, S, S) float32 in [-1, 1] of the training objects, in their order.

    Raises RunError naming file and object where the run is of another data set or size, or a value is no number.
    """
    file = run.weights("fields")
    tensors, metadata = read_weights(file)
    keys = [s.key for s in data.split("train")]
    if metadata.get("objects") != keys or run.settings.get("data") != data.digest:
        found = metadata.get("objects") or []
        raise RunError(
            f"{file}: holds fields of {len(found)} objects of data set {str(run.settings.get('data'))[:12]}…, expected "
            f"those of the {len(keys)} training objects of {data.name}, {data.digest[:12]}…"
        )
    fields, expected = tensors["fields"].float(), (len(keys), *config.shape)
    if fields.shape != expected:
        raise RunError(f"{file}: fields are {tuple(fields.shape)}, expected {expected}")
    bad = ~torch.isfinite(fields).flatten(1).all(1)
    if bad.any():
        key = keys[int(bad.nonzero()[0])]
        raise RunError(f"{file}: the field of object {key!r} has NaN or infinite values, expected [-1, 1]")
    return fields
