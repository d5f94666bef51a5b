"""The settings of the adversarial baselines, EG3D and pi-GAN, and their sizes per profile."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import require


@dataclass(frozen=True)
class AdversarialConfig:
    """Training of a generator against a discriminator. `images_seen` counts real images; a step takes `batch_size`."""

    images_seen: int
    batch_size: int
    num_samples: int  # per ray
    generator_lr: float
    discriminator_lr: float
    betas: tuple[float, float]
    r1_weight: float  # gamma
    r1_every: int  # steps; the penalty is multiplied by this number
    ema_half_life: int  # in images seen
    pose_weight: float  # of the squared error of the discriminator's guess at a generated picture's view direction

    def __post_init__(self) -> None:
        for name in ("images_seen", "batch_size", "num_samples", "r1_every", "ema_half_life"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("generator_lr", "discriminator_lr"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name):g}, expected a positive rate")
        for name in ("r1_weight", "pose_weight"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name):g}, expected 0 or more")


@dataclass(frozen=True)
class EG3DConfig(AdversarialConfig):
    """Networks and training; defaults are the paper's as far as they fit 128 x 128 pixels."""

    images_seen: int = 25_000_000
    batch_size: int = 32
    num_samples: int = 96
    generator_lr: float = 2.5e-3
    discriminator_lr: float = 2e-3
    betas: tuple[float, float] = (0.0, 0.99)
    r1_weight: float = 1.0
    r1_every: int = 16
    ema_half_life: int = 10_000
    pose_weight: float = 0.0
    latent_dim: int = 512
    style_dim: int = 512
    mapping_layers: int = 2
    channels: int = 512  # of the synthesis at 4^2 ...
    channel_base: int = 32768  # ... and at most channel_base / r at r^2
    plane_resolution: int = 256
    plane_channels: int = 32
    decoder_dim: int = 64
    rendering_resolution: int = 64
    resolution: int = 128
    superresolution_channels: int = 128
    discriminator_channels: int = 512
    discriminator_base: int = 32768
    density_scale: float = 20.0  # sigma per unit length is scale * softplus(raw + bias)
    density_bias: float = -4.0
    swap: float = 0.5  # share of pictures whose generator is told another camera
    density_weight: float = 0.25  # of the mean |sigma(x) - sigma(x + d)|, in units of the scale
    density_distance: float = 0.004  # standard deviation of d in half-widths of the cube
    density_points: int = 1000  # for each scene

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent_dim", "style_dim", "mapping_layers", "channels", "decoder_dim", "density_points"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        r = self.plane_resolution
        require(r >= 8 and r & (r - 1) == 0, f"plane_resolution is {r}, expected a power of two from 8 on")
        require(self.plane_channels >= 3, f"plane_channels is {self.plane_channels}, expected at least the 3 of colour")
        require(
            self.resolution in (2 * self.rendering_resolution, 4 * self.rendering_resolution),
            f"resolution is {self.resolution}, expected two or four times rendering_resolution "
            f"({self.rendering_resolution})",
        )
        require(0 <= self.swap <= 1, f"swap is {self.swap:g}, expected a share in [0, 1]")
        require(self.density_weight >= 0, f"density_weight is {self.density_weight:g}, expected 0 or more")
        require(self.density_distance > 0, f"density_distance is {self.density_distance:g}, expected more than 0")


EG3D_PROFILES = {
    "smoke": EG3DConfig(
        images_seen=320, batch_size=4, num_samples=8, ema_half_life=50, latent_dim=16, style_dim=32, channels=16,
        channel_base=512, plane_resolution=16, plane_channels=8, decoder_dim=16, rendering_resolution=16, resolution=32,
        superresolution_channels=8, discriminator_channels=32, discriminator_base=256, density_points=100,
    ),
    "laptop": EG3DConfig(
        images_seen=96_000, batch_size=8, num_samples=24, ema_half_life=2_000, latent_dim=64, style_dim=128,
        channels=64, channel_base=1024, plane_resolution=32, plane_channels=16, decoder_dim=32, rendering_resolution=24,
        resolution=48, superresolution_channels=24, discriminator_channels=64, discriminator_base=768,
        density_points=250, density_distance=0.02,
    ),
    "gpu": EG3DConfig(
        images_seen=2_000_000, num_samples=48, latent_dim=256, style_dim=256, channels=256, channel_base=8192,
        plane_resolution=128, discriminator_channels=256, discriminator_base=8192, superresolution_channels=64,
    ),
    "paper": EG3DConfig(),
}  # fmt: skip  # fmt: skip


@dataclass(frozen=True)
class PiGANConfig(AdversarialConfig):
    """Networks and training; defaults are the paper's for 128 x 128 pixels, but for what is listed above."""

    images_seen: int = 5_000_000
    batch_size: int = 8  # what fits into the memory of one large GPU
    num_samples: int = 48
    generator_lr: float = 5e-5
    mapping_lr: float = 2.5e-6
    discriminator_lr: float = 4e-4
    betas: tuple[float, float] = (0.0, 0.9)
    r1_weight: float = 10.0
    r1_every: int = 1
    ema_half_life: int = 5_500  # 0.999 a step
    pose_weight: float = 15.0
    latent_dim: int = 256
    mapping_dim: int = 256
    mapping_layers: int = 3
    layers: int = 8
    channels: int = 256
    density_scale: float = 20.0  # sigma per unit length is scale * softplus(raw + bias)
    density_bias: float = -4.0
    discriminator_channels: int = 32  # at the finest resolution; doubled by each halving ...
    max_channels: int = 400  # ... up to this
    resolutions: tuple[int, ...] = (32, 64, 128)  # of the progressive stages
    shares: tuple[float, ...] = (0.4, 0.4, 0.2)  # of the images seen, one for each stage
    fade_images: int = 100_000  # over which a stage fades in

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent_dim", "mapping_dim", "mapping_layers", "layers", "channels", "discriminator_channels"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        require(bool(self.resolutions), "resolutions is empty, expected at least one stage")
        for coarse, fine in zip(self.resolutions, self.resolutions[1:], strict=False):
            require(fine == 2 * coarse, f"resolutions are {self.resolutions}, expected each twice the one before")
        require(
            len(self.shares) == len(self.resolutions) and abs(sum(self.shares) - 1) < 1e-6 and min(self.shares) > 0,
            f"shares are {self.shares}, expected one for each of {len(self.resolutions)} stages, adding up to 1",
        )
        require(self.fade_images >= 0, f"fade_images is {self.fade_images}, expected 0 or more")

    def stage(self, clock: int) -> tuple[int, float]:
        """Resolution and weight alpha in (0, 1] of the finest layers after `clock` images."""
        start = 0.0
        for index, share in enumerate(self.shares):
            end = start + share * self.images_seen
            if clock < end or index == len(self.shares) - 1:
                break
            start = end
        alpha = min(1.0, (clock - start + self.batch_size) / self.fade_images) if index and self.fade_images else 1.0
        return self.resolutions[index], alpha


_SMALL = dict(generator_lr=2e-4, mapping_lr=2e-5, discriminator_lr=4e-4, pose_weight=1.0)
PI_GAN_PROFILES = {
    "smoke": PiGANConfig(
        **_SMALL, images_seen=320, batch_size=4, num_samples=8, ema_half_life=50, latent_dim=16, mapping_dim=32,
        mapping_layers=2, layers=2, channels=24, discriminator_channels=8, max_channels=32, resolutions=(16, 32),
        shares=(0.7, 0.3), fade_images=40, r1_every=4,
    ),
    "laptop": PiGANConfig(
        **_SMALL, images_seen=64_000, batch_size=8, num_samples=12, ema_half_life=2_000, latent_dim=64,
        mapping_dim=128, layers=4, channels=64, discriminator_channels=16, max_channels=96, resolutions=(12, 24, 48),
        shares=(0.3, 0.5, 0.2), fade_images=3_000, r1_every=4,
    ),
    "gpu": PiGANConfig(
        **_SMALL, images_seen=400_000, batch_size=16, num_samples=32, ema_half_life=11_000, fade_images=20_000,
        channels=128, layers=6,
    ),
    "paper": PiGANConfig(),
}  # fmt: skip  # fmt: skip
