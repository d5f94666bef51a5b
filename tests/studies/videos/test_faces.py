"""The rows about faces: of which frames, by which boxes, and that they are rows of a report."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from vader.data import SequenceSet, Video
from vader.data.sets.people import FaceTruth
from vader.report.schema import check_row
from vader.settings.checks import ConfigError
from vader.settings.profiles import experiment
from vader.studies.videos import faces

FRAMES, HELD = 12, 8


@pytest.fixture
def heads(monkeypatch) -> tuple[SimpleNamespace, SequenceSet]:
    """Videos of twelve people whose mouths are dark where they are open, and a model that shows them half as dark."""
    generator = torch.Generator().manual_seed(0)
    jaws = torch.rand(12, FRAMES, generator=generator)
    jaws = torch.where(jaws < 0.5, 0.0, 0.6)
    videos = []
    for k, jaw in enumerate(jaws):
        frames = torch.full((FRAMES, 32, 32, 3), 150 + 5 * k, dtype=torch.uint8)
        frames[:, 18:22, 12:20] -= (200 * jaw).to(torch.uint8)[:, None, None, None]
        videos.append(Video(f"person-{k:06d}", frames, torch.full((FRAMES, 32, 32), 255).byte(), FRAMES - HELD))
    data = SequenceSet("people_heads", "0" * 64, tuple(videos), FRAMES - HELD, HELD, None, "1" * 64)

    def animate(volume, frames):
        shown = frames.float() / 255
        return SimpleNamespace(colour=0.48 * (shown + shown.amax((1, 2, 3), keepdim=True)))

    config = experiment("laptop", "people_heads")
    model = SimpleNamespace(
        config=config, device="cpu", run=SimpleNamespace(digest="d" * 64), volume=lambda key: None, animate=animate
    )
    boxes = torch.tensor([[8.0, 8, 24, 24]]).repeat(FRAMES, 1)
    boxes[: FRAMES - HELD] = torch.nan  # of frames that are not held out none is looked at
    monkeypatch.setattr(faces.people, "face_truth", lambda config, index: FaceTruth(boxes, jaws[index]))
    monkeypatch.setattr(faces, "LPIPS", lambda network: lambda one, other: (one - other).abs().mean((1, 2, 3)))
    return model, data


def test_faces_are_scored_on_held_out_frames_and_told_as_rows(heads):
    model, data = heads
    found = faces.measured(model, data)
    rows = {(row["variant"], row["metric"]): row for row in faces.rows(found)}
    assert list(rows) == [
        (faces.FACE, "psnr"),
        (faces.FACE, "lpips"),
        (faces.MOUTHS, "attribute_accuracy"),
        (faces.CEILING, "attribute_accuracy"),
    ]
    for row in rows.values():
        check_row("row", row | {"system": "ours", "dataset": "people_heads", "source": "measured", "resolution": 64})
    assert rows[faces.FACE, "psnr"]["n"] == 12 and rows[faces.FACE, "psnr"]["value"] < 40
    assert rows[faces.CEILING, "attribute_accuracy"]["value"] == 1 == rows[faces.MOUTHS, "attribute_accuracy"]["value"]
    assert rows[faces.CEILING, "attribute_accuracy"]["n"] == 12 * HELD
    model.animate = lambda volume, frames: SimpleNamespace(colour=torch.full(frames.shape, 0.6))
    blind = dict(faces.measured(model, data))
    assert blind[faces.MOUTHS, "attribute_accuracy"].accuracy <= 0.6
    assert blind[faces.CEILING, "attribute_accuracy"].accuracy == 1


def test_sets_whose_faces_are_not_known_have_no_rows(heads):
    model, data = heads
    model.config = experiment("laptop", "puppets")
    assert list(faces.rows(faces.measured(model, data))) == []
    with pytest.raises(ConfigError, match="data is puppets, expected people_heads"):
        faces.measure_and_write(model.config, data)


def test_what_was_measured_is_kept_with_the_run_that_it_is_of(heads, tmp_path, monkeypatch):
    model, data = heads
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path))
    monkeypatch.setattr(faces, "load_animator", lambda *_: model)
    found = faces.measure_and_write(model.config, data)
    kept = json.loads((tmp_path / "faces-people_heads-laptop.json").read_text())
    assert kept["rows"] == json.loads(json.dumps(found)) and kept["run"] == "d" * 64
    assert [line.split(":")[0] for line in faces.lines(found)] == [f"{r['variant']}, {r['metric']}" for r in found]
