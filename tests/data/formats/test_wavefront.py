"""OBJ files: what is read, and every way in which a file can be broken."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vader.data.formats.wavefront import DEFAULT_COLOUR, MAX_TEXTURE, read_obj
from vader.data.prepared import DataError

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
TEXTURED = "mtllib m.mtl\n" + SQUARE + "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nusemtl wood\nf 1/1 2/2 3/3 4/4\n"


def archive(**files) -> zipfile.ZipFile:
    """Members of folder 'm'; obj="..." is m/m.obj, mtl="..." is m/m.mtl, others by their own name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in files.items():
            out.writestr({"obj": "m/m.obj", "mtl": "m/m.mtl"}.get(name, f"m/{name}"), content)
    return zipfile.ZipFile(buffer)


def read(**files):
    return read_obj(archive(**files), "m/m.obj", "cat.sh3f: entry 'x'")


def png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_polygons_become_fans_and_negative_indices_count_from_the_end():
    for face in ("f 1 2 3 4", "f -4 -3 -2 -1", "f 1//1 2//1 3//1 4//1", "f 1 2 \\\n 3 4"):
        (part,), missing = read(obj=SQUARE + face + "\n")
        expected = [[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]]
        np.testing.assert_array_equal(part.vertices[part.faces], expected)
        assert part.colour.tolist() == list(DEFAULT_COLOUR) and part.texture is None and missing == []


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_triangles_survive_the_file(data):
    count = data.draw(st.integers(3, 12))
    vertices = data.draw(st.lists(st.tuples(*[st.floats(-1e3, 1e3)] * 3), min_size=count, max_size=count))
    faces = data.draw(st.lists(st.tuples(*[st.integers(0, count - 1)] * 3), min_size=1, max_size=10))
    names = data.draw(st.lists(st.sampled_from("ab"), min_size=len(faces), max_size=len(faces)))
    text = "".join(f"v {x!r} {y!r} {z!r}\n" for x, y, z in vertices)
    text += "".join(f"usemtl {n}\nf {a + 1} {b + 1} {c + 1}\n" for n, (a, b, c) in zip(names, faces, strict=True))
    parts, _ = read(obj=text)
    assert sorted(part.material for part in parts) == sorted(set(names))
    for part in parts:
        own = [face for face, name in zip(faces, names, strict=True) if name == part.material]
        np.testing.assert_array_equal(part.vertices[part.faces], np.array(vertices)[np.array(own)])


def test_materials_and_textures():
    image = [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]]
    (part,), missing = read(obj=TEXTURED, mtl="newmtl wood\nKd 0.5 0.25 0\nmap_Kd t.png\r\n", **{"t.png": png(image)})
    np.testing.assert_array_equal(part.texture, image)
    np.testing.assert_array_equal(part.uv[part.faces[0]], [[0, 0], [1, 0], [1, 1]])
    assert part.colour.tolist() == [0.5, 0.25, 0] and missing == []


def test_the_material_shows_through_a_transparent_texture():
    image = np.array([[[255, 255, 255, 0], [255, 255, 255, 255]]])
    (part,), _ = read(obj=TEXTURED, mtl="newmtl wood\nKd 1 0 0\nmap_Kd t.png\n", **{"t.png": png(image)})
    np.testing.assert_array_equal(part.texture[0], [[255, 0, 0], [255, 255, 255]])


def test_large_textures_are_reduced():
    image = np.zeros((40, 4 * MAX_TEXTURE, 3))
    (part,), _ = read(obj=TEXTURED, mtl="newmtl wood\nmap_Kd t.png\n", **{"t.png": png(image)})
    assert part.texture.shape == (10, MAX_TEXTURE, 3)


def test_a_texture_that_is_not_there_is_reported_and_leaves_the_colour():
    (part,), missing = read(obj=TEXTURED, mtl="newmtl wood\nKd 0.5 0.25 0\nmap_Kd f:/gone.jpg\n")
    assert part.texture is None and part.colour.tolist() == [0.5, 0.25, 0] and missing == ["f:/gone.jpg"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (dict(mtl=""), r"no file 'm/m.obj', expected the OBJ model"),
        (dict(obj=TEXTURED), r"no file 'm/m.mtl', expected the material library"),
        (dict(obj="v 1 2 x\n"), r"'m/m.obj' line 1 is not valid OBJ \(could not convert .*'x'"),
        (dict(obj="v 1 2\n"), r"'m/m.obj' line 1 .*'1 2', expected 3 finite numbers"),
        (dict(obj="v 0 0 0\nv 1 nan 2\n"), r"'m/m.obj' line 2 .*'1 nan 2', expected 3 finite numbers"),
        (dict(obj=SQUARE + "f 1 2 5\n"), r"'m/m.obj' line 5 .*corner '5' points outside the 4 entries"),
        (dict(obj=SQUARE + "f 1 2 0\n"), r"corner '0' points outside"),
        (dict(obj=SQUARE + "f 1/1 2/2 3/3\n"), r"corner '1/1' points outside the 0 entries"),
        (dict(obj=SQUARE), r"'m/m.obj' has no faces, expected a mesh"),
        (dict(obj="\x00\x01 nothing"), r"'m/m.obj' has no faces"),
        (dict(obj=TEXTURED, mtl="Kd 1 1 1\n"), r"'m/m.mtl' line 1 is not valid MTL"),
        (dict(obj=TEXTURED, mtl="newmtl wood\nKd 1 one 1\n"), r"'m/m.mtl' line 2 is not valid MTL .*'one'"),
        (
            {"obj": TEXTURED, "mtl": "newmtl wood\nmap_Kd t.png\n", "t.png": b"no image"},
            r"texture 'm/t.png' is not a readable image",
        ),
    ],
)
def test_broken_files_are_named(files, message):
    with pytest.raises(DataError, match=r"^cat.sh3f: entry 'x': .*" + message):
        read(**files)


def test_a_damaged_archive_is_named():
    good = archive(obj=SQUARE * 50 + "f 1 2 3\n")
    data = bytearray(good.fp.getvalue())
    start = data.index(b"m/m.obj") + 7
    data[start : start + 8] = b"\xff" * 8
    with pytest.raises(DataError, match=r"entry 'x': 'm/m.obj' cannot be unpacked"):
        read_obj(zipfile.ZipFile(io.BytesIO(data)), "m/m.obj", "cat.sh3f: entry 'x'")


def test_faces_of_a_material_are_gathered_wherever_they_stand():
    parts, _ = read(obj=SQUARE + "usemtl a\nf 1 2 3 4\nusemtl b\nf 1 2 3\nusemtl a\nf 2 3 4\n")
    assert {part.material: len(part.faces) for part in parts} == {"a": 3, "b": 1}
