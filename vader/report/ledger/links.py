"""Pages of reports, connected: each claim has a place where it is decided, and pictures of samples lead to the gallery.

Both are added to a page that is there, and renewed whenever claims are collected or the gallery is made anew.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...store.files import read_json, write_file
from ..gallery.record import read_record

PLACE = re.compile(r'<span class="place" id="[^"]*"></span>')
OUTPUT = re.compile(r'<pre class="output">(.*?)</pre>', re.S)
LINK = re.compile(r'<a class="turns" [^>]*>(<img[^>]*>)<span>[^<]*</span></a>')
PICTURE = re.compile(r'<img[^>]*\ssrc="([^"]+)"[^>]*>')
ROWS = {"generated": "ours", "prompts": "ours", "driven": "driven"}  # how pictures begin that no set is named in
WORDS = "Turn them in the viewer"


def renew_pages(folder: Path) -> list[Path]:
    """Connect all pages of reports in a folder; those that changed."""
    record, changed = read_record(folder / "gallery"), []
    for file in sorted(folder.glob("*.*.json")):
        page = file.with_suffix(".html")
        if not page.is_file() or file.name.startswith("benchmarks."):
            continue
        before = page.read_text(encoding="utf-8")
        after = connected(before, read_json(file), record)
        if after != before:
            write_file(page, after)
            changed.append(page)
    return changed


def connected(page: str, report: dict[str, Any], record: dict[str, Any] | None) -> str:
    """A report's page with a place for each of its claims and, as far as the gallery has its runs, links to that.

    record: of the gallery beside it, None where there is none.
    """
    page = LINK.sub(r"\1", PLACE.sub("", page))
    for position, id in sorted(_places(page, report["claims"]), reverse=True):
        page = f'{page[:position]}<span class="place" id="{html.escape(id)}"></span>{page[position:]}'
    used = {run["digest"] for run in report["environment"].get("runs", [])}
    halls = [hall for hall in record["halls"] if used & set(hall["runs"])] if record else []
    stem = f"{report['notebook']}.{report['profile']}."

    def link(match: re.Match) -> str:
        name = html.unescape(match[1])
        target = _target(name[len(stem) :].removesuffix(".png"), halls) if name.startswith(stem) else None
        if target is None:
            return match[0]
        return f'<a class="turns" href="gallery/{html.escape(target)}">{match[0]}<span>{WORDS}</span></a>'

    return PICTURE.sub(link, page)


def _places(page: str, claims: list[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    """Where the output is that says what was found of each claim; the last output for one that none speaks of."""
    outputs = [(match.start(), html.unescape(match[1])) for match in OUTPUT.finditer(page)]
    for claim in claims:
        name, found = claim["id"].partition(".")[2], claim["evidence"].partition("; ")[0]
        both = [at for at, text in outputs if found in text and name in text]
        either = both or [at for at, text in outputs if found in text] or [at for at, text in outputs if name in text]
        at = either or [outputs[-1][0] if outputs else page.index("<main>") + len("<main>") if "<main>" in page else 0]
        yield at[0], claim["id"]


def _target(picture: str, halls: list[dict[str, Any]]) -> str | None:
    """The page of the gallery that a picture of a report belongs to, by its name: what is shown of a set."""
    name, _, more = picture.partition(".")
    for hall in halls:
        rows = {row["key"]: row["viewer"] for row in hall["rows"]}
        if name == hall["key"] and "ours" in rows:
            return hall["page"] if more else rows["ours"] or hall["page"]
        if name in hall["names"] and name != hall["key"]:
            return rows.get("reconstructions") or hall["page"]
        row = next((row for word, row in ROWS.items() if name.startswith(word)), None)
        if row in rows:
            return rows[row] or hall["page"]
    return None
