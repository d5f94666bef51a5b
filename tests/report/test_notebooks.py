"""The notebooks' form, the runner, and nbval as it is set up here: noise passes, a wrong number fails.

The notebooks themselves are run by `pytest --nbval notebooks`.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from vader.report import notebook as module
from vader.report import read_reports
from vader.report.ledger.causes import unmeasured
from vader.report.notebook import ParameterError, check_parameters, machine_paths, parameters_of, parse_value
from vader.settings.checks import SEEDS

from .pages import asked_for, faults_of_page

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KNOWN = {"profile": ("smoke", "laptop"), "data": ("procedural", "furniture"), "seed": range(2**31)}
PARAMETERS = 'profile = "smoke"  # size\ndata = "procedural"\nseed: int = 0'
CHECK = f"from vader.report import check_parameters\ncheck_parameters(globals(), **{KNOWN!r})"


def notebook_of(*sources: str) -> nbformat.NotebookNode:
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), *map(new_code_cell, sources)])
    notebook.cells[1].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return notebook


# ------------------------------------------------------------------------------------- the notebooks' own form


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_checks_its_parameters_first_and_is_small_by_default(file):
    notebook = nbformat.read(file, as_version=4)
    defaults = parameters_of(notebook, file.name)
    assert defaults["profile"] == "smoke" and isinstance(defaults["seed"], int)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.tags and f'report = begin("{file.stem}", globals()' in code[
        1
    ].source.replace("begin(\n    ", "begin(")
    assert len(notebook.cells) <= 50 and max(len(cell.source.splitlines()) for cell in code) <= 15


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_holds_outputs_to_compare_with_and_nothing_of_one_machine(file):
    notebook = nbformat.read(file, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code) and all(cell.execution_count for cell in code)
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert machine_paths(notebook) == []
    before = nbformat.writes(notebook)
    module.strip(notebook)
    assert nbformat.writes(notebook) == before, f"vader report refresh {file.stem} renews it"


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4"])
def test_what_a_notebook_says_that_the_paper_claims_are_numbers_of_its_tables(name):
    text = "\n\n".join(c.source for c in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells)
    stated = [paragraph for paragraph in text.split("\n\n") if paragraph.startswith("**The paper claims**")]
    reports = [r for r in read_reports(ROOT / "reports") if r["notebook"].partition("-")[0] == name]
    rows = [row for report in reports for row in report["rows"] if row["source"] == "paper"]
    assert len(stated) == 1 and rows
    assert set(unmeasured(stated[0], {"rows": rows, "claims": []})) <= {"0.16"}, "a difference of two rows of Table 2"
    assert unmeasured("an FID of 11.29", {"rows": rows, "claims": []}) == ["11.29"]


def test_what_a_notebook_begins_with_is_checked_and_named():
    report = module.begin("small", dict(GOOD), **KNOWN)
    assert (report.notebook, report.profile, report.seed) == ("small", "smoke", 0)
    with pytest.raises(ParameterError, match="parameter 'sede' is unknown"):
        module.begin("small", {**GOOD, "sede": 1}, **KNOWN)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_small_and_so_are_its_pictures(file):
    assert file.stat().st_size <= 250_000, f"{file.name} has {file.stat().st_size:,} bytes"
    outputs = [o for cell in nbformat.read(file, as_version=4).cells for o in cell.get("outputs", [])]
    pictures = [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert all(Image.open(io.BytesIO(picture)).width <= module.STORED["max_width"] for picture in pictures)


# --------------------------------------------------------------------------------------------------- parameters


def test_known_parameters_of_the_right_type_pass():
    namespace = {"profile": "laptop", "data": "furniture", "seed": 3, "__name__": "__main__", "_i": "", "re": re}
    check_parameters(namespace, **KNOWN)
    namespace |= {"result": 1.0, "seed": 4}  # later, in an interactive session
    check_parameters(namespace, **KNOWN)


GOOD = {"profile": "smoke", "data": "procedural", "seed": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sede": 1}, r"parameter 'sede' is unknown \(did you mean 'seed'\?\); known: profile, data, seed"),
        ({"steps": [1]}, "parameter 'steps' is unknown"),
        ({"seed": "abc"}, "parameter 'seed' is 'abc' of type str, expected an integer from 0 to 2147483647"),
        ({"seed": 1.0}, "'seed' is 1.0 of type float"),
        ({"seed": True}, "'seed' is True of type bool"),
        ({"seed": -1}, "'seed' is -1 of type int"),
        (
            {"profile": "lapdog"},
            r"'profile' is 'lapdog' .* expected one of 'smoke', 'laptop' \(did you mean 'laptop'\?\)",
        ),
        ({"profile": ["smoke"]}, "'profile' is .'smoke'. of type list"),
    ],
)
def test_unknown_and_mistyped_parameters_are_refused(change, message):
    with pytest.raises(ParameterError, match=message):
        check_parameters({**GOOD, **change}, **KNOWN)


def test_a_parameter_that_the_cell_does_not_define_is_missing():
    with pytest.raises(ParameterError, match="parameter 'seed' is missing"):
        check_parameters({"profile": "smoke", "data": "procedural"}, **KNOWN)


def test_types_are_taken_literally_except_that_an_integer_is_a_float():
    check_parameters({"a": 1, "b": True, "c": 0.5}, a=float, b=bool, c=float)
    for value, kind in ((True, float), (True, int), ("false", bool), (1, bool), (1.0, int)):
        with pytest.raises(ParameterError, match=f"expected a value of type {kind.__name__}"):
            check_parameters({"a": value}, a=kind)


def test_the_parameters_cell_holds_names_and_literals():
    assert parameters_of(notebook_of(PARAMETERS), "n") == {"profile": "smoke", "data": "procedural", "seed": 0}
    for line in ("a = 1 + x", "a = b = 1", "print(1)", "a, b = 1, 2", "a: int"):
        with pytest.raises(ParameterError, match="n: parameters cell has the line"):
            parameters_of(notebook_of(line), "n")
    with pytest.raises(ParameterError, match="n: has 0 cells tagged 'parameters'"):
        parameters_of(new_notebook(), "n")


@given(st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.integers()))
def test_a_value_is_parsed_as_the_type_of_its_default(value):
    assert parse_value("x", str(value), value) == value


@pytest.mark.parametrize(
    ("text", "default"), [("1.5", 0), ("abc", 0), ("abc", 0.0), ("1", False), ("3", [1]), ("f(", [1])]
)
def test_a_value_of_another_type_is_refused(text, default):
    with pytest.raises(ParameterError, match=f"expected a value of type {type(default).__name__}"):
        parse_value("x", text, default)


# ----------------------------------------------------------------------------------------------------- running


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder of notebooks with a small one in it, and an empty reports folder."""
    monkeypatch.setattr(module, "notebooks_dir", lambda: tmp_path)
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    report = (
        "from vader.report import Report\nreport = Report('small', profile, seed, data)\n"
        "report.row(system='ours', dataset='x', metric='psnr', value=30.5 + seed, std=0.1, n=3, source='measured')\n"
        "report.save().name"
    )
    drawn = "from matplotlib.figure import Figure\nfigure = Figure()\nreport.picture('drawn', figure)\nfigure"
    nbformat.write(notebook_of(PARAMETERS, CHECK, report, "report.table()", drawn), tmp_path / "small.ipynb")
    return tmp_path


def test_run_leaves_a_report_and_a_page_that_needs_no_network(workplace):
    files = module.run("small", "laptop", {"data": "furniture", "seed": "2"})
    assert [file.name for file in files] == [f"small-furniture.laptop.{kind}" for kind in ("ipynb", "html", "json")]
    report = json.loads(files[2].read_text())
    assert report["rows"][0]["value"] == 32.5 and report["seed"] == 2 and report["profile"] == "laptop"
    page = files[1].read_text(encoding="utf-8")
    assert "32.5 ± 0.1" in page and "measured, laptop profile" in page
    assert asked_for(page) == ["style.css", "small-furniture.laptop.drawn.png"], (
        "a saved picture that is shown is linked"
    )
    assert faults_of_page(files[1]) == [] and files[1].stat().st_size < 150_000


def write(workplace: Path, *cells: str) -> None:
    nbformat.write(notebook_of(PARAMETERS, *cells), workplace / "small.ipynb")


def test_every_notebook_allows_seeds_as_settings_do():
    """Read from its source, so that `vader report` refuses others before a kernel starts."""
    for file in NOTEBOOKS:
        allowed = module.allowed_values(nbformat.read(file, as_version=4))
        assert allowed["seed"] == SEEDS and "smoke" in allowed["profile"], file.name


def test_run_refuses_before_it_starts_a_kernel(workplace, monkeypatch):
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(
        ParameterError, match=r"'sede' is unknown \(did you mean 'seed'\?\); small has: profile \(str, "
    ):
        module.run("small", "smoke", {"sede": "1"})
    with pytest.raises(ParameterError, match="'seed' is 'abc', expected a value of type int"):
        module.run("small", "smoke", {"seed": "abc"})
    write(
        workplace, "from vader.report import check_parameters\ncheck_parameters(globals(), seed=range(2**31), data=str)"
    )
    with pytest.raises(ParameterError, match=r"'seed' is -1 of type int, expected an integer from 0 to 2147483647"):
        module.run("small", "smoke", {"seed": "-1"})
    write(workplace, f"%matplotlib inline\n{CHECK}", "report = begin('small', globals(), profile=('smoke', 'laptop'))")
    with pytest.raises(ParameterError, match=r"'profile' is 'gpu' of type str, expected one of 'smoke', 'laptop'"):
        module.run("small", "gpu", {})
    with pytest.raises(
        ParameterError, match=r"no notebook is called 'smal' \(did you mean 'small'\?\); there are: small"
    ):
        module.run("smal", "smoke", {})


def test_run_says_when_a_notebook_wrote_no_report(workplace, monkeypatch):
    def write_only(source, target, *_, **__):
        Path(target).write_text(Path(source).read_text())

    monkeypatch.setattr(papermill, "execute_notebook", write_only)
    with pytest.raises(ParameterError, match=r"small: ran, but wrote no report small\.smoke\.json"):
        module.run("small", "smoke", {})


def test_papermill_itself_fails_on_an_unknown_parameter(workplace):
    with pytest.raises(papermill.PapermillExecutionError, match="parameter 'sede' is unknown"):
        papermill.execute_notebook(
            str(workplace / "small.ipynb"), str(workplace / "out.ipynb"), {"sede": 1}, progress_bar=False
        )


def test_refresh_renews_outputs_and_drops_what_varies(workplace):
    notebook = nbformat.read(module.refresh("small"), as_version=4)
    assert notebook.cells[3].outputs[0]["data"]["text/plain"] == "'small.smoke.json'"
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2, 3, 4, 5]
    picture = Image.open(io.BytesIO(base64.b64decode(notebook.cells[5].outputs[0]["data"]["image/png"])))
    assert picture.mode == "P" and picture.width <= module.STORED["max_width"]
    assert notebook.cells[1].metadata == {"tags": ["parameters"]} and notebook.cells[2].metadata == {}
    assert not (workplace / "reports").exists(), "a refresh leaves no report"


def test_refresh_refuses_outputs_with_paths_and_notebooks_that_are_not_small(workplace):
    file = workplace / "small.ipynb"
    nbformat.write(notebook_of(PARAMETERS, f"print('{Path.home()}/x')"), file)
    before = file.read_text()
    with pytest.raises(ParameterError, match=rf"outputs would show paths of this machine: cell 2 shows {Path.home()}"):
        module.refresh("small")
    assert file.read_text() == before
    nbformat.write(notebook_of(PARAMETERS.replace("smoke", "laptop")), file)
    with pytest.raises(ParameterError, match="profile is not 'smoke' by default"):
        module.refresh("small")


def test_from_nothing_restores_the_environment(monkeypatch):
    monkeypatch.setenv("VADER_RUNS", "mine")
    monkeypatch.delenv("VADER_DATA", raising=False)
    with module.from_nothing():
        assert os.environ["VADER_RUNS"] != "mine" and "VADER_DATA" in os.environ
    assert os.environ["VADER_RUNS"] == "mine" and "VADER_DATA" not in os.environ


# --------------------------------------------------------------------------------------- nbval as it is set up


@pytest.fixture
def tolerant(pytestconfig):
    """The text type of the project's conftest."""
    return next(p.TolerantText for p in pytestconfig.pluginmanager.get_plugins() if hasattr(p, "TolerantText"))


@pytest.mark.parametrize(
    ("stored", "new", "equal"),
    [
        ("PSNR 30.00 dB", "PSNR 30.25 dB", True),
        ("PSNR 30.00 dB", "PSNR 30.40 dB", False),
        ("loss 1.0e-3, KD 12.5", "loss 1.005e-3, KD 12.45", True),
        ("loss 1.0e-3", "loss 1.0e-2", False),
        ("-0.5", "0.5", False),
        ("0.0000001", "-0.0000002", True),
        ("64 objects", "64 objects", True),
        ("64 objects", "65 objects", False),
        ("1000 objects", "1001 objects", False),
        ("torch 2.12.1", "torch 2.12.2", False),
        ("a 9.99  b", "a 10.01 b", True),
        ("1.5 2.5", "1.5", False),
        ("holds", "fails", False),
        ("nan", "1.0", False),
        ("between 1.5 and 2.5.", "between 1.501 and 2.499.", True),
    ],
)
def test_numbers_are_compared_as_numbers_and_all_else_as_text(tolerant, stored, new, equal):
    for a, b in ((stored, new), (new, stored)):
        assert (tolerant(a) == tolerant(b)) is equal
        assert (tolerant(a) != tolerant(b)) is not equal


def test_a_seeded_wrong_number_fails_and_noise_passes(tmp_path):
    """Cells whose stored output is of the left, and which print the right."""
    pairs = {
        "same": ("30.123", "30.123"),
        "noise": ("30.123", "30.2"),
        "wrong number": ("30.123", "31.0"),
        "wrong count": ("64 chairs", "63 chairs"),
        "wrong word": ("holds", "fails"),
        "address": ("<at 0x7f0000000001>", "<at 0x7f0000000002>"),
        "time": ("took 1.2 s", "took 9.9 s"),
    }
    notebook = new_notebook()
    for i, (stored, new) in enumerate(pairs.values(), 1):
        output = new_output("stream", name="stdout", text=f"{stored}\n")
        notebook.cells.append(new_code_cell(f"print({new!r})", execution_count=i, outputs=[output]))
    warned = new_output("stream", name="stderr", text="an old warning\n")
    notebook.cells.append(new_code_cell("print(1)", execution_count=8, outputs=[warned]))
    notebook.cells[-1].outputs.append(new_output("stream", name="stdout", text="1\n"))
    nbformat.write(notebook, tmp_path / "n.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "conftest", "--rootdir", str(ROOT), "-rA", "-q"]
    command += ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", str(tmp_path / "n.ipynb")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    outcomes = {
        int(cell): word for word, cell in re.findall(r"^(PASSED|FAILED) .*::Cell (\d+)", result.stdout, flags=re.M)
    }
    expected = ["PASSED", "PASSED", "FAILED", "FAILED", "FAILED", "PASSED", "PASSED", "PASSED"]
    assert [outcomes.get(i) for i in range(8)] == expected, result.stdout + result.stderr
    assert result.returncode == 1


def test_warnings_name_files_of_the_project_and_other_outputs_stay():
    notebook, place = notebook_of("1"), f"{ROOT}/vader/store/runs.py:1: UserWarning"
    notebook.cells[-1].outputs = [new_output("stream", name=name, text=place) for name in ("stderr", "stdout")]
    assert len(machine_paths(notebook)) >= 2
    module.shorten_warnings(notebook)
    shown = [output.text for output in notebook.cells[-1].outputs]
    assert shown == ["vader/store/runs.py:1: UserWarning", place]
