"""What a record says of the code: the commit, and whether files that can change a number differ from it."""

from __future__ import annotations

import subprocess

import pytest

from vader.store import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True, text=True
        )

    git("init", "-q")
    for name in ("code.py", "reports/table.png", "reports/table.html", "reports/table.json", "reports/runs/a/plot.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("add", "-A")
    git("commit", "-qm", "one")
    monkeypatch.setattr(provenance, "project_root", lambda: tmp_path)
    return tmp_path, git("rev-parse", "HEAD").stdout.strip()


@pytest.mark.parametrize(
    ("changed", "mark"),
    [("reports/table.png", ""), ("reports/table.html", ""), ("reports/new.json", "")]
    + [(name, "+") for name in ("code.py", "reports/table.json", "reports/runs/a/plot.png")],
)
def test_a_commit_is_marked_where_what_can_change_a_number_differs(checkout, changed, mark):
    folder, head = checkout
    assert provenance.commit() == head
    (folder / changed).write_text("after")
    assert provenance.commit() == head + mark


def test_outside_of_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "project_root", lambda: tmp_path)
    assert provenance.commit() is None
