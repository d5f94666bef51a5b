"""Pictures are small, and say so where that costs something."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from vader.report.png import PNG, STEP, figure_png, fine_png, shrink, small_png


def encoded(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def shaded(size: int = 96) -> np.ndarray:
    """A render's kind of picture: smooth colours that cross each other."""
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    return (255 * np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x * y)], -1)).astype(np.uint8)


@given(st.integers(1, 256), st.integers(0, 2**32 - 1))
def test_up_to_256_colours_stay_as_they_are(count, seed):
    random = np.random.default_rng(seed)
    palette = random.integers(0, 256, (count, 3), dtype=np.uint8)
    values = palette[random.integers(0, count, (9, 31))]
    for small in (small_png(encoded(values), 100), small_png(encoded(values), 31, count), fine_png(encoded(values))):
        assert np.array_equal(decoded(small), values)
        assert Image.open(io.BytesIO(small)).mode == "P"


@pytest.mark.parametrize("make", [fine_png, lambda data: small_png(data, 64), lambda data: small_png(data, 64, 16)])
def test_what_is_small_already_stays_to_the_last_byte(make):
    for values in (shaded(), shaded(40), np.full((3, 3, 3), 7, np.uint8)):
        once = make(encoded(values))
        assert make(once) == once


def test_a_shaded_picture_keeps_every_channel_within_half_a_step():
    values = shaded()
    fine = decoded(fine_png(encoded(values)))
    error = np.abs(fine.astype(int) - values).max(axis=(0, 1))
    assert (
        error.max() <= STEP // 2 and np.abs(decoded(small_png(encoded(values), 96)).astype(int) - values).max() > STEP
    )


def test_white_and_black_stay():
    values = shaded()
    values[:10], values[10:20] = 255, 0
    fine = decoded(fine_png(encoded(values)))
    assert (fine[:10] == 255).all() and (fine[10:20] == 0).all()


def test_a_shaded_picture_becomes_smaller_either_way():
    noisy = shaded(256) // 2 + np.random.default_rng(0).integers(0, 3, (256, 256, 3), dtype=np.uint8)
    before, fine, small = len(encoded(noisy)), len(fine_png(encoded(noisy))), len(small_png(encoded(noisy), 256))
    assert small < fine < 0.7 * before


def test_a_wide_picture_is_scaled_and_a_narrow_one_is_not():
    wide = Image.open(io.BytesIO(small_png(encoded(shaded()[:48]), 32)))
    assert wide.size == (32, 16)
    assert Image.open(io.BytesIO(small_png(encoded(shaded()), 96))).size == (96, 96)
    assert Image.open(io.BytesIO(small_png(encoded(shaded()[:1]), 8))).size == (8, 1)


def test_what_is_transparent_becomes_white():
    values = np.zeros((2, 2, 4), np.uint8)
    values[0, 0] = (10, 20, 30, 255)
    assert decoded(small_png(encoded(values), 9)).tolist() == [[[10, 20, 30], [255] * 3], [[255] * 3, [255] * 3]]


def test_a_figure_is_the_same_bytes_every_time():
    def drawn() -> bytes:
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        return figure_png(figure)

    assert drawn() == drawn() and b"matplotlib" not in drawn()


def test_only_pictures_of_a_notebook_are_made_smaller():
    text = new_output("display_data", {"text/plain": "1.5"})
    drawn = new_output("display_data", {PNG: base64.b64encode(encoded(shaded())).decode(), "text/plain": "<Figure>"})
    notebook = new_notebook(cells=[new_markdown_cell("# T"), new_code_cell("f()", outputs=[text, drawn])])
    shrink(notebook, 32)
    outputs = notebook.cells[1].outputs
    assert outputs[0].data == {"text/plain": "1.5"} and outputs[1].data["text/plain"] == "<Figure>"
    assert Image.open(io.BytesIO(base64.b64decode(outputs[1].data[PNG]))).size == (32, 32)
