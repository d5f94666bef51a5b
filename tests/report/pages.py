"""What a page asks for, so that tests can say that it is there."""

from __future__ import annotations

import html
import html.parser
import re
from pathlib import Path


class _Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key in ("src", "srcset", "poster", "data") or (key == "href" and tag != "a"):
                self.asked.append(value or "")
            elif key == "style":
                self.asked += re.findall(r"url\(['\"]?([^'\")]+)", value)
        if tag == "script":
            self.asked.append("<script>")

    def handle_data(self, data):
        self.asked += re.findall(r"@import[^;]*|url\(['\"]?[^'\")]+", data) if self.lasttag == "style" else []


def asked_for(text: str) -> list[str]:
    """Everything that a browser loads to show a page, scripts of its own too; links to follow are not among it."""
    page = _Page()
    page.feed(text)
    return page.asked


def faults_of_page(file: Path) -> list[str]:
    """What a page asks for that does not lie beside it."""
    asked = {address for address in asked_for(file.read_text(encoding="utf-8")) if not address.startswith("data:")}
    return sorted(address for address in asked if not (file.parent / address).is_file())


def dead_links(file: Path) -> list[str]:
    """Links of a page to files, or to places in them, that are not there; those to other sites are not followed."""
    faults = []
    for address in re.findall(r"""(?:href|src)=["'](.*?)["']""", file.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", address):
            continue
        name, _, place = html.unescape(address).partition("#")
        target = file.parent / name if name else file
        if not target.exists():
            faults.append(f"{file.name}: {address}")
        elif place and not re.match(r"object-\d+", place):
            ids = re.findall(r"""\sid=["'](.*?)["']""", target.read_text(encoding="utf-8"))
            if place not in map(html.unescape, ids):
                faults.append(f"{file.name}: {address}")
    return faults
