"""Volumes and pictures of trained runs: reconstruct training objects, generate new ones, render both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autodecoder.reconstruction import Autodecoder, load_autodecoder
from ..data import SequenceSet
from ..diffusion.denoising import load_denoiser
from ..diffusion.inference import for_inference
from ..diffusion.sampling import sample_objects
from ..diffusion.text import check_width, encode
from ..rendering.cameras import Cameras
from ..rendering.render import render_views
from ..settings.checks import require
from ..settings.diffusion import SamplerConfig
from ..settings.experiment import Experiment
from ..stages import autodecoder_run, diffusion_run
from ..store.runs import Run
from ..training import select_device
from ..training.process import keep_freed_memory
from .parallel import spread

# Volumes (n, 4, S, S, S) of the samples with these numbers, drawn with this seed.
System = Callable[[Sequence[int], int], Tensor]

BATCH = 32  # objects decoded or denoised at once; a core of a CPU takes `cores.BATCH` of them


class Generator(Protocol):
    """The interface of a system to evaluation, whatever its objects are. Sample i of seed s depends on (i, s) only.

    On a CPU `pictures` is called by several threads at once, for different samples.

    A sample that came out broken (NaN or infinite) is NaN throughout, in its pictures and its density: evaluation
    counts it and leaves it out. Neither call may raise for it.
    """

    name: str

    def pictures(self, indices: Sequence[int], cameras: list[Cameras], seed: int) -> Tensor:
        """The samples with these numbers, each from its own v cameras, on black: (n, v, h, w, 3) in [0, 1], on the
        CPU."""

    def density(self, indices: Sequence[int], seed: int, resolution: int) -> Tensor:
        """The same samples' density (n, S, S, S) = (n, z, y, x) per unit length, S = resolution, over the cube
        [-1, 1]^3 with voxel centres on its faces."""


@dataclass(frozen=True)
class VolumeGenerator:
    """A system of volumes as a `Generator`."""

    name: str
    system: System
    num_samples: int  # per ray

    def pictures(self, indices: Sequence[int], cameras: list[Cameras], seed: int) -> Tensor:
        """As `Generator.pictures`."""
        pictures = []
        for volume, views in zip(self.system(indices, seed), cameras, strict=True):
            sound = torch.isfinite(volume[:4]).all()
            shown = volume[None] if sound else torch.zeros_like(volume[None])
            colour = render_views(shown, views, self.num_samples, normals=False)["colour"][0].cpu()
            pictures.append(colour if sound else torch.full_like(colour, torch.nan))
        return torch.stack(pictures)

    def density(self, indices: Sequence[int], seed: int, resolution: int) -> Tensor:
        """As `Generator.density`: the volume's own, or trilinearly resampled to another resolution."""
        volumes = self.system(indices, seed)
        density = volumes[:, :1].float()
        if density.shape[-1] != resolution:
            density = F.interpolate(density, size=(resolution,) * 3, mode="trilinear", align_corners=True)
        broken = ~torch.isfinite(volumes[:, :4]).flatten(1).all(1)
        density[broken] = torch.nan
        return density[:, 0]


@dataclass(frozen=True)
class Models:
    """The trained parts of one experiment and the data they were trained on."""

    config: Experiment
    data: SequenceSet | None  # None where only volumes are made, which need no data
    runs: tuple[Run, ...]  # of stage 1 and, for sampling, of stage 2
    autodecoder: Autodecoder
    device: torch.device

    @torch.no_grad()
    def reconstruct(self, objects: Sequence[int]) -> Tensor:
        """Volumes (n, 4, S, S, S) of training objects, from their learned embeddings."""
        return self.autodecoder(torch.as_tensor(objects, device=self.device))

    def generator(self, system: System | Generator, name: str = "samples") -> Generator:
        """The `Generator` of a system: one of volumes is rendered as stage 1 renders, any other is itself."""
        if hasattr(system, "pictures"):
            return system
        return VolumeGenerator(name, system, self.config.reconstruction.num_samples)

    def ours(
        self,
        captions: Sequence[str] | None = None,
        guidance: float | None = None,
        sampler: SamplerConfig | None = None,
        start: Callable[[Sequence[int]], Tensor] | None = None,
    ) -> System:
        """Latent diffusion: sample, de-normalise, decode with G2 (Sec. 3.3). Arguments and errors as of `features`."""
        features = self.features(captions, guidance, sampler, start)

        @torch.no_grad()
        def system(indices: Sequence[int], seed: int) -> Tensor:
            return self.autodecoder.decoder.g2(features(indices, seed))

        return spread(system, self.device)

    def features(
        self,
        captions: Sequence[str] | None = None,
        guidance: float | None = None,
        sampler: SamplerConfig | None = None,
        start: Callable[[Sequence[int]], Tensor] | None = None,
    ) -> System:
        """The samples of latent diffusion as features F (n, c, r, r, r), de-normalised: what G2 decodes.

        captions: of a conditional model. Sample i is of captions[i % len(captions)]. guidance: the weight s of
        u + s (c - u), by default the experiment's. 0 samples without the captions. sampler: instead of the
        experiment's. start: features (n, c, r, r, r) of the samples with these numbers; noised to the sampler's
        sigma_max, they are what sampling begins with instead of noise alone. Raises ConfigError where captions are
        missing or not wanted, and for a guidance other than 1 of an unconditional model.
        """
        config = self.config if sampler is None else dataclasses.replace(self.config, sampler=sampler)
        config = config if guidance is None else config.replace(sampler=dict(guidance=guidance))
        contexts = _contexts(config, captions)
        denoiser, statistics = load_denoiser(self.runs[1], config, self.device)
        dtype = getattr(torch, self.config.diffusion.precision)
        denoise = for_inference(denoiser, self.device, dtype)
        shape = self.config.autodecoder.latent_shape

        @torch.no_grad()
        def system(indices: Sequence[int], seed: int) -> Tensor:
            rows = None if contexts is None else contexts[[index % len(contexts) for index in indices]]
            known = None if start is None else statistics.normalize(start(indices).to(self.device))
            latents = sample_objects(denoise, config.sampler, indices, shape, seed, rows, self.device, known)
            return statistics.denormalize(latents.float())

        return system


def load_models(config: Experiment, data: SequenceSet, device: str = "auto") -> Models:
    """The models of an experiment from the run store, trained first where there are none."""
    second = diffusion_run(config, data, device)
    first = autodecoder_run(config, data, device)
    chosen = select_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    return Models(config, data, (first, second), load_autodecoder(first, config, chosen), chosen)


def _contexts(config: Experiment, captions: Sequence[str] | None) -> Tensor | None:
    """Contexts (n, l, k) of prompts, rounded as the stored ones are; None for an unconditional model."""
    if not config.conditional:
        require(captions is None, "captions are given, but the model is unconditional (context_dim 0)")
        return None
    require(
        captions is not None and not isinstance(captions, str) and len(captions) > 0,
        f"the model is conditional on text, but captions are {captions!r}, expected a list of texts",
    )
    contexts = encode(captions, config.text).half().float()
    check_width(contexts, config.unet.context_dim, config.text)
    return contexts
