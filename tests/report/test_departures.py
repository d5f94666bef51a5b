"""`reports/departures.md` counts its entries rightly, keeps them short, and names settings that exist."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

from vader.report import read_reports
from vader.report.ledger.causes import unmeasured

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "reports" / "departures.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^\*\*(.+?)\*\* \((.+?)\)\. (.*)$", TEXT, re.MULTILINE)
SETTINGS = {
    field.name
    for module in ("autodecoder", "articulation", "diffusion", "experiment")
    for kind in vars(importlib.import_module(f"vader.settings.{module}")).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind)
}


def test_the_table_on_top_counts_the_entries_by_effect():
    counted = {effect: int(number) for effect, number in re.findall(r"^\| (.+?) \| (\d+) \|$", TEXT, re.MULTILINE)}
    assert counted == Counter(effect for _, effect, _ in ENTRIES)


@pytest.mark.parametrize("name, body", [(name, body) for name, _, body in ENTRIES])
def test_an_entry_is_at_most_three_short_sentences(name, body):
    sentences = re.split(r"(?<=[.?!”\"])\s+(?=[A-Z\"“`\d])", body)
    assert len(sentences) <= 3 and max(len(sentence.split()) for sentence in sentences) <= 32


def test_what_it_names_exists():
    notebooks = {file.stem for file in (ROOT / "notebooks").glob("*.ipynb")}
    files = {"filter.json", "limbs.md", "vader/baselines/"}
    others = {"paper", "PAPER", "PAPER_TEXT", "code", "InversionConfig", "fully_shard"}
    assert set(re.findall(r"`([^`]+)`", TEXT)) <= SETTINGS | notebooks | files | others


# Numbers in entries that name a notebook, but of the text, the settings, or sums of the notebook's rows.
NOT_OF_A_ROW = {
    "Up-sampling and its convolution": {"27", "217", "256"},  # taps; G1 and G2 together
    "Multipliers of Eq. 11": {"2,000"},
    "Scale of normalised features": {"0.7413"},
}


@pytest.mark.parametrize("name, body", [(name, body) for name, _, body in ENTRIES if re.search(r"\(`\w+`\)", body)])
def test_numbers_of_an_entry_are_those_of_the_reports_that_it_names(name, body):
    named = set(re.findall(r"`([^`]+)`", body))
    reports = [r for r in read_reports(ROOT / "reports") if r["notebook"].partition("-")[0] in named]
    assert not reports or set(unmeasured(body, *reports)) <= NOT_OF_A_ROW.get(name, set())
