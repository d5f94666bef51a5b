"""The experiments of single studies, as changes to procedural chairs of a profile, or to another set in `PATTERNS`."""

from __future__ import annotations

from .autodecoder import AutodecoderConfig
from .checks import ConfigError, nearest
from .experiment import Experiment
from .profiles import experiment

# Many small trainings to compare: pictures of 32 x 32 pixels, compared without a perceptual network.
_QUICK_DATA = dict(resolution=32, supersampling=2)
_QUICK_STAGE1 = dict(num_samples=24, learning_rate=2e-3, perceptual_network="none", perceptual_images=1)

_NO_HASH = {field: getattr(AutodecoderConfig, field) for field in ("hash_rows", "hash_codebooks", "hash_multipliers")}
# Photographed objects, by name, are learned as household is, but for a hash embedding: they are few.
PATTERNS = {"figure4": "household_text", "sharpness": "furniture_chairs", "memory": "furniture_chairs"}
CAPTURES = {  # of figure 4: objects, how many of them are held out, photographs of each, pixels of their sides
    "smoke": dict(count=3, heldout=1, views=16, side=192),
    "laptop": dict(count=24, heldout=4, views=20, side=208),
    "gpu": dict(count=240, heldout=24, views=40, side=512),
}

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
    ("figure4", "smoke"): dict(
        autodecoder=_NO_HASH, reconstruction=dict(images_seen=640), diffusion=dict(latents_seen=320)
    ),
    ("figure4", "laptop"): dict(
        autodecoder=dict(embedding_dim=64, **_NO_HASH),
        reconstruction=dict(images_seen=8_000, density_noise_images=6_400),
        diffusion=dict(latents_seen=8_000),
        evaluation=dict(num_samples=20, sampling_seeds=(0, 1)),
    ),
    ("figure4", "gpu"): dict(autodecoder=_NO_HASH),
    # A quarter of the chairs, so that each is seen four times as often in the same time. Weights are kept whole, so
    # that what rounding them costs can be measured.
    ("sharpness", "smoke"): dict(
        data=dict(num_objects=8, heldout_objects=1, train_views=6, heldout_views=2),
        reconstruction=dict(images_seen=160, density_noise_images=80),
        weights_precision="float32",
    ),
    ("sharpness", "laptop"): dict(
        data=dict(num_objects=16),
        reconstruction=dict(images_seen=6_000, density_noise_images=3_000),
        weights_precision="float32",
    ),
    # Originals and recoloured, stretched variants of 64 models. The last variant of each is for comparison: no training
    # sees it. Small arms train on the first objects.
    ("memory", "smoke"): dict(
        data=dict(num_objects=16, heldout_objects=2, train_views=6, heldout_views=2),
        reconstruction=dict(images_seen=320, density_noise_images=160),
        diffusion=dict(latents_seen=320, warmup_latents=32),
        evaluation=dict(num_samples=4, views=4, real_views=4, sampling_seeds=(0,)),
    ),
    ("memory", "laptop"): dict(
        data=dict(num_objects=576, heldout_objects=8, train_views=20, heldout_views=4, variants=9),
        autodecoder=dict(max_channels=64),
        reconstruction=dict(
            images_seen=102_400, num_samples=32, learning_rate=1e-3, perceptual_network="none", perceptual_images=1
        ),
        diffusion=dict(latents_seen=36_000),
        evaluation=dict(num_samples=64, views=4, real_views=16, sampling_seeds=(0, 1)),
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
    return experiment(profile, PATTERNS.get(name, "procedural_chairs")).replace(**STUDIES[name, profile])
