"""Furniture as GLB files of a folder, read back as it was; and walks round it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.data.formats.rendered import World, orbit
from vader.data.formats import scan
from vader.data.formats.gltf import write_glb
from vader.data.formats.models import read_parts
from vader.data.formats.sweethome3d import CatalogueNotFound
from vader.data.formats.wavefront import Part
from vader.data.meshes import pieces
from vader.data.meshes.walk import DISTANCE, blots, camera_errors, walk
from vader.data.prepared import DataError
from vader.rendering.cameras import Cameras

pytest.importorskip("trimesh")
SQUARE = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], dtype=float)
FACES = np.array([(0, 1, 2), (0, 2, 3)])


def test_colours_textures_and_opacity_come_back_from_a_glb_file(tmp_path):
    colours, uv = np.linspace(0.2, 0.9, 12).reshape(4, 3), SQUARE[:, :2]
    texture = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    parts = [
        Part("glass", SQUARE, FACES, np.array([0.6, 0.3, 0.2]), opacity=0.5),
        Part("painted", SQUARE + 2, FACES, np.ones(3), colours=colours),
        Part("cloth", SQUARE + 4, FACES, np.ones(3), uv, texture),
    ]
    write_glb(tmp_path / "piece.glb", parts)
    (scene,) = scan(tmp_path, "models")
    found, missing = read_parts(scene)
    found = sorted(found, key=lambda p: p.vertices[:, 0].min())
    assert missing == [] and len(found) == 3
    for part, expected in zip(found, parts, strict=True):
        assert np.allclose(part.vertices[part.faces], expected.vertices[FACES], atol=1e-6)
    assert np.allclose(found[0].colour, parts[0].colour, atol=0.01) and abs(found[0].opacity - 0.5) < 0.01
    assert np.allclose(found[1].colours[found[1].faces], colours[FACES], atol=0.02)
    assert np.array_equal(found[2].texture[..., :3], texture)
    assert np.allclose(found[2].uv[found[2].faces], uv[FACES], atol=1e-6)


def test_without_a_catalogue_chairs_of_the_package_are_written_and_said(tmp_path, monkeypatch):
    def none(source=None):
        raise CatalogueNotFound("no catalogue")

    monkeypatch.setattr(pieces, "read_catalogues", none)
    assert pieces.write_pieces(tmp_path, 2).startswith("2 chairs that come with the package")
    assert [s.key for s in scan(tmp_path)] == ["chair-0", "chair-1"]
    with pytest.raises(DataError, match="no catalogue"):
        pieces.write_pieces(tmp_path / "named", 2, source="elsewhere.sh3f")


def test_a_walk_goes_round_and_has_patterns_to_hold_on_to():
    cameras = walk(12, 64)
    centres = cameras.centres()
    assert torch.allclose(centres.norm(dim=1), torch.full((12,), DISTANCE), rtol=0.081)
    turns = torch.atan2(centres[:, 0], centres[:, 2]).numpy()
    assert np.allclose(np.diff(np.unwrap(turns)), 2 * np.pi / 12, atol=1e-5)
    at = cameras.project(torch.zeros(1, 3))
    assert ((at > 8) & (at < 56)).all(), "the object stays in the picture"
    assert not np.array_equal(blots(0, 64), blots(1, 64)) and blots(0, 64).std() > 20


def test_errors_of_cameras_are_those_that_no_similarity_explains():
    true = orbit(9, 32, 32, 40.0)
    world = World(np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]]), scale=0.3, centre=(4.0, 1.0, -2.0))
    poses = np.linalg.inv(world.camera_to_world(true))
    cameras = Cameras(torch.from_numpy(poses[:, :3]), true.intrinsics, 32, 32)
    degrees, shares = camera_errors(cameras, true)
    assert degrees.max() < 0.01 and shares.max() < 1e-4
    angle = np.deg2rad(3.0)
    poses[2, :3] = (
        np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]) @ poses[2, :3]
    )
    degrees, _ = camera_errors(Cameras(torch.from_numpy(poses[:, :3]), true.intrinsics, 32, 32), true)
    assert degrees[2] == pytest.approx(3.0, abs=0.01) and np.delete(degrees, 2).max() < 0.01
