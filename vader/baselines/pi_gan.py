"""pi-GAN (Chan et al. 2021): a SIREN radiance field modulated by FiLM, trained against a progressive discriminator.

z -> mapping network -> (frequencies, phases) of every layer; the layers of the field are

    x_{i+1} = sin(gamma_i * (W_i x_i + b_i) + beta_i),    gamma = 15 s + 30, beta = t for the mapping's outputs (s, t)

on positions of the cube [-1, 1]^3. Density comes from the last layer; colour from one more layer that also takes the
view direction. Rendering is that of the rest of the package: emission-absorption between the faces of the cube, unit
directions, black background.

What differs from the original (in brackets), and why:

- sizes by profile (8 layers of 256, which `paper` has): two CPU cores;
- stratified samples between the faces of the cube (coarse and fine ones): the cube bounds every ray;
- sigma = scale * softplus(raw + bias) (ReLU, noise on the raw density): starts as thin fog, and no density is dead;
- both networks step at once (in turn): one rendering serves both, and R1 makes either converge;
- R1 every few steps and as much heavier in small profiles (every step): it costs as much as the rest of the step;
- one batch size, stages by share of the images seen (a batch for each resolution): the loop's clock is images;
- learning rates fall linearly to 0 (slower decays): the loop's schedule, which every system here has;
- poses are drawn from the training cameras (from a fitted distribution of angles): they are known;
- the discriminator guesses the view direction of generated pictures (pitch and yaw): no jump at a full turn.
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
from ..settings.gans import PI_GAN_PROFILES, PiGANConfig
from .adversarial import Adversarial, Scene, resized
from .gan import Baseline

NAME = "pi_gan"


# --------------------------------------------------------------------------------------------------- generator


class MappingNetwork(nn.Module):
    """Latents (b, k) -> frequencies and phases, each (b, layers, width)."""

    def __init__(self, config: PiGANConfig, layers: int) -> None:
        super().__init__()
        widths = [config.latent_dim, *[config.mapping_dim] * config.mapping_layers]
        hidden = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.hidden = nn.ModuleList(hidden)
        self.out = nn.Linear(widths[-1], 2 * layers * config.channels)
        self.shape = (2, layers, config.channels)
        for layer in (*hidden, self.out):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
        with torch.no_grad():
            self.out.weight.mul_(0.25)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.hidden:
            z = F.leaky_relu(layer(z), 0.2)
        scale, phases = self.out(z).view(-1, *self.shape).unbind(1)
        return 15 * scale + 30, phases


class FiLMLayer(nn.Module):
    """sin(gamma * (W x + b) + beta) on (b, p, in). gamma goes into W and b, which costs less than on every point."""

    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / 25
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
        """frequencies and phases: (b, out)."""
        weight = frequencies[:, :, None] * self.linear.weight  # (b, out, in)
        bias = frequencies * self.linear.bias + phases
        return torch.baddbmm(bias[:, None], x, weight.mT).sin()


class SirenGenerator(nn.Module):
    """The mapping network and the radiance field that it modulates (a `SceneGenerator`)."""

    def __init__(self, config: PiGANConfig) -> None:
        super().__init__()
        self.config, self.latent_dim, c = config, config.latent_dim, config.channels
        self.mapping = MappingNetwork(config, config.layers + 1)
        self.layers = nn.ModuleList([FiLMLayer(3 if i == 0 else c, c, first=i == 0) for i in range(config.layers)])
        self.to_density = nn.Linear(c, 1)
        self.colour = FiLMLayer(c + 3, c)
        self.to_colour = nn.Linear(c, 3)
        for layer in (self.to_density, self.to_colour):
            nn.init.uniform_(layer.weight, -math.sqrt(6 / c) / 25, math.sqrt(6 / c) / 25)

    def scene(self, z: Tensor, cameras: Cameras | None = None) -> Scene:
        """Frequencies and phases, (b, layers + 1, c) each; the pose plays no part."""
        return self.mapping(z)

    def features(self, scene: Scene, points: Tensor) -> Tensor:
        """(b, p, 3) -> (b, p, c)."""
        frequencies, phases = scene
        for i, layer in enumerate(self.layers):
            points = layer(points, frequencies[:, i], phases[:, i])
        return points

    def sigma(self, features: Tensor) -> Tensor:
        raw = self.to_density(features).squeeze(-1) + self.config.density_bias
        return self.config.density_scale * F.softplus(raw)

    def density(self, scene: Scene, points: Tensor) -> Tensor:
        return self.sigma(self.features(scene, points))

    def radiance(self, scene: Scene, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Density (b, r, n) and colour (b, 3, r, n) at points (b, r, n, 3) on rays with directions (b, r, 3)."""
        b, r, n, _ = points.shape
        x = self.features(scene, points.reshape(b, r * n, 3))
        d = directions[:, :, None].expand(b, r, n, 3).reshape(b, r * n, 3)
        frequencies, phases = scene
        colour = self.colour(torch.cat([d, x], dim=-1), frequencies[:, -1], phases[:, -1])
        colour = torch.sigmoid(self.to_colour(colour)).view(b, r, n, 3)
        return self.sigma(x).view(b, r, n), colour.permute(0, 3, 1, 2)

    def render(self, scene: Scene, cameras: Cameras, num_samples: int, seed: int | None) -> dict[str, Tensor]:
        origins, directions = cameras.rays()
        colour, _, _ = render_field(lambda p, d: self.radiance(scene, p, d), origins, directions, num_samples, seed)
        image = colour.mT.reshape(len(cameras), 3, cameras.height, cameras.width)
        return {"image": 2 * image - 1}


# ----------------------------------------------------------------------------------------------- discriminator


class CoordConv(nn.Conv2d):
    """A convolution that is also given the pixels' coordinates x and y in [-1, 1] (Liu et al. 2018)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs + 2, outputs, 3, padding=1)
        nn.init.kaiming_normal_(self.weight, a=0.2)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        rows, columns = (torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in (h, w))
        y, x_ = torch.meshgrid(rows, columns, indexing="ij")
        return super().forward(torch.cat([x, torch.stack([x_, y]).expand(b, 2, h, w)], dim=1))


class ResidualBlock(nn.Module):
    """Two CoordConvs and a halving, beside a 1x1 convolution: (b, in, 2r, 2r) -> (b, out, r, r)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([CoordConv(inputs, outputs), CoordConv(outputs, outputs)])
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self.convolutions:
            y = F.leaky_relu(convolution(y), 0.2)
        return (F.avg_pool2d(y, 2) + self.skip(F.avg_pool2d(x, 2))) / math.sqrt(2)


class ProgressiveDiscriminator(nn.Module):
    """Pictures (b, 3, r, r) in [-1, 1] of any stage's resolution r -> logits (b,) and view directions (b, 3).

    A new stage enters with weight alpha beside the halved picture that the coarser layers know (Karras et al. 2018).
    """

    def __init__(self, config: PiGANConfig) -> None:
        super().__init__()
        sizes = [config.resolutions[-1]]
        while sizes[-1] % 2 == 0 and sizes[-1] > 4:
            sizes.append(sizes[-1] // 2)
        require(
            config.resolutions[0] in sizes[:-1],
            f"the first resolution is {config.resolutions[0]}, expected at least {sizes[-2:][0]}: one to halve",
        )
        widths = [min(config.discriminator_channels * 2**i, config.max_channels) for i in range(len(sizes))]
        self.sizes = sizes
        self.blocks = nn.ModuleList([ResidualBlock(a, b) for a, b in zip(widths, widths[1:], strict=False)])
        entries = {str(r): nn.Conv2d(3, widths[sizes.index(r)], 1) for r in config.resolutions}
        self.from_rgb = nn.ModuleDict(entries)
        self.head = nn.Linear(widths[-1] * sizes[-1] ** 2, 1 + 3)

    def enter(self, images: Tensor) -> Tensor:
        return F.leaky_relu(self.from_rgb[str(images.shape[-1])](images), 0.2)

    def forward(self, images: Tensor, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
        first = self.sizes.index(images.shape[-1])
        x = self.blocks[first](self.enter(images))
        if alpha < 1:
            x = alpha * x + (1 - alpha) * self.enter(F.avg_pool2d(images, 2))
        for block in self.blocks[first + 1 :]:
            x = block(x)
        logit, guess = self.head(x.flatten(1)).split([1, 3], dim=1)
        return logit.squeeze(1), guess


# ---------------------------------------------------------------------------------------------------- training


class PiGANTraining(Adversarial):
    """The task of `training.fit`."""

    name = NAME

    def build(self) -> tuple[nn.Module, nn.Module, list[dict[str, Any]]]:
        settings = self.settings
        self.views.require_resolution(settings.resolutions[-1])
        generator, discriminator = SirenGenerator(settings), ProgressiveDiscriminator(settings)
        mapping = list(generator.mapping.parameters())
        field = [p for name, p in generator.named_parameters() if not name.startswith("mapping.")]
        groups = [
            {"params": field, "lr": settings.generator_lr},
            {"params": mapping, "lr": settings.mapping_lr},
            {"params": list(discriminator.parameters()), "lr": settings.discriminator_lr},
        ]
        return generator, discriminator, groups

    def real(self, clock: int) -> tuple[Tensor, Cameras]:
        images, cameras = self.views.draw(self.per_step)
        factor = images.shape[-1] // self.settings.stage(clock)[0]
        return F.avg_pool2d(images, factor), cameras

    def fake(self, clock: int) -> tuple[Tensor, Cameras, dict[str, Tensor]]:
        settings = self.settings
        z = torch.randn(self.per_step, settings.latent_dim).to(self.device)
        cameras = resized(self.views.draw_cameras(self.per_step), settings.stage(clock)[0])
        seed = int(torch.randint(2**31, ()))
        scene = self.generator.scene(z)
        return self.generator.render(scene, cameras, settings.num_samples, seed)["image"], cameras, {}

    def judge(self, images: Tensor, cameras: Cameras, clock: int) -> tuple[Tensor, Tensor]:
        return self.discriminator(images, self.settings.stage(clock)[1])


PI_GAN = Baseline(NAME, "pi-GAN", PI_GAN_PROFILES, PiGANTraining, SirenGenerator)
