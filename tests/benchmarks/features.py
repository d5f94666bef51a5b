"""FID and KID of rendered views: images handed over in memory against the usual way through PNG files.

Everybody uses the same EfficientNet-Lite0 and torch-fidelity's own FID and KID. What differs is how the
images get there: ours takes the tensor; torch-fidelity's `calculate_metrics` takes folders of PNG files,
which a renderer has to write first, or a data set in memory.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from vader.evaluation.metrics import distribution, features

from .contest import alternate, speed_rows


class InMemory(Dataset):
    """Images (n, h, w, 3) as torch-fidelity wants them."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images.movedim(-1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def blobs(n: int, resolution: int, seed: int) -> torch.Tensor:
    """Coloured ellipses on black, (n, resolution, resolution, 3) uint8: PNG files of a plausible size."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, resolution)] * 2, indexing="ij")
    radii = 0.3 + 0.5 * torch.rand(n, 2, 1, 1, generator=g)
    falloff = (1.2 - (x / radii[:, 0]).square() - (y / radii[:, 1]).square()).clamp(0, 1)
    colours = torch.rand(n, 1, 1, 3, generator=g)
    return features.to_uint8(falloff[..., None] * colours)


def compare(images: int = 256, resolution: int = 64, repeats: int = 3) -> list[dict]:
    """Rows of a benchmark report. Raises AssertionError unless all contestants agree."""
    from torch_fidelity import calculate_metrics

    features.register_extractors()
    sets = [blobs(images, resolution, seed) for seed in (0, 1)]
    subset = {"kid_subset_size": images // 2, "kid_subsets": 20}
    options = dict(
        feature_extractor="efficientnet-lite0", fid=True, kid=True, cuda=torch.cuda.is_available(),
        batch_size=64, verbose=False, cache=False, **subset,
    )  # fmt: skip
    device = "cuda" if options["cuda"] else "cpu"

    def in_memory() -> list[float]:
        a, b = (features.extract(x, device=device) for x in sets)
        return [row["value"] for row in distribution.distances(a, b, images // 2, 20)]

    def write(folder: Path) -> list[str]:
        for k, x in enumerate(sets):
            (folder / str(k)).mkdir()
            for i, image in enumerate(x.numpy()):
                Image.fromarray(np.asarray(image)).save(folder / str(k) / f"{i:05d}.png")
        return [str(folder / str(k)) for k in range(2)]

    def torch_fidelity(inputs, **more) -> list[float]:
        found = calculate_metrics(input1=inputs[0], input2=inputs[1], **options, **more)
        return [found["frechet_inception_distance"], found["kernel_inception_distance_mean"]]

    def through_files() -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            return torch_fidelity(write(Path(folder)))

    def from_dataset() -> list[float]:
        return torch_fidelity([InMemory(x) for x in sets], save_cpu_ram=True)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*covariance is singular")
        warnings.filterwarnings("ignore", "This DataLoader will create")  # torch-fidelity's choice of workers
        written = write(Path(folder))
        contestants = {
            "ours": in_memory,
            "torch-fidelity, PNG files written and read": through_files,
            "torch-fidelity, PNG files already written": lambda: torch_fidelity(written),
            "torch-fidelity, data set in memory": from_dataset,
        }
        expected = in_memory()
        for name, run in contestants.items():
            np.testing.assert_allclose(run(), expected, rtol=1e-4, err_msg=name)
        timings = alternate(contestants, repeats)
    ours = timings.pop("ours")
    return speed_rows("ours", ours, timings, f"FD and KD of 2 x {images} images of {resolution} x {resolution}")
