"""A run store of its own for each test, and four balls to train on."""

from __future__ import annotations

import pytest

from tests.tiny import balls, tiny_experiment


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def config():
    return tiny_experiment()


@pytest.fixture
def data(config):
    return balls(config)
