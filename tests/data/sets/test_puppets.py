"""Procedural puppets: rigid parts that move smoothly, masks and part maps that agree with the hidden truth."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import tiny_videos
from vader.data import load_videos, open_set, prepare, truth_of
from vader.data.meshes.raycast import LIGHT_RIG, Material, Primitive, cast, render, render_labelled
from vader.data.prepared import DataError, data_digest
from vader.data.sets import puppets
from vader.data.video import NO_PART, video_camera
from vader.settings.checks import ConfigError
from vader.settings.profiles import experiment

ROOT = Path(__file__).resolve().parents[3]
TINY = tiny_videos("puppets")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path))
    return tmp_path


def test_a_set_is_prepared_once_and_then_loaded(root, monkeypatch):
    first = prepare(TINY)
    assert [v.key for v in first] == ["puppet-000000", "puppet-000001", "puppet-000002"]
    assert [v.split for v in first] == ["train", "train", "test"]
    assert first.folder == root / f"puppets-{data_digest(TINY, puppets.sources(TINY))[:12]}"
    for index, video in enumerate(first):
        assert video.frames.shape == (4, 24, 24, 3) and video.train_frames == 3
        assert video.caption == puppets.puppet(0, index).caption and video.attributes["licence"] == "CC0-1.0"
        assert (video.frames[video.masks == 0] == 0).all()
        assert (video.masks == 255).any() and (video.frames[video.masks == 255].amax(-1) > 15).all()
        assert truth_of(first, video.key).names == puppets.puppet(0, index).names
    monkeypatch.setattr(puppets, "render_labelled", lambda *_: pytest.fail("rendered again"))
    assert prepare(TINY).pixel_checksum == first.pixel_checksum == load_videos(first.folder).pixel_checksum
    assert open_set(first.folder).digest == first.digest, "as the ranks of a training open it"


def test_figures_have_4_to_10_parts_and_differ():
    figures = [puppets.puppet(0, i) for i in range(60)]
    assert {len(f.names) for f in figures} == {4, 6, 8, 10}
    assert all(f.names == tuple(n for n in puppets.JOINTS if n in f.names) for f in figures)
    assert len({f.caption for f in figures}) > 50
    sizes = np.array([np.linalg.norm(f.solids["head"][0].frame) for f in figures])
    assert sizes.std() > 0.03 * sizes.mean()


def test_parts_are_rigid_joints_stay_joined_and_motion_is_smooth():
    for index in range(4):
        figure = puppets.puppet(0, index)
        poses = puppets.pose_parts(figure, 0, index, 64)
        assert np.allclose(poses[..., :3, :3] @ poses[..., :3, :3].transpose(0, 1, 3, 2), np.eye(3), atol=1e-12)
        for number, name in enumerate(figure.names):
            parent = puppets.JOINTS[name][0]
            if parent is not None:  # the joint is the same point of parent and child in every frame
                joint = np.append(figure.joints[name], 1)
                above = poses[:, figure.names.index(parent)] @ joint
                assert np.allclose(poses[:, number, :, 3], above, atol=1e-12)
        turned = np.einsum("tpij,tpij->tp", poses[1:, :, :3, :3], poses[:-1, :, :3, :3])  # trace of R_t+1 R_t^T
        step = np.degrees(np.arccos(np.clip((turned - 1) / 2, -1, 1)))
        assert 2 < step.max() < 45  # moves, but nothing jumps


def test_motion_is_band_limited_and_a_prefix_of_longer_motion():
    draw = puppets._draw(0, 3)
    long = puppets.curve(draw, "head 1", 4096)
    assert np.array_equal(long[:8], puppets.curve(draw, "head 1", 8)) and np.abs(long).max() <= 1
    power = np.abs(np.fft.rfft(long * np.hanning(4096))) ** 2
    frequency = np.fft.rfftfreq(4096)
    outside = power[(frequency < puppets.CYCLES[0] - 0.002) | (frequency > puppets.CYCLES[1] + 0.002)]
    assert outside.sum() < 1e-4 * power.sum() and np.abs(long).max() > 0.5


def test_left_and_right_limbs_mirror_each_other():
    """The same angles left and right put the hands at mirrored places."""
    angles = np.array([[20.0], [10.0], [30.0]])
    mirror = np.diag([-1.0, 1, 1])
    left, right = (puppets.rotations(np.radians(a))[0] for a in (angles, angles * [[1], [-1], [-1]]))
    assert np.allclose(mirror @ left @ mirror, right)


def test_the_figure_stays_in_the_cube_and_in_the_picture():
    for index in range(3):
        figure = puppets.puppet(0, index)
        solids, _, _ = puppets.place(figure, puppets.pose_parts(figure, 0, index, 24))
        boxes = [s.bounds() for frame in solids for s in frame]
        low, high = np.min([b[0] for b in boxes], 0), np.max([b[1] for b in boxes], 0)
        assert np.allclose(low, -high) and np.max(high) == pytest.approx(puppets.HALF_EXTENT)
        corners = torch.tensor(
            [[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
        )
        pixels = video_camera(TINY).project(corners.float())
        assert pixels.min() > 0 and pixels.max() < TINY.resolution


def test_poses_and_part_maps_are_those_of_the_picture():
    """Each ray that hits is traced back: the hit point, through the true pose of the part shown, is on its solids."""
    config = dataclasses.replace(TINY, supersampling=1)
    for index in (1, 2):
        video, truth = puppets.render_object((config, index))
        assert torch.equal(truth.parts == NO_PART, video.masks == 0) and truth.names == puppets.puppet(0, index).names
        figure, camera = puppets.puppet(0, index), video_camera(config)
        scale, shown = _scale(figure, index), set()
        for frame in (0, 3):
            for number, name in enumerate(figure.names):
                seen = (truth.parts[frame].flatten() == number).nonzero()[:, 0]
                if len(seen) == 0:
                    continue  # behind another part
                shown.add(name)
                to_part = torch.linalg.inv(truth.poses[frame, number].double())
                origins, directions = (x[0].double() for x in camera.rays())
                view = camera.world_to_camera[0].double()
                points = origins[seen] @ view[:, :3].T + view[:, 3]  # into camera axes, then into the part's
                ways = directions[seen] @ view[:, :3].T
                o = (points @ to_part[:3, :3].T + to_part[:3, 3]).T.float()
                d = (ways @ to_part[:3, :3].T).T.float()
                solids = [dataclasses.replace(s, frame=scale * s.frame) for s in figure.solids[name]]
                assert (cast(solids, o, d).primitive >= 0).float().mean() > 0.98, (frame, name)
        assert len(shown) >= len(figure.names) - 1


def _scale(figure, index):
    poses = puppets.pose_parts(figure, 0, index, 4)
    rigid = puppets.place(figure, poses)[2]
    return (rigid[0, 1, :3, 3] - rigid[0, 0, :3, 3])[1] / (poses[0, 1, :3, 3] - poses[0, 0, :3, 3])[1]


def test_a_pixel_belongs_to_what_covers_most_of_it():
    """Two slabs side by side, at 4 x 4 rays a pixel: the label is that of the wider share, and -1 is nothing."""
    camera = video_camera(dataclasses.replace(TINY, resolution=4))
    edge = 0.45  # of the world's width; pixels are 0.46 wide at the centre

    def slab(low, high):
        frame = np.column_stack([np.diag([(high - low) / 2, 0.5, 0.1]), [(low + high) / 2, 0, 0]])
        return Primitive("box", frame, Material((0.5, 0.5, 0.5)), "slab")

    solids = [slab(-0.4, 0.13), slab(0.13, edge)]  # in the pixel right of the centre: 0.13 / 0.46 and 0.32 / 0.46
    images, masks, labels, normals = render_labelled(solids, [7, 2], camera, 4)
    assert labels[0, 1].tolist() == [-1, 7, 2, -1] and (labels[0, 0] != -1).sum() <= 2
    assert torch.equal(normals[0, 1], torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]]))
    for a, b in zip(render(solids, camera, 4), (images, masks), strict=True):
        assert torch.equal(a, b)


def test_a_puppet_does_not_depend_on_how_many_there_are(root):
    more = prepare(dataclasses.replace(TINY, num_objects=1, heldout_objects=3))
    for a, b in zip(prepare(TINY), more, strict=False):
        assert torch.equal(a.frames, b.frames) and a.caption == b.caption
    assert not torch.equal(prepare(dataclasses.replace(TINY, seed=1))[0].frames, more[0].frames)


def test_another_process_renders_the_same_bits(root):
    script = (
        "from vader.settings.experiment import DataConfig\n"
        "from vader.data.sets.puppets import render_object\n"
        f"video, truth = render_object(({TINY!r}, 1))\n"
        "print(video.pixel_checksum(), truth.poses.double().sum().item())\n"
    )
    elsewhere = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    video, truth = puppets.render_object((TINY, 1))
    assert elsewhere.stdout.split() == [video.pixel_checksum(), str(truth.poses.double().sum().item())]


def test_preparation_resumes_after_an_interruption(root, monkeypatch, tmp_path):
    whole = prepare(TINY, root=tmp_path / "whole")
    rendered, real = [], puppets.puppet

    def failing(seed, index):
        rendered.append(index)
        if len(rendered) == 2:
            raise KeyboardInterrupt
        return real(seed, index)

    monkeypatch.setattr(puppets, "puppet", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare(TINY)
    assert prepare(TINY).pixel_checksum == whole.pixel_checksum and rendered == [0, 1, 1, 2]


def test_bad_settings_are_refused_before_rendering(root, monkeypatch):
    monkeypatch.setattr(puppets, "puppet", lambda *_: pytest.fail("rendered"))
    with pytest.raises(ConfigError, match="1 frame, expected at least 2"):
        prepare(dataclasses.replace(TINY, train_views=1, heldout_views=0))
    with pytest.raises(ConfigError, match="'procedural_chairs' is not of puppets"):
        puppets.prepare(dataclasses.replace(TINY, name="procedural_chairs"))
    (root / "file").write_text("in the way")
    with pytest.raises(DataError, match="puppets: output folder is not writable"):
        puppets.prepare(TINY, root=root / "file")


def test_the_data_card_says_what_the_code_does():
    card = (ROOT / "data_cards" / "puppets.md").read_text(encoding="utf-8")
    first, second = card.split("In `puppets_waving` it is:")
    for text, joints in ((first, puppets.JOINTS), (second, puppets.WAVING_JOINTS)):
        for name, (parent, rest, amplitude) in joints.items():
            numbers = " | ".join(f"{r:g} ± {a:g}" for r, a in zip(rest, amplitude, strict=True))
            assert f"| `{name}` | {parent or 'none'} | {numbers} |" in text, name
    for name, (low, high) in puppets.SIZES.items():
        assert f"| `{name}` | {low:g} to {high:g} |" in card, name
    for light in ("key", "fill", "back"):
        assert f"| {light} | {LIGHT_RIG[light]['direction']} | {LIGHT_RIG[light]['intensity']:.2f} |" in card
    assert f"half sides of at most {puppets.HALF_EXTENT}" in card
    captions = re.findall(r"- `puppet-(\d+)`: (.+)", card)
    assert len(captions) >= 3 and all(puppets.puppet(0, int(i)).caption == words for i, words in captions)
    for profile in ("smoke", "laptop", "gpu"):
        data = experiment(profile, "puppets").data
        frames, size = f"{data.train_views} + {data.heldout_views}", f"{data.resolution} x {data.resolution}"
        rays = data.supersampling**2
        assert f"| {profile} | {data.num_objects} | {data.heldout_objects} | {frames} | {size} | {rays} |" in card
    waving = experiment("laptop", "puppets_waving").data
    assert f"In laptop `puppets_waving` has {waving.num_objects} training videos" in card
    digests = [_digest(experiment("laptop", name).data) for name in puppets.MOTIONS]
    assert "begins `{}`, that of `puppets_waving` `{}`".format(*(digest[:12] for digest in digests)) in card


def _digest(config):
    return data_digest(config, puppets.sources(config))


def test_waving_puppets_are_the_same_figures_with_limbs_that_swing_further(root):
    waving = dataclasses.replace(TINY, name="puppets_waving")
    assert _digest(waving) != _digest(TINY)
    for index in range(3):
        calm, waved = (puppets.render_object((config, index)) for config in (TINY, waving))
        assert calm[0].caption == waved[0].caption and calm[0].attributes["licence"] == waved[0].attributes["licence"]
        assert not torch.equal(calm[0].frames, waved[0].frames)
    swings = {}
    for name, joints in puppets.MOTIONS.items():
        across = []
        for index in range(20):
            figure = puppets.puppet(0, index)
            poses = puppets.pose_parts(figure, 0, index, 64, joints)
            for number, part in enumerate(figure.names):
                if part.endswith("arm"):
                    own = poses[:, 0, :3, :3].transpose(0, 2, 1) @ poses[:, number, :3, :3]
                    across.append(np.degrees(np.arctan2(own[:, 1, 0], own[:, 0, 0])).std())
        swings[name] = np.mean(across)
    assert swings["puppets_waving"] > 2 * swings["puppets"]
