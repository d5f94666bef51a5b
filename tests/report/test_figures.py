"""Pictures show in notebooks, and rows of images keep their names."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from IPython.core.formatters import DisplayFormatter

from vader.data.hull_check import HullCheck
from vader.data.sequence import Sequence
from vader.rendering.cameras import Cameras, look_at
from vader.report.figures import hull_rows, image_rows
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


def test_cameras_and_hulls_are_drawn_where_they_are():
    eyes = torch.tensor([[0.0, 0.0, 3.0], [3.0, 0.0, 0.5]])
    k = torch.tensor([[20.0, 0, 8], [0, 20.0, 8], [0, 0, 1]]).expand(2, 3, 3)
    sequence = Sequence(
        "mug", torch.zeros(2, 16, 16, 3).byte(), torch.zeros(2, 16, 16).byte(), Cameras(look_at(eyes), k, 16, 16)
    )
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[:, 4:12] = True
    check = HullCheck("mug", [1], masks, masks & (torch.arange(16) < 8), None)
    figure = hull_rows([(sequence, check)], "title")
    room, frame = figure.axes
    assert room.get_title() == "mug\nhull IoU 0.500" and frame.get_title() == "view 1"
    apexes = [np.stack(line.get_data_3d())[:, 5] for line in room.lines[:2]]  # (z, x, y) of the centres
    assert all(abs(a - eye[[2, 0, 1]].numpy()).max() < 1e-6 for a, eye in zip(apexes, eyes, strict=True))
    colours = frame.images[0].get_array()
    assert colours[6, 2].argmax() == 1 and colours[6, 12].argmax() == 0 and colours[0].max() == 0
