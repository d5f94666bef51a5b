"""COV, MMD and 1-NNA over sets of point clouds: ours in full, the peers on a slice of the pairs.

PyTorch3D's `chamfer_distance` and a loop over scipy's `cKDTree` need every pair of clouds. They are given
`pairs` of them, and their time is scaled to all pairs of the union of both sets, which 1-NNA is defined on.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree

from vader.evaluation.metrics import geometry

from .contest import alternate, speed_rows


def chairs(n: int, points: int = 2048, seed: int = 0) -> np.ndarray:
    """Clouds (n, points, 3) on the surfaces of random chairs made of boxes: seat, back, legs, sometimes arms."""
    rng = np.random.default_rng(seed)
    clouds = np.empty((n, points, 3), np.float32)
    for cloud in clouds:
        width, depth, height, back = rng.uniform([0.7, 0.7, 0.5, 0.4], [1.4, 1.4, 1.1, 1.2])
        thick, leg, arm = rng.uniform([0.04, 0.04, 0.2], [0.15, 0.12, 0.4])
        side, front = (width - leg) / 2, (depth - leg) / 2
        boxes = [((0, height, 0), (width, thick, depth))]
        boxes += [((0, height + back / 2, (thick - depth) / 2), (width, back, thick))]
        boxes += [((x, height / 2, z), (leg, height, leg)) for x in (-side, side) for z in (-front, front)]
        if rng.random() < 0.4:
            boxes += [((x, height + arm, 0), (leg, leg, depth)) for x in (-side, side)]
        centre, size = np.array(boxes).transpose(1, 0, 2)
        faces = np.repeat(size[:, [1, 0, 0]] * size[:, [2, 2, 1]], 2, axis=1)  # area of -x, +x, -y, ...
        box, face = np.divmod(rng.choice(faces.size, points, p=faces.ravel() / faces.sum()), 6)
        at = rng.uniform(-0.5, 0.5, (points, 3))
        at[np.arange(points), face // 2] = face % 2 - 0.5
        low, high = (centre - size / 2).min(0), (centre + size / 2).max(0)
        cloud[:] = (centre[box] + at * size[box] - (low + high) / 2) * 1.8 / (high - low).max()
    return clouds


def compare(clouds: int = 1000, points: int = 2048, pairs: int = 24, repeats: int = 3) -> list[dict]:
    """Rows of a benchmark report. Raises AssertionError unless all contestants agree on the slice."""
    from pytorch3d.loss import chamfer_distance

    generated, reference = chairs(clouds, points, seed=0), chairs(clouds, points, seed=1)
    rng = np.random.default_rng(0)
    x, y = generated[rng.integers(clouds, size=pairs)], reference[rng.integers(clouds, size=pairs)]
    trees = [(cKDTree(a), cKDTree(b)) for a, b in zip(x, y, strict=True)]  # one a cloud: not worth counting

    def pytorch3d() -> np.ndarray:
        return chamfer_distance(torch.from_numpy(x), torch.from_numpy(y), batch_reduction=None)[0].numpy()

    def ckdtree() -> np.ndarray:
        return np.array([(a.query(b.data)[0] ** 2).mean() + (b.query(a.data)[0] ** 2).mean() for a, b in trees])

    def one_by_one() -> np.ndarray:
        return geometry.chamfer_distance(x, y)

    for peer in (pytorch3d, ckdtree):
        np.testing.assert_allclose(peer(), one_by_one(), rtol=1e-5, err_msg=peer.__name__)

    done = geometry.shape_metrics(generated, reference)
    timings = alternate(
        {
            "ours": lambda: geometry.shape_metrics(generated, reference),
            "ours, every pair": one_by_one,
            "pytorch3d chamfer_distance": pytorch3d,
            "scipy cKDTree loop": ckdtree,
        },
        repeats,
    )
    ours, kernel = timings.pop("ours"), timings.pop("ours, every pair")
    work = (
        f"COV, MMD and 1-NNA of {clouds} x {clouds} clouds of {points} points "
        f"({done.pairs_measured} of {done.pairs} pairs measured), peers on {pairs} pairs"
    )
    rows = speed_rows("ours", ours, timings | {"ours, every pair": kernel}, work, share=pairs / done.pairs)
    return rows + speed_rows("ours, every pair", kernel, timings, f"chamfer distance of {pairs} pairs, {points} points")
