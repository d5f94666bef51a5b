"""HTML pages that need no network and no script: one small style sheet for all, pictures linked where they are files.

`page.html.j2` says how a notebook becomes a page. Formulas become MathML, which browsers show by themselves.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..store.files import write_file
from .png import PNG, small_png

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from pygments.filter import Filter

STYLE = "style.css"
WIDTH = 960  # pixels of a picture that is kept in a page


def write_page(file: Path, text: str) -> None:
    """Write a page, and the style sheet beside it if it is not there as it is now."""
    style, wanted = file.with_name(STYLE), Path(__file__).with_name(STYLE).read_bytes()
    if not style.is_file() or style.read_bytes() != wanted:
        write_file(style, wanted)
    write_file(file, text)


def to_html(notebook: NotebookNode, title: str, folder: Path) -> str:
    """An executed notebook as a page for `folder`.

    A picture that its report saved in the folder is linked; any other one is made small and kept in the page.
    """
    notebook = copy.deepcopy(notebook)
    heading = title
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next(_headings(cell.source), heading)
        for output in cell.get("outputs", []):
            if PNG in output.get("data", {}):
                output.metadata["source"] = _source(output, folder)
                output.metadata["heading"] = heading
    page, _ = _exporter().from_notebook_node(notebook, {"metadata": {"name": title}})
    return page


def _headings(markdown: str) -> Iterator[str]:
    return (line.lstrip("#").strip() for line in reversed(markdown.splitlines()) if line.startswith("#"))


def _source(output: NotebookNode, folder: Path) -> str:
    """Where a page finds the picture of an output: a file's name, or the picture itself as a `data:` address."""
    saved = Path(output.metadata.get(PNG, {}).get("file", ""))
    if saved.name == str(saved) and (folder / saved).is_file():
        return saved.name
    picture = small_png(base64.b64decode(output.data[PNG]), WIDTH)
    return f"data:{PNG};base64,{base64.b64encode(picture).decode('ascii')}"


def _exporter() -> Any:
    """nbconvert's exporter to HTML with this folder's template, quiet code and formulas as MathML."""
    from jinja2 import FileSystemLoader
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return mathml(body)

        def block_math(self, body: str) -> str:
            return mathml(body, display="block")

    def markdown(source: str) -> str:
        return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(source)

    return HTMLExporter(
        template_file="page.html.j2",
        extra_loaders=[FileSystemLoader(Path(__file__).parent)],
        filters={"highlight_code": code_html, "markdown_html": markdown},
    )


def mathml(latex: str, display: str = "inline") -> str:
    """A formula in LaTeX as MathML."""
    from latex2mathml.converter import convert

    return convert(latex.strip(), display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")


def code_html(source: str, **_: Any) -> str:
    """Python as HTML in which only keywords, strings, numbers and comments stand out."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    lexer = get_lexer_by_name("ipython3")
    lexer.add_filter(_quiet())
    return highlight(source, lexer, HtmlFormatter(nowrap=True))


def _quiet() -> Filter:
    from pygments.filter import Filter
    from pygments.token import Comment, Keyword, Number, Operator, String, Text

    kinds = {Comment: Comment, Keyword: Keyword, Operator.Word: Keyword, Number: Number, String: String}

    class Quiet(Filter):
        def filter(self, lexer: Any, stream: Any) -> Iterator[tuple[Any, str]]:
            for kind, text in stream:
                yield next((shown for known, shown in kinds.items() if kind in known), Text), text

    return Quiet()
