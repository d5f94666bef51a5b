"""The rendered object, in two kinds of pictures."""

from __future__ import annotations

import pytest
import torch

from tests.data.formats.rendered import SIDE, VIEWS, orbit, pictured
from vader.data.sequence import Sequence


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """As in worker processes: small tensors wait for busy cores otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def table() -> Sequence:
    """Hard masks, so that its pictures are the same on any background."""
    return pictured(orbit(VIEWS, SIDE, SIDE, 95.0))


@pytest.fixture(scope="session")
def wide_table() -> Sequence:
    """72x48 pixels, principal point off the centre, soft masks."""
    return pictured(orbit(VIEWS, 48, 72, 66.0, principal=(37.5, 23.0)), supersampling=2)
