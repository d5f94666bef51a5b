"""The effect that the paper's own numbers show for a claim, and whether what was measured leaves it out.

A verdict says whether there is an effect. An interval that holds no effect may still leave out one as large as the
paper's, and one that excludes none may lie beyond it. Neither changes a verdict. Both are told beside it.

Effects are in the unit of a claim's evidence: ratios of kernel distances (Tables 1 and 3), dB and LPIPS x 0.01 (Table
2), percent of coverage (Table 4). Minimum matching distances are left out, since their unit is that of the point
clouds. Data, size and features are not the paper's, so that an effect of another size refutes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..paper import TABLE1, TABLE2, TABLE3, TABLE4
from .intervals import intervals

DATA = {  # of a claim's name -> the paper's set that it stands for
    "chairs": "photoshape_chairs",
    "tables": "abo_tables",
    "household": "objaverse",
    "people_heads": "celebv_text",
}
OURS = ("ours", "64 steps")  # of Table 3, and what its two claims compare it with
AGAINST = {"ours_beats_dls": ("dls", "N(0, I)"), "more_steps_help": ("ours", "16 steps")}
TOLERATED = re.compile(r"within (\d+) % of")  # of a claim's text: what the other's value is lessened by


@dataclass(frozen=True)
class PapersEffect:
    """value: the ratio or difference by the paper's numbers (what they are: of). excluded: the measured interval does
    not hold it."""

    value: float
    of: str
    ratio: bool
    excluded: bool

    @property
    def told(self) -> str:
        where = "outside of" if self.excluded else "within"
        what = "ratio" if self.ratio else "difference"
        return f"By the paper's {self.of} the {what} is {self.value:.3g}, {where} the interval"


def papers_effect(claim: dict[str, Any]) -> PapersEffect | None:
    """Of a claim with `id`, `text` and `evidence`, of which the first interval counts. None where either has none."""
    shown, measured = effect(claim["id"], claim["text"]), intervals(claim["evidence"])
    if shown is None or not measured:
        return None
    value, of = shown
    return PapersEffect(value, of, measured[0].neutral == 1, not measured[0].low <= value <= measured[0].high)


def effect(id: str, text: str = "") -> tuple[float, str] | None:
    """What the paper's tables show in the unit of a claim's evidence, above 0 or below 1 where they support it, and by
    which of their numbers.

    text: of the claim, which says what is tolerated.
    """
    part, *middle, last = id.split(".")
    name = middle[0] if middle else ""
    data = DATA.get(name)
    if part == "table2" and name in list(TABLE2)[1:] and last in ("psnr", "lpips"):
        names, column = list(TABLE2), ("psnr", "lpips").index(last)
        return abs(TABLE2[name][column] - TABLE2[names[names.index(name) - 1]][column]), last.upper()
    if part == "table1" and (match := re.fullmatch(r"(\w+)_beats_(\w+)", last)):
        pair = [TABLE1.get(system, {}).get((data, "kid")) for system in match.groups()]
        return None if None in pair else (pair[0] / pair[1], f"KID on {data}")
    if part == "table3" and last in AGAINST and data in TABLE3[OURS]:
        return TABLE3[OURS][data][1] / TABLE3[AGAINST[last]][data][1], f"KID on {data}"
    if part == "table4" and (match := re.fullmatch(r"cov_against_(\w+)", last)):
        pair = [TABLE4.get(system, {}).get((data, "cov")) for system in ("ours", match[1])]
        tolerated = TOLERATED.search(text)
        kept = 1 - int(tolerated[1]) / 100 if tolerated else 1
        return None if None in pair else (pair[0] - kept * pair[1], f"COV on {data}")
    return None
