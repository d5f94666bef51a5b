"""Sweet Home 3D furniture catalogues: where they are, what they list, and under which licence.

A catalogue (`*.sh3f`) is a zip archive that holds OBJ models and a Java properties file with one
numbered block per model:

    id#6=Scopia#ext_chair       name#6=Chair          category#6=Exterior     tags#6=Seat, Deck, Patio
    model#6=/scopia/ext_chair/ext_chair.obj           width#6=100.0  depth#6=76.4  height#6=73.4   (cm)
    modelRotation#6=0 0 1 0 1 0 -1 0 0                creator#6=Scopia

Debian's package `sweethome3d-furniture` installs five of them, 820 models in all.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import posixpath
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..prepared import DataError, data_root
from .wavefront import UNREADABLE

INSTALLED = Path("/usr/share/sweethome3d/furniture")
VARIABLE = "VADER_FURNITURE"
PROPERTIES = "PluginFurnitureCatalog.properties"
HOW_TO_GET = (
    "Get the models from Debian or Ubuntu: 'apt-get install sweethome3d-furniture' as root, or "
    "'apt-get download sweethome3d-furniture' as anybody, and pass the .deb file as the source (or in $"
    f"{VARIABLE}). A folder of .sh3f catalogues, or one catalogue, will do as well."
)


class CatalogueNotFound(DataError):
    """There is no furniture where it was looked for."""


@dataclass(frozen=True)
class Model:
    """One catalogue entry. size: width (x), height (y), depth (z) in cm; rotation (3, 3) row by row."""

    id: str
    name: str
    category: str
    creator: str
    licence: str
    catalogue: Path
    member: str  # the OBJ file in the catalogue
    size: tuple[float, float, float]
    rotation: tuple[float, ...]

    @property
    def where(self) -> str:
        """For messages: catalogue file and entry."""
        return f"{self.catalogue}: entry {self.id!r} ({self.name})"


@dataclass(frozen=True)
class Catalogue:
    """A catalogue file: its identity, and the raw fields of each entry (field name -> value)."""

    file: Path
    id: str
    version: str
    licence: str
    entries: tuple[dict[str, str], ...]

    def model(self, entry: dict[str, str]) -> Model:
        """The entry's fields, checked. Raises DataError naming catalogue, entry and field."""
        where = f"{self.file}: entry {entry.get('id')!r}"

        def field(name: str) -> str:
            if not entry.get(name):
                raise DataError(f"{where}: field {name!r} is missing or empty")
            return entry[name]

        def numbers(name: str, text: str, count: int) -> tuple[float, ...]:
            try:
                values = tuple(float(v) for v in text.split())
            except ValueError:
                values = ()
            if len(values) != count or not all(map(math.isfinite, values)):
                raise DataError(f"{where}: field {name!r} is {text!r}, expected {count} finite number(s)")
            return values

        size = tuple(numbers(name, field(name), 1)[0] for name in ("width", "height", "depth"))
        if min(size) <= 0:
            raise DataError(f"{where}: width, height and depth are {size}, expected positive centimetres")
        rotation = numbers("modelRotation", entry.get("modelRotation") or "1 0 0 0 1 0 0 0 1", 9)
        matrix = np.reshape(rotation, (3, 3))
        if not np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-2) or np.linalg.det(matrix) < 0:
            raise DataError(f"{where}: field 'modelRotation' is {entry['modelRotation']!r}, expected a rotation matrix")
        member = field("model").lstrip("/")
        if not member.lower().endswith(".obj"):
            raise DataError(f"{where}: field 'model' is {member!r}, expected a Wavefront .obj file")
        return Model(
            field("id"), field("name"), field("category"), entry.get("creator") or "unknown",
            entry.get("license") or self.licence, self.file, member, size, rotation,
        )  # fmt: skip

    def check_members(self, models: list[Model]) -> None:
        """Raise DataError if the file of one of the models is gone."""
        with open_catalogue(self.file) as archive:
            members = set(archive.namelist())
        for model in models:
            if model.member not in members:
                raise DataError(f"{model.where}: the model file {model.member!r} is gone, expected it in the catalogue")

    def licence_file(self, model: Model) -> tuple[str | None, str | None]:
        """(file, web page of the original) that the model's own folder gives as its licence, where there is one."""
        with open_catalogue(self.file) as archive:
            folder = posixpath.dirname(model.member) + "/"
            for name in sorted(archive.namelist()):
                if name.startswith(folder) and "license" in name.lower():
                    page = re.search(r"https?://\S*?/blends/view/\d+", archive.read(name).decode("utf-8", "replace"))
                    return name, page and page[0]
        return None, None


def find_catalogues(source: str | Path | None = None) -> list[Path]:
    """The catalogue files of `source`: a folder of .sh3f files, one such file, or the .deb package.

    Without `source`: of $VADER_FURNITURE, or else of the installed package. Raises CatalogueNotFound
    saying where it looked and how to get the models.
    """
    given = source if source is not None else os.environ.get(VARIABLE)
    place = Path(given or INSTALLED).expanduser()
    if place.is_dir():
        files = sorted(place.glob("*.sh3f"))
        if not files:
            raise CatalogueNotFound(f"{place}: the folder holds no furniture catalogue (*.sh3f). {HOW_TO_GET}")
        return files
    if not place.is_file():
        asked = "as asked for" if source is not None else f"${VARIABLE}" if given else "where the package puts them"
        raise CatalogueNotFound(f"{place}: no furniture catalogues there ({asked}). {HOW_TO_GET}")
    if place.suffix == ".deb":
        return _unpack_package(place)
    return [place]


def read_catalogues(source: str | Path | None = None) -> list[Catalogue]:
    """All catalogues of `source` (see `find_catalogues`). Raises DataError for a broken one or an id in two of them."""
    catalogues = [_read_catalogue(file) for file in find_catalogues(source)]
    seen: dict[str, Path] = {}
    for catalogue in catalogues:
        for entry in catalogue.entries:
            other = seen.setdefault(entry["id"], catalogue.file)
            if other != catalogue.file:
                raise DataError(f"{catalogue.file}: entry {entry['id']!r} is in {other} as well, expected unique ids")
    return catalogues


def open_catalogue(file: Path) -> zipfile.ZipFile:
    """The archive. Raises DataError if it is missing or no zip file."""
    try:
        return zipfile.ZipFile(file)
    except UNREADABLE as error:
        raise DataError(f"{file}: not a readable furniture catalogue, expected a zip archive ({error})") from error


def _read_catalogue(file: Path) -> Catalogue:
    with open_catalogue(file) as archive:
        try:
            text = archive.read(PROPERTIES).decode("latin-1")
        except KeyError:
            raise DataError(f"{file}: the archive holds no {PROPERTIES}, expected a furniture catalogue") from None
        except UNREADABLE as error:
            raise DataError(f"{file}: {PROPERTIES} cannot be unpacked ({error})") from error
    fields = parse_properties(text)
    entries: dict[int, dict[str, str]] = {}
    for key, value in fields.items():
        name, _, number = key.partition("#")
        if number.isdecimal():
            entries.setdefault(int(number), {})[name] = value
    for number, entry in entries.items():
        if not entry.get("id"):
            raise DataError(f"{file}: {PROPERTIES}: entry number {number} has no field 'id'")
    return Catalogue(
        file,
        fields.get("id", file.stem),
        fields.get("version", "unknown"),
        fields.get("license", "unknown"),
        tuple(entries[number] for number in sorted(entries)),
    )


def parse_properties(text: str) -> dict[str, str]:
    """A Java properties file: comments, continued lines, '=', ':' or blank as separator, backslash escapes."""

    def character(match: re.Match) -> str:
        code, letter = match.groups()
        return chr(int(code, 16)) if code else {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}.get(letter, letter)

    def unescape(value: str) -> str:
        return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", character, value)

    values, pending = {}, ""
    for line in text.splitlines():
        line = line.lstrip(" \t\f")
        if not pending and line[:1] in ("#", "!", ""):
            continue
        line = pending + line
        if (len(line) - len(line.rstrip("\\"))) % 2:  # an odd number of backslashes continues the line
            pending = line[:-1]
            continue
        pending = ""
        key, value = re.fullmatch(r"((?:\\.|[^\\=: \t\f])*)[ \t\f]*[=:]?[ \t\f]*(.*)", line).groups()
        values[unescape(key)] = unescape(value).strip()
    return values


def _unpack_package(deb: Path) -> list[Path]:
    """Catalogues of a Debian package (an `ar` archive with a tar file), unpacked once below `data_root()`."""
    data = deb.read_bytes()
    folder = data_root() / f"{deb.stem}-{hashlib.sha256(data).hexdigest()[:12]}"
    if not folder.is_dir():
        payload = _ar_member(data, "data.tar", deb)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
        except OSError as error:
            raise DataError(f"{folder}: the package's catalogues cannot be unpacked there ({error})") from error
        try:
            with tarfile.open(fileobj=io.BytesIO(payload)) as archive:
                for member in archive:
                    if member.isfile() and member.name.endswith(".sh3f"):
                        (partial / posixpath.basename(member.name)).write_bytes(archive.extractfile(member).read())
            partial.rename(folder)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise DataError(f"{deb}: the package's data.tar cannot be read ({error})") from error
        except OSError as error:
            if not folder.is_dir():  # otherwise another process was first
                raise DataError(f"{folder}: the package's catalogues cannot be unpacked there ({error})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    files = sorted(folder.glob("*.sh3f"))
    if not files:
        raise CatalogueNotFound(f"{deb}: the package holds no furniture catalogue (*.sh3f). {HOW_TO_GET}")
    return files


def _ar_member(data: bytes, name: str, file: Path) -> bytes:
    """Content of the first member of an `ar` archive whose name begins with `name`."""
    position = 8
    while data[:8] == b"!<arch>\n" and position + 60 <= len(data):
        header = data[position : position + 60]
        size = header[48:58].decode("ascii", "replace").strip()
        if not size.isdecimal():
            break
        if header[:16].decode("ascii", "replace").startswith(name):
            return data[position + 60 : position + 60 + int(size)]
        position += 60 + int(size) + int(size) % 2
    raise DataError(f"{file}: not a Debian package, expected an ar archive with {name} in it")
