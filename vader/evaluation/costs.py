"""Costs of a configuration: parameters, operations and bytes, measured on the modules that it builds.

Models are built on the meta device, where tensors have shapes but no memory, so the paper's own sizes cost nothing to
measure. A multiplication with its addition counts as two operations (FLOP), as usual. A forward pass is for one object.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..articulation.keypoints import CanonicalKeypoints, KeypointPredictor
from ..autodecoder.decoder import Decoder, SelfAttention, UpBlock, UpConv3d
from ..autodecoder.reconstruction import Autodecoder
from ..diffusion.unet3d import UNet3D
from ..settings.autodecoder import AutodecoderConfig
from ..settings.diffusion import TextConfig, UNetConfig
from ..settings.experiment import Experiment
from ..training.distributed import AGREEMENT_BYTES, Ranks


@dataclass(frozen=True)
class Stage:
    """A part of a network: what it makes and what one forward pass of one object through it costs."""

    part: str  # "G1", "G2" or "denoiser"
    name: str
    shape: tuple[int, ...]  # of its output, (c, d, h, w)
    attention: str  # "", "SA" or "SA, CA"
    parameters: int
    flops: int  # as built here
    flops_written: int  # with every convolution where the paper's text has it, after the upsampling

    @property
    def volume(self) -> str:
        """'8³ × 256'."""
        return f"{self.shape[-1]}³ × {self.shape[0]}"


@functools.cache
def stages(config: Experiment) -> tuple[Stage, ...]:
    """The stages of both networks of an experiment, in the order in which data pass them."""
    c, r, *_ = config.autodecoder.latent_shape
    return _decoder(config.autodecoder) + _denoiser(config.unet, c, r)


def parameters(config: Experiment) -> dict[str, int]:
    """{'embedding', 'G1', 'G2', 'denoiser'}: numbers of parameters, the library of embeddings included."""
    return {"embedding": sum(p.numel() for p in _embedding(config))} | _total(stages(config), "parameters")


def pose_parameters(config: Experiment) -> int:
    """Parameters of the keypoint predictor and the 3D keypoints; 0 where no poses are learned."""
    settings, parts = config.articulation, config.autodecoder.lbs_channels
    if not parts:
        return 0
    with torch.device("meta"):
        modules = KeypointPredictor(settings, parts), CanonicalKeypoints(settings, parts)
    return sum(p.numel() for module in modules for p in module.parameters())


def flops(config: Experiment, written: bool = False) -> dict[str, int]:
    """{'G1', 'G2', 'denoiser'}: operations of one forward pass of one object, as built or as the text is written."""
    return _total(stages(config), "flops_written" if written else "flops")


def sampling_flops(config: Experiment) -> int:
    """Operations for one generated object: 2N - 1 evaluations of the denoiser, twice as many guided, and G2."""
    evaluations = (2 * config.sampler.num_steps - 1) * (2 if config.sampler.guidance != 1 else 1)
    cost = flops(config)
    return evaluations * cost["denoiser"] + cost["G2"]


def embedding_bytes(config: Experiment) -> int:
    """Memory of the library of embeddings for the experiment's training objects, weights only."""
    return sum(p.numel() * p.element_size() for p in _embedding(config))


def decoder_stages(decoder: Decoder) -> list[Stage]:
    """The fully-connected layer, each resolution, and the output layer of a decoder, on whatever device it is."""
    network = _on_meta(decoder)
    config = network.config
    parts = {"fully connected": [network.fc], "output": [network.norm, network.head]}
    for r, stage in zip(config.stage_resolutions, network.stages, strict=True):
        parts[f"{r}³"] = [stage]
    c, r = config.max_channels, config.base_resolution
    counter, shapes = _count(network, torch.empty(1, config.embedding_dim))
    shapes[network.fc] = (c, r, r, r)  # reshaped by g1
    order = ["fully connected", *(f"{r}³" for r in config.stage_resolutions), "output"]
    return [
        _stage("G1" if i <= network.num_g1_stages else "G2", name, parts[name], network, counter, shapes)
        for i, name in enumerate(order)
    ]


def denoiser_stages(network: UNet3D, tokens: int = TextConfig.tokens) -> list[Stage]:
    """Input, encoder and decoder levels, centre and output of a U-Net, conditional ones with so many tokens."""
    network = _on_meta(network)
    c, r, width = network.in_channels, network.resolution, network.config.context_dim
    context = torch.empty(1, tokens, width, device="meta") if width else None
    counter, shapes = _count(network, torch.empty(1, c, r, r, r), torch.empty(1, device="meta"), context)
    parts: dict[str, list[nn.Module]] = {"input and noise level": [network.conv_in, network.embed_noise]}
    for block in network.encoder:
        parts.setdefault(f"encoder {shapes[block][-1]}³", []).append(block)
    parts["centre"] = list(network.centre)
    for stage in network.decoder:  # its last block may upsample
        parts[f"decoder {shapes[stage[0]][-1]}³"] = list(stage)
    parts["output"] = [network.norm_out, network.conv_out]
    shapes[network.embed_noise] = shapes[network.conv_in]
    return [_stage("denoiser", name, modules, network, counter, shapes) for name, modules in parts.items()]


# -------------------------------------------------------------------------------------------------- measuring


@functools.cache
def _decoder(config: AutodecoderConfig) -> tuple[Stage, ...]:
    with torch.device("meta"):
        return tuple(decoder_stages(Decoder(config)))


@functools.cache
def _denoiser(config: UNetConfig, channels: int, resolution: int) -> tuple[Stage, ...]:
    with torch.device("meta"):
        return tuple(denoiser_stages(UNet3D(config, channels, resolution)))


def _embedding(config: Experiment) -> Iterable[nn.Parameter]:
    with torch.device("meta"):
        return list(Autodecoder(config, config.data.num_objects).embedding.parameters())


def _on_meta(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).to("meta").eval()


def _count(network: nn.Module, x: Tensor, *others: Tensor | None) -> tuple[FlopCounterMode, dict[nn.Module, tuple]]:
    """One forward pass: the operations, and the shape of every module's output without the batch."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: tuple, output: Tensor) -> None:
        shapes[module] = tuple(output.shape[1:])

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x.to("meta"), *others)
    for hook in hooks:
        hook.remove()
    return counter, shapes


def _stage(
    part: str, name: str, modules: list[nn.Module], network: nn.Module, counter: FlopCounterMode, shapes: dict
) -> Stage:
    counts = counter.get_flop_counts()
    paths = {module: f"{type(network).__name__}.{path}" for path, module in network.named_modules()}

    def cost(module: nn.Module) -> int:
        return sum(counts.get(paths[module], {}).values())

    inside = [child for module in modules for child in module.modules()]
    flops = written = sum(map(cost, modules))
    for module in inside:
        if isinstance(module, UpConv3d):  # 27 taps where folding leaves 8, and nothing to fold
            convolution = counts[paths[module]][torch.ops.aten.convolution]
            written += convolution * 27 // 8 - cost(module)
        elif isinstance(module, UpBlock):  # its 1x1x1 skip on all voxels, not on an eighth
            written += 7 * cost(module.skip)
    kinds = {"SA": any(isinstance(m, SelfAttention) or getattr(m, "self_attention", None) for m in inside)}
    kinds["CA"] = any(hasattr(m, "cross_attention") and m.cross_attention is not None for m in inside)
    return Stage(
        part,
        name,
        shapes[modules[-1]],
        ", ".join(kind for kind, there in kinds.items() if there),
        sum(p.numel() for module in modules for p in module.parameters()),
        flops,
        written,
    )


def _total(stages: Iterable[Stage], field: str) -> dict[str, int]:
    totals: dict[str, int] = {}
    for stage in stages:
        totals[stage.part] = totals.get(stage.part, 0) + getattr(stage, field)
    return totals


# -------------------------------------------------------------------------------------------------- training


def training_memory(
    config: Experiment, stage: str, ranks: int = 1, objects: int | None = None, sharded: bool = False
) -> dict[str, int]:
    """Bytes that a rank holds throughout a stage, activations apart: {'network', 'library', 'data'}, by kind.

    Weights, gradients and Adam's two moments take 16 bytes a parameter, stage 2's moving average 4 more. A partitioned
    library is divided among ranks, and with `sharded` so are the network and any other library (blocks that are
    gathered at the moment come on top). Raises ConfigError where they cannot share a step's microbatches.
    """
    objects = config.data.num_objects if objects is None else objects
    settings = config.reconstruction if stage == "autodecoder" else config.diffusion
    Ranks(0, ranks).share(settings.microbatches)
    size = parameters(config)
    parts = ranks if sharded else 1
    if stage == "diffusion":
        return {
            "network": 20 * size["denoiser"] // parts,
            "data": 4 * objects * math.prod(config.autodecoder.latent_shape),
        }
    own = -(-objects // ranks) if config.reconstruction.partitioned else objects
    table = size["embedding"] if config.autodecoder.hash_rows else own * config.autodecoder.embedding_dim
    if config.autodecoder.hash_rows or not config.reconstruction.partitioned:
        table //= parts
    network = size["G1"] + size["G2"] + pose_parameters(config)
    pixels = config.data.train_views * config.data.resolution**2
    return {"network": 16 * network // parts, "library": 16 * table, "data": 4 * objects * pixels}


def exchanged(
    config: Experiment, stage: str, ranks: int, objects: int | None = None, sharded: bool = False
) -> dict[str, int]:
    """Bytes that a rank puts into the exchanges of a step, by kind as `Ranks.sent` counts them.

    In stage 1: gradients of the decoder, and of the whole table unless it is partitioned; of a hashed library, of its
    codebooks. A ring all-reduce sends 2 (ranks - 1) / ranks times as much over a rank's link. With `sharded`, also a
    rank's part of the weights, twice for each of its microbatches, which is an upper bound that nobody counts.
    """
    if ranks == 1:
        return {}
    settings = config.reconstruction if stage == "autodecoder" else config.diffusion
    own, size, kinds = len(Ranks(0, ranks).share(settings.microbatches)), parameters(config), {}
    if stage == "diffusion":
        reduced = size["denoiser"]
    else:
        objects = config.data.num_objects if objects is None else objects
        table = size["embedding"] if config.autodecoder.hash_rows else objects * config.autodecoder.embedding_dim
        if config.reconstruction.partitioned and not config.autodecoder.hash_rows:
            table = 0
        with torch.device("meta"):
            norms = [m for m in Decoder(config.autodecoder).modules() if isinstance(m, nn.BatchNorm3d)]
        reduced = size["G1"] + size["G2"] + table
        kinds["statistics"] = 4 * sum(2 * m.num_features for m in norms)
    if sharded:
        kinds["weights"] = 2 * own * 4 * reduced // ranks
    return {"gradients": 4 * reduced, **kinds, "agreement": AGREEMENT_BYTES}
