"""Photographed objects: how well they were placed, and where their masks come from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vader.data.meshes.captures import Captures
from vader.data.meshes.walk import walk
from vader.data.prepared import DataError
from vader.rendering.cameras import Cameras
from vader.settings.studies import CAPTURES, study
from vader.studies.many_kinds import walks


def moved(cameras: Cameras) -> Cameras:
    """The same cameras in another world: turned about x, twice as large."""
    turn = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, -0.8], [0.0, 0.8, 0.6]])
    poses = torch.cat([cameras.world_to_camera[:, :, :3] @ turn, 2 * cameras.world_to_camera[:, :, 3:]], dim=2)
    return dataclasses.replace(cameras, world_to_camera=poses)


@pytest.fixture
def taken(tmp_path, monkeypatch):
    cameras = {"000-cup": walk(10, 64, seed=0), "001-lamp": walk(10, 64, seed=1), "002-box": walk(10, 64, seed=2)}
    scenes = [SimpleNamespace(key=key, where=key) for key in cameras]

    def read(scene, options):
        true, about = cameras[scene.key], {"structure_from_motion": {"error": 0.2}}
        if scene.key == "002-box":
            raise DataError("002-box: structure from motion placed 2 of 10 pictures")
        if scene.key == "000-cup":
            return SimpleNamespace(cameras=moved(true), attributes=about)
        about["left_out"] = {"003.png": "not placed", "007.png": "not placed"}
        return SimpleNamespace(cameras=moved(true[[0, 1, 2, 4, 5, 6, 8, 9]]), attributes=about)

    monkeypatch.setattr(walks, "scan", lambda folder, name: scenes)
    monkeypatch.setattr(walks, "read", read)
    return Captures(tmp_path, "three", {key: key[4:] for key in cameras}, cameras)


def test_placed_photographs_are_compared_with_the_cameras_that_took_them(taken):
    cup, lamp, box = walks.placed(taken)
    assert (cup.share, lamp.share, box.share) == (1.0, 0.8, 0.0)
    for one in (cup, lamp):  # a left-out photograph must not shift the others against the truth
        assert one.degrees < 0.05 and one.centres < 1e-3 and one.error == 0.2
    assert math.isnan(box.degrees) and math.isnan(box.error)
    rows = walks.placed_rows([cup, lamp, box])
    assert rows["placed_share"].value == pytest.approx(0.6) and rows["placed_share"].n == 3
    assert rows["reprojection_px"].n == rows["rotation_error_deg"].n == 2


def test_a_planted_error_of_the_cameras_is_measured(taken, monkeypatch):
    def read(scene, options):
        true = taken.cameras[scene.key]
        turn = torch.tensor([[math.cos(0.1), -math.sin(0.1), 0], [math.sin(0.1), math.cos(0.1), 0], [0, 0, 1.0]])
        wrong = true.world_to_camera.clone()
        wrong[0] = turn @ wrong[0]  # the first camera rolls by 0.1 about its axis
        about = {"structure_from_motion": {"error": 0.2}}
        return SimpleNamespace(cameras=dataclasses.replace(true, world_to_camera=wrong), attributes=about)

    monkeypatch.setattr(walks, "read", read)
    for one in walks.placed(taken):
        assert one.degrees == pytest.approx(math.degrees(0.1) / 10, rel=1e-2) and one.centres < 1e-4


def test_prepared_masks_are_asked_for_by_name_and_in_a_folder_of_their_own(taken, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("VADER_DATA", str(tmp_path))

    def write_captures(folder, source, masks, **counts):
        asked.append((folder, masks, counts))
        return dataclasses.replace(taken, folder=folder)

    monkeypatch.setattr(walks, "write_captures", write_captures)
    monkeypatch.setattr(walks, "write_masks", lambda scenes, folder, remover, names: asked.append((folder, names)))
    walks.captures("smoke")
    walks.captures("smoke", masks="prepared")
    (drawn, true, counts), (prepared, false, _), (masked, names) = asked
    assert (true, false) == (True, False) and counts == CAPTURES["smoke"]
    assert drawn != prepared == masked and isinstance(drawn, Path) and names == taken.names


@pytest.mark.parametrize("profile", CAPTURES)
def test_the_experiment_reads_captions_and_has_a_table_of_embeddings(profile):
    config, counts = study("figure4", profile), CAPTURES[profile]
    assert config.conditional and config.autodecoder.hash_rows == 0
    assert 0 < counts["heldout"] < counts["count"] and walks.side(profile) == counts["side"]
