"""The claims of the paper: the rules that decide them, and the ledger of all verdicts."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..store.files import write_json
from ..store.paths import reports_dir
from .page import STYLE, write_page
from .report import read_reports
from .schema import VERDICTS, ReportError


def decide(difference: float, low: float, high: float) -> str:
    """The verdict on 'the difference is positive', given its interval: 'holds' and 'fails' only where that excludes 0.

    For a ratio, give logarithms. Raises ReportError unless the numbers are finite and low <= high.
    """
    if not (all(map(math.isfinite, (difference, low, high))) and low <= high):
        raise ReportError(f"difference {difference:g} with interval [{low:g}, {high:g}], expected finite low <= high")
    return "holds" if difference > 0 and low > 0 else "fails" if difference < 0 and high < 0 else "inconclusive"


def decide_ratio(ratio: float, low: float, high: float) -> str:
    """The verdict on 'the ratio is below 1'. An interval that reaches 0, which no ratio can, decides nothing."""
    return decide(-math.log(ratio), -math.log(high), -math.log(low)) if low > 0 else "inconclusive"


def seed_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the results of independent seeds and its Student t interval, (mean, low, high).

    Raises ReportError for fewer than two results.
    """
    from scipy import stats

    n = len(values)
    if n < 2:
        raise ReportError(f"an interval over seeds needs at least 2 results, got {n}")
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    reach = float(stats.t.ppf(0.5 + level / 2, n - 1)) * error
    return mean, mean - reach, mean + reach


def write_claims() -> list[Path]:
    """Collect the claims of all reports into `claims.json` and `claims.html` beside them."""
    ledger = collect_claims(read_reports())
    reports_dir().mkdir(parents=True, exist_ok=True)
    data, page = reports_dir() / "claims.json", reports_dir() / "claims.html"
    write_json(data, ledger)
    write_page(page, claims_page(ledger))
    return [data, page]


def collect_claims(reports: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All claims by profile, failed ones first, each with the report that decided it.

    A claim that one report leaves untested and another one of the profile decides, on other data, is listed as decided.
    """
    profiles: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        source = {key: report[key] for key in ("notebook", "seed", "digest", "commit")}
        profiles.setdefault(report["profile"], []).extend({**claim, **source} for claim in report["claims"])
    ledger = {}
    for profile, claims in sorted(profiles.items()):
        decided = {claim["id"] for claim in claims if claim["verdict"] != "not_tested"}
        claims = [claim for claim in claims if claim["verdict"] != "not_tested" or claim["id"] not in decided]
        claims.sort(key=lambda claim: (VERDICTS.index(claim["verdict"]), claim["id"], claim["notebook"]))
        counts = Counter(claim["verdict"] for claim in claims)
        ledger[profile] = {"counts": {verdict: counts[verdict] for verdict in VERDICTS}, "claims": claims}
    return {"profiles": ledger}


def claims_page(ledger: dict[str, Any]) -> str:
    """`collect_claims` as one HTML page, which needs the style sheet of all pages beside it."""
    sections = []
    for profile, part in ledger["profiles"].items():
        counts = ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in part["counts"].items() if count)
        lines = "\n".join(_claim_line(claim) for claim in part["claims"])
        sections.append(
            f'<h2>Profile {html.escape(profile)}: {counts or "no claims"}</h2>\n<div class="wide">\n<table>\n'
            "<thead><tr><th>verdict</th><th>claim</th><th>where</th><th>evidence</th><th>report</th></tr></thead>\n"
            f"{lines}\n</table>\n</div>"
        )
    return _PAGE.format(style=STYLE, body="\n".join(sections) or "<p>No report has been written yet.</p>")


def _claim_line(claim: dict[str, Any]) -> str:
    cells = (f"<code>{claim['id']}</code><br>{html.escape(claim['text'])}", html.escape(claim["where"]))
    cells += (html.escape(claim["evidence"]), f"{claim['notebook']}, seed {claim['seed']}")
    verdict = f'<td class="{claim["verdict"]}">{claim["verdict"].replace("_", " ")}</td>'
    return f"<tr>{verdict}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Claims of the paper, tested</title>
<link rel="stylesheet" href="{style}">
</head>
<body>
<main>
<h1>Claims of the paper, tested</h1>
<p>A claim holds or fails only where the interval of the measured difference excludes zero. Each profile is a study of
its own size: a verdict says nothing about another profile or about the paper's own experiment.</p>
{body}
</main>
</body>
</html>
"""
