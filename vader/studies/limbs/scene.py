"""A body and a limb, two boxes in the canonical cube, and the pictures of the limb's turns.

The pictures are not those of the volume. They come from the boxes themselves, by finer quadrature and antialiased,
so that no model has a loss of 0. The true skinning weights of a part fall with the distance to its box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...articulation.poses import fixed_camera, invert, neutral, rotation_matrices, transform
from ...articulation.skinning import render_posed
from ...autodecoder.losses import image_losses
from ...data.video import NO_PART
from ...evaluation.metrics.images import psnr
from ...evaluation.metrics.poses import adjusted_rand_index
from ...rendering.cameras import Cameras
from ...rendering.rays import clip_to_cube, voxel_centres
from ...rendering.reference import composite, sample_depths
from ...settings.experiment import Experiment
from ...settings.profiles import experiment

BODY, LIMB = 0, 1
JOINT = (0.2, 0.15, 0.0)
BODY_HALF = (0.2, 0.45, 0.18)
EDGE = 0.015  # half-width of a box's soft surface
OPAQUE = 60.0  # density inside
FALL = 60.0  # of a part's skinning logit, per unit of distance to its box
ACROSS, TOWARDS = "across the picture", "towards the camera"
AXES = {ACROSS: (0.0, 0.0, 1.0), TOWARDS: (0.0, 1.0, 0.0)}  # of the limb's turns, which at rest points to the right
FINE = 72  # samples along a ray of the true pictures, whose pixels are means over 2x2 rays


@dataclass(frozen=True)
class Shape:
    """The limb, in halves of the canonical cube's edge, and its turns."""

    axis: str = ACROSS
    half_width: float = 0.08
    length: float = 0.5
    swing: float = 40.0  # degrees, the largest turn to either side


@dataclass(frozen=True, eq=False)
class Scene:
    """Pictures of t frames and all that is true about them. Frames (t, h, w, 3) and masks (t, h, w) are in [0, 1],
    labels (t, h, w) are parts or NO_PART, poses (t, 2, 3, 4), volume (1, 6, S, S, S), angles (t,) in degrees."""

    shape: Shape
    config: Experiment  # the recipe's settings, of puppets that wave, with two parts
    camera: Cameras
    rays: tuple[Tensor, Tensor]  # (1, 1, h w, 3) each
    angles: Tensor
    poses: Tensor
    volume: Tensor
    frames: Tensor
    masks: Tensor
    labels: Tensor

    def loss(self, volume: Tensor, poses: Tensor, step: int | None = None) -> tuple[Tensor, Tensor]:
        """The recipe's image losses of a volume (1, 6, S, S, S) in poses (t, 2, 3, 4), and each part's density.

        step: of a training, which sees a quarter of the pixels in each as the recipe does, and random samples.
        """
        stride = 1 if step is None else self.config.articulation.ray_stride
        dy, dx = (0, 0) if step is None else divmod(step % stride**2, stride)
        _, h, w = self.masks.shape

        def chosen(x: Tensor) -> Tensor:
            return x.to(volume)[:, dy::stride, dx::stride]

        rays = [chosen(x.view(1, h, w, 3)).flatten(1, 2)[None] for x in self.rays]
        seen = render_posed(volume, poses[None], *rays, self.samples, stratified_seed=step)
        frames, masks = chosen(self.frames), chosen(self.masks)
        colour, occupancy = seen.colour.view(frames.shape), seen.occupancy.view(masks.shape)
        losses = image_losses(self.config.reconstruction, None, colour, occupancy, frames, masks)
        return sum(losses.values()), seen.part_density

    def loss_of_each(self, volume: Tensor, poses: Tensor, frames: Tensor) -> Tensor:
        """The same for n pairs of a pose and a frame, (n, 2, 3, 4) and (n,): (n,)."""
        n, settings = len(poses), self.config.reconstruction
        rays = [x.to(volume) for x in self.rays]
        seen = render_posed(volume, poses[None], *rays, self.samples)
        _, h, w = self.masks.shape
        true = self.frames[frames, None].to(volume), self.masks[frames, None].to(volume)
        found = zip(seen.colour.view(n, 1, h, w, 3), seen.occupancy.view(n, 1, h, w), *true, strict=True)
        return torch.stack([sum(image_losses(settings, None, *one).values()) for one in found])

    @property
    def samples(self) -> int:
        return self.config.reconstruction.num_samples

    @property
    def pixel(self) -> float:
        """Width of a pixel at the origin."""
        return pixel_width(self.camera)


def pixel_width(camera: Cameras) -> float:
    """Of a fixed camera at the world's origin."""
    return camera.centres()[0].norm().item() / camera.intrinsics[0, 0, 0].item()


def recipe(parts: int = 2) -> Experiment:
    """Settings of the laptop profile for puppets that wave, with fewer parts."""
    return experiment("laptop", "puppets_waving").replace(autodecoder=dict(lbs_channels=parts))


def turned(axis: str, angles: Tensor) -> Tensor:
    """Poses (t, 3, 4) of a limb that turns about its joint by angles (t,) in degrees."""
    joint = torch.tensor(JOINT, dtype=angles.dtype)
    rotation = rotation_matrices(torch.deg2rad(angles)[:, None] * torch.tensor(AXES[axis], dtype=angles.dtype))
    return torch.cat([rotation, (joint - rotation @ joint)[..., None]], dim=-1)


def poses_of(axis: str, angles: Tensor) -> Tensor:
    """Poses (t, 2, 3, 4) of body and limb."""
    return torch.stack([neutral(len(angles), dtype=angles.dtype), turned(axis, angles)], dim=1)


def make_scene(shape: Shape, frames: int, resolution: int, voxels: int, angles: Tensor | None = None) -> Scene:
    """The scene of `frames` pictures of that many pixels a side, in smooth motion or at given angles in degrees."""
    config = recipe()
    camera = fixed_camera(config.articulation, resolution)
    if angles is None:
        phase = 0.8 * (torch.arange(frames) + 0.5) / frames
        angles = shape.swing * torch.sin(2 * math.pi * phase + 0.4)
    poses = poses_of(shape.axis, angles)
    points = voxel_centres(voxels)
    density, colour, logits = fields(shape, points, neutral(1, 2))
    volume = torch.cat([density.sum(1)[..., None], colour, logits.movedim(1, -1)], dim=-1)[0]
    volume = volume.T.reshape(1, 6, voxels, voxels, voxels)
    drawn = [draw(shape, poses[t : t + 1], config, resolution) for t in range(len(poses))]
    pictures, masks, labels = (torch.cat(x) for x in zip(*drawn, strict=True))
    rays = tuple(x[None] for x in camera.rays())
    return Scene(shape, config, camera, rays, angles, poses, volume, pictures, masks, labels)


def fields(shape: Shape, points: Tensor, poses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At world points (m, 3), with parts in poses (n, 2, 3, 4): each part's density (n, 2, m), the colour (n, m, 3) and
    skinning logits (n, 2, m)."""
    own = transform(invert(poses), points)  # (n, 2, m, 3)
    joint, half = torch.tensor(JOINT), torch.tensor([shape.length / 2, shape.half_width, shape.half_width])
    limb = torch.tensor([shape.length / 2, 0.0, 0.0])
    from_body = own[:, BODY].abs() - torch.tensor(BODY_HALF)
    from_limb = (own[:, LIMB] - joint - limb).abs() - half
    outside = torch.stack([from_body, from_limb], 1)
    inside = (-outside.amax(-1) / EDGE).sigmoid()
    inside = inside * (inside > 1e-3)
    density = OPAQUE * inside
    along = own[:, LIMB, :, 0] - joint[0]
    of_body = torch.tensor([0.3, 0.5, 0.8]) * (0.75 + 0.25 * torch.sin(9 * own[:, BODY, :, 1]))[..., None]
    of_limb = torch.tensor([0.95, 0.55, 0.25]) * (0.75 + 0.25 * torch.cos(16 * along))[..., None]
    share = (density[:, LIMB] / density.sum(1).clamp_min(1e-6))[..., None]
    return density, (1 - share) * of_body + share * of_limb, -FALL * outside.clamp_min(0).norm(dim=-1)


def draw(shape: Shape, poses: Tensor, config: Experiment, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    """True pictures (n, r, r, 3), masks (n, r, r) and labels (n, r, r) in poses (n, 2, 3, 4)."""
    origins, directions = fixed_camera(config.articulation, 2 * resolution).rays()
    enter, leave = clip_to_cube(origins, directions, 0.0, math.inf)
    depths = sample_depths(enter, leave, FINE, None)  # (1, r, n)
    points = origins[:, :, None] + depths[..., None] * directions[:, :, None]
    density, colour, _ = fields(shape, points.flatten(0, 2), poses)
    rays, n = (2 * resolution) ** 2, len(poses)
    whole, step = density.sum(1).view(n, rays, FINE), (leave - enter) / FINE
    share = density[:, LIMB].view(n, rays, FINE) / whole.clamp_min(1e-6)
    channels = torch.cat([colour.view(n, rays, FINE, 3).movedim(-1, 1), share[:, None]], dim=1)
    seen, occupancy, _ = composite(whole, channels, depths, step)

    def pixels(x: Tensor) -> Tensor:
        return x.view(n, resolution, 2, resolution, 2, -1).mean(dim=(2, 4))

    seen, occupancy = pixels(seen), pixels(occupancy)[..., 0]
    labels = torch.where(2 * seen[..., 3] > occupancy, LIMB, BODY)
    return seen[..., :3], occupancy, torch.where(occupancy > 0.5, labels, NO_PART).to(torch.uint8)


# ------------------------------------------------------------------------------------------------- what came out


def signed_turn(rotations: Tensor, axis: str) -> Tensor:
    """Degrees (t,) about an axis, of matrices (t, 3, 3) that are rotations up to a scale."""
    i, j = {ACROSS: (0, 1), TOWARDS: (2, 0)}[axis]
    return torch.rad2deg(torch.atan2(rotations[:, j, i] - rotations[:, i, j], rotations[:, i, i] + rotations[:, j, j]))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, 0 where one of them hardly varies."""
    a, b = a - a.mean(), b - b.mean()
    size = a.norm() * b.norm()
    return (a @ b / size).item() if size > 1e-3 * len(a) else 0.0


@torch.no_grad()
def measure(scene: Scene, volume: Tensor, poses: Tensor) -> dict[str, float]:
    """What a volume (1, 4 + p, S, S, S) in poses (t, p, 3, 4) shows, against the truth.

    loss: the recipe's. psnr: dB. ari: of parts. correlation, share, turn_error_deg: of the turns against the body that
    are shown where the true limb is, with the true ones. The share is how much of a true turn is shown (the slope of a
    line), and the error is root mean square after the best offset.
    """
    seen = render_posed(volume, poses[None], *scene.rays, scene.samples, maps=True)
    t, h, w = scene.masks.shape
    parts = seen.parts.view(t, h, w, -1)
    shown = (seen.occupancy.view(t, h, w) > 0.5) & (scene.labels != NO_PART)
    rotation = torch.einsum("thwp,tpij->thwij", parts, poses[..., :3])
    body, limb = ((rotation * (scene.labels == part)[..., None, None]).sum((1, 2)) for part in (BODY, LIMB))
    turns = signed_turn(body.mT @ limb, scene.shape.axis)
    off = turns - scene.angles
    swing = scene.angles - scene.angles.mean()
    learned, true = parts.argmax(-1)[shown], scene.labels[shown].long()
    return {
        "loss": scene.loss(volume, poses)[0].item(),
        "psnr": psnr(seen.colour.view(t, h, w, 3), scene.frames).mean().item(),
        "ari": adjusted_rand_index(learned, true) if len(true) else 0.0,
        "correlation": correlation(turns, scene.angles),
        "share": ((turns - turns.mean()) @ swing / swing.square().sum()).item(),
        "turn_error_deg": (off - off.mean()).square().mean().sqrt().item(),
    }
