"""Notebooks as programs: parameters that are checked, runs that leave a report, stored outputs that can be renewed.

papermill takes unknown parameters with a warning and values of any type. So a notebook calls
`begin` in the cell after its parameters, which works under papermill, nbval, Jupyter and
`jupyter execute` alike, and `run` refuses before it starts a kernel.
"""

from __future__ import annotations

import ast
import os
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings.checks import nearest
from ..store.files import read_json
from ..store.paths import notebooks_dir, project_root, reports_dir
from .gallery.record import read_record
from .ledger.links import connected
from .page import to_html, write_page
from .png import shrink
from .report import Report, notebook_part

if TYPE_CHECKING:
    from nbformat import NotebookNode

LITERALS = (bool, int, float, str, list, tuple, dict, type(None))  # what papermill can inject
STORED = {"max_width": 480, "colours": 64}  # of pictures in notebooks: they show what a cell draws, of untrained models
CHECKED = "_parameters_are_checked"  # variable left in a kernel in which `check_parameters` has passed


class ParameterError(ValueError):
    """A notebook that is unknown, a parameter that it does not have, or a value that it cannot take."""


def check_parameters(namespace: dict[str, Any], **known: type | Collection[Any]) -> None:
    """Refuse a notebook's unknown and mistyped parameters; to be called before it defines anything else.

        check_parameters(globals(), profile=PROFILES, data=("procedural", "furniture"), seed=range(2**31))

    known: for each parameter its type, or the values it may take. In a fresh kernel every variable that is none of
    IPython's own must be a known parameter; a later call in the same kernel, as after an edit in Jupyter, checks
    the values only. Raises ParameterError with the list of known ones.
    """
    names = ", ".join(known)
    if CHECKED not in namespace:
        shell = namespace.get("get_ipython")
        own = set(shell().user_ns_hidden) if shell else set()
        for name, value in namespace.items():
            if name not in known and name not in own and not name.startswith("_") and isinstance(value, LITERALS):
                raise ParameterError(f"parameter {name!r} is unknown{nearest(name, list(known))}; known: {names}")
    for name, allowed in known.items():
        if name not in namespace:
            raise ParameterError(f"parameter {name!r} is missing, expected it in the parameters cell; known: {names}")
        _check_value(name, namespace[name], allowed)
    namespace[CHECKED] = True


def begin(name: str, namespace: dict[str, Any], **known: type | Collection[Any]) -> Report:
    """The first call of every notebook: it checks the parameters (`check_parameters`) and returns an empty report.

        report = begin("table1", globals(), profile=PROFILES, data=("procedural", "furniture"), seed=range(2**31))

    In the smoke profile torch takes one thread: tiny tensors gain nothing from more, and one adds up in the same order
    everywhere. Raises ParameterError.
    """
    check_parameters(namespace, **known)
    if namespace["profile"] == "smoke":
        import torch

        torch.set_num_threads(1)
    data = (namespace["data"],) if "data" in known else ()
    return Report(name, namespace["profile"], namespace["seed"], *data)


def allowed_values(notebook: NotebookNode) -> dict[str, type | Collection[Any]]:
    """What a notebook's call of `begin` or `check_parameters` allows for each of its parameters, as far as that is
    written with literals, types and ranges."""
    known = {"range": range, **{kind.__name__: kind for kind in (bool, int, float, str)}}
    found = {}
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith(("%", "!")))
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
        for call in (c for c in calls if getattr(c.func, "id", None) in ("begin", "check_parameters")):
            for keyword in (k for k in call.keywords if k.arg is not None):
                code = compile(ast.Expression(keyword.value), "parameters", "eval")
                if set(code.co_names) <= known.keys():
                    found[keyword.arg] = eval(code, {"__builtins__": {}}, known)
    return found


def _check_value(name: str, value: Any, allowed: type | Collection[Any]) -> None:
    hint = ""
    if isinstance(allowed, type):
        kinds, fits = ({int, float} if allowed is float else {allowed}), True
        expected = f"a value of type {allowed.__name__}"
    elif isinstance(allowed, range):
        kinds, fits = {int}, type(value) is int and value in allowed
        expected = f"an integer from {allowed.start} to {allowed.stop - 1}"
    else:
        kinds, fits = {type(item) for item in allowed}, value in list(allowed)
        expected = f"one of {', '.join(map(repr, allowed))}"
        hint = nearest(value, [item for item in allowed if isinstance(item, str)]) if isinstance(value, str) else ""
    if type(value) not in kinds or not fits:  # bool is an int, but True is no seed
        raise ParameterError(
            f"parameter {name!r} is {value!r} of type {type(value).__name__}, expected {expected}{hint}"
        )


# ------------------------------------------------------------------------------------------------ parameters


def parameters_of(notebook: NotebookNode, name: str) -> dict[str, Any]:
    """The parameters of a notebook and their defaults. Raises ParameterError unless its cell tagged 'parameters'
    holds `name = literal` lines only."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(f"{name}: has {len(cells)} cells tagged 'parameters', expected one")
    defaults = {}
    for line in ast.parse(cells[0].source).body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        try:
            (target,) = targets
            defaults[target.id] = ast.literal_eval(line.value)
        except (AttributeError, ValueError) as error:
            code = ast.unparse(line)
            raise ParameterError(f"{name}: parameters cell has the line {code!r}, expected `name = literal`") from error
    return defaults


def parse_value(name: str, text: str, default: Any) -> Any:
    """The value that `text` stands for, of the type of the parameter's default. Raises ParameterError."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, int | float | str):
            return type(default)(text)
        value = ast.literal_eval(text)
        if type(value) is type(default) or default is None:
            return value
    except (KeyError, ValueError, SyntaxError):
        pass
    raise ParameterError(f"parameter {name!r} is {text!r}, expected a value of type {type(default).__name__}")


# ------------------------------------------------------------------------------------------------- execution


def run(name: str, profile: str, assignments: dict[str, str]) -> list[Path]:
    """Run a notebook and return what it left in the reports folder: executed notebook, HTML page and report.

    assignments: parameters as on the command line. Raises ParameterError before any work for a notebook or
    parameter that does not exist or a value that it cannot take, and papermill's error where a cell fails; the
    executed notebook then shows where.
    """
    notebook, file = _read(name)
    defaults = parameters_of(notebook, file.name)
    values = {"profile": profile}
    for key, text in assignments.items():
        if key not in defaults:
            known = ", ".join(f"{k} ({type(v).__name__}, default {v!r})" for k, v in defaults.items())
            raise ParameterError(f"parameter {key!r} is unknown{nearest(key, list(defaults))}; {name} has: {known}")
        values[key] = parse_value(key, text, defaults[key])
    allowed = allowed_values(notebook)
    for key in values.keys() & allowed.keys():
        _check_value(key, values[key], allowed[key])

    try:
        import latex2mathml  # noqa: F401  it and the next one are for the page, after all work
        import nbconvert  # noqa: F401
        import papermill
    except ImportError as error:
        raise ImportError(f'running a notebook needs {error.name}: pip install "vader[notebooks]"') from error
    stem = f"{notebook_part(name, values.get('data', defaults.get('data', 'procedural')))}.{profile}"
    reports_dir().mkdir(parents=True, exist_ok=True)
    executed, page, report = (reports_dir() / f"{stem}.{suffix}" for suffix in ("ipynb", "html", "json"))
    start = time.time()
    papermill.execute_notebook(str(file), str(executed), values, cwd=str(file.parent), progress_bar=sys.stderr.isatty())
    result = _as_notebook(executed)
    shorten_warnings(result)
    write_page(page, to_html(result, stem, page.parent))
    for place in machine_paths(result):
        print(f"warning: {stem}: {place}", file=sys.stderr)
    if not report.is_file() or report.stat().st_mtime < start - 2:  # file systems round times
        raise ParameterError(f"{name}: ran, but wrote no report {report.name}; its last cell should save one")
    made, gallery = page.read_text(encoding="utf-8"), read_record(page.parent / "gallery")
    write_page(page, connected(made, read_json(report), gallery))
    return [executed, page, report]


def refresh(name: str) -> Path:
    """Renew the outputs stored in a notebook: run it in place with its defaults, from nothing, and drop what varies.

    Its default profile must be 'smoke', which is what the tests run and compare with the stored outputs. Pictures are
    stored small: nothing is compared with them.
    """
    notebook, file = _read(name)
    if parameters_of(notebook, file.name).get("profile") != "smoke":
        raise ParameterError(f"{file.name}: its profile is not 'smoke' by default, as the tests need it")
    from nbclient import NotebookClient

    with from_nothing():
        client = NotebookClient(notebook, resources={"metadata": {"path": str(file.parent)}}, record_timing=False)
        client.execute()
    strip(notebook)
    shrink(notebook, **STORED)
    places = machine_paths(notebook)
    if places:
        raise ParameterError(f"{file.name}: outputs would show paths of this machine: {'; '.join(places)}")
    import nbformat

    nbformat.write(notebook, file)
    return file


@contextmanager
def from_nothing() -> Iterator[None]:
    """Run with empty folders for data, runs and reports, so that nothing left by earlier work can decide a result."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {f"VADER_{kind}": str(Path(folder) / kind.lower()) for kind in ("DATA", "RUNS", "REPORTS")}
        changes["TQDM_DISABLE"] = "1"
        before = {key: os.environ.get(key) for key in changes}
        os.environ.update(changes)
        try:
            yield
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})


def strip(notebook: NotebookNode) -> None:
    """Drop metadata that changes with every run or machine; tags, outputs and execution counts stay."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()


def shorten_warnings(notebook: NotebookNode) -> None:
    """Let warnings, which name the file that they come from, name it from the project's root on."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                output.text = output.text.replace(f"{project_root()}/", "")


def machine_paths(notebook: NotebookNode) -> list[str]:
    """Where the outputs of a notebook name folders of this machine, which say nothing to anyone else."""
    folders = {str(project_root()), str(Path.home()), sys.prefix, tempfile.gettempdir()} - {"/"}
    found = []
    for i, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            data = {key: value for key, value in output.get("data", {}).items() if not key.startswith("image/")}
            text = str(output.get("text", "")) + str(data)
            found += [f"cell {i} shows {folder}" for folder in sorted(folders) if f"{folder}/" in text]
    return found


def _read(name: str) -> tuple[NotebookNode, Path]:
    file = notebooks_dir() / f"{name}.ipynb"
    if not file.is_file():
        known = sorted(path.stem for path in notebooks_dir().glob("*.ipynb"))
        raise ParameterError(f"no notebook is called {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    return _as_notebook(file), file


def _as_notebook(file: Path) -> NotebookNode:
    import nbformat

    return nbformat.read(file, as_version=4)
