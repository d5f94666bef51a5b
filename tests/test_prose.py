"""The project's texts are short sentences, and what they name exists.

Sentences are those of the README, the departures, the data cards, the notebooks' markdown and the modules' docstrings.
Paths, modules and imports are looked up in all of these and in every other docstring of the package.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_WORDS = 45
PAGES = [ROOT / "README.md", ROOT / "reports" / "departures.md", *sorted((ROOT / "data_cards").glob("*.md"))]
PAGES = [page for page in PAGES if not page.name.startswith("ATTRIBUTION")]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "vader").rglob("*.py"))
ABBREVIATIONS = ("al", "cf", "e.g", "i.e", "vs", "Eq", "Fig", "Figs", "No", "Sec", "Tab", "Tabs")
END = re.compile(r"(?<=[.!?])[)\"”*]*\s+")
ITEM = re.compile(r"\s*([-*>]|\d+\.)\s")


def text_of(file: Path) -> str:
    """What a page, or the markdown of a notebook, says."""
    if file.suffix != ".ipynb":
        return file.read_text(encoding="utf-8")
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def docstrings(file: Path) -> list[str]:
    """Those of a module and of all that is in it, the module's first; '' where it has none."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
    return [ast.get_docstring(node) or "" for node in (tree, *inside)]


def blocks(text: str) -> list[str]:
    """Paragraphs, headings, list items and table cells. Code, formulas, comments and front matter are left out."""
    text = re.sub(r"\A---\n.*?\n---\n|```.*?```|<!--.*?-->|\$\$.*?\$\$", "\n", text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`|\$[^$\n]+\$", "code", text)
    found, current = [], []
    for line in [*text.splitlines(), ""]:
        code = line.startswith("    ") and not (current and ITEM.match(current[0]))
        if ITEM.match(line) or line.startswith(("#", "|")) or code or not line.strip():
            found, current = [*found, " ".join(current)], []
        if line.startswith(("#", "|")):
            found += line.split("|")
        elif line.strip() and not code:
            current.append(line)
    return [block.strip() for block in found if block.strip()]


def sentences(text: str) -> list[str]:
    found = []
    for block in blocks(text):
        start = 0
        for end in END.finditer(block):
            if not re.search(rf"\b({'|'.join(map(re.escape, ABBREVIATIONS))})\.$", block[: end.start()]):
                found, start = [*found, block[start : end.end()].strip()], end.end()
        found.append(block[start:].strip())
    return [sentence for sentence in found if sentence]


def faults_of_sentences(text: str) -> list[str]:
    """Sentences that nobody says aloud."""
    faults = []
    for sentence in sentences(text):
        words = len(re.findall(r"[^\W\d_][\w'’-]*", sentence))
        if words > MAX_WORDS:
            faults.append(f"{words} words, expected at most {MAX_WORDS}: {sentence}")
        if sentence.count(";") > 1:
            faults.append(f"{sentence.count(';')} semicolons, expected at most 1: {sentence}")
    return faults


def defined_in(module: Path) -> set[str]:
    """Names that a module defines or imports."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def exists(dotted: str) -> bool:
    """Whether `vader.x.y` is a module, or a name that a module of the package defines or imports."""
    place = ROOT
    for part in dotted.split("."):
        if (place / part).is_dir():
            place = place / part
        elif (place / f"{part}.py").is_file():
            place = place / f"{part}.py"
        else:
            return part in defined_in(place / "__init__.py" if place.is_dir() else place)
        if place.suffix:
            rest = dotted.partition(f".{part}.")[2]
            return not rest or rest.split(".")[0] in defined_in(place)
    return True


def faults_of_names(text: str, folder: Path = ROOT) -> list[str]:
    """Paths, names of the package and links (from `folder`) that lead nowhere."""
    paths = re.findall(r"(?<![\w./<-])((?:vader|tests|notebooks|data_cards)/[\w./*<-]*)", text)
    missing = [path for path in paths if not set("*<") & set(path) and not (ROOT / path.rstrip(".")).exists()]
    links = re.findall(r"\]\(([^)#:\s]+)\)", text)
    missing += [link for link in links if not (folder / link).exists()]
    names = re.findall(r"(?<![\w./])vader(?:\.[A-Za-z_]\w*)+", text)
    for module, imported in re.findall(r"from (vader[\w.]*) import ([\w, ]+)", text):
        names += [f"{module}.{name.split()[0]}" for name in imported.split(",") if name.strip()]
    return [f"{name} does not exist" for name in [*missing, *(name for name in names if not exists(name))]]


# ------------------------------------------------------------------------------------------------- the texts


@pytest.mark.parametrize("file", [*PAGES, *NOTEBOOKS], ids=lambda file: file.stem)
def test_a_text_has_short_sentences_and_names_what_exists(file):
    text = text_of(file)
    folder = ROOT if file.suffix == ".ipynb" else file.parent
    assert faults_of_sentences(text) + faults_of_names(text, folder) == []


def test_docstrings_of_modules_have_short_sentences():
    faults = {file.relative_to(ROOT).as_posix(): faults_of_sentences(docstrings(file)[0]) for file in MODULES}
    assert {name: found for name, found in faults.items() if found} == {}


def test_docstrings_name_what_exists():
    faults = {file.relative_to(ROOT).as_posix(): faults_of_names("\n\n".join(docstrings(file))) for file in MODULES}
    assert {name: found for name, found in faults.items() if found} == {}


# ------------------------------------------------------------------------------- that the checks can fail

LONG = "A sentence of " + "very " * 41 + "many words."


@pytest.mark.parametrize("text", [LONG, f"- an item\n- {LONG}", f"| a | {LONG} |", f"# Title\n{LONG} Short, again."])
def test_a_long_sentence_is_found(text):
    (fault,) = faults_of_sentences(text)
    assert fault.startswith("46 words, expected at most 45: ") and fault.endswith(LONG)


def test_a_chain_of_semicolons_is_found():
    (fault,) = faults_of_sentences("Short. One thought; another one; a third. Last; one.")
    assert fault == "2 semicolons, expected at most 1: One thought; another one; a third."


@pytest.mark.parametrize(
    "text",
    [f"---\na: {LONG}\n---\nShort.", f"```\n{LONG}\n```", f"Run:\n\n    {LONG}\n", f"`{LONG}`", f"<!-- {LONG} -->"],
)
def test_code_and_comments_are_no_sentences(text):
    assert faults_of_sentences(text) == []


def test_sentences_end_at_points_that_are_no_abbreviations():
    parts = [
        "As in Fig. 2 (Peng et al. 2018), it holds.",
        "numba compiles 0.5 of it (Sec. 3.2, e.g. Eq. 4).",
        "Does it?",
    ]
    assert sentences("# Title\n" + " ".join(parts) + "\n\n* One\n* Two") == ["# Title", *parts, "* One", "* Two"]


@pytest.mark.parametrize(
    "name",
    [
        "vader/nowhere.py",
        "tests/data/test_celebv_text.py",
        "notebooks/table9.ipynb",
        "data_cards/mugs.md",
        "vader.nothing",
    ]
    + ["vader.settings.profiles.UVA_CAMERAS", "vader.data.nothing.at_all"],
)
def test_a_path_or_name_that_does_not_exist_is_found(name):
    assert faults_of_names(f"It is in `{name}`, see there.") == [f"{name} does not exist"]


def test_an_import_and_a_link_that_lead_nowhere_are_found():
    text = "from vader.data import prepare, unprepare\n\n[here](README.md), [there](THERE.md), [far](https://a.org/b)"
    assert faults_of_names(text) == ["THERE.md does not exist", "vader.data.unprepare does not exist"]


def test_what_exists_is_no_fault():
    names = "`vader/data/sets/celebv_text.py`, `vader/*.py`, vader.load, `vader.settings.videos.UVA_CAMERA`"
    assert faults_of_names(f"{names}, vader.data.Video.") == []
