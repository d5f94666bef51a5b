"""The sampler against a plain eager loop, and what it spends outside the network.

The plain loop is EDM's Algorithm 2 as one would first write it: float32 network in the default memory format,
float64 state, gradients off, nothing in place. Both draw the same noise and must arrive at the same samples.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vader.autodecoder.decoder import Decoder
from vader.data import prepare
from vader.diffusion.edm import Denoiser
from vader.diffusion.inference import for_inference
from vader.diffusion.sampling import object_generators, sample_objects, sigma_schedule
from vader.diffusion.unet3d import UNet3D
from vader.evaluation.pictures import distance_rows, real_features, sample_features
from vader.generation.volumes import load_models
from vader.settings.diffusion import SamplerConfig, UNetConfig
from vader.settings.experiment import Experiment
from vader.settings.profiles import experiment
from vader.settings.table5 import PAPER

from .contest import Quantity, alternate, speed_rows


def randomised(config: UNetConfig, shape: tuple[int, ...], device: torch.device) -> Denoiser:
    """A denoiser without zero-initialised layers, so that every operation does what it does in a trained one."""
    torch.manual_seed(0)
    with torch.device(device):
        denoiser = Denoiser(UNet3D(config, shape[0], shape[1]))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.02)
    return denoiser.eval().requires_grad_(False)


@torch.no_grad()
def plain_loop(denoiser: Denoiser, config: SamplerConfig, noise: Tensor) -> Tensor:
    """Heun's method without any of the sampler's care."""
    sigmas = sigma_schedule(config)
    x = noise.double() * sigmas[0]
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        levels = torch.full((len(x),), sigma, dtype=torch.float64, device=x.device)
        slope = (x - denoiser(x, levels)) / sigma
        euler = x + (following - sigma) * slope
        if following > 0:
            levels = torch.full((len(x),), following, dtype=torch.float64, device=x.device)
            second = (euler - denoiser(euler, levels)) / following
            x = x + (following - sigma) * (slope + second) / 2
        else:
            x = euler
    return x


def compare(device: torch.device, steps: int = 18, batch: int = 16, repeats: int = 5) -> list[dict]:
    """Rows of a benchmark report, at the laptop profile's size. Raises AssertionError where samples differ."""
    config = experiment("laptop", "procedural_chairs")
    shape, settings = config.autodecoder.latent_shape, SamplerConfig(num_steps=steps)
    denoiser = randomised(config.unet, shape, device)
    noise = torch.stack([torch.randn(shape, generator=g) for g in object_generators(0, range(batch))]).to(device)

    def ours(dtype: torch.dtype) -> Callable[[], Tensor]:
        denoise = for_inference(denoiser, device, dtype)
        return lambda: sample_objects(denoise, settings, range(batch), shape, 0, device=device)

    runs = {
        "sampler, bfloat16": ours(torch.bfloat16),
        "sampler, float32": ours(torch.float32),
        "plain eager loop": lambda: plain_loop(denoiser, settings, noise),
    }
    expected = runs["plain eager loop"]().float()
    error = (runs["sampler, float32"]() - expected).norm() / expected.norm()
    assert error < 1e-3, f"the sampler's and the plain loop's samples differ by {error:.2g} of their norm"
    timings = alternate(runs, repeats, device)
    work = f"{steps} Heun steps, {denoise_name(config.unet)}, batch {batch}"
    plain = timings.pop("plain eager loop")
    rows = [row for name, t in timings.items() for row in speed_rows(name, t, {"plain eager loop": plain}, work)]
    fast, slow = timings["sampler, bfloat16"], timings["sampler, float32"]
    return rows + speed_rows("sampler, bfloat16", fast, {"sampler, float32": slow}, work)


def denoise_name(config: UNetConfig) -> str:
    return f"U-Net of {config.channels} x {config.channel_mult}"


class TimedNetwork(torch.nn.Module):
    """A network that adds up the seconds of its own evaluations (on CUDA it waits for them)."""

    def __init__(self, network: torch.nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network, self.on_cuda, self.seconds = network, device.type == "cuda", 0.0

    def films(self, c_noise: Tensor) -> list[Tensor]:
        return self.network.films(c_noise)

    def forward(self, *arguments: Tensor | None, **films: list[Tensor]) -> Tensor:
        if self.on_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        output = self.network(*arguments, **films)
        if self.on_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        return output


def overhead(
    device: torch.device, config: Experiment | None = None, steps: int = 64, batch: int = 16, repeats: int = 3
) -> list[Quantity]:
    """The share of a sampling run that is spent outside the network, for each precision; graphs are off.

    config: whose network (default: the laptop profile's).
    """
    config = config or experiment("laptop", "procedural_chairs")
    shape, settings = config.autodecoder.latent_shape, SamplerConfig(num_steps=steps)
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        denoise = for_inference(randomised(config.unet, shape, device), device, dtype, graphs=False)
        denoise.network = TimedNetwork(denoise.network, device)
        shares = []
        for repeat in range(repeats + 1):
            denoise.network.seconds, start = 0.0, time.perf_counter()
            sample_objects(denoise, settings, range(batch), shape, 0, device=device)
            if repeat:  # the first one warms up
                shares.append(1 - denoise.network.seconds / (time.perf_counter() - start))
        precision = str(dtype).removeprefix("torch.")
        work = f"{steps} Heun steps, {denoise_name(config.unet)}, batch {batch}, {precision}"
        found.append(Quantity("sampler", work, "share of the time outside the network", statistics.median(shares)))
    return found


def paper_size(device: torch.device) -> list[Quantity]:
    """One object at the Chairs column's size, 127 evaluations of a 216 M U-Net and then G2; the paper: ~8 s (A100).

    On a CPU one evaluation is timed and multiplied, since all 127 cost the same; on CUDA the whole loop is run.
    """
    config = PAPER["photoshape_chairs"]
    shape = config.autodecoder.latent_shape
    denoise = for_inference(randomised(config.unet, shape, device), device, torch.bfloat16)
    with torch.device(device):
        decoder = Decoder(config.autodecoder)
    decoder = decoder.to(memory_format=torch.channels_last_3d, dtype=torch.bfloat16).eval().requires_grad_(False)
    found = []
    for batch in (1, 32) if device.type == "cuda" else (1,):
        latents = torch.randn(batch, *shape, device=device).contiguous(memory_format=torch.channels_last_3d)
        level = torch.ones(batch, device=device)

        def sampling(batch=batch) -> Tensor:
            return sample_objects(denoise, config.sampler, range(batch), shape, 0, device=device)

        def evaluation(latents=latents, level=level) -> Tensor:
            return denoise(latents, level, None)

        def decoding(latents=latents) -> Tensor:
            return decoder.g2(latents.bfloat16())

        with torch.no_grad():
            runs = {"loop": sampling if device.type == "cuda" else evaluation, "decode": decoding}
            timings = alternate(runs, 3, device)
        seconds = {name: statistics.median(timing.wall) for name, timing in timings.items()}
        loops = 1 if device.type == "cuda" else 2 * config.sampler.num_steps - 1
        work = f"64 Heun steps and G2, {denoise_name(config.unet)}, batch {batch}, bfloat16"
        found += [
            Quantity("sampler", work, "seconds per sample", (loops * seconds["loop"] + seconds["decode"]) / batch),
            Quantity("sampler", work, "share of decoding", seconds["decode"] / (loops * seconds["loop"])),
        ]
    return found


def effect_of_precision(device: torch.device) -> list[Quantity]:
    """KD of the laptop profile's furniture chairs, sampled with the network in bfloat16 and in float32."""
    config = experiment("laptop", "furniture_chairs").replace(evaluation=dict(sampling_seeds=(0,)))
    models = load_models(config, prepare(config.data), device.type)
    real = real_features(models.data, config.evaluation)
    found = []
    for precision in ("bfloat16", "float32"):
        chosen = dataclasses.replace(models, config=config.replace(diffusion=dict(precision=precision)))
        rows = distance_rows(sample_features(chosen, chosen.ours(), precision), real, config.evaluation)
        [kd] = [row["value"] for row in rows if row["metric"] == "kd"]
        work = f"{config.evaluation.num_samples} furniture chairs, laptop, seed 0, {precision}"
        found.append(Quantity("sampler", work, "kd x 10^3", kd))
    return found


def curve(device: torch.device, batch: int = 4) -> dict[str, list[tuple[float, float]]]:
    """Seconds per sample against the number of steps."""
    config = experiment("laptop", "procedural_chairs")
    shape = config.autodecoder.latent_shape
    denoiser = randomised(config.unet, shape, device)
    found: dict[str, list[tuple[float, float]]] = {}
    for steps in (9, 18, 36, 64):
        settings = SamplerConfig(num_steps=steps)
        noise = torch.randn(batch, *shape, device=device)
        runs: dict[str, Callable[[], Tensor]] = {
            "plain eager loop": lambda s=settings, n=noise: plain_loop(denoiser, s, n)
        }
        for dtype in (torch.bfloat16, torch.float32):
            denoise = for_inference(denoiser, device, dtype)
            name = f"sampler, {str(dtype).removeprefix('torch.')}"
            runs[name] = lambda d=denoise, s=settings: sample_objects(d, s, range(batch), shape, 0, device=device)
        for name, timing in alternate(runs, 2, device).items():
            found.setdefault(name, []).append((steps, statistics.median(timing.wall) / batch))
    return found
