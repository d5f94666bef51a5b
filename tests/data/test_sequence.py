"""Sequences and prepared sets: what is written comes back, interruptions resume, and bad input is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vader.data import prepare
from vader.data.pipeline import prepare_set
from vader.data.prepared import DataError, data_digest, data_root
from vader.data.sequence import Sequence, load_sequence, load_set, object_cameras, save_sequence
from vader.settings.checks import ConfigError
from vader.settings.experiment import DataConfig

CONFIG = DataConfig("toys", num_objects=3, heldout_objects=1, train_views=2, heldout_views=1, resolution=5)
JOBS = {f"toy-{i}": i for i in range(4)}


def toy(index: int, config: DataConfig = CONFIG) -> Sequence:
    key = f"toy-{index}"
    noise = np.random.default_rng(index).integers(0, 256, (3, 5, 5, 4), dtype=np.uint8)
    images, masks = torch.from_numpy(noise[..., :3].copy()), torch.from_numpy(noise[..., 3].copy())
    return Sequence(
        key=key,
        images=images,
        masks=masks,
        cameras=object_cameras(config, key),
        split="train" if index < 3 else "test",
        caption=f"toy number {index}",
        attributes={"licence": "CC0-1.0", "size": 0.1 * index},
    )


def render(index: int):
    return toy(index), None


@pytest.fixture
def folder(tmp_path):
    """One object on disk."""
    save_sequence(toy(1), tmp_path / "toy-1")
    return tmp_path / "toy-1"


@pytest.fixture
def prepared(tmp_path):
    return prepare_set(CONFIG, {"kind": "toys"}, JOBS, render, root=tmp_path)


def assert_same(a: Sequence, b: Sequence) -> None:
    for field in ("key", "split", "caption", "attributes"):
        assert getattr(a, field) == getattr(b, field)
    assert torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)
    assert torch.equal(a.cameras.world_to_camera, b.cameras.world_to_camera)
    assert torch.equal(a.cameras.intrinsics, b.cameras.intrinsics)
    assert (a.cameras.height, a.cameras.width) == (b.cameras.height, b.cameras.width)


# ------------------------------------------------------------------------------------------------ round trips


def test_an_object_comes_back_bit_for_bit(folder):
    assert_same(load_sequence(folder), toy(1))


def test_the_mesh_of_an_object_is_kept(folder, tmp_path):
    source = tmp_path / "source.ply"
    source.write_bytes(b"ply")
    save_sequence(dataclasses.replace(toy(2), mesh=source), tmp_path / "toy-2")
    assert load_sequence(tmp_path / "toy-2").mesh.read_bytes() == b"ply"
    assert load_sequence(folder).mesh is None


def test_colours_and_alphas_are_chosen_views_in_unit_range():
    sequence = toy(0)
    assert torch.equal(sequence.colours(), sequence.images.float() / 255)
    assert torch.equal(sequence.colours([2, 0]), sequence.images[[2, 0]].float() / 255)
    assert torch.equal(sequence.alphas(torch.tensor([1])), sequence.masks[1:2].float() / 255)
    assert torch.equal(sequence.alphas(slice(0, 2)), sequence.masks[:2].float() / 255)
    assert sequence.colours(1).shape == (1, 5, 5, 3) and sequence.alphas(1).shape == (1, 5, 5)


def test_a_prepared_set_comes_back_in_order_with_its_splits(prepared):
    again = load_set(prepared.folder)
    assert [s.key for s in again] == list(JOBS)
    for a, b in zip(prepared, again, strict=True):
        assert_same(a, b)
    assert (again.train_views, again.heldout_views, again.name) == (2, 1, "toys")
    assert again.digest == prepared.digest == data_digest(CONFIG, {"kind": "toys"})
    assert [s.key for s in again.split("train")] == ["toy-0", "toy-1", "toy-2"]
    assert [s.key for s in again.split("test")] == ["toy-3"]
    with pytest.raises(DataError, match="split 'tset' is unknown"):
        again.split("tset")


def test_the_pixel_checksum_is_of_all_pixels_in_order(prepared):
    lines = ""
    for s in prepared:
        pixels = hashlib.sha256()
        pixels.update(s.images.numpy().tobytes())
        pixels.update(s.masks.numpy().tobytes())
        lines += f"{s.key} {pixels.hexdigest()}\n"
    assert prepared.pixel_checksum == hashlib.sha256(lines.encode()).hexdigest()


def changed(prepared, images):
    """The set with other pictures of its second object."""
    other = dataclasses.replace(prepared[1], images=images)
    sequences = (prepared[0], other, *prepared.sequences[2:])
    return dataclasses.replace(prepared, sequences=sequences, pixel_checksum="another")


def test_last_bits_of_pixels_are_reported_with_their_size(prepared):
    record = json.loads(json.dumps(prepared.pixel_record()))
    assert prepared.compare_pixels(record) is None
    images = prepared[1].images.clone()
    images[0, 0, 0, 0] ^= 1
    message = changed(prepared, images).compare_pixels(record)
    change = 1 / (3 * 5 * 5)
    assert f"at most {change:.3g} (object 'toy-1')" in message and f"{change / 4:.3g} of 255 on average" in message


def test_pixels_that_differ_by_more_than_rasterisers_do_are_refused(prepared):
    record = json.loads(json.dumps(prepared.pixel_record()))
    images = prepared[1].images - (prepared[1].images > 127).byte()
    size = (prepared[1].images.float() - images.float()).mean((0, 1, 2)).max().item()
    with pytest.raises(
        DataError, match=rf"pixels differ from those that the run saw: .* at most {size:.3g} .object 'toy-1'"
    ):
        changed(prepared, images).compare_pixels(record)
    fewer = dataclasses.replace(prepared, sequences=prepared.sequences[:2], pixel_checksum="another")
    with pytest.raises(DataError, match="its 2 objects are not the 4 that the run saw"):
        fewer.compare_pixels(record)


def test_an_object_another_process_wrote_first_is_left_alone(folder):
    before = (folder / "object.json").stat().st_ino
    save_sequence(toy(1), folder)
    assert (folder / "object.json").stat().st_ino == before
    assert [f.name for f in folder.parent.iterdir()] == ["toy-1"]


# ------------------------------------------------------------------------------------------------ identity


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(DataConfig)])
def test_every_setting_is_in_the_digest(field):
    value = getattr(CONFIG, field)
    other = (
        f"{value}x" if isinstance(value, str) else tuple(v + 1 for v in value) if field == "elevation" else value + 1
    )
    changed = dataclasses.replace(CONFIG, **{field: other})
    assert data_digest(changed, {}) != data_digest(CONFIG, {})


def test_the_digest_is_of_sources_not_of_their_order():
    a = data_digest(CONFIG, {"models": ["x", "y"], "light": 1.0})
    assert a == data_digest(CONFIG, {"light": 1.0, "models": ["x", "y"]})
    assert a != data_digest(CONFIG, {"light": 1.0, "models": ["y", "x"]})
    with pytest.raises(ValueError):
        data_digest(CONFIG, {"light": float("nan")})


def test_cameras_depend_on_seed_and_key_alone():
    a, b = object_cameras(CONFIG, "toy-1"), object_cameras(dataclasses.replace(CONFIG, num_objects=99), "toy-1")
    assert torch.equal(a.world_to_camera, b.world_to_camera) and len(a) == 3
    for other in (object_cameras(CONFIG, "toy-2"), object_cameras(dataclasses.replace(CONFIG, seed=1), "toy-1")):
        assert (a.world_to_camera - other.world_to_camera).abs().max() > 0.1


def test_the_data_root_is_the_environments_or_the_repositorys(monkeypatch, tmp_path):
    monkeypatch.setenv("VADER_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("VADER_DATA")
    assert data_root().name == "data" and (data_root().parent / "pyproject.toml").is_file()


# ------------------------------------------------------------------------------------------------ bad input


def edit(file, change) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def refuses(folder, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_sequence(folder)
    for word in (str(folder), "toy-1", *words):
        assert word in str(caught.value), str(caught.value)


def test_a_missing_image_is_named(folder):
    (folder / "images" / "001.png").unlink()
    refuses(folder, "images/001.png", "view 1", "image is missing", "one per camera")


@pytest.mark.parametrize("damage", [b"", b"not a picture", None])
def test_a_corrupt_image_is_named(folder, damage):
    file = folder / "images" / "002.png"
    file.write_bytes(file.read_bytes()[:-30] if damage is None else damage)
    refuses(folder, "images/002.png", "view 2", "cannot be decoded")


def test_a_missing_mask_is_named(folder):
    (folder / "masks" / "000.png").unlink()
    refuses(folder, "masks/000.png", "view 0", "mask is missing")


def test_a_mask_of_another_size_is_named(folder):
    Image.new("L", (4, 5)).save(folder / "masks" / "001.png")
    refuses(folder, "masks/001.png", "view 1", "mask is 4x5 pixels", "cameras' 5x5")


def test_an_image_of_another_size_is_named(folder):
    Image.new("RGB", (5, 6)).save(folder / "images" / "000.png")
    refuses(folder, "images/000.png", "image is 5x6 pixels", "cameras' 5x5")


def test_an_image_of_another_kind_is_named(folder):
    Image.new("RGBA", (5, 5)).save(folder / "images" / "000.png")
    refuses(folder, "images/000.png", "mode RGBA", "RGB")


def test_images_without_cameras_are_named(folder):
    shutil.copy(folder / "images" / "000.png", folder / "images" / "003.png")
    refuses(folder, "images", "4 files", "one per camera (3)")


@pytest.mark.parametrize("name", ["images", "masks"])
def test_an_object_without_images_is_named(folder, name):
    shutil.rmtree(folder / name)
    refuses(folder, name, "no views", "expected 3")


def test_an_object_without_cameras_is_named(folder):
    edit(folder / "cameras.json", lambda c: c.update(world_to_camera=[], intrinsics=[]))
    refuses(folder, "cameras.json", "world_to_camera has no views")


def test_a_camera_that_is_no_rotation_is_named(folder):
    edit(folder / "cameras.json", lambda c: c["world_to_camera"][1][0].__setitem__(0, 2.0))
    refuses(folder, "cameras", "view 1", "is not a rotation")


def test_a_mirrored_camera_is_named(folder):
    def mirror(c):
        c["world_to_camera"][2][0] = [-x for x in c["world_to_camera"][2][0]]

    edit(folder / "cameras.json", mirror)
    refuses(folder, "view 2", "is not a rotation", "det = -1")


def test_nan_in_intrinsics_is_named(folder):
    edit(folder / "cameras.json", lambda c: c["intrinsics"][2][1].__setitem__(1, float("nan")))
    refuses(folder, "view 2", "intrinsics", "NaN")


@pytest.mark.parametrize("value", [3, "no matrix", [[1, 2], [3]], [1.0, 2.0]])
def test_cameras_that_are_no_matrices_are_named(folder, value):
    edit(folder / "cameras.json", lambda c: c.update(intrinsics=value))
    refuses(folder, "cameras.json", "matrices")


@pytest.mark.parametrize(("file", "field"), [("cameras.json", "intrinsics"), ("object.json", "split")])
def test_a_missing_field_is_named(folder, file, field):
    edit(folder / file, lambda c: c.pop(field))
    refuses(folder, file, repr(field), "missing")
    (folder / file).write_text("{")
    refuses(folder, file, "not readable as JSON")
    (folder / file).unlink()
    refuses(folder, file, "file is missing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {"masks": s.masks[:, :4]}, "masks are (3, 4, 5) torch.uint8, expected (3, 5, 5)"),
        (lambda s: {"masks": s.masks.bool()}, "masks are (3, 5, 5) torch.bool"),
        (lambda s: {"images": s.colours()}, "images are (3, 5, 5, 3) torch.float32"),
        (lambda s: {"images": s.images[:0], "masks": s.masks[:0], "cameras": s.cameras[:0]}, "no views"),
        (lambda s: {"cameras": s.cameras[:2]}, "cameras are 2, expected one for each of 3"),
        (lambda s: {"cameras": dataclasses.replace(s.cameras, width=7)}, "5x5 pixels, expected the cameras' 7x5"),
        (lambda s: {"split": "val"}, "split is 'val'"),
        (lambda s: {"key": "../toy-1"}, "key is no file name"),
    ],
)
def test_an_invalid_sequence_is_refused_before_anything_is_written(tmp_path, change, words):
    bad = dataclasses.replace(toy(1), **change(toy(1)))
    with pytest.raises(DataError) as caught:
        save_sequence(bad, tmp_path / "x")
    assert words in str(caught.value) and "toy-1" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="file/toy-1: object 'toy-1' cannot be written"):
        save_sequence(toy(1), tmp_path / "file" / "toy-1")


def refuses_set(prepared, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_set(prepared.folder)
    for word in (str(prepared.folder), *words):
        assert word in str(caught.value), str(caught.value)


def test_a_set_without_manifest_is_refused(prepared):
    (prepared.folder / "manifest.json").unlink()
    refuses_set(prepared, "manifest.json: manifest is missing", "prepare it to the end")


def test_a_manifest_of_another_schema_is_refused(prepared):
    edit(prepared.folder / "manifest.json", lambda m: m.update(schema=99))
    refuses_set(prepared, "manifest.json: field 'schema' is 99, expected 1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("objects"), "field 'objects' is missing"),
        (lambda m: m["objects"][0].pop("key"), "field 'objects' lists"),
        (lambda m: m["config"].update(seed=7), "field 'digest'"),
        (lambda m: m["config"].update(speed=7), "field 'config'"),
        (lambda m: m["objects"].pop(), "field 'pixel_checksum'"),
        (lambda m: m["objects"][1].update(split="test"), "object 'toy-1': differs from what manifest.json lists"),
    ],
)
def test_an_altered_manifest_is_refused(prepared, change, words):
    edit(prepared.folder / "manifest.json", change)
    refuses_set(prepared, words)


def test_a_missing_object_is_named(prepared):
    shutil.rmtree(prepared.folder / "objects" / "toy-2")
    refuses_set(prepared, "objects/toy-2", "object.json", "missing")


def test_an_altered_pixel_is_found(prepared):
    file = prepared.folder / "objects" / "toy-2" / "images" / "000.png"
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    refuses_set(prepared, "object 'toy-2': differs from what manifest.json lists")


def test_an_unknown_data_set_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'procedural_chairs'"):
        prepare(DataConfig("procedural_chair"))
