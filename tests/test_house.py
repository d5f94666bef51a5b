"""The structure of the package: imports run downward, rooms stay small, and no module lies loose.

`FLOORS` is the order in which the method is told: whoever imports stands above what is imported.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vader"
FLOORS = (
    "settings", "store", "rendering", "data", "training", "autodecoder", "articulation", "diffusion", "stages",
    "generation", "evaluation", "baselines", "report", "studies", "commands", "__init__", "__main__",
)  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def modules_imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, dotted below it; lazy imports and those for types count too."""
    package, found = file.relative_to(PACKAGE).parent.parts, set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1]
        base = (*base, *(node.module or "").split(".")) if node.module else base
        for alias in node.names:
            place = PACKAGE.joinpath(*base, alias.name)
            module = place.with_suffix(".py").is_file() or place.is_dir()
            found.add(".".join((*base, alias.name) if module else base))
    return found


def room(module: str) -> str:
    return module.partition(".")[0]


def name(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def test_every_room_has_a_floor():
    rooms = {room(name(file)) for file in FILES}
    assert rooms == set(FLOORS)


def test_imports_run_downward():
    upward = [
        f"{name(file)} imports {module}"
        for file in FILES
        for module in modules_imported(file)
        if module and FLOORS.index(room(module)) > FLOORS.index(room(name(file)))
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    known = {name(file) for file in FILES}
    graphlib.TopologicalSorter({name(file): modules_imported(file) & known - {name(file)} for file in FILES}).prepare()


def test_few_modules_lie_beside_the_rooms():
    assert {file.stem for file in PACKAGE.glob("*.py")} == {"__init__", "__main__", "stages"}


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=lambda f: f.name)
def test_no_room_is_a_heap(folder):
    assert len(list(folder.glob("*.py"))) <= 12


def test_no_file_is_long():
    assert not [
        f"{name(file)}: {n}" for file in FILES if (n := len(file.read_text(encoding="utf-8").splitlines())) > 350
    ]


def test_no_function_is_long():
    long = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{name(file)}.{node.name}: {node.end_lineno - node.lineno + 1} lines")
    assert not long


def test_the_backends_of_the_renderer_do_not_know_of_the_dispatch():
    for backend in ("reference", "cpu", "cuda"):
        known = modules_imported(PACKAGE / "rendering" / f"{backend}.py")
        assert not known & {"rendering.render", "rendering.fused"}, backend


def test_tests_mirror_the_rooms():
    tests = Path(__file__).parent
    folders = {f.parent.relative_to(tests).parts[0] for f in tests.rglob("test_*.py") if f.parent != tests}
    assert folders - {"benchmarks"} <= set(FLOORS)
