"""Figure 2's numbers: what is paired with what, what is trivial, what is not seen."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from tests.tiny import tiny_articulated, toys
from vader.articulation.poses import compose, fixed_camera, invert
from vader.data.sets import puppets
from vader.evaluation.poses import VideoScores
from vader.generation.animation import Animator, load_animator
from vader.generation.volumes import load_models
from vader.report.claims import EQUAL_PAIRS
from vader.studies import steps
from vader.studies.videos import animation
from vader.studies.videos.animation import (
    Measured,
    gain,
    picture_rows,
    real_features,
    reconstruction,
    root_rotations,
    sample_features,
    spread_frames,
    spurious_density,
    training_subjects,
    transfer,
    true_transfers,
)

pytest.importorskip("pytorch3d")
NAN = math.nan


@pytest.fixture(scope="module")
def toy():
    return toys(tiny_articulated())


@pytest.fixture(scope="module")
def animator(toy, tmp_path_factory) -> Animator:
    """Barely trained; its volumes are what `toys` are made of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(tmp_path_factory.mktemp("runs")))
        quick = tiny_articulated(
            reconstruction=dict(images_seen=8), articulation=dict(rigid_images=8, neutral_images=8, region_images=4)
        )
        yield load_animator(quick, toy[0], "cpu")


def test_table_3_compares_videos_in_five_poses_of_training_frames(animator, toy):
    """Frames are the real side, and each sample is seen in poses that were read from training frames (Sec. 4.2)."""
    config = steps.protocol(animator.config).replace(evaluation=dict(num_samples=4, kid_subset_size=4))
    models = load_models(config, toy[0], "cpu")
    chosen = [("ours", "16 steps"), ("dls", "standard")]
    real, features = steps.compared([models], chosen)
    training = toy[0].split("train")
    assert real.objects.bincount().tolist() == [min(5, video.train_frames) for video in training]
    assert list(features) == [*chosen, steps.REPEATED] and all(len(trained) == 1 for trained in features.values())
    assert all(found.objects.bincount().tolist() == [5] * 4 for [sets] in features.values() for found in sets)
    again = sample_features(animator, training_subjects(animator), "reconstruction", seeds=(0,))
    assert torch.equal(features[steps.REPEATED][0][0].values[:20], again[0].values[:20])


def scores_of(key: str, **changes) -> VideoScores:
    values = dict(iou=0.9, psnr=20.0, psnr_foreground=15.0, normals_deg=30.0, ari=0.6, root_rotation_deg=5.0)
    return VideoScores(
        key,
        **values | changes,
        root_translation=0.0,
        part_rotation_deg=(),
        part_translation=(),
        part_with_root_rotation_deg=(),
    )


def test_a_row_has_the_interval_over_the_videos_that_have_a_value():
    """t of 1 degree of freedom is 12.706; the standard error of (10, 14) is 2."""
    row = Measured("reconstruction", "iou", (10.0, NAN, 14.0)).row()
    assert row["value"] == 12 and row["n"] == 2 and row["note"] == "mean over videos; 1 of 3 show no subject"
    assert row["high"] - 12 == 12 - row["low"] == pytest.approx(12.706 * 2, rel=1e-4)
    assert Measured("reconstruction", "iou", (10.0, NAN)).row() is None
    assert Measured("reconstruction", "iou", (1.0, 2.0)).row()["note"] == "mean over videos"


def test_scores_become_rows_that_differ_in_variant_or_metric():
    found = reconstruction([scores_of("a"), scores_of("b", normals_deg=NAN, iou=0.0)])
    assert len({(m.variant, m.metric) for m in found}) == len(found) == 6
    values = {(m.variant, m.metric): m.values for m in found}
    assert values["reconstruction", "iou"] == (0.9, 0.0)
    assert values["reconstruction, foreground", "psnr"] == (15.0, 15.0)
    assert values["root, a video at a time", "rotation_error_deg"] == (5.0, 5.0)
    assert math.isnan(values["reconstruction", "normal_error_deg"][1])


def test_gains_are_paired_and_leave_out_what_is_not_seen():
    verdict, evidence = gain([1.0, 21.0, NAN, 3.0], [3.0, 23.1, 0.0, NAN], -1, " degrees")
    assert verdict == "holds" and evidence.startswith("better by 2.05 degrees (95 % interval over 2 of 4 pairs")
    assert gain([1.0, 21.0], [3.0, 23.1], 1)[0] == "fails"
    same = [0.25] * EQUAL_PAIRS
    assert gain(same, same, -1) == (
        "fails",
        "better by 0 (95 % interval over 60 of 60 pairs 0 to 0), equal in each of them",
    )
    assert gain([*same, NAN], [*same, 0.5], 1)[0] == "fails" and gain(same[1:], same[1:], 1)[0] == "inconclusive"
    assert gain([*same, 0.3], [*same, 0.2], 1)[0] == "inconclusive", "one pair differs"
    assert gain([1.0, NAN], [3.0, 2.0], 1) == ("inconclusive", "measured in 1 of 2 pairs only")
    with pytest.raises(ValueError, match="longer"):
        gain([1.0], [1.0, 2.0], 1)


def test_roots_that_are_the_truth_have_no_error_and_standing_still_has(animator, toy, monkeypatch):
    """By hand: a root whose turns to both sides are equal, so that the best alignment is none."""
    _, truths = toy
    keys = ["toy-0", "toy-1", "toy-2"]
    camera = fixed_camera(animator.config.articulation, 2).world_to_camera[0]
    turns = torch.deg2rad(torch.tensor([-20.0, -20, -10, 0, 0, 10, 20, 20]))
    c, s, zero, one = turns.cos(), turns.sin(), 0 * turns, 0 * turns + 1
    world = torch.stack([c, zero, s, zero, zero, one, zero, zero, -s, zero, c, zero], 1).view(8, 3, 4)
    poses = truths["toy-0"].poses.clone()
    poses[:, 0, :3] = compose(camera, world)
    known = {key: dataclasses.replace(truths[key], poses=poses) for key in keys}
    asked = []

    def common(model, truth_of, shown):
        asked.append(shown)
        return torch.cat([torch.full((8,), 3.0), torch.full((8,), 4.0)])

    monkeypatch.setattr(animation, "common_root_errors", common)
    scores = [scores_of("toy-0"), scores_of("toy-1", root_rotation_deg=NAN), scores_of("toy-2")]
    learned, together, alone = root_rotations(animator, known.get, scores)
    assert asked == [["toy-0", "toy-2"]]
    assert learned.values[::2] == (3.0, 4.0) and math.isnan(learned.values[1])
    assert alone.values == pytest.approx((10.0,) * 3, abs=1e-3), "sizes 0 0 10 10 20 20 20 20, lower median"
    assert together.values == pytest.approx(alone.values, abs=1e-3), "the same motion three times"
    assert learned.variant in together.variant and alone.metric == "rotation_error_deg"
    unseen = [dataclasses.replace(score, root_rotation_deg=NAN) for score in scores]
    assert all(map(math.isnan, root_rotations(animator, known.get, unseen)[0].values)) and len(asked) == 1


def test_one_alignment_for_all_videos_leaves_what_an_own_one_takes_away(toy):
    """Subjects that stand still, each turned to another side: alone there is no error, together half of the angle."""
    _, truths = toy
    animator = SimpleNamespace(config=tiny_articulated())
    camera = fixed_camera(animator.config.articulation, 2).world_to_camera[0]
    known = {}
    for key, degrees in (("toy-0", -30.0), ("toy-1", 30.0)):
        angle = math.radians(degrees)
        c, s = math.cos(angle), math.sin(angle)
        poses = truths[key].poses.clone()
        poses[:, 0, :3] = compose(camera, torch.tensor([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0]]))
        known[key] = dataclasses.replace(truths[key], poses=poses)
    scores = [scores_of(key, root_rotation_deg=NAN) for key in known]
    _, together, alone = root_rotations(animator, known.get, scores)
    assert alone.values == pytest.approx((0.0, 0.0), abs=0.05) and together.values == pytest.approx(
        (30.0, 30.0), abs=0.1
    )


def test_true_renders_come_from_the_renderer_of_the_set():
    config = tiny_articulated(data=dict(resolution=12, supersampling=1, train_views=3, heldout_views=1)).data
    video, _ = animation.render_motion(config, 1, 2)
    assert torch.equal(video.frames, puppets.render_motion(config, 1, 2)[0].frames)
    assert animation.number("puppet-000012") == 12


def test_a_perfect_transfer_is_better_than_standing_still(animator, toy, monkeypatch):
    """The true render is made of the very poses that are transferred."""
    camera = fixed_camera(animator.config.articulation, 2).world_to_camera[0]
    data, truths = toy
    solid = torch.zeros(6, 25, 25, 25)
    solid[0, 4:20, 10:15, 4:20], solid[1:4] = 60.0, 0.7
    poses = {k: compose(invert(camera), truths[f"toy-{k}"].poses[:, :, :3]) for k in range(3)}
    turn = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]])
    poses = {k: compose(p, turn) for k, p in poses.items()}
    clips = {k: animator.animate(solid, p) for k, p in poses.items()}

    def render(config, subject, driving):
        clip = clips[driving]
        frames, masks = ((255 * x).round().to(torch.uint8) for x in (clip.colour, clip.occupancy))
        return dataclasses.replace(data[driving], frames=frames, masks=masks), None

    monkeypatch.setattr(animation, "render_motion", render)
    monkeypatch.setattr(Animator, "volume", lambda self, number: solid)
    monkeypatch.setattr(Animator, "poses", lambda self, video: poses[animation.number(video.key)])
    pairs = [(0, 1), (1, 2)]
    truths = true_transfers(animator.config.data, data, pairs)
    assert [torch.equal(true.masks, truths[0].masks) for true in truths] == [True, False]
    found = {(m.variant, m.metric): m.values for m in transfer(animator, pairs, truths)}
    assert min(found["animation", "iou"]) > 0.97 and min(found["animation", "psnr"]) > 40
    assert max(found["animation, neutral pose", "iou"]) < 0.7
    assert len(found) == 4 and all(len(values) == 2 for values in found.values())


def test_spurious_density_is_the_share_beside_the_largest_part():
    volume = torch.zeros(3, 6, 16, 16, 16)
    volume[0, 0, 2:6, 2:6, 2:6] = volume[1, 0, 2:6, 2:6, 2:6] = 1000.0
    volume[1, 0, 10:12, 10:12, 10:12] = 1000.0  # 8 voxels beside 64
    shares = spurious_density(lambda indices, seed: volume[list(indices)] * seed, 3, seed=1)
    assert shares[:2] == (0.0, pytest.approx(8 / 72)) and math.isnan(shares[2])
    assert all(map(math.isnan, spurious_density(lambda indices, seed: volume[list(indices)] * seed, 3, seed=0)))


def test_features_are_of_training_frames_and_of_each_sampling_seed(animator, toy, monkeypatch):
    data, _ = toy
    taken = []

    def extract(pictures, network, objects=None, **_):
        taken.append((pictures, objects))
        return f"{network} {len(pictures)}"

    monkeypatch.setattr(animation, "extract", extract)
    assert real_features(data, "some") == "some 20"
    pictures, objects = taken[0]
    assert objects.tolist() == [k for k in range(4) for _ in range(5)]
    for picture, k in zip(pictures, objects.tolist(), strict=True):
        assert any(torch.equal(picture, frame) for frame in data[k].frames[:6])
    for k in range(4):  # five of six frames, of which some may look the same
        kinds = len(torch.unique(data[k].frames[:6], dim=0))
        assert len(torch.unique(pictures[objects == k], dim=0)) >= kinds - 1, "a frame was drawn twice"

    asked = []

    def render(model, system, count, views, seed):
        asked.append((count, views, seed, system(range(2), seed)))
        return torch.full((count, views, 16, 16, 3), float(seed))

    monkeypatch.setattr(animation, "render_in_random_poses", render)
    monkeypatch.setattr(animation, "finite_features", lambda pictures, network, name: (pictures.mean().item(), name))
    found = sample_features(animator, training_subjects(animator), "same")
    assert found == [(0.0, "same, seed 0"), (1.0, "same, seed 1")]
    assert [call[:3] for call in asked] == [(8, 5, 0), (8, 5, 1)]
    assert torch.equal(asked[0][3][1], animator.volume(1))
    assert torch.equal(training_subjects(animator)([5], 0)[0], animator.volume(1)), "over and over"
    assert sample_features(animator, training_subjects(animator), "same", seeds=(1,)) == found[1:]


def test_a_block_of_the_figure(animator, toy):
    driving = toy[0][2]
    frames = spread_frames(driving, 3)
    assert frames == [0, 4, 7] and spread_frames(driving, 20) == list(range(8))
    rows = picture_rows(animator, driving, {"ours": animator.volume(0), "DLS": animator.volume(1)}, frames)
    assert list(rows) == ["driving video"] + [f"{who}, {c}" for who in ("ours", "DLS") for c in animation.CHANNELS]
    assert all(row.shape == (3, 16, 16, 3) and 0 <= row.min() and row.max() <= 1 for row in rows.values())
    torch.testing.assert_close(rows["driving video"], driving.frames[frames].float() / 255)
    expected = animator.animate(animator.volume(1), driving).colour[frames]
    torch.testing.assert_close(rows["DLS, colour"], expected, atol=0.003, rtol=0)
    assert animator.animate(animator.volume(0), driving).colour.shape[0] == 8
