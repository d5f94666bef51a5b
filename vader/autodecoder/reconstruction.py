"""Stage-1 training (Sec. 3.2): analysis by synthesis from images, a few views of each object per step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Experiment, require
from ..data import SequenceSet
from ..data.views import Batch, draw_views, training_views
from ..rendering.fused import fused_backend
from ..rendering.volume import render_rays
from ..runs import Run
from ..storage import load_weights, save_weights
from .decoder import Decoder
from .embedding import make_embedding
from .losses import image_losses, perceptual_loss


class Autodecoder(nn.Module):
    """The library of embeddings and the decoder G that they are learned with."""

    def __init__(self, config: Experiment, num_objects: int):
        super().__init__()
        self.embedding = make_embedding(config.autodecoder, num_objects)
        self.decoder = Decoder(config.autodecoder)

    def forward(self, objects: Tensor, density_noise: float = 0.0) -> Tensor:
        """Object indices (b,) -> volumes (b, 1 + 3 (+ lbs), S, S, S)."""
        return self.decoder(self.embedding(objects), density_noise)


class JointOptimizer:
    """Several optimisers as one, as far as `training.fit` is concerned.

    Adam for the decoder and SparseAdam for a table with sparse gradients: a step then touches the rows that were
    looked up, and the moments of the others do not decay, which makes it another optimiser than Adam. It pays where
    the table is much larger than the rows of a step: a dense gradient of 300,000 embeddings of 1024 is 1.2 GB.
    """

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        states = [part.state_dict() for part in self.parts]
        return {"parts": states, "param_groups": [group for state in states for group in state["param_groups"]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


class Reconstruction:
    """The stage-1 task of `training.fit`: one step renders `views_per_object` views of `objects_per_step` objects."""

    name = "autodecoder"

    def __init__(self, config: Experiment, data: SequenceSet, device: torch.device):
        settings = self.settings = config.reconstruction
        self.config, self.device, self.seed = config, device, config.seed
        self.views = training_views(data, device, config.seed)
        self.keys = self.views.keys
        require(
            len(self.keys) >= settings.objects_per_step,
            f"objects_per_step is {settings.objects_per_step}, but {data.name} has {len(self.keys)} training objects",
        )
        self.per_step = settings.objects_per_step * settings.views_per_object
        self.total = -(-settings.images_seen // self.per_step) * self.per_step
        self.warmup = settings.warmup_images

        torch.manual_seed(config.seed)
        self.model = Autodecoder(config, len(self.keys)).to(device).to(memory_format=torch.channels_last_3d).train()
        self.perceptual = perceptual_loss(settings, device)
        decoder, table = self.model.decoder.parameters(), self.model.embedding.parameters()
        groups = [
            {"params": list(decoder), "lr": settings.learning_rate},
            {"params": list(table), "lr": settings.embedding_learning_rate},
        ]
        self.optimizer: torch.optim.Optimizer | JointOptimizer
        if config.autodecoder.sparse_embedding:
            adam = torch.optim.Adam(groups[:1], betas=settings.betas, fused=True)
            self.optimizer = JointOptimizer(adam, torch.optim.SparseAdam(groups[1:], betas=settings.betas))
        else:
            self.optimizer = torch.optim.Adam(groups, betas=settings.betas, fused=True)

    def draw(self, clock: int) -> Batch:
        """The objects of a step and the views of each, without repetition."""
        objects = self.views.draw(clock // self.per_step, self.settings.objects_per_step)
        views = draw_views(len(objects), self.views.num_views, self.settings.views_per_object)
        return self.views.batch(objects, views)

    def step(self, clock: int) -> dict[str, Tensor]:
        settings = self.settings
        batch = self.draw(clock)
        target, mask = batch.images.float() / 255, batch.masks.float() / 255
        b, v, h, w = mask.shape
        origins, directions = (x.view(b, v * h * w, 3) for x in batch.cameras.rays())
        noise = settings.density_noise * max(0.0, 1 - clock / max(1, settings.density_noise_images))
        stratified_seed = int(torch.randint(2**31, ()))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            volume = self.model(batch.objects, noise)
        rendering = render_rays(
            volume, origins, directions, settings.num_samples, stratified_seed=stratified_seed, check=False
        )
        colour, occupancy, _ = rendering.images(h, w)
        images = (x.flatten(0, 1) for x in (colour, occupancy, target, mask))
        losses = image_losses(settings, self.perceptual, *images)
        loss = sum(losses.values())
        loss.backward()
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    def after_step(self, clock: int) -> None:
        """Stage 1 has nothing to add: no EMA."""

    def state(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def facts(self) -> dict[str, Any]:
        """What the run's record should say beside the usual."""
        return {
            "objects": self.keys,
            "perceptual_network": self.settings.perceptual_network,
            "renderer": fused_backend(self.device) or "reference",
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }

    def save(self, work: Path) -> None:
        precision = getattr(torch, self.config.weights_precision)
        metadata = {"autodecoder": self.config.autodecoder, "objects": self.keys}
        save_weights(work / "autodecoder.safetensors", self.model, metadata, precision)


def load_autodecoder(run: Run, config: Experiment, device: torch.device | str = "cpu") -> Autodecoder:
    """The trained autodecoder of a stage-1 run, in evaluation mode."""
    model = Autodecoder(config, len(run.record["objects"]))
    load_weights(run.weights("autodecoder"), model)
    return model.to(device).to(memory_format=torch.channels_last_3d).eval()
