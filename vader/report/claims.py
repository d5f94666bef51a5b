"""The ledger of the paper's claims, with the verdict of each profile."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..store.files import write_json
from ..store.paths import reports_dir
from .contract import VERDICTS
from .report import read_reports


def write_claims() -> list[Path]:
    """Collect the claims of all reports into `claims.json` and `claims.html` beside them."""
    ledger = collect_claims(read_reports())
    reports_dir().mkdir(parents=True, exist_ok=True)
    data, page = reports_dir() / "claims.json", reports_dir() / "claims.html"
    write_json(data, ledger)
    page.write_text(claims_page(ledger), encoding="utf-8")
    return [data, page]


def collect_claims(reports: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All claims by profile, failed ones first, each with the report that decided it."""
    profiles: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        source = {key: report[key] for key in ("notebook", "seed", "digest", "commit")}
        profiles.setdefault(report["profile"], []).extend({**claim, **source} for claim in report["claims"])
    ledger = {}
    for profile, claims in sorted(profiles.items()):
        claims.sort(key=lambda claim: (VERDICTS.index(claim["verdict"]), claim["id"], claim["notebook"]))
        counts = Counter(claim["verdict"] for claim in claims)
        ledger[profile] = {"counts": {verdict: counts[verdict] for verdict in VERDICTS}, "claims": claims}
    return {"profiles": ledger}


def claims_page(ledger: dict[str, Any]) -> str:
    """`collect_claims` as one HTML page that needs nothing else."""
    sections = []
    for profile, part in ledger["profiles"].items():
        counts = ", ".join(f"{count} {verdict.replace('_', ' ')}" for verdict, count in part["counts"].items() if count)
        lines = "\n".join(_claim_line(claim) for claim in part["claims"])
        sections.append(
            f"<h2>Profile {html.escape(profile)}: {counts or 'no claims'}</h2>\n<table>\n<tr><th>verdict</th>"
            f"<th>claim</th><th>where</th><th>evidence</th><th>report</th></tr>\n{lines}\n</table>"
        )
    return _PAGE.format(body="\n".join(sections) or "<p>No report has been written yet.</p>")


def _claim_line(claim: dict[str, Any]) -> str:
    cells = (f"<code>{claim['id']}</code><br>{html.escape(claim['text'])}", html.escape(claim["where"]))
    cells += (html.escape(claim["evidence"]), f"{claim['notebook']}, seed {claim['seed']}")
    verdict = f'<td class="{claim["verdict"]}">{claim["verdict"].replace("_", " ")}</td>'
    return f"<tr>{verdict}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Claims of the paper, tested</title>
<style>
body {{ font-family: sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }} th, td {{ border: 1px solid #ccc; padding: 0.4em; text-align: left; }}
td {{ vertical-align: top; }} .fails {{ background: #f6b8b0; font-weight: bold; }} .holds {{ background: #c8e6c1; }}
.inconclusive {{ background: #fbe9a7; }}
</style></head><body>
<h1>Claims of the paper, tested</h1>
<p>A claim holds or fails only where the interval of the measured difference excludes zero. Each profile is a study of
its own size: a verdict says nothing about another profile or about the paper's own experiment.</p>
{body}
</body></html>
"""
