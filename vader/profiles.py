"""The sizes at which experiments are run: Table 5's columns (`PAPER`), and smaller profiles of the same structure.

`experiment(profile, data)` is the lookup that notebooks and commands use; a number can always be traced to the
settings that made it.
"""

from __future__ import annotations

from typing import Any

from .config import (
    AutodecoderConfig,
    ConfigError,
    DataConfig,
    DiffusionTrainingConfig,
    EvaluationConfig,
    Experiment,
    ReconstructionConfig,
    SamplerConfig,
    UNetConfig,
    nearest,
)

# Settings by which the small profiles differ from the paper's text; README's ledger says why.
# A density that starts as thin fog and reaches an opaque voxel with weights of order one; colours within [0, 1].
SMALL_DECODER = dict(density_scale=8.0, density_bias=0.05, colour_activation="sigmoid")

SMOKE = dict(
    data=dict(num_objects=8, heldout_objects=2, train_views=12, heldout_views=4, resolution=32, supersampling=2),
    autodecoder=dict(
        embedding_dim=16, max_channels=32, resolution=16, depth=1, attention_resolutions=(8,), **SMALL_DECODER
    ),
    reconstruction=dict(
        images_seen=1_600,
        objects_per_step=4,
        num_samples=24,
        learning_rate=2e-3,
        embedding_learning_rate=1e-2,
        perceptual_network="none",
        perceptual_images=1,
        pixel_weight=10.0,
        foreground_weight=1.0,
        density_noise=0.05,
        density_noise_images=800,
    ),
    unet=dict(channels=16, depth=1, channel_mult=(1, 1), attention_resolutions=(4,), channels_per_head=16, dropout=0.0),
    diffusion=dict(latents_seen=1_600, batch_size=16, learning_rate=2e-3, warmup_latents=160, ema_half_life=160),
    sampler=dict(num_steps=8),
    evaluation=dict(
        num_samples=8,
        views=4,
        real_views=4,
        sampling_seeds=(0, 1),
        features="efficientnet-lite0",
        kid_subset_size=16,
        kid_subsets=20,
    ),
)

LAPTOP = dict(
    data=dict(),
    autodecoder=dict(
        embedding_dim=64, max_channels=128, resolution=32, depth=1, attention_resolutions=(8,), **SMALL_DECODER
    ),
    reconstruction=dict(
        images_seen=20_000,
        num_samples=48,
        embedding_learning_rate=1e-2,
        perceptual_network="vgg16",
        perceptual_weight=0.05,
        perceptual_images=4,
        pixel_weight=10.0,
        foreground_weight=1.0,
        density_noise=0.05,
        density_noise_images=16_000,
        precision="bfloat16",
    ),
    # Steps count for more than width: at equal time 64 channels at 8^3 leave a larger error at every noise level.
    unet=dict(channels=32, depth=1, channel_mult=(1, 2), attention_resolutions=(4,), channels_per_head=32, dropout=0.0),
    # A latent of 32,768 numbers is still told apart at noise levels that EDM's (-1.2, 1.2) hardly ever draws.
    diffusion=dict(
        latents_seen=48_000,
        batch_size=8,
        learning_rate=1.5e-3,
        warmup_latents=800,
        ema_half_life=1_000,
        p_mean=0.2,
        p_std=1.3,
        precision="bfloat16",
    ),
    # Below a noise level of 0.5 a network this small hardly beats a linear filter, so sampling ends with its estimate
    # there; fresh noise on the way (the most that EDM allows) lets it correct its errors.
    sampler=dict(num_steps=36, sigma_min=0.5, s_churn=15.0),
    evaluation=dict(num_samples=100, features="efficientnet-lite0", kid_subset_size=100),
)

GPU = dict(
    data=dict(num_objects=512, heldout_objects=64, variants=8, resolution=128),
    autodecoder=dict(embedding_dim=256, max_channels=512, depth=2, attention_resolutions=(8, 16), **SMALL_DECODER),
    reconstruction=dict(
        images_seen=1_000_000,
        objects_per_step=16,
        embedding_learning_rate=1e-2,
        perceptual_network="vgg16",
        perceptual_weight=0.1,
        perceptual_images=64,
        pixel_weight=10.0,
        foreground_weight=1.0,
        density_noise=0.05,
        density_noise_images=200_000,
        precision="bfloat16",
    ),
    unet=dict(channel_mult=(1, 2), dropout=0.0),
    diffusion=dict(
        latents_seen=2_000_000,
        batch_size=128,
        learning_rate=4e-4,
        warmup_latents=50_000,
        ema_half_life=50_000,
        precision="bfloat16",
    ),
    sampler=dict(),
    evaluation=dict(features="efficientnet-lite0"),
)

PROFILES = {"smoke": SMOKE, "laptop": LAPTOP, "gpu": GPU}
DATA_NAMES = ("procedural_chairs", "procedural_tables", "furniture_chairs", "furniture_tables")
# Where a data set departs from its profile: real furniture is harder to fit than parametric shapes, and there are
# 39 tables beside the held-out ones (data_cards/furniture_tables.md).
DEPARTURES = {
    ("laptop", "furniture_chairs"): dict(
        reconstruction=dict(images_seen=132_000), diffusion=dict(latents_seen=128_000)
    ),
    ("laptop", "furniture_tables"): dict(
        data=dict(num_objects=39), reconstruction=dict(images_seen=48_000), diffusion=dict(latents_seen=128_000)
    ),
    ("gpu", "furniture_tables"): dict(data=dict(num_objects=312)),
}


def _paper(name: str, depth: int, resolution: int, foreground: float, unet: dict[str, Any], lbs: int = 0) -> Experiment:
    """A column of Table 5: what the columns share is the dataclasses' defaults."""
    return Experiment(
        "paper",
        DataConfig(name, resolution=128),
        AutodecoderConfig(depth=depth, resolution=resolution, lbs_channels=lbs),
        ReconstructionConfig(foreground_weight=foreground),
        UNetConfig(**unet),
    )


_LARGE = dict(channels=192, depth=3)
PAPER = {
    "abo_tables": _paper("abo_tables", depth=2, resolution=128, foreground=10, unet={}),
    "photoshape_chairs": _paper("photoshape_chairs", depth=4, resolution=64, foreground=10, unet={}),
    "celebv_text": _paper("celebv_text", depth=2, resolution=64, foreground=10, unet=_LARGE, lbs=10),
    "mvimgnet": _paper("mvimgnet", depth=4, resolution=64, foreground=10, unet=_LARGE),
    "objaverse": _paper("objaverse", depth=4, resolution=64, foreground=0, unet=_LARGE),
}


def experiment(profile: str, data: str) -> Experiment:
    """The experiment of a profile and a data set. Raises ConfigError naming the nearest known name."""
    profiles = [*PROFILES, "paper"]
    if profile not in profiles:
        raise ConfigError(f"profile {profile!r} is unknown{nearest(profile, profiles)}; known: {', '.join(profiles)}")
    names = list(PAPER) if profile == "paper" else list(DATA_NAMES)
    if data not in names:
        raise ConfigError(
            f"data set {data!r} is unknown in profile {profile!r}{nearest(data, names)}; known: {', '.join(names)}"
        )
    if profile == "paper":
        return PAPER[data]
    departures = DEPARTURES.get((profile, data), {})
    settings = {part: {**values, **departures.get(part, {})} for part, values in PROFILES[profile].items()}
    return Experiment(
        profile,
        DataConfig(data, **settings["data"]),
        AutodecoderConfig(**settings["autodecoder"]),
        ReconstructionConfig(**settings["reconstruction"]),
        UNetConfig(**settings["unet"]),
        DiffusionTrainingConfig(**settings["diffusion"]),
        SamplerConfig(**settings["sampler"]),
        EvaluationConfig(**settings["evaluation"]),
        weights_precision="float16",
    )
