"""A data set and an experiment small enough for a unit test: coloured balls in front of a camera."""

from __future__ import annotations

import torch

from vader.config import Experiment
from vader.data import Sequence, SequenceSet
from vader.profiles import experiment
from vader.rendering.cameras import sample_orbit


def balls(config: Experiment, objects: int = 4, test_objects: int = 2) -> SequenceSet:
    """Balls of different size and colour, exactly projected."""
    data = config.data
    sequences = []
    for index in range(objects + test_objects):
        generator = torch.Generator().manual_seed(index)
        radius = 0.4 + 0.1 * (index % 4)
        colour = torch.rand(3, generator=generator) * 0.8 + 0.2
        cameras = sample_orbit(data.train_views + data.heldout_views, data, generator)
        origins, directions = cameras.rays()
        closest = (origins - (origins * directions).sum(-1, keepdim=True) * directions).norm(dim=-1)
        mask = (closest < radius).view(len(cameras), data.resolution, data.resolution)
        images = (mask[..., None] * colour * 255).round().to(torch.uint8)
        split = "train" if index < objects else "test"
        sequences.append(Sequence(f"ball-{index}", images, mask.to(torch.uint8) * 255, cameras, split).validate())
    return SequenceSet("balls", "0" * 64, tuple(sequences), data.train_views, data.heldout_views, None, "1" * 64)


def tiny_experiment(**changes) -> Experiment:
    """The smoke profile, smaller still."""
    parts = dict(
        data=dict(num_objects=4, heldout_objects=2, train_views=6, heldout_views=2, resolution=16),
        reconstruction=dict(images_seen=64, objects_per_step=2, views_per_object=2, num_samples=12),
        diffusion=dict(latents_seen=32, batch_size=4),
    )
    for name, values in changes.items():
        parts[name] = {**parts.get(name, {}), **values} if isinstance(values, dict) else values
    return experiment("smoke", "procedural_chairs").replace(**parts)
