"""Videos: what is written comes back, truth stays apart, and bad input is named."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vader.data.pipeline import prepare_set
from vader.data.prepared import DataError
from vader.data.sequence import load_set
from vader.data.video import (
    NO_PART,
    VIDEOS,
    Truth,
    Video,
    check_video_settings,
    load_truth,
    load_video,
    load_videos,
    part_poses,
    save_video,
    stored_normals,
    train_share,
    truth_of,
    video_camera,
)
from vader.settings.checks import ConfigError
from vader.settings.experiment import DataConfig
from vader.settings.videos import UVA_CAMERA

CONFIG = DataConfig(
    "clips", num_objects=2, heldout_objects=1, train_views=3, heldout_views=1, resolution=6, **UVA_CAMERA
)


def clip(index: int = 0, frames: int = 4) -> tuple[Video, Truth]:
    rng = np.random.default_rng(index)
    noise = torch.from_numpy(rng.integers(1, 256, (frames, 6, 6, 4), dtype=np.uint8))
    video = Video(
        key=f"clip-{index}",
        frames=noise[..., :3].clone(),
        masks=noise[..., 3].clone(),
        train_frames=train_share(CONFIG, frames),
        split="train" if index < 2 else "test",
        caption=f"clip number {index}",
        attributes={"licence": "CC0-1.0"},
    )
    turns = np.linalg.qr(rng.normal(size=(frames, 2, 3, 3)))[0]
    turns *= np.linalg.det(turns)[..., None, None]
    poses = np.concatenate([turns, rng.normal(size=(frames, 2, 3, 1))], axis=-1)
    parts = torch.from_numpy(rng.choice([0, 1, NO_PART], (frames, 6, 6)).astype(np.uint8))
    camera, normals = video_camera(CONFIG), stored_normals(torch.from_numpy(rng.uniform(-1, 1, (frames, 6, 6, 3))))
    return video, Truth(parts, part_poses(poses, camera), camera.intrinsics[0], ("head", "torso"), normals)


@pytest.fixture
def folder(tmp_path):
    video, truth = clip()
    save_video(video, tmp_path / "clip-0", truth)
    return tmp_path / "clip-0"


@pytest.fixture
def prepared(tmp_path):
    return prepare_set(CONFIG, {"kind": "clips"}, {f"clip-{i}": i for i in range(3)}, clip, root=tmp_path, kind=VIDEOS)


# ------------------------------------------------------------------------------------------------ round trips


def test_a_video_and_its_truth_come_back_bit_for_bit(folder):
    (video, truth), again, known = clip(), load_video(folder), load_truth(folder)
    for field in dataclasses.fields(Video):
        a, b = getattr(video, field.name), getattr(again, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name
    for field in dataclasses.fields(Truth):
        a, b = getattr(truth, field.name), getattr(known, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_a_loaded_video_holds_nothing_of_its_truth(folder):
    """Reading it works the same where the truth is gone, and object.json does not speak of it."""
    facts = json.loads((folder / "object.json").read_text())
    assert facts.keys() == {"key", "split", "caption", "attributes", "train_frames"}
    shutil.rmtree(folder / "truth")
    assert torch.equal(load_video(folder).frames, clip()[0].frames)
    with pytest.raises(DataError, match="clip-0/truth: object 'clip-0': nothing is known"):
        load_truth(folder)


def test_a_set_of_videos_comes_back_in_order_with_its_splits(prepared):
    again = load_videos(prepared.folder)
    assert [v.key for v in again] == ["clip-0", "clip-1", "clip-2"]
    assert [v.key for v in again.split("test")] == ["clip-2"]
    assert (again.train_views, again.heldout_views) == (3, 1) and [v.train_frames for v in again] == [3, 3, 3]
    assert again.pixel_checksum == prepared.pixel_checksum and again.compare_pixels(prepared.pixel_record()) is None
    assert torch.equal(truth_of(again, "clip-1").poses, clip(1)[1].poses)
    in_memory = dataclasses.replace(again, folder=None)
    with pytest.raises(DataError, match="in memory only"):
        truth_of(in_memory, "clip-1")


def test_videos_are_not_taken_for_multi_view_objects(prepared):
    with pytest.raises(DataError, match="holds videos, expected sequences"):
        load_set(prepared.folder)


def test_the_last_share_of_the_frames_is_held_out():
    for frames, train in ((4, 3), (8, 6), (9, 7), (2, 2), (373, 280)):
        assert train_share(CONFIG, frames) == train  # all but a quarter, rounded down
    assert train_share(dataclasses.replace(CONFIG, heldout_views=0), 9) == 9


# ------------------------------------------------------------------------------------------------ camera


def test_the_camera_is_that_of_uva():
    """K in [-1, 1] units is 11.40, the cube's far face is 1.009 wide in the picture (dossier's numbers of UVA), and
    what is up and to the right in the world is so in the picture."""
    camera = video_camera(CONFIG)
    assert (
        camera.intrinsics[0, 0, 0] / 3
        == pytest.approx(1 / math.tan(0.175 / 2), rel=1e-6)
        == pytest.approx(11.40, abs=5e-3)
    )
    corner = camera.project(torch.tensor([[1.009, 1.009, -1.0], [0, 0, 0], [0.5, 0.25, 0.0]]))[0]
    assert torch.allclose(corner[:2], torch.tensor([[6.0, 0.0], [3.0, 3.0]]), atol=2e-3)
    assert corner[2, 0] > 3 and corner[2, 1] < 3
    origins, directions = camera.rays()
    assert torch.allclose(origins[0, 0], torch.tensor([0, 0, 10.5])) and (directions[..., 2] < -0.99).all()


def test_part_poses_map_part_points_to_the_camera():
    rng = np.random.default_rng(0)
    world = np.concatenate([np.linalg.qr(rng.normal(size=(2, 3, 3, 3)))[0], rng.normal(size=(2, 3, 3, 1))], axis=-1)
    point, camera = np.array([0.3, -0.2, 0.5, 1]), video_camera(CONFIG)
    placed = torch.from_numpy(world @ point)  # (2, 3, 3) in the world
    expected = placed @ camera.world_to_camera[0, :, :3].double().T + camera.world_to_camera[0, :, 3].double()
    found = (part_poses(world, camera).double() @ torch.from_numpy(point))[..., :3]
    assert torch.allclose(found, expected, atol=1e-5) and (part_poses(world, camera)[..., 3, 3] == 1).all()


# ------------------------------------------------------------------------------------------------ bad input


def broken(change):
    """A video with one thing changed: (Video) -> dict of replaced fields."""
    video = clip()[0]
    return dataclasses.replace(video, **change(video))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: {"frames": v.frames[:1], "masks": v.masks[:1], "train_frames": 1},
            "frames are 1, expected at least 2",
        ),
        (lambda v: {"masks": v.masks[:3]}, r"masks are \(3, 6, 6\) torch.uint8, expected \(4, 6, 6\)"),
        (lambda v: {"masks": v.masks.float()}, "masks are .* torch.float32"),
        (lambda v: {"frames": v.frames[..., :2]}, r"frames are \(4, 6, 6, 2\) torch.uint8, expected \(t, h, w, 3\)"),
        (
            lambda v: {"masks": v.masks * torch.tensor([1, 1, 0, 1], dtype=torch.uint8)[:, None, None]},
            "frame 2: mask is empty",
        ),
        (lambda v: {"train_frames": 0}, "train_frames is 0, expected 1 to 4"),
        (lambda v: {"train_frames": 5}, "train_frames is 5, expected 1 to 4"),
        (lambda v: {"key": "a/b"}, "key is no file name"),
        (lambda v: {"split": "val"}, "split is 'val'"),
    ],
)
def test_an_invalid_video_is_refused_and_not_written(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        save_video(broken(change), tmp_path / "clip-0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"poses": t.poses[:3]}, r"poses are \(3, 2, 4, 4\) torch.float32, expected \(4, 2, 4, 4\)"),
        (lambda t: {"poses": t.poses * 1.01}, "poses are not all rigid"),
        (lambda t: {"poses": t.poses @ torch.diag(torch.tensor([1.0, 1, -1, 1]))}, "poses are not all rigid"),
        (lambda t: {"poses": t.poses / 0}, "NaN or infinite"),
        (lambda t: {"parts": t.parts.clamp(max=7)}, "parts have index 7, expected below 2"),
        (lambda t: {"names": ("head",)}, r"poses are \(4, 2, 4, 4\) .* expected \(4, 1, 4, 4\)"),
    ],
)
def test_truth_that_does_not_fit_its_video_is_refused(change, message):
    video, truth = clip()
    with pytest.raises(DataError, match=message):
        dataclasses.replace(truth, **change(truth)).validate(video)


def test_frames_of_varying_size_are_named(folder):
    Image.new("RGB", (7, 6), "white").save(folder / "frames" / "002.png")
    with pytest.raises(
        DataError, match=r"frames/002.png: object 'clip-0', frame 2: frame is 7x6 pixels, expected .* 6x6"
    ):
        load_video(folder)


def test_masks_of_another_length_are_named(folder):
    (folder / "masks" / "003.png").unlink()
    with pytest.raises(DataError, match="masks: object 'clip-0': 3 files, expected 4"):
        load_video(folder)


def test_missing_and_broken_files_are_named(folder):
    (folder / "frames" / "001.png").rename(folder / "frames" / "004.png")
    with pytest.raises(DataError, match="frames/001.png: object 'clip-0', frame 1: frame is missing"):
        load_video(folder)
    (folder / "frames" / "001.png").write_bytes((folder / "frames" / "004.png").read_bytes()[:60])
    (folder / "frames" / "004.png").unlink()
    with pytest.raises(DataError, match="frames/001.png: object 'clip-0', frame 1: frame cannot be decoded"):
        load_video(folder)
    shutil.rmtree(folder / "frames")
    with pytest.raises(DataError, match="frames: object 'clip-0': 0 files, expected some"):
        load_video(folder)


def test_broken_truth_is_named(folder):
    (folder / "truth" / "poses.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match="truth: object 'clip-0': poses or intrinsics cannot be read"):
        load_truth(folder)


def test_a_set_with_frames_of_another_size_or_share_is_refused(tmp_path):
    for changes, message in (
        ({"resolution": 8}, "frames are not 8x8 pixels"),
        ({"heldout_views": 3}, "train_frames is 3, expected 2 of 4"),
    ):
        config = dataclasses.replace(CONFIG, **changes)
        with pytest.raises(DataError, match=message):
            prepare_set(config, {}, {"clip-0": 0}, clip, root=tmp_path, kind=VIDEOS)


def test_settings_that_no_video_can_have_are_refused():
    for changes, message in (
        ({"name": "clip"}, "'clip' is not a clip; known: clips"),
        ({"train_views": 0}, "train_views is 0, expected at least 1"),
        ({"train_views": 1, "heldout_views": 0}, "1 frame, expected at least 2"),
        ({"heldout_objects": -1}, "heldout_objects is -1"),
        ({"camera_distance": 0.5}, "camera_distance is 0.5, expected more than 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_video_settings(dataclasses.replace(CONFIG, **changes), ("clips",), "a clip")
