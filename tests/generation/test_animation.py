"""Use of an articulated model: one call each, with the numbers behind them, and clear errors."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageSequence

from tests.tiny import tiny_articulated, toys
from vader.articulation.poses import PoseError, neutral
from vader.articulation.skinning import posed_views
from vader.autodecoder.inversion import InversionError
from vader.evaluation.poses import (
    common_root_errors,
    fitted_psnr,
    part_labels,
    render_in_random_poses,
    score_animation,
    score_video,
    score_videos,
)
from vader.generation.animation import Clip, load_animator, write_video
from vader.settings.autodecoder import InversionConfig

pytest.importorskip("pytorch3d")


@pytest.fixture(scope="module")
def toy():
    return toys(tiny_articulated())


@pytest.fixture(scope="module")
def animator(toy, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(tmp_path_factory.mktemp("runs")))
        # solids, hardly trained any further: so few steps at full rates lose sight of subjects
        settled = dict(
            rigid_images=800,
            neutral_images=796,
            start_weight=20.0,
            depth_weight=0.0,
            neutral_share=1.0,
            region_images=32,
            parts_rate=0.1,
            parts_hourglass_rate=0.1,
            parts_heads_rate=0.1,
        )
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in another order lead so short a run elsewhere
        animator = load_animator(tiny_articulated(articulation=settled), toy[0], "cpu")
        torch.set_num_threads(threads)
        assert min(animator.reconstruct(f"toy-{k}").occupancy.mean() for k in range(4)) > 0.1
        yield animator


@pytest.fixture(scope="module")
def clip(animator):
    return animator.reconstruct("toy-1")


def test_reconstruction_is_the_embedding_in_the_poses_of_its_own_frames(animator, toy, clip):
    video = toy[0][1]
    assert len(clip) == len(video) and clip.colour.shape == video.frames.shape
    volume = animator.volume("toy-1")
    poses = animator.poses(video)
    torch.testing.assert_close(clip.poses, poses)
    one = posed_views(volume[None], poses[None, 3:4], animator.turntable(1), animator.config.reconstruction.num_samples)
    torch.testing.assert_close(clip.colour[3], one["colour"][0, 0], atol=1e-5, rtol=0)
    assert torch.equal(animator.volume(1), volume)


def test_animation_takes_the_driving_poses_and_the_sources_volume(animator, toy, clip):
    driven = animator.animate(animator.volume(2), toy[0][1])
    assert torch.equal(driven.poses, clip.poses)
    assert not torch.equal(driven.colour, clip.colour)
    again = animator.animate(animator.volume(2), driven.poses)
    torch.testing.assert_close(again.colour, driven.colour)
    frames = animator.animate(animator.volume(2), toy[0][1].frames[:2])
    torch.testing.assert_close(frames.colour, driven.colour[:2], atol=1e-4, rtol=0)


def test_new_cameras_turn_around_the_subject(animator):
    volume, poses = animator.volume(0), neutral(4, 2)
    cameras = animator.turntable(4, degrees=90)
    turned = animator.animate(volume, poses, cameras)
    still = animator.animate(volume, poses)
    torch.testing.assert_close(turned.colour[0], still.colour[0], atol=1e-4, rtol=0)
    assert (turned.occupancy[1] - still.occupancy[1]).abs().max() > 0.02
    centres = cameras.centres()
    assert centres[1, 0] > 0 and centres[3, 0] < 0
    assert animator.animate(volume, poses[:1], resolution=24).colour.shape == (1, 24, 24, 3)


def test_a_generated_subject_moves_like_any_other(animator, toy, monkeypatch, tmp_path):
    monkeypatch.setenv("VADER_RUNS", str(animator.run.folder.parent))
    volume = animator.generate(1, seed=5)
    assert volume.shape == animator.volume(0).shape and torch.isfinite(volume).all()
    assert torch.equal(volume, animator.generate(1, seed=5))
    assert not torch.equal(volume, animator.generate(2, seed=5))
    assert len(animator.animate(volume, toy[0][0])) == 8


def test_fitting_a_new_subject_lowers_its_loss_and_changes_no_model(animator, toy):
    video = next(iter(toy[0].split("test")))
    before = {name: value.clone() for name, value in animator.autodecoder.state_dict().items()}
    settings = InversionConfig(steps=60, learning_rate=0.03, noise=0.0, views_per_step=6, tuning_steps=8)
    found = animator.fit(video, settings)
    assert sum(found.losses[-5:]) < 0.95 * sum(found.losses[:5])
    assert len(found.tuning_losses) == 8
    assert all(torch.equal(value, before[name]) for name, value in animator.autodecoder.state_dict().items())
    assert len(animator.animate(found.volume(), video.frames[:2])) == 2
    again = animator.fit(video, settings)
    assert torch.equal(found.embedding, again.embedding)


def test_fitting_sees_training_frames_only(animator, toy):
    video = next(iter(toy[0].split("test")))
    settings = InversionConfig(steps=3, learning_rate=0.1, views_per_step=2)
    blank = video.frames.clone()
    blank[video.train_frames :] = 0
    other = dataclasses.replace(video, frames=blank)
    assert torch.equal(animator.fit(video, settings).embedding, animator.fit(other, settings).embedding)


def test_wrong_requests_are_refused(animator, toy):
    volume = animator.volume(0)
    with pytest.raises(PoseError, match=r"driving poses are \(3, 5, 3, 4\) .* of the same number of parts"):
        animator.animate(volume, neutral(3, 5))
    with pytest.raises(PoseError, match="at least one frame"):
        animator.animate(volume, toy[0][0].frames[:0])
    with pytest.raises(PoseError, match="cameras are 2, expected 1 or one for each of the 8 frames"):
        animator.animate(volume, toy[0][0], animator.turntable(2))
    with pytest.raises(PoseError, match="'toy-9' is no training video .did you mean"):
        animator.volume("toy-9")
    with pytest.raises(PoseError, match="4 is no training video, expected 0 to 3"):
        animator.reconstruct(4)
    wide = dataclasses.replace(toy[0][0], frames=toy[0][0].frames[:, :8], masks=toy[0][0].masks[:, :8])
    with pytest.raises(InversionError, match="'toy-0': frames are 16x8 pixels"):
        animator.fit(wide)
    with pytest.raises(PoseError, match="lbs_channels is 0"):
        load_animator(tiny_articulated(autodecoder=dict(lbs_channels=0)), toy[0])


def test_pictures_and_files(clip, tmp_path):
    strip = clip.pictures(("colour", "depth", "normals", "parts", "occupancy"))
    assert strip.shape == (8, 16, 80, 3) and strip.dtype == torch.uint8
    torch.testing.assert_close(strip[:, :, :16].float() / 255, clip.colour.clamp(0, 1), atol=0.003, rtol=0)
    assert clip.save(tmp_path / "clip.gif").stat().st_size > 0
    shades = (
        torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 16, 16, 3) * 30
    )  # equal frames are merged
    file = write_video(tmp_path / "shades.gif", shades, fps=10)
    with Image.open(file) as image:
        frames = [frame.convert("RGB").size for frame in ImageSequence.Iterator(image)]
        assert image.info["duration"] == 100
    assert frames == [(16, 16)] * 8
    with pytest.raises(PoseError, match="channel 'color' is unknown .did you mean 'colour'"):
        clip.pictures(("color",))
    with pytest.raises(PoseError, match="suffix is '.avi'"):
        clip.save(tmp_path / "clip.avi")
    with pytest.raises(PoseError, match="fps is 0"):
        write_video(tmp_path / "clip.gif", strip, 0)


def test_mp4_is_read_back(tmp_path):
    av = pytest.importorskip("av")
    shades = torch.linspace(20, 230, 6).round().to(torch.uint8)
    pictures = shades[:, None, None, None].expand(6, 33, 48, 3).contiguous()
    with av.open(str(write_video(tmp_path / "clip.mp4", pictures, 12.5))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 12.5
    assert len(frames) == 6 and frames[0].shape == (32, 48, 3)
    for frame, shade in zip(frames, shades.tolist(), strict=True):
        assert abs(frame.mean() - shade) < 4


# ---------------------------------------------------------------------------------------------------- evaluation


def test_a_perfect_clip_scores_perfectly_and_a_shifted_one_does_not(toy):
    data, truths = toy
    video = data[1]
    truth = truths["toy-1"]
    parts = torch.nn.functional.one_hot(truth.parts.long().clamp(max=1), 2).flip(-1).float()  # other names
    masks = video.masks.float() / 255
    clip = Clip(video.frames.float() / 255, masks, masks, masks[..., None], parts, neutral(8, 2))
    scores = score_animation(clip, video)
    assert scores.iou == 1 and scores.psnr_foreground == float("inf")
    learned, true = part_labels(clip, truth)
    assert len(learned) == int(((truth.parts != 255) & (masks >= 0.5)).sum())
    assert torch.equal(1 - learned, true)
    moved = dataclasses.replace(clip, colour=clip.colour.roll(3, 2), occupancy=masks.roll(3, 2))
    worse = score_animation(moved, video)
    assert worse.iou < 0.8 and worse.psnr_foreground < 15
    with pytest.raises(PoseError, match="the animation is"):
        score_animation(clip, data[0].__class__("short", video.frames[:4], video.masks[:4], 2))


def test_scores_of_a_trained_video(animator, toy):
    data, truths = toy
    [scores] = score_videos(animator, truths.get, ["toy-2"])
    again = score_video(animator, data[2], truths["toy-2"])
    assert (scores.key, scores.iou, scores.psnr) == (again.key, again.iou, again.psnr) and scores.key == "toy-2"
    assert 0 <= scores.iou <= 1 and -1 <= scores.ari <= 1 and scores.psnr > 0
    assert len(scores.part_rotation_deg) == len(scores.part_translation) == 2
    with pytest.raises(PoseError, match="'toy-2' has no held-out frames"):
        score_video(animator, dataclasses.replace(data[2], train_frames=8), truths["toy-2"])


def test_fitted_poses_show_held_out_frames_better(animator, toy):
    data, _ = toy
    read = score_video(animator, data[1], toy[1]["toy-1"]).psnr
    assert fitted_psnr(animator, data[1], steps=0) == pytest.approx(read, abs=1e-3)
    assert fitted_psnr(animator, data[1], steps=15) > read + 0.1
    held = data[1].frames[data[1].train_frames :]
    alone = dataclasses.replace(data[1], frames=torch.cat([data[1].frames[: data[1].train_frames], held[:1]]))
    assert fitted_psnr(animator, data[1], 4, every=len(held)) == pytest.approx(
        fitted_psnr(animator, alone, 4), abs=1e-3
    )
    with pytest.raises(PoseError, match="'toy-2' has no held-out frames"):
        fitted_psnr(animator, dataclasses.replace(data[2], train_frames=8), steps=1)


def test_poses_that_are_the_truth_in_another_frame_have_no_error(animator, toy, monkeypatch):
    """The whole chain of conventions: true motion, a canonical frame of its own, and score_video finds no error."""
    from vader.articulation.poses import compose, fixed_camera, invert
    from vader.evaluation import poses as evaluation

    data, truths = toy
    truth = truths["toy-1"]
    camera = fixed_camera(animator.config.articulation, 2).world_to_camera[0]
    frame = torch.tensor([[0.0, -1, 0, 0.2], [1, 0, 0, -0.1], [0, 0, 1, 0.3]])
    world = compose(compose(invert(camera), truth.poses[:, :, :3]), frame)
    video = data[1]
    masks = video.masks.float() / 255
    parts = torch.nn.functional.one_hot(truth.parts.long().clamp(max=1), 2).float()
    normals = truth.normals / 127.5 - 1
    clip = Clip(video.frames.float() / 255, masks, masks, normals, parts, world)
    monkeypatch.setattr(evaluation.Animator, "reconstruct", lambda self, key: clip)
    assert common_root_errors(animator, truths.get, ["toy-1"]).max() < 1e-3
    unseen = dataclasses.replace(clip, occupancy=0 * masks)
    scores = score_video(animator, video, truth)
    assert scores.iou == 1 and scores.ari == 1 and scores.normals_deg < 1e-3
    assert max(scores.part_rotation_deg) < 1e-3 and max(scores.part_translation) < 1e-4
    assert scores.part_with_root_rotation_deg[0] < 1e-3 and scores.part_with_root_rotation_deg[1] > 5, "the arm swings"
    monkeypatch.setattr(evaluation.Animator, "reconstruct", lambda self, key: unseen)
    scores = score_video(animator, video, truth)
    assert scores.iou == scores.ari == 0 and math.isnan(scores.root_rotation_deg)


def test_samples_are_seen_in_poses_of_training_frames(animator, toy):
    asked = []

    def system(indices, seed):
        asked.append((list(indices), seed))
        return animator.volume(indices[0])[None]

    pictures = render_in_random_poses(animator, system, 2, 3, seed=4)
    assert pictures.shape == (2, 3, 16, 16, 3) and asked == [([0], 4), ([1], 4)]
    known = torch.cat([animator.animate(animator.volume(0), v.frames[:6]).colour for v in toy[0].split("train")])
    nearest = (pictures[0][:, None] - known).abs().amax((2, 3, 4)).amin(1)
    assert (nearest < 1e-4).all()
    assert torch.equal(pictures, render_in_random_poses(animator, system, 2, 3, seed=4))


def test_held_out_frames_drive_no_sample(toy):
    data = toy[0].split("train")
    marked = [dataclasses.replace(v, frames=v.frames.clone().fill_(9)) for v in data]
    for video in marked:
        video.frames[video.train_frames :] = 200
    there = SimpleNamespace(
        data=dataclasses.replace(data, sequences=tuple(marked)),
        animate=lambda volume, frames: SimpleNamespace(colour=frames),
    )
    drawn = render_in_random_poses(there, lambda indices, seed: [None], 4, 20, seed=0)
    assert (drawn == 9).all()


def test_frames_without_a_foreground_pixel_are_left_out_and_counted(toy):
    """Coverage of less than a half everywhere, as of a subject that has all but left the picture."""
    data, truths = toy
    video, truth = data[1], truths["toy-1"]
    colour, masks = video.frames.float() / 255, video.masks.float() / 255
    parts = torch.nn.functional.one_hot(truth.parts.long().clamp(max=1), 2).float()
    clip = Clip(colour, masks, masks, truth.normals / 127.5 - 1, parts, truth.poses[:, :, :3])
    there = SimpleNamespace(config=tiny_articulated(), reconstruct=lambda key: clip)
    whole = score_video(there, video, truth)
    faint = dataclasses.replace(video, masks=video.masks.clone())
    faint.masks[-1] = faint.masks[-1] // 3
    clip = dataclasses.replace(clip, occupancy=faint.masks.float() / 255)
    with pytest.warns(UserWarning, match="1 of 2 scored frames of video 'toy-1' have no foreground pixel"):
        scores = score_video(there, faint, truth)
    assert scores.iou == whole.iou == 1 and scores.psnr == whole.psnr and scores.psnr_foreground == math.inf
    with pytest.warns(UserWarning, match="1 of 8 scored frames"):
        assert score_animation(clip, faint).iou == 1
    faint.masks[:] = faint.masks // 3
    clip = dataclasses.replace(clip, occupancy=0 * masks)
    with pytest.warns(UserWarning, match="8 of 8"):
        found = score_animation(clip, faint)
    assert math.isnan(found.iou) and math.isnan(found.psnr_foreground)


def test_a_puppet_in_anothers_motion_is_the_truth_of_an_animation():
    from vader.data.sets.puppets import render_motion, render_object

    config = tiny_articulated(data=dict(resolution=12, supersampling=1, train_views=3, heldout_views=1)).data
    own, _ = render_object((config, 1))
    driving, truth = render_object((config, 2))
    moved, moved_truth = render_motion(config, 1, 2)
    assert moved.key == "puppet-000001-as-puppet-000002" and moved.caption == own.caption != driving.caption
    torso = [t.poses[:, t.names.index("torso"), :3, :3] for t in (truth, moved_truth)]
    torch.testing.assert_close(*torso)
    assert not torch.equal(moved.frames, driving.frames) and not torch.equal(moved.frames, own.frames)
    again, _ = render_motion(config, 1, 1)
    assert torch.equal(again.frames, own.frames) and again.key == own.key
