"""Packed objects: all views as one lossless WebP sheet, cameras and mesh as compressed arrays.

`views.webp` is a grid of all views, row by row, as RGBA: the object composited on black, and its coverage. An `.xz`
file holds named arrays as safetensors. `mesh.xz` has the triangles of a mesh, in their order, bit for bit:

    vertices (n, 3) float32, colours (n, 4) uint8   each pair once, in the order in which the triangles use them
    corners (3 f,) int32                            0: the next vertex; k: the k-th last of those used so far
"""

from __future__ import annotations

import lzma
import math
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .prepared import DataError

MAX_SIDE = 16383  # of a WebP picture, in pixels
# The arrays are of 32-bit words, which these filters know of; a dictionary of 8 MiB holds any of them whole.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**23, "lc": 0, "lp": 2, "pb": 2}]


def write_sheet(file: Path, pixels: np.ndarray) -> None:
    """Views (v, h, w, 4) uint8 as one lossless picture, as square a grid as their number allows.

    Raises DataError where that is larger than WebP can be.
    """
    v, h, w, _ = pixels.shape
    rows = max(n for n in range(1, math.isqrt(v) + 1) if v % n == 0)
    columns = v // rows
    if max(rows * h, columns * w) > MAX_SIDE:
        raise DataError(f"{file}: {v} views of {w}x{h} pixels make a sheet with a side of more than {MAX_SIDE} pixels")
    sheet = pixels.reshape(rows, columns, h, w, 4).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 4)
    Image.fromarray(sheet).save(file, "WEBP", lossless=True, quality=100, method=6, exact=True)


def read_sheet(file: Path, key: str, views: int, size: tuple[int, int]) -> np.ndarray:
    """The `views` (v, h, w, 4) uint8 of a sheet, of that size (h, w). Raises DataError naming file and object."""
    h, w = size
    try:
        with Image.open(file) as image:
            sheet = np.asarray(image.convert("RGBA"))  # WebP leaves out a coverage that is full everywhere
    except (OSError, SyntaxError, ValueError) as error:  # what pillow raises on broken files
        raise DataError(f"{file}: object {key!r}, sheet of views cannot be decoded ({error})") from error
    rows, columns = sheet.shape[0] // h, sheet.shape[1] // w
    if sheet.shape[:2] != (rows * h, columns * w) or rows * columns != views:
        got = f"{sheet.shape[1]}x{sheet.shape[0]}"
        raise DataError(f"{file}: object {key!r}, sheet is {got} pixels, expected {views} views of {w}x{h}")
    return np.ascontiguousarray(sheet.reshape(rows, h, columns, w, 4).transpose(0, 2, 1, 3, 4)).reshape(views, h, w, 4)


def write_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Named arrays as an .xz file."""
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    file.write_bytes(lzma.compress(content, check=lzma.CHECK_CRC32, filters=FILTERS))


def read_arrays(file: Path, key: str, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """The arrays of these names. Raises DataError naming file and object where they cannot be had."""
    try:
        arrays = load(lzma.decompress(file.read_bytes()))
        return tuple(arrays[name] for name in names)
    except FileNotFoundError as error:
        raise DataError(f"{file}: object {key!r}: file is missing, expected {', '.join(names)} in it") from error
    except (OSError, EOFError, lzma.LZMAError, SafetensorError) as error:
        raise DataError(f"{file}: object {key!r}: cannot be unpacked ({error})") from error
    except KeyError as error:
        raise DataError(f"{file}: object {key!r}: array {error} is missing, expected {', '.join(names)}") from error


def write_mesh(file: Path, vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray) -> None:
    """Triangles (f, 3) of vertices (n, 3), float32, with colours (n, 4) uint8. Vertices that none of them uses go."""
    records = np.concatenate([np.ascontiguousarray(vertices, "<f4").view(np.uint8), colours], axis=1)  # (n, 16) bytes
    distinct, inverse = np.unique(records, axis=0, return_inverse=True)
    used = inverse.reshape(-1)[faces.ravel()]
    first = np.sort(np.unique(used, return_index=True)[1])
    order = np.full(len(distinct), -1)
    order[used[first]] = np.arange(len(first))
    corner = order[used]
    seen = np.concatenate([[0], np.maximum.accumulate(corner)[:-1] + 1])  # vertices used before each corner
    kept = np.ascontiguousarray(distinct[used[first]])
    positions = np.ascontiguousarray(kept[:, :12]).view("<f4")
    write_arrays(file, {"vertices": positions, "colours": kept[:, 12:], "corners": (seen - corner).astype(np.int32)})


def read_mesh(file: Path, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (n, 3) float32, triangles (f, 3) int64 and colours (n, 4) uint8. Raises DataError as `read_arrays`, and
    where a triangle has a vertex that is not there."""
    vertices, colours, back = read_arrays(file, key, ("vertices", "colours", "corners"))
    new = back == 0
    corner = np.cumsum(new) - new - back
    if len(back) % 3 or (len(corner) and not 0 <= corner.min() <= corner.max() < len(vertices)):
        raise DataError(f"{file}: object {key!r}: has no {len(vertices)} vertices that make triangles")
    return vertices, corner.reshape(-1, 3).astype(np.int64), colours
