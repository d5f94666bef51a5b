"""Preconditioning, loss and sampler: against their requirements, other formulations and solvable distributions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from torch import nn

from vader.diffusion.edm import Denoiser, drop_condition, edm_loss, standard_normal
from vader.diffusion.sampling import guidance_scale, guided, sample, sigma_schedule
from vader.settings.checks import ConfigError
from vader.settings.diffusion import SamplerConfig

SIGMAS = [0.002, 0.05, 0.5, 3.0, 80.0]


class Zero(nn.Module):
    def forward(self, x, c_noise, context=None):
        return torch.zeros_like(x)


class Recorder:
    """A denoiser that remembers the noise levels and batch sizes it was asked for."""

    def __init__(self, denoise):
        self.denoise, self.sigmas, self.sizes = denoise, [], []

    def __call__(self, x, sigma, context=None):
        self.sigmas.append(sigma[0].item())
        self.sizes.append(len(x))
        return self.denoise(x, sigma, context)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def column(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return sigma.view(-1, *[1] * (x.ndim - 1))


def gaussian(mean: float, std: float):
    """E[x0 | x] for x0 ~ N(mean, std^2), independently in every entry."""
    return lambda x, sigma, context=None: mean + std**2 / (std**2 + column(sigma, x) ** 2) * (x - mean)


# ------------------------------------------------------------------------------------------------- preconditioning


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_coefficients_follow_from_edms_three_requirements(sigma, sigma_data):
    c_skip, c_out, c_in, c_noise = (
        c.item() for c in Denoiser(Zero(), sigma_data).coefficients(torch.tensor([sigma], dtype=torch.float64))
    )
    # 1. the network's input c_in (x0 + sigma n) has unit variance
    assert c_in**2 * (sigma_data**2 + sigma**2) == pytest.approx(1, rel=1e-12)

    # 2. its target (x0 - c_skip x) / c_out has unit variance
    def target_variance(skip: float) -> float:
        return (1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2

    assert target_variance(c_skip) == pytest.approx(c_out**2, rel=1e-9)
    # 3. c_skip makes c_out, which amplifies the network's errors, as small as possible: the variance is a parabola
    trials = np.array([-1.0, 0.3, 2.0])
    a, b, _ = np.polyfit(trials, [target_variance(t) for t in trials], 2)
    assert c_skip == pytest.approx(-b / (2 * a), rel=1e-7)
    assert c_noise == pytest.approx(math.log(sigma) / 4, abs=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_denoiser_is_diffusers_preconditioning(sigma):
    class Network(nn.Module):
        def forward(self, x, c_noise, context=None):
            return torch.sin(3 * x) + c_noise.view(-1, 1, 1, 1, 1)

    scheduler = EDMEulerScheduler(sigma_data=0.5)
    x = 5 * normal(2, 3, 2, 2, 2).float()
    level = torch.tensor(sigma)
    output = Network()(scheduler.precondition_inputs(x, level), scheduler.precondition_noise(level).expand(2))
    expected = scheduler.precondition_outputs(x, output, level)
    torch.testing.assert_close(Denoiser(Network())(x, level.expand(2)), expected, rtol=1e-5, atol=1e-5)


def test_each_object_has_its_own_noise_level_and_the_state_keeps_its_precision():
    x = normal(3, 2, 2, 2, 2)
    sigma = torch.tensor([0.01, 0.5, 20.0], dtype=torch.float64)
    denoiser = Denoiser(Zero())
    together = denoiser(x, sigma)
    assert together.dtype == torch.float64
    for i in range(3):
        assert torch.equal(together[i : i + 1], denoiser(x[i : i + 1], sigma[i : i + 1]))
        torch.testing.assert_close(together[i], x[i] * 0.25 / (0.25 + sigma[i] ** 2), rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------------------------------------ loss


@pytest.mark.parametrize("sigma", SIGMAS)
def test_untrained_loss_is_one_at_every_noise_level(sigma):
    x = 0.5 * normal(40, 16, 8, 8, 8).float()  # 327,680 entries: standard error 0.25 %
    loss = edm_loss(Denoiser(Zero()), x, rng(1), p_mean=math.log(sigma), p_std=0.0)
    assert loss.shape == (40,)
    assert loss.mean().item() == pytest.approx(1, rel=0.015)


def test_loss_is_the_weighted_error_of_a_slow_loop():
    denoiser = Denoiser(Zero(), sigma_data=0.8)
    x = normal(3, 2, 2, 2, 2).float()
    found = edm_loss(denoiser, x, rng(5), p_mean=-0.4, p_std=1.1)
    generator = rng(5)
    sigmas = [math.exp(-0.4 + 1.1 * z) for z in torch.randn(3, generator=generator).tolist()]
    noise = torch.randn(x.shape, generator=generator)
    for i, sigma in enumerate(sigmas):
        errors = []
        for x0, n in zip(x[i].flatten().tolist(), noise[i].flatten().tolist(), strict=True):
            estimate = 0.64 / (sigma**2 + 0.64) * (x0 + sigma * n)
            errors.append((sigma**2 + 0.64) / (0.8 * sigma) ** 2 * (estimate - x0) ** 2)
        assert found[i].item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_training_noise_levels_are_log_normal_and_follow_the_generator():
    recorded = []

    class Spy(Denoiser):
        def forward(self, x, sigma, context=None):
            recorded.append(sigma)
            return super().forward(x, sigma, context)

    x = torch.zeros(20_000, 1, 1, 1, 1)
    losses = [edm_loss(Spy(Zero()), x, rng(seed)) for seed in (2, 2, 3)]
    log = recorded[0].log()
    assert log.mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / 20_000**0.5)
    assert log.std().item() == pytest.approx(1.2, rel=4 / (2 * 20_000) ** 0.5)
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_dropped_conditions_are_zero_at_the_given_rate():
    context = 1 + normal(4000, 3, 2).abs()
    dropped = drop_condition(context, 0.1, rng())
    gone = (dropped == 0).all(dim=(1, 2))
    assert torch.equal(dropped[~gone], context[~gone])
    assert gone.double().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / 4000) ** 0.5)
    assert torch.equal(drop_condition(context, 0.0, rng()), context)
    assert drop_condition(context, 1.0, rng()).abs().max() == 0


# --------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("steps", [2, 18, 64])
def test_schedule_is_karras_formula_and_diffusers(steps):
    config = SamplerConfig(num_steps=steps)
    found = sigma_schedule(config)
    i = np.arange(steps)
    expected = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-9)
    assert found[-1] == 0 and len(found) == steps + 1
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(found, scheduler.sigmas.numpy(), rtol=1e-5, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------- sampler


def test_sampler_follows_the_exact_flow_of_a_gaussian_at_second_order():
    mean, std, config = 0.3, 0.5, SamplerConfig()
    noise = normal(4, 8)
    # dx/dsigma is linear: x - mean scales with sqrt(std^2 + sigma^2); the last step to 0 is the denoiser itself
    end = mean + (80 * noise - mean) * math.sqrt((std**2 + 0.002**2) / (std**2 + 80**2))
    exact = gaussian(mean, std)(end, torch.full((4,), 0.002, dtype=torch.float64))
    errors = []
    for steps in (32, 64, 128, 256):
        found = sample(gaussian(mean, std), noise, dataclasses.replace(config, num_steps=steps))
        errors.append((found - exact).norm().item() / exact.norm().item())
    assert errors[1] < 2e-2
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(1.8 < order < 2.2 for order in orders), (errors, orders)


@pytest.mark.parametrize("churn", [0.0, 10.0, 40.0])
def test_samples_of_a_gaussian_have_its_mean_and_deviation(churn):
    n = 40_000
    config = SamplerConfig(num_steps=64, s_churn=churn, s_noise=1.0)
    found = sample(gaussian(-0.7, 0.5), normal(n, 1), config, rng(7))
    assert found.mean().item() == pytest.approx(-0.7, abs=4 * 0.5 / n**0.5)
    assert found.std().item() == pytest.approx(0.5, rel=4 / (2 * n) ** 0.5 + 0.01)  # 1 %: 64 steps
    if churn:
        plain = sample(gaussian(-0.7, 0.5), normal(n, 1), SamplerConfig(num_steps=64))
        correlation = np.corrcoef(found[:, 0].numpy(), plain[:, 0].numpy())[0, 1]
        assert correlation < 0.9, "churn should forget where a sample began"


@pytest.mark.parametrize("churn", [0.0, 40.0])
def test_samples_of_a_mixture_have_its_weights_means_and_deviations(churn):
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    centres = torch.tensor([[-0.6, 0.4], [0.5, -0.2]], dtype=torch.float64)
    std, n = 0.1, 6000

    def denoise(x, sigma, context=None):
        variance = std**2 + sigma[:, None] ** 2
        distance = (x[:, None] - centres).square().sum(-1)  # (b, 2)
        posterior = (weights.log() - distance / (2 * variance)).softmax(-1)
        each = centres + std**2 / variance[..., None] * (x[:, None] - centres)
        return (posterior[..., None] * each).sum(1)

    found = sample(denoise, normal(n, 2, seed=3), SamplerConfig(num_steps=40, s_churn=churn, s_noise=1.0), rng(4))
    mode = (found[:, None] - centres).square().sum(-1).argmin(-1)
    for k in range(2):
        members = found[mode == k]
        assert len(members) / n == pytest.approx(weights[k].item(), abs=4 * (0.21 / n) ** 0.5)
        error = 4 * std / len(members) ** 0.5
        np.testing.assert_allclose(members.mean(0).numpy(), centres[k].numpy(), atol=error)
        np.testing.assert_allclose(members.std(0).numpy(), std, rtol=4 / (2 * len(members)) ** 0.5 + 0.03)


@pytest.mark.parametrize("churn", [0.0, 6.0])
def test_sampler_is_algorithm_2_written_as_a_loop(churn):
    def denoise(x, sigma, context=None):
        return torch.tanh(x + 0.3 * x.roll(1, dims=1)) / (1 + column(sigma, x))

    config = SamplerConfig(num_steps=9, s_churn=churn, s_min=0.1, s_max=30.0, s_noise=1.01)
    noise = normal(3, 4)
    found = sample(denoise, noise, config, [rng(i) for i in range(3)])

    t = [(80 ** (1 / 7) + i / 8 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(9)] + [0.0]
    for row in range(3):
        stream = rng(row)
        x = t[0] * noise[row]

        def d(y, sigma):
            return (y - denoise(y[None], torch.tensor([sigma], dtype=torch.float64))[0]) / sigma

        for i in range(9):
            gamma = min(churn / 9, math.sqrt(2) - 1) if 0.1 <= t[i] <= 30 else 0.0
            t_hat = t[i] + gamma * t[i]
            if gamma > 0:
                x = x + math.sqrt(t_hat**2 - t[i] ** 2) * 1.01 * torch.randn(4, generator=stream).double()
            slope = d(x, t_hat)
            following = x + (t[i + 1] - t_hat) * slope
            if t[i + 1] != 0:
                following = x + (t[i + 1] - t_hat) * (0.5 * slope + 0.5 * d(following, t[i + 1]))
            x = following
        torch.testing.assert_close(found[row], x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [2, 18, 64])
@pytest.mark.parametrize("churn", [0.0, 40.0])
def test_evaluations_are_two_per_step_but_one_in_the_last(steps, churn):
    denoise = Recorder(gaussian(0, 1))
    sample(denoise, normal(2, 3), SamplerConfig(num_steps=steps, s_churn=churn), rng())
    assert len(denoise.sigmas) == 2 * steps - 1


def test_churn_raises_the_noise_within_its_range_and_up_to_its_limit():
    config = SamplerConfig(num_steps=16, s_churn=1e9, s_min=0.05, s_max=50.0)
    denoise = Recorder(gaussian(0, 1))
    sample(denoise, normal(2, 3), config, rng())
    for sigma, evaluated in zip(sigma_schedule(config)[:-1], denoise.sigmas[::2], strict=True):
        factor = math.sqrt(2) if 0.05 <= sigma <= 50 else 1.0
        assert evaluated == pytest.approx(factor * sigma, rel=1e-6)


def test_float32_state_is_as_good_as_float64():
    noise = normal(64, 4, 4, 4, 4)
    double = sample(gaussian(0.1, 0.5), noise, SamplerConfig())
    single = sample(gaussian(0.1, 0.5), noise.float(), SamplerConfig())
    assert single.dtype == torch.float32
    assert ((single - double).norm() / double.norm()).item() < 1e-5  # the solver's own error at 64 steps is 1e-2


def test_one_generator_per_object_makes_rows_independent_of_the_batch():
    config = SamplerConfig(num_steps=6, s_churn=3.0)
    noise = normal(4, 5)
    together = sample(gaussian(0, 1), noise, config, [rng(i) for i in range(4)])
    for i in range(4):
        assert torch.equal(together[i : i + 1], sample(gaussian(0, 1), noise[i : i + 1], config, [rng(i)]))
    with pytest.raises(ConfigError, match="2 generators for 4 objects"):
        standard_normal((4, 5), [rng(0), rng(1)], "cpu")


# --------------------------------------------------------------------------------------------------------- guidance


def conditional(x, sigma, context):
    """A denoiser whose estimate depends on the context, and not linearly."""
    return torch.tanh(x) + context.mean(dim=(1, 2)).view(-1, 1) ** 2 + context.mean(dim=(1, 2)).view(-1, 1)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("w", [0.0, 2.0, 3.0])
def test_guidance_conventions_agree_at_s_equals_one_plus_w(w, batched):
    x, sigma, context = normal(3, 5), torch.ones(3, dtype=torch.float64), normal(3, 2, 4, seed=1)
    c, u = conditional(x, sigma, context), conditional(x, sigma, torch.zeros_like(context))
    s = guidance_scale(w, "ho_salimans")
    assert s == 1 + w and guidance_scale(w, "difference") == w
    found = guided(conditional, s, batched)(x, sigma, context)
    torch.testing.assert_close(found, (1 + w) * c - w * u, rtol=1e-12, atol=1e-12)


def test_guidance_costs_one_double_or_two_single_evaluations_and_nothing_at_one():
    context = normal(3, 2, 4, seed=1)
    sizes, results = {}, {}
    for name, scale, batched in (("plain", 1.0, True), ("batched", 3.0, True), ("two calls", 3.0, False)):
        denoise = Recorder(conditional)
        config = SamplerConfig(num_steps=4, guidance=scale)
        results[name] = sample(denoise, normal(3, 5), config, context=context, batched_guidance=batched)
        sizes[name] = denoise.sizes
    assert sizes == {"plain": [3] * 7, "batched": [6] * 7, "two calls": [3] * 14}
    torch.testing.assert_close(results["batched"], results["two calls"], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(results["plain"], results["batched"])


def test_missing_context_generator_or_convention_is_an_error_before_any_evaluation():
    denoise = Recorder(conditional)
    with pytest.raises(ConfigError, match=r"guidance is 3.0, which needs a context"):
        sample(denoise, normal(1, 2), SamplerConfig(guidance=3.0))
    with pytest.raises(ConfigError, match=r"s_churn is 10, which needs generators"):
        sample(denoise, normal(1, 2), SamplerConfig(s_churn=10), context=normal(1, 1, 1))
    with pytest.raises(ConfigError, match=r"'imagen' is unknown, expected one of \['difference', 'ho_salimans'\]"):
        guidance_scale(3.0, "imagen")
    assert denoise.sizes == []
