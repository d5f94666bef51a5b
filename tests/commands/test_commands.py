"""What all commands share: names that a terminal cannot show stop none of them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("locale", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii:strict"}])
def test_runs_are_listed_whatever_their_path_and_the_locale(tmp_path, locale):
    (tmp_path / "läufe" / "stühle-123.partial").mkdir(parents=True)
    environment = {**os.environ, "VADER_RUNS": str(tmp_path / "läufe"), "PYTHONCOERCECLOCALE": "0", **locale}
    command = [sys.executable, "-m", "vader", "runs", "list"]
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"hle-123.partial: partial, resumes" in done.stdout
