"""Data sets and experiments small enough for a unit test: coloured balls before cameras, two-piece toys that move."""

from __future__ import annotations

import math

import torch

from vader.articulation.poses import compose, fixed_camera
from vader.articulation.skinning import posed_views
from vader.data import Sequence, SequenceSet, Truth, Video
from vader.data.video import NO_PART, stored_normals
from vader.rendering.cameras import sample_orbit
from vader.settings.experiment import DataConfig, Experiment
from vader.settings.profiles import experiment
from vader.settings.videos import UVA_CAMERA


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


def toys(config: Experiment, videos: int = 4, test_videos: int = 1) -> tuple[SequenceSet, dict[str, Truth]]:
    """Videos of a body that turns with an arm that swings on it, and what is known of them.

    They are drawn by the posed renderer itself from opaque blocks of a volume, which says in which pose each part is.
    """
    data = config.data
    frames = data.train_views + data.heldout_views
    axis = torch.linspace(-1, 1, 25)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    body = (x.abs() < 0.3) & (y.abs() < 0.5) & (z.abs() < 0.25)
    face = body & (z > 0.1) & (y > 0.2)
    arm = (x > 0.35) & (x < 0.8) & (y.abs() < 0.15) & (z.abs() < 0.15)
    camera = fixed_camera(config.articulation, data.resolution)
    sequences, truths = [], {}
    for index in range(videos + test_videos):
        generator = torch.Generator().manual_seed(index)
        colours = 0.3 + 0.7 * torch.rand(3, 3, generator=generator)
        volume = torch.zeros(1, 6, 25, 25, 25)
        volume[:, 0] = 60.0 * (body | arm)
        for solid, colour in zip((body, face, arm), colours, strict=True):
            volume[0, 1:4, solid] = colour[:, None]
        volume[:, 4], volume[:, 5] = 60.0 * (x < 0.33), 60.0 * (x >= 0.33)
        time = torch.arange(frames) / frames * 2 * math.pi + index
        root = _turn(0.7 * time.sin(), "y")
        swing = compose(root, _turn(0.5 * (2 * time).cos(), "z"))
        poses = torch.stack([root, swing], dim=1)  # (t, 2, 3, 4)
        seen = posed_views(volume, poses[None], camera, 48)
        images = (seen["colour"][0] * 255).round().to(torch.uint8)
        masks = (seen["occupancy"][0] * 255).round().to(torch.uint8)
        split = "train" if index < videos else "test"
        video = Video(f"toy-{index}", images, masks, data.train_views, split).validate()
        parts = torch.where(seen["occupancy"][0] < 0.5, NO_PART, seen["parts"][0].argmax(-1)).to(torch.uint8)
        matrices = torch.eye(4).repeat(frames, 2, 1, 1)
        matrices[:, :, :3] = compose(camera.world_to_camera[0], poses)
        normals = stored_normals(seen["normals"][0])
        truths[video.key] = Truth(parts, matrices, camera.intrinsics[0], ("body", "arm"), normals).validate(video)
        sequences.append(video)
    data_set = SequenceSet("toys", "2" * 64, tuple(sequences), data.train_views, data.heldout_views, None, "3" * 64)
    return data_set, truths


def _turn(angles: torch.Tensor, axis: str) -> torch.Tensor:
    """Rotations (t, 3, 4) about y or z."""
    c, s, zero, one = angles.cos(), angles.sin(), 0 * angles, 0 * angles + 1
    rows = [c, zero, s, zero, one, zero, -s, zero, c] if axis == "y" else [c, -s, zero, s, c, zero, zero, zero, one]
    rotation = torch.stack(rows, dim=1).view(-1, 3, 3)
    return torch.cat([rotation, torch.zeros(len(angles), 3, 1)], dim=-1)


def tiny_articulated(**changes) -> Experiment:
    """The smoke profile of puppets, smaller still."""
    parts = dict(
        data=dict(num_objects=4, heldout_objects=1, train_views=6, heldout_views=2, resolution=16),
        autodecoder=dict(lbs_channels=2, resolution=8, latent_resolution=4, attention_resolutions=()),
        reconstruction=dict(images_seen=64, objects_per_step=2, views_per_object=2, num_samples=12),
        diffusion=dict(latents_seen=32, batch_size=4),
        unet=dict(attention_resolutions=(2,)),
        articulation=dict(rigid_images=32, neutral_images=8, region_images=16),
    )
    for name, values in changes.items():
        parts[name] = {**parts.get(name, {}), **values} if isinstance(values, dict) else values
    return experiment("smoke", "puppets").replace(**parts)


def tiny_videos(name: str) -> DataConfig:
    """The smallest set of generated videos of a name."""
    counts = dict(num_objects=2, heldout_objects=1, train_views=3, heldout_views=1)
    return DataConfig(name, **counts, resolution=24, supersampling=2, **UVA_CAMERA)
