"""What a bare GPU machine lacks, in one folder: `.ci/device --pack FOLDER`. Says how large it is.

The perceptual network goes in float16, which halves it; `vader.store.weights` reads it as float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from vader.store.weights import load_state, resolve

MOST_VIEWS = 25e6  # bytes of views that travel with the code


def main(folder: Path) -> int:
    found = resolve("vgg16")
    state = {name: x.to(torch.float16).contiguous() for name, x in load_state(found).items()}
    save_file(state, folder / "weights" / "vgg16_features.safetensors")
    sizes = {file.relative_to(folder): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    for file, size in sizes.items():
        print(f"{size / 1e6:8.1f} MB  {file}")
    views = sizes.get(Path("views.tar"), 0)
    if views > MOST_VIEWS:
        print(
            f"views.tar has {views / 1e6:.0f} MB, expected at most {MOST_VIEWS / 1e6:.0f}; pack fewer objects or views"
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
