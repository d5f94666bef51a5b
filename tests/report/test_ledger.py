"""The ledger of claims: intervals are read and drawn as stated, filters need no script, links lead somewhere."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from vader.report.ledger import claims_page
from vader.report.ledger.intervals import drawing, intervals, margin
from vader.report.ledger.links import WORDS, connected
from vader.report.ledger.page import stated
from vader.report.ledger.papers import effect, papers_effect
from vader.report.page import STYLE, write_page
from vader.store.files import read_json

from .pages import dead_links
from .test_viewer import HOSTILE
from .viewing import barriers, launched, visited

REPORTS = Path(__file__).parents[2] / "reports"


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ("kernel distance 0.39 times that of DiffRF (95 % interval 0.32 to 0.47), chairs", [(0.39, 0.32, 0.47, 1)]),
        ("of KD x10^3 -0.583 (95 % interval over seeds -1.14 to -0.0299); laptop", [(-0.583, -1.14, -0.0299, 0)]),
        ("difference 237 KD x10^3 (95 % interval over seeds 223 to 251); 1,536 of 16^3", [(237, 223, 251, 0)]),
        ("better by 1.5 dB of PSNR (95 % interval over 64 of 64 pairs 1.3 to 1.7)", [(1.5, 1.3, 1.7, 0)]),
        ("loss 1.11 x 0.01 (95 % interval over seeds 0.482 to 1.75); 1,600 steps", [(1.11, 0.482, 1.75, 0)]),
        ("54.17 against 38.54, advantage 17.6 (95 % interval 5.89 to 29.2, paired)", [(17.6, 5.89, 29.2, 0)]),
        ("corrected - dense: -0.05 dB (95 % interval -0.31 to +0.22, 3 seeds), 256 objects", [(-0.05, -0.31, 0.22, 0)]),
        ("accuracy higher by 0.346 (0.298 to 0.395); 64 captions", [(0.346, 0.298, 0.395, 0)]),
        (
            "error relative to linear prediction: classic 0.82 (95 % interval 0.818 to 0.822), robust 0.77 (95 % "
            "interval 0.768 to 0.771), 3 seeds",
            [(0.82, 0.818, 0.822, 1), (0.77, 0.768, 0.771, 1)],
        ),
        ("818 of 1,676 objects share their code (1,176 distinct codes, 3.8 % of the table)", []),
        ("a judgement by eye", []),
        ("better by 7 (95 % interval 8 to 9)", []),  # a value outside of its interval is another number
    ],
)  # fmt: skip
def test_intervals_are_read_as_they_are_stated(evidence, expected):
    assert [(one.value, one.low, one.high, one.neutral) for one in intervals(evidence)] == expected


def test_every_interval_of_the_committed_ledger_is_read():
    claims = [claim for part in read_json(REPORTS / "claims.json")["profiles"].values() for claim in part["claims"]]
    for claim in claims:
        assert len(intervals(claim["evidence"])) == len(re.findall(r"\d to [-+\d]", claim["evidence"])), claim[
            "evidence"
        ]


def test_a_drawing_puts_the_numbers_in_their_order():
    [one] = intervals("better by 2 (95 % interval 1 to 4)")
    x = {
        name: [float(v) for v in re.findall(rf'{name}="([\d.]+)"', drawing(one, "holds"))]
        for name in ("x1", "x2", "cx")
    }
    (none, low), (_, high), [value] = x["x1"], x["x2"], x["cx"]
    assert none < low < value < high <= 260 and (value - low) / (high - low) == pytest.approx(1 / 3, abs=0.01)
    assert (low - none) / (high - none) == pytest.approx(1 / 4, abs=0.01)
    [ratio] = intervals("0.5 times (95 % interval 0.25 to 1)")
    x = re.findall(r'(?:x1|cx)="([\d.]+)"', drawing(ratio, "fails"))
    assert float(x[2]) == pytest.approx((float(x[0]) + float(x[1])) / 2, abs=0.2), "half of 1 and of 0.25's way"
    assert 'class="band"' in drawing(one, "holds", 0.5) and 'class="band"' not in drawing(one, "holds")
    assert 'aria-label="2, interval 1 to 4; no difference at 0"' in drawing(one, "holds")
    [nothing] = intervals("better by 0 (95 % interval over 98 of 100 pairs 0 to 0)")
    assert "nan" not in drawing(nothing, "inconclusive") and "inf" not in drawing(nothing, "inconclusive")


def test_margins_and_the_papers_numbers():
    assert margin("negligible impact on quality (0.5 dB)") == margin("is within 0.5 dB of a dense table") == 0.5
    assert margin("COV is within 5 % of that of DiffRF") == 0
    factor = margin("as new as unseen real ones, within a factor of 1.25")
    assert factor == pytest.approx(math.log(1.25))
    [ratio] = intervals("1.02 times as far (95 % interval 0.96 to 1.10), all of it between 0.8 and 1.25")
    picture = drawing(ratio, "holds", factor)
    assert "no difference, within a factor of 1.25 at 1" in picture and 'class="band"' in picture
    assert stated("table1.chairs.ours_beats_diffrf") == "FID 11.28 for Ours, 15.95 for DiffRF"
    assert stated("table4.tables.cov_against_eg3d") == "COV 60.25 for Ours, 48.15 for EG3D"
    assert stated("table2.depth.psnr") == "PSNR 27.335 with it, 27.24 without"
    assert (
        stated("table1.chairs.ours_beats_dls")
        == stated("table1.chairs.samples_are_no_copies")
        == stated("parts.x")
        == ""
    )


@pytest.mark.parametrize(
    ("id", "text", "expected"),
    [
        ("table1.chairs.ours_beats_diffrf", "", 4.714 / 7.935),
        ("table1.tables.diffrf_beats_eg3d", "", 10.03 / 11.67),
        ("table2.embedding_length.psnr", "", 27.24 - 25.985),
        ("table2.self_attention.psnr", "improves", 27.335 - 27.176),
        ("table2.multi_frame.lpips", "", 6.855 - 6.255),
        ("table3.household.more_steps_help", "", 29.37 / 32.44),
        ("table3.people_heads.ours_beats_dls", "", 47.72 / 73.74),
        ("table3.mvimgnet.ours_beats_dls", "", None),  # of no set that stands for it
        ("table4.tables.cov_against_eg3d", "is better than that of EG3D", 60.25 - 48.15),
        ("table4.tables.cov_against_diffrf", "is within 5 % of that of DiffRF", 60.25 - 0.95 * 61.54),
        ("table4.tables.mmd_against_eg3d", "", None),  # in another unit
        ("table4.chairs.cov_against_dls", "", None),  # not in the paper's table
        ("table1.chairs.samples_are_no_copies", "", None),
        ("table2.embedding_length.matters_most", "", None),
        ("figure3.eight_beats_four", "", None),
    ],
)  # fmt: skip
def test_the_papers_effect_is_that_of_its_tables_in_the_unit_of_the_evidence(id, text, expected):
    found = effect(id, text)
    assert expected is None and found is None or found[0] == pytest.approx(expected)


def test_an_effect_of_the_papers_size_is_left_out_or_not_whatever_the_verdict():
    def told(evidence: str):
        return papers_effect({"id": "table2.embedding_length.psnr", "text": "x", "evidence": evidence})

    small, large = told("loss 0.2 dB (95 % interval -0.3 to 0.7)"), told("loss 1.1 dB (95 % interval -0.3 to 2.5)")
    assert small.excluded and not large.excluded and not small.ratio and told("a judgement by eye") is None
    assert small.told == "By the paper's PSNR the difference is 1.25, outside of the interval"
    ratio = {"id": "table3.household.more_steps_help", "text": "x", "evidence": "0.91 times (95 % interval 0.8 to 1.2)"}
    assert papers_effect(ratio).told == "By the paper's KID on objaverse the ratio is 0.905, within the interval"


# ---------------------------------------------------------------------------------------------------- the page itself


def claim(id: str, verdict: str, **changes) -> dict:
    told = {"id": id, "text": f"{id} is so", "where": "Tab. 1", "verdict": verdict, "evidence": "by 2 (95 % 1 to 4); x"}
    return {**told, "notebook": id.partition(".")[0], "seed": 0, "digest": "d", "commit": "c", **changes}


def ledger(*claims: dict) -> dict:
    counts = {verdict: sum(c["verdict"] == verdict for c in claims) for verdict in ("fails", "holds", "not_tested")}
    return {"profiles": {"laptop": {"counts": counts, "claims": list(claims)}}}


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("reports") / "claims.html"
    claims = claim("table1.a", "fails", text=HOSTILE, where=HOSTILE, evidence=HOSTILE), claim("table1.b", "holds")
    write_page(file, claims_page(ledger(*claims, claim("figure3.c", "holds"), claim("parts.d", "not_tested"))))
    return file


def shown(page) -> list[str]:
    return [one.locator("code").inner_text() for one in page.locator(".claim").all() if one.is_visible()]


@pytest.mark.parametrize("javascript", [True, False])
def test_claims_are_filtered_by_verdict_and_table(browser, page, javascript):
    with visited(browser, page, page.parent, java_script_enabled=javascript) as window:
        assert shown(window) == ["table1.a", "table1.b", "figure3.c", "parts.d"]
        window.get_by_label("holds (2)").check()
        assert shown(window) == ["table1.b", "figure3.c"] and window.locator(".nothing").is_hidden()
        window.get_by_label("Table 1 (2)").check()
        assert shown(window) == ["table1.b"]
        window.get_by_label("not tested (1)").check()
        assert shown(window) == [] and window.locator(".nothing").is_visible()


def test_filters_are_reached_and_changed_by_the_keyboard(browser, page):
    with visited(browser, page, page.parent) as window:
        window.keyboard.press("Tab")
        window.keyboard.press("ArrowRight")
        assert shown(window) == ["table1.a"]
        outline = "getComputedStyle(document.activeElement.nextElementSibling).outlineStyle"
        assert window.evaluate(outline) == "solid"


def test_claims_are_text_and_have_no_barrier(browser, page):
    for scheme, width in (("light", 360), ("dark", 1200)):
        look = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
        with visited(browser, page, page.parent, **look) as window:
            assert HOSTILE in window.locator("h3").first.text_content()
            assert window.evaluate("typeof hacked") == "undefined"
            assert window.evaluate("document.documentElement.scrollWidth") <= width
            assert barriers(window) == []


def test_an_empty_ledger_says_so():
    assert "No report has been written yet" in claims_page({"profiles": {}})


# -------------------------------------------------------------------------------------------------- pages of reports

REPORT = {
    "notebook": "table1-furniture",
    "profile": "laptop",
    "claims": [
        {"id": "table1.chairs.a", "evidence": "by 2 < 3 (1 to 4); furniture_chairs"},
        {"id": "table1.b", "evidence": "not printed"},
    ],
    "environment": {"runs": [{"digest": "ab" * 32}]},
}
NAMES = ["furniture_chairs", "furniture_chairs.systems", "chair-1", "other", "generated_1"]
PICTURES = "".join(f'<p class="wide"><img alt="x" src="table1-furniture.laptop.{name}.png"/></p>' for name in NAMES)
PAGE = f'<main><pre class="output">first</pre><pre class="output">chairs.a: by 2 &lt; 3 (1 to 4)</pre>{PICTURES}</main>'
ROWS = [{"key": "ours", "viewer": "f.ours.html"}, {"key": "reconstructions", "viewer": "f.reconstructions.html"}]
HALL = {"key": "furniture_chairs", "page": "f.html", "names": ["chair-1"], "runs": ["ab" * 32], "rows": ROWS}


def test_each_claim_has_its_place_and_pictures_of_samples_lead_to_the_gallery():
    text = connected(PAGE, REPORT, {"halls": [HALL]})
    assert '<span class="place" id="table1.chairs.a"></span><pre class="output">chairs.a' in text
    assert text.count('id="table1.b"') == 1, "at the last output, as none speaks of it"
    links = dict(re.findall(r'href="gallery/(.*?)"><img alt="x" src="table1-furniture.laptop.(.*?).png"', text))
    assert {picture: target for target, picture in links.items()} == {
        "furniture_chairs.systems": "f.html", "chair-1": "f.reconstructions.html", "generated_1": "f.ours.html",
    }  # fmt: skip
    assert 'href="gallery/f.ours.html"><img alt="x" src="table1-furniture.laptop.furniture_chairs.png"' in text
    assert connected(text, REPORT, {"halls": [HALL]}) == text, "once more changes nothing"
    assert WORDS not in connected(text, REPORT, None) and WORDS not in connected(text, REPORT, {"halls": []})
    other = {"halls": [{**HALL, "runs": ["cd" * 32]}]}
    assert WORDS not in connected(PAGE, REPORT, other), "another run's samples are not these"


def test_every_claim_of_the_committed_ledger_leads_to_its_place():
    assert dead_links(REPORTS / "claims.html") == []
    for file in REPORTS.glob("*.html"):
        assert dead_links(file) == [], file.name


def test_committed_pages_lead_to_the_committed_gallery():
    record = REPORTS / "gallery" / "gallery.json"
    if not record.is_file():
        pytest.skip("no gallery is committed")
    for file in REPORTS.glob("*.laptop.json"):
        page = file.with_suffix(".html").read_text(encoding="utf-8")
        assert connected(page, read_json(file), json.loads(record.read_text("utf-8"))) == page, f"{file.stem}: renew it"
    assert WORDS in (REPORTS / "table1-furniture.laptop.html").read_text(encoding="utf-8")
    assert (REPORTS / "gallery" / STYLE).read_bytes() == (REPORTS / STYLE).read_bytes()
