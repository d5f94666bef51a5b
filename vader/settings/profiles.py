"""The sizes at which experiments are run: Table 5's columns (`PAPER`), and smaller profiles of the same structure.

`experiment(profile, data)` is the lookup that notebooks and commands use; a number can always be traced to the
settings that made it.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from .checks import ConfigError, nearest
from .diffusion import PACKAGED_ENCODER, TextConfig
from .experiment import DataConfig, Experiment
from .table5 import PAPER
from .videos import VIDEO_DATA, video_settings

# The small profiles are Table 5's Chairs column with these changes (`experiment`); all else is the paper's.
# Settings by which they differ from the paper's text; reports/departures.md says why.
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
    "household_text": "household",
}
TEXT_CONFIG = TextConfig(PACKAGED_ENCODER)
TEXT_UNET = dict(cross_attention_resolutions=(8, 4), context_dim=TEXT_CONFIG.width)
DATA_NAMES = ("procedural_chairs", "procedural_tables", "furniture_chairs", "furniture_tables", "household")
# The paper's sets of objects, made of files that somebody has downloaded: counts are upper limits, and what is found
# decides the rest (vader/data/reading). Objaverse is fitted without the foreground loss, as in Table 5.
DOWNLOADED = ("abo_tables", "photoshape_chairs", "mvimgnet", "objaverse")
# All models that pass the filters of household (data_cards/household.md).
HOUSEHOLD = dict(num_objects=698, heldout_objects=64, train_views=32, heldout_views=4)
# A hash embedding, as the paper has for its large sets (B.3): here with 3 rows for 4 objects.
HOUSEHOLD_LAPTOP = dict(
    data=HOUSEHOLD,
    autodecoder=dict(embedding_dim=128, hash_rows=512, hash_codebooks=64),
    # Half of the pictures under the perceptual loss: each object is seen more often in the same time.
    reconstruction=dict(images_seen=480_000, learning_rate=1e-3, perceptual_images=2),
    diffusion=dict(latents_seen=128_000),
    evaluation=dict(num_samples=64, views=5, real_views=5),
)
# Whether a caption is heard is a yes or no of each sample. With three sampling seeds, chance in sampling widens the
# interval of a gain over 64 captions by up to 43 %. With twelve it is 12 % at most.
TEXT_SEEDS = tuple(range(12))
# Where a data set departs from its profile: real furniture is harder to fit than parametric shapes, and there are
# 39 tables beside the held-out ones (data_cards/furniture_tables.md). They see more images and latents than
# the profile's other sets. `vader study sharpness` compares what else could make them sharper. reports/budget-*.json
# has the costs beside those of the baselines.
# Furniture of the gpu profile has the laptop's objects and cameras, at 128^2: so many views can travel to a machine
# without a mesh renderer (`.ci/device --pack`), and variants of the same models would be eight times as many. KID's
# subsets need 1,000 real pictures, so 40 of each object are taken.
FURNITURE_GPU = dict(heldout_objects=8, variants=1)
DEPARTURES = {
    ("laptop", "furniture_chairs"): dict(
        reconstruction=dict(images_seen=360_000), diffusion=dict(latents_seen=144_000)
    ),
    ("laptop", "furniture_tables"): dict(
        data=dict(num_objects=39), reconstruction=dict(images_seen=240_000), diffusion=dict(latents_seen=128_000)
    ),
    ("gpu", "furniture_chairs"): dict(data=FURNITURE_GPU | dict(num_objects=64), evaluation=dict(real_views=40)),
    ("gpu", "furniture_tables"): dict(data=FURNITURE_GPU | dict(num_objects=39), evaluation=dict(real_views=40)),
    ("laptop", "procedural_chairs_text"): dict(
        data=dict(num_objects=512, heldout_objects=64, train_views=12, heldout_views=2),
        reconstruction=dict(images_seen=96_000),
        unet=dict(cross_attention_resolutions=(4,)),  # at 8^3, too, a step takes a third longer
        diffusion=dict(latents_seen=160_000),
        evaluation=dict(num_samples=64),
    ),
    **{
        ("smoke", name): dict(autodecoder=dict(hash_rows=8, hash_codebooks=8))
        for name in ("household", "household_text")
    },
    ("laptop", "household"): HOUSEHOLD_LAPTOP,
    # At 4^3 only, as above. Both share stage 1; a step of this stage 2 takes a third longer, so it takes fewer.
    ("laptop", "household_text"): HOUSEHOLD_LAPTOP
    | dict(
        unet=dict(cross_attention_resolutions=(4,)),
        diffusion=dict(latents_seen=96_000),
        evaluation=HOUSEHOLD_LAPTOP["evaluation"] | dict(sampling_seeds=TEXT_SEEDS),
    ),
    **{
        ("gpu", name): dict(data=HOUSEHOLD | dict(variants=1), autodecoder=dict(hash_rows=512, hash_codebooks=256))
        for name in ("household", "household_text")
    },
    **{
        (profile, "objaverse"): dict(data=dict(variants=1), reconstruction=dict(foreground_weight=0.0))
        for profile in PROFILES
    },
    **{("gpu", name): dict(data=dict(variants=1)) for name in DOWNLOADED if name != "objaverse"},
    ("gpu", "procedural_chairs_text"): dict(data=dict(num_objects=4096, train_views=24)),
}


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


def experiment(profile: str, data: str) -> Experiment:
    """The experiment of a profile and a data set. Raises ConfigError naming the nearest known name."""
    profiles = [*PROFILES, "paper"]
    if profile not in profiles:
        raise ConfigError(f"profile {profile!r} is unknown{nearest(profile, profiles)}; known: {', '.join(profiles)}")
    videos = [name for known, name in VIDEO_DATA if known == profile]
    names = list(PAPER) if profile == "paper" else [*DATA_NAMES, *TEXT, *DOWNLOADED, *videos]
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
