"""The claims of the paper: the rules that decide them, and the ledger of all verdicts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..store.files import write_json
from ..store.paths import reports_dir
from .ledger import claims_page, renew_pages
from .ledger.causes import Causes, read_causes
from .ledger.intervals import intervals
from .ledger.papers import papers_effect
from .page import write_page
from .report import read_reports
from .schema import VERDICTS, ReportError

EQUAL_PAIRS = 60  # by the rule of three, at 95 % confidence fewer than 3 / 60 of such pairs differ if none of 60 does


def decide(difference: float, low: float, high: float, pairs: int = 0) -> str:
    """The verdict on 'the difference is positive', given its interval: 'holds' and 'fails' only where that excludes 0.

    pairs: of how many independent pairs the difference is the mean. Where both sides are equal in every one of at least
    `EQUAL_PAIRS`, so that the interval is 0 alone, a gain is not unknown but absent, and 'fails'. Fewer decide nothing.

    For a ratio, give logarithms. Raises ReportError unless the numbers are finite and low <= high.
    """
    if not (all(map(math.isfinite, (difference, low, high))) and low <= high):
        raise ReportError(f"difference {difference:g} with interval [{low:g}, {high:g}], expected finite low <= high")
    if difference == low == high == 0 and pairs >= EQUAL_PAIRS:
        return "fails"
    return "holds" if difference > 0 and low > 0 else "fails" if difference < 0 and high < 0 else "inconclusive"


def decide_ratio(ratio: float, low: float, high: float) -> str:
    """The verdict on 'the ratio is below 1'. An interval that reaches 0, which no ratio can, decides nothing."""
    return decide(-math.log(ratio), -math.log(high), -math.log(low)) if low > 0 else "inconclusive"


def decide_equal(ratio: float, low: float, high: float, within: float = 1.25) -> tuple[str, str]:
    """The verdict on 'the ratio is 1, within this factor', and where its interval lies, in words.

    It holds where the whole interval is between 1 / within and within. It fails where all of it is on one side of
    that. An interval that reaches across a bound decides nothing. Raises ReportError unless the numbers are finite,
    low <= high, and within is above 1.
    """
    if not (all(map(math.isfinite, (ratio, low, high))) and low <= high and within > 1):
        raise ReportError(
            f"ratio {ratio:g} with interval [{low:g}, {high:g}] and factor {within:g}, expected finite low <= high "
            "and a factor above 1"
        )
    least = 1 / within
    if least <= low and high <= within:
        return "holds", f"all of it between {least:.3g} and {within:.3g}"
    if high < least:
        return "fails", f"all of it below {least:.3g}"
    if low > within:
        return "fails", f"all of it above {within:.3g}"
    crossed = [bound for bound in (least, within) if low <= bound <= high]
    return "inconclusive", f"it reaches across {' and '.join(f'{bound:.3g}' for bound in crossed)}"


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
    """Collect the claims of all reports into `claims.json` and `claims.html`, and give each a place in its page."""
    ledger = collect_claims(read_reports(), read_causes(reports_dir()))
    reports_dir().mkdir(parents=True, exist_ok=True)
    data, page = reports_dir() / "claims.json", reports_dir() / "claims.html"
    write_json(data, ledger)
    write_page(page, claims_page(ledger))
    return [data, page, *renew_pages(reports_dir())]


def collect_claims(reports: Iterable[dict[str, Any]], causes: Causes | None = None) -> dict[str, Any]:
    """All claims by profile, failed ones first, each with the report that decided it and, if it fails, its likelier
    cause.

    A claim that one report leaves untested and another one of the profile decides, on other data, is listed as decided.
    Where the name of the data is part of the claim's (table3.household.x), it does not make another claim of it.
    A comparison that two notebooks make of the same runs is listed once (`once`), with the others under "also".
    """
    profiles: dict[str, list[dict[str, Any]]] = {}
    reports = list(reports)
    first = once(reports)
    for report in reports:
        source = {key: report[key] for key in ("notebook", "seed", "digest", "commit")}
        stem = f"{report['notebook']}.{report['profile']}"
        for claim in report["claims"]:
            cause = (causes or {}).get((stem, claim["id"])) if claim["verdict"] == "fails" else None
            also = first.get((stem, claim["id"]))
            if also is None:
                continue
            told = {**claim, **source, **({"cause": cause} if cause else {}), **({"also": also} if also else {})}
            if papers := papers_effect(claim):
                told |= {"paper_effect": float(f"{papers.value:.4g}"), "excludes_paper_effect": papers.excluded}
            profiles.setdefault(report["profile"], []).append(told)
    ledger = {}
    for profile, claims in sorted(profiles.items()):
        decided = {_regardless_of_data(claim) for claim in claims if claim["verdict"] != "not_tested"}
        claims = [c for c in claims if c["verdict"] != "not_tested" or _regardless_of_data(c) not in decided]
        claims.sort(key=lambda claim: (VERDICTS.index(claim["verdict"]), claim["id"], claim["notebook"]))
        counts = Counter(claim["verdict"] for claim in claims)
        ledger[profile] = {"counts": {verdict: counts[verdict] for verdict in VERDICTS}, "claims": claims}
    return {"profiles": ledger}


def _regardless_of_data(claim: dict[str, Any]) -> str:
    """A claim's name without the data of its report. What a report tells apart itself, as chairs and tables, stays."""
    return claim["id"].replace(f".{claim['notebook'].partition('-')[2]}.", ".")


def once(reports: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    """{(report, claim): other claims that are the same comparison}, of each comparison the first claim alone.

    Two claims are one comparison where their reports are of one profile and rest on the same runs, their names are
    equal but for the notebook's, and so are the numbers of their evidence. Figures 3 and 10 show one sweep, say.
    """
    first: dict[tuple, tuple[str, str]] = {}
    found: dict[tuple[str, str], list[str]] = {}
    for report in sorted(reports, key=lambda r: [int(part) if part.isdigit() else part for part in _words(r)]):
        runs = frozenset(run["digest"] for run in report.get("environment", {}).get("runs", ()))
        for claim in report["claims"]:
            own = f"{report['notebook']}.{report['profile']}", claim["id"]
            numbers = tuple((one.value, one.low, one.high) for one in intervals(claim["evidence"]))
            same = (report["profile"], claim["id"].partition(".")[2], numbers, runs) if runs and numbers else own
            if same in first and first[same][0] != own[0]:
                found[first[same]].append(claim["id"])
            else:
                first[same], found[own] = own, []
    return found


def _words(report: dict[str, Any]) -> list[str]:
    """A notebook's name, cut so that its number sorts as one."""
    return re.split(r"(\d+)", report["notebook"])
