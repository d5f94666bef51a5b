"""Power of the open claims: how many seeds of training would decide them, and what these would cost.

    vader study power --profile laptop

writes `reports/power.md`. A claim is open where the interval of a difference over n seeds holds 0. Its half-width says
how far seeds spread: s = h sqrt(n) / t(n - 1). With m seeds of the same spread the half-width is t(m - 1) s / sqrt(m),
and a difference is decided by the smallest m for which that is less than the difference (`seeds_needed`). Two of them
are looked at: the one observed, and the one that the paper's own numbers show, where they are in the same unit
(`report.ledger.papers`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..report import ReportError
from ..report.claims import once
from ..report.ledger.intervals import intervals
from ..report.ledger.papers import PapersEffect, papers_effect
from ..report.report import read_reports
from ..store.files import write_file
from ..store.paths import reports_dir

MOST = 1000  # seeds; beyond that a claim is called out of reach
NUMBER, UNIT = r"-?[\d.]+(?:e[+-]?\d+)?", r"(?: (?:x 0\.01|KD x10\^3|[^\d()]+))?"
INTERVAL = re.compile(rf"({NUMBER}){UNIT} \(95 % interval over (?:(\d+) training )?seeds ({NUMBER}) to ({NUMBER})[,)]")


# What would decide the claims whose intervals are over something else than seeds, by their names.
OTHERWISE = {
    r"figure2\.less_spurious_density": "more samples, of which most have no spurious density at all",
    r"figure4\..*": "more captions, which need more photographed objects and a training",
    r"figure5\..*": "more held-out captions of the set, or a training that reads prompts better. Sampling seeds are so "
    "many that more of them would hardly narrow the interval (`vader/settings/profiles.py`)",
    r"figure9\.planted_.*": "a training in which the robust denoiser itself beats linear prediction. As it is, neither "
    "converges. That the classic one does not is what the claim says, and that the robust one does not either takes "
    "away what it would show (`tails.md` has why)",
    r"parts\..*": "more training videos, and with them other trainings",
    r"table3\.household\..*": "more samples of each number of steps, and more trainings, since the interval spans what "
    "each of two scored",
    r"table3\..*": "more samples of each number of steps",
    r"table4\..*\.shapes_are_no_copies": "more held-out models, and with them another split and its trainings",
    r"table4\..*": "more references, that is, training models, whose resampling both systems share. More samples "
    "narrow the rest of the interval",
}


@dataclass(frozen=True)
class Open:
    """A claim that more seeds of training could decide. Numbers are in the unit of its evidence."""

    id: str
    report: str
    difference: float
    low: float
    high: float
    seeds: int
    papers: PapersEffect | None  # the paper's own difference
    minutes: float | None  # of one core, for one more seed

    @property
    def spread(self) -> float:
        """Standard deviation of the difference over seeds."""
        return (self.high - self.low) / 2 * math.sqrt(self.seeds) / _t(self.seeds)


@dataclass(frozen=True)
class Other:
    """A claim that something else than seeds of training could decide."""

    id: str
    report: str
    evidence: str
    papers: PapersEffect | None = None


def seeds_needed(difference: float, spread: float) -> int | None:
    """The fewest seeds whose 95 % interval around a difference leaves out 0; None where MOST are too few."""
    return next((n for n in range(2, MOST + 1) if _t(n) * spread / math.sqrt(n) < abs(difference)), None)


def _t(n: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.975, n - 1))


def open_claims(reports: Iterable[dict[str, Any]], profile: str) -> tuple[list[Open], list[Other]]:
    """The inconclusive claims of a profile: those that rest on seeds of training, and the others, whose intervals are
    over objects, samples or videos of single trainings."""
    found, others = [], []
    reports = [r for r in reports if r["profile"] == profile]
    listed = once(reports)
    for report in reports:
        stem = f"{report['notebook']}.{profile}"
        for claim in (c for c in report["claims"] if c["verdict"] == "inconclusive" and (stem, c["id"]) in listed):
            match, papers = INTERVAL.search(claim["evidence"]), papers_effect(claim)
            if match is None:
                others.append(Other(claim["id"], report["notebook"], claim["evidence"], papers))
                continue
            difference, told, low, high = match.groups()
            found.append(
                Open(
                    claim["id"],
                    report["notebook"],
                    float(difference),
                    float(low),
                    float(high),
                    int(told) if told else _seeds(report),
                    papers,
                    _minutes(report),
                )
            )
    return found, others


def times_as_many(evidence: str) -> float | None:
    """How many times as many objects, samples or videos would narrow the interval of a sentence enough to leave out no
    difference, if the value stayed: the square of how far the interval reaches to that side over the distance to it, of
    logarithms for ratios.

    None where the sentence has no such interval, is about being equal, or has no difference itself.
    """
    for one in intervals(evidence) if "reaches across" not in evidence else ():
        scale = math.log if one.neutral == 1 else float
        value, low, high, neutral = (scale(x) for x in (one.value, one.low, one.high, one.neutral))
        if low <= neutral <= high:
            reach = value - low if value > neutral else high - value
            return (reach / (value - neutral)) ** 2 if value != neutral else None
    return None


def otherwise(claim: str) -> str:
    """What would decide a claim that more seeds do not. Raises ReportError for one that nobody has thought about."""
    for pattern, what in OTHERWISE.items():
        if re.fullmatch(pattern, claim):
            return what
    raise ReportError(f"claim {claim!r} is open, and power.OTHERWISE does not say what would decide it")


def _seeds(report: dict[str, Any]) -> int:
    """Trainings behind a report's means: the most common count of its measured rows that have a spread."""
    counts = [row["n"] for row in report["rows"] if row["source"] == "measured" and row.get("std")]
    return max(set(counts), key=counts.count)


def _minutes(report: dict[str, Any]) -> float | None:
    """Of one more seed of all its trainings: by the rows that have their seconds, else by the records of its runs."""
    rows = [r for r in report["rows"] if r["metric"] == "seconds" and r.get("variant") == "training"]
    if rows:
        return sum(row["value"] for row in rows) / 60
    runs = [run for run in report["environment"]["runs"] if run.get("seconds")]
    seeds = {run["seed"] for run in runs}
    return sum(run["seconds"] for run in runs) / len(seeds) / 60 if runs else None


def page(profile: str, found: list[Open], others: list[Other]) -> str:
    """The table as Markdown."""
    lines = [
        f"# Power of the open claims, profile {profile}",
        "",
        "Written by `vader study power`. A claim is open where the interval over seeds of training holds 0. The "
        "columns on the right say how many seeds would close it, if seeds go on to spread as they did. One count is "
        "for the difference observed here. The other is for the one that the paper's numbers show. An open interval "
        "may leave out an effect of the paper's size, which the column before says. That changes no verdict.",
        "",
        "| claim | report | observed | spread over seeds | seeds so far | needed for the observed | the paper's | "
        "needed for the paper's | minutes of one core, one seed more |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in sorted(found, key=lambda c: _cost(c)):
        needed = "–" if c.papers is None else _said(seeds_needed(c.papers.value, c.spread))
        minutes = "–" if c.minutes is None else f"{c.minutes:.0f}"
        lines.append(
            f"| `{c.id}` | {c.report} | {c.difference:.3g} | {c.spread:.3g} | {c.seeds} | "
            f"{_said(seeds_needed(c.difference, c.spread))} | {_papers(c.papers)} | {needed} | {minutes} |"
        )
    lines += ["", "## Open for another reason", ""]
    lines += [
        "The intervals of these are over objects, samples or videos. More of those decide them, not more seeds. An "
        "interval shrinks with the root of their number. The column says how many times as many would leave out no "
        "difference, if the value stayed where it is.",
        "",
        "| claim | report | found | the paper's | times as many | what would decide it |",
        "|---|---|---|---|---|---|",
    ]
    for c in sorted(others, key=lambda c: (c.id, c.report)):
        times, said = times_as_many(c.evidence), c.evidence.split(";")[0]
        many = "–" if times is None else "over 100" if times > 100 else f"{times:.2g}"
        lines.append(f"| `{c.id}` | {c.report} | {said} | {_papers(c.papers)} | {many} | {otherwise(c.id)} |")
    lines.append("")
    return "\n".join(lines)


def _cost(claim: Open) -> float:
    needed = seeds_needed(claim.difference, claim.spread)
    return math.inf if needed is None else (needed - claim.seeds) * (claim.minutes or math.inf)


def _papers(shown: PapersEffect | None) -> str:
    return "–" if shown is None else f"{shown.value:.3g}, {'left out' if shown.excluded else 'within'}"


def _said(seeds: int | None) -> str:
    return f"over {MOST:,}" if seeds is None else f"{seeds:,}"


def write(profile: str) -> Path:
    """Write `power.md` beside the reports."""
    file = reports_dir() / "power.md"
    write_file(file, page(profile, *open_claims(read_reports(), profile)))
    return file
