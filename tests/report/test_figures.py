"""Pictures show in notebooks, and rows of images keep their names."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from IPython.core.formatters import DisplayFormatter

from vader.report.figures import image_rows
from vader.report.png import show_as_png


def test_a_figure_shows_as_png_in_a_shell_without_pyplot():
    shell = SimpleNamespace(display_formatter=DisplayFormatter())
    figure = image_rows({"short": torch.zeros(1, 4, 4, 3), "long": torch.ones(3, 4, 4, 3)}, "title")
    assert [axis.get_ylabel() for axis in figure.axes] == ["short", "long"]
    assert [axis.images[0].get_array().shape[1] for axis in figure.axes] == [4, 12]
    shell.display_formatter.formatters["image/png"].enabled = True
    assert "image/png" not in shell.display_formatter.format(figure)[0]
    show_as_png(shell)
    assert shell.display_formatter.format(figure)[0]["image/png"].startswith(b"\x89PNG")
