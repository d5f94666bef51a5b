"""Settings that videos of articulated subjects add to a profile (`vader.settings.profiles.experiment`)."""

from __future__ import annotations

import math
from typing import Any

# train_views and heldout_views count frames, the camera is UVA's (vader/data/video.py).
UVA_CAMERA = dict(field_of_view=math.degrees(0.175), camera_distance=10.5)
VIDEO_SETS = ("puppets", "puppets_waving", "people_heads", "people_bodies")
WITH_CLIPS = (*VIDEO_SETS, "celebv_text")  # the last is made of files that somebody has downloaded
SMOKE_VIDEOS = dict(num_objects=4, heldout_objects=1, train_views=6, heldout_views=2)
VIDEO_DATA = {  # profile -> data sets, settings of the data
    **{("smoke", name): SMOKE_VIDEOS for name in ("puppets", "people_heads", "celebv_text")},
    **{("laptop", name): dict(train_views=56, heldout_views=8, resolution=64) for name in WITH_CLIPS},
    # Limbs of few pixels have to be found in each video: 16 of them can be shown often enough in an hour.
    ("laptop", "puppets_waving"): dict(num_objects=16, train_views=56, heldout_views=8, resolution=64),
    **{
        ("gpu", name): dict(num_objects=512, heldout_objects=64, train_views=112, heldout_views=16, resolution=128)
        for name in WITH_CLIPS
    },
}
# What their models need beside a profile's settings. In small profiles fewer keypoints on smaller images, a quarter of
# the rays in each step, a start as solids in the neutral pose with the most symmetric frames first; in `laptop` heat
# maps from 3x3 convolutions, since 7x7 ones are half of a step with ten parts. UVA's weights of projection and
# equivariance are for a perceptual loss; beside pixels alone they hold the predictor where it is, and a hundredth of
# them lets it follow what the pictures say about the pose. A thin figure, opaque with weights of order one, has a mean
# density below UVA's 0.1 and would be pulled to the neutral pose for ever.
SMALL_ARTICULATION = dict(
    predictor_learning_rate=1e-3,
    ray_stride=2,
    own_start=True,
    start_weight=20.0,
    depth_weight=20.0,
    neutral_share=0.15,
    settling_weight=1.0,
    projection_weight=0.1,
    equivariance_weight=0.1,
    rigid_pull_threshold=0.01,
    pull_threshold=0.001,
    region_weight=0.1,
    parts_rate=0.5,
    parts_hourglass_rate=0.1,
    parts_heads_rate=0.6,
)
# Where decoders are narrow, their last features are too few for ten regions of space beside density and colour: the
# skinning logits get a share from coarser ones. Their scale makes borders sharp with weights of order one.
SMALL_SKINNING = dict(lbs_skips=True, lbs_scale=8.0)
# Poses of parts are found as curves over time and told to a new, wider predictor, before it has to find them itself.
TRACKED = dict(
    reconstruction=dict(images_seen=74_400),
    articulation=dict(
        region_weight=0.3, track_images=20_000, taught_images=40_000, taught_channels=16, taught_rate=3.0
    ),
)
# Arms that swing far make most frames from the front asymmetric; a predictor that sets in faster loses the subjects.
# Keypoints near a limb say better how it is turned than those that fill the cube, but not to EPnP (`refinement`).
WAVING = dict(
    reconstruction=dict(images_seen=116_800),
    articulation=dict(
        symmetry_share=0.9,
        predictor_channels=16,
        predictor_warmup_images=6_400,
        rigid_images=60_000,
        region_weight=0.3,
        parts_rate=2.0,
        parts_restart=True,
        track_images=28_000,
        track_rate=3e-3,
        track_roll=4.0,
        taught_images=64_000,
        taught_channels=16,
        taught_rate=5.0,
        taught_frames=16,
        taught_rendered=0.5,
        taught_sigma=0.1,
        taught_extent=0.6,
        refine_steps=6,
    ),
)
DEPARTURES = {("laptop", "puppets"): TRACKED, ("laptop", "puppets_waving"): WAVING}
UVA_CLIP = 0.1  # on each entry of stage 1's gradient where poses are learned (UVA)
VIDEO_MODELS = {
    "smoke": dict(
        autodecoder=dict(lbs_channels=4, **SMALL_SKINNING),
        reconstruction=dict(images_seen=320, objects_per_step=4, views_per_object=2, clip_value=UVA_CLIP),
        articulation=dict(
            keypoints_per_axis=2,
            predictor_resolution=16,
            predictor_channels=4,
            predictor_max_channels=16,
            predictor_blocks=2,
            rigid_images=320,
            neutral_images=80,
            widening_images=80,
            free_depth_images=160,
            predictor_warmup_images=16,
            region_images=80,
            **SMALL_ARTICULATION,
        ),
    ),
    "laptop": dict(
        autodecoder=dict(
            lbs_channels=10, **SMALL_SKINNING, max_channels=64, embedding_dim=32, attention_resolutions=()
        ),
        reconstruction=dict(
            images_seen=20_000,
            objects_per_step=4,
            views_per_object=4,
            num_samples=24,
            learning_rate=2e-3,
            perceptual_network="none",
            perceptual_images=1,
            density_noise_images=24_000,
            precision="float32",
            clip_value=UVA_CLIP,
        ),
        articulation=dict(
            keypoints_per_axis=3,
            predictor_resolution=32,
            predictor_channels=8,
            predictor_max_channels=128,
            predictor_blocks=4,
            predictor_kernel=3,
            rigid_images=72_000,
            free_depth_images=36_000,
            neutral_images=9_600,
            widening_images=12_800,
            predictor_warmup_images=800,
            region_images=4_800,
            **SMALL_ARTICULATION,
        ),
        diffusion=dict(latents_seen=32_000),
    ),
    "gpu": dict(
        autodecoder=dict(lbs_channels=10, **SMALL_SKINNING),
        reconstruction=dict(clip_value=UVA_CLIP),
        articulation=dict(
            rigid_images=500_000,
            neutral_images=20_000,
            widening_images=40_000,
            free_depth_images=250_000,
            predictor_warmup_images=2_000,
            region_images=25_000,
            **SMALL_ARTICULATION,
        ),
    ),
}


def video_settings(profile: str, data: str) -> dict[str, dict[str, Any]]:
    """{part of an experiment: settings} of a profile and a set of videos, in addition to the profile's own."""
    models, departures = VIDEO_MODELS[profile], DEPARTURES.get((profile, data), {})
    settings = {part: values | departures.get(part, {}) for part, values in models.items()}
    return {"articulation": {}, **settings, "data": UVA_CAMERA | VIDEO_DATA[profile, data]}
