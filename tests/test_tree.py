"""What is committed stays small enough to travel."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 60  # MiB of all tracked files
MIB = 2**20


def tracked_sizes(root: Path) -> dict[str, int]:
    """Bytes of every tracked file, by its path from the root. Skips where there is no git checkout to ask."""
    if not (root / ".git").exists():
        pytest.skip("no git checkout, so no file is tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split("\0") if name and (root / name).is_file()]
    return {name: (root / name).stat().st_size for name in files}


def faults_of_tree(sizes: dict[str, int], limit: float = LIMIT) -> list[str]:
    """What to look at where tracked files have more MiB than `limit`: the largest folders and files."""
    total = sum(sizes.values()) / MIB
    if total <= limit:
        return []
    folders: Counter[str] = Counter()
    for name, size in sizes.items():
        folders.update({f"{parent.as_posix()}/": size for parent in Path(name).parents if parent != Path(".")})
    lines = [f"{total:.1f} MiB are tracked, expected at most {limit:g}; the largest of them:"]
    for found in (folders, sizes):
        largest = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:12]
        lines += [f"{size / MIB:8.2f} MiB  {name}" for name, size in largest]
    return lines


def test_the_tree_is_small_enough_to_travel():
    faults = faults_of_tree(tracked_sizes(ROOT))
    assert not faults, "\n".join(faults)


def test_a_tree_that_grew_is_told_with_what_is_large_in_it(tmp_path):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name, size in {"README.md": 10, "reports/runs/a/x.bin": 3 * MIB, "reports/b.png": MIB, "new.bin": MIB}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    subprocess.run(["git", "add", "README.md", "reports"], cwd=tmp_path, check=True)
    sizes = tracked_sizes(tmp_path)
    assert sum(sizes.values()) == 4 * MIB + 10, "new.bin is not tracked"
    assert faults_of_tree(sizes, limit=5) == []
    assert faults_of_tree(sizes, limit=3.5) == [
        "4.0 MiB are tracked, expected at most 3.5; the largest of them:",
        "    4.00 MiB  reports/",
        "    3.00 MiB  reports/runs/",
        "    3.00 MiB  reports/runs/a/",
        "    3.00 MiB  reports/runs/a/x.bin",
        "    1.00 MiB  reports/b.png",
        "    0.00 MiB  README.md",
    ]
