"""Wavefront OBJ models with materials and textures, read strictly from a zip archive.

Loaders for general use skip what they cannot read; here a missing file, a broken line or a face
that points nowhere is an error that names it. Normals are ignored (most files have none, see
`mesh_render.corner_normals`), and so are all material properties but the diffuse colour and its map.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..prepared import DataError

DEFAULT_COLOUR = (0.7, 0.7, 0.7)  # of faces whose material is defined nowhere
MAX_TEXTURE = 512  # texels per side: the pictures are far smaller
UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError)  # by zipfile


@dataclass(frozen=True)
class Part:
    """The triangles of one material.

    vertices (n, 3) float64; faces (f, 3) int64; colour (3,) in [0, 1], used where there is no
    texture; uv (n, 2) float64 and texture (h, w, 3) uint8, both or neither.
    """

    material: str
    vertices: np.ndarray
    faces: np.ndarray
    colour: np.ndarray
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None


def read_obj(archive: zipfile.ZipFile, member: str, where: str) -> tuple[list[Part], list[str]]:
    """Parts of the OBJ file `member` of a zip archive, and the names of textures the archive does not hold.

    Polygons become triangle fans. A texture replaces the diffuse colour `Kd`; where the texture is
    not there, `Kd` remains. Raises DataError, beginning with `where`, if a file is missing or cannot
    be read or the model has no faces.
    """
    folder = posixpath.dirname(member)
    vertices: list[tuple[float, ...]] = []
    texcoords: list[tuple[float, ...]] = []
    materials: dict[str, tuple[tuple[float, ...], str | None]] = {}
    corners: dict[str, list[tuple[int, int]]] = {}  # material -> (vertex, texcoord) of each triangle corner
    current = ""
    lines = _text(archive, member, "the OBJ model", where).replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines, 1):
        keyword, _, rest = line.strip().partition(" ")
        try:
            if keyword == "v":
                vertices.append(_floats(rest, 3))
            elif keyword == "vt":
                texcoords.append(_floats(rest, 2))
            elif keyword == "f":
                polygon = [_corner(item, len(vertices), len(texcoords)) for item in rest.split()]
                for i in range(1, len(polygon) - 1):
                    corners.setdefault(current, []).extend((polygon[0], polygon[i], polygon[i + 1]))
        except ValueError as error:
            raise DataError(f"{where}: {member!r} line {number} is not valid OBJ ({error})") from error
        if keyword == "usemtl":
            current = rest.strip()
        elif keyword == "mtllib":
            materials |= _read_mtl(archive, posixpath.join(folder, rest.strip()), where)
    if not corners:
        raise DataError(f"{where}: {member!r} has no faces, expected a mesh")
    points, uvs = np.array(vertices), np.array(texcoords)
    parts, missing = [], []
    for name, indices in corners.items():
        unique, faces = np.unique(np.array(indices), axis=0, return_inverse=True)
        colour, image = materials.get(name, (DEFAULT_COLOUR, None))
        part = Part(name, points[unique[:, 0]], faces.reshape(-1, 3), np.array(colour))
        if image is not None:
            texture = _read_texture(archive, posixpath.join(folder, image), colour, where)
            if texture is None:
                missing.append(image)
            elif (unique[:, 1] >= 0).all():
                part = replace(part, uv=uvs[unique[:, 1]], texture=texture)
        parts.append(part)
    return parts, missing


def _floats(text: str, count: int) -> tuple[float, ...]:
    values = tuple(float(value) for value in text.split()[:count])
    if len(values) < count or not np.isfinite(values).all():
        raise ValueError(f"{text.strip()!r}, expected {count} finite numbers")
    return values


def _corner(item: str, num_vertices: int, num_texcoords: int) -> tuple[int, int]:
    """'12/7/3' -> zero-based (vertex, texture coordinate or -1); negative indices count from the end."""

    def index(field: str, count: int) -> int:
        value = int(field)
        value = value - 1 if value > 0 else count + value
        if not 0 <= value < count:
            raise ValueError(f"corner {item!r} points outside the {count} entries read so far")
        return value

    vertex, texcoord, *_ = *item.split("/"), ""
    return index(vertex, num_vertices), index(texcoord, num_texcoords) if texcoord else -1


def _read_mtl(archive: zipfile.ZipFile, member: str, where: str) -> dict[str, tuple[tuple[float, ...], str | None]]:
    """Material name -> (diffuse colour, texture file or None)."""
    materials, name = {}, None
    for number, line in enumerate(_text(archive, member, "the material library", where).splitlines(), 1):
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "newmtl":
            name = rest.strip()
            materials[name] = (DEFAULT_COLOUR, None)
        elif keyword in ("Kd", "map_Kd"):
            try:
                colour, texture = materials[name]
                materials[name] = (_floats(rest, 3), texture) if keyword == "Kd" else (colour, rest.strip())
            except (KeyError, ValueError) as error:
                raise DataError(f"{where}: {member!r} line {number} is not valid MTL ({error})") from error
    return materials


def _read_texture(archive: zipfile.ZipFile, member: str, colour: tuple[float, ...], where: str) -> np.ndarray | None:
    """(h, w, 3) uint8; where the image is transparent the material's colour shows. None if it is not in the archive."""
    data = _bytes(archive, member, where)
    if data is None:
        return None
    try:
        image = Image.open(io.BytesIO(data)).convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:  # what pillow raises on broken files
        raise DataError(f"{where}: texture {member!r} is not a readable image ({error})") from error
    image.thumbnail((MAX_TEXTURE, MAX_TEXTURE))
    ground = Image.new("RGBA", image.size, tuple(round(255 * min(max(c, 0.0), 1.0)) for c in colour))
    return np.asarray(Image.alpha_composite(ground, image).convert("RGB"))


def _text(archive: zipfile.ZipFile, member: str, what: str, where: str) -> str:
    data = _bytes(archive, member, where)
    if data is None:
        raise DataError(f"{where}: the catalogue holds no file {member!r}, expected {what}")
    return data.decode("latin-1")


def _bytes(archive: zipfile.ZipFile, member: str, where: str) -> bytes | None:
    """Content of a member, None if there is none of that name."""
    try:
        return archive.read(member)
    except KeyError:
        return None
    except UNREADABLE as error:
        raise DataError(f"{where}: {member!r} cannot be unpacked ({error})") from error
