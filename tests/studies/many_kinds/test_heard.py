"""What limits how well a caption is heard, on a painter that draws exactly what it is told: red or blue balls."""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch

from tests.tiny import balls, tiny_experiment
from tests.trained import ENCODER, WIDTH
from vader.commands import study
from vader.diffusion.sampling import from_the_middle
from vader.evaluation import pictures
from vader.evaluation.metrics.features import Features
from vader.report.schema import check_row
from vader.settings.checks import ConfigError
from vader.studies.many_kinds import heard, limits

CONFIG = tiny_experiment(
    data=dict(resolution=24), text=ENCODER, unet=dict(context_dim=WIDTH, cross_attention_resolutions=(4,)),
    evaluation=dict(views=2, real_views=2),
)  # fmt: skip
PAINT = {"fire": (0.9, 0.1, 0.1), "water": (0.1, 0.1, 0.9)}
COLOUR = {"fire": "red", "water": "blue"}
REAL, HALF = heard.REAL, "training objects, latents denoised from half way"
PARTS = [
    *REAL, "training objects, reconstructed", HALF, f"{HALF} with a caption of another category",
    "samples of training captions", "samples of held-out captions", "samples of held-out categories alone",
    "samples of held-out captions with another category", heard.OLD,
]  # fmt: skip


def painted(count: int = 10, heldout: int = 6):
    """Balls of two categories, in their colours, in no order that a number tells."""
    data, sequences = balls(CONFIG, count, heldout), []
    for index, item in enumerate(data):
        kind = "fire" if index % 3 else "water"
        images = (item.alphas(slice(None))[..., None] * torch.tensor(PAINT[kind]) * 255).round().to(torch.uint8)
        caption = f"a {COLOUR[kind]} ball {index}, {kind}"
        sequences.append(dataclasses.replace(item, images=images, caption=caption, attributes={"category": kind}))
    return dataclasses.replace(data, sequences=tuple(sequences))


class Painter:
    """In the place of `Models`: volumes that hold a ball, in the colour of the category that the caption names."""

    def __init__(self, config=CONFIG, data=None, deaf=False):
        self.config, self.data, self.deaf = config, data or painted(), deaf
        self.device, self.runs = torch.device("cpu"), (types.SimpleNamespace(digest="a"),)
        kinds = [item.attributes.get("category") for item in self.data.split("train")]
        self.kinds, self.asked = kinds, []
        embedding = types.SimpleNamespace(all=lambda: torch.arange(len(kinds)).float()[:, None])
        self.autodecoder = types.SimpleNamespace(decoder=types.SimpleNamespace(g1=lambda x: x), embedding=embedding)

    def volumes(self, kinds):
        axis = torch.linspace(-1, 1, 16)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        found = torch.zeros(len(kinds), 4, 16, 16, 16)
        found[:, 0] = 60.0 * (x**2 + y**2 + z**2 < 0.4)
        for volume, kind in zip(found, kinds, strict=True):
            volume[1:] = torch.tensor(PAINT[kind])[:, None, None, None]
        return found

    def reconstruct(self, objects):
        return self.volumes([self.kinds[index] for index in objects])

    def ours(self, captions, guidance, sampler=None, start=None):
        self.asked.append((list(captions), guidance, sampler, start))
        said = [caption.rpartition(" ")[2] for caption in captions]
        return lambda indices, seed: self.volumes(["fire" if self.deaf else said[i % len(said)] for i in indices])


@pytest.fixture
def mean_colours(monkeypatch):
    """Features that are the mean colour of a picture: what a network would have to find."""

    def extract(images, network="efficientnet-lite0", **_):
        values = images.float() / (1 if images.is_floating_point() else 255)
        ids = torch.arange(images.shape[0]).repeat_interleave(images.shape[1])
        return Features(values.mean((2, 3)).flatten(0, 1), ids, network, tuple(images.shape[2:4]), (0.0, 0.0, 0.0))

    for module in (heard, pictures):
        monkeypatch.setattr(module, "extract", extract)


def test_a_painter_that_hears_all_is_read_rightly_in_each_part(mean_colours):
    painter = Painter()
    found = heard.measured(painter, wanted=6)
    assert list(found) == PARTS and all(part.keys() == {"category", "colour"} for part in found.values())
    categories = {part: scores["category"].value for part, scores in found.items()}
    wrong = {PARTS[4], heard.OLD}  # told another category, it draws that
    assert categories == {part: 0.0 if part in wrong else 1.0 for part in PARTS}
    assert found["samples of held-out captions"]["colour"].value == 1
    assert found["samples of held-out captions with another category"]["colour"].value == 0
    assert all(part["category"].n == 6 and 0 < part["category"].chance < 1 for part in found.values())
    assert all(r.low <= r.value <= r.high for part in found.values() for r in part.values())


def test_a_painter_that_hears_nothing_is_at_chance(mean_colours):
    found = heard.measured(Painter(deaf=True), wanted=6)
    for part in ("samples of training captions", "samples of held-out captions"):
        assert found[part]["category"].value == pytest.approx(found[part]["category"].chance)
    assert found[REAL[0]]["category"].value == 1


def test_each_part_is_told_its_captions_and_starts_where_it_should(mean_colours):
    painter = Painter()
    heard.measured(painter, wanted=6)
    numbers = limits.chosen_objects(10, 6)
    training = [painter.data.split("train")[i] for i in numbers]
    captions = [item.caption for item in training]
    held = [item.caption for item in painter.data.split("test")]
    halves, others, whole, *rest = painter.asked
    assert halves[0] == whole[0] == captions and rest[0][0] == held
    assert all(a.rpartition(" ")[2] != b.rpartition(" ")[2] for a, b in zip(captions, others[0], strict=True))
    assert rest[1][0] == [f"an object, {caption.rpartition(' ')[2]}" for caption in held]
    swapped = {"fire": "water", "water": "fire"}
    for told, caption in zip(rest[2][0], held, strict=True):
        words, _, kind = caption.rpartition(", ")
        assert told == f"{words}, {swapped[kind]}"
    for _, guidance, sampler, start in (halves, others):
        assert guidance == 3 and sampler == from_the_middle(CONFIG.sampler)
        assert start([1, 4])[:, 0].tolist() == [numbers[1], numbers[4]]
    assert all(asked[2] is asked[3] is None and asked[1] == 3 for asked in (whole, *rest))


def test_a_category_is_taken_off_the_end_of_a_caption_only():
    assert heard.without_category("a living room lamp, living room", "Living room") == "a living room lamp"
    assert heard.without_category("a lamp", "Lights") == "a lamp"


def test_it_needs_captions_and_several_categories(mean_colours):
    with pytest.raises(ConfigError, match="the model is unconditional, expected one of captions"):
        heard.measured(Painter(config=tiny_experiment()))
    plain = balls(CONFIG)
    with pytest.raises(ConfigError, match="balls has one category, expected several to tell apart"):
        heard.measured(Painter(data=plain))


def test_what_was_heard_is_kept_and_read_by_the_figure(mean_colours, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path))
    monkeypatch.setattr(limits, "project_root", lambda: tmp_path / "nowhere")
    assert heard.read_heard(CONFIG) == {}
    monkeypatch.setattr(heard, "load_models", lambda *_: Painter())
    monkeypatch.setattr(study, "prepare", lambda config: None)
    monkeypatch.setattr(study, "experiment_named", lambda *_: CONFIG)
    assert study.main(["limits", "--data", "procedural_chairs_text"]) == 0
    found = heard.read_heard(CONFIG)
    assert list(found) == PARTS and (tmp_path / "limits-procedural_chairs_text-smoke.json").is_file()
    rows = list(heard.rows(found))
    assert len(rows) == len({row["variant"] for row in rows}) == 2 * len(PARTS)
    for row in rows:
        check_row("row", row | dict(dataset="balls"))
    assert [row["system"] for row in rows[:5]] == ["real"] * 4 + ["ours"]
    said = capsys.readouterr().out.splitlines()
    assert said == list(heard.lines(found)) and "; 6 captions" in said[0]
