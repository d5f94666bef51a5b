"""Stage-1 training (Sec. 3.2): analysis by synthesis from images, a few views of each object per step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import SequenceSet
from ..data.views import Batch, draw_views, training_views
from ..rendering.backends import how_it_renders
from ..rendering.render import render_images
from ..settings.checks import require
from ..settings.experiment import Experiment
from ..store.files import load_weights, save_weights
from ..store.provenance import available_memory
from ..store.runs import Run
from ..training.distributed import ALONE, Ranks, stream_seed
from ..training.graphs import graphed, how_it_steps
from ..training.sharding import whole
from .decoder import Decoder
from .embedding import PartitionedEmbedding, make_embedding
from .losses import draw_perceptual, image_losses, perceptual_loss

FEATURES_SHARE = {"cuda": 0.4, "cpu": 0.2}  # of a device's free memory, for the features of training images


class Autodecoder(nn.Module):
    """The library of embeddings and the decoder G that they are learned with."""

    def __init__(self, config: Experiment, num_objects: int, embedding: nn.Module | None = None):
        """embedding: part of the library in place of all of it."""
        super().__init__()
        self.embedding = embedding or make_embedding(config.autodecoder, num_objects)
        self.decoder = Decoder(config.autodecoder)

    def forward(self, objects: Tensor, density_noise: float | Tensor = 0.0) -> Tensor:
        """Object indices (b,) -> volumes (b, 1 + 3 (+ lbs), S, S, S)."""
        return self.decoder(self.embedding(objects), density_noise)


class JointOptimizer:
    """Several optimisers as one, as far as `training.fit` is concerned.

    Adam for the decoder and SparseAdam for a table with sparse gradients: a step then touches the rows that were
    looked up, and the moments of the others do not decay, which makes it another optimiser than Adam. It pays where
    the table is much larger than the rows of a step: a dense gradient of 300,000 embeddings of 1024 is 1.2 GB.

    stored: how many of the parts, from the first, `state_dict` holds; None: all. The others' state is kept elsewhere.
    """

    def __init__(self, *parts: torch.optim.Optimizer, stored: int | None = None):
        self.parts, self.stored = parts, parts[:stored]

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
        states = [part.state_dict() for part in self.stored]
        return {"parts": states, "param_groups": [group for state in states for group in state["param_groups"]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, own in zip(self.stored, state["parts"], strict=True):
            part.load_state_dict(own)


class OwnedRows:
    """`training.loop.Rows` of a library of which each rank has a part: rows and their moments, by partition."""

    MOMENTS = ("exp_avg", "exp_avg_sq")

    def __init__(self, embedding: PartitionedEmbedding, optimizer: torch.optim.Optimizer):
        self.embedding, self.weight, self.optimizer = embedding, embedding.table.weight, optimizer
        self.partitions = list(embedding.spans)

    def parameters(self) -> list[nn.Parameter]:
        return [self.weight]

    def state(self, partition: int) -> dict[str, Any]:
        span, moments = self.embedding.spans[partition], self.optimizer.state.get(self.weight, {})
        own = {name: moments[name][span].clone() for name in self.MOMENTS if name in moments}
        return {"rows": self.weight.detach()[span].clone(), **own, **({"step": moments["step"]} if own else {})}

    def load_state(self, partition: int, state: dict[str, Any]) -> None:
        span, moments = self.embedding.spans[partition], self.optimizer.state[self.weight]
        with torch.no_grad():
            self.weight[span] = state["rows"]
        for name in self.MOMENTS:
            if name in state:
                moments.setdefault(name, torch.zeros_like(self.weight))[span] = state[name]
                moments["step"] = state["step"]


class Reconstruction:
    """The stage-1 task of `training.fit`: one step renders `views_per_object` views of `objects_per_step` objects.

    A step's objects are processed in `microbatches`, each with batch norm statistics and a random stream of its own;
    the running statistics move by the mean of theirs. So a step is the same function, up to the order of sums, on
    however many ranks share the microbatches. Where the library is `partitioned`, a rank holds the embeddings of its
    own microbatches' objects and nothing of the others', and the decoder's gradients are all that ranks exchange.
    """

    name = "autodecoder"

    def __init__(self, config: Experiment, data: SequenceSet, device: torch.device, ranks: Ranks = ALONE):
        settings = self.settings = config.reconstruction
        self.config, self.device, self.seed, self.ranks = config, device, config.seed, ranks
        self.clip_norm, self.clip_value = settings.clip_norm, settings.clip_value
        self.views = training_views(data, device, config.seed)
        self.keys = self.views.keys
        require(
            len(self.keys) >= settings.objects_per_step,
            f"objects_per_step is {settings.objects_per_step}, but {data.name} has {len(self.keys)} training objects",
        )
        self.per_step = settings.objects_per_step * settings.views_per_object
        self.total = -(-settings.images_seen // self.per_step) * self.per_step
        self.warmup = settings.warmup_images
        each = max(1, settings.perceptual_images // settings.microbatches)
        self.microbatch = dataclasses.replace(settings, perceptual_images=each, microbatches=1)

        torch.manual_seed(config.seed)
        part = self._own_part()
        self.model = Autodecoder(config, len(self.keys), part).to(device).to(memory_format=torch.channels_last_3d)
        self.model.train()
        self.perceptual = perceptual_loss(settings, device)
        if self.perceptual is not None:
            self.perceptual.together = device.type == "cpu"  # elsewhere bits vary from run to run anyway
            self.perceptual.room = int(FEATURES_SHARE.get(device.type, 0) * (available_memory(device) or 0))
        self.parallel = ranks.wrap(self.model if part is None else self.model.decoder)
        decoder, table = self.model.decoder.parameters(), self.model.embedding.parameters()
        groups = [
            {"params": list(decoder), "lr": settings.learning_rate},
            {"params": list(table), "lr": settings.embedding_learning_rate},
        ]
        self.optimizer: torch.optim.Optimizer | JointOptimizer
        sparse = config.autodecoder.sparse_embedding
        require(
            not sparse or settings.clip_norm == settings.clip_value == 0,
            "sparse_embedding has gradients that cannot be clipped, expected clip_norm and clip_value 0",
        )
        if sparse or part is not None:
            adam = torch.optim.Adam(groups[:1], betas=settings.betas, fused=True)
            if sparse:
                rows = torch.optim.SparseAdam(groups[1:], betas=settings.betas)
            else:
                rows = torch.optim.Adam(groups[1:], betas=settings.betas, fused=True)
            self.optimizer = JointOptimizer(adam, rows, stored=None if part is None else 1)
            self.rows = None if part is None else OwnedRows(part, rows)
        else:
            self.optimizer, self.rows = torch.optim.Adam(groups, betas=settings.betas, fused=True), None
        self.why_eager = "several ranks" if ranks.size > 1 else "its own rows" if self.rows else ""
        self.why_eager = "sparse gradients" if sparse else self.why_eager
        self.graphed = graphed(self._losses, self.model, device, self.why_eager)

    def _own_part(self) -> PartitionedEmbedding | None:
        """This rank's part of a partitioned library; None where every rank has all of it."""
        settings, network = self.settings, self.config.autodecoder
        own, parts = self.ranks.share(settings.microbatches), settings.microbatches
        if not settings.partitioned:
            require(
                self.ranks.size == 1 or not network.sparse_embedding,
                f"sparse_embedding trains on {self.ranks.size} ranks only where the library is partitioned",
            )
            return None
        members = {j: self.views.members(j, parts) for j in own}
        for j, objects in members.items():
            require(
                len(objects) >= settings.objects_per_step // parts,
                f"partition {j} of {parts} has {len(objects)} objects of {self.views.name}, expected at least the "
                f"{settings.objects_per_step // parts} of a microbatch",
            )
        if network.hash_rows:  # its codebooks belong to all objects
            require(
                self.ranks.size == 1 or not network.sparse_embedding,
                f"a hashed library with sparse_embedding trains on one rank, not on {self.ranks.size}",
            )
            return None
        return PartitionedEmbedding(members, network.embedding_dim, self.seed, network.sparse_embedding)

    def choose(self, clock: int, partition: int = 0, partitions: int = 1) -> tuple[Tensor, Tensor]:
        """A partition's objects (b,) of a step and the views (b, v) of each, from the current random stream."""
        count = self.settings.objects_per_step // partitions
        objects = self.views.draw(clock // self.per_step, count, partition, partitions)
        return objects, draw_views(len(objects), self.views.num_views, self.settings.views_per_object)

    def draw(self, clock: int) -> Batch:
        """The objects of a step and the views of each, without repetition."""
        return self.views.batch(*self.choose(clock))

    def step(self, clock: int) -> dict[str, Tensor]:
        parts = self.settings.microbatches
        chosen = None if self.settings.partitioned else self.choose(clock)

        def losses(j: int) -> dict[str, Tensor]:
            mine = self.choose(clock, j, parts) if chosen is None else [x.chunk(parts)[j] for x in chosen]
            names = (mine[0][:, None] * self.views.num_views + mine[1]).flatten().cpu()
            return self.losses(self.views.batch(*mine), clock, names)

        return self.ranks.accumulate(self.parallel, parts, self.seed, clock, losses)

    def losses(self, batch: Batch, clock: int, names: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted losses of a microbatch, and 'loss', their sum. names: (b * v,), a number of each image."""
        settings = self.microbatch
        noise = settings.density_noise * max(0.0, 1 - clock / max(1, settings.density_noise_images))
        seed = int(torch.randint(2**31, ()))
        inputs = (batch.objects, batch.images, batch.masks, batch.world_to_camera, batch.intrinsics)
        if self.graphed is None:
            return self._losses(*inputs, noise, seed, names)
        # what the host draws and looks up comes before the graph, and goes in as tensors
        numbers = torch.tensor(noise, device=self.device), torch.tensor(seed, device=self.device)
        features: list[Tensor] = []
        if self.perceptual is not None:
            pixels = batch.images.flatten(0, 1).float() / 255
            chosen, wanted = draw_perceptual(settings, self.perceptual, pixels, names)
            features = [chosen, *(tap for scale in wanted for tap in scale)]
            self.taps = [len(scale) for scale in wanted]
        return self.graphed(*inputs, *numbers, None, *features)

    def _losses(self, objects: Tensor, images: Tensor, masks: Tensor, world_to_camera: Tensor, intrinsics: Tensor,
                noise: float | Tensor, seed: int | Tensor, names: Tensor | None,
                *features: Tensor) -> dict[str, Tensor]:  # fmt: skip
        """`losses` of the tensors of a batch. features: what `draw_perceptual` drew, if it did, in a row."""
        settings, drawn = self.microbatch, None
        if features:
            taps = iter(features[1:])
            drawn = features[0], [[next(taps) for _ in range(count)] for count in self.taps]
        batch = Batch(objects, images, masks, world_to_camera, intrinsics)
        target, mask = images.float() / 255, masks.float() / 255
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            source = objects if self.rows is None else self.model.embedding(objects)
            volume = self.parallel(source, noise)
        rectified = self.config.autodecoder.density_activation == "relu"
        colour, occupancy, _ = render_images(
            volume, batch.cameras, settings.num_samples, stratified_seed=seed, rectified=rectified
        )
        pictures = (x.flatten(0, 1) for x in (colour, occupancy, target, mask))
        losses = image_losses(settings, self.perceptual, *pictures, names, drawn)
        return {"loss": sum(losses.values()), **losses}

    def execution(self) -> dict[str, str]:
        """How steps and pictures are computed here, for the record of a session."""
        return {
            "step": how_it_steps(self.graphed, self.device, self.why_eager),
            "renderer": how_it_renders(self.device),
        }

    def batch(self, clock: int) -> list[str]:
        """Keys of the objects that this rank draws at this clock, from the step's random stream."""
        parts = self.settings.microbatches
        if not self.settings.partitioned:
            return [self.keys[k] for k in self.choose(clock)[0].tolist()]
        keys = []
        for j in self.ranks.share(parts):
            torch.manual_seed(stream_seed(self.seed, j, clock))
            keys += [self.keys[k] for k in self.choose(clock, j, parts)[0].tolist()]
        return keys

    def after_step(self, clock: int) -> None:
        """Stage 1 has nothing to add: no EMA."""

    def state(self) -> dict[str, nn.Module]:
        return {"model": self.model} if self.rows is None else {"decoder": self.model.decoder}

    def facts(self) -> dict[str, Any]:
        """Facts that the run's record keeps beside the usual ones."""
        decoder, table = (sum(p.numel() for p in m.parameters()) for m in (self.model.decoder, self.model.embedding))
        if self.rows is not None:
            table = len(self.keys) * self.config.autodecoder.embedding_dim
        return {
            "objects": list(self.keys),
            "perceptual_network": self.settings.perceptual_network,
            "renderer": how_it_renders(self.device),
            "parameters": decoder + table,
        }

    def save(self, work: Path) -> None:
        precision = getattr(torch, self.config.weights_precision)
        metadata = {"autodecoder": self.config.autodecoder, "objects": list(self.keys)}
        weights = whole(self.model.state_dict())
        if self.rows is not None:
            table = self.ranks.assembled(self.rows.weight.detach(), self.rows.embedding.objects, len(self.keys))
            weights["embedding.table.weight"] = table
        if self.ranks.first:
            save_weights(work / "autodecoder.safetensors", weights, metadata, precision)


def load_autodecoder(run: Run, config: Experiment, device: torch.device | str = "cpu") -> Autodecoder:
    """The trained autodecoder of a stage-1 run, in evaluation mode."""
    model = Autodecoder(config, len(run.record["objects"]))
    load_weights(run.weights("autodecoder"), model)
    return model.to(device).to(memory_format=torch.channels_last_3d).eval()
