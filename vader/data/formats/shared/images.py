"""Any picture as 8-bit colour and coverage, and pictures made square.

A picture becomes `Picture`: straight RGB, and its alpha where it has one. Grey, palette, CMYK and 16-bit files are
converted, 16 bits by value (v / 257, rounded), not by clipping. What cannot be converted without a guess (floating
point, more than MAX_PIXELS, a file that ends too early) is a `DataError` that names file and object.

Orientation: a photograph is turned as its EXIF tag says. With a camera given, pixels are those that the camera was
measured in: as stored, unless only the turned picture has the camera's size.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from ...prepared import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_PIXELS = 120_000_000  # 480 MB as RGBA; the largest cameras have about 100 million
EDGE_PIXELS = 16  # fewer half-transparent pixels say nothing about premultiplication
FITS = ("crop", "pad")
ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True, eq=False)
class Picture:
    """colour (h, w, 3) uint8, not multiplied by alpha; alpha (h, w) uint8, None where the file has none."""

    colour: np.ndarray
    alpha: np.ndarray | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.colour.shape[:2]


# ---------------------------------------------------------------------------------------- files


def picture_files(folder: Path) -> list[Path]:
    """Pictures directly in a folder, in the order of the integers in their names (2 before 10)."""
    files = (f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    return sorted((f for f in files if f.is_file()), key=lambda f: natural(f.name))


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that compares numbers in a name by value."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in pieces]


def open_picture(
    source: Path | bytes, where: str, size: tuple[int, int] | None = None, premultiplied: bool | None = None
) -> Picture:
    """Decode a picture, from a file or its content.

    Args:
        where: what messages begin with: file, object, field.
        size: (height, width) that the camera was measured in, None for a photograph without one.
        premultiplied: whether colours were multiplied by alpha; None looks (see `is_premultiplied`).

    Raises:
        DataError: no such file, not a picture, cut off, too large, or of a kind that has no 8-bit colours.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                _check_pixels(image.size, where)
                image.load()
                image = _upright(image, size)
    except FileNotFoundError as error:
        raise DataError(f"{where}: file is missing, expected a picture") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: too many pixels, expected at most {MAX_PIXELS:,} ({error})") from error
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:  # what pillow raises on broken files
        raise DataError(f"{where}: cannot be decoded, expected a whole picture ({error})") from error
    pixels = _eight_bits(image, where)
    if pixels.shape[2] == 3:
        return Picture(pixels, None)
    colour, alpha = pixels[..., :3], pixels[..., 3]
    if is_premultiplied(colour, alpha) if premultiplied is None else premultiplied:
        colour = np.where(
            alpha[..., None] > 0, np.minimum(255, np.round(255.0 * colour / np.maximum(alpha, 1)[..., None])), 0
        ).astype(np.uint8)
    return Picture(np.ascontiguousarray(colour), np.ascontiguousarray(alpha))


def open_mask(source: Path | bytes, where: str, size: tuple[int, int], nearest: bool = False) -> np.ndarray:
    """Coverage (h, w) uint8 from a mask file: its alpha if that varies, else its grey levels; scaled to `size`.

    nearest: scaled by the nearest pixel, for masks that a threshold makes hard.

    Raises DataError as `open_picture`, and where the mask has another aspect ratio than the picture it is for.
    """
    picture = open_picture(source, where, size, premultiplied=False)
    alpha = picture.alpha
    if alpha is None or (alpha == alpha.flat[0]).all():
        r, g, b = (picture.colour[..., i].astype(np.uint32) for i in range(3))
        alpha = ((r * 299 + g * 587 + b * 114 + 500) // 1000).astype(np.uint8)
    h, w = alpha.shape
    if (h, w) == size:
        return alpha
    if not same_shape((h, w), size):
        raise DataError(f"{where}: mask is {w}x{h} pixels, expected the shape of its picture, {size[1]}x{size[0]}")
    if nearest:
        return np.asarray(Image.fromarray(alpha).resize(size[::-1], Image.Resampling.NEAREST))
    whole = h % size[0] == 0 and w % size[1] == 0
    kind = Image.Resampling.BOX if whole else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(alpha).resize(size[::-1], kind))


def same_shape(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes (h, w) are one picture at two scales, up to the rounding of sides to whole pixels."""
    scale = max(a) / max(b)
    return all(abs(x - scale * y) <= max(1.0, scale) for x, y in zip(a, b, strict=True))


def _check_pixels(size: tuple[int, int], where: str) -> None:
    w, h = size
    if w * h > MAX_PIXELS:
        raise DataError(f"{where}: {w}x{h} pixels, expected at most {MAX_PIXELS:,} in a picture")


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Turned as EXIF says, or left as stored where the pixels that a camera belongs to are the stored ones."""
    if image.getexif().get(ORIENTATION, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    if size is None:
        return turned
    stored, after = ((i.height, i.width) for i in (image, turned))
    return turned if same_shape(after, size) and not same_shape(stored, size) else image


def _eight_bits(image: Image.Image, where: str) -> np.ndarray:
    """(h, w, 3 or 4) uint8."""
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{where}: grey levels from {values.min()} to {values.max()}, expected at most 16 bits")
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if mode in ("F", "LAB", "HSV"):
        raise DataError(f"{where}: picture has mode {mode}, expected grey levels or colours of 8 or 16 bits")
    clear = mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return np.asarray(image.convert("RGBA" if clear else "RGB"))


def is_premultiplied(colour: np.ndarray, alpha: np.ndarray) -> bool:
    """Whether colours (h, w, 3) look multiplied by alpha (h, w).

    Where a colour exceeds its alpha they are not. Otherwise half-transparent pixels are compared with the nearest
    opaque ones: divided by alpha, premultiplied colours come closer to them.
    """
    if (colour.max(-1) > alpha.astype(np.int16) + 1).any():
        return False
    edge, solid = (alpha > 8) & (alpha < 247), alpha >= 247
    if edge.sum() < EDGE_PIXELS or not solid.any():
        return False
    y, x = ndimage.distance_transform_edt(~solid, return_distances=False, return_indices=True)[:, edge]
    near, own = colour[y, x].astype(float), colour[edge].astype(float)
    divided = 255 * own / alpha[edge][:, None]
    return bool(np.abs(divided - near).mean() < np.abs(own - near).mean())


# ---------------------------------------------------------------------------------------- pixels


def on_black(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) times coverage (h, w), uint8, rounded."""
    product = colour.astype(np.uint16) * alpha[..., None]
    return ((product + 127) // 255).astype(np.uint8)


@dataclass(frozen=True)
class Square:
    """How a picture of (height, width) becomes square: the side, and where its left and top edge lie in it.

    "crop" keeps the central square, "pad" adds black on both sides of the shorter side. Offsets are whole pixels: an
    odd rest goes to the right or to the bottom.
    """

    side: int
    left: int  # x of the square's left edge in the picture, negative where it is padded
    top: int

    @staticmethod
    def of(height: int, width: int, fit: str) -> Square:
        side = (min if fit == "crop" else max)(height, width)
        return Square(side, int((width - side) / 2), int((height - side) / 2))

    def apply(self, pixels: np.ndarray, resolution: int) -> np.ndarray:
        """Pixels (h, w) or (h, w, 3) uint8 -> (resolution, resolution, ...)."""
        h, w = pixels.shape[:2]
        out = np.zeros((self.side, self.side, *pixels.shape[2:]), np.uint8)
        x0, y0 = max(self.left, 0), max(self.top, 0)
        part = pixels[y0 : min(self.top + self.side, h), x0 : min(self.left + self.side, w)]
        out[y0 - self.top : y0 - self.top + part.shape[0], x0 - self.left : x0 - self.left + part.shape[1]] = part
        return resized(out, resolution)

    def intrinsics(self, k: np.ndarray, resolution: int) -> np.ndarray:
        """Intrinsics (3, 3) of the picture -> those of the square, whose top-left corner is (0, 0) as well."""
        scale = resolution / self.side
        return np.array([[scale, 0, -self.left * scale], [0, scale, -self.top * scale], [0, 0, 1]]) @ k


def resized(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """A square picture at another resolution, antialiased: the mean of blocks of pixels where those are whole, else
    pillow's Hamming filter, which is as wide as the new pixels."""
    side = pixels.shape[0]
    if side == resolution:
        return pixels
    kind = Image.Resampling.BOX if side % resolution == 0 else Image.Resampling.HAMMING
    return np.asarray(Image.fromarray(pixels).resize((resolution, resolution), kind))
