"""The settings of DiffRF and its sizes per profile; `vader/baselines/diffrf.py` tells its choices from ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .checks import ConfigError, check_seed, nearest, require
from .diffusion import UNetConfig
from .experiment import Experiment

CHANNELS = 4  # density and colour


@dataclass(frozen=True)
class FieldsConfig:
    """The fields and how they are fitted. Each object gets `rays_per_object` rays, with repetition, in all."""

    resolution: int = 32
    optical_depth: float = 4.0  # tau, of a voxel at 1: it lets 2 % of the light pass
    sharpness: float = 8.0  # beta
    rays_per_object: int = 4_096_000
    objects_per_step: int = 64  # at most; all of a smaller set
    rays_per_step: int = 4096  # of each of them, from all its training views
    num_samples: int = 128  # per ray
    learning_rate: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    mask_weight: float = 1.0  # of the squared error of the occupancy
    density_variation: float = 1e-3  # weights of the total variation ...
    colour_variation: float = 1e-3
    sparsity: float = 1e-4  # ... and of the mean of x_0 + 1, which empties what no ray needs

    def __post_init__(self) -> None:
        require(self.resolution >= 2, f"resolution is {self.resolution}, expected at least 2")
        for name in ("rays_per_object", "objects_per_step", "rays_per_step", "num_samples"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("optical_depth", "sharpness", "learning_rate"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name):g}, expected a positive number")
        for name in ("mask_weight", "density_variation", "colour_variation", "sparsity"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name):g}, expected 0 or more")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(4, S, S, S)."""
        return (CHANNELS, *3 * (self.resolution,))

    @property
    def updates(self) -> int:
        """Number of updates of each object."""
        return -(-self.rays_per_object // self.rays_per_step)


@dataclass(frozen=True)
class FieldDiffusionConfig:
    """DDPM on fields. `fields_seen` counts training fields, as `latents_seen` does for ours."""

    timesteps: int = 1000
    beta_start: float = 0.0015  # linear schedule
    beta_end: float = 0.05
    prediction: Literal["epsilon", "sample"] = "epsilon"  # the noise, or x_0
    patch_size: int = 1  # voxels per axis that are one cell of the U-Net
    fields_seen: int = 24_000_000
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup_fields: int = 0
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    ema_half_life: int = 500_000  # in fields seen
    ema_rampup: float = 0.05
    guidance_weight: float = 0.1  # lambda; 0 leaves the rendering loss out
    guidance_rays: int = 1024  # of each object of a step, from all its training views
    guidance_samples: int = 64  # per ray
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        kinds = ["epsilon", "sample"]
        kind = self.prediction
        require(kind in kinds, f"prediction is {kind!r}{nearest(kind, kinds)}, expected one of {kinds}")
        for name in ("timesteps", "patch_size", "fields_seen", "batch_size", "guidance_rays", "guidance_samples"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        require(
            0 < self.beta_start <= self.beta_end < 1,
            f"expected 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}",
        )
        require(self.guidance_weight >= 0, f"guidance_weight is {self.guidance_weight:g}, expected 0 or more")


@dataclass(frozen=True)
class FieldSamplerConfig:
    """DDIM; with as many steps as in training and eta 1 it is DDPM's ancestral sampling."""

    num_steps: int = 1000
    eta: float = 1.0  # 0 adds no noise on the way

    def __post_init__(self) -> None:
        require(self.num_steps >= 1, f"num_steps is {self.num_steps}, expected at least 1")
        require(0 <= self.eta <= 1, f"eta is {self.eta:g}, expected 0 to 1")


@dataclass(frozen=True)
class DiffRFConfig:
    """Everything that decides a DiffRF beside its data. Defaults are the `paper` profile."""

    fields: FieldsConfig = field(default_factory=FieldsConfig)
    unet: UNetConfig = field(
        default_factory=lambda: UNetConfig(64, depth=3, channel_mult=(1, 2, 3, 4), attention_resolutions=(8, 4))
    )
    diffusion: FieldDiffusionConfig = field(default_factory=FieldDiffusionConfig)
    sampler: FieldSamplerConfig = field(default_factory=FieldSamplerConfig)  # decides samples, not weights
    weights_precision: Literal["float32", "float16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        size, patch = self.fields.resolution, self.diffusion.patch_size
        require(size % patch == 0, f"resolution {size} does not divide into patches of patch_size {patch}")
        self.unet.resolutions(size // patch)
        require(self.unet.context_dim == 0, f"context_dim is {self.unet.context_dim}, expected 0: no captions here")
        steps, most = self.sampler.num_steps, self.diffusion.timesteps
        require(steps <= most, f"num_steps is {steps}, expected at most the {most} timesteps of training")

    replace = Experiment.replace  # nested fields as dictionaries


PROFILES: dict[str, dict[str, Any]] = {
    "smoke": dict(
        fields=dict(resolution=16, rays_per_object=60 * 256, rays_per_step=256, num_samples=24, learning_rate=0.1),
        unet=UNetConfig(16, 1, (1, 1), attention_resolutions=(4,), channels_per_head=16, dropout=0.0),
        diffusion=dict(
            prediction="sample",
            patch_size=2,
            fields_seen=800,
            batch_size=16,
            learning_rate=2e-3,
            warmup_fields=160,
            ema_half_life=160,
            guidance_rays=64,
            guidance_samples=24,
        ),
        sampler=dict(num_steps=10, eta=0.0),
        weights_precision="float16",
    ),
    "laptop": dict(
        fields=dict(rays_per_object=320 * 512, objects_per_step=16, rays_per_step=512, num_samples=48),
        unet=UNetConfig(32, 1, (1, 1, 2), attention_resolutions=(4,), channels_per_head=32, dropout=0.0),
        diffusion=dict(
            prediction="sample",
            patch_size=2,
            fields_seen=48_000,
            batch_size=8,
            learning_rate=1e-3,
            warmup_fields=800,
            ema_half_life=1_000,
            guidance_rays=256,
            guidance_samples=48,
            precision="bfloat16",
        ),
        sampler=dict(num_steps=25, eta=0.0),
        weights_precision="float16",
    ),
    "gpu": dict(
        fields=dict(rays_per_object=1000 * 2048, rays_per_step=2048),
        unet=UNetConfig(32, 2, (1, 2, 3, 4), attention_resolutions=(8, 4), channels_per_head=32, dropout=0.0),
        diffusion=dict(
            fields_seen=1_000_000,
            learning_rate=2e-4,
            warmup_fields=20_000,
            ema_half_life=20_000,
            precision="bfloat16",
        ),
        sampler=dict(num_steps=100),
        weights_precision="float16",
    ),
    "paper": dict(),
}


def diffrf(profile: str, seed: int = 0) -> DiffRFConfig:
    """The sizes of a profile. Raises ConfigError naming the nearest known name."""
    if profile not in PROFILES:
        known = list(PROFILES)
        raise ConfigError(f"profile {profile!r} is unknown{nearest(profile, known)}; known: {', '.join(known)}")
    return DiffRFConfig(seed=seed).replace(**PROFILES[profile])
