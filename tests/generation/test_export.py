"""Exported files, read again by programs that know nothing of this one, and by hand."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from vader.generation import export

trimesh = pytest.importorskip("trimesh")

FACTS = {"name": "block", "kind": "sample", "seed": 3, "runs": {"diffusion": "ab" * 32}}


@pytest.fixture(scope="module")
def mesh():
    """An open box with corners of three lengths and a colour for each corner, darkest first."""
    box = trimesh.creation.box(extents=(0.4, 1.0, 1.6))
    colours = np.linspace(0, 1, 24).reshape(8, 3)
    return export.triangle_mesh(box.vertices, box.faces, colours, FACTS)


def parsed(content: bytes) -> tuple[dict, bytes]:
    """JSON and binary chunk of a GLB, whose header says how long it and its chunks are."""
    magic, version, length = struct.unpack_from("<4sII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size, kind = struct.unpack_from("<I4s", content, 12)
    assert kind == b"JSON" and size % 4 == 0
    start = 20 + size
    binary, kind = struct.unpack_from("<I4s", content, start)
    assert kind == b"BIN\0" and binary % 4 == 0 and start + 8 + binary == length
    return json.loads(content[20:start]), content[start + 8 :]


def accessor(tree: dict, binary: bytes, number: int) -> np.ndarray:
    """The numbers of an accessor, (n, components), inside of its buffer view, aligned, and within its min and max."""
    given = tree["accessors"][number]
    kind = {5123: "<u2", 5125: "<u4", 5126: "<f4"}[given["componentType"]]
    columns = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[given["type"]]
    view = tree["bufferViews"][given["bufferView"]]
    assert view["buffer"] == 0 and view["byteOffset"] % 4 == 0 and "byteStride" not in view
    count = given["count"] * columns
    assert given.get("byteOffset", 0) == 0 and count * np.dtype(kind).itemsize == view["byteLength"]
    assert view["byteOffset"] + view["byteLength"] <= tree["buffers"][0]["byteLength"] == len(binary)
    values = np.frombuffer(binary, kind, count, view["byteOffset"]).reshape(-1, columns)
    np.testing.assert_allclose(values.min(0), given["min"], rtol=1e-6)
    np.testing.assert_allclose(values.max(0), given["max"], rtol=1e-6)
    return values


def test_a_glb_holds_what_the_specification_asks(mesh):
    tree, binary = parsed(export.glb(mesh))
    assert tree["asset"]["version"] == "2.0" and tree["scenes"][tree["scene"]]["nodes"] == [0]
    assert "matrix" not in tree["nodes"][0] and "rotation" not in tree["nodes"][0], "axes are glTF's as they are"
    [primitive] = tree["meshes"][0]["primitives"]
    assert primitive["mode"] == 4 and set(primitive["attributes"]) == {"POSITION", "NORMAL", "COLOR_0"}
    position, normal, colour = (
        accessor(tree, binary, primitive["attributes"][a]) for a in ("POSITION", "NORMAL", "COLOR_0")
    )
    indices = accessor(tree, binary, primitive["indices"])[:, 0]
    np.testing.assert_allclose(position, mesh.vertices, atol=1e-7)
    assert np.array_equal(indices.reshape(-1, 3), mesh.faces)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-5)
    assert tree["accessors"][primitive["attributes"]["COLOR_0"]]["normalized"] is True and (colour[:, 3] == 65535).all()
    targets = {tree["accessors"][a]["bufferView"]: 34962 for a in primitive["attributes"].values()}
    targets[tree["accessors"][primitive["indices"]]["bufferView"]] = 34963
    assert {number: view["target"] for number, view in enumerate(tree["bufferViews"])} == targets
    a, b, c = position[indices.reshape(-1, 3)].astype(float).transpose(1, 0, 2)
    assert (np.cross(a, b) * c).sum() / 6 == pytest.approx(0.4 * 1.0 * 1.6), "counter-clockwise from outside"
    assert ((position * normal).sum(1) > 0).all(), "normals point outwards"


def test_colours_of_a_glb_are_linear_and_those_of_other_files_are_as_a_screen_shows_them(mesh):
    tree, binary = parsed(export.glb(mesh))
    linear = accessor(tree, binary, tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"])[:, :3] / 65535
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    expected = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255
    np.testing.assert_allclose(shown, expected, atol=0.5 / 255)
    assert linear[2].max() < 0.1 < expected[2].min(), "which 8 bits could not tell apart"
    for kind, write in (("ply", export.ply), ("obj", export.obj)):
        read = trimesh.load(io.BytesIO(write(mesh)), file_type=kind, process=False)
        np.testing.assert_allclose(read.vertices, mesh.vertices, atol=1e-6)
        assert np.array_equal(read.faces, mesh.faces)
        np.testing.assert_allclose(np.asarray(read.visual.vertex_colors)[:, :3] / 255, expected, atol=1.5 / 255)


def test_a_viewer_adds_no_light_and_finds_what_made_the_object(mesh):
    tree, _ = parsed(export.glb(mesh))
    [material] = tree["materials"]
    assert material["extensions"] == {"KHR_materials_unlit": {}} and tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert "extensionsRequired" not in tree, "a viewer without the extension may open it"
    assert material["pbrMetallicRoughness"] == {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    assert tree["meshes"][0]["extras"] == FACTS


def test_a_glb_loads_in_trimesh_and_in_vtk(mesh, tmp_path):
    read = trimesh.load(io.BytesIO(export.glb(mesh)), file_type="glb", force="mesh", process=False)
    assert read.is_watertight and read.is_winding_consistent and read.volume == pytest.approx(mesh.volume)
    pyvista = pytest.importorskip("pyvista")
    (tmp_path / "box.glb").write_bytes(export.glb(mesh))
    block = pyvista.read(tmp_path / "box.glb").combine()
    np.testing.assert_allclose(np.asarray(block.bounds).reshape(3, 2).T, mesh.bounds, atol=1e-6)
    assert block.n_cells == len(mesh.faces) and "COLOR_0" in block.point_data


def test_a_volume_is_read_without_unpickling_and_describes_itself():
    volume = torch.rand(4, 3, 3, 3)
    with np.load(io.BytesIO(export.npz(volume, FACTS)), allow_pickle=False) as file:
        assert sorted(file) == ["origin", "units", "volume"]
        assert file["volume"].dtype == np.float32 and np.array_equal(file["volume"], volume.numpy())
        assert json.loads(str(file["origin"])) == FACTS
        assert "(channel, z, y, x)" in str(file["units"]) and "y is up" in str(file["units"])


def test_a_turntable_repeats_for_ever_and_a_still_is_lossless():
    frames = torch.zeros(5, 16, 16, 3, dtype=torch.uint8)
    for number, frame in enumerate(frames):
        frame[:, 3 * number : 3 * number + 3] = 255
    with Image.open(io.BytesIO(export.webp(frames))) as read:
        assert (read.format, read.n_frames, read.info["loop"]) == ("WEBP", 5, 0)
        shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(read)]
        assert read.info["duration"] == export.FRAME_MILLISECONDS
    for frame, picture in zip(frames.numpy(), shown, strict=True):
        assert np.abs(frame.astype(int) - picture).mean() < 20
    picture = torch.randint(0, 256, (6, 5, 3), dtype=torch.uint8)
    with Image.open(io.BytesIO(export.png(picture))) as read:
        assert np.array_equal(np.asarray(read), picture.numpy())
