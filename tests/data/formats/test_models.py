"""3D models: OBJ as other programs write it, GLB and PLY by their specifications, and their pictures."""

from __future__ import annotations

import json
import struct
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.formats.rendered import orbit, pictured
from vader.data.formats import Options, Placing, detect, read, read_all, scan, wavefront
from vader.data.formats.models import is_coloured, read_parts, read_with_mesh
from vader.data.meshes.raycast import mesh as solid_mesh
from vader.data.prepared import DataError
from vader.data.synthetic.factors import draw
from vader.data.synthetic.shapes import build
from vader.settings.checks import ConfigError

pytest.importorskip("trimesh", reason="extra 'data'")
SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
BOTH = "usemtl m\nf 1/1 2/2 3/3 4/4\n"
TEXELS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]]], np.uint8)
CORNERS = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
CAMERAS = partial(lambda key, side=48: orbit(6, side, side, 1.45 * side))
OPTIONS = Options(cameras=CAMERAS)


def parts_of(folder: Path, obj: str, mtl: str | None = "newmtl m\nKd 0.5 0.25 0\n", **files):
    """Parts of folder/m.obj; files by name, `t` for t.png."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "m.obj").write_text(obj)
    if mtl is not None:
        (folder / "m.mtl").write_text(mtl)
    for name, content in files.items():
        file = folder / (name if "." in name else f"{name}.png")
        file.parent.mkdir(exist_ok=True, parents=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            Image.fromarray(content).save(file)
    return read_parts(scan(folder)[0])


@pytest.mark.parametrize(
    "obj",
    [
        "v\t0\t0\t0\nv\t1 \t0 0\nv 1 1 0\nv 0 1 0\nf\t1\t2\t3\t4\n",  # tabs
        "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4 # front\n",  # a comment at the end of a face
        "v 0 0 0 # origin\nv 1 0 0\nv 1 1 0 1.0\nv 0 1 0\n  f  1  2 3   4  \n",  # a fourth coordinate; blanks
        "v 0 0 0\r\nv 1 0 0\r\nv 1 1 0\r\nv 0 1 0\r\nf 1 2 3 4\r\n",  # DOS
        "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 \\\n3 4\n",  # continued
        "v 0 0 0\r\nv 1 0 0\r\nv 1 1 0\r\nv 0 1 0\r\nf 1 2 \\\r\n3 4\r\n",  # both
        "g a b\no thing\ns off\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvn 0 0 1\nvp 0.1\nl 1 2\nf 1//1 2//1 3//1 4//1\n",
        "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf -4 -3 -2 -1\n",
        "\ufeff# by a program\nv 0 0 0\nv 1e0 0 0\nv 1. 1 -0\nv 0 1 0\nf 1/ 2/ 3/ 4/\n".replace("\ufeff", ""),
    ],
)
def test_geometry_as_programs_write_it(tmp_path, obj):
    (part,), missing = parts_of(tmp_path, obj, None)
    corners = part.vertices[part.faces]
    np.testing.assert_array_equal(corners, [[CORNERS[0], CORNERS[1], CORNERS[2]], [CORNERS[0], CORNERS[2], CORNERS[3]]])
    assert missing == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("map_Kd t.png", "t.png"),
        ("map_Kd\tt.png", "t.png"),
        ("\tmap_Kd   t.png  ", "t.png"),
        ("map_Kd -blendu on -mm 0 1 -clamp off t.png", "t.png"),
        ("map_Kd Wood Grain.png", "Wood Grain.png"),
        ("map_Kd textures/t.png", "textures/t.png"),
        (r"map_Kd textures\t.png", "textures/t.png"),
        (r"map_Kd .\Textures\T.PNG", "textures/t.png"),
        ("map_Kd ./deeper/../t.png", "t.png"),
        ("map_Kd hölzern.png", "hölzern.png"),
    ],
)
def test_texture_names_as_programs_write_them(tmp_path, line, name):
    mtl = f"newmtl m\n{line}\n"
    (part,), missing = parts_of(tmp_path / "a", f"mtllib m.mtl\n{SQUARE}{BOTH}", mtl, **{name: TEXELS})
    np.testing.assert_array_equal(part.texture, TEXELS)
    np.testing.assert_array_equal(part.uv[part.faces[0]], [[0, 0], [1, 0], [1, 1]])
    assert missing == []


def test_options_of_a_texture_scale_and_move_it(tmp_path):
    obj = f"mtllib m.mtl\n{SQUARE}{BOTH}"
    for line, expected in (
        ("-s 2 3 1 t.png", [2, 3]),
        ("-s 2 t.png", [2, 1]),
        ("-o 0.5 0.25 -s 2 2 1 t.png", [2.5, 2.25]),
    ):
        (part,), _ = parts_of(tmp_path, obj, f"newmtl m\nmap_Kd {line}\n", t=TEXELS)
        np.testing.assert_allclose(part.uv[part.faces[0]][2], expected)


def test_several_libraries_in_a_line_and_one_with_blanks(tmp_path):
    files = {"b.mtl": b"newmtl m\nKd 0 0 1\n", "my colours.mtl": b"newmtl m\nKd 0 1 0\n"}
    (part,), _ = parts_of(tmp_path / "1", f"mtllib m.mtl b.mtl\n{SQUARE}{BOTH}", "newmtl n\nKd 1 1 1\n", **files)
    assert part.colour.tolist() == [0, 0, 1]
    (part,), _ = parts_of(tmp_path / "2", f"mtllib my colours.mtl\n{SQUARE}{BOTH}", **files)
    assert part.colour.tolist() == [0, 1, 0]


def test_a_byte_order_mark_hides_no_materials_and_one_number_is_a_grey(tmp_path):
    text = f"\ufeffmtllib m.mtl\n{SQUARE}{BOTH}"
    (part,), _ = parts_of(tmp_path, text, "\ufeffnewmtl m\nKd 0.3 # of all three\n")
    assert part.colour.tolist() == [0.3, 0.3, 0.3]
    (tmp_path / "m.mtl").write_bytes("newmtl h\xf6lzern\nKd 0.1 0.2 0.3\n".encode("latin-1"))
    (tmp_path / "m.obj").write_bytes(f"mtllib m.mtl\n{SQUARE}usemtl h\xf6lzern\nf 1 2 3\n".encode("latin-1"))
    assert read_parts(scan(tmp_path)[0])[0][0].colour.tolist() == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("kind", ["palette", "grey", "CMYK", "turned"])
def test_textures_of_every_kind_have_their_colours(tmp_path, kind):
    """A palette, grey levels and inks are colours; a turned photograph is mapped as it is shown."""
    levels = np.array([[0, 255], [128, 64]], np.uint8)
    rgb = Image.fromarray(np.repeat(levels[..., None], 3, 2))
    expected, options = np.repeat(levels[..., None], 3, 2), {}
    image = {"palette": rgb.quantize(4), "grey": rgb.convert("L"), "CMYK": rgb.convert("CMYK"), "turned": rgb}[kind]
    if kind == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
        expected = np.rot90(expected, 3)
    tmp_path.joinpath("t.tif").touch()
    image.save(tmp_path / "t.tif", **options)
    (part,), missing = parts_of(tmp_path, f"mtllib m.mtl\n{SQUARE}{BOTH}", "newmtl m\nmap_Kd T.TIF\n")
    assert missing == [] and np.abs(part.texture.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("scale", [1, 255])
def test_colours_of_vertices(tmp_path, scale):
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.4, 0.6]])
    rows = [
        f"v {x} {y} {z} {' '.join(str(v * scale) for v in c)}\n" for (x, y, z), c in zip(CORNERS, colours, strict=True)
    ]
    (part,), _ = parts_of(tmp_path, "".join(rows) + "f 1 2 3 4\n", None)
    np.testing.assert_allclose(part.colours, colours)


@pytest.mark.parametrize(("lines", "opacity"), [("d 0.25", 0.25), ("Tr 0.75", 0.25), ("d -halo 0.5", 0.5), ("", 1.0)])
def test_opacity(tmp_path, lines, opacity):
    (part,), _ = parts_of(tmp_path, f"mtllib m.mtl\n{SQUARE}{BOTH}", f"newmtl m\nKd 1 1 1\n{lines}\n")
    assert part.opacity == opacity


def test_catalogues_have_opaque_glass(tmp_path):
    parts_of(tmp_path, f"mtllib m.mtl\n{SQUARE}{BOTH}", "newmtl m\nKd 1 1 1\nd 0.3\n")
    (part,), _ = wavefront.read_obj(wavefront.FolderFiles(tmp_path), "m.obj", "here")
    assert part.opacity == 1


def test_sixteen_bit_textures_have_their_colours(tmp_path):
    levels = np.array([[0, 20000], [40000, 65535]], np.uint16)
    (part,), _ = parts_of(tmp_path, f"mtllib m.mtl\n{SQUARE}{BOTH}", "newmtl m\nmap_Kd t.png\n", t=levels)
    np.testing.assert_array_equal(part.texture[..., 1], np.round(levels / 257))


def test_a_texture_of_very_many_pixels_is_named(tmp_path):
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)  # 4 * 10^8
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(
        DataError, match=r"object 'm': texture 't.png' .*(too many pixels|expected at most 120,000,000)"
    ):
        parts_of(tmp_path, f"mtllib m.mtl\n{SQUARE}{BOTH}", "newmtl m\nmap_Kd t.png\n", t=png)


def test_a_missing_texture_leaves_the_colour_and_is_named(tmp_path):
    for name in ("gone.png", r"C:\Users\me\wood.png", "/etc/hostname"):
        mtl = f"newmtl m\nKd 0.5 0.25 0\nmap_Kd {name}\n"
        (part,), missing = parts_of(tmp_path, f"mtllib m.mtl\n{SQUARE}{BOTH}", mtl)
        assert part.texture is None and part.colour.tolist() == [0.5, 0.25, 0] and missing == [name]


@pytest.mark.parametrize(
    ("obj", "mtl", "message"),
    [
        (f"mtllib ../../other.mtl\n{SQUARE}{BOTH}", None, "'../../other.mtl' leads out of"),
        (f"mtllib ..\\..\\other.mtl\n{SQUARE}{BOTH}", None, "leads out of"),
        (f"mtllib m.mtl\n{SQUARE}{BOTH}", "newmtl m\nmap_Kd ../../secret.png\n", "'../../secret.png' leads out of"),
        (f"mtllib m.mtl\n{SQUARE}{BOTH}", "newmtl m\nmap_Kd ..\\..\\secret.png\n", "leads out of"),
        (f"mtllib /etc/passwd\n{SQUARE}{BOTH}", None, "the folder holds no file '/etc/passwd'"),
        (f"mtllib m.mtl\n{SQUARE}{BOTH}", None, "the folder holds no file 'm.mtl', expected the material library"),
        (SQUARE, None, "'m.obj' has no faces, expected a mesh"),
        (SQUARE.replace("1 1 0", "1 nan 0") + "f 1 2 3\n", None, "line 3 is not valid OBJ .*expected 3 finite numbers"),
        (SQUARE + "f 1 2 9\n", None, "corner '9' points outside"),
        (f"mtllib m.mtl\n{SQUARE}{BOTH}", "newmtl m\nd clear\n", "'m.mtl' line 2 is not valid MTL"),
        (f"mtllib m.mtl\n{SQUARE}{BOTH}", "newmtl m\nmap_Kd t.png\n", "texture 't.png' is not a readable image"),
    ],
)
def test_obj_that_cannot_be_read_is_named(tmp_path, obj, mtl, message):
    (tmp_path / "secret.png").write_bytes(b"")
    files = {} if mtl is None or "t.png" not in mtl or "secret" in mtl else {"t": b"broken"}
    with pytest.raises(DataError, match=f"m.obj: object 'm': .*{message}"):
        parts_of(tmp_path / "set", obj, mtl, **files)


def test_too_many_triangles_are_refused_before_they_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(wavefront, "MAX_TRIANGLES", 1000)
    with pytest.raises(DataError, match="line 509 is not valid OBJ .more than 1,000 triangles"):
        parts_of(tmp_path, SQUARE + "f 1 2 3 4\n" * 2000, None)


# ------------------------------------------------------------------------------------------------ GLB


def glb(primitives, materials=(), images=(), nodes=None, extra=None) -> bytes:
    """A GLB file by its specification. primitives: dicts of POSITION, TEXCOORD_0, COLOR_0, indices, material."""
    binary, views, accessors, listed = b"", [], [], []

    def stored(content: bytes) -> int:
        nonlocal binary
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": len(content)})
        binary += content + b"\0" * (-len(content) % 4)
        return len(views) - 1

    def accessor(values: np.ndarray) -> int:
        kind = {np.dtype("f4"): 5126, np.dtype("u4"): 5125, np.dtype("u2"): 5123, np.dtype("u1"): 5121}[values.dtype]
        shape = "SCALAR" if values.ndim == 1 else f"VEC{values.shape[1]}"
        entry = {"bufferView": stored(values.tobytes()), "componentType": kind, "count": len(values), "type": shape}
        if values.ndim == 2 and values.dtype.kind == "u":
            entry["normalized"] = True
        if values.dtype == np.float32 and shape == "VEC3":
            entry |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        accessors.append(entry)
        return len(accessors) - 1

    for p in primitives:
        out = {"attributes": {k: accessor(v) for k, v in p.items() if k.isupper()}}
        out |= {"indices": accessor(p["indices"])} if "indices" in p else {}
        listed.append(out | {k: p[k] for k in ("material", "mode") if k in p})
    head = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes or [0])))}],
        "nodes": nodes or [{"mesh": 0}],
        "meshes": [{"primitives": listed}],
        "accessors": accessors,
        "materials": list(materials),
        "images": [i if isinstance(i, dict) else {"bufferView": stored(i), "mimeType": "image/png"} for i in images],
        "textures": [{"source": i} for i in range(len(images))],
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    } | (extra or {})
    head = {k: v for k, v in head.items() if v != []}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def quad(**more) -> dict:
    return {
        "POSITION": np.array(CORNERS, np.float32),
        "indices": np.array([0, 1, 2, 0, 2, 3], np.uint16),
        **more,
    }


UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)  # v down: the picture stands upright


def encoded(pixels) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def glb_parts(folder: Path, content: bytes):
    (folder / "m.glb").write_bytes(content)
    return read_parts(scan(folder)[0])


def srgb(x: float) -> float:
    return 12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055


def test_factors_are_linear_light_with_all_their_digits(tmp_path):
    materials = [{"pbrMetallicRoughness": {"baseColorFactor": [0.5, 0.002, 1.0, 0.4]}, "alphaMode": "BLEND"},
                 {"pbrMetallicRoughness": {"baseColorFactor": [0.1, 0.2, 0.3, 0.4]}}]  # fmt: skip
    (glass, wood, plain), _ = glb_parts(tmp_path, glb([quad(material=0), quad(material=1), quad()], materials))
    np.testing.assert_allclose(glass.colour, [srgb(0.5), srgb(0.002), 1.0], atol=1e-9)
    assert glass.opacity == 0.4 and wood.opacity == 1 and np.allclose(plain.colour, 1)
    np.testing.assert_array_equal(glass.vertices[glass.faces[0]], CORNERS[:3])


def test_textures_stand_as_in_the_file_and_are_tinted(tmp_path):
    texture = {"baseColorTexture": {"index": 0}}
    materials = [{"pbrMetallicRoughness": t} for t in (texture, texture | {"baseColorFactor": [0.5, 1, 1, 1]})]
    content = glb([quad(material=0, TEXCOORD_0=UV), quad(material=1, TEXCOORD_0=UV)], materials, [encoded(TEXELS)])
    (part, tinted), missing = glb_parts(tmp_path, content)
    np.testing.assert_array_equal(part.texture, TEXELS)
    np.testing.assert_allclose(part.uv, [[0, 0], [1, 0], [1, 1], [0, 1]])  # v up, as OBJ has it
    assert tinted.texture[0, 0, 0] == round(255 * srgb(0.5)) and (tinted.texture[..., 1:] == TEXELS[..., 1:]).all()
    assert missing == []


def test_alpha_by_its_mode(tmp_path):
    rgba = np.dstack([TEXELS, np.array([[0, 100], [200, 255]], np.uint8)])
    kind = {"baseColorTexture": {"index": 0}}
    materials = [{"pbrMetallicRoughness": kind, "alphaMode": m} for m in ("OPAQUE", "MASK", "BLEND")]
    content = glb([quad(material=i, TEXCOORD_0=UV) for i in range(3)], materials, [encoded(rgba)])
    (opaque, mask, blend), _ = glb_parts(tmp_path, content)
    assert opaque.texture.shape == (2, 2, 3)
    assert mask.texture[..., 3].tolist() == [[0, 0], [255, 255]]
    assert blend.texture[..., 3].tolist() == [[0, 100], [200, 255]]


@pytest.mark.parametrize("dtype", ["f4", "u1", "u2"])
def test_colours_of_vertices_are_linear_and_times_the_factor(tmp_path, dtype):
    top = 1 if dtype == "f4" else np.iinfo(dtype).max
    colours = (np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [0.2, 0.4, 0.6, 1]]) * top).astype(dtype)
    materials = [{"pbrMetallicRoughness": {"baseColorFactor": [1, 1, 0.5, 1]}}]
    (part, bare), _ = glb_parts(tmp_path, glb([quad(material=0, COLOR_0=colours), quad(COLOR_0=colours)], materials))
    np.testing.assert_allclose(part.colours[3], [srgb(0.2), srgb(0.4), srgb(0.3)], atol=3e-3)
    np.testing.assert_allclose(bare.colours[2], [0, 0, 1], atol=1e-6)


def test_nodes_move_meshes_and_textures_can_be_moved(tmp_path):
    nodes = [{"mesh": 0, "translation": [5, 0, 0]}, {"mesh": 0, "scale": [2, 2, 2], "rotation": [0, 0, 1, 0]}]
    moved = {"index": 0, "extensions": {"KHR_texture_transform": {"scale": [2, 3], "offset": [0.5, 0]}}}
    materials = [{"pbrMetallicRoughness": {"baseColorTexture": moved}}]
    content = glb([quad(material=0, TEXCOORD_0=UV)], materials, [encoded(TEXELS)], nodes)
    parts, _ = glb_parts(tmp_path, content)
    lows = sorted(p.vertices.min(0).round(6).tolist() for p in parts)
    assert lows == [[-2, -2, 0], [5, 0, 0]]
    np.testing.assert_allclose(parts[0].uv[2], [2 * 1 + 0.5, 1 - 3 * 0])


def test_specular_glossiness_and_webp(tmp_path):
    old = {"diffuseFactor": [0.2, 0.4, 0.6, 1], "diffuseTexture": {"index": 0}}
    materials = [{"extensions": {"KHR_materials_pbrSpecularGlossiness": old}}]
    extra = {"textures": [{"extensions": {"EXT_texture_webp": {"source": 0}}}]}
    content = glb(
        [quad(material=0, TEXCOORD_0=UV)], materials, [encoded(np.full((2, 2, 3), 255, np.uint8))], None, extra
    )
    (part,), _ = glb_parts(tmp_path, content)
    assert part.texture[0, 0].tolist() == [round(255 * srgb(x)) for x in (0.2, 0.4, 0.6)]


def test_pictures_outside_the_file(tmp_path):
    materials = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}]

    def content(uri):
        return glb([quad(material=0, TEXCOORD_0=UV)], materials, [{"uri": uri}])

    Image.fromarray(TEXELS).save(tmp_path / "t.png")
    assert (glb_parts(tmp_path, content("t.png"))[0][0].texture == TEXELS).all()
    assert glb_parts(tmp_path, content("gone.png"))[1] == ["gone.png"]
    with pytest.raises(DataError, match=r"material 0: baseColorTexture: '../t.png' leads out of"):
        glb_parts(tmp_path, content("../t.png"))


BROKEN = {
    "a buffer elsewhere": (glb([quad()], extra={"buffers": [{"byteLength": 3, "uri": "../x.bin"}]}), "all of it in"),
    "draco": (glb([quad()], extra={"extensionsRequired": ["KHR_draco_mesh_compression"]}), "without compression"),
    "points": (glb([quad(mode=0)]), "no triangles, expected a mesh with faces"),
    "no mesh": (glb([quad()], extra={"meshes": []}), "no triangles"),
    "not a number": (glb([quad(POSITION=np.array([[0, 0, 0], [1, 0, np.nan], [1, 1, 0], [0, 1, 0]], np.float32))]),
                     "coordinates that are NaN or infinite"),
    "cut": (glb([quad()])[:-60], "cannot be read, expected a whole GLB file"),
    "cut head": (glb([quad()])[:100], "not a whole GLB file"),
    "text": (b"solid cube", "not a"),
    "second coordinates": (glb([quad(material=0, TEXCOORD_0=UV)], [{"pbrMetallicRoughness": {"baseColorTexture":
                           {"index": 0, "texCoord": 1}}}], [encoded(TEXELS)]), "second set of texture coordinates"),
    "broken texture": (glb([quad(material=0, TEXCOORD_0=UV)], [{"pbrMetallicRoughness": {"baseColorTexture":
                       {"index": 0}}}], [b"no picture"]), "baseColorTexture: cannot be decoded"),
    "no texture of that number": (glb([quad(material=0, TEXCOORD_0=UV)], [{"pbrMetallicRoughness":
                                  {"baseColorTexture": {"index": 7}}}]), "material 0 is not as glTF has it"),
    "flat": (glb([quad()]), "bounding box measures .* expected a solid"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_glb_that_cannot_be_used_is_named(tmp_path, case):
    content, message = BROKEN[case]
    (tmp_path / "m.glb").write_bytes(content)
    with pytest.raises(DataError, match=f"m.glb: object 'm': .*{message}"):
        read(scan(tmp_path)[0], OPTIONS)


def test_ten_million_triangles_are_refused_by_the_head_of_the_file(tmp_path):
    content = bytearray(glb([quad()]))
    text = bytes(content).replace(b'"count": 6', b'"count":30000000')
    length = struct.unpack_from("<I", content, 12)[0] + len(text) - len(content)
    (tmp_path / "m.glb").write_bytes(text[:12] + struct.pack("<I", length) + text[16:])
    (tmp_path / "n.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 9\nelement face 10000000\n")
    tracemalloc.start()
    for scene in scan(tmp_path):
        with pytest.raises(DataError, match="10,000,000 triangles, expected at most 4,000,000; simplify"):
            read(scene, OPTIONS)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


# ------------------------------------------------------------------------------------------------ PLY


PLY = (
    "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n{}element face 2\n"
)
PLY += "property list uchar int vertex_indices\n{}end_header\n"


def test_ply_with_colours_of_vertices_or_faces(tmp_path):
    rgb = "property uchar red\nproperty uchar green\nproperty uchar blue\n"
    colours = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]
    rows = "".join(f"{x} {y} {z} {r} {g} {b}\n" for (x, y, z), (r, g, b) in zip(CORNERS, colours, strict=True))
    (tmp_path / "v.ply").write_text(PLY.format(rgb, "") + rows + "3 0 1 2\n3 0 2 3\n")
    plain = "".join(f"{x} {y} {z}\n" for x, y, z in CORNERS)
    (tmp_path / "f.ply").write_text(PLY.format("", rgb) + plain + "3 0 1 2 255 0 0\n3 0 2 3 0 0 255\n")
    by_face, by_vertex = (read_parts(s)[0][0] for s in scan(tmp_path))
    np.testing.assert_allclose(by_vertex.colours * 255, colours)
    assert (by_face.colours[by_face.faces[1]] == [0, 0, 1]).all() and (
        by_face.colours[by_face.faces[0]] == [1, 0, 0]
    ).all()
    np.testing.assert_array_equal(by_face.vertices[by_face.faces[1]], [CORNERS[0], CORNERS[2], CORNERS[3]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLY.format("", "").replace("face 2", "face 0") + "0 0 0\n" * 4, "no faces, expected a mesh and no cloud"),
        ("hello", "no faces"),
        (PLY.format("", "") + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 9\n", "points outside|cannot be read"),
        (PLY.format("", "") + "0 0 0\n1 nan 0\n1 1 0\n0 1 0\n3 0 1 2\n3 0 2 3\n", "NaN or infinite"),
        (PLY.format("", "") + "0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n", "1 of 2 faces|cannot be read"),
        (PLY.format("", "") + "0 0 0\n", "0 of 2 faces are there, expected a whole PLY file|cannot be read"),
    ],
)
def test_ply_that_cannot_be_used_is_named(tmp_path, content, message):
    (tmp_path / "m.ply").write_text(content)
    with pytest.raises(DataError, match=f"m.ply: object 'm': .*({message})"):
        read(scan(tmp_path)[0], OPTIONS)


# ------------------------------------------------------------------------------------------------ pictures


@pytest.fixture(scope="module")
def table_mesh():
    return solid_mesh(build("tables", draw("tables", 0, 0)))


def test_a_table_is_the_same_in_every_format(table_mesh, tmp_path):
    pytest.importorskip("pyvista", reason="extra 'data'")
    for kind in ("ply", "obj"):
        table_mesh.export(tmp_path / f"{kind}.{kind}")
    colours = table_mesh.visual.vertex_colors[:, :3] / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4).astype(np.float32)
    part = {"POSITION": table_mesh.vertices.astype(np.float32), "COLOR_0": linear}
    (tmp_path / "glb.glb").write_bytes(glb([part | {"indices": table_mesh.faces.astype(np.uint32).ravel()}]))
    assert detect(tmp_path)[0] == "models"
    found = {s.key: s for s in read_all(scan(tmp_path), OPTIONS)}
    assert list(found) == ["glb", "obj", "ply"]
    expected = pictured(CAMERAS("x"), 2)  # the same solids by ray casting, normalised the same way
    for sequence in found.values():
        both = (sequence.masks >= 128) & (expected.masks >= 128)
        either = (sequence.masks >= 128) | (expected.masks >= 128)
        assert both.sum() / either.sum() > 0.96  # four samples a pixel widen an edge
        assert (sequence.images.int() - found["ply"].images.int()).abs().max() <= 2
        assert sequence.attributes["triangles"] == len(table_mesh.faces)
    assert found["ply"].images[found["ply"].masks == 255].float().std() > 20


def test_glass_covers_by_its_opacity(tmp_path):
    pytest.importorskip("pyvista", reason="extra 'data'")
    box = "v -1 -1 -1\nv 1 -1 -1\nv 1 1 -1\nv -1 1 -1\nv -1 -1 1\nv 1 -1 1\nv 1 1 1\nv -1 1 1\n"
    faces = "".join(f"f {f}\n" for f in ("1 2 3 4", "5 6 7 8", "1 2 6 5", "4 3 7 8", "1 4 8 5", "2 3 7 6"))
    for name, d in (("clear", 0.5), ("solid", 1.0)):
        (tmp_path / f"{name}.obj").write_text(f"mtllib {name}.mtl\n{box}usemtl m\n{faces}")
        (tmp_path / f"{name}.mtl").write_text(f"newmtl m\nKd 0.8 0.8 0.8\nd {d}\n")
    clear, solid = (read(s, OPTIONS) for s in scan(tmp_path))
    inner = solid.masks == 255
    assert abs(clear.masks[inner].float().median() - 255 * 0.75) <= 1.5  # through the front and the back
    assert (clear.images[inner].float().mean() / solid.images[inner].float().mean() - 0.75).abs() < 0.1


def test_another_axis_can_be_up(table_mesh, tmp_path):
    pytest.importorskip("pyvista", reason="extra 'data'")
    lying = table_mesh.copy()
    lying.vertices = lying.vertices[:, [0, 2, 1]] * [1, -1, 1]  # z up: (x, y, z) -> (x, -z, y)
    table_mesh.export(tmp_path / "a.ply")
    (tmp_path / "z").mkdir()
    lying.export(tmp_path / "z" / "a.ply")
    upright, mesh = read_with_mesh(scan(tmp_path)[0], OPTIONS)
    turned, other = read_with_mesh(scan(tmp_path / "z")[0], Options(cameras=CAMERAS, placing=Placing(up="z")))
    assert (upright.masks.int() - turned.masks.int()).abs().float().mean() < 0.5
    np.testing.assert_allclose(mesh.bounds, other.bounds, atol=1e-5)
    assert (
        np.abs(mesh.bounds).max() == pytest.approx(0.9, abs=1e-3) or np.linalg.norm(mesh.vertices, axis=1).max() < 1.21
    )


def test_what_cannot_be_read_does_not_stop_the_others(table_mesh, tmp_path):
    pytest.importorskip("pyvista", reason="extra 'data'")
    table_mesh.export(tmp_path / "a.ply")
    (tmp_path / "b.glb").write_bytes(b"broken")
    table_mesh.export(tmp_path / "c.ply")
    faults: dict[str, str] = {}
    assert [s.key for s in read_all(scan(tmp_path), OPTIONS, faults)] == ["a", "c"]
    assert "b.glb: object 'b': not a" in faults["b"]
    with pytest.raises(ConfigError, match="3D models come without cameras"):
        read(scan(tmp_path)[0], Options())


def test_plain_models_are_told_from_coloured_ones(tmp_path):
    white, _ = glb_parts(tmp_path, glb([quad(), quad()]))
    red, _ = glb_parts(tmp_path, glb([quad(material=0)], [{"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}}]))
    material = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}
    textured, _ = glb_parts(tmp_path, glb([quad(material=0, TEXCOORD_0=UV)], [material], [encoded(TEXELS)]))
    assert (is_coloured(white), is_coloured(red), is_coloured(textured)) == (False, True, True)
