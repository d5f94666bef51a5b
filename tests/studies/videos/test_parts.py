"""What parts add: equal budgets, parts as they start, and the pictures."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_articulated, toys
from vader.articulation.poses import compose, fixed_camera, invert
from vader.evaluation.poses import VideoScores
from vader.generation.animation import Animator, load_animator, palette
from vader.settings.profiles import experiment
from vader.studies.videos import parts

pytest.importorskip("pytorch3d")
CONFIG = tiny_articulated(
    reconstruction=dict(images_seen=8), articulation=dict(rigid_images=8, neutral_images=8, region_images=4)
)


@pytest.fixture(scope="module")
def toy():
    return toys(CONFIG)


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(tmp_path_factory.mktemp("runs")))
        animators = {name: load_animator(v, toy[0], "cpu") for name, v in parts.variants(CONFIG).items()}
        yield parts.start(CONFIG, toy[0], "cpu"), animators


class Known(Animator):
    """The toys' own solids, seen in the pose of their body."""

    def volume(self, video):
        axis = torch.linspace(-1, 1, 25)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        body = (x.abs() < 0.3) & (y.abs() < 0.5) & (z.abs() < 0.25)
        arm = (x > 0.25) & (x < 0.8) & (y.abs() < 0.15) & (z.abs() < 0.15)
        return torch.cat([60.0 * (body | arm)[None], torch.zeros(4, 25, 25, 25)])

    def poses(self, driving):
        camera = fixed_camera(self.config.articulation, 2).world_to_camera
        return compose(invert(camera)[0], TRUTHS[driving.key].poses[:, :1, :3])


TRUTHS: dict = {}


def test_both_variants_see_as_many_images_from_the_same_start(trained):
    start, animators = trained
    assert list(animators) == ["one part", "2 parts"]
    for animator in animators.values():
        assert animator.run.settings["start"] == start.run.digest
        assert animator.config.reconstruction == CONFIG.reconstruction
    assert [animator.pose_model.keypoints.raw.shape[0] for animator in animators.values()] == [1, 2]
    for profile in ("laptop", "gpu"):
        one, several = parts.variants(experiment(profile, "puppets")).values()
        assert one.reconstruction == several.reconstruction
        assert one.articulation.rigid_images == several.articulation.rigid_images > 0


def test_where_parts_start_is_measured_on_the_volumes_of_the_start(toy):
    """A body with an arm: two parts, of which the smaller disc is the arm's."""
    data, truths = toy
    TRUTHS.update(truths)
    known = Known(CONFIG, data, None, None, None, torch.device("cpu"))
    clips = parts.starting_clips(known, 2)
    assert len(clips) == 4 and clips[0].parts.shape[-1] == 2
    agreed = [parts.agreement(clip, truths[v.key]) for clip, v in zip(clips, data.split("train"), strict=True)]
    alone = [
        parts.agreement(clip, truths[v.key]) for clip, v in zip(parts.starting_clips(known, 1), data, strict=False)
    ]
    assert min(agreed) > 0.4 and max(map(abs, alone)) < 1e-9


def test_a_picture_has_a_row_for_each_variant_and_for_true_early_and_learned_parts(toy, trained):
    data, truths = toy
    start, animators = trained
    started = parts.starting_clips(start, 2)
    video = data.split("train")[1]
    rows = parts.picture_rows(animators, started[1], video, truths[video.key], [0, 7])
    assert list(rows) == ["video", "one part", "2 parts", "true parts", "where parts start", "learned parts"]
    assert all(
        picture.shape == (2, 16, 16, 3) and 0 <= picture.min() <= picture.max() <= 1 for picture in rows.values()
    )
    true = truths[video.key].parts[[0, 7]]
    assert torch.allclose(rows["true parts"][true == 1], palette(2)[1])
    assert (rows["true parts"][true == 255] == 0).all()


def test_limbs_are_compared_with_the_pose_of_the_root():
    def scores(own, with_root):
        rest = dict(iou=0, psnr=0, psnr_foreground=0, normals_deg=0, ari=0, root_rotation_deg=0, root_translation=0)
        return VideoScores(
            "v", **rest, part_rotation_deg=own, part_translation=(), part_with_root_rotation_deg=with_root
        )

    nan = float("nan")
    found = [
        scores((90.0, 4.0, nan, 8.0), (90.0, 10.0, nan, 20.0)),  # of the root nothing counts, nor of what none covers
        scores((1.0, nan), (1.0, nan)),
        scores((1.0, 3.0), (1.0, 2.0)),
    ]
    own, with_root = parts.limb_rotations(found)
    assert own == pytest.approx([6.0, nan, 3.0], nan_ok=True)
    assert with_root == pytest.approx([15.0, nan, 2.0], nan_ok=True)
