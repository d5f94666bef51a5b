"""`vader train`: train both stages or a baseline, in one process or on several ranks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from ..articulation.articulated import one_rank
from ..baselines.diffrf import diffrf_run
from ..baselines.diffrf import plan as diffrf_plan
from ..baselines.systems import GANS, RIVALS
from ..data import SequenceSet, ShardedSet, prepare
from ..data.captions import with_captions
from ..data.sets.own import experiment_named
from ..evaluation import costs
from ..settings.checks import require
from ..settings.diffrf import diffrf
from ..settings.experiment import Experiment
from ..settings.profiles import DOWNLOADED, experiment
from ..stages import autodecoder_run, diffusion_run, require_weights
from ..store import runs
from ..training.distributed import Ranks, current, joined, require_several, threads_each
from ..training.launch import launch, read_job
from ..training.loop import CHECKPOINT_SECONDS

SYSTEMS = ("ours", *RIVALS)


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="vader train",
        description="Train both stages on a data set, or resume them. A finished run of the same settings is found "
        "and not trained again. Exit status 75 means paused: run the same command again to resume.",
    )
    parser.add_argument("data", nargs="?", help="name of the data set, e.g. furniture_chairs")
    parser.add_argument(
        "--profile", default="laptop", help="size of the experiment: smoke, laptop (default), gpu or paper"
    )
    parser.add_argument("--system", choices=SYSTEMS, default="ours", help="ours (default), or a baseline of Table 1")
    parser.add_argument(
        "--stage",
        choices=("autodecoder", "diffusion", "all"),
        default="all",
        help="stage of ours to train (default: all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    parser.add_argument("--max-seconds", type=float, help="pause with a checkpoint after this many seconds")
    parser.add_argument("--source", help="path of the data set's own files, if not the usual one")
    parser.add_argument("--objects-per-shard", type=int, help="store the data set in tars of this many objects")
    parser.add_argument("--captions", type=Path, help="a file (.csv or .json) of captions that replace the set's own")
    parser.add_argument("--dry-run", action="store_true", help="print steps, memory and files, and stop")
    steps = parser.add_argument_group("several processes (or: torchrun --nproc-per-node=K -m vader train ...)")
    steps.add_argument("--ranks", type=int, default=1, help="processes to start on this machine (default: 1)")
    steps.add_argument("--microbatches", type=int, help="parts of a step that ranks share; a setting of the run")
    steps.add_argument(
        "--partitioned", action="store_true", help="each rank owns the embeddings it trains; a setting of the run"
    )
    steps.add_argument(
        "--shard", choices=("fully",), help="divide the weights (fully_shard) instead of copying them (DDP)"
    )
    steps.add_argument("--port", type=int, default=0, help="port at which the ranks meet (default: any free one)")
    steps.add_argument("--max-restarts", type=int, default=0, help="restarts from the last checkpoint (default: 0)")
    logs = parser.add_argument_group("logs and checkpoints")
    logs.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=CHECKPOINT_SECONDS,
        help="seconds between checkpoints (default: %(default)s)",
    )
    logs.add_argument("--tensorboard", action="store_true", help="also log to the folder `tensorboard` of the run")
    logs.add_argument(
        "--skip-non-finite", action="store_true", help="skip and count steps whose loss or gradient is not finite"
    )
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not (options.data or options.job):
        parser.error("which data set? e.g. vader train furniture_chairs")
    return options


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[2:] if arguments is None else arguments
    options = options_of(arguments)
    if options.system != "ours":
        return _train_baseline(options)
    config = None if options.job else _experiment(options)
    if options.ranks > 1 and not options.dry_run:
        if config is not None:
            require_weights(config)
        return launch(_without_ranks(arguments), options.ranks, options.port, options.max_restarts)
    with joined():
        return _train(options, config)


def _train_baseline(options: argparse.Namespace) -> int:
    """Train DiffRF, EG3D or pi-GAN, which do so in one process."""
    name = options.system
    alone = options.ranks == 1 and not (options.microbatches or options.partitioned or options.shard)
    require(alone, f"{RIVALS[name]} trains in one process, expected none of --ranks, --microbatches, --shard")
    require(options.stage == "all", f"--stage is for our two stages, expected none with --system {name}")
    config = _named(options)
    field_config = diffrf(options.profile, options.seed) if name == "diffrf" else None
    if options.dry_run:
        print(diffrf_plan(field_config, config.data.num_objects) if field_config else GANS[name].plan(options.profile))
        return 0
    data = _prepared(options, config)
    if field_config:
        run = diffrf_run(field_config, data, options.device, options.max_seconds)
    else:
        run = GANS[name].run(config, data, options.device, options.max_seconds)
    print(f"{run.folder} ({run.record['seconds']:.0f} s on {run.record['device']})")
    return 0


def _named(options: argparse.Namespace) -> Experiment:
    """The experiment of a data set. One of the paper's sets is prepared first where its source is given, since what is
    found decides the settings; the source is done with then."""
    if options.source is not None and options.data in DOWNLOADED and not options.dry_run:
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        require(alone, f"--source of {options.data} is for one process, expected 'vader data {options.data}' before it")
        shards = {} if options.objects_per_shard is None else {"objects_per_shard": options.objects_per_shard}
        prepare(experiment(options.profile, options.data).data, source=options.source, **shards)
        options.source = None
    return experiment_named(options.profile, options.data).replace(seed=options.seed)


def _prepared(options: argparse.Namespace, config: Experiment) -> SequenceSet | ShardedSet:
    reading = {"source": options.source, "objects_per_shard": options.objects_per_shard}
    data = prepare(config.data, **{name: value for name, value in reading.items() if value is not None})
    return data if options.captions is None else with_captions(data, options.captions)


def _experiment(options: argparse.Namespace) -> Experiment:
    """The experiment that is asked for. Raises ConfigError where the ranks that there are, or will be, cannot do it."""
    config = _named(options)
    if options.microbatches or options.partitioned:
        parts = {"microbatches": options.microbatches or 1}
        config = config.replace(reconstruction=parts | {"partitioned": options.partitioned}, diffusion=parts)
    ranks = max(options.ranks, int(os.environ.get("WORLD_SIZE", "1")))
    require_several(ranks, options.shard is not None)
    if options.captions is not None:
        alone = ranks == 1 and options.objects_per_shard is None
        require(config.conditional, f"--captions is for models that take text, and {options.data} takes none")
        require(alone, "--captions is for one process and a set in memory, expected no --ranks, --objects-per-shard")
    for settings in (config.reconstruction, config.diffusion):
        Ranks(0, ranks).share(settings.microbatches)
    return config


def _train(options: argparse.Namespace, config: Experiment | None) -> int:
    group, sharded = current(), options.shard is not None
    fitting = {
        "shard": sharded,
        "checkpoint_seconds": options.checkpoint_seconds,
        "tensorboard": options.tensorboard,
        "skip_non_finite": options.skip_non_finite,
    }
    if config is None:
        config, data, given = read_job(options.job)
        fitting |= given
    else:
        if options.dry_run:
            if group.first:
                print(plan(config, max(options.ranks, group.size), sharded))
            return 0
        group.in_turn(lambda: require_weights(config))
        data = group.in_turn(lambda: _prepared(options, config))
    if group.size > 1 and group.first:
        print(f"{group.size} ranks, {torch.get_num_threads()} CPU threads each", file=sys.stderr)
    stage = autodecoder_run if options.stage == "autodecoder" else diffusion_run
    run = stage(config, data, options.device, options.max_seconds, **fitting)
    if group.first:
        print(f"{run.folder} ({run.record['seconds']:.0f} s on {run.record['device']})")
    return 0


def _without_ranks(arguments: list[str]) -> list[str]:
    """The command line of a rank: without what is meant for their launcher."""
    kept, words = [], iter(arguments)
    for word in words:
        if word.split("=")[0] in ("--ranks", "--port", "--max-restarts"):
            if "=" not in word:
                next(words)
        else:
            kept.append(word)
    return kept


def plan(config: Experiment, ranks: int = 1, sharded: bool = False) -> str:
    """Parameters, steps, memory, exchange and files of both stages, in words. Activations come on top of the memory.

    Raises ConfigError where so many ranks cannot share the steps.
    """
    if config.articulated:
        one_rank(ranks)
    size = costs.parameters(config)
    first, second = config.reconstruction, config.diffusion
    images = first.objects_per_step * first.views_per_object
    folder = runs.runs_dir()
    lines = [
        f"{config.data.name}, profile {config.profile}, seed {config.seed}, {ranks} rank{'s' * (ranks > 1)}"
        + f" of {threads_each(ranks)} CPU threads if on one machine" * (ranks > 1)
        + f"; runs are kept in {folder}",
        f"stage 1: decoder {size['G1'] + size['G2']:,} + embeddings {size['embedding']:,} parameters, "
        f"{first.images_seen:,} images in {-(-first.images_seen // images):,} steps of {images}",
        f"stage 2: U-Net {size['denoiser']:,} parameters, "
        f"{second.latents_seen:,} latents in {-(-second.latents_seen // second.batch_size):,} steps "
        f"of {second.batch_size}",
    ]
    if config.articulated:
        poses, before = costs.pose_parameters(config), config.articulation.rigid_images
        stage = f", after {before:,} images of a run with one part" if before else ""
        lines.insert(2, f"  poses: keypoint predictor and 3D keypoints {poses:,} parameters{stage}")
    for stage, settings in (("autodecoder", first), ("diffusion", second)):
        memory, sent = (f(config, stage, ranks, sharded=sharded) for f in (costs.training_memory, costs.exchanged))
        lines.append(
            f"{stage}: {settings.microbatches} microbatch{'es' * (settings.microbatches > 1)} a step; a rank holds "
            + ", ".join(f"{name} {_bytes(value)}" for name, value in memory.items())
            + (f"; puts {_bytes(sum(sent.values()))} a step into exchanges" if ranks > 1 else "; exchanges nothing")
        )
        lines.append(f"  files: {folder}/{config.data.name}-{stage}-<digest>: weights, record.json, log.jsonl, ")
        lines[-1] += "and while it trains, checkpoints"
    return "\n".join(lines)


def _bytes(count: float) -> str:
    power = min(4, (len(str(int(count))) - 1) // 3)
    return f"{count / 1000**power:.3g} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"
