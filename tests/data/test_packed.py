"""Packed sets: they come back bit for bit, are opened like any other, and say which file was cut, changed or lost."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from vader.data import load_set, open_set, packed
from vader.data.packed import read_arrays, read_mesh, read_sheet, write_arrays, write_mesh, write_sheet
from vader.data.pipeline import ShardWriter, pack_set, prepare_set, shard_set
from vader.data.prepared import DataError
from vader.data.sequence import Sequence, load_packed, load_sequence, object_cameras, save_packed, save_sequence
from vader.evaluation.shapes import real_shapes
from vader.settings.experiment import DataConfig

CONFIG = DataConfig("toys", num_objects=2, heldout_objects=1, train_views=4, heldout_views=2, resolution=5)
JOBS = {f"toy-{i}": i for i in range(3)}


def toy(index: int) -> tuple[Sequence, trimesh.Trimesh]:
    rng = np.random.default_rng(index)
    noise = torch.from_numpy(rng.integers(0, 256, (6, 5, 5, 4), dtype=np.uint8))
    key, caption = f"toy-{index}", "a toy" if index else None
    sequence = Sequence(
        key=key,
        images=noise[..., :3].clone(),
        masks=noise[..., 3].clone(),
        cameras=object_cameras(CONFIG, key),
        split="train" if index < 2 else "test",
        caption=caption,
        attributes={"creator": "me", "stretch": [1.0, 0.1 * index, 1 / 3]},
    )
    mesh = trimesh.creation.icosphere(1, 0.1 + 0.3 * index)
    mesh.visual.vertex_colors = rng.integers(0, 256, (len(mesh.vertices), 4), dtype=np.uint8)
    return sequence, mesh


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    data = prepare_set(CONFIG, {"kind": "toys"}, JOBS, toy, root=tmp_path_factory.mktemp("prepared"))
    (data.folder / "ATTRIBUTION.md").write_text("made by me")
    return data


@pytest.fixture(scope="module")
def packed_once(whole, tmp_path_factory):
    return pack_set(whole, tmp_path_factory.mktemp("packed")).folder


@pytest.fixture
def small(packed_once, tmp_path):
    """A packed set to damage."""
    return load_set(shutil.copytree(packed_once, tmp_path / "packed" / packed_once.name))


# ------------------------------------------------------------------------------------------------ round trips


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_a_sheet_of_views_is_lossless(tmp_path_factory, views, h, w, seed, opaque):
    pixels = np.random.default_rng(seed).integers(0, 256, (views, h, w, 4), dtype=np.uint8)
    pixels[..., 3] |= 255 * opaque
    file = tmp_path_factory.mktemp("sheet") / "views.webp"
    write_sheet(file, pixels)
    np.testing.assert_array_equal(read_sheet(file, "toy", views, (h, w)), pixels)


def test_a_sheet_that_webp_cannot_hold_is_refused_before_it_is_written(tmp_path):
    with pytest.raises(DataError, match="7 views of 3000x1 pixels make a sheet with a side of more than 16383 pixels"):
        write_sheet(tmp_path / "views.webp", np.zeros((7, 1, 3000, 4), np.uint8))
    assert not list(tmp_path.iterdir())


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_the_triangles_of_a_mesh_are_kept_bit_for_bit_in_their_order(tmp_path_factory, count, triangles, seed):
    rng = np.random.default_rng(seed)
    vertices = rng.choice([0.0, -0.0, 1e-45, 0.1, -1 / 3], (count, 3)).astype(
        np.float32
    )  # few, so that points coincide
    faces, colours = rng.integers(0, count, (triangles, 3)), rng.integers(0, 2, (count, 4), dtype=np.uint8)
    file = tmp_path_factory.mktemp("mesh") / "mesh.xz"
    write_mesh(file, vertices, faces, colours)
    found, corners, shades = read_mesh(file, "toy")
    assert found[corners].tobytes() == vertices[faces].tobytes(), "signed zeros and denormal numbers too"
    np.testing.assert_array_equal(shades[corners], colours[faces])
    assert len(found) <= count and corners.shape == faces.shape


def test_a_packed_set_is_the_set_it_was_made_of(whole, small):
    assert (small.digest, small.pixel_checksum, small.name) == (whole.digest, whole.pixel_checksum, whole.name)
    assert small.folder.name == whole.folder.name and small.compare_pixels(whole.pixel_record()) is None
    for one, other in zip(whole, small, strict=True):
        for field in ("key", "split", "caption", "attributes"):
            assert getattr(one, field) == getattr(other, field)
        assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
        assert torch.equal(one.cameras.world_to_camera, other.cameras.world_to_camera)
        assert torch.equal(one.cameras.intrinsics, other.cameras.intrinsics)
        assert (other.cameras.height, other.cameras.width) == (5, 5)
        (vertices, faces), (kept, corners) = one.surface(), other.surface()
        np.testing.assert_array_equal(vertices[faces], kept[corners])
    assert (small.folder / "ATTRIBUTION.md").read_text() == "made by me"
    files = {f.suffix for f in small.folder.rglob("*") if f.is_file()}
    assert files == {".json", ".md", ".webp", ".xz"}


def test_points_on_the_reference_meshes_are_the_same(whole, small):
    for split in ("train", "test"):
        one, other = (real_shapes(data, split, points=50).clouds for data in (whole, small))
        assert one.tobytes() == other.tobytes()


def test_a_packed_set_is_opened_like_any_other(whole, small, tmp_path):
    for opened in (open_set(small.folder), load_set(small.folder)):
        assert opened.pixel_checksum == whole.pixel_checksum and opened.folder == small.folder
    shards = shard_set(small.folder, ShardWriter(CONFIG, {"kind": "toys"}, tmp_path, 2))
    assert shards.split("train")[0].pixel_checksum() == whole[0].pixel_checksum()
    assert shard_set(tmp_path / "gone", ShardWriter(CONFIG, {"kind": "toys"}, tmp_path, 2)).checksum == shards.checksum


def test_an_object_can_be_unpacked_again(whole, small, tmp_path):
    save_sequence(small[1], tmp_path / "toy-1")
    again = load_sequence(tmp_path / "toy-1")
    assert again.pixel_checksum() == whole[1].pixel_checksum()
    one, other = (trimesh.load(s.mesh, process=False) for s in (whole[1], again))
    np.testing.assert_array_equal(one.vertices[one.faces], other.vertices[other.faces])
    np.testing.assert_array_equal(one.visual.vertex_colors[one.faces], other.visual.vertex_colors[other.faces])


def test_an_object_without_a_mesh_has_none(tmp_path):
    save_packed(toy(0)[0], tmp_path / "toy-0")
    found = load_packed(tmp_path / "toy-0")
    assert found.mesh is None and not (tmp_path / "toy-0" / "mesh.xz").exists()
    with pytest.raises(DataError, match="object 'toy-0' has no mesh"):
        found.surface()


def test_packing_goes_on_where_it_was_interrupted(whole, small):
    (small.folder / "manifest.json").unlink()
    shutil.rmtree(small.folder / "objects" / "toy-1")
    before = (small.folder / "objects" / "toy-0" / "views.webp").stat().st_ino
    assert pack_set(whole, small.folder.parent).pixel_checksum == whole.pixel_checksum
    assert (small.folder / "objects" / "toy-0" / "views.webp").stat().st_ino == before


def test_what_was_packed_is_read_back_and_compared(whole, tmp_path, monkeypatch):
    write = packed.Image.Image.save
    monkeypatch.setattr(packed.Image.Image, "save", lambda self, file, *a, **k: write(self, file, "WEBP", quality=1))
    with pytest.raises(DataError, match="object 'toy-0' was not packed as it is"):
        pack_set(whole, tmp_path / "packed")
    assert not list((tmp_path / "packed").glob("*/manifest.json"))


# ------------------------------------------------------------------------------------------------ bad input


def refuses(small, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_set(small.folder)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["views.webp", "cameras.xz", "mesh.xz", "object.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "lost"])
def test_a_damaged_file_is_named_with_its_object(small, name, damage):
    file = small.folder / "objects" / "toy-1" / name
    content = bytearray(file.read_bytes())
    if damage == "lost":
        file.unlink()
        return refuses(small, str(file), "object 'toy-1'", "cannot be read", "manifest.json lists it")
    content[len(content) // 2] ^= 1
    file.write_bytes(content[: len(content) - 7] if damage == "cut" else content)
    refuses(small, str(file), "object 'toy-1'", "file was cut or changed", "as manifest.json has it")


def test_attributions_are_part_of_the_set(small):
    (small.folder / "ATTRIBUTION.md").write_text("made by nobody")
    refuses(small, "ATTRIBUTION.md: file was cut or changed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("files"), "field 'files' is missing"),
        (lambda m: m.update(kind="videos"), "holds videos, expected sequences or packed sequences"),
        (lambda m: m["objects"][1].update(caption="no toy"), "object 'toy-1': differs from what manifest.json lists"),
        (lambda m: m["config"].update(train_views=5), "field 'digest'"),
    ],
)
def test_an_altered_manifest_is_refused(small, change, words):
    file = small.folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    refuses(small, words)


def unpacks(file, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_packed(file.parent).surface()
    for word in (str(file), "toy-1", *words):
        assert word in str(caught.value), str(caught.value)


def test_files_that_disagree_are_named_where_no_manifest_seals_them(small):
    folder = small.folder / "objects" / "toy-1"
    sheet, cameras, mesh = (folder / name for name in ("views.webp", "cameras.xz", "mesh.xz"))
    write_arrays(
        mesh, {"vertices": np.zeros((2, 3), "f4"), "colours": np.zeros((2, 4), "u1"), "corners": np.full(3, 5)}
    )
    unpacks(mesh, "has no 2 vertices that make triangles")
    mesh.write_bytes(mesh.read_bytes()[:-9])
    unpacks(mesh, "cannot be unpacked")
    write_sheet(sheet, np.zeros((4, 5, 5, 4), np.uint8))
    unpacks(sheet, "sheet is 10x10 pixels, expected 6 views of 5x5")
    sheet.write_bytes(b"no picture")
    unpacks(sheet, "cannot be decoded")
    names = ("world_to_camera", "intrinsics", "size")
    matrices = dict(zip(names, read_arrays(cameras, "toy-1", names), strict=True))
    for change, words in (
        ({"size": np.zeros(3, np.int32)}, "size has shape (3,)"),
        ({"intrinsics": matrices["intrinsics"][0]}, "intrinsics has shape (3, 3), expected matrices"),
        ({"world_to_camera": matrices["world_to_camera"][:0]}, "world_to_camera has no views"),
    ):
        write_arrays(cameras, {**matrices, **change})
        unpacks(cameras, words)
    write_arrays(cameras, {"size": matrices["size"]})
    unpacks(cameras, "array 'world_to_camera' is missing, expected world_to_camera, intrinsics, size")
    cameras.unlink()
    unpacks(cameras, "file is missing")


def test_an_invalid_object_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match="split is 'val'"):
        save_packed(dataclasses.replace(toy(1)[0], split="val"), tmp_path / "toy-1")
    assert not list(tmp_path.iterdir())
