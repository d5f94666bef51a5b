"""Objects as they are rendered, turned, meshed and saved; and the mesh beside the rendering it stands for."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

import vader
from vader.data.formats.wavefront import Part
from vader.data.meshes.render import MeshRenderer
from vader.generation.objects import SUFFIXES, ObjectError, VolumeObject
from vader.rendering.cameras import Cameras, sample_orbit
from vader.rendering.rays import voxel_centres
from vader.rendering.render import render_views
from vader.rendering.surface import density_threshold
from vader.settings.experiment import DataConfig

pytest.importorskip("trimesh")
VIEW = DataConfig("anything", resolution=48)
FINER = 4


def made(volume: torch.Tensor, name: str = "thing", samples: int = 48) -> VolumeObject:
    return VolumeObject(name, volume, {"kind": "sample", "seed": 3}, VIEW, samples)


@pytest.fixture(scope="module")
def thing() -> VolumeObject:
    """Arms of three lengths and colours from the origin along +x, +y and +z: no symmetry at all."""
    x, y, z = voxel_centres(24).view(24, 24, 24, 3).unbind(-1)
    arms = [(0.9, x, y, z), (0.75, y, z, x), (0.6, z, x, y)]
    arms = torch.stack([((a > -0.1) & (a < n) & (b.abs() < 0.1) & (c.abs() < 0.1)).float() for n, a, b, c in arms])
    along = torch.nn.functional.one_hot(torch.stack([x, y, z]).argmax(0), 3).movedim(-1, 0)
    return made(torch.cat([arms.amax(0, keepdim=True) * 80, 0.2 + 0.6 * along]))


@pytest.fixture
def empty() -> VolumeObject:
    return made(torch.zeros(4, 8, 8, 8), "empty")


# -------------------------------------------------------------------------------------------------------- pictures


def test_pictures_are_the_renderers(thing):
    cameras = sample_orbit(2, VIEW, torch.Generator().manual_seed(0))
    seen, expected = thing.render(cameras), render_views(thing.volume[None], cameras, 48)
    assert seen.keys() == expected.keys() >= {"colour", "depth", "normals"}
    for name, picture in seen.items():
        assert torch.equal(picture, expected[name][0])
    assert thing.render(resolution=20)["colour"].shape == (4, 20, 20, 3)


def test_a_turntable_is_a_whole_turn(thing):
    frames = thing.turntable(8, 32)
    assert frames.shape == (8, 32, 32, 3) and frames.dtype == torch.uint8
    assert torch.equal(frames[0], thing.turntable(4, 32)[0]) and torch.equal(frames[6], thing.turntable(4, 32)[3])
    turned = [(frames[0].float() - frame).abs().mean() for frame in frames.float()]
    assert turned[4] > 5 and turned[0] == 0
    with pytest.raises(ObjectError, match="frames is 0, expected at least 1"):
        thing.turntable(0)


def test_a_still_shows_four_views_depth_and_normals(thing):
    still = thing.still(24)
    assert still.shape == (24, 6 * 24, 3)
    depth, normals = still[:, 96:120], still[:, 120:]
    assert torch.equal(depth[..., 0], depth[..., 1]) and depth.max() > 50
    assert not torch.equal(normals[..., 0], normals[..., 1])
    assert thing._repr_png_().startswith(b"\x89PNG")


# ---------------------------------------------------------------------------------------------------------- meshes


def agreement(vertices: np.ndarray, faces: np.ndarray, thing: VolumeObject, cameras: Cameras) -> float:
    """IoU of the silhouettes that VTK draws of a mesh and that we render of the object, over all views; both as the
    data's pictures are made, from `FINER` times as many pixels."""
    with MeshRenderer([Part("mesh", np.asarray(vertices, float), np.asarray(faces), np.ones(3))]) as renderer:
        mesh = renderer.render(cameras, FINER)[1] > 127
    scale = torch.tensor([FINER, FINER, 1.0])[:, None]
    v, h, w = len(cameras), cameras.height, cameras.width
    fine = Cameras(cameras.world_to_camera, scale * cameras.intrinsics, FINER * h, FINER * w)
    seen = thing.render(fine)["occupancy"].view(v, h, FINER, w, FINER).mean((2, 4)) > 0.5
    return ((mesh & seen).sum() / (mesh | seen).sum()).item()


def read_glb(thing: VolumeObject, folder) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles that VTK's reader finds in the object's GLB."""
    import pyvista

    block = pyvista.read(thing.save(folder / "thing.glb")).combine()
    return np.asarray(block.points), block.cells.reshape(-1, 4)[:, 1:]


FLIPS = {"mirrored": (-1, 1, 1), "upside down": (1, -1, 1), "back to front": (1, 1, -1), "turned": (-1, 1, -1)}


def test_the_mesh_stands_where_the_rendering_does_and_as_it_does(thing, tmp_path):
    cameras = sample_orbit(6, VIEW, torch.Generator().manual_seed(2))
    vertices, faces = read_glb(thing, tmp_path)
    assert agreement(vertices, faces, thing, cameras) > 0.95
    for name, flip in FLIPS.items():
        assert agreement(vertices * flip, faces, thing, cameras) < 0.85, name
    assert agreement(vertices[:, [0, 2, 1]], faces, thing, cameras) < 0.85, "z up"


def test_a_chair_of_the_reference_run_agrees_with_its_rendering_from_the_training_cameras(tmp_path):
    model = vader.load("furniture_chairs", device="cpu")
    [chair] = model.reconstruct(1)
    cameras = sample_orbit(12, model.config.data, torch.Generator().manual_seed(0))
    vertices, faces = read_glb(chair, tmp_path)
    assert agreement(vertices, faces, chair, cameras) >= 0.95
    assert agreement(vertices * (1, -1, 1), faces, chair, cameras) < 0.7
    mesh = chair.mesh()
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0


def test_vertices_have_the_colours_that_pictures_show(thing):
    """Each end of an arm has its own: red, green, blue along x, y, z."""
    mesh = thing.mesh()
    colours = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255
    for axis in range(3):
        end = mesh.vertices[:, axis] > mesh.vertices[:, axis].max() - 0.15
        expected = np.full(3, 0.2)
        expected[axis] = 0.8
        np.testing.assert_allclose(colours[end].mean(0), expected, atol=0.05)
    assert mesh.metadata["name"] == "thing" and mesh.metadata["seed"] == 3


def test_a_threshold_asks_for_marching_cubes_at_a_density(thing):
    level = density_threshold(24)
    low, high = thing.mesh(0.2 * level), thing.mesh(3 * level)
    assert low.volume > high.volume > 0 and low.is_watertight
    with pytest.raises(
        ObjectError, match=r"thing: has no surface, a density of 100 is nowhere exceeded \(the most is 80\)"
    ):
        thing.mesh(100)


# ---------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".GLB"])
def test_a_file_is_what_its_suffix_says(thing, suffix, tmp_path):
    file = thing.save(str(tmp_path / f"a.b{suffix}"))
    start = {".glb": b"glTF", ".ply": b"ply\n", ".npz": b"PK", ".webp": b"RIFF", ".png": b"\x89PNG"}
    assert file.read_bytes().startswith(start.get(suffix.lower(), b"")) and file.stat().st_size > 500
    assert [path.name for path in tmp_path.iterdir()] == [f"a.b{suffix}"]
    if suffix == ".webp":
        with Image.open(file) as read:
            assert (read.n_frames, read.size) == (36, (256, 256))
    if suffix == ".npz":
        with np.load(file) as read:
            assert np.array_equal(read["volume"], thing.volume.numpy())


@pytest.mark.parametrize("suffix", ["", ".gbl", ".stl"])
def test_another_suffix_is_refused(thing, suffix, tmp_path):
    with pytest.raises(ObjectError, match=f"thing: there are no files '{suffix}'.*expected one of .glb, .ply"):
        thing.save(tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_object_has_pictures_and_a_volume_but_no_mesh(empty, tmp_path):
    for suffix in (".png", ".webp", ".npz"):
        empty.save(tmp_path / f"a{suffix}")
    assert empty.turntable(2, 16).max() == 0
    for suffix in (".glb", ".ply", ".obj"):
        with pytest.raises(ObjectError, match="empty: has no surface, nothing is opaque"):
            empty.save(tmp_path / f"a{suffix}")
    assert len(list(tmp_path.iterdir())) == 3


def test_an_object_that_is_not_finite_is_refused(thing, tmp_path):
    volume = thing.volume.clone()
    volume[2, 0, 0, 0] = torch.inf
    broken = made(volume, "broken")
    for ask in (broken.render, broken.turntable, broken.still, broken.mesh):
        with pytest.raises(ObjectError, match="broken: the volume holds NaN or infinity"):
            ask()


def test_a_full_disk_leaves_the_old_file_or_none(thing, tmp_path, monkeypatch):
    old = thing.save(tmp_path / "old.npz")
    before = old.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vader.store.files.sync", full)
    for file in (old, tmp_path / "new.npz"):
        with pytest.raises(OSError, match="No space left"):
            made(thing.volume + 1).save(file)
    assert old.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["old.npz"]
