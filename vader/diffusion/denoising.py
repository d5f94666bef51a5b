"""Stage-2 training (Sec. 3.3, B.2): EDM on the robustly normalised latents of a frozen G1, with captions or without."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..autodecoder.reconstruction import Autodecoder, load_autodecoder
from ..settings.checks import require
from ..settings.experiment import Experiment
from ..store.files import load_weights, plain, read_weights, save_weights
from ..store.runs import Run
from ..training.distributed import ALONE, Ranks
from ..training.graphs import graphed, how_it_steps
from ..training.sharding import shard, whole
from . import latents
from .edm import Denoiser, corrupted_loss, corruption, drop_condition
from .ema import EMA
from .latents import NormalizedLatents, StoredLatents, largest
from .normalization import RobustStatistics
from .text import check_width
from .unet3d import UNet3D


@torch.no_grad()
def extract_latents(autodecoder: Autodecoder, batch_size: int = 64) -> Tensor:
    """G1's features F of every training object, (n, c, r, r, r) float32 on the CPU, batch norm in evaluation mode."""
    embeddings = autodecoder.embedding.all()
    return torch.cat([autodecoder.decoder.g1(chunk).float().cpu() for chunk in embeddings.split(batch_size)])


def build_denoiser(config: Experiment) -> Denoiser:
    """The untrained denoiser of an experiment."""
    c, r, *_ = config.autodecoder.latent_shape
    return Denoiser(UNet3D(config.unet, c, r), config.diffusion.sigma_data)


class Denoising:
    """The stage-2 task of `training.fit`: one step denoises `batch_size` latents, drawn with replacement.

    contexts: those of the training objects' captions, (n, l, k), for a conditional denoiser; a share
    `condition_dropout` of a step's objects gets the null condition (zeros) instead. A step is drawn whole and processed
    in `microbatches`, which ranks share, with their gradients summed by DDP: the same function on any number of them,
    up to the order of sums. Raises ConfigError where contexts are missing, not wanted, or of another encoder or token
    length, and where the ranks cannot share the microbatches.
    """

    name = "diffusion"

    def __init__(
        self,
        config: Experiment,
        autodecoder_run: Run,
        device: torch.device,
        contexts: Tensor | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        settings = self.settings = config.diffusion
        _check_contexts(config, contexts)
        self.config, self.device, self.seed, self.ranks = config, device, config.seed, ranks
        self.keys = autodecoder_run.record["objects"]
        self.clip_norm, self.clip_value = settings.clip_norm, settings.clip_value
        ranks.share(settings.microbatches)
        self.per_step = settings.batch_size
        self.total = -(-settings.latents_seen // self.per_step) * self.per_step
        self.warmup = settings.warmup_latents
        features = self.features(autodecoder_run)
        require(
            contexts is None or len(contexts) == len(features),
            f"contexts are of {0 if contexts is None else len(contexts)} objects, expected one for each of the "
            f"{len(features)} training objects",
        )
        self.contexts = None if contexts is None else contexts.to(device)
        self.statistics, self.latents = self._normalized(features)
        torch.manual_seed(config.seed)
        self.denoiser = build_denoiser(config).to(device).to(memory_format=torch.channels_last_3d).train()
        self.ema = EMA(self.denoiser, settings.ema_half_life, settings.ema_rampup)
        self.parallel = ranks.wrap(self.denoiser)
        if ranks.sharded:
            shard(self.ema.module)
        self.optimizer = torch.optim.Adam(
            self.denoiser.parameters(), lr=settings.learning_rate, betas=settings.betas, fused=True
        )

        self.why_eager = "several ranks" if ranks.size > 1 else ""
        self.graphed = graphed(self._losses, self.denoiser, device, self.why_eager)

    def features(self, autodecoder_run: Run) -> Tensor | StoredLatents:
        """Latents that are normalised and learned, (n, c, r, r, r): in memory or, if too large, in a file."""
        autodecoder = load_autodecoder(autodecoder_run, self.config, self.device)
        size = 4 * math.prod((len(autodecoder_run.record["objects"]), *self.config.autodecoder.latent_shape))
        if size > latents.IN_MEMORY:
            return latents.stored_latents(autodecoder, autodecoder_run)
        return extract_latents(autodecoder)

    def _normalized(self, features: Tensor | StoredLatents) -> tuple[RobustStatistics, Tensor | NormalizedLatents]:
        how = (self.settings.normalization, self.settings.sigma_data, self.settings.per_channel)
        if isinstance(features, StoredLatents):
            statistics = RobustStatistics.fit_stream(features, *how)
            return statistics, NormalizedLatents(features, statistics, self.device)
        statistics = RobustStatistics.fit(features, *how)
        normalized = statistics.normalize(features).to(self.device)
        return statistics, normalized.contiguous(memory_format=torch.channels_last_3d)

    def step(self, clock: int) -> dict[str, Tensor]:
        settings, parts = self.settings, self.settings.microbatches
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        chosen = self.choose(generator).to(self.device)
        context = None
        if self.contexts is not None:
            context = drop_condition(self.contexts[chosen].float(), settings.condition_dropout, generator)
        shape = (len(chosen), *self.latents.shape[1:])
        drawn = (chosen, *corruption(shape, generator, self.device, settings.p_mean, settings.p_std))

        def losses(j: int) -> dict[str, Tensor]:
            mine, sigma, noise = (x.chunk(parts)[j] for x in drawn)
            condition = None if context is None else context.chunk(parts)[j]
            return (self.graphed or self._losses)(self.latents[mine], sigma, noise, condition)

        return self.ranks.accumulate(self.parallel, parts, self.seed, clock, losses)

    def _losses(self, latents: Tensor, sigma: Tensor, noise: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            loss = self.loss(latents, sigma, noise, condition)
        return {"loss": loss.mean()}

    def loss(self, latents: Tensor, sigma: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
        """The loss of each of these latents, (b,), under this corruption."""
        return corrupted_loss(self.parallel, self.settings.sigma_data, latents, sigma, noise, condition)

    def execution(self) -> dict[str, str]:
        """How steps are computed here, for the record of a session."""
        return {"step": how_it_steps(self.graphed, self.device, self.why_eager)}

    def choose(self, generator: torch.Generator) -> Tensor:
        """The latents of a step, (batch_size,) int64."""
        return torch.randint(len(self.latents), (self.settings.batch_size,), generator=generator)

    def batch(self, clock: int) -> list[str]:
        """Keys of the objects whose latents the step draws, from its random stream."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return [self.keys[k] for k in self.choose(generator).tolist()]

    def after_step(self, clock: int) -> None:
        self.ema.update(self.denoiser, clock, self.per_step)

    def state(self) -> dict[str, nn.Module]:
        return {"denoiser": self.denoiser, "ema": self.ema.module}

    def facts(self) -> dict[str, Any]:
        """Facts that the run's record keeps beside the usual ones."""
        return {
            "latents": len(self.latents),
            "largest_normalized_latent": largest(self.latents),
            "parameters": sum(p.numel() for p in self.denoiser.parameters()),
        }

    def save(self, work: Path) -> None:
        average = whole(self.ema.module.state_dict())
        if not self.ranks.first:
            return
        metadata = {"unet": self.config.unet, "latent_shape": self.config.autodecoder.latent_shape}
        if self.config.conditional:
            metadata["text"] = self.config.text
        save_weights(work / "denoiser.safetensors", average, metadata, getattr(torch, self.config.weights_precision))
        save_weights(work / "statistics.safetensors", self.statistics.to_tensors(), metadata)


def load_denoiser(
    run: Run, config: Experiment, device: torch.device | str = "cpu"
) -> tuple[Denoiser, RobustStatistics]:
    """The EMA denoiser of a stage-2 run, in evaluation mode, and the statistics its latents were normalised with.

    Raises ConfigError where it was trained on captions in another encoding than `config.text`.
    """
    denoiser = build_denoiser(config)
    file = run.weights("denoiser")
    found = load_weights(file, denoiser).get("text")
    expected = plain(config.text) if config.conditional else None
    require(found == expected, f"{file}: was trained on captions encoded as {found}, expected {expected}")
    tensors, _ = read_weights(run.weights("statistics"))
    denoiser = denoiser.to(device).to(memory_format=torch.channels_last_3d).eval().requires_grad_(False)
    return denoiser, RobustStatistics.from_tensors(tensors)


def _check_contexts(config: Experiment, contexts: Tensor | None) -> None:
    width = config.unet.context_dim
    require(contexts is not None or width == 0, f"the denoiser takes contexts (context_dim {width}), but got none")
    require(contexts is None or width > 0, "the denoiser is unconditional (context_dim 0), but contexts are given")
    if contexts is not None:
        check_width(contexts, width, config.text)
