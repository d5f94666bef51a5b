"""The settings of stage 1: the network G, its training, and fitting it to new images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .checks import check_step, later, nearest, require

WORD_BITS = 32  # w of Eq. 10


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
        check_step(self, "objects_per_step")
        require(
            self.perceptual_network == "none" or self.perceptual_images % self.microbatches == 0,
            f"perceptual_images {self.perceptual_images} do not divide into {self.microbatches} microbatches",
        )


@dataclass(frozen=True)
class InversionConfig:
    """Fitting an embedding to images with known cameras, then if asked for the decoder; defaults are UVA's [63]."""

    steps: int = 3000  # of the embedding, the decoder frozen
    learning_rate: float = 1e-2  # a tenth from each quarter of the steps to the next
    betas: tuple[float, float] = (0.5, 0.99)
    noise: float = 0.5  # on the embedding, in standard deviations of the learned ones; gone after half of the steps
    views_per_step: int = 4  # of those given, drawn anew for each step
    prior_weight: float = 0.1  # completion: of the Gaussian fitted to the learned embeddings
    tuning_steps: int = 0  # of the decoder afterwards, the embedding frozen; UVA takes 500
    tuning_learning_rate: float = 1e-3
    tuning_pixel_weight: float = 1000.0  # of the mean L1 between pixels, while the decoder is tuned
    tuning_anchor_weight: float = 100.0  # of the mean change of density and skinning that tuning makes

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps is {self.steps}, expected at least 1")
        require(self.views_per_step >= 1, f"views_per_step is {self.views_per_step}, expected at least 1")
        require(self.tuning_steps >= 0, f"tuning_steps is {self.tuning_steps}, expected 0 or more")
        for name in ("learning_rate", "tuning_learning_rate"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name):g}, expected a positive rate")
        for name in ("noise", "prior_weight", "tuning_pixel_weight", "tuning_anchor_weight"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name):g}, expected 0 or more")


@dataclass(frozen=True)
class MaskFilterConfig:
    """C.1's filter of objects by their masks: a small autodecoder is fitted to them, and their visual hull is made.

    The size of Table 5's is not needed to tell whether masks agree. Measures and rule are those of
    `vader.autodecoder.mask_filter`.
    """

    pixels: int = 32  # masks are compared at this many pixels along their longer side
    resolution: int = 16  # of the volumes
    max_channels: int = 32
    embedding_dim: int = 64
    objects: int = 16  # fitted together, by one decoder
    steps: int = 300
    rays: int = 1024  # of each object in a step, drawn from all pixels of all its views
    learning_rate: float = 2e-2  # falls to 0 linearly
    betas: tuple[float, float] = (0.5, 0.99)
    density_weight: float = 1e-2  # of the mean density: where it grows so high that no error gets in, it falls again
    worst_share: float = 0.25  # of the views, whose mean is the loss
    spreads: float = 3.0  # k: an object is out beyond median + k spreads of the losses, between the bounds
    bounds: tuple[float, float] = (1.4, 2.0)  # an object below the first is never out, above the second always
    hull_pixels: int = 64  # masks have this many pixels along their longer side where the hull is made of them
    hull_views: int = 6  # that are compared with the hull of all views, at most
    hull_rays: int = 100  # through mask pixels of such a view, at most
    hull_slack: int = 1  # pixels by which masks may be too small
    hull_spreads: float = 3.0  # the rule's numbers for the share of mask pixels that the hull does not explain
    hull_bounds: tuple[float, float] = (0.03, 0.15)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pixels", "objects", "steps", "rays", "hull_pixels", "hull_views", "hull_rays"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("hull_slack", "density_weight"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name):g}, expected 0 or more")
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate:g}, expected a positive rate")
        require(0 < self.worst_share <= 1, f"worst_share is {self.worst_share:g}, expected in (0, 1]")
        for name in ("spreads", "hull_spreads"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name):g}, expected a positive number")
        for name in ("bounds", "hull_bounds"):
            low, high = getattr(self, name)
            require(0 <= low <= high, f"{name} are {low:g} and {high:g}, expected two losses, the lower one first")


INVERSION = {  # the embedding is fitted first, the decoder tuned afterwards
    "smoke": InversionConfig(steps=60, learning_rate=0.1, tuning_steps=20),
    "laptop": InversionConfig(steps=300, learning_rate=5e-2, tuning_steps=50),
    "gpu": InversionConfig(steps=1000, tuning_steps=200),
    "paper": InversionConfig(tuning_steps=500),
}
