"""Motion clips: axes, joints and loops as stated, and clear errors for files that are not clips."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vader.data.prepared import DataError
from vader.data.synthetic import motion
from vader.data.synthetic.motion import CLIP_JOINTS, FRAME_NUMBERS, clip_folder, read_clip


def frame(seconds=0.1, height=0.9, **turned):
    """A frame of the rest pose, with some joints turned: quaternions (w, x, y, z), or angles in radians."""
    numbers = [seconds, 0.0, height, 0.0]
    for name, (_, count) in CLIP_JOINTS.items():
        numbers += turned.get(name, [1.0, 0, 0, 0] if count == 4 else [0.0])
    return numbers


def write(path, frames, loop="none"):
    path.write_text(json.dumps({"Loop": loop, "Frames": frames}))
    return path


def quaternion(degrees, axis):
    half = np.radians(degrees) / 2
    return [np.cos(half), *(np.sin(half) * np.array(axis, float))]


def test_a_frame_has_44_numbers_as_deepmimics_humanoid():
    assert FRAME_NUMBERS == 44 == len(frame())


def test_joints_turn_the_way_they_do_on_a_person(tmp_path):
    """In our axes (x left, y up, z forward): a bent elbow brings the hand forward, a bent knee the foot back."""
    turned = dict(right_elbow=[np.pi / 2], left_knee=[-np.pi / 2], chest=quaternion(90, (0, 1, 0)))
    clip = read_clip(write(tmp_path / "clip.txt", [frame(**turned)] * 2))
    _, world = clip.at(np.array([0.0]))
    down, forward = [0, -1, 0], [0, 0, 1]
    assert np.allclose(world["left_knee"].apply(down), [0, 0, -1]) and np.allclose(world["left_hip"].apply(down), down)
    assert np.allclose(world["chest"].apply(forward), [1, 0, 0]), "about the vertical axis to the left, seen from above"
    assert np.allclose(world["right_elbow"].apply(down), [1, 0, 0]), "forward of the chest, which looks left"
    assert np.allclose(world["left_elbow"].apply(down), down)


def test_time_interpolates_on_the_shortest_rotation_and_height_linearly(tmp_path):
    frames = [frame(0.2), frame(0.2, 1.1, root=quaternion(80, (0, 1, 0)))]
    height, world = read_clip(write(tmp_path / "clip.txt", frames)).at(np.array([0.05, 0.2]))
    assert height == pytest.approx([0.95, 1.1])
    assert np.degrees(world["root"].magnitude()) == pytest.approx([20, 80])


def test_a_clip_that_does_not_wrap_goes_forth_and_back(tmp_path):
    frames = [frame(height=h) for h in (0.0, 1.0, 2.0)]
    height, _ = read_clip(write(tmp_path / "clip.txt", frames)).at(np.array([0, 0.15, 0.2, 0.25, 0.4, 0.55]))
    assert height == pytest.approx([0, 1.5, 2, 1.5, 0, 1.5])


def test_a_clip_that_wraps_returns_to_its_start_without_a_jump(tmp_path):
    frames = [frame(left_hip=quaternion(a, (0, 0, 1))) for a in (0, 30, 60)]
    clip = read_clip(write(tmp_path / "clip.txt", frames, "wrap"))
    assert clip.times[-1] == pytest.approx(0.2 + 60 / motion.SEAM_SPEED), "60 degrees at the speed of a seam"
    _, world = clip.at(np.arange(0, 2, 0.01))
    angle = np.degrees(world["left_hip"].magnitude())
    assert np.abs(np.diff(angle)).max() < 3.01 and angle.max() > 59
    later = clip.at(np.array([0.13 + 3 * clip.times[-1]]))[1]["left_hip"]
    assert later.magnitude() == pytest.approx(clip.at(np.array([0.13]))[1]["left_hip"].magnitude())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json", "cannot be read .*expected JSON of DeepMimic's humanoid"),
        ("[1, 2]", "has no field 'Frames'"),
        ('{"Loop": "wrap"}', "has no field 'Frames'"),
        ('{"Frames": [[1], [2]], "Loop": "maybe"}', "field 'Loop' is 'maybe', expected 'wrap' or 'none'"),
        ('{"Frames": [[1]], "Loop": "none"}', "has 1 frames, expected at least 2"),
        ({1: frame()[:-1]}, "frame 1 has 43 numbers, expected 44"),
        ({1: "text"}, "frame 1 has str numbers, expected 44"),
        ({2: frame()[:-1] + ["a"]}, "frame 2 has an entry that is not a finite number"),
        ({0: frame()[:-1] + [float("nan")]}, "frame 0 has an entry that is not a finite number"),
        ({1: frame(seconds=0.0)}, "frame 1 lasts 0 seconds, expected more than 0"),
        ({2: frame(neck=[0.0, 0, 0, 0])}, "frame 2: the quaternion of neck has length 0.00, expected about 1"),
    ],
)
def test_what_is_not_a_clip_is_named(tmp_path, content, said):
    file = tmp_path / "clip.txt"
    if isinstance(content, dict):
        write(file, [content.get(k, frame()) for k in range(4)])
    else:
        file.write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        read_clip(file)
    assert str(file) in str(caught.value)


def test_missing_clips_are_named_with_where_they_come_from(tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match="walk.txt: no such motion clip; expected .*pip install pybullet.*VADER_MOTIONS"
    ):
        read_clip(tmp_path / "walk.txt")
    with pytest.raises(DataError, match="nowhere: no such folder of motion clips"):
        clip_folder(tmp_path / "nowhere")
    monkeypatch.delenv("VADER_MOTIONS", raising=False)
    monkeypatch.setattr(motion, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="package pybullet_data is not installed"):
        clip_folder()
    monkeypatch.setenv("VADER_MOTIONS", str(tmp_path))
    assert clip_folder() == tmp_path
