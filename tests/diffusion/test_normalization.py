"""Robust statistics: against numpy, under outliers, and back again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from vader.diffusion.normalization import RobustStatistics, StatisticsError, exact_quantiles, streamed_quantiles


def features(seed: int, n: int = 6, c: int = 3, r: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 + 3 * torch.randn(n, c, r, r, r, generator=generator)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 5),
    outliers=st.integers(0, 40),
    size=st.floats(1e2, 1e6),
    per_channel=st.booleans(),
)
def test_statistics_are_numpys_with_planted_outliers(seed, n, outliers, size, per_channel):
    f = features(seed, n=n)
    where = torch.randperm(f.numel(), generator=torch.Generator().manual_seed(seed))[:outliers]
    f.view(-1)[where] = size
    found = RobustStatistics.fit(f, per_channel=per_channel)
    axes = (0, 2, 3, 4) if per_channel else None
    values = f.double().numpy()
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75], axis=axes)
    for name, expected in (
        ("median", median),
        ("iqr", upper - lower),
        ("mean", values.mean(axis=axes)),
        ("std", values.std(axis=axes)),
    ):
        np.testing.assert_allclose(getattr(found, name).numpy(), expected, rtol=2e-6, atol=1e-6, err_msg=name)


def test_robust_scale_is_sigma_data_for_normal_features_and_ignores_outliers():
    f = features(0, n=200)  # 38,400 values: the error of a quartile's position is about 1 %
    f.view(-1)[::1000] = 3e4  # one in a thousand, as in Fig. 9
    robust = RobustStatistics.fit(f, sigma_data=0.5).normalize(f)
    inliers = robust[robust.abs() < 10]
    assert inliers.std().item() == pytest.approx(0.5, rel=0.02)
    assert inliers.median().item() == pytest.approx(0, abs=0.01)
    classic = RobustStatistics.fit(f, mode="classic", sigma_data=0.5).normalize(f)
    assert classic.std().item() == pytest.approx(0.5, rel=1e-4)
    assert classic[classic < 1].std() < 0.01, "the outliers should have crushed everything else"


def test_quantiles_of_more_values_than_torch_quantile_takes():
    n = 2**24 + 3
    values = torch.arange(n, dtype=torch.float32).flip(0)[None]  # integers above 2^24 are even in float32
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values, 0.5)
    lower, median = exact_quantiles(values, (0.25, 0.5))
    assert median.item() == (n - 1) / 2
    assert lower.item() == (n - 1) / 4


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("mode", ["robust", "classic"])
def test_denormalize_inverts_normalize(mode, per_channel):
    f = features(1).double()
    statistics = RobustStatistics.fit(f.float(), mode=mode, per_channel=per_channel)
    assert statistics.per_channel is per_channel
    torch.testing.assert_close(statistics.denormalize(statistics.normalize(f)), f, rtol=1e-14, atol=1e-14)
    single = statistics.denormalize(statistics.normalize(f[0].float()))  # without the batch axis, in float32
    torch.testing.assert_close(single, f[0].float(), rtol=1e-6, atol=1e-6)


def test_per_channel_normalises_each_channel_by_its_own():
    f = features(2, n=50) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1)
    own = RobustStatistics.fit(f, per_channel=True)
    for channel in range(3):
        alone = RobustStatistics.fit(f[:, channel : channel + 1])
        torch.testing.assert_close(own.normalize(f)[:, channel], alone.normalize(f[:, channel : channel + 1])[:, 0])
    with pytest.raises(StatisticsError, match="2 channels, expected 3"):
        own.normalize(f[:, :2])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_normalised_features_do_not_know_the_units(seed, scale, shift):
    f = features(seed).double()
    moved = f * scale + shift
    a, b = (RobustStatistics.fit(x.float()).normalize(x) for x in (f, moved))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * (1 + abs(shift) / scale / 100))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("mode", ["robust", "classic"])
def test_safetensors_round_trip(mode, per_channel):
    statistics = RobustStatistics.fit(features(3), mode=mode, sigma_data=0.7, per_channel=per_channel)
    again = RobustStatistics.from_tensors(load(save(statistics.to_tensors())))
    assert (again.mode, again.sigma_data, again.per_channel) == (mode, 0.7, per_channel)
    for name in ("median", "iqr", "mean", "std"):
        assert torch.equal(getattr(again, name), getattr(statistics, name))


def test_missing_tensor_is_named():
    tensors = RobustStatistics.fit(features(3)).to_tensors()
    del tensors["iqr"]
    with pytest.raises(StatisticsError, match=r"lack \['iqr'\]"):
        RobustStatistics.from_tensors(tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_name_the_object(value):
    f = features(4)
    f[2, 1, 0, 0, 0] = value
    with pytest.raises(StatisticsError, match="1 objects, first number 2, have NaN or infinite"):
        RobustStatistics.fit(f)


def test_features_without_spread():
    f = features(5)
    f[:, 1] = 7.0
    with pytest.raises(StatisticsError, match="interquartile range of channel 1 is 0"):
        RobustStatistics.fit(f, per_channel=True)
    with pytest.raises(StatisticsError, match="standard deviation of the features is 0"):
        RobustStatistics.fit(torch.full((2, 3, 4, 4, 4), 7.0), mode="classic")
    mostly = torch.zeros(2, 3, 4, 4, 4)
    mostly[0, 0] = 1.0  # varies, but within less than a quarter of the values
    assert RobustStatistics.fit(mostly, mode="classic").iqr == 0
    with pytest.raises(StatisticsError, match="interquartile range of the features is 0"):
        RobustStatistics.fit(mostly)


def test_unknown_mode_and_wrong_shape():
    with pytest.raises(StatisticsError, match="'median', expected 'robust' or 'classic'"):
        RobustStatistics.fit(features(0), mode="median")
    with pytest.raises(StatisticsError, match=r"\(3, 4, 4, 4\), expected a non-empty \(n, c, d, h, w\)"):
        RobustStatistics.fit(features(0)[0])


# ------------------------------------------------------------------------------------------------------- streaming

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(FLOATS | st.sampled_from([0.0, -0.0, 1.0, 2.0**-149]), min_size=2, max_size=80),
    fractions=st.tuples(*[st.floats(0, 1)] * 3),
    cuts=st.lists(st.integers(0, 79), max_size=3),
)
def test_streamed_quantiles_are_those_of_torch_and_of_selection(values, fractions, cuts):
    rows = np.array([values, values[::-1], [-v for v in values]], np.float32)
    pieces = np.split(rows, sorted(c for c in cuts if c < len(values)), axis=1)
    found = streamed_quantiles(lambda: iter(pieces), len(values), fractions)
    for a, b, fraction in zip(found, exact_quantiles(torch.from_numpy(rows), fractions), fractions, strict=True):
        assert torch.equal(a, b)
        expected = torch.quantile(torch.from_numpy(rows).double(), fraction, dim=1)
        torch.testing.assert_close(a, expected, rtol=1e-12, atol=1e-12 * float(np.abs(rows).max()))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    per_channel=st.booleans(),
    piece=st.integers(1, 7),
    mode=st.sampled_from(["robust", "classic"]),
)
def test_statistics_of_a_stream_are_those_of_the_whole(seed, per_channel, piece, mode):
    f = features(seed)
    f.view(-1)[::37] = 1e4
    whole = RobustStatistics.fit(f, mode, 0.7, per_channel)
    stream = RobustStatistics.fit_stream(f.split(piece), mode, 0.7, per_channel)
    assert torch.equal(stream.median, whole.median) and torch.equal(stream.iqr, whole.iqr)
    torch.testing.assert_close(stream.mean, whole.mean, rtol=2e-7, atol=0)
    torch.testing.assert_close(stream.std, whole.std, rtol=2e-7, atol=0)
    assert (stream.mode, stream.sigma_data, stream.per_channel) == (mode, 0.7, per_channel)


def test_a_stream_that_is_not_finite_does_not_vary_or_is_empty():
    f = features(4)
    f[3, 1, 0, 0, 0], f[5, 0, 0, 0, 0] = float("nan"), float("inf")
    with pytest.raises(StatisticsError, match="features of 2 objects, first number 3, have NaN or infinite"):
        RobustStatistics.fit_stream(f.split(2), per_channel=True)
    f = features(5)
    f[:, 1] = 7.0
    with pytest.raises(StatisticsError, match="interquartile range of channel 1 is 0"):
        RobustStatistics.fit_stream(f.split(4), per_channel=True)
    with pytest.raises(StatisticsError, match="features are empty"):
        RobustStatistics.fit_stream([])
    with pytest.raises(StatisticsError, match="'median', expected 'robust' or 'classic'"):
        RobustStatistics.fit_stream([], mode="median")
