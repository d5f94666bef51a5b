"""FID and KID against torch-fidelity's own front door; kernel sums and intervals against loops and known laws."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset

from vader.evaluation.metrics import MetricError, distribution, features
from vader.evaluation.metrics.features import Features
from vader.report.schema import check_row


def gaussian(objects: int, views: int, f: int = 16, shift: float = 0.0, spread: float = 0.2, seed: int = 0) -> Features:
    """Features of `objects` whose views scatter by `spread` around a standard normal centre."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(objects, 1, f, generator=g)
    values = centres + spread * torch.randn(objects, views, f, generator=g) + shift
    ids = torch.arange(objects).repeat_interleave(views)
    return Features(values.flatten(0, 1), ids, "efficientnet-lite0", (48, 48), (0.0, 0.0, 0.0))


class InMemory(Dataset):
    def __init__(self, images):
        self.images = images.movedim(-1, 1)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i]


def test_same_numbers_as_torch_fidelity_end_to_end():
    """calculate_metrics with the registered extractor on the same images: the same FD and KD."""
    fidelity = pytest.importorskip("torch_fidelity")
    g = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (24, 32, 32, 3), generator=g, dtype=torch.uint8)
    b = a.float().mul(0.6).add(20 * torch.rand(a.shape, generator=g)).to(torch.uint8).flip(0)
    features.register_extractors()
    with pytest.importorskip("threadpoolctl").threadpool_limits(1):
        expected = fidelity.calculate_metrics(
            input1=InMemory(a), input2=InMemory(b), feature_extractor="efficientnet-lite0", fid=True, kid=True,
            kid_subset_size=20, kid_subsets=10, cuda=False, save_cpu_ram=True, batch_size=8, verbose=False, cache=False,
        )  # fmt: skip
    sets = [features.extract(x, batch_size=8) for x in (a, b)]
    fd, kd = distribution.distances(*sets, subset_size=20, subsets=10)
    assert "24 images in 1280 dimensions: a singular covariance" in fd["note"]
    assert (fd["metric"], kd["metric"], fd["features"], fd["resolution"], fd["n"]) == (
        "fd",
        "kd",
        "efficientnet-lite0",
        32,
        24,
    )
    assert kd["note"] == "24 generated and 24 real images, subsets of 20" and kd["n"] == 10
    for row in (fd, kd):
        check_row("row", {"std": 0.0} | row | {"system": "ours", "dataset": "noise", "source": "measured"})
    assert fd["value"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    assert kd["value"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)
    assert kd["std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-4)


def test_same_numbers_as_torch_fidelitys_command_on_the_same_png_files(tmp_path, monkeypatch, capsys):
    """`fidelity --input1 FOLDER --input2 FOLDER --fid --kid`, as anybody would check pictures on a disk."""
    command = pytest.importorskip("torch_fidelity.fidelity")
    pictures = {}
    for name, seed in (("generated", 0), ("real", 1)):
        g = torch.Generator().manual_seed(seed)
        coarse = torch.rand(14, 3, 4, 4, generator=g) * (0.6 + 0.4 * seed)
        smooth = torch.nn.functional.interpolate(coarse, size=(24, 24), mode="bilinear").movedim(1, -1)
        pictures[name] = features.to_uint8(smooth)
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pictures[name]):
            Image.fromarray(picture.numpy()).save(tmp_path / name / f"{i:03d}.png")
    features.register_extractors()
    arguments = f"--input1 {tmp_path / 'generated'} --input2 {tmp_path / 'real'} --fid --kid --json --silent"
    arguments += " --cpu --save-cpu-ram --feature-extractor efficientnet-lite0 --batch-size 2"
    arguments += " --kid-subset-size 10 --kid-subsets 5"
    monkeypatch.setattr("sys.argv", ["fidelity", *arguments.split(), "--no-cache"])
    with pytest.importorskip("threadpoolctl").threadpool_limits(1):
        command.main()
    expected = json.loads(capsys.readouterr().out)
    fd, kd = distribution.distances(*map(features.extract, pictures.values()), subset_size=10, subsets=5)
    assert fd["value"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert kd["value"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert kd["std"] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-3)


def test_own_estimates_are_torch_fidelitys():
    """The Fréchet distance and the one behind the interval, and the kernel distance over all images at once."""
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = gaussian(20, 3), gaussian(30, 2, shift=0.4, seed=1)
    fd, kd = distribution.distances(a, b, subset_size=60, subsets=1)
    statistics = [fid.fid_features_to_statistics(x.values) for x in (a, b)]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    assert fd["value"] == pytest.approx(expected, rel=1e-6)
    assert distribution.frechet_estimate([a], b, resamples=2).value == pytest.approx(expected, rel=1e-6)
    assert distribution.KernelDistance(b).sums(a).mmd2().item() == pytest.approx(kd["value"], rel=1e-4)


def test_inception_is_called_fid():
    pytest.importorskip("torch_fidelity")
    a, b = (dataclasses.replace(gaussian(20, 1, seed=s), network="inception-v3") for s in (0, 1))
    assert [row["metric"] for row in distribution.distances(a, b, subset_size=10, subsets=2)] == ["fid", "kid"]


def test_a_set_against_itself_is_near_zero():
    pytest.importorskip("torch_fidelity")
    a = gaussian(100, 2)
    fd, kd = distribution.distances(a, a, subset_size=200, subsets=1)
    assert abs(fd["value"]) < 1e-4 and kd["value"] < 0  # unbiased: an image with itself counts across, not within


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), objects=st.integers(2, 5), views=st.integers(1, 4))
def test_kernel_sums_against_a_loop(seed, objects, views):
    """Weighted U-statistic written out over every pair of images, copies of an object kept apart."""
    a, b = gaussian(objects, views, 3, seed=seed), gaussian(4, 2, 3, shift=0.3, seed=seed + 1)
    shuffled = torch.randperm(len(b), generator=torch.Generator().manual_seed(seed))
    b = dataclasses.replace(b, values=b.values[shuffled], objects=b.objects[shuffled])
    times_a = torch.randint(0, 3, (objects,), generator=torch.Generator().manual_seed(seed))
    times_a[:2] = 1
    times_b = torch.tensor([2, 0, 1, 1])

    def kernel(x, y):
        return (float(x.double() @ y.double()) / 3 + 1) ** 3

    def images(features, times):
        return [(i, o, copy) for i, o in enumerate(features.objects.tolist()) for copy in range(int(times[o]))]

    def within(features, times):
        chosen = images(features, times)
        values = [
            kernel(features.values[i], features.values[j])
            for i, o, copy in chosen
            for j, p, other in chosen
            if (i, copy) != (j, other) and not (o == p and copy != other)
        ]
        return np.mean(values)

    across = [kernel(a.values[i], b.values[j]) for i, _, _ in images(a, times_a) for j, _, _ in images(b, times_b)]
    expected = within(a, times_a) + within(b, times_b) - 2 * np.mean(across)
    sums = distribution.KernelDistance(b).sums(a)
    got = sums.mmd2(times_a[None], times_b[None])
    assert got.shape == (1,) and got.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_block_sums_do_not_depend_on_the_blocking():
    a = gaussian(7, 3)
    small, large = distribution._block_sums(a, a, rows=4), distribution._block_sums(a, a, rows=100)
    torch.testing.assert_close(small, large, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(small, small.T, rtol=1e-6, atol=1e-5)


def test_intervals_cover_the_truth():
    """Sets of one law: the 90 % interval over objects holds 0 in about nine of ten repetitions.

    Views that barely differ make images of one object worth one, which an interval over images misses.
    """
    held = 0
    for seed in range(40):
        a, b = gaussian(30, 1, 4, seed=2 * seed), gaussian(30, 1, 4, seed=2 * seed + 1)
        e = distribution.KernelDistance(b).estimate([a], resamples=300, level=0.9, seed=seed)
        assert e.low <= e.high and e.std > 0 and e.n == 300
        held += e.low <= 0 <= e.high
    assert 30 <= held <= 40


def test_ratio_of_known_distances():
    real = gaussian(150, 2, seed=0)
    near = [gaussian(150, 2, shift=0.5, seed=s) for s in (1, 2, 3)]
    far = [gaussian(150, 2, shift=1.0, seed=s) for s in (4, 5, 6)]
    distance = distribution.KernelDistance(real)
    e = distance.ratio(near, far, resamples=400)
    expected = distance.estimate(near, resamples=2).value / distance.estimate(far, resamples=2).value
    assert e.value == pytest.approx(expected)
    assert e.low < e.value < e.high < 0.7
    swapped = distance.ratio(far, near, resamples=400)
    assert swapped.low > 1
    same = distance.ratio(far, far, resamples=400)
    assert same.value == 1 and same.low < 1 < same.high
    assert distance.ratio(near, far, resamples=400) == e  # deterministic


def test_the_ratio_resamples_the_seeds_of_both_systems_together():
    """Seeds that move both distances by one factor leave the ratio as it is. Drawn apart for each, they would not."""
    real = gaussian(200, 2, seed=0)
    shifts = (0.3, 0.8, 1.6)
    ours = [gaussian(200, 2, shift=shift, seed=s) for s, shift in enumerate(shifts, 1)]
    other = [gaussian(200, 2, shift=shift * 1.1, seed=s) for s, shift in enumerate(shifts, 1)]
    distance = distribution.KernelDistance(real)
    paired = distance.ratio(ours, other, resamples=400)
    apart = distance.ratio(ours, other[:2] + other[1:], resamples=400)  # four seeds against three: no pairs
    assert paired.high / paired.low < 1.5 < 3 < apart.high / apart.low


def test_one_training_of_a_ratio_over_trainings_is_the_ratio():
    real = gaussian(40, 2)
    near, far = ([gaussian(40, 2, shift=shift, seed=s) for s in (1, 2)] for shift in (0.5, 1.0))
    distance = distribution.KernelDistance(real)
    assert distance.ratio_over_trainings([near], [far], 200) == distance.ratio(near, far, 200)
    assert distance.estimate_over_trainings([near], 200) == distance.estimate(near, 200)
    with pytest.raises(MetricError, match="2 trainings of one system and 1 of the other"):
        distance.ratio_over_trainings([near, near], [far])


def test_an_interval_over_trainings_spans_them_all_and_pairs_the_systems():
    """Two trainings whose ratios are far apart: the value lies between, and the interval holds both."""
    distance = distribution.KernelDistance(gaussian(150, 2, seed=0))
    far = [gaussian(150, 2, shift=1.0, seed=s) for s in (4, 5)]
    ours = [[gaussian(150, 2, shift=shift, seed=s) for s in (1, 2)] for shift in (0.5, 1.0)]
    each = [distance.ratio(one, far, resamples=400) for one in ours]
    assert each[0].high < each[1].low
    both = distance.ratio_over_trainings(ours, [far, far], resamples=400)
    assert both.value == pytest.approx(sum(e.value for e in each) / 2)
    assert each[0].low < both.low < each[0].value < each[1].value < both.high < each[1].high
    assert distance.ratio_over_trainings(ours[:1], [far], resamples=400).high < each[1].low  # one left out shows
    # Where both systems move with the training, their ratio does not.
    moved = distance.ratio_over_trainings([ours[0], far], [ours[0], far], resamples=400)
    assert moved.value == 1 and 0.5 < moved.low < 1 < moved.high < 2


@pytest.mark.parametrize("count", [2, 3, 5])
def test_resampled_trainings_have_the_unbiased_variance_of_their_mean(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    chosen = distribution._resample_trainings(count, 40_000, torch.Generator().manual_seed(0))
    found = [(float(value), value.expand(40_000)) for value in values]
    mean, draws = distribution._over_trainings(found, chosen)
    assert mean == pytest.approx(float(values.mean()))
    assert float(draws.mean()) == pytest.approx(mean, abs=0.02)
    assert float(draws.var()) == pytest.approx(float(values.var() / count), rel=0.05)


def test_the_ratio_compares_both_systems_with_the_same_resampled_real_objects():
    """Half of the real objects lie far off, and how many are drawn moves both distances alike. Met by other draws of
    them for each, two equal systems would differ."""
    real, far = gaussian(6, 2, seed=0), gaussian(6, 2, shift=4.0, seed=1)
    values, objects = torch.cat([real.values, far.values]), torch.cat([real.objects, far.objects + 6])
    real = dataclasses.replace(real, values=values, objects=objects)
    system = [gaussian(400, 1, seed=2)]  # so many that resampling them changes little
    paired = distribution.KernelDistance(real).ratio(system, system, resamples=400)
    alone = distribution.KernelDistance(real).estimate(system, resamples=400)
    assert paired.value == 1 and 0.8 < paired.low and paired.high < 1.25
    assert alone.low < 0.6 * alone.value and alone.high > 1.5 * alone.value


def test_frechet_of_known_gaussians():
    """Diagonal Gaussians: |m|^2 + sum (s_a - s_b)^2, and the interval holds it."""
    g = torch.Generator().manual_seed(0)
    ids = torch.arange(4000)
    a = Features(torch.randn(4000, 3, generator=g), ids, "x", (1, 1), (0.0, 0.0, 0.0))
    b = dataclasses.replace(a, values=torch.randn(4000, 3, generator=g) * torch.tensor([1, 2, 3.0]) + 1)
    truth = 3 + 0 + 1 + 4
    e = distribution.frechet_estimate([a], b, resamples=20)
    assert e.low < truth < e.high and e.value == pytest.approx(truth, rel=0.1) and e.high - e.low < 2


def test_frechet_with_any_number_of_images_is_that_of_the_covariances():
    """Fewer images than features, or more, on either side; sets are averaged, resampled objects weighted."""
    for n, m in ((8, 9), (8, 60), (70, 9), (70, 60)):
        a, b = gaussian(n, 1, shift=0.5), gaussian(m, 1, seed=1)
        means, covariances = zip(*((x.values.double().mean(0), x.values.double().T.cov()) for x in (a, b)), strict=True)
        root = np.real(scipy.linalg.sqrtm((covariances[0] @ covariances[1]).numpy()))
        truth = (means[0] - means[1]).square().sum() + sum(c.trace() for c in covariances) - 2 * np.trace(root)
        assert distribution.frechet_estimate([a], b, resamples=2).value == pytest.approx(float(truth), rel=1e-3)
    sets = [gaussian(70, 2, shift=0.5), gaussian(50, 2, shift=0.7, seed=2)]
    single = [distribution.frechet_estimate([x], b, resamples=2).value for x in sets]
    assert distribution.frechet_estimate(sets, b, resamples=2).value == pytest.approx(sum(single) / 2)
    times = torch.tensor([2.0, 0.0, 1.0])
    x = gaussian(3, 4)
    held = dataclasses.replace(x, values=torch.cat([x.values[:4], x.values[:4], x.values[8:]]))
    for found, expected in zip(
        distribution._moments(x, times), distribution._moments(held, torch.ones(3)), strict=True
    ):
        torch.testing.assert_close(*(y.T @ y if y.ndim == 2 else y for y in (found, expected)))


def test_sets_that_cannot_be_compared():
    a = gaussian(10, 1)
    for change, message in (
        ({"resolution": (64, 64)}, r"resolution is \(48, 48\) in one set and \(64, 64\)"),
        ({"network": "vgg16-relu5"}, "network is efficientnet-lite0 in one set"),
        ({"corner": (1.0, 1.0, 1.0)}, r"background is \(0.00, 0.00, 0.00\) in one set and \(1.00"),
    ):
        other = dataclasses.replace(a, **change)
        for call in (
            lambda other=other: distribution.distances(a, other, subset_size=5),
            lambda other=other: distribution.KernelDistance(other).sums(a),
            lambda other=other: distribution.frechet_estimate([a], other),
        ):
            with pytest.raises(MetricError, match=message):
                call()


def test_too_few_samples():
    with pytest.raises(MetricError, match="real: 10 images, but KID draws subsets of 20"):
        distribution.distances(gaussian(30, 1), gaussian(10, 1), subset_size=20)
