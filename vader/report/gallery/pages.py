"""The pages of the gallery, and the files that they show: paths relative to its folder, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..page import STYLE
from ..viewer import volume_payload
from ..viewer.page import Beside, linked_page, payload_script, still, viewer_files
from .contents import GalleryError, Hall, Row, Work, slug
from .pictures import strip

TITLE = "Results that turn"
INDEX = "index.html"
SLIDER = "slider.js"
HERE = Path(__file__).parent
Files = Iterator[tuple[str, bytes | str]]


def common_files() -> Files:
    """What all pages share."""
    yield STYLE, (HERE.parent / STYLE).read_bytes()
    yield SLIDER, (HERE / SLIDER).read_bytes()
    yield from viewer_files().items()


def hall_files(hall: Hall) -> tuple[dict[str, Any], list[tuple[str, bytes | str]]]:
    """What pages are told of a hall, and its files: pages, films, volumes, meshes."""
    for key in (hall.key, *(row.key for row in hall.rows)):
        if not re.fullmatch(r"[\w-]+", key, re.ASCII):
            raise GalleryError(f"{key!r} is no name of a page, expected letters, digits, '_' and '-'")
    files: list[tuple[str, bytes | str]] = []
    rows = [_row(hall, row, files) for row in hall.rows]
    groups = _group_pages(hall)
    told = {
        "key": hall.key,
        "title": hall.title,
        "page": f"{hall.key}.html",
        "caution": hall.caution,
        "rows": rows,
        "groups": groups,
        "credits": hall.credits,
        "slides": any(row["slider"] for row in rows),
    }
    back = (INDEX, TITLE)
    files.append((told["page"], _render("hall.html.j2", title=hall.title, hall=told, rows=rows, group=None, back=back)))
    for name, page in groups:
        chosen = [row | {"works": [work for work in row["works"] if work["group"] == name]} for row in rows]
        chosen = [row for row in chosen if row["works"] and not row["slider"]]
        title, back = f"{hall.title}: {name}", (told["page"], hall.title)
        files.append((page, _render("hall.html.j2", title=title, hall=told, rows=chosen, group=name, back=back)))
    return told, files


def index_page(halls: Sequence[dict[str, Any]], profile: str, missing: Sequence[str], claims: str | None) -> str:
    """The first page. claims: the address of the ledger of claims, where there is one."""
    return _render("index.html.j2", title=TITLE, halls=halls, profile=profile, missing=missing, claims=claims)


def _group_pages(hall: Hall) -> list[tuple[str, str]]:
    """(name, page) of each category; names that look alike get numbers."""
    pages: list[tuple[str, str]] = []
    for name in hall.groups:
        stem = f"{hall.key}.{slug(name, 'category')}"
        taken = sum(page.startswith(stem) for _, page in pages)
        pages.append((name, f"{stem}{f'-{taken + 1}' if taken else ''}.html"))
    return pages


def _row(hall: Hall, row: Row, files: list[tuple[str, bytes | str]]) -> dict[str, Any]:
    """What a page is told of a row. Its files, and the page of its viewer, are appended to `files`."""
    viewer, folder = f"{hall.key}.{row.key}.html", hall.key
    shown, works = [], []
    for number, work in enumerate(row.works):
        stem = f"{folder}/{row.key}-{number}"
        told = _work(work, stem, files, keep_film=not row.slider)
        if work.exhibit is not None:
            payload = volume_payload(work.exhibit.volume, work.exhibit.name, _most(work.exhibit.volume.shape[-1]))
            script = payload_script(f"{stem}.js", payload)
            files += [(f"{stem}.js", script), (f"{stem}-still.webp", still(work.exhibit))]
            place = Beside(f"{stem}-still.webp", f"{stem}.js", round(len(script) / 1000, 1))
            shown.append((_with_mesh(work, told["mesh"]), place))
            told["viewer"] = f"{viewer}#object-{len(shown)}"
        works.append(told)
    if shown:
        back = (f"{hall.key}.html", hall.title)
        files.append((viewer, linked_page(shown, f"{hall.title}: {row.title}", back)))
    film = None
    if row.slider:
        film = f"{folder}/{row.key}.webp"
        files.append((film, strip(torch.stack([work.film[0] for work in row.works]))))
    return {
        "key": row.key,
        "title": row.title,
        "note": row.note,
        "facts": row.facts,
        "slider": row.slider,
        "prompts": any("“" in work.text for work in row.works),
        "viewer": viewer if shown else None,
        "film": film,
        "works": works,
    }


def _most(resolution: int) -> int:
    """Bytes that a volume may take: 25 KB in base64 at 32^3."""
    return round(18_000 * max(1.0, (resolution / 32) ** 3))


def _with_mesh(work: Work, mesh: str | None) -> Any:
    return replace(work.exhibit, glb=mesh)


def _work(work: Work, stem: str, files: list[tuple[str, bytes | str]], keep_film: bool) -> dict[str, Any]:
    if keep_film:
        files.append((f"{stem}.webp", strip(work.film)))
    beside = []
    for n, picture in enumerate(work.beside):
        files.append((f"{stem}-beside{n}.webp", strip(picture.frames, quality=85)))
        told = {"film": f"{stem}-beside{n}.webp", "frames": len(picture.frames)}
        told["broad"] = picture.frames.shape[2] > picture.frames.shape[1]
        beside.append(told | {"label": picture.label, "alt": picture.alt})
    if work.mesh:
        files.append((f"{stem}.glb", work.mesh))
    return {
        "name": work.name,
        "text": work.text,
        "alt": work.alt,
        "group": work.group,
        "film": f"{stem}.webp",
        "frames": len(work.film),
        "beside": beside,
        "viewer": None,
        "mesh": f"{stem}.glb" if work.mesh else None,
        "kilobytes": round(len(work.mesh) / 1000) if work.mesh else None,
    }


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    return environment.get_template(template).render(script=SLIDER, **values)
