"""Pages need no network: one style sheet, pictures that are files or small, formulas that browsers show themselves."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from vader.report.page import STYLE, WIDTH, code_html, mathml, to_html, write_page
from vader.report.png import PNG

from .pages import asked_for, faults_of_page

ROOT = Path(__file__).parents[2]
TEXT = "# Title\n\n## What is *seen*\n\n[Paper](https://arxiv.org/abs/2307.05445): $c'$ and\n\n$$a_i = 2^{31} + i$$"


def picture(width: int = 1400, seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (6, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def shown(data: bytes, saved_as: str | None = None) -> nbformat.NotebookNode:
    """An output that is a picture, as a figure leaves it."""
    metadata = {PNG: {"file": saved_as}} if saved_as else {}
    return new_output(
        "display_data", {PNG: base64.b64encode(data).decode(), "text/plain": "<Figure>"}, metadata=metadata
    )


def executed(*outputs: nbformat.NotebookNode) -> nbformat.NotebookNode:
    cells = [new_markdown_cell(TEXT), new_code_cell("profile = 'smoke'", metadata={"tags": ["parameters"]})]
    return new_notebook(cells=[*cells, new_code_cell("for x in y:\n    show(x < 1)  # all", outputs=list(outputs))])


@pytest.fixture
def page(tmp_path) -> Path:
    """A small page: text, output of all kinds, a picture that its report saved, one that it did not."""
    (tmp_path / "n.laptop.drawn.png").write_bytes(picture())
    outputs = [
        new_output("stream", name="stdout", text="3.5 < 4\x1b[31m dB\x1b[0m"),
        new_output("stream", name="stderr", text="a warning"),
        new_output("execute_result", {"text/html": "<table><tr><td>12.5</td></tr></table>", "text/plain": "a table"}),
        new_output("execute_result", {"text/plain": "{'kd': 1}"}),
        shown(picture(), "n.laptop.drawn.png"),
        shown(picture(seed=1)),
    ]
    write_page(tmp_path / "n.laptop.html", to_html(executed(*outputs), "n.laptop", tmp_path))
    return tmp_path / "n.laptop.html"


def test_a_page_is_small_and_asks_for_the_style_and_saved_pictures_only(page):
    asked = asked_for(page.read_text(encoding="utf-8"))
    assert asked[:2] == [STYLE, "n.laptop.drawn.png"] and len(asked) == 3 and asked[2].startswith("data:image/png")
    assert faults_of_page(page) == []
    assert page.stat().st_size < 150_000


def test_all_outputs_are_on_the_page_once(page):
    text = html.unescape(re.sub(r"<[^>]*>", "", page.read_text(encoding="utf-8")))
    for output in ("3.5 < 4 dB", "a warning", "12.5", "{'kd': 1}", "show(x < 1)  # all", "profile = 'smoke'"):
        assert text.count(output) == 1, output
    assert "<Figure>" not in text and "a table" not in text, "another form of what is shown"


def test_code_is_folded_except_for_the_parameters(page):
    folds = re.findall(r"<details( open=\"\"| open)?><summary>(.*?)</summary>", page.read_text(encoding="utf-8"))
    assert [(bool(is_open), summary) for is_open, summary in folds] == [
        (True, "Code, 1 line"),
        (False, "Code, 2 lines"),
    ]


def test_formulas_are_mathml_and_links_in_prose_stay(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("<math") == 2 and 'display="block"' in text and "$" not in text
    assert 'href="https://arxiv.org/abs/2307.05445"' in text
    assert "<msup>" in mathml("2^{31}") and "http" not in mathml("2^{31}")


def test_an_embedded_picture_is_small_and_named_by_its_heading(page):
    source, name = re.findall(r'<img alt="(.*?)" src="(data:.*?)"', page.read_text(encoding="utf-8"))[0][::-1]
    found = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert found.width == WIDTH and found.mode == "P"
    assert "What is *seen*" in name


@pytest.mark.parametrize("name", ["gone.png", "../n.png", "", "/etc/hostname"])
def test_a_picture_that_does_not_lie_beside_the_page_is_kept_in_it(tmp_path, name):
    folder = tmp_path / "reports"
    folder.mkdir()
    (tmp_path / "n.png").write_bytes(picture())
    asked = asked_for(to_html(executed(shown(picture(), name)), "n", folder))
    assert asked[0] == STYLE and asked[1].startswith("data:image/png") and len(asked) == 2


def test_making_a_page_leaves_the_notebook_as_it_is(tmp_path):
    notebook = executed(shown(picture(), "x.png"))
    before = nbformat.writes(notebook)
    to_html(notebook, "n", tmp_path)
    assert nbformat.writes(notebook) == before


def test_the_style_is_written_where_it_is_missing_or_old(tmp_path):
    wanted = (ROOT / "vader" / "report" / STYLE).read_bytes()
    write_page(tmp_path / "a.html", "a")
    assert (tmp_path / STYLE).read_bytes() == wanted
    (tmp_path / STYLE).write_bytes(b"old")
    write_page(tmp_path / "b.html", "b")
    assert (tmp_path / STYLE).read_bytes() == wanted
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.html", "b.html", STYLE]


def test_the_style_asks_for_nothing_and_knows_dark_screens_phones_and_paper():
    style = (ROOT / "vader" / "report" / STYLE).read_text(encoding="utf-8")
    assert "url(" not in style and "@import" not in style
    assert all(word in style for word in ("prefers-color-scheme: dark", "max-width: 40rem", "@media print"))


@pytest.mark.parametrize("source", ['x = f\'{a!r}\' if b else """<&>"""  # <b>', "%timeit f(1e-3)\n!ls", "def f(: ¬"])
def test_highlighting_loses_nothing_of_the_code(source):
    shown = html.unescape(re.sub(r"<[^>]*>", "", code_html(source)))
    assert shown.strip("\n") == source
    assert set(re.findall(r'class="(.*?)"', code_html(source))) <= {"k", "s", "m", "c"}


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda file: file.stem)
def test_every_notebook_makes_a_page(file, tmp_path):
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(PNG, None)  # a test above has pictures; here they only cost time
    text = to_html(notebook, file.stem, tmp_path)
    prose = re.sub(r"<pre.*?</pre>|<code.*?</code>", "", text, flags=re.S)
    assert all(address == STYLE or address.startswith("data:") for address in asked_for(text))
    assert not re.search(r"\$[^$\n]+\$", prose), "a formula that was not converted"


# ------------------------------------------------------------------------------------- that the checks can fail


@pytest.mark.parametrize(
    "asks",
    [
        '<script src="https://cdn/mathjax.js"></script>', "<script>x()</script>", '<img src="missing.png">',
        '<link rel="stylesheet" href="//fonts/x.css">', "<style>@import 'https://x/y.css';</style>",
        '<p style="background: url(https://x/y.png)">', '<iframe src="http://x"></iframe>',
    ],
)  # fmt: skip
def test_what_a_page_may_not_ask_for_is_found(tmp_path, asks):
    (tmp_path / STYLE).write_text("")
    good = f'<link rel="stylesheet" href="{STYLE}"><a href="https://x">x</a><img src="data:image/png;base64,AA==">'
    (tmp_path / "page.html").write_text(good)
    assert faults_of_page(tmp_path / "page.html") == []
    (tmp_path / "page.html").write_text(good + asks)
    assert faults_of_page(tmp_path / "page.html")
