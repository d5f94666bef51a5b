"""EG3D (Chan et al. 2022): a StyleGAN2 generator of tri-planes, rendered small and super-resolved.

(z, pose) -> mapping -> w -> synthesis -> three feature planes; a point's features are the sum of the planes' values at
its projections, and a small MLP turns them into density and features, whose first three channels are colour. Rendering
makes a small raw picture and features, which two more modulated layers bring to the final size. The discriminator sees
the final picture and the enlarged raw one together (dual discrimination) and knows the camera. The generator is told a
camera too, which is another one for half of the pictures (swapping), so that it cannot put the camera into the shape.

What differs from the original (in brackets), and why:

- sizes by profile (planes of 256 x 256 x 32, 512 pixels): two CPU cores;
- stratified samples between the faces of the cube (coarse and fine ones): the cube bounds every ray;
- sigma = scale * softplus(raw + bias) (softplus(raw - 1) with depths in other units): starts as thin fog;
- planes over (x, y), (y, z) and (z, x), corner to corner as the volumes of this package (a repeated pair of axes in the
  published code, pixel centres): three different planes need no excuse;
- both networks step at once (in turn): one rendering serves both, and R1 makes either converge;
- box filters halve pictures (those of StyleGAN2): cost. Enlarging is bilinear, which is StyleGAN2's filter;
- no noise inputs, no style mixing, no truncation, no blur of the first images, swapping from the first image on, planes
  and rendering of one size throughout: they serve long trainings and large pictures;
- density regularisation at every step, on the step's own scenes (every fourth, on scenes of its own): it is cheap;
- learning rates fall linearly to 0 (constant): the loop's schedule, which every system here has;
- a camera is told as rotation, centre and lens, 16 numbers (25): the rest of the two matrices is constant.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..rendering.cameras import Cameras
from ..rendering.reference import render_field
from ..settings.checks import require
from ..settings.gans import EG3D_PROFILES, EG3DConfig
from .adversarial import Adversarial, Scene, resized
from .gan import Baseline
from .stylegan2 import Conv, Linear, ResidualBlock, SynthesisBlock, activate, enlarge, minibatch_deviation, normalize

NAME = "eg3d"
POSE_DIM = 16


# --------------------------------------------------------------------------------------------------- generator


def pose_label(cameras: Cameras) -> Tensor:
    """Cameras (n) as numbers (n, 16): camera-to-world, row by row; focal lengths and principal point in widths."""
    to_world = torch.cat([cameras.world_to_camera[:, :, :3].mT, cameras.centres()[:, :, None]], dim=2)
    k = cameras.intrinsics
    lens = torch.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], dim=1) / cameras.width
    return torch.cat([to_world.flatten(1), lens], dim=1)


def sample_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Sum of bilinear values of planes (b, 3, c, r, r) at points (b, p, 3) of [-1, 1]^3 -> (b, c, p).

    The planes have rows and columns along (y, x), (z, y) and (x, z); their corners are the cube's.
    """
    b, _, c, r, _ = planes.shape
    pairs = points[:, :, [[0, 1], [1, 2], [2, 0]]].permute(0, 2, 1, 3)  # (b, 3, p, 2): column, row
    grid = pairs.reshape(3 * b, 1, -1, 2)
    values = F.grid_sample(planes.reshape(3 * b, c, r, r), grid, align_corners=True)
    return values.view(b, 3, c, -1).sum(1)


class TriPlaneGenerator(nn.Module):
    """Mapping, synthesis of planes, decoder, rendering and super-resolution (a `SceneGenerator`)."""

    def __init__(self, config: EG3DConfig) -> None:
        super().__init__()
        self.config, self.latent_dim, k = config, config.latent_dim, config.style_dim
        self.embed_pose = Linear(POSE_DIM, k)
        widths = [config.latent_dim + k, *[k] * config.mapping_layers]
        self.mapping = nn.ModuleList([Linear(a, b, rate=0.01) for a, b in zip(widths, widths[1:], strict=False)])

        sizes = [2**i for i in range(2, int(math.log2(config.plane_resolution)) + 1)]
        widths = [min(config.channels, config.channel_base // r) for r in sizes]
        inputs = [widths[0], *widths[:-1]]
        self.start = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.synthesis = nn.ModuleList(
            SynthesisBlock(a, b, 3 * config.plane_channels, k, factor=1 if r == 4 else 2)
            for r, a, b in zip(sizes, inputs, widths, strict=True)
        )
        self.hidden = Linear(config.plane_channels, config.decoder_dim)
        self.decoded = Linear(config.decoder_dim, 1 + config.plane_channels)
        factor, wide = config.resolution // config.rendering_resolution, config.superresolution_channels
        self.superresolution = nn.ModuleList(
            [
                SynthesisBlock(config.plane_channels, wide, 3, k, factor=2),
                SynthesisBlock(wide, wide // 2, 3, k, factor=factor // 2),
            ]
        )

    def style(self, z: Tensor, cameras: Cameras) -> Tensor:
        w = torch.cat([normalize(z), normalize(self.embed_pose(pose_label(cameras)))], dim=1)
        for layer in self.mapping:
            w = activate(layer(w))
        return w

    def scene(self, z: Tensor, cameras: Cameras) -> Scene:
        """Planes (b, 3, c, r, r) and styles (b, k) of latents (b, k) and the cameras that the generator is told."""
        w = self.style(z, cameras)
        x, planes = self.start.expand(len(w), -1, -1, -1), None
        for block in self.synthesis:
            x, planes = block(x, planes, w)
        return planes.unflatten(1, (3, -1)), w

    def decode(self, scene: Scene, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (b, p) and features (b, c, p), colour in [0, 1] first, at points (b, p, 3)."""
        features = sample_planes(scene[0], points).mT
        raw, features = self.decoded(F.softplus(self.hidden(features))).split([1, self.config.plane_channels], dim=-1)
        density = self.config.density_scale * F.softplus(raw.squeeze(-1) + self.config.density_bias)
        return density, torch.cat([torch.sigmoid(features[..., :3]), features[..., 3:]], dim=-1).mT

    def density(self, scene: Scene, points: Tensor) -> Tensor:
        return self.decode(scene, points)[0]

    def render(self, scene: Scene, cameras: Cameras, num_samples: int, seed: int | None) -> dict[str, Tensor]:
        """'image' (b, 3, h, w) and 'raw' (b, 3, h / f, w / f) in [-1, 1], f the factor of the super-resolution.

        Raises ConfigError for cameras of another resolution than the generator's, which is part of it.
        """
        r, size = self.config.rendering_resolution, self.config.resolution
        found = (cameras.height, cameras.width)
        require(found == (size, size), f"cameras have {found[1]}x{found[0]} pixels, but this EG3D makes {size}x{size}")

        def field(points: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
            b, rays, n, _ = points.shape
            density, features = self.decode(scene, points.reshape(b, -1, 3))
            return density.view(b, rays, n), features.reshape(b, -1, rays, n)

        origins, directions = resized(cameras, r).rays()
        features, _, _ = render_field(field, origins, directions, num_samples, seed)
        x = features.mT.reshape(len(cameras), -1, r, r)
        raw = image = 2 * x[:, :3] - 1
        for block in self.superresolution:
            x, image = block(x, image, scene[1])
        return {"image": image, "raw": raw}


# ----------------------------------------------------------------------------------------------- discriminator


class DualDiscriminator(nn.Module):
    """Final and raw pictures (b, 6, r, r) and their cameras' labels (b, 16) -> logits (b,)."""

    def __init__(self, config: EG3DConfig) -> None:
        super().__init__()
        sizes = [config.resolution]
        while sizes[-1] % 2 == 0 and sizes[-1] > 4:
            sizes.append(sizes[-1] // 2)
        widths = [min(config.discriminator_channels, config.discriminator_base // r) for r in sizes]
        self.from_rgb = Conv(6, widths[0], 1)
        self.blocks = nn.ModuleList([ResidualBlock(a, b) for a, b in zip(widths, widths[1:], strict=False)])
        self.last = Conv(widths[-1] + 1, widths[-1], 3)
        self.hidden = Linear(widths[-1] * sizes[-1] ** 2, widths[-1])
        self.out = Linear(widths[-1], widths[-1])
        widths = [POSE_DIM, *[widths[-1]] * config.mapping_layers]
        self.mapping = nn.ModuleList([Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)])

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = activate(self.from_rgb(images))
        for block in self.blocks:
            x = block(x)
        x = activate(self.last(minibatch_deviation(x))).flatten(1)
        x = self.out(activate(self.hidden(x)))
        for layer in self.mapping:
            labels = activate(layer(labels))
        return (x * normalize(labels)).sum(1) / math.sqrt(x.shape[1])


# ---------------------------------------------------------------------------------------------------- training


def density_variation(generator: TriPlaneGenerator, scene: Scene, points: int, distance: float) -> Tensor:
    """Mean |sigma(x) - sigma(x + d)| / scale at random points x, d ~ N(0, distance^2): a kind of total variation."""
    planes = scene[0]
    x = torch.rand(len(planes), points, 3, device=planes.device) * 2 - 1
    near = (x + distance * torch.randn_like(x)).clamp(-1, 1)
    one, other = generator.density(scene, torch.cat([x, near], dim=1)).chunk(2, dim=1)
    return (one - other).abs().mean() / generator.config.density_scale


class EG3DTraining(Adversarial):
    """The task of `training.fit`."""

    name = NAME

    def build(self) -> tuple[nn.Module, nn.Module, list[dict[str, Any]]]:
        settings = self.settings
        self.views.require_resolution(settings.resolution)
        generator, discriminator = TriPlaneGenerator(settings), DualDiscriminator(settings)
        groups = [
            {"params": list(generator.parameters()), "lr": settings.generator_lr},
            {"params": list(discriminator.parameters()), "lr": settings.discriminator_lr},
        ]
        return generator, discriminator, groups

    def dual(self, image: Tensor, raw: Tensor) -> Tensor:
        """(b, 6, r, r): the picture and the small one, enlarged."""
        return torch.cat([image, enlarge(raw, image.shape[-1] // raw.shape[-1])], dim=1)

    def real(self, clock: int) -> tuple[Tensor, Cameras]:
        images, cameras = self.views.draw(self.per_step)
        raw = F.avg_pool2d(images, self.settings.resolution // self.settings.rendering_resolution)
        return self.dual(images, raw), cameras

    def fake(self, clock: int) -> tuple[Tensor, Cameras, dict[str, Tensor]]:
        settings, b = self.settings, self.per_step
        z = torch.randn(b, settings.latent_dim).to(self.device)
        cameras, others = self.views.draw_cameras(b), self.views.draw_cameras(b)
        swap = (torch.rand(b) < settings.swap).to(self.device)[:, None, None]
        told = Cameras(
            torch.where(swap, others.world_to_camera, cameras.world_to_camera),
            torch.where(swap, others.intrinsics, cameras.intrinsics),
            cameras.height,
            cameras.width,
        )
        scene = self.generator.scene(z, told)
        pictures = self.generator.render(scene, cameras, settings.num_samples, int(torch.randint(2**31, ())))
        penalties = {}
        if settings.density_weight > 0:
            variation = density_variation(self.generator, scene, settings.density_points, settings.density_distance)
            penalties["density"] = settings.density_weight * variation
        return self.dual(pictures["image"], pictures["raw"]), cameras, penalties

    def judge(self, images: Tensor, cameras: Cameras, clock: int) -> tuple[Tensor, Tensor]:
        return self.discriminator(images, pose_label(cameras)), torch.zeros(len(images), 3, device=images.device)


EG3D = Baseline(NAME, "EG3D", EG3D_PROFILES, EG3DTraining, TriPlaneGenerator)
