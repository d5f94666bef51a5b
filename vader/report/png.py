"""Small PNG files: few colours, and no more pixels than a page shows."""

from __future__ import annotations

import base64
import io
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from nbformat import NotebookNode

PNG = "image/png"
COLOURS = 256  # the most that PNG holds as a palette
SAVED_AS = "vader_saved_as"  # attribute of a figure that a report saved: the file's name
STEP = 4  # of 256, between neighbouring values of a channel; half of it is invisible even where colours shade


def figure_png(figure: Figure, dpi: int = 100, **options: Any) -> bytes:
    """A matplotlib figure as PNG (`fine_png`). No date or version is in it: the same figure is the same bytes.

    options: those of `savefig`.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None}, **options)
    return fine_png(file.getvalue())


def fine_png(picture: bytes | Image.Image) -> bytes:
    """A picture (a file's bytes, or decoded) as PNG that looks the same, on white.

    It has 256 colours where 98 % of all values then stay within STEP of what they were, as those of curves and text
    do. Otherwise, as with shaded objects, each channel keeps every STEP-th value.
    """
    image = _on_white(picture)
    values, few = np.asarray(image), _few_colours(image)
    errors = np.abs(np.asarray(few.convert("RGB")).astype(int) - values)
    if np.percentile(errors, 98) <= STEP:
        return _encoded(few)
    stepped = (values.astype(int) + STEP // 2) // STEP * STEP
    return _encoded(Image.fromarray(np.where(stepped > 255, 255, stepped).astype(np.uint8)))


def small_png(picture: bytes | Image.Image, max_width: int, colours: int = COLOURS) -> bytes:
    """A picture at most `max_width` pixels wide, with few colours. What is small already stays as it is."""
    image = _on_white(picture)
    if image.width > max_width:
        height = max(1, round(image.height * max_width / image.width))
        image = image.resize((max_width, height), Image.Resampling.LANCZOS)
    return _encoded(_few_colours(image, colours))


def shrink(notebook: NotebookNode, max_width: int, colours: int = COLOURS) -> None:
    """Make the pictures among a notebook's outputs small (`small_png`), in place."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if PNG in output.get("data", {}):
                picture = small_png(base64.b64decode(output.data[PNG]), max_width, colours)
                output.data[PNG] = base64.b64encode(picture).decode("ascii")


def _on_white(picture: bytes | Image.Image) -> Image.Image:
    image = picture if isinstance(picture, Image.Image) else Image.open(io.BytesIO(picture))
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _few_colours(image: Image.Image, colours: int = COLOURS) -> Image.Image:
    """A palette of the picture's own colours; where there are more, of some that cover them, moved to their means.

    With 256 of them renders change by 1/255 in the mean and by 1/8 in the worst pixel.
    """
    if image.getcolors(colours) is None:
        image = image.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=1).convert("RGB")
    pixels = np.asarray(image).reshape(-1, 3)  # not `quantize`, which may take a near colour for one
    palette, chosen = np.unique(pixels, axis=0, return_inverse=True)
    exact = Image.fromarray(chosen.reshape(image.height, image.width).astype(np.uint8))
    exact.putpalette(palette.tobytes())
    return exact


def _encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def show_as_png(shell: Any) -> None:
    """Let an IPython shell show every matplotlib `Figure` as PNG; by itself it does so for those of pyplot only.

    Of a figure that a report saved, the output's metadata name the file.
    """

    def png(figure: Figure) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
        return buffer.getvalue(), ({"file": getattr(figure, SAVED_AS)} if hasattr(figure, SAVED_AS) else {})

    shell.display_formatter.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", png)


if "IPython" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()) is not None:
    show_as_png(_shell)
