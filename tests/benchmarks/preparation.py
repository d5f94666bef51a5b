"""What it takes to prepare tars from a folder of very many objects: memory by number of objects, and speed of two
workers against one.

The objects are small ones in SRN's layout (8 views of 16^2), copies of 16 different ones with a pixel of their own.
Each preparation is a process of its own, and does what `vader data FOLDER --name tiny --objects-per-shard 100` does but
for finding the objects' place in the world.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vader.data.formats import Options, Placing, walk
from vader.data.meshes.raycast import render
from vader.data.reading.objects import Found, Sieve
from vader.data.reading.passes import prepare_found
from vader.data.synthetic.factors import draw
from vader.data.synthetic.shapes import build
from vader.rendering.cameras import Cameras, look_at
from vader.settings.experiment import DataConfig

from .contest import Quantity

VIEWS, SIDE, KINDS, PER_SHARD = 8, 16, 16, 100
FOCAL = 0.8 * SIDE
OBJECTS = (100, 1_000, 10_000)


def cameras() -> Cameras:
    """Around the origin, at three heights."""
    turn = torch.arange(VIEWS, dtype=torch.float64) * 2 * torch.pi / VIEWS
    rise = torch.deg2rad(torch.tensor([10.0, 30.0, 50.0])).double()[torch.arange(VIEWS) % 3]
    eyes = 3.2 * torch.stack([rise.cos() * turn.sin(), rise.sin(), rise.cos() * turn.cos()], dim=1)
    k = torch.tensor([[FOCAL, 0, SIDE / 2], [0, FOCAL, SIDE / 2], [0, 0, 1]])
    return Cameras(look_at(eyes).float(), k.expand(VIEWS, 3, 3).contiguous(), SIDE, SIDE)


def write(root: Path, objects: int, first: int = 0) -> Path:
    """So many more objects, in folders of a thousand."""
    kinds = root.with_name("kinds")
    if not kinds.exists():
        for kind in range(KINDS):
            _write_object(kinds / str(kind), kind)
    for i in range(first, objects):
        folder = root / f"{i // 1000:03d}" / f"object{i:06d}"
        shutil.copytree(kinds / str(i % KINDS), folder)
        with Image.open(folder / "rgb" / "000000.png") as image:
            image.putpixel((i % SIDE, i // SIDE % SIDE), (i % 251, i // 251 % 251, 7))
            image.save(folder / "rgb" / "000000.png")
    return root


def _write_object(folder: Path, kind: int) -> None:
    views = cameras()
    images, masks = render(build("tables", draw("tables", 0, kind)), views, 1)
    for name in ("rgb", "pose"):
        (folder / name).mkdir(parents=True)
    (folder / "intrinsics.txt").write_text(f"{FOCAL} {SIDE / 2} {SIDE / 2} 0.\n0. 0. 0.\n1.\n{SIDE} {SIDE}\n")
    pictures = np.where(masks.numpy()[..., None] > 0, images.numpy(), 255).astype(np.uint8)
    for v, (picture, pose) in enumerate(zip(pictures, views.world_to_camera.double().numpy(), strict=True)):
        Image.fromarray(picture).save(folder / "rgb" / f"{v:06d}.png")
        to_world = np.linalg.inv(np.vstack([pose, [0, 0, 0, 1]]))
        (folder / "pose" / f"{v:06d}.txt").write_text(" ".join(f"{x:.9f}" for x in to_world.ravel()))


def measured(folder: Path, workers: int, per_shard: int = PER_SHARD) -> dict[str, float]:
    """Seconds of a preparation, start and all, and the peak memory of the main process and of a worker."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "tests.benchmarks.preparation", str(folder), str(workers), str(per_shard)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "VADER_DATA": root}
        )
    return json.loads(done.stdout.splitlines()[-1])


def growth(objects: tuple[int, ...] = OBJECTS, repeats: int = 3) -> list[Quantity]:
    """Memory by number of objects; and how much faster two workers are than one, side by side, for the most objects
    but the last."""
    quantities: list[Quantity] = []
    with tempfile.TemporaryDirectory() as place:
        first, folder = 0, Path(place) / "tiny"
        for count in objects:
            write(folder, count, first)
            first, work = count, f"prepare {count:,} objects of {VIEWS} views of {SIDE}^2 as tars of {PER_SHARD}"
            values = measured(folder, 2)
            quantities += [Quantity("vader data, 2 workers", work, name, value) for name, value in values.items()]
            if count == objects[-2 if len(objects) > 1 else -1]:
                quantities += _scaling(folder, work, repeats)
    return quantities


def _scaling(folder: Path, work: str, repeats: int) -> list[Quantity]:
    pairs = [[measured(folder, workers)["objects per second"] for workers in (1, 2)] for _ in range(repeats)]
    shares = sorted(two / one / 2 for one, two in pairs)
    names = {
        "share of linear, median": shares[len(shares) // 2],
        "share of linear, worst": shares[0],
        "share of linear, best": shares[-1],
        "objects per second, 1 worker": max(one for one, _ in pairs),
    }
    return [Quantity("vader data, 2 workers", work, name, value) for name, value in names.items()]


def _prepare(folder: Path, workers: int, per_shard: int) -> dict[str, float]:
    """Prepare the objects, whose place in the world is known, as in data sets that say so."""
    options = Options(resolution=SIDE, views=VIEWS, placing=Placing(centre=(0.0, 0.0, 0.0), scale=1.0))
    config = DataConfig("tiny", heldout_objects=8, train_views=VIEWS - 1, heldout_views=1, resolution=SIDE)
    start = time.perf_counter()
    found = Found("own", folder, walk(folder, "srn"), options, {}, Sieve(), limited=False, looked_at=1)
    data = prepare_found(config, found, workers, objects_per_shard=per_shard)
    seconds = time.perf_counter() - start
    own, workers_most = (resource.getrusage(which).ru_maxrss / 2**10
                         for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))  # fmt: skip
    return {
        "objects per second": len(data) / seconds,
        "seconds": seconds,
        "peak resident MiB, main process": own,
        "peak resident MiB, a worker": workers_most,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("workers", type=int)
    parser.add_argument("per_shard", type=int)
    print(json.dumps(_prepare(**vars(parser.parse_args()))))
