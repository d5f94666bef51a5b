"""Every setting that affects a result, as frozen dataclasses, checked where they are made.

Defaults are Table 5's Chairs column; `profiles.py` has the other columns and the smaller sizes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from .articulation import ArticulationConfig
from .checks import later, nearest, require
from .text import TextConfig

WORD_BITS = 32  # w of Eq. 10


@dataclass(frozen=True)
class DataConfig:
    """What the images show and how they were taken. Camera distances are in units of the cube [-1, 1]^3."""

    name: str  # 'procedural_chairs', 'furniture_tables', ...
    num_objects: int = 64  # training objects; held-out ones are added on top by the reader
    heldout_objects: int = 8
    train_views: int = 40  # views per object that training may draw
    heldout_views: int = 8  # views per object that only evaluation sees
    resolution: int = 48  # images are resolution x resolution
    field_of_view: float = 36.0  # degrees, full angle, both axes
    camera_distance: float = 4.0
    elevation: tuple[float, float] = (-10.0, 60.0)  # degrees, uniform in sin(elevation)
    supersampling: int = 4  # rays (or pixels) per image pixel and axis, box-filtered
    variants: int = 1  # furniture: re-coloured, re-scaled versions of each base model
    seed: int = 0


@dataclass(frozen=True)
class AutodecoderConfig:
    """The network G = G2 o G1 (Sec. 3.1, B.1). Defaults are Table 5's Chairs column."""

    embedding_dim: int = 1024  # z-length
    max_channels: int = 512  # features at the 4^3 start; halved by each block
    base_resolution: int = 4
    resolution: int = 64  # VoxelGridSize
    depth: int = 4  # residual blocks per resolution
    depth_counts_up_block: bool = True  # False: `depth` further blocks after the up block (rival reading)
    attention_resolutions: tuple[int, ...] = (8, 16)
    latent_resolution: int = 8  # where G is split into G1 and G2
    lbs_channels: int = 0  # 10 for articulated subjects (1 + 3 + 10 output channels)
    lbs_skips: bool = later(False)  # skinning logits are summed over G2's resolutions, the coarse ones upsampled
    lbs_scale: float = later(1.0)  # of the skinning logits, as density_scale is of the density
    density_activation: Literal["relu", "softplus"] = "relu"
    density_scale: float = 1.0  # sigma = density_scale * activation(raw), per unit length
    density_bias: float = 0.0  # initial bias of the raw density
    colour_activation: Literal["none", "sigmoid"] = "none"
    hash_rows: int = later(0)  # 2^r rows in each codebook of the hash embedding (B.3); 0: a dense table
    hash_codebooks: int = later(256)  # pieces that a hashed embedding is made of
    hash_multipliers: Literal["corrected", "literal"] = later("corrected")  # a_i of Eq. 10; literal: Eq. 11
    sparse_embedding: bool = later(False)  # gradients of looked-up rows only, and Adam's moments for them only

    def __post_init__(self) -> None:
        self._check_hash()
        resolutions = self.stage_resolutions
        require(
            bool(resolutions) and resolutions[-1] == self.resolution,
            f"resolution {self.resolution} is not base_resolution {self.base_resolution} times a power of two",
        )
        taps = (self.base_resolution, *resolutions[:-1])
        require(
            self.latent_resolution in taps,
            f"latent_resolution {self.latent_resolution} is not a tap of this decoder: it has {taps}",
        )
        for r in self.attention_resolutions:
            require(r in resolutions, f"attention at {r}^3 never occurs: the decoder's stages are at {resolutions}")
        require(self.depth >= 1, f"depth is {self.depth}, expected at least 1 residual block per resolution")
        require(self.embedding_dim >= 1, f"embedding_dim is {self.embedding_dim}, expected at least 1")
        require(self.lbs_channels >= 0, f"lbs_channels is {self.lbs_channels}, expected 0 or more")
        require(
            self.max_channels % 2 ** len(resolutions) == 0,
            f"max_channels {self.max_channels} cannot be halved {len(resolutions)} times",
        )

    def _check_hash(self) -> None:
        rows, codebooks, kinds = self.hash_rows, self.hash_codebooks, ["corrected", "literal"]
        kind = self.hash_multipliers
        require(kind in kinds, f"hash_multipliers is {kind!r}{nearest(kind, kinds)}, expected one of {kinds}")
        if rows == 0:
            require(
                (codebooks, kind) == (256, "corrected"),
                f"hash_codebooks {codebooks} and hash_multipliers {kind!r} are of no use without hash_rows",
            )
            return
        require(
            2 <= rows <= 2**WORD_BITS and rows & (rows - 1) == 0,
            f"hash_rows is {rows}, expected a power of two from 2 to 2^{WORD_BITS}",
        )
        require(
            codebooks >= 1 and self.embedding_dim % codebooks == 0,
            f"embedding_dim {self.embedding_dim} does not divide into hash_codebooks {codebooks}",
        )
        most = 2 ** (WORD_BITS // 2 - 1)  # beyond, 2^31 + 2 i^2 + 1 is no longer below 2^32
        require(
            kind == "corrected" or codebooks <= most,
            f"hash_codebooks is {codebooks}, expected at most {most}, since Eq. 11 has no multipliers beyond",
        )

    @property
    def stage_resolutions(self) -> tuple[int, ...]:
        """Output resolution of each up block, e.g. (8, 16, 32, 64)."""
        resolutions, r = [], self.base_resolution * 2
        while r <= self.resolution:
            resolutions.append(r)
            r *= 2
        return tuple(resolutions)

    def channels_at(self, resolution: int) -> int:
        """Features per cell at a resolution: max_channels at the start, halved by each doubling."""
        return self.max_channels * self.base_resolution // resolution

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(c, d, h, w) of the volume in which diffusion runs."""
        r = self.latent_resolution
        return (self.channels_at(r), r, r, r)


def _check_step(settings: ReconstructionConfig | DiffusionTrainingConfig, batch: str) -> None:
    size, parts = getattr(settings, batch), settings.microbatches
    require(parts >= 1, f"microbatches is {parts}, expected at least 1")
    require(size % parts == 0, f"{batch} {size} does not divide into {parts} microbatches")
    for name in ("clip_norm", "clip_value"):
        value = getattr(settings, name)
        require(value >= 0, f"{name} is {value:g}, expected a positive bound, or 0 for none")


@dataclass(frozen=True)
class ReconstructionConfig:
    """Stage-1 training (Sec. 3.2). `images_seen` counts rendered training images."""

    images_seen: int = 9_000_000
    objects_per_step: int = 8
    views_per_object: int = 4  # multi-frame training
    num_samples: int = 128  # per ray
    learning_rate: float = 5e-4
    embedding_learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.5, 0.999)
    warmup_images: int = 0
    perceptual_network: Literal["vgg19", "vgg16", "none"] = "vgg19"
    perceptual_weight: float = 10.0  # of Eq. 1
    perceptual_images: int = 32  # images of a step, drawn at random, on which the VGG terms are evaluated
    pyramid_scales: tuple[float, ...] = (1.0, 0.5, 0.25)
    pixel_weight: float = 0.0  # of the same pyramid with the image itself as feature
    foreground_weight: float = 10.0  # lambda of Eq. 2
    density_noise: float = 0.5  # std of the noise on the raw density, fading to 0 ...
    density_noise_images: int = 3_200_000  # ... over this many images
    precision: Literal["float32", "bfloat16"] = "float32"
    microbatches: int = later(1)  # a step's objects are processed in so many parts, which ranks share out
    partitioned: bool = later(False)  # microbatch j draws from partition j of the library, which one rank owns
    clip_norm: float = later(0.0)  # largest norm of all gradients together; 0: any
    clip_value: float = later(0.0)  # largest magnitude of a gradient's entry; 0: any

    def __post_init__(self) -> None:
        images = self.objects_per_step * self.views_per_object
        require(
            1 <= self.perceptual_images <= images,
            f"perceptual_images is {self.perceptual_images}, expected 1 to {images}, the images of a step",
        )
        _check_step(self, "objects_per_step")
        require(
            self.perceptual_network == "none" or self.perceptual_images % self.microbatches == 0,
            f"perceptual_images {self.perceptual_images} do not divide into {self.microbatches} microbatches",
        )


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser (B.2): ADM in 3D. Defaults are Table 5's Chairs column."""

    channels: int = 128
    depth: int = 2  # residual blocks per resolution
    channel_mult: tuple[int, ...] = (3, 4)
    attention_resolutions: tuple[int, ...] = (8, 4)
    channels_per_head: int = 64
    dropout: float = 0.1
    cross_attention_resolutions: tuple[int, ...] = ()
    context_dim: int = 0  # 0: unconditional
    transformer_depth: int = 1

    def __post_init__(self) -> None:
        for name in ("channels", "depth", "channels_per_head", "transformer_depth"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        for mult in self.channel_mult:
            c = self.channels * mult
            require(
                c % self.channels_per_head == 0,
                f"{c} channels (channels {self.channels} x mult {mult}) do not divide into heads of "
                f"{self.channels_per_head}",
            )
        require(
            bool(self.cross_attention_resolutions) == (self.context_dim > 0),
            "cross_attention_resolutions and context_dim go together: "
            f"got {self.cross_attention_resolutions} and {self.context_dim}",
        )

    def resolutions(self, latent_resolution: int) -> tuple[int, ...]:
        """Resolution of each level on latents of this size, e.g. (8, 4).

        Raises ConfigError if it cannot be halved that often, or if attention is asked for where no level is.
        """
        halvings = len(self.channel_mult) - 1
        require(
            latent_resolution % 2**halvings == 0,
            f"resolution {latent_resolution} cannot be halved {halvings} times, as channel_mult {self.channel_mult} "
            "asks",
        )
        levels = tuple(latent_resolution >> level for level in range(halvings + 1))
        for field_name in ("attention_resolutions", "cross_attention_resolutions"):
            for r in getattr(self, field_name):
                require(r in levels, f"{field_name} has {r}^3, which never occurs: this U-Net's are {list(levels)}")
        return levels


@dataclass(frozen=True)
class DiffusionTrainingConfig:
    """Stage-2 training (B.2, C.2). `latents_seen` counts training latents, the clock of EDM."""

    latents_seen: int = 50_000_000
    batch_size: int = 256
    learning_rate: float = 4.5e-5
    warmup_latents: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    ema_half_life: int = 500_000  # in latents seen
    ema_rampup: float = 0.05
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5
    normalization: Literal["robust", "classic"] = "robust"
    per_channel: bool = False
    condition_dropout: float = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"
    microbatches: int = later(1)  # a step's latents are processed in so many parts, which ranks share out
    clip_norm: float = later(0.0)  # largest norm of all gradients together; 0: any
    clip_value: float = later(0.0)  # largest magnitude of a gradient's entry; 0: any

    def __post_init__(self) -> None:
        _check_step(self, "batch_size")


@dataclass(frozen=True)
class SamplerConfig:
    """EDM's Heun sampler. S_churn > 0 makes it stochastic."""

    name: ClassVar[str] = "edm"  # as Table 5 calls it
    num_steps: int = 64
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    s_churn: float = 0.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003
    guidance: float = 1.0  # weight s of u + s (c - u); 1 samples the conditional model as it is

    def __post_init__(self) -> None:
        require(self.num_steps >= 2, f"num_steps is {self.num_steps}, expected at least 2")
        require(
            0 < self.sigma_min < self.sigma_max,
            f"expected 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}",
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """How samples are scored (Sec. 4.2): `views` random views of `num_samples` samples."""

    num_samples: int = 1000
    views: int = 10
    real_views: int = 10  # random ground-truth images per training object
    sampling_seeds: tuple[int, ...] = (0, 1, 2)
    features: str = "inception-v3"
    kid_subset_size: int = 1000
    kid_subsets: int = 100


@dataclass(frozen=True)
class Experiment:
    """One column of Table 5, or its scaled-down version: everything that decides the numbers."""

    profile: str
    data: DataConfig
    autodecoder: AutodecoderConfig = field(default_factory=AutodecoderConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionTrainingConfig = field(default_factory=DiffusionTrainingConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    weights_precision: Literal["float32", "float16"] = "float32"  # of the finished run's weights
    seed: int = 0
    text: TextConfig = later(TextConfig())  # of conditional runs, that is, where unet.context_dim > 0
    articulation: ArticulationConfig = later(ArticulationConfig())  # of videos, where autodecoder.lbs_channels > 0

    def __post_init__(self) -> None:
        self.unet.resolutions(self.autodecoder.latent_resolution)  # that both stages fit, before the first is trained
        require(
            self.conditional or self.sampler.guidance == 1,
            f"guidance is {self.sampler.guidance}, but the model is unconditional (context_dim 0), expected 1",
        )
        require(
            not self.conditional or self.text.width in (None, self.unet.context_dim),
            f"context_dim is {self.unet.context_dim}, but the embeddings of {self.text.encoder!r} have "
            f"{self.text.width} numbers a token",
        )

    @property
    def conditional(self) -> bool:
        """Whether the denoiser is given a caption."""
        return self.unet.context_dim > 0

    @property
    def articulated(self) -> bool:
        """Whether poses are learned along with the autodecoder, from videos."""
        return self.autodecoder.lbs_channels > 0

    def replace(self, **changes: Any) -> Experiment:
        """A copy with fields replaced; nested ones as `unet=dict(channels=64)`."""
        fields = {
            k: dataclasses.replace(getattr(self, k), **v) if isinstance(v, dict) else v for k, v in changes.items()
        }
        return dataclasses.replace(self, **fields)
