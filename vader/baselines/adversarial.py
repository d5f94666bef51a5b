"""Training of both adversarial baselines: losses, the stream of real images, one task (`gan.py` runs it).

Non-saturating logistic loss (Goodfellow et al. 2014) with R1 on real images (Mescheder et al. 2018):

    L_D = E f(D(fake)) + E f(-D(real)) + gamma / 2 E |grad D(real)|^2,    L_G = E f(-D(fake)),    f(u) = ln(1 + e^u).

The pose prior is that of the data set: cameras of generated pictures are drawn from those of its training views.
Pictures are (b, 3, r, r) in [-1, 1] in front of a discriminator, with -1 as the black background. Everywhere else they
are (n, v, h, w, 3) in [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..data import SequenceSet
from ..diffusion.ema import EMA
from ..rendering.cameras import Cameras
from ..settings.checks import require
from ..settings.experiment import Experiment
from ..settings.gans import AdversarialConfig
from ..store.files import save_weights

# ------------------------------------------------------------------------------------------------------ losses


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating: mean of f(-D(fake)) over logits (b,)."""
    return F.softplus(-fake).mean()


def discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Mean of f(D(fake)) + f(-D(real)) over logits (b,) each."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean over the batch of |grad D|^2 for logits (b,) of `images` (b, ...), which require a gradient."""
    [gradient] = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


# ------------------------------------------------------------------------------------------- images and cameras


def resized(cameras: Cameras, resolution: int) -> Cameras:
    """The same views with resolution x resolution pixels."""
    scale = torch.tensor([resolution / cameras.width, resolution / cameras.height, 1.0])
    intrinsics = cameras.intrinsics * scale.to(cameras.intrinsics)[:, None]
    return Cameras(cameras.world_to_camera, intrinsics, resolution, resolution)


def view_directions(cameras: Cameras) -> Tensor:
    """Unit vectors (n, 3) from the origin towards the cameras."""
    return F.normalize(cameras.centres(), dim=-1)


class RealViews:
    """The training views of a data set with their cameras, drawn uniformly from the current random stream."""

    def __init__(self, data: SequenceSet, device: torch.device) -> None:
        objects, views = data.split("train"), slice(data.train_views)
        self.name = data.name
        require(len(objects) > 0, f"{data.name} has no training objects")
        self.images = torch.cat([s.images[views] for s in objects]).permute(0, 3, 1, 2).to(device)  # (n, 3, h, w)
        self.cameras = Cameras(
            torch.cat([s.cameras.world_to_camera[views] for s in objects]),
            torch.cat([s.cameras.intrinsics[views] for s in objects]),
            *self.images.shape[2:],
        ).to(device)

    def require_resolution(self, expected: int) -> None:
        """Raise ConfigError unless images have expected x expected pixels."""
        h, w = self.images.shape[2:]
        require((h, w) == (expected, expected), f"{self.name} has {w}x{h} pixels, expected {expected}x{expected}")

    def draw(self, n: int) -> tuple[Tensor, Cameras]:
        """Images (n, 3, h, w) in [-1, 1] and their cameras."""
        rows = torch.randint(len(self.images), (n,)).to(self.images.device)
        return self.images[rows].float() / 127.5 - 1, self.cameras[rows]

    def draw_cameras(self, n: int) -> Cameras:
        """The pose prior."""
        return self.cameras[torch.randint(len(self.images), (n,)).to(self.images.device)]


# ---------------------------------------------------------------------------------------------------- the parts

# What makes one scene of one latent: tensors with the batch first, such as frequencies and phases, or tri-planes.
Scene = tuple[Tensor, ...]


class SceneGenerator(Protocol):
    """A generator as an nn.Module."""

    latent_dim: int

    def scene(self, z: Tensor, cameras: Cameras) -> Scene:
        """Scenes of latents (b, k); `cameras` are for a generator that is conditioned on the pose."""

    def density(self, scene: Scene, points: Tensor) -> Tensor:
        """sigma (b, p) per unit length at points (b, p, 3) of [-1, 1]^3."""

    def render(self, scene: Scene, cameras: Cameras, num_samples: int, seed: int | None) -> dict[str, Tensor]:
        """'image' (b, 3, h, w) in [-1, 1] from a camera for each scene, and what else a discriminator looks at."""


class Adversarial(ABC):
    """A task of `training.fit`. Both networks take a step at the same time, so that one rendering serves both.

    Subclasses `build` the networks, and say in `real`, `fake` and `judge` what the discriminator is shown.
    """

    name: str
    warmup = 0

    def __init__(
        self,
        config: Experiment,
        settings: AdversarialConfig,
        data: SequenceSet,
        device: torch.device,
    ) -> None:
        self.config, self.settings, self.device, self.seed = config, settings, device, config.seed
        self.per_step = settings.batch_size
        self.total = -(-settings.images_seen // self.per_step) * self.per_step
        self.views = RealViews(data, device)
        torch.manual_seed(config.seed)
        generator, discriminator, groups = self.build()
        self.generator, self.discriminator = generator.to(device).train(), discriminator.to(device).train()
        self.ema = EMA(self.generator, settings.ema_half_life)
        self.optimizer = torch.optim.Adam(groups, betas=settings.betas, fused=True)

    @abstractmethod
    def build(self) -> tuple[nn.Module, nn.Module, list[dict[str, Any]]]:
        """Generator, discriminator, and the optimiser's groups with their rates."""

    @abstractmethod
    def real(self, clock: int) -> tuple[Tensor, Cameras]:
        """Real images as the discriminator sees them, (b, c, r, r), and their cameras."""

    @abstractmethod
    def fake(self, clock: int) -> tuple[Tensor, Cameras, dict[str, Tensor]]:
        """Generated images as the discriminator sees them, with a graph, and the generator's own penalties by name."""

    @abstractmethod
    def judge(self, images: Tensor, cameras: Cameras, clock: int) -> tuple[Tensor, Tensor]:
        """Logits (b,) and the guess at the view direction (b, 3)."""

    def step(self, clock: int) -> dict[str, Tensor]:
        settings = self.settings
        fake, cameras, penalties = self.fake(clock)
        real, real_cameras = self.real(clock)
        direction = view_directions(cameras)
        penalize = settings.r1_weight > 0 and clock // self.per_step % settings.r1_every == 0

        on_fake, guess = self.judge(fake.detach(), cameras, clock)
        shown = real.requires_grad_(penalize).view_as(real)  # not a leaf: the counter of `step_flops` refuses those
        on_real, _ = self.judge(shown, real_cameras, clock)
        critic = discriminator_loss(on_fake, on_real)
        losses = {"discriminator": critic.detach(), "real": on_real.detach().mean(), "fake": on_fake.detach().mean()}
        if penalize:
            r1 = r1_penalty(on_real, real)
            critic = critic + settings.r1_weight / 2 * settings.r1_every * r1
            losses["r1"] = r1.detach()
        if settings.pose_weight > 0:
            critic = critic + settings.pose_weight * F.mse_loss(guess, direction)
        critic.backward()

        self.discriminator.requires_grad_(False)
        logits, guess = self.judge(fake, cameras, clock)
        losses["generator"] = generator_loss(logits)
        if settings.pose_weight > 0:
            penalties["pose"] = settings.pose_weight * F.mse_loss(guess, direction)
        loss = losses["generator"] + sum(penalties.values())
        loss.backward()
        self.discriminator.requires_grad_(True)
        return {"loss": loss.detach(), **{k: v.detach() for k, v in {**losses, **penalties}.items()}}

    def after_step(self, clock: int) -> None:
        self.ema.update(self.generator, clock, self.per_step)

    def state(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "ema": self.ema.module}

    def step_flops(self, clock: int) -> int:
        """Operations of the matrix products and convolutions of a step, both directions."""
        with FlopCounterMode(display=False) as counter:
            self.step(clock)
        self.optimizer.zero_grad(set_to_none=True)
        return counter.get_total_flops()

    def facts(self) -> dict[str, Any]:
        """Facts that the run's record keeps beside the usual ones."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        return {"parameters": {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}}

    def save(self, work: Path) -> None:
        """The EMA of the generator."""
        save_weights(
            work / "generator.safetensors",
            self.ema.module,
            {self.name: self.settings},
            getattr(torch, self.config.weights_precision),
        )
