"""The ledger of claims as one HTML page, which needs the style sheet of all pages beside it, and no script."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from ..page import STYLE
from ..paper import TABLE1, TABLE2, TABLE4
from ..schema import SYSTEMS, VERDICTS
from .causes import CAUSES
from .intervals import drawing, intervals, margin
from .papers import DATA, papers_effect

HERE = Path(__file__).parent
UNITS = {"fid": "FID", "cov": "COV", "mmd": "MMD", "psnr": "PSNR", "lpips": "LPIPS"}


def claims_page(ledger: dict[str, Any]) -> str:
    """`collect_claims` as a page. Filters are radio buttons that the style sheet reads."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    profiles = [
        {"name": name, "counts": part["counts"], "claims": [_told(claim, name) for claim in part["claims"]]}
        for name, part in ledger["profiles"].items()
    ]
    every = [claim for profile in profiles for claim in profile["claims"]]
    parts = sorted({claim["part"] for claim in every}, key=_order)
    there = {(claim["verdict"], claim["part"]) for claim in every}
    absent = [(v, p) for v in VERDICTS for p in parts if (v, p) not in there]
    verdicts = [v for v in VERDICTS if any(claim["verdict"] == v for claim in every)]
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        style=STYLE,
        profiles=profiles,
        verdicts=[(v, v.replace("_", " "), sum(c["verdict"] == v for c in every)) for v in verdicts],
        parts=[(p, _part_name(p), sum(c["part"] == p for c in every)) for p in parts],
        absent=[pair for pair in absent if pair[0] in verdicts],
        total=len(every),
    )


def _told(claim: dict[str, Any], profile: str) -> dict[str, Any]:
    """What the page says of a claim."""
    passing, papers = margin(claim["text"]), papers_effect(claim)
    drawn = [
        {"words": (one.before, one.numbers, one.after), "svg": drawing(one, claim["verdict"], passing)}
        for one in intervals(claim["evidence"])
    ]
    return {
        **claim,
        "part": claim["id"].partition(".")[0],
        "words": claim["verdict"].replace("_", " "),
        "stated": stated(claim["id"]),
        "papers": papers.told if papers else "",
        "drawn": drawn,
        "also": claim.get("also", []),
        "cause": {**claim["cause"], "words": CAUSES[claim["cause"]["cause"]]} if "cause" in claim else None,
        "uncommitted": claim["commit"].endswith("+"),
        "page": f"{claim['notebook']}.{profile}.html#{claim['id']}",
        "key": html.escape(f"{profile}.{claim['notebook']}.{claim['id']}"),
    }


def stated(id: str) -> str:
    """The numbers of the paper that a claim compares, in words; '' where its tables have none."""
    part, *middle, last = id.split(".")
    if part == "table1" and (match := re.fullmatch(r"(\w+)_beats_(\w+)", last)) and middle[0] in DATA:
        return _pair(TABLE1, *match.groups(), DATA[middle[0]], "fid")
    if part == "table4" and (match := re.fullmatch(r"(cov|mmd)_against_(\w+)", last)) and middle[0] in DATA:
        return _pair(TABLE4, "ours", match[2], DATA[middle[0]], match[1])
    if part == "table2" and last in ("psnr", "lpips") and middle[0] in TABLE2:
        column, before = ("psnr", "lpips").index(last), list(TABLE2)[list(TABLE2).index(middle[0]) - 1]
        values = TABLE2[before][column], TABLE2[middle[0]][column]
        return f"{UNITS[last]} {values[0]:g} with it, {values[1]:g} without"
    return ""


def _pair(table: dict[str, dict[tuple[str, str], float]], a: str, b: str, data: str, metric: str) -> str:
    values = [table.get(system, {}).get((data, metric)) for system in (a, b)]
    if None in values:
        return ""
    return f"{UNITS[metric]} {values[0]:g} for {SYSTEMS[a]}, {values[1]:g} for {SYSTEMS[b]}"


def _part_name(part: str) -> str:
    return re.sub(r"^(table|figure)(\d+)$", lambda m: f"{m[1].capitalize()} {m[2]}", part).replace("_", " ")


def _order(part: str) -> tuple[bool, str, int, str]:
    """Tables first, then figures, by number; then the others."""
    match = re.fullmatch(r"(table|figure)(\d+)", part)
    return (False, {"table": "a", "figure": "b"}[match[1]], int(match[2]), "") if match else (True, "", 0, part)
