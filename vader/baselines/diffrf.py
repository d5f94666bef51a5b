"""DiffRF (Müller et al., CVPR 2023): denoising diffusion on radiance fields, guided by renderings.

Every training object is a grid x (4, S, S, S) in [-1, 1], fitted beforehand (`radiance_fields`). A 3D U-Net learns

    L = L_RF + lambda omega_t L_RGB,    omega_t = abar_t^2,

where L_RF is DDPM's mean squared error (Ho et al. 2020) and L_RGB the photometric error of the estimate of x_0 along
rays of the object's training images, so that what is learned may be better than what was fitted. Noise schedule and
sampler are those of diffusers. Certain of the original: an explicit 32^3 grid, 1,000 steps of DDPM predicting the
noise, an ADM U-Net in 3D, the rendering loss against posed images on the estimated x_0, and a weight that falls with
the noise. From memory, since neither code nor settings could be read: linear betas from 0.0015 to 0.05,
omega_t = abar_t^2, lambda = 0.1. Sizes, rates and batch of `paper` are choices. Small profiles have:

    prediction="sample" and patch_size=2    2^3 voxels become one cell of the U-Net, at an eighth of the cost; x_0 then
                                            passes through a layer narrower than a patch, where noise cannot
    few steps of DDIM                       1,000 evaluations at 32^3 take a CPU hours

The same volumes, renderer, cameras and metrics as ours; images are on black, with the masks as a second target, since
black on black leaves the shape of dark parts open. As a command, both stages:

    vader train furniture_chairs --system diffrf --profile laptop [--stage all] [--max-seconds 540]
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import SequenceSet
from ..diffusion.edm import per_object, standard_normal
from ..diffusion.ema import EMA
from ..diffusion.sampling import for_inference, object_generators
from ..diffusion.unet3d import UNet3D
from ..evaluation.costs import denoiser_stages
from ..generation.parallel import spread
from ..settings.checks import require
from ..settings.diffrf import CHANNELS, DiffRFConfig, FieldDiffusionConfig
from ..store import runs
from ..store.files import load_weights, plain, save_weights
from ..store.runs import Run, RunError
from ..training import fit, select_device
from .radiance_fields import TrainingRays, fields_run, fields_settings, load_fields, photometric_loss, to_volume

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

    from ..generation.volumes import System


# diffusers imports its parts when they are asked for, which fails where two threads ask at once.
_IMPORTING = threading.Lock()


# ---------------------------------------------------------------------------------------------------- the model


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """(b, c, S, S, S) -> (b, c patch^3, S/patch, S/patch, S/patch): each patch becomes the channels of one cell."""
    b, c, *size = x.shape
    d, h, w = (n // patch for n in size)
    x = x.reshape(b, c, d, patch, h, patch, w, patch).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, c * patch**3, d, h, w)


def depth_to_space(x: Tensor, patch: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    b, c, d, h, w = x.shape
    x = x.reshape(b, c // patch**3, patch, patch, patch, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c // patch**3, d * patch, h * patch, w * patch)


class FieldUNet(nn.Module):
    """The U-Net on fields (b, 4, S, S, S) at timesteps (b,), with the prediction that the settings name, float32."""

    def __init__(self, config: DiffRFConfig) -> None:
        super().__init__()
        self.patch = config.diffusion.patch_size
        self.network = UNet3D(config.unet, CHANNELS * self.patch**3, config.fields.resolution // self.patch)

    def forward(self, x: Tensor, timesteps: Tensor, context: None = None) -> Tensor:
        cells = space_to_depth(x, self.patch).contiguous(memory_format=torch.channels_last_3d)
        return depth_to_space(self.network(cells, timesteps.float()).float(), self.patch)


def noise_schedule(config: FieldDiffusionConfig) -> DDPMScheduler:
    """The forward process of training."""
    try:
        with _IMPORTING, warnings.catch_warnings():  # in a notebook without ipywidgets it complains of tqdm
            warnings.simplefilter("ignore")
            from diffusers import DDPMScheduler
    except ImportError as error:
        raise ImportError("DiffRF takes its noise schedule from diffusers: pip install 'vader[baselines]'") from error
    return DDPMScheduler(
        num_train_timesteps=config.timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="linear",
        prediction_type=config.prediction,
    )


def estimate_x0(output: Tensor, x: Tensor, abar: Tensor, prediction: str) -> Tensor:
    """The x_0 (b, ...) that a network's output stands for at x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise, abar (b,)."""
    if prediction == "sample":
        return output
    abar = per_object(abar, x)
    return (x - (1 - abar).sqrt() * output) / abar.sqrt()


class FieldDiffusion:
    """The task of `training.fit` that learns the fields: one step denoises `batch_size`, drawn with replacement.

    fields: (n, 4, S, S, S) in [-1, 1], of the training objects of `data` in their order.
    """

    name = "diffrf"

    def __init__(self, config: DiffRFConfig, data: SequenceSet, fields: Tensor, device: torch.device) -> None:
        settings = self.settings = config.diffusion
        self.rays = TrainingRays(data, device)
        expected = (len(self.rays.keys), *config.fields.shape)
        require(fields.shape == expected, f"fields are {tuple(fields.shape)}, expected {expected}")
        self.config, self.device, self.seed = config, device, config.seed
        self.per_step = settings.batch_size
        self.total = -(-settings.fields_seen // self.per_step) * self.per_step
        self.warmup = settings.warmup_fields
        self.fields = fields.to(device)
        self.schedule = noise_schedule(settings)
        self.abar = self.schedule.alphas_cumprod.to(device)
        torch.manual_seed(config.seed)
        self.denoiser = FieldUNet(config).to(device).to(memory_format=torch.channels_last_3d).train()
        self.ema = EMA(self.denoiser, settings.ema_half_life, settings.ema_rampup)
        self.optimizer = torch.optim.Adam(
            self.denoiser.parameters(), lr=settings.learning_rate, betas=settings.betas, fused=True
        )

    def step(self, clock: int) -> dict[str, Tensor]:
        settings = self.settings
        b = settings.batch_size
        objects = torch.randint(len(self.fields), (b,))
        t = torch.randint(settings.timesteps, (b,)).to(self.device)
        x0 = self.fields[objects.to(self.device)]
        noise = torch.randn(x0.shape).to(self.device)
        x = self.schedule.add_noise(x0, noise, t)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            output = self.denoiser(x, t)
        losses = {"field": F.mse_loss(output, noise if settings.prediction == "epsilon" else x0)}
        if settings.guidance_weight:
            estimate = estimate_x0(output, x, self.abar[t], settings.prediction)
            weight = settings.guidance_weight * self.abar[t] ** 2
            losses["rendering"] = (weight * self.rendering_loss(estimate, objects)).mean()
        loss = sum(losses.values())
        loss.backward()
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    def rendering_loss(self, estimate: Tensor, objects: Tensor) -> Tensor:
        """L_RGB of estimates of x_0 (b, 4, S, S, S) of these objects (b,), on random rays of their images: (b,)."""
        settings, fields = self.settings, self.config.fields
        rays = self.rays.draw(objects, settings.guidance_rays)
        seed = int(torch.randint(2**31, ()))
        volume = to_volume(estimate, fields)
        return photometric_loss(volume, rays, settings.guidance_samples, fields.mask_weight, seed)

    def after_step(self, clock: int) -> None:
        self.ema.update(self.denoiser, clock, self.per_step)

    def state(self) -> dict[str, nn.Module]:
        return {"denoiser": self.denoiser, "ema": self.ema.module}

    def facts(self) -> dict[str, Any]:
        """Facts that the run's record keeps beside the usual ones."""
        return {"objects": self.rays.keys, "parameters": sum(p.numel() for p in self.denoiser.parameters())}

    def save(self, work: Path) -> None:
        metadata = {"unet": self.config.unet, "patch_size": self.settings.patch_size, "objects": self.rays.keys}
        precision = getattr(torch, self.config.weights_precision)
        save_weights(work / "denoiser.safetensors", self.ema.module, metadata, precision)


# ------------------------------------------------------------------------------------------- runs and samples


def diffrf_settings(config: DiffRFConfig, data: SequenceSet) -> dict[str, Any]:
    """The settings that decide a DiffRF run, without the sampler."""
    return {
        "stage": "diffrf",
        "fields": fields_settings(config.fields, data, config.seed),
        "unet": config.unet,
        "diffusion": config.diffusion,
        "weights_precision": config.weights_precision,
        "seed": config.seed,
    }


def diffrf_run(config: DiffRFConfig, data: SequenceSet, device: str = "auto", max_seconds: float | None = None) -> Run:
    """The trained DiffRF of a data set: found (then its fields are not needed), or trained, fields first."""

    def train(work: Path) -> None:
        first = fields_run(config.fields, data, config.seed, device, max_seconds)
        fields = load_fields(first, config.fields, data)
        task = FieldDiffusion(config, data, fields, select_device(device))
        record = runs.Record(work, config.seed, task.device, pixels=data.pixel_record(), **task.facts())
        fit(task, work, record, max_seconds)

    noise_schedule(config.diffusion)  # that diffusers is there, before the fields are fitted
    return runs.get(f"{data.name}-diffrf", diffrf_settings(config, data), train, data)


def load_diffrf(run: Run, config: DiffRFConfig, data: SequenceSet) -> FieldUNet:
    """The averaged U-Net of a run, in evaluation mode. Raises RunError for a run of other data or settings."""
    expected = plain(diffrf_settings(config, data))
    for name, value in expected.items():
        if run.settings.get(name) != value:
            raise RunError(f"{run.folder}: {name} is {run.settings.get(name)!r}, expected {value!r}")
    model = FieldUNet(config)
    load_weights(run.weights("denoiser"), model)
    return model.to(memory_format=torch.channels_last_3d).eval().requires_grad_(False)


@torch.no_grad()
def sample_fields(
    denoise: Callable[[Tensor, Tensor], Tensor],
    config: DiffRFConfig,
    indices: Sequence[int],
    seed: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Fields (len(indices), 4, S, S, S) in [-1, 1] of the samples with these numbers; (seed, index) decides each.

    denoise: a `FieldUNet`, or a copy of one that `diffusion.sampling.for_inference` made. Where it returns NaN, so does
    this.
    """
    process = noise_schedule(config.diffusion)
    with _IMPORTING:
        from diffusers import DDIMScheduler  # after the first import, which says what is missing

    schedule = DDIMScheduler.from_config(
        process.config, clip_sample=True, timestep_spacing="trailing", set_alpha_to_one=True
    )
    schedule.set_timesteps(config.sampler.num_steps)
    generators = object_generators(seed, indices)
    x = standard_normal((len(indices), *config.fields.shape), generators, device)
    options = dict(eta=config.sampler.eta, use_clipped_model_output=True, generator=generators)
    for t in schedule.timesteps.tolist():
        output = denoise(x, torch.full((len(x),), t, device=device))
        x = schedule.step(output, t, x, **options).prev_sample
    return x


def diffrf_system(run: Run, config: DiffRFConfig, data: SequenceSet, device: str = "auto") -> System:
    """DiffRF as a system of `generation`: volumes (n, 4, S, S, S) of the samples with these numbers and seed."""
    chosen = select_device(device)
    denoise = for_inference(load_diffrf(run, config, data), chosen, getattr(torch, config.diffusion.precision))

    def system(indices: Sequence[int], seed: int) -> Tensor:
        return to_volume(sample_fields(denoise, config, indices, seed, chosen), config.fields)

    return spread(system, chosen)


# ------------------------------------------------------------------------------------------------------ the plan


def plan(config: DiffRFConfig, objects: int) -> str:
    """Steps, parameters and operations of both stages, in words."""
    fields, diffusion = config.fields, config.diffusion
    with torch.device("meta"):
        stages = denoiser_stages(FieldUNet(config).network)
    flops, parameters = (sum(getattr(s, name) for s in stages) for name in ("flops", "parameters"))
    at_once = min(objects, fields.objects_per_step)
    steps = -(-diffusion.fields_seen // diffusion.batch_size)
    return "\n".join(
        [
            f"fields: {objects} of {fields.resolution}³, {-(-fields.updates * objects // at_once):,} steps of "
            f"{at_once} x {fields.rays_per_step:,} rays of {fields.num_samples} samples",
            f"diffusion: U-Net {parameters:,} parameters, {3 * flops * diffusion.batch_size / 1e9:.3g} GFLOP a step, "
            f"{steps:,} steps of {diffusion.batch_size}; {config.sampler.num_steps} evaluations of {flops / 1e9:.3g} "
            "GFLOP a sample",
        ]
    )
