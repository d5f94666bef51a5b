"""The intervals that a claim's evidence states, and small drawings of them (SVG).

Evidence is a sentence such as "kernel distance 0.39 times that of DiffRF (95 % interval 0.32 to 0.47), ...": before the
parenthesis the value, in it, around the word "to", its interval.
"""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass

NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
STATED = re.compile(rf"\(([^()]*?)({NUMBER}) to ({NUMBER})[^()]*\)")
ALONE = re.compile(rf"(?<![\w^.,]){NUMBER}(?![\w^])")
RATIO = re.compile(r"\btimes\b|\bover\b|\brelative to\b")  # of a value that is 1 where there is no difference
MARGIN = re.compile(r"\((\d+(?:\.\d+)?) dB\)|within (\d+(?:\.\d+)?) dB")  # of a claim: a difference that counts as none
FACTOR = re.compile(r"within a factor of (\d+(?:\.\d+)?)")  # of a claim about a ratio: what counts as 1
WIDTH, HEIGHT, EDGE = 260, 34, 8  # of a drawing in pixels, and its margin


@dataclass(frozen=True)
class Interval:
    """A value and its interval. before, after: words on either side of the value. neutral: where nothing differs."""

    value: float
    low: float
    high: float
    before: str
    after: str
    neutral: float

    @property
    def numbers(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def intervals(evidence: str) -> list[Interval]:
    """All intervals of a sentence, in their order; those without a value before them are left out."""
    found, lead, start = [], "", 0
    for match in STATED.finditer(evidence):
        clause = re.split(r";\s", evidence[start : match.start()])[-1].strip(" ,;")
        start, low, high = match.end(), _number(match[2]), _number(match[3])
        slack = 0.01 * max(abs(low), abs(high))  # what is written is rounded
        fitting = [one for one in ALONE.finditer(clause) if low - slack <= _number(one[0]) <= high + slack]
        if not fitting or low > high:
            continue
        before, after = clause[: fitting[-1].start()].strip(), clause[fitting[-1].end() :].strip()
        lead = lead or before  # "error relative to ...: classic 0.8 (...), robust 0.7 (...)"
        neutral = 1.0 if RATIO.search(f"{lead} {after}") and low > 0 else 0.0
        found.append(Interval(_number(fitting[-1][0]), low, high, before, after, neutral))
    return found


def margin(text: str) -> float:
    """The difference that a claim lets pass as none, in the unit of its numbers; 0 where it names none.

    Of a claim about a ratio it is the logarithm of the factor that the claim names.
    """
    if factor := FACTOR.search(text):
        return math.log(float(factor[1]))
    match = MARGIN.search(text)
    return float(match[1] or match[2]) if match else 0.0


def drawing(shown: Interval, verdict: str, passing: float = 0.0) -> str:
    """An interval, its value, and a line where there is no difference; passing: half of the band around that line.

    Ratios are drawn by their logarithms.
    """
    scale = math.log if shown.neutral == 1 else float
    points = {name: scale(getattr(shown, name)) for name in ("value", "low", "high", "neutral")}
    points |= {"from": points["neutral"] - passing, "until": points["neutral"] + passing}
    least, most = min(points.values()), max(points.values())
    reach = (most - least) or abs(most) or 1.0
    step = (WIDTH - 2 * EDGE) / (1.2 * reach)
    x = {name: round(EDGE + (point - least + 0.1 * reach) * step, 1) for name, point in points.items()}
    allowed = f"within a factor of {math.exp(passing):.3g}" if shown.neutral == 1 else f"±{passing:g}"
    none = "no difference" if not passing else f"no difference, {allowed}"
    said = f"{shown.value:g}, interval {shown.low:g} to {shown.high:g}; {none} at {shown.neutral:g}"
    band = f'<rect class="band" x="{x["from"]}" y="2" width="{x["until"] - x["from"]:.1f}" height="20"/>'
    return (
        f'<svg class="interval {html.escape(verdict)}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-label="{html.escape(said)}">{band if passing else ""}'
        f'<line class="none" x1="{x["neutral"]}" x2="{x["neutral"]}" y1="2" y2="22"/>'
        f'<line class="range" x1="{x["low"]}" x2="{x["high"]}" y1="12" y2="12"/>'
        f'<circle cx="{x["value"]}" cy="12" r="4.5"/>'
        f'<text x="{min(max(x["neutral"], 6), WIDTH - 6)}" y="33">{shown.neutral:g}</text></svg>'
    )


def _number(text: str) -> float:
    return float(text.replace(",", ""))
