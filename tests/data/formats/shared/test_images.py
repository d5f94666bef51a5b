"""Pictures of every kind that folders hold, and how they become square."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vader.data.formats.shared.images import (
    ORIENTATION,
    Square,
    is_premultiplied,
    natural,
    on_black,
    open_mask,
    open_picture,
    picture_files,
)
from vader.data.prepared import DataError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
NOISE = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file by its specification (RFC 2083), for kinds that pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_eight_bit_kinds_keep_their_values():
    assert (open_picture(encoded(Image.fromarray(COLOURS)), "a").colour == COLOURS).all()
    grey = open_picture(encoded(Image.fromarray(GREY)), "a")
    assert (grey.colour == GREY[..., None]).all() and grey.alpha is None
    palette = Image.fromarray(COLOURS // 64 * 64).quantize(64)
    assert (open_picture(encoded(palette), "a").colour == np.asarray(palette.convert("RGB"))).all()
    bits = Image.fromarray(GREY > 127)
    assert (open_picture(encoded(bits), "a").colour[..., 0] == (GREY > 127) * 255).all()


def test_palette_and_grey_with_a_transparent_colour_have_alpha():
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    found = open_picture(encoded(image, transparency=0), "a")
    assert found.alpha.tolist() == [[0, 255], [255, 0]] and found.colour[0, 1].tolist() == [200, 100, 50]
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY.T.copy().reshape(6, 8))])
    found = open_picture(encoded(grey_alpha), "a", premultiplied=False)
    assert (found.alpha == GREY.T.reshape(6, 8)).all() and (found.colour[..., 1] == GREY).all()


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 128, 129, 257], [32896, 65279, 65407, 65535]], dtype=np.uint16)
    expected = np.round(levels / 257).astype(int)
    assert (open_picture(encoded(Image.fromarray(levels)), "a").colour[..., 0] == expected).all()
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).astype(">u2").tobytes() for row in levels)
    colour = open_picture(png(4, 2, 16, 2, rows), "a").colour[..., 2].astype(int)
    assert np.abs(colour - expected).max() <= 1  # pillow keeps the high byte of 16-bit colours
    tiff = open_picture(encoded(Image.fromarray(levels), "TIFF"), "a")
    assert (tiff.colour[..., 0] == expected).all()


def test_cmyk_photographs_have_their_colours():
    wide = np.zeros((16, 16, 4), np.uint8)
    wide[:, :8] = (0, 255, 255, 0)  # red ink
    wide[:, 8:] = (255, 255, 0, 0)  # blue ink
    found = open_picture(encoded(Image.fromarray(wide, "CMYK"), "JPEG", quality=95), "a").colour.astype(int)
    assert (np.abs(found[4, 3] - (255, 0, 0)) <= 6).all() and (np.abs(found[4, 12] - (0, 0, 255)) <= 6).all()


@pytest.mark.parametrize(("tag", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_photographs_are_turned_as_exif_says_but_not_away_from_their_cameras(tag, turn):
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    content = encoded(Image.fromarray(COLOURS), exif=exif)
    upright = np.rot90(COLOURS, turn)
    assert (open_picture(content, "a").colour == upright).all()
    assert (open_picture(content, "a", size=(6, 8)).colour == COLOURS).all()  # measured as stored
    if turn % 2:
        assert (open_picture(content, "a", size=(8, 6)).colour == upright).all()
        assert (open_picture(content, "a", size=(80, 60)).colour == upright).all()


def disc(colour, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    alpha = np.round(np.clip(side / 3 - np.hypot(x, y) + 2, 0, 4) * 63.75).astype(np.uint8)
    return np.broadcast_to(np.array(colour, np.uint8), (side, side, 3)).copy(), alpha


@pytest.mark.parametrize("colour", [(220, 180, 90), (60, 40, 20), (255, 255, 255)])
def test_premultiplied_colours_are_found_and_divided(colour):
    straight, alpha = disc(colour)
    product = on_black(straight, alpha)
    for rgb, multiplied in ((straight, False), (product, True)):
        assert is_premultiplied(rgb, alpha) == multiplied
        found = open_picture(encoded(Image.fromarray(np.dstack([rgb, alpha]), "RGBA")), "a")
        composited = on_black(found.colour, found.alpha).astype(int)
        assert np.abs(composited - product).max() <= 1
    forced = open_picture(encoded(Image.fromarray(np.dstack([product, alpha]), "RGBA")), "a", premultiplied=False)
    assert (forced.colour == product).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded"),
        (b"no picture at all", "cannot be decoded"),
        (encoded(Image.fromarray(NOISE))[:3000], "cannot be decoded, expected a whole picture"),
        (encoded(Image.fromarray(NOISE), "JPEG")[:3000], "cannot be decoded"),
        (png(40_000, 25_000, 8, 2, b""), r"too many pixels|40000x25000 pixels"),  # 10^9
        (png(15_000, 9_000, 8, 2, b""), r"15000x9000 pixels, expected at most 120,000,000"),
        (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "picture has mode F, expected grey levels"),
        (encoded(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"), "from 70000 to 70000, expected at most"),
    ],
)
def test_what_is_no_picture_is_named(content, message, tmp_path):
    with pytest.raises(DataError, match=r"^f.png: object 'a': .*" + f"({message})"):
        open_picture(content, "f.png: object 'a'")
    (tmp_path / "f.png").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_picture(tmp_path / "f.png", "f.png")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="^here: file is missing"):
        open_picture(tmp_path / "gone.png", "here")


def test_masks_are_alpha_or_grey_and_take_their_pictures_size():
    assert (open_mask(encoded(Image.fromarray(GREY)), "m", (6, 8)) == GREY).all()
    rgba = np.dstack([COLOURS, GREY])
    assert (open_mask(encoded(Image.fromarray(rgba, "RGBA")), "m", (6, 8)) == GREY).all()
    half = np.zeros((6, 8), np.uint8)
    half[:, 4:] = 255
    big = open_mask(encoded(Image.fromarray(half)), "m", (60, 80))
    assert big.shape == (60, 80) and (big[:, :30] == 0).all() and (big[:, 50:] == 255).all()
    with pytest.raises(DataError, match="^m: mask is 8x6 pixels, expected the shape of its picture, 6x8"):
        open_mask(encoded(Image.fromarray(GREY)), "m", (8, 6))


def test_pictures_are_listed_by_number(tmp_path):
    for name in ("10.png", "9.PNG", "2.jpg", ".3.png", "notes.txt", "1.npy"):
        (tmp_path / name).touch()
    (tmp_path / "5.png").mkdir()
    assert [f.name for f in picture_files(tmp_path)] == ["2.jpg", "9.PNG", "10.png"]
    assert sorted(["b10", "b9", "a", "10", "9"], key=natural) == ["9", "10", "a", "b9", "b10"]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["crop", "pad"]), st.integers(1, 40))
def test_a_pixel_stays_under_its_camera_when_a_picture_becomes_square(height, width, fit, resolution):
    square = Square.of(height, width, fit)
    assert square.side == (max if fit == "pad" else min)(height, width)
    k = np.array([[50.0, 0, 20], [0, 60, 10], [0, 0, 1]])
    new = square.intrinsics(k, square.side)
    image = RNG.integers(1, 256, (height, width), dtype=np.uint8)
    same = square.apply(image, square.side)
    for y, x in ((0, 0), (height - 1, width - 1), (height // 2, width // 2)):
        ray = np.linalg.inv(k) @ (x + 0.5, y + 0.5, 1)
        u, v, _ = new @ ray
        if 0 <= u < square.side and 0 <= v < square.side:
            assert same[int(v), int(u)] == image[y, x]
    assert square.apply(image, resolution).shape == (resolution, resolution)


def test_whole_factors_are_means_of_blocks_and_others_keep_the_mean():
    image = RNG.integers(0, 256, (48, 48, 3), dtype=np.uint8)
    small = Square.of(48, 48, "pad").apply(image, 12)
    assert np.abs(small - image.reshape(12, 4, 12, 4, 3).mean((1, 3))).max() <= 1  # pillow rounds twice
    ramp = np.broadcast_to(np.linspace(0, 255, 48).round().astype(np.uint8), (48, 48))
    odd = Square.of(48, 48, "pad").apply(ramp, 20)
    expected = torch.nn.functional.interpolate(torch.tensor(ramp.copy())[None, None].float(), (20, 20), mode="area")
    assert np.abs(odd - expected[0, 0].numpy()).max() < 4 and abs(odd.mean() - ramp.mean()) < 0.5
    fine = ((np.indices((48, 48)).sum(0) % 2) * 255).astype(np.uint8)
    assert np.abs(Square.of(48, 48, "pad").apply(fine, 20)[2:-2, 2:-2] - 127.5).max() < 40  # no aliasing
