"""The sizes at which experiments are run: Table 5's columns (`PAPER`), and smaller profiles of the same structure.

`experiment(profile, data)` is the lookup that notebooks and commands use; a number can always be traced to the
settings that made it.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from ..report.paper import TRAINING_OBJECTS
from .checks import ConfigError, nearest
from .experiment import (
    AutodecoderConfig,
    DataConfig,
    Experiment,
    ReconstructionConfig,
    UNetConfig,
)
from .text import PACKAGED_ENCODER, TextConfig
from .videos import UVA_CLIP, VIDEO_DATA, video_settings

# The small profiles are Table 5's Chairs column with these changes (`experiment`); all else is the paper's.
# Settings by which they differ from the paper's text; README's ledger says why.
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
    # At low noise a network this small is little better than a linear filter, so sampling ends with its estimate at
    # 0.5; fresh noise on the way (the most that EDM allows) lets it correct its errors.
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
# Text-conditional generation: a data set's captions, read by the encoder that needs no hub. A caption names a
# combination of attributes that training never saw, so there are many objects of few views each.
TEXT = {  # name of the experiment -> data set
    "procedural_chairs_text": "procedural_chairs",
}
TEXT_CONFIG = TextConfig(PACKAGED_ENCODER)
TEXT_UNET = dict(cross_attention_resolutions=(8, 4), context_dim=TEXT_CONFIG.width)
DATA_NAMES = ("procedural_chairs", "procedural_tables", "furniture_chairs", "furniture_tables")
# Where a data set departs from its profile: real furniture is harder to fit than parametric shapes, and there are
# 39 tables beside the held-out ones (data_cards/furniture_tables.md). Both stages together take about as long as each
# of the baselines (reports/budget-*.json).
DEPARTURES = {
    ("laptop", "furniture_chairs"): dict(reconstruction=dict(images_seen=132_000), diffusion=dict(latents_seen=64_000)),
    ("laptop", "furniture_tables"): dict(
        data=dict(num_objects=39), reconstruction=dict(images_seen=48_000), diffusion=dict(latents_seen=128_000)
    ),
    ("gpu", "furniture_tables"): dict(data=dict(num_objects=312)),
    ("laptop", "procedural_chairs_text"): dict(
        data=dict(num_objects=512, heldout_objects=64, train_views=12, heldout_views=2),
        reconstruction=dict(images_seen=96_000),
        unet=dict(cross_attention_resolutions=(4,)),  # at 8^3, too, a step takes a third longer
        diffusion=dict(latents_seen=160_000),
        evaluation=dict(num_samples=64),
    ),
    ("gpu", "procedural_chairs_text"): dict(data=dict(num_objects=4096, train_views=24)),
}


def _paper(
    name: str,
    views: int,
    *,
    depth: int,
    resolution: int = 64,
    foreground: float = 10.0,
    unet: dict[str, Any],
    lbs: int = 0,
    hash_rows: int = 0,
) -> Experiment:
    """A column of Table 5: what the columns share is the dataclasses' defaults.

    Objects and views are Sec. 4.1's, hash_rows are those of B.3's last paragraph.
    """
    return Experiment(
        "paper",
        DataConfig(name, num_objects=TRAINING_OBJECTS[name], train_views=views, resolution=128),
        AutodecoderConfig(depth=depth, resolution=resolution, lbs_channels=lbs, hash_rows=hash_rows),
        ReconstructionConfig(foreground_weight=foreground, clip_value=UVA_CLIP if lbs else 0.0),
        UNetConfig(**unet),
    )


_LARGE = dict(channels=192, depth=3)
PAPER = {
    "abo_tables": _paper("abo_tables", 91, depth=2, resolution=128, unet={}, hash_rows=256),
    "photoshape_chairs": _paper("photoshape_chairs", 200, depth=4, unet={}),
    "celebv_text": _paper("celebv_text", 373, depth=2, unet=_LARGE, lbs=10, hash_rows=8_192),
    "mvimgnet": _paper("mvimgnet", 30, depth=4, unet=_LARGE),
    "objaverse": _paper("objaverse", 6, depth=4, foreground=0.0, unet=_LARGE, hash_rows=32_768),
}
# Where Table 5 has "None/CA", a second model is conditioned on text by cross-attention (CA); the rest is the same.
PAPER_TEXT = {
    name: PAPER[name].replace(
        unet=dict(cross_attention_resolutions=(8, 4), context_dim=1024, transformer_depth=transformer_depth)
    )
    for name, transformer_depth in (("celebv_text", 1), ("mvimgnet", 1), ("objaverse", 2))
}


def table5(name: str) -> dict[tuple[str, str], str]:
    """A column of Table 5 from its configurations, {(part, row): cell}, written as the paper writes it.

    The last three rows are those of the text-conditioned model, and "-" where there is none.
    """
    e, text = PAPER[name], PAPER_TEXT.get(name)
    c, r, *_ = e.autodecoder.latent_shape
    autodecoder = {
        "z-length": e.autodecoder.embedding_dim,
        "MaxChannels": e.autodecoder.max_channels,
        "Depth": e.autodecoder.depth,
        "SA-Resolutions": _list(e.autodecoder.attention_resolutions),
        "ForegroundLoss λ": f"{e.reconstruction.foreground_weight:g}",
        "#Renders/batch": e.reconstruction.views_per_object,
        "VoxelGridSize": f"{e.autodecoder.resolution}³ × {1 + 3 + e.autodecoder.lbs_channels}",
        "Learning Rate": _scientific(e.reconstruction.learning_rate),
    }
    diffusion = {
        "z-shape": f"{r}³ × {c}",
        "Sampler": e.sampler.name,
        "Channels": e.unet.channels,
        "Depth": e.unet.depth,
        "Channel Multiplier": _list(e.unet.channel_mult),
        "SA-resolutions": _list(e.unet.attention_resolutions),
        "Learning Rate": _scientific(e.diffusion.learning_rate),
        "Conditioning": "None/CA" if text else "None",
        "CA-resolutions": _list(text.unet.cross_attention_resolutions) if text else "-",
        "Embedding Dimension": text.unet.context_dim if text else "-",
        "Transformers Depth": text.unet.transformer_depth if text else "-",
    }
    parts = {"3D AutoDecoder": autodecoder, "Latent 3D Diffusion Model": diffusion}
    return {(part, row): str(cell) for part, rows in parts.items() for row, cell in rows.items()}


def differences(experiment: Experiment, base: Experiment) -> dict[str, tuple[Any, Any]]:
    """{'unet.channels': (value, that of `base`)} for every setting in which an experiment differs from another."""
    found = {}
    for part in fields(experiment):
        ours, theirs = getattr(experiment, part.name), getattr(base, part.name)
        if not is_dataclass(ours):
            pairs = {part.name: (ours, theirs)}
        else:
            pairs = {f"{part.name}.{f.name}": (getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(ours)}
        found |= {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return found


def _list(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))


def _scientific(value: float) -> str:
    """0.0005 -> '5e-4'."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# Many small trainings to compare: pictures of 32 x 32 pixels, compared without a perceptual network.
_QUICK_DATA = dict(resolution=32, supersampling=2)
_QUICK_STAGE1 = dict(num_samples=24, learning_rate=2e-3, perceptual_network="none", perceptual_images=1)

# Experiments of single studies, as changes to procedural chairs of a profile.
STUDIES = {
    # Table 2: deep enough for blocks to be taken away, and more objects than a code of 64 numbers has room for.
    ("table2", "smoke"): dict(
        data=dict(num_objects=8, heldout_objects=1, train_views=6, heldout_views=2),
        autodecoder=dict(embedding_dim=64, max_channels=16, depth=2),
        reconstruction=dict(images_seen=160, num_samples=12, density_noise_images=80),
    ),
    ("table2", "laptop"): dict(
        data=dict(num_objects=128, heldout_objects=1, train_views=16, heldout_views=4, **_QUICK_DATA),
        autodecoder=dict(embedding_dim=1024, max_channels=64, resolution=16, depth=3),
        reconstruction=dict(images_seen=51_200, density_noise_images=40_960, **_QUICK_STAGE1),
    ),
    # Figures 3 and 10: the latents of one autodecoder at three resolutions, sampled without fresh noise.
    ("figure3", "smoke"): dict(
        autodecoder=dict(resolution=32),
        reconstruction=dict(images_seen=320, density_noise_images=160),
        unet=dict(channels=8, channels_per_head=8),
        diffusion=dict(latents_seen=320, warmup_latents=32),
        evaluation=dict(num_samples=4, sampling_seeds=(0,)),
    ),
    ("figure3", "laptop"): dict(
        diffusion=dict(latents_seen=7_680, warmup_latents=400),
        sampler=dict(s_churn=0.0),
        evaluation=dict(num_samples=32, sampling_seeds=(0,)),
    ),
    # More objects than table rows, few small views of each. Embeddings are cut into 256 pieces as in B.3, since Eq. 11
    # depends on their number; of one number each, where the paper has four, so that the runs' files stay small.
    ("hashing", "smoke"): dict(
        data=dict(num_objects=16, heldout_objects=1, train_views=6, heldout_views=2),
        autodecoder=dict(embedding_dim=256, max_channels=16, hash_rows=4),
        reconstruction=dict(images_seen=240, objects_per_step=8, views_per_object=1, num_samples=12),
    ),
    ("hashing", "laptop"): dict(
        data=dict(num_objects=2_000, heldout_objects=1, train_views=8, heldout_views=2, **_QUICK_DATA),
        autodecoder=dict(embedding_dim=256, max_channels=64, resolution=16, hash_rows=512),
        reconstruction=dict(
            images_seen=144_000,
            objects_per_step=32,
            views_per_object=2,
            density_noise_images=72_000,
            **_QUICK_STAGE1,
        ),
    ),
}


def study(name: str, profile: str) -> Experiment:
    """The experiment of a study in a profile. Raises ConfigError naming the nearest known name."""
    names = sorted({known for known, _ in STUDIES})
    if name not in names:
        raise ConfigError(f"study {name!r} is unknown{nearest(name, names)}; known: {', '.join(names)}")
    profiles = [known for study_name, known in STUDIES if study_name == name]
    if profile not in profiles:
        hint = nearest(profile, profiles)
        raise ConfigError(f"study {name!r} has no profile {profile!r}{hint}; it has: {', '.join(profiles)}")
    return experiment(profile, "procedural_chairs").replace(**STUDIES[name, profile])


def experiment(profile: str, data: str) -> Experiment:
    """The experiment of a profile and a data set. Raises ConfigError naming the nearest known name."""
    profiles = [*PROFILES, "paper"]
    if profile not in profiles:
        raise ConfigError(f"profile {profile!r} is unknown{nearest(profile, profiles)}; known: {', '.join(profiles)}")
    videos = [name for known, name in VIDEO_DATA if known == profile]
    names = list(PAPER) if profile == "paper" else [*DATA_NAMES, *TEXT, *videos]
    if data not in names:
        raise ConfigError(
            f"data set {data!r} is unknown in profile {profile!r}{nearest(data, names)}; known: {', '.join(names)}"
        )
    if profile == "paper":
        return PAPER[data]
    departures = DEPARTURES.get((profile, data), {})
    settings = {part: {**values, **departures.get(part, {})} for part, values in PROFILES[profile].items()}
    if data in videos:
        added = video_settings(profile, data)
        settings |= {part: settings.get(part, {}) | values for part, values in added.items()}
    settings["data"] = DataConfig(TEXT.get(data, data), **settings["data"])
    if data in TEXT:
        settings |= dict(unet=TEXT_UNET | settings["unet"], text=TEXT_CONFIG)
    return PAPER["photoshape_chairs"].replace(profile=profile, weights_precision="float16", **settings)
