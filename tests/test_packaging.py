"""The ways to install say the same, and the package asks for little to be imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONDA_NAMES = {"torch": "pytorch", "easypytorch3d": "pytorch3d"}


def split(requirement: str) -> tuple[str, str]:
    """'numpy==2.4.6' -> ('numpy', '==2.4.6')."""
    name, bounds = re.fullmatch(r"([A-Za-z0-9-]+)(.*)", requirement).groups()
    return name, bounds


def project_requirements() -> dict[str, str]:
    """Every requirement by its conda name, with the post-release of a re-packaged wheel left out."""
    extras = {extra: lines for extra, lines in PROJECT["optional-dependencies"].items() if extra != "all"}
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    return {CONDA_NAMES.get(name, name): re.sub(r"\.post\d+$", "", bounds) for name, bounds in map(split, lines)}


def environment_requirements() -> dict[str, str]:
    lines = [line for line in ENVIRONMENT["dependencies"] if isinstance(line, str)]
    lines += [line for part in ENVIRONMENT["dependencies"] if isinstance(part, dict) for line in part["pip"]]
    return dict(map(split, lines))


def test_pip_and_conda_install_the_same_versions():
    conda = environment_requirements()
    assert conda.pop("python") == PROJECT["requires-python"]
    del conda["pip"]
    assert conda == project_requirements()


def test_the_tested_combination_is_pinned():
    pinned = dict(map(split, PROJECT["dependencies"]))
    assert pinned["torch"] == "==2.12.1" and pinned["torchvision"] == "==0.27.1"
    assert pinned["easypytorch3d"] == "==0.7.9.post1"
    assert pinned.keys() >= {"numpy", "pillow"}, "which easypytorch3d needs and does not declare"


def test_everything_is_bounded():
    for name, bounds in project_requirements().items():
        assert re.fullmatch(r"==[\d.]+|>=[\d.]+,<[\d.]+", bounds), f"{name}{bounds}"


def test_all_is_every_extra():
    extras = PROJECT["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(re.fullmatch(r"vader\[(.*)\]", everything)[1].split(",")) == extras.keys() - {"all"}


def test_the_installed_versions_are_within_the_bounds():
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    for requirement in map(Requirement, lines):
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            continue
        assert requirement.specifier.contains(found), f"{requirement} is installed as {found}"


@pytest.mark.parametrize("version", ["2.12.0", "2.13.0"])
def test_a_version_that_is_not_the_tested_one_would_be_noticed(version, monkeypatch):
    changed = [re.sub(r"^pytorch==.*", f"pytorch=={version}", str(line)) for line in ENVIRONMENT["dependencies"][:-1]]
    monkeypatch.setitem(ENVIRONMENT, "dependencies", [*changed, ENVIRONMENT["dependencies"][-1]])
    with pytest.raises(AssertionError):
        test_pip_and_conda_install_the_same_versions()


def test_the_citation_names_the_paper_and_this_software_apart():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert citation["type"] == "software" and citation["version"] == PROJECT["version"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Ntavelis", "Siarohin", "Olszewski", "Wang", "Van Gool", "Tulyakov",
    ]  # fmt: skip
    assert paper["year"] == 2023 and "2307.05445" in paper["identifiers"][0]["value"]


def test_ci_runs_the_commands_of_the_readme(tmp_path):
    """With programs that only print what they were asked, `.ci/run` shows README's own command in another folder, and
    that it has no weights but the package's own."""
    make_venv = '[ "$2" != venv ] || { mkdir -p "$3/bin"; : > "$3/bin/activate"; }'
    for program in ("python3", "pip", "python"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho "{program} $*$VADER_WEIGHTS"\n{make_venv}\n')
        (tmp_path / program).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "VADER_WEIGHTS": "/elsewhere"}
    result = subprocess.run([ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    block = re.search(r"<!-- ci -->\n```bash\n(.*?)```", README, flags=re.S)[1]
    asked = [part.strip() for part in block.split("&&") if not part.strip().startswith(". ")]
    shown = re.sub(r"\S+/venv\b", ".venv", result.stdout).splitlines()
    assert shown == [re.sub(r'"', "", part) for part in asked]


@pytest.mark.parametrize(
    ("cores", "arguments", "workers"),
    [
        (2, ["tests", "notebooks"], 2),
        (64, ["tests"], 8),
        (1, ["tests"], 0),
        (2, ["tests/test_packaging.py", "notebooks/tour.ipynb"], 0),
        (2, ["tests/test_packaging.py::test_of_it"], 0),
    ],
)
def test_folders_are_tested_by_a_worker_a_core_and_files_in_this_process(
    pytestconfig, monkeypatch, cores, arguments, workers
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    plugin = pytestconfig.pluginmanager.getplugin(str(ROOT / "conftest.py"))
    assert plugin.pytest_xdist_auto_num_workers(SimpleNamespace(args=arguments)) == workers


def test_it_is_said_whether_the_tests_in_a_browser_ran(pytestconfig):
    plugin, said = pytestconfig.pluginmanager.getplugin(str(ROOT / "conftest.py")), []

    def summary(**outcomes) -> list[str]:
        said.clear()
        reporter = SimpleNamespace(getreports=lambda name: outcomes.get(name, []), write_line=said.append)
        plugin.pytest_terminal_summary(reporter)
        return list(said)

    one, other = SimpleNamespace(keywords={"browser": 1}), SimpleNamespace(keywords={"gpu": 1})
    absent = SimpleNamespace(keywords={"browser": 1}, longrepr=("f", 1, "Skipped: no Chromium found"))
    assert summary(passed=[other], skipped=[other]) == []
    assert summary(passed=[one, other], failed=[one]) == ["browser tests: 2 ran in Chromium, 0 were skipped"]
    assert summary(skipped=[absent, absent]) == [
        "browser tests: 0 ran in Chromium, 2 were skipped: Skipped: no Chromium found"
    ]


HEAVY = (
    "pytorch3d",
    "torch_fidelity",
    "papermill",
    "lpips",
    "pyvista",
    "numba",
    "trimesh",
    "pandas",
    "nbformat",
    "webdataset",
    "av",
    "anny",
    "tensorboard",
)


def test_importing_the_package_needs_none_of_the_extras():
    script = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib, pkgutil, vader
for module in pkgutil.walk_packages(vader.__path__, "vader."):
    # files of kernels for one device are imported where they are used
    if not module.name.endswith(("__main__", "cpu", "cuda", "kernels.simd", "kernels.occupancy", "kernels.march")):
        importlib.import_module(module.name)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_importing_vader_alone_does_not_even_load_torch():
    script = "import sys, vader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
