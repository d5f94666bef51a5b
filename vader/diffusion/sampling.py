"""The sampler: EDM's Heun steps with guidance, and many objects, streamed to disk and resumed when interrupted.

Object i of seed s has its own random stream, derived from (s, i), for its initial noise and for the noise that
S_churn adds. The batch it is computed in changes it by rounding errors only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..settings.checks import ConfigError, require
from ..settings.diffusion import SamplerConfig
from ..store.files import write_json
from .edm import Denoise, Denoiser, Generators, standard_normal
from .inference import GraphedDenoiser, how_it_runs

MAX_BATCH = 256  # beyond it a GPU gains nothing, and an interruption costs more


def guidance_scale(weight: float, convention: Literal["difference", "ho_salimans"]) -> float:
    """The weight s of u + s (c - u) that a published guidance weight means.

    'difference' (LDM): the weight is s itself. 'ho_salimans': the weight w of (1 + w) c - w u, so s = 1 + w.
    """
    scales = {"difference": weight, "ho_salimans": 1 + weight}
    require(convention in scales, f"guidance convention {convention!r} is unknown, expected one of {list(scales)}")
    return scales[convention]


def guided(denoise: Denoise, scale: float, batched: bool = True) -> Denoise:
    """Classifier-free guidance u + s (c - u) from the estimates c with the context and u with the null one.

    `batched` evaluates both in one call on 2b objects, else in two calls on b, which takes half the memory.
    """

    def guided_denoise(x: Tensor, sigma: Tensor, context: Tensor | None) -> Tensor:
        null = torch.zeros_like(context)
        if batched:
            c, u = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([context, null])).chunk(2)
        else:
            c, u = denoise(x, sigma, context), denoise(x, sigma, null)
        return u + scale * (c - u)

    return guided_denoise


def sigma_schedule(config: SamplerConfig) -> list[float]:
    """The num_steps + 1 noise levels: sigma_max to sigma_min, equally spaced in sigma^(1 / rho), then 0."""
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    last = config.num_steps - 1
    return [(high + i / last * (low - high)) ** config.rho for i in range(config.num_steps)] + [0.0]


def from_the_middle(config: SamplerConfig) -> SamplerConfig:
    """The second half of a sampler's steps by itself: the same noise levels, and as much fresh noise at each."""
    half = config.num_steps // 2
    left = config.num_steps - half
    churn = config.s_churn * left / config.num_steps
    return replace(config, num_steps=left, sigma_max=sigma_schedule(config)[half], s_churn=churn)


# Of a step: the noise level it starts from (raised by S_churn), the next one, and the scale of the noise added.
Step = tuple[float, float, float]
Estimate = Callable[[Tensor, int, Tensor | None], Tensor]  # x, number of the evaluation, context -> estimate of x0
Fresh = Callable[[int], Tensor]  # number of a step -> N(0, I) noise


def heun_steps(config: SamplerConfig) -> list[Step]:
    """The steps of Algorithm 2 of EDM. Evaluation 2 i is at the level that step i starts from, 2 i + 1 at the next."""
    sigmas, steps = sigma_schedule(config), []
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        raised = sigma
        if config.s_churn > 0 and config.s_min <= sigma <= config.s_max:
            raised = sigma * (1 + min(config.s_churn / config.num_steps, math.sqrt(2) - 1))
        steps.append((raised, following, config.s_noise * math.sqrt(raised**2 - sigma**2)))
    return steps


def estimates(denoise: Denoise, steps: Sequence[Step], like: Tensor) -> Estimate:
    """A denoiser at the levels of these steps, with what depends on the level alone taken out of the loop if it can."""
    levels = [level for sigma, following, _ in steps for level in (sigma, following)]
    if isinstance(denoise, Denoiser) and hasattr(denoise.network, "films"):
        return denoise.at_levels(levels[:-1], like)  # the last one is 0, where nothing is left to estimate
    return lambda x, k, context: denoise(x, torch.full((len(x),), levels[k], dtype=x.dtype, device=x.device), context)


def guided_estimate(estimate: Estimate, scale: float, batched: bool) -> Estimate:
    """`guided` for a numbered evaluation."""

    def guided_at(x: Tensor, k: int, context: Tensor | None) -> Tensor:
        return guided(lambda x, _, context: estimate(x, k, context), scale, batched)(x, x.new_zeros(len(x)), context)

    return guided_at


def _heun(
    estimate: Estimate, x: Tensor, steps: Sequence[Step], fresh: Fresh, context: Tensor | None, progress=None
) -> Tensor:
    euler = torch.empty_like(x)  # on CPUs, fresh memory costs more than the sums
    numbers = range(len(steps))
    for i in progress(numbers) if progress else numbers:
        sigma, following, added = steps[i]
        if added:
            x = x.add_(fresh(i).to(x.dtype), alpha=added)
        # An Euler step x + (sigma' - sigma) (x - D) / sigma goes to D by the share 1 - sigma' / sigma of the way.
        torch.lerp(x, estimate(x, 2 * i, context), 1 - following / sigma, out=euler)
        if following > 0:
            # Heun: the mean of the slopes at both ends leads half as far as one Euler step and, from its end, another.
            euler.lerp_(estimate(euler, 2 * i + 1, context), sigma / following - 1)
            x.lerp_(euler, 0.5)
        else:
            x.copy_(euler)
    return x


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Tensor,
    config: SamplerConfig,
    generators: Generators | None = None,
    context: Tensor | None = None,
    batched_guidance: bool = True,
    progress: Callable | None = None,
) -> Tensor:
    """Algorithm 2 of EDM: from N(0, I) noise (b, c, d, h, w) to samples of the same shape, in 2 N - 1 evaluations.

    The state has the dtype of `noise` whatever the network's precision. `generators` draw the noise that S_churn > 0
    adds; `progress` wraps the range of steps (a tqdm). With a context, guidance other than 1 is applied; then each
    evaluation covers 2b objects. A `GraphedDenoiser` runs all of it as one CUDA graph.

    Raises `ConfigError` if guidance lacks a context or churn a generator.
    """
    if config.guidance != 1:
        require(context is not None, f"guidance is {config.guidance}, which needs a context, but there is none")
    if config.s_churn > 0 and generators is None:
        raise ConfigError(f"s_churn is {config.s_churn}, which needs generators, but there are none")
    steps = heun_steps(config)

    def loop(noise: Tensor, context: Tensor | None, fresh: Fresh, denoise: Denoise, progress=None) -> Tensor:
        estimate = estimates(denoise, steps, noise)
        if config.guidance != 1:
            estimate = guided_estimate(estimate, config.guidance, batched_guidance)
        return _heun(estimate, sigma_schedule(config)[0] * noise, steps, fresh, context, progress)

    def fresh(_: int) -> Tensor:
        return standard_normal(tuple(noise.shape), generators, noise.device)

    if not isinstance(denoise, GraphedDenoiser):
        return loop(noise, context, fresh, denoise, progress)
    added = [fresh(i) for i, step in enumerate(steps) if step[2]]
    place = {i: k for k, i in enumerate(i for i, step in enumerate(steps) if step[2])}

    def recorded(noise: Tensor, context: Tensor | None, *added: Tensor) -> Tensor:
        return loop(noise, context, lambda i: added[place[i]], denoise.denoise)

    return denoise.replay((config, batched_guidance), recorded, noise, context, *added)


class SamplingError(RuntimeError):
    """Samples on disk that another setting made."""


def object_generators(seed: int, indices: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator per object, seeded by (seed, index)."""
    states = (np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] for index in indices)
    return [torch.Generator(device).manual_seed(int(state >> np.uint64(1))) for state in states]


def sample_objects(
    denoise: Denoise,
    config: SamplerConfig,
    indices: Sequence[int],
    shape: tuple[int, ...],
    seed: int,
    context: Tensor | None = None,
    device: torch.device | str = "cpu",
    start: Tensor | None = None,
) -> Tensor:
    """The samples (len(indices), *shape) of these objects; context (len(indices), l, k) is theirs, in this order.

    The initial noise is the same on every device; the noise of S_churn is drawn where the samples live. start:
    latents of the samples' shape that are noised to sigma_max, where otherwise noise alone begins.
    """
    if len(indices) == 0:
        return torch.zeros((0, *shape), device=device)
    generators = object_generators(seed, indices)
    noise = standard_normal((len(indices), *shape), generators, device)
    if start is not None:
        noise = noise + start.to(noise) / config.sigma_max
    if noise.ndim == 5:
        noise = noise.contiguous(memory_format=torch.channels_last_3d)  # as the network's outputs
    if torch.device(device).type != "cpu":
        generators = object_generators(seed, indices, device)
    return sample(denoise, noise, config, generators, None if context is None else context.to(device))


@torch.no_grad()
def largest_batch(denoise: Denoise, shape: tuple[int, ...], context: Tensor | None, device: torch.device | str) -> int:
    """Objects that fit into 80 % of the free memory of a CUDA device, from the peaks of two small evaluations."""

    def peak(n: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        rows = None if context is None else context[:1].to(device).expand(n, *context.shape[1:])
        denoise(torch.zeros((n, *shape), device=device), torch.ones(n, device=device), rows)
        return torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)

    peak(1)  # workspaces of the libraries
    small, large = peak(2), peak(6)
    each = max((large - small) / 4, 1)
    return int(min(max((0.8 * torch.cuda.mem_get_info(device)[0] - small) / each, 1), MAX_BATCH))


def _sampled_before(path: Path, record: Path, settings: dict[str, Any]) -> int:
    """How many samples an earlier call with these settings has made. Raises SamplingError for one with others."""
    if not record.exists():
        if path.exists():
            raise SamplingError(f"{path}: exists without {record.name}, expected samples from here; move it away")
        return 0
    found = json.loads(record.read_text())
    differ = [name for name, value in settings.items() if found["settings"].get(name) != value]
    if differ:
        raise SamplingError(f"{path}: holds samples with another {', '.join(differ)}; delete {record.name} to redo")
    return found["done"]


def sample_to_disk(
    denoise: Denoise,
    config: SamplerConfig,
    count: int,
    shape: tuple[int, ...],
    seed: int,
    path: Path | str,
    weights: str = "",
    context: Tensor | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Sample objects 0 ... count - 1 into the file `path` (.npy); return it memory-mapped: (count, *shape) float32.

    An interrupted call is continued by the next one, and a finished file is returned as it is; `<path>.json` beside it
    holds the settings, with `weights` (a digest) naming the denoiser. `context` is (count, l, k). The batch size is
    16, or on CUDA what fits into memory.

    Raises `SamplingError` if the file there was made with other settings.
    """
    path = Path(path)
    require(path.suffix == ".npy", f"{path}: expected a file name that ends in .npy")
    require(context is None or len(context) == count, f"context is not one row for each of the {count} objects")
    record, partial = path.with_name(path.name + ".json"), path.with_name(path.name + ".partial")
    settings = {
        "sampler": asdict(config),
        "count": count,
        "shape": list(shape),
        "seed": seed,
        "weights": weights,
        "context": context is not None and hashlib.sha256(context.float().cpu().numpy().tobytes()).hexdigest(),
    }
    done = _sampled_before(path, record, settings)
    if path.exists() and done == count:
        return np.load(path, mmap_mode="r")
    done = done if partial.exists() else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(partial, mode="r+" if done else "w+", dtype=np.float32, shape=(count, *shape))
    if batch_size is None:
        on_cuda = torch.device(device).type == "cuda"
        batch_size = largest_batch(denoise, shape, context, device) if on_cuda else 16
    with tqdm(total=count, initial=done, desc="sampling", unit="object", disable=None) as bar:
        for start in range(done, count, batch_size):
            indices = range(start, min(start + batch_size, count))
            rows = None if context is None else context[indices.start : indices.stop]
            array[indices.start : indices.stop] = (
                sample_objects(denoise, config, indices, shape, seed, rows, device).float().cpu().numpy()
            )
            array.flush()
            execution = how_it_runs(denoise)
            write_json(record, {"settings": settings, "done": indices.stop, "execution": execution})
            bar.update(len(indices))
    del array
    os.replace(partial, path)
    return np.load(path, mmap_mode="r")
