"""What it takes to open a sharded set of 300,000 objects, by number of objects: time, memory, and reading speed.

The objects are real members of real tars, tiny ones: two views of 8 x 8 pixels, drawn from 64 different pictures, with
the cameras of one object. Each set is opened in a process of its own, whose peak memory that of this module's
imports is a part of.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from vader.data import Sequence, load_shards
from vader.data.pipeline import ShardWriter
from vader.data.sequence import object_cameras
from vader.data.views import ShardedViews, draw_views
from vader.settings.experiment import DataConfig

from .contest import Quantity

CONFIG = DataConfig("tiny", train_views=2, heldout_views=0, resolution=8)
PER_SHARD, PER_STEP = 1000, 8


def write(root: Path, objects: int, per_shard: int = PER_SHARD) -> Path:
    """A sharded set of tiny objects; its folder."""
    writer = ShardWriter(CONFIG, {"kind": "tiny", "objects": objects}, root, per_shard)
    cameras, pictures = object_cameras(CONFIG, "tiny"), []
    for seed in range(64):
        shape, generator = (CONFIG.train_views, 8, 8), torch.Generator().manual_seed(seed)
        images = torch.randint(256, (*shape, 3), generator=generator).to(torch.uint8)
        masks = torch.full(shape, 255, dtype=torch.uint8)
        pictures.append(writer.packed(Sequence("KEY", images, masks, cameras))[2])
    for part in writer.pending(objects):
        writer.pack(part.start, (_named(f"tiny-{i:06d}", pictures[i % 64]) for i in part))
    return writer.finish(objects).folder


def _named(key: str, members: dict[str, bytes]) -> tuple[str, str, dict[str, bytes]]:
    return key, "train", {**members, "json": members["json"].replace(b"KEY", key.encode(), 1)}


def resident(which: str) -> int:
    """Bytes resident in this process: 'VmRSS' now, 'VmHWM' at most; Linux only."""
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index(f"{which}:") + 1])


def opened(folder: Path, steps: int = 100) -> dict[str, float]:
    """Open the set, draw and read the first batch, then as many more steps as there are, up to `steps`."""
    before, start = resident("VmRSS"), time.perf_counter()
    data = load_shards(folder)
    views = ShardedViews(data)
    count = min(PER_STEP, len(data.keys))

    def batch(step: int) -> None:
        views.batch(views.draw(step, count), draw_views(count, data.train_views, 2))

    batch(0)
    ready, held = time.perf_counter(), resident("VmHWM")
    for step in range(1, steps):
        batch(step)
    return {
        "seconds from opening to the first batch": ready - start,
        "peak resident MiB": held / 2**20,
        "of which before opening, MiB": before / 2**20,
        "peak resident MiB after reading": resident("VmHWM") / 2**20,
        "objects read per second": count * (steps - 1) / (time.perf_counter() - ready),
    }


def startup(objects: tuple[int, ...] = (3_000, 30_000, 300_000)) -> list[Quantity]:
    """What opening takes for sets of so many objects; the last is the paper's order of size (Objaverse)."""
    quantities = []
    for n in objects:
        with tempfile.TemporaryDirectory() as root:
            start = time.perf_counter()
            folder = write(Path(root), n)
            values = {"seconds to write": time.perf_counter() - start}
            values["manifest MiB"] = (folder / "manifest.jsonl").stat().st_size / 2**20
            values["shards MiB"] = sum(file.stat().st_size for file in folder.glob("*.tar")) / 2**20
            command = [sys.executable, "-m", "tests.benchmarks.shards", str(folder)]
            values |= json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        work = f"sharded set: {n:,} objects of {CONFIG.train_views} views of 8^2"
        quantities += [Quantity("shards", work, name, value) for name, value in values.items()]
    return quantities


if __name__ == "__main__":
    print(json.dumps(opened(Path(sys.argv[1]))))
