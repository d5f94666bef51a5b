"""Why a claim fails: which of paper, scale and implementation is the likelier cause, in a sentence.

A verdict is computed, a cause is judged. `causes.json` beside the reports holds the judgements, by report and claim:
{"table1-furniture.laptop": {"table1.chairs.…": {"cause": "scale", "why": "…"}}}. Numbers in a sentence are those of the
report (`unmeasured`), and only failing claims have an entry (`check`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...store.files import RunError, read_json
from ..schema import ReportError

FILE = "causes.json"
CAUSES = {
    "paper": "the paper's statement itself",
    "scale": "the scale of this profile",
    "implementation": "this implementation",
}
NUMBER = re.compile(r"(?<![\w.^])\d[\d,]*(?:\.\d+)?(?![\w^]|\.\d)")
SMALL = 10  # whole numbers up to this are words in digits

NOTHING: dict[str, Any] = {"rows": [], "claims": []}

Causes = dict[tuple[str, str], dict[str, str]]  # (report's stem, id of the claim) -> cause and why


def read_causes(folder: Path) -> Causes:
    """The judgements kept in a folder of reports; none where it has no such file. Raises ReportError for others."""
    file = folder / FILE
    if not file.is_file():
        return {}
    try:
        content = read_json(file)
    except RunError as error:
        raise ReportError(str(error)) from error
    found: Causes = {}
    for stem, claims in content.items():
        for id, entry in claims.items():
            where = f"{file}: {stem}, {id}"
            if entry.keys() != {"cause", "why"}:
                raise ReportError(f"{where}: has {sorted(entry)}, expected cause and why")
            if entry["cause"] not in CAUSES:
                raise ReportError(f"{where}: cause is {entry['cause']!r}, expected one of {', '.join(CAUSES)}")
            if not re.fullmatch(r"[A-Z\d][^\n]*\.", entry["why"]) or re.search(r"[.!?] [A-Z]", entry["why"]):
                raise ReportError(f"{where}: why is {entry['why']!r}, expected one sentence")
            found[stem, id] = entry
    return found


def check(reports: Iterable[dict[str, Any]], causes: Causes) -> list[str]:
    """Failing claims without a cause, causes of claims that do not fail, and numbers that no report has."""
    faults, failing = [], {}
    for report in reports:
        stem = f"{report['notebook']}.{report['profile']}"
        failing |= {(stem, claim["id"]): report for claim in report["claims"] if claim["verdict"] == "fails"}
    faults += [f"{stem}: {id} fails, and {FILE} names no cause" for stem, id in failing.keys() - causes.keys()]
    faults += [f"{stem}: {id} has a cause, but does not fail" for stem, id in causes.keys() - failing.keys()]
    for (stem, id), entry in causes.items():
        strange = unmeasured(entry["why"], failing.get((stem, id), NOTHING))
        faults += [f"{stem}: {id}: {number} is no number of the report" for number in strange]
    return sorted(faults)


def unmeasured(sentence: str, *reports: dict[str, Any]) -> list[str]:
    """Numbers of a sentence that neither evidence nor a row of the reports has, as written or rounded so.

    Signs do not count, a loss of 2 dB is a gain of -2 dB, nor do units of millions and thousand millions.
    """
    told = " ".join(f"{claim['text']} {claim['evidence']}" for report in reports for claim in report["claims"])
    rows = [abs(row["value"]) for report in reports for row in report["rows"]]
    values = [value / unit for value in rows for unit in (1, 1e6, 1e9) if value > unit or unit == 1]
    values += [float(number.replace(",", "")) for number in NUMBER.findall(told)]
    strange = []
    for number in NUMBER.findall(sentence):
        plain = number.replace(",", "")
        decimals = len(plain.partition(".")[2])
        reach = 0.5 * 10.0**-decimals + 1e-9  # what is halfway is rounded either way
        known = any(abs(value - float(plain)) <= reach for value in values)
        if not known and (decimals or int(plain) > SMALL):
            strange.append(number)
    return strange
