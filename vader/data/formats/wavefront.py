"""Wavefront OBJ models with materials and textures, read strictly from a zip archive or a folder.

Loaders for general use skip what they cannot read; here a broken line or a face that points nowhere is an error that
names it. Normals are ignored (most files have none, see `render.corner_normals`), and so are all material properties
but the diffuse colour, its map and the opacity (`d`, `Tr`; maps of opacity, `map_d`, are not read).

It also reads variants that programs write. Fields may have any blanks between them and comments after them. `mtllib`
may name several libraries. `map_Kd` may have options, of which `-s` and `-o` move the texture. Names may have
backslashes and another case of letters. Colours may follow the coordinates of vertices, from 0 to 1 or to 255.
"""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from ..prepared import DataError
from .shared.images import open_picture
from .shared.model_files import UNREADABLE as UNREADABLE
from .shared.model_files import Files, ZipFiles
from .shared.model_files import FolderFiles as FolderFiles

DEFAULT_COLOUR = (0.7, 0.7, 0.7)  # of faces whose material is defined nowhere
MAX_TEXTURE = 512  # texels per side: the pictures are far smaller
MAX_TRIANGLES = 4_000_000
# options of map_Kd and their number of values; those of -o, -s and -t are one to three
MAP_OPTIONS = {"-blendu": 1, "-blendv": 1, "-boost": 1, "-bm": 1, "-cc": 1, "-clamp": 1, "-imfchan": 1, "-mm": 2}
MAP_OPTIONS |= {"-texres": 1, "-type": 1}


@dataclass(frozen=True)
class Part:
    """The triangles of one material.

    vertices (n, 3) float64; faces (f, 3) int64; colour (3,) in [0, 1], used where there is no
    texture and there are no colours of vertices; uv (n, 2) float64 and texture (h, w, 3 or 4) uint8, both or neither;
    colours (n, 3) in [0, 1] of the vertices; opacity in [0, 1], times the texture's alpha where it has one.
    """

    material: str
    vertices: np.ndarray
    faces: np.ndarray
    colour: np.ndarray
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None
    colours: np.ndarray | None = None
    opacity: float = 1.0


@dataclass(frozen=True)
class Material:
    colour: tuple[float, ...] = DEFAULT_COLOUR
    texture: str | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    opacity: float = 1.0


# ---------------------------------------------------------------------------------------- geometry


@dataclass
class _Lines:
    """What the lines of an OBJ file add up to."""

    vertices: list[tuple[float, ...]] = field(default_factory=list)
    colours: dict[int, tuple[float, ...]] = field(default_factory=dict)  # of those vertices that have some
    texcoords: list[tuple[float, ...]] = field(default_factory=list)
    corners: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # material -> (vertex, texcoord) each
    libraries: list[str] = field(default_factory=list)  # the text after mtllib
    current: str = ""
    triangles: int = 0

    def add(self, keyword: str, rest: str) -> None:
        """Raises ValueError for a line that is not valid."""
        if keyword == "v":
            values = rest.partition("#")[0].split()
            self.vertices.append(_floats(rest, 3))
            if len(values) >= 6:
                self.colours[len(self.vertices) - 1] = _floats(" ".join(values[3:]), 3)
        elif keyword == "vt":
            self.texcoords.append(_floats(rest, 2))
        elif keyword == "f":
            items = rest.partition("#")[0].split()
            polygon = [_corner(item, len(self.vertices), len(self.texcoords)) for item in items]
            self.triangles += max(len(polygon) - 2, 0)
            if self.triangles > MAX_TRIANGLES:
                raise ValueError(f"more than {MAX_TRIANGLES:,} triangles, expected fewer")
            for i in range(1, len(polygon) - 1):
                self.corners.setdefault(self.current, []).extend((polygon[0], polygon[i], polygon[i + 1]))
        elif keyword == "usemtl":
            self.current = rest.strip()
        elif keyword == "mtllib":
            self.libraries.append(rest.strip())


def read_obj(
    archive: zipfile.ZipFile | Files, member: str, where: str, opaque: bool = True
) -> tuple[list[Part], list[str]]:
    """Parts of the OBJ file `member` of a zip archive or folder, and the names of textures that are not there.

    Polygons become triangle fans. A texture replaces the diffuse colour `Kd`; where the texture is
    not there, `Kd` remains. opaque: glass is opaque as well. Raises DataError, beginning with `where`, if a file is
    missing, leads out of the folder or cannot be read, or if the model has no faces or more than MAX_TRIANGLES.
    """
    files = ZipFiles(archive) if isinstance(archive, zipfile.ZipFile) else archive
    folder = posixpath.dirname(member)
    lines, materials = _Lines(), {}
    for number, line in enumerate(_lines_of(files, member, where), 1):
        keyword, rest = _words(line)
        try:
            lines.add(keyword, rest)
        except ValueError as error:
            raise DataError(f"{where}: {member!r} line {number} is not valid OBJ ({error})") from error
        if keyword == "mtllib":
            for name in _libraries(files, folder, rest.strip(), where):
                materials |= _read_mtl(files, name, where)
    if not lines.corners:
        raise DataError(f"{where}: {member!r} has no faces, expected a mesh")
    missing: list[str] = []
    parts = [
        _part(files, folder, name, materials.get(name, Material()), lines, missing, opaque, where)
        for name in lines.corners
    ]
    return parts, missing


def named_files(files: Files, member: str) -> list[str]:
    """Names of libraries and textures that an OBJ file names, whether they are there or not."""
    folder, names = posixpath.dirname(member), []

    def lines(name: str) -> Iterator[tuple[str, str]]:
        try:
            return map(_words, (files.read(name, name) or b"").decode("latin-1").replace("\\\n", " ").splitlines())
        except DataError:
            return iter(())

    for library in [rest for keyword, rest in lines(member) if keyword == "mtllib"]:
        whole = posixpath.join(folder, library.replace("\\", "/"))
        names += list(dict.fromkeys([whole, *(posixpath.join(folder, n.replace("\\", "/")) for n in library.split())]))
    for rest in [rest for name in names for keyword, rest in lines(name) if keyword == "map_Kd"]:
        names.append(posixpath.join(folder, _texture_map(rest)[0].replace("\\", "/")))
    return names


def _lines_of(files: Files, member: str, where: str) -> Iterator[str]:
    yield from _text(files, member, "the OBJ model", where).replace("\\\n", " ").splitlines()


def _words(line: str) -> tuple[str, str]:
    """Keyword and the rest of a line, between which any blanks may be."""
    keyword, *rest = line.strip().split(None, 1)[:2] or [""]
    return keyword, rest[0] if rest else ""


def _part(
    files: Files,
    folder: str,
    name: str,
    material: Material,
    lines: _Lines,
    missing: list[str],
    opaque: bool,
    where: str,
) -> Part:
    unique, faces = np.unique(np.array(lines.corners[name]), axis=0, return_inverse=True)
    points = np.array(lines.vertices)
    part = Part(name, points[unique[:, 0]], faces.reshape(-1, 3), np.array(material.colour))
    if not opaque:
        part = replace(part, opacity=material.opacity)
    if material.texture is not None:
        texture = _read_texture(files, posixpath.join(folder, material.texture), material.colour, where)
        if texture is None:
            missing.append(material.texture)
        elif (unique[:, 1] >= 0).all():
            uv = np.array(lines.texcoords)[unique[:, 1]]
            if (material.scale, material.offset) != ((1.0, 1.0), (0.0, 0.0)):
                uv = uv * material.scale + material.offset
            part = replace(part, uv=uv, texture=texture)
    if part.texture is None and lines.colours:
        largest = max(max(c) for c in lines.colours.values())
        rest = tuple(part.colour * (255 if largest > 1 else 1))
        colours = np.array([lines.colours.get(int(i), rest) for i in unique[:, 0]])
        part = replace(part, colours=np.clip(colours / (255 if largest > 1 else 1), 0, 1))
    return part


def _floats(text: str, count: int) -> tuple[float, ...]:
    text = text.partition("#")[0]
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


# ---------------------------------------------------------------------------------------- materials


def _libraries(files: Files, folder: str, names: str, where: str) -> list[str]:
    """The libraries that a mtllib means: one whose name has blanks, or several."""
    whole = posixpath.join(folder, names.replace("\\", "/"))
    if len(names.split()) == 1 or files.read(whole, where) is not None:
        return [whole]
    return [posixpath.join(folder, name.replace("\\", "/")) for name in names.split()]


def _read_mtl(files: Files, member: str, where: str) -> dict[str, Material]:
    materials: dict[str, Material] = {}
    name = None
    for number, line in enumerate(_text(files, member, "the material library", where).splitlines(), 1):
        keyword, rest = _words(line)
        if keyword == "newmtl":
            name = rest.strip()
            materials[name] = Material()
        elif keyword in ("Kd", "map_Kd", "d", "Tr"):
            try:
                materials[name] = _changed(materials[name], keyword, rest)
            except (KeyError, ValueError) as error:
                raise DataError(f"{where}: {member!r} line {number} is not valid MTL ({error})") from error
    return materials


def _changed(material: Material, keyword: str, rest: str) -> Material:
    if keyword == "Kd":
        return replace(material, colour=_floats(rest, 3))
    if keyword == "map_Kd":
        texture, scale, offset = _texture_map(rest)
        return replace(material, texture=texture, scale=scale, offset=offset)
    (value,) = _floats(rest.replace("-halo", ""), 1)
    return replace(material, opacity=float(np.clip(value if keyword == "d" else 1 - value, 0, 1)))


def _texture_map(text: str) -> tuple[str, tuple[float, float], tuple[float, float]]:
    """File, scale and offset of 'map_Kd -s 2 2 1 -o 0.5 wood grain.png'. Raises ValueError for an option's value."""
    moves = {"-s": [1.0, 1.0], "-o": [0.0, 0.0], "-t": [0.0, 0.0]}
    rest = text.strip()
    while rest.startswith("-"):
        option, *words = rest.split()
        count = MAP_OPTIONS.get(option, 0)
        if option in moves:
            while count < 3 and count < len(words) - 1 and _is_number(words[count]):
                moves[option][count : count + 1] = [float(words[count])]
                count += 1
        elif option not in MAP_OPTIONS:
            break  # a file's name
        for word in (option, *words[:count]):
            rest = rest[len(word) :].lstrip()
    return rest, tuple(moves["-s"][:2]), tuple(moves["-o"][:2])


def _is_number(word: str) -> bool:
    try:
        return bool(np.isfinite(float(word)))
    except ValueError:
        return False


def _read_texture(files: Files, member: str, colour: tuple[float, ...], where: str) -> np.ndarray | None:
    """(h, w, 3) uint8; where the image is transparent the material's colour shows. None if it is not there."""
    data = files.read(member, where)
    if data is None and "\\" in member:
        data = files.read(member.replace("\\", "/"), where)
    if data is None:
        return None
    image = small_texture(data, f"{where}: texture {member!r} is not a readable image")
    ground = Image.new("RGBA", image.size, tuple(round(255 * min(max(c, 0.0), 1.0)) for c in colour))
    return np.asarray(Image.alpha_composite(ground, image).convert("RGB"))


def small_texture(data: bytes, what: str) -> Image.Image:
    """An RGBA image of at most MAX_TEXTURE texels per side. Raises DataError, beginning with `what`."""
    picture = open_picture(data, what, premultiplied=False)
    alpha = np.full(picture.size, 255, np.uint8) if picture.alpha is None else picture.alpha
    image = Image.fromarray(np.dstack([picture.colour, alpha]), "RGBA")
    image.thumbnail((MAX_TEXTURE, MAX_TEXTURE))
    return image


def _text(files: Files, member: str, what: str, where: str) -> str:
    data = files.read(member, where)
    if data is None:
        raise DataError(f"{where}: the {files.what} holds no file {member!r}, expected {what}")
    return data.decode("latin-1")
