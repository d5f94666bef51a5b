"""For tests and notebooks alike: empty folders to work in, honest skips, and nbval comparing numbers as numbers.

nbval compares stored and new outputs as text, to the last digit. Here numbers with a decimal point or an exponent
agree if they are within `RELATIVE` of each other or both within `ABSOLUTE` of the same value; everything else,
integers and versions included, has to be identical. Pictures and stderr (progress bars, warnings) are not compared.

Where folders are asked for, files run side by side in one worker process a core (pytest-xdist), of one thread each;
where single files or tests are, in this process. `-n 0` runs everything here, `-n 4` in four.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from pathlib import Path

import hypothesis
import pytest
import torch

from vader.report.notebook import from_nothing

RELATIVE, ABSOLUTE = 0.01, 1e-6
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?(?!\d|\.\d)")

MOST_WORKERS = 8  # a worker and the kernel of its notebook hold two gigabytes
# The longest of `tests`, to begin early, so that no worker is left with one at the end.
LONG = ("training/test_ranks.py", "data/sets/test_people.py", "test_stages.py", "report/test_notebooks.py")

hypothesis.settings.register_profile("vader", derandomize=True, deadline=None)
hypothesis.settings.load_profile("vader")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One for each core if a folder is to be tested; none, which is this process, for single files."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    folders = any(Path(argument).is_dir() for argument in config.args)
    return min(cores, MOST_WORKERS) if folders and cores > 1 else 0


def pytest_configure(config: pytest.Config) -> None:
    shared = os.environ.get("VADER_RUNS")  # in a worker, the empty folder that the process which started it has made
    stack = contextlib.ExitStack()
    stack.enter_context(from_nothing())
    config.add_cleanup(stack.close)
    if hasattr(config, "workerinput"):
        os.environ["VADER_RUNS"] = shared  # so that what one notebook trains, another worker's finds
        os.environ["OMP_NUM_THREADS"] = "1"  # of kernels and other processes
        torch.set_num_threads(1)
    if config.pluginmanager.hasplugin("nbval"):
        config.option.nbval_sanitize_with = str(Path(__file__).parent / "tests" / "nbval_sanitize.cfg")
        config.option.nbval_cell_timeout = 600
        _make_nbval_tolerant()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_begins_late)
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))


def pytest_terminal_summary(terminalreporter) -> None:
    """Say whether the tests that need a browser ran, since a skip among thousands of dots is not seen."""
    told = {
        outcome: [one for one in terminalreporter.getreports(outcome) if "browser" in getattr(one, "keywords", ())]
        for outcome in ("passed", "failed", "error", "skipped")
    }
    ran, skipped = sum(map(len, told.values())) - len(told["skipped"]), told["skipped"]
    if ran or skipped:
        reasons = sorted({str(one.longrepr[2] if isinstance(one.longrepr, tuple) else one.longrepr) for one in skipped})
        line = f"browser tests: {ran} ran in Chromium, {len(skipped)} were skipped"
        terminalreporter.write_line(": ".join([line, *["; ".join(reasons)][: bool(reasons)]]))


def _begins_late(item: pytest.Item) -> int:
    """Notebooks and the longest tests begin first, since the files that come last should be short."""
    file = item.path.as_posix()
    return 0 if file.endswith(".ipynb") or file.endswith(LONG) else 1


class TolerantText(str):
    """Text that equals another one if only its numbers differ, and by little."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str) or _without_numbers(self) != _without_numbers(other):
            return False
        pairs = zip(NUMBER.findall(self), NUMBER.findall(other), strict=True)
        return all(math.isclose(float(a), float(b), rel_tol=RELATIVE, abs_tol=ABSOLUTE) for a, b in pairs)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _without_numbers(text: str) -> str:
    return re.sub(r"[ \t]+", " ", NUMBER.sub("<number>", text))  # a number of another width moves a column


def _make_nbval_tolerant() -> None:
    from nbval.plugin import IPyNbCell

    if hasattr(IPyNbCell, "exact_sanitize"):
        return
    IPyNbCell.exact_sanitize, exact_compare = IPyNbCell.sanitize, IPyNbCell.compare_outputs

    def sanitize(self, value):
        value = self.exact_sanitize(value)
        return TolerantText(value) if isinstance(value, str) else value

    def compare_outputs(self, test, ref, skip_compare=None):
        return exact_compare(self, test, ref, (*(skip_compare or self.parent.skip_compare), "stderr"))

    IPyNbCell.sanitize, IPyNbCell.compare_outputs = sanitize, compare_outputs
