"""Causes of failing claims: malformed, missing, outlived and unmeasured ones are found, and the ledger shows them."""

from __future__ import annotations

import json

import pytest

from vader.report import ReportError
from vader.report.claims import collect_claims
from vader.report.ledger import claims_page
from vader.report.ledger.causes import CAUSES, FILE, check, read_causes, unmeasured

WHY = "On 64 objects it loses 3.57 dB, and 0.39 times is 12 % more."
REPORT = {
    "notebook": "table1-furniture", "profile": "laptop", "seed": 0, "digest": "d", "commit": "c",
    "rows": [{"metric": "psnr", "value": 3.5731}],
    "claims": [
        {"id": "table1.a", "text": "a", "where": "x", "verdict": "fails", "evidence": "0.39 times, 64 objects, 12 %"},
        {"id": "table1.b", "text": "b", "where": "x", "verdict": "holds", "evidence": "more"},
    ],
}  # fmt: skip


def causes(tmp_path, **entry) -> dict:
    content = {"table1-furniture.laptop": {"table1.a": {"cause": "scale", "why": WHY, **entry}}}
    (tmp_path / FILE).write_text(json.dumps(content))
    return read_causes(tmp_path)


def test_a_cause_of_a_failing_claim_is_read_and_shown(tmp_path):
    found = causes(tmp_path)
    assert check([REPORT], found) == []
    ledger = collect_claims([REPORT], found)
    told = {claim["id"]: claim.get("cause") for claim in ledger["profiles"]["laptop"]["claims"]}
    assert told == {"table1.a": {"cause": "scale", "why": WHY}, "table1.b": None}
    page = claims_page(ledger)
    assert page.count("Likelier cause") == 1 and f"<b>{CAUSES['scale']}</b>: {WHY}" in page
    assert "uncommitted" not in page and "uncommitted" in claims_page(collect_claims([{**REPORT, "commit": "c+"}]))


def test_missing_and_outlived_causes_are_found(tmp_path):
    assert check([REPORT], {}) == [f"table1-furniture.laptop: table1.a fails, and {FILE} names no cause"]
    held = {**REPORT, "claims": [{**REPORT["claims"][0], "verdict": "holds"}]}
    found = causes(tmp_path)
    assert "table1-furniture.laptop: table1.a has a cause, but does not fail" in check([held], found)
    told = collect_claims([held], found)["profiles"]["laptop"]["claims"]
    assert "cause" not in told[0], "a claim that holds shows none"


def test_a_number_that_the_report_does_not_have_is_found():
    assert unmeasured(WHY, REPORT) == []
    assert unmeasured("It loses 3.58 dB of 65 objects at 8^3 and 4 levels.", REPORT) == ["3.58", "65"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"cause": "luck"}, "cause is 'luck', expected one of paper, scale, implementation"),
        ({"why": "no sentence"}, "expected one sentence"),
        ({"why": "One. Two."}, "expected one sentence"),
        ({"who": "me"}, "expected cause and why"),
    ],
)
def test_a_malformed_cause_is_refused(tmp_path, entry, message):
    with pytest.raises(ReportError, match=message):
        causes(tmp_path, **entry)


def test_a_folder_without_causes_has_none(tmp_path):
    assert read_causes(tmp_path) == {}
