"""Seeds that would decide a claim: against a loop over drawn seeds, and read back from the sentences of reports."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vader.report import ReportError, decide, seed_interval
from vader.report.claims import once
from vader.report.report import read_reports
from vader.studies import power
from vader.studies.power import Open, Other, open_claims, seeds_needed, times_as_many
from vader.studies.sweep import verdict


def exact_sample(n: int, mean: float, std: float) -> list[float]:
    """n numbers with exactly that mean and standard deviation."""
    values = np.linspace(-1, 1, n)
    return list(mean + std * values / values.std(ddof=1))


@pytest.mark.parametrize("difference", [0.3, -0.3, 1.0, 2.5])
def test_so_many_seeds_decide_and_one_less_does_not(difference):
    n = seeds_needed(difference, 1.0)
    assert decide(*seed_interval(exact_sample(n, difference, 1.0))) in ("holds", "fails")
    if n > 2:
        assert decide(*seed_interval(exact_sample(n - 1, difference, 1.0))) == "inconclusive"


def test_no_number_of_seeds_decides_no_difference():
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(1e-6, 1.0) is None


def report(evidence: str, **row) -> dict:
    rows = [{"source": "measured", "metric": "psnr", "std": 0.1, "n": 4, "value": 1.0, **row}]
    rows.append({"source": "measured", "metric": "seconds", "variant": "training", "value": 120.0, "n": 4, "std": 1.0})
    claims = [{"id": "table2.depth.psnr", "text": "x", "verdict": "inconclusive", "evidence": evidence}]
    return {"notebook": "table2", "profile": "laptop", "rows": rows, "claims": claims, "environment": {"runs": []}}


@pytest.mark.parametrize("scale,unit", [(1, " dB"), (100, " x 0.01"), (1000, " KD x10^3"), (100, " %"), (1, "")])
def test_units_with_numbers_in_them_are_not_taken_for_the_difference(scale, unit):
    values = [v / scale for v in exact_sample(4, 0.25, 0.5)]
    _, sentence = verdict(seed_interval(values), scale, unit)
    [claim], _ = open_claims([report(f"difference of KD x10^3 {sentence}; 1,600 steps of 8")], "laptop")
    assert (claim.difference, claim.seeds) == (pytest.approx(0.25), 4)


def test_difference_interval_and_spread_are_read_from_the_sentence_that_sweeps_write():
    values = exact_sample(4, 0.25, 0.5)
    said, sentence = verdict(seed_interval(values), unit=" dB")
    assert said == "inconclusive"
    [claim], others = open_claims([report(f"loss {sentence}; procedural_chairs")], "laptop")
    assert not others and claim.seeds == 4 and claim.minutes == 2
    assert claim.difference == pytest.approx(0.25) and claim.spread == pytest.approx(0.5, rel=0.01)
    assert open_claims([report(sentence)], "gpu") == ([], [])


def test_what_rests_on_objects_is_listed_apart():
    found, others = open_claims([report("better by 0.1 dB (95 % interval over 64 of 64 pairs -0.2 to 0.4)")], "laptop")
    assert not found and [one.id for one in others] == ["table2.depth.psnr"]


@pytest.mark.parametrize("sentence", ["over seeds {} to {})", "over 64 of 64 pairs {} to {})"])
def test_the_page_says_whether_an_effect_of_the_papers_size_is_left_out(sentence):
    for high, said in ((0.09, "| 0.095, left out |"), (0.1, "| 0.095, within |")):
        found, others = open_claims([report(f"loss 0.05 dB (95 % interval {sentence.format(-0.01, high)}")], "laptop")
        assert said in power.page("laptop", [], [Other("table4.x", "r", "e", o.papers) for o in [*found, *others]])
        if found:
            assert said in power.page("laptop", found, [])


def test_the_page_has_a_line_for_every_open_claim_of_the_committed_reports(monkeypatch):
    monkeypatch.delenv("VADER_REPORTS", raising=False)
    reports = read_reports()
    found, others = open_claims(reports, "laptop")
    laptop = [r for r in reports if r["profile"] == "laptop"]
    asked = {c["id"] for r in laptop for c in r["claims"] if c["verdict"] == "inconclusive"}
    asked -= {id for also in once(laptop).values() for id in also}
    text = power.page("laptop", found, others)
    assert asked == {c.id for c in [*found, *others]} and all(f"`{id}`" in text for id in asked)
    assert all(c.low <= 0 <= c.high and c.seeds >= 2 and math.isfinite(c.spread) for c in found)


def test_so_many_times_as_many_objects_leave_out_no_difference():
    """By the rule that decides: an interval that is narrower by the root of that decides, and one of less does not."""
    value, half = 0.1, 0.35
    times = times_as_many(f"better by {value} (95 % interval over 64 of 64 pairs {value - half:g} to {value + half:g})")
    assert times == pytest.approx(12.25)
    for more, verdict_ in ((1.01, "holds"), (0.99, "inconclusive")):
        reach = half / math.sqrt(times * more)
        assert decide(value, value - reach, value + reach) == verdict_
    ratio = times_as_many("kernel distance 0.9 times that of DLS (95 % interval 0.729 to 1.111), x")
    assert ratio == pytest.approx(4, rel=0.01)
    assert times_as_many("better by 0 (95 % interval over 98 of 100 pairs 0 to 0)") is None
    assert times_as_many("no interval") is None
    assert times_as_many("difference 0.2 (95 % interval -0.1 to 0.3)") == pytest.approx(2.25), "the side that counts"
    assert times_as_many("0.9 times as far (95 % interval 0.44 to 1.81), it reaches across 0.8 and 1.25") is None


def test_an_open_claim_that_nobody_thought_about_is_an_error():
    assert "more training videos" in power.otherwise("parts.parts_turn")
    with pytest.raises(ReportError, match=r"'figure1\.new' is open, and power\.OTHERWISE does not say"):
        power.page("laptop", [], [Other("figure1.new", "figure1", "x")])


def test_cheapest_claims_come_first():
    cheap = Open("a.b", "a", 1.0, -1.0, 3.0, 3, None, 1.0)
    dear = Open("c.d", "c", 1.0, -1.0, 3.0, 3, None, 100.0)
    text = power.page("laptop", [dear, cheap], [])
    assert text.index("`a.b`") < text.index("`c.d`")
