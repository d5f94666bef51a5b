"""Cameras and masks that do not agree are seen, and the convention that poses were written in is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.data.formats.rendered import World, orbit, pictured, rigid_inverse
from tests.data.formats.test_posed_layouts import write_srn
from vader.data.formats import Options, Placing, read, scan
from vader.data.formats.shared import conventions
from vader.data.formats.shared.conventions import AXES, DIRECTIONS, advice, as_written, reduced, said, unplaced
from vader.data.formats.shared.normalise import normalised
from vader.data.hull_check import check_object, lines, overall
from vader.data.prepared import DataError
from vader.data.sequence import Sequence
from vader.rendering.cameras import Cameras

CONVENTIONS = [(direction, axes) for axes in AXES for direction in DIRECTIONS]
WORLD = World(scale=0.6, centre=(2.0, -1.0, 0.5))


@pytest.fixture(scope="module")
def seen() -> Sequence:
    """An object with true cameras, in a world of its own."""
    sequence = pictured(orbit(10, 48, 48, 70.0))
    poses = np.stack([rigid_inverse(pose) for pose in WORLD.camera_to_world(sequence.cameras)])
    cameras = Cameras(torch.from_numpy(poses[:, :3]), sequence.cameras.intrinsics.double(), 48, 48)
    return Sequence("mug", sequence.images, sequence.masks, cameras)


def written(poses: np.ndarray, convention) -> np.ndarray:
    """World-to-camera in OpenCV axes (v, 4, 4) as a program of another convention writes it."""
    poses = np.diag([*AXES[convention[1]], 1.0]) @ poses
    return np.stack([rigid_inverse(pose) for pose in poses]) if convention[0] == DIRECTIONS[0] else poses


def taken_for(stored: np.ndarray, convention, like: Cameras) -> Cameras:
    """What a reader that expects `convention` makes of it."""
    poses = np.stack([rigid_inverse(p) for p in stored]) if convention[0] == DIRECTIONS[0] else stored
    poses = np.diag([*AXES[convention[1]], 1.0]) @ poses
    return Cameras(torch.from_numpy(poses[:, :3].copy()), like.intrinsics, like.height, like.width)


PAIRS = [
    (read, files) for read in [("camera-to-world", "OpenCV"), ("world-to-camera", "OpenCV")] for files in CONVENTIONS
]
PAIRS = [pair for pair in PAIRS if pair[1][1] != "PyTorch3D"] + [(("camera-to-world", "OpenGL"), CONVENTIONS[-1])]


@pytest.mark.parametrize(("read_as", "files"), PAIRS, ids=lambda c: said(c).replace(" in ", "-").replace(" axes", ""))
def test_the_convention_that_poses_were_written_in_is_named(seen, files, read_as):
    true = np.concatenate([seen.cameras.world_to_camera.numpy(), np.tile([[[0, 0, 0, 1.0]]], (10, 1, 1))], axis=1)
    cameras = taken_for(written(true, files), read_as, seen.cameras)
    message = advice(cameras, seen.masks, read_as)
    if files == read_as:
        assert message is None
    else:
        assert (
            message.startswith(f"poses look like {said(files)}: hull IoU 0.")
            and f"as read ({said(read_as)})" in message
        )
        assert torch.allclose(
            as_written(cameras, read_as, files).world_to_camera, seen.cameras.world_to_camera, atol=1e-5
        )


def test_masks_of_another_thing_are_no_question_of_conventions(seen):
    noise = torch.rand(10, 6, 6, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 1)
    masks = (noise.repeat_interleave(8, 2) > 0.5).byte() * 255
    assert advice(seen.cameras, masks, ("camera-to-world", "OpenCV")) is None


def test_a_folder_in_another_convention_is_refused_with_its_name(tmp_path):
    write_srn(tmp_path / "mug", pictured(orbit(10, 64, 64, 95.0)), World())
    for file in (tmp_path / "mug" / "pose").iterdir():  # OpenGL's axes
        pose = np.array(file.read_text().split(), dtype=float).reshape(4, 4) @ np.diag([1, -1, -1, 1])
        file.write_text(" ".join(map(repr, pose.ravel().tolist())))
    (scene,) = scan(tmp_path)
    with pytest.raises(DataError, match=r"mug.*\n  poses look like camera-to-world in OpenGL axes: hull IoU 0.00 as"):
        read(scene, Options(resolution=64))
    placed = Options(resolution=64, placing=Placing((0, 0, 0), 1.0, "y"))  # nobody looks for the hull
    check = check_object(read(scene, placed))
    assert check.iou < 0.2 and "OpenGL axes" in check.advice
    assert any("mug: poses look like camera-to-world in OpenGL axes" in line for line in lines({"mug": check}))


def test_right_cameras_explain_the_masks_and_half_a_mask_shows(seen):
    placed = normalised(seen, Placing(up="y"), "mug")
    check = check_object(placed)
    assert check.iou >= 0.97 and check.advice is None and check.frames == [0, 3, 6]
    assert (check.hulls & ~check.masks).sum() == 0
    masks = placed.masks.clone()
    masks[8, :, :24] = 0
    cut = check_object(Sequence("mug", placed.images, masks, placed.cameras))
    assert cut.iou < 0.9 and overall([check, cut]) == pytest.approx((check.iou + cut.iou) / 2, abs=1e-6)
    assert lines({"a": check, "b": cut})[1].startswith("  mug: 0.")


def test_placing_is_undone_and_views_are_made_small(seen):
    placed = normalised(seen, Placing(up="z"), "mug")
    assert torch.allclose(unplaced(placed).world_to_camera, seen.cameras.world_to_camera, atol=1e-5)
    cameras, masks = reduced(seen.cameras, seen.masks, 16, 5)
    assert masks.shape == (5, 16, 16) and torch.equal(cameras.world_to_camera, seen.cameras.world_to_camera[::2])
    points = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + torch.tensor(
        [2, -1, 0.5]
    )
    assert torch.allclose(cameras.project(points) * 3, seen.cameras[list(range(0, 10, 2))].project(points))
    assert conventions.hull_quality(cameras, masks) > 0.9
