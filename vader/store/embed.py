"""The making of the pretrained weights that ship inside the package, in `embedded`.

    python -m vader.store.embed alexnet_features.safetensors

takes the features of torchvision's AlexNet in float32, as safetensors or as torchvision's own .pth, and writes
`alexnet_features.float16.safetensors` there. `weights.ORIGINS` pins its SHA-256. Data card:
`data_cards/weights_alexnet.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import torch
from torch import Tensor

from .files import save_weights
from .weights import EMBEDDED, ORIGINS, load_state, resolve

ABOUT = {
    "network": "torchvision.models.alexnet().features, in the layout of its state_dict",
    "trained_on": "ImageNet-1K (ILSVRC 2012), weights IMAGENET1K_V1",
    "origin": ORIGINS["alexnet"].url,
    "licence": "BSD-3-Clause (torchvision, see LICENSE.torchvision); ImageNet's terms of access allow "
    "non-commercial research and education",
    "made_by": "python -m vader.store.embed: float32 rounded to float16",
}


def tensors_sha256(state: dict[str, Tensor]) -> str:
    """SHA-256 (hex) of the tensors' values as little-endian bytes, one tensor after the other in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].contiguous().numpy()
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def embed_alexnet(source: str | Path, folder: Path = EMBEDDED) -> Path:
    """Write AlexNet's features, read from `source`, to `folder` as float16; equal sources give equal bytes.

    The metadata say where they come from, under which licence, and the SHA-256 of the source file, of its tensors and
    of the written ones (`tensors_sha256`). Raises WeightsError for a source that cannot be read.
    """
    resolved = resolve("alexnet", source)
    state = {name: x.float() for name, x in load_state(resolved, "features.").items()}
    checksums = {
        "source_sha256": resolved.sha256,
        "source_tensors_sha256": tensors_sha256(state),
        "tensors_sha256": tensors_sha256({name: x.half() for name, x in state.items()}),
    }
    target = folder / ORIGINS["alexnet"].embedded
    save_weights(target, state, {**ABOUT, **checksums}, torch.float16)
    return target


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vader.store.embed", description=embed_alexnet.__doc__)
    parser.add_argument("source", type=Path, help="AlexNet's features in float32: .safetensors or torchvision's .pth")
    print(embed_alexnet(parser.parse_args(arguments).source))
    return 0


if __name__ == "__main__":
    sys.exit(main())
