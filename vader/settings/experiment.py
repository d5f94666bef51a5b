"""Every setting that affects a result, as frozen dataclasses, checked where they are made.

Defaults are Table 5's Chairs column; `profiles.py` has the other columns and the smaller sizes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from .articulation import ArticulationConfig
from .autodecoder import AutodecoderConfig, ReconstructionConfig
from .checks import check_seed, later, require
from .diffusion import DiffusionTrainingConfig, SamplerConfig, TextConfig, UNetConfig


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

    def __post_init__(self) -> None:
        check_seed(self.seed, f"data set {self.name}: seed")


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

    def __post_init__(self) -> None:
        for seed in self.sampling_seeds:
            check_seed(seed, "one of sampling_seeds")


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
        check_seed(self.seed)
        self.unet.resolutions(self.autodecoder.latent_resolution)  # that both stages fit, before the first is trained
        require(
            not self.articulation.change_weight or self.reconstruction.pixel_weight > 0,
            f"change_weight is {self.articulation.change_weight:g}, but pixel_weight, whose loss it divides, is 0",
        )
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
