"""For tests and notebooks alike: empty folders to work in, honest skips, and nbval comparing numbers as numbers.

nbval compares stored and new outputs as text, to the last digit. Here numbers with a decimal point or an exponent
agree if they are within `RELATIVE` of each other or both within `ABSOLUTE` of the same value; everything else,
integers and versions included, has to be identical. Pictures and stderr (progress bars, warnings) are not compared.
"""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path

import hypothesis
import pytest
import torch

from vader.report.notebook import from_nothing

RELATIVE, ABSOLUTE = 0.01, 1e-6
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?(?!\d|\.\d)")

hypothesis.settings.register_profile("vader", derandomize=True, deadline=None)
hypothesis.settings.load_profile("vader")


def pytest_configure(config: pytest.Config) -> None:
    stack = contextlib.ExitStack()
    stack.enter_context(from_nothing())
    config.add_cleanup(stack.close)
    if config.pluginmanager.hasplugin("nbval"):
        config.option.nbval_sanitize_with = str(Path(__file__).parent / "tests" / "nbval_sanitize.cfg")
        config.option.nbval_cell_timeout = 600
        _make_nbval_tolerant()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))


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
