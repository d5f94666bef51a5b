"""The two stages as runs: found in the run store, or trained now, on this process or on all ranks of its group."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .articulation.articulated import Articulation, one_rank
from .articulation.learning.one_part import rigid
from .autodecoder.reconstruction import Reconstruction
from .data import SequenceSet, ShardedSet
from .diffusion.denoising import Denoising
from .diffusion.text import text_digest, text_embeddings
from .settings.checks import require
from .settings.experiment import Experiment
from .store import runs
from .store.files import read_json
from .store.runs import Run, RunError
from .store.weights import WeightsError, resolve
from .training.distributed import Ranks, current, require_several, select_device
from .training.launch import train_on
from .training.loop import fit


def require_weights(*configs: Experiment) -> None:
    """Find the perceptual network of each experiment whose stage 1 is still to be trained, before any data are made.

    Experiments that have none (smoke), and those whose runs are finished, need no weights. Which data such a run is of
    cannot be told yet, so one of other data with all settings equal counts: then the training itself says what it
    lacks. Raises WeightsError naming the ways to provide them.
    """
    for config in configs:
        network = config.reconstruction.perceptual_network
        if network == "none" or _trained(config):
            continue
        try:
            resolve(network)
        except WeightsError as error:
            what = f"{config.data.name}, profile {config.profile}: stage 1 trains with {network} (Eq. 1)"
            raise WeightsError(f"{what}, and {error}") from error


def _trained(config: Experiment) -> bool:
    settings, unknown = autodecoder_settings(config), ("data", "start")
    if config.articulated:
        settings["articulation"] = config.articulation
    return runs.finished(f"{config.data.name}-autodecoder", settings, unknown)


def trained_runs(config: Experiment) -> tuple[Run, Run] | None:
    """The finished runs of both stages of an experiment, found without its data; None where they are not both there.

    Settings decide, all but the digests of data and captions, which cannot be told without these. Where runs on several
    data fit, own ones go before committed ones and newer before older, and a line on stderr names the choice.
    Raises RunError where a file of the chosen runs is missing or was changed.
    """
    name, pairs = config.data.name, []
    for digest, first in runs.matching(f"{name}-autodecoder", autodecoder_settings(config)).items():
        found = runs.matching(f"{name}-diffusion", diffusion_settings(config, digest), ("text",))
        pairs += [(first, second) for second in found.values()]
    if not pairs:
        return None

    def rank(pair: tuple[Path, Path]) -> tuple[bool, str]:
        return pair[1].parent == runs.runs_dir(), read_json(pair[1] / "record.json")["sessions"][-1]["started"]

    first, second = max(pairs, key=rank)
    others = ", ".join(other.name for _, other in pairs if other != second)
    if others:
        print(f"several runs have these settings: {second.name} is taken, not {others}", file=sys.stderr)
    return runs.open_run(first), runs.open_run(second)


def autodecoder_settings(config: Experiment, data: SequenceSet | ShardedSet | None = None) -> dict[str, Any]:
    """The settings that decide a stage-1 run. Without `data`, all but their digest."""
    return {
        "stage": "autodecoder",
        "data": data.digest if data is not None else None,
        "autodecoder": config.autodecoder,
        "reconstruction": config.reconstruction,
        "weights_precision": config.weights_precision,
        "seed": config.seed,
    }


def articulated_settings(config: Experiment, data: SequenceSet) -> dict[str, Any]:
    """The same of videos, with the digest of the run that it goes on from."""
    start, rigid_images = None, config.articulation.rigid_images
    if rigid_images:
        start = runs.digest(articulated_settings(rigid(config, rigid_images), data))
    return autodecoder_settings(config, data) | {"articulation": config.articulation, "start": start}


def autodecoder_run(
    config: Experiment,
    data: SequenceSet | ShardedSet,
    device: str = "auto",
    max_seconds: float | None = None,
    ranks: int = 1,
    shard: bool = False,
    **options: Any,
) -> Run:
    """The stage-1 run of an experiment: found, or trained on the data's training objects.

    ranks: more than one trains in that many processes, started from here, with their progress shown here. shard: they
    divide the weights (`sharding`) and do not copy them. options: those of `fit`. How many ranks train, and how they
    keep the weights, is no setting; into how many `microbatches` a step is divided is one.
    Of an articulated experiment, `data` are videos, and poses are learned as well (`articulated_run`).
    """
    if config.articulated:
        require_several(max(ranks, current().size), shard)
        return articulated_run(config, data, device, max_seconds, ranks, **options)
    name, settings = f"{data.name}-autodecoder", autodecoder_settings(config, data)

    def train(work: Path) -> None:
        group = current(shard)
        task = Reconstruction(config, data, select_device(device), group)
        record = _record(work, config, task, group, pixels=data.pixel_record())
        fit(task, work, record, max_seconds, **options)

    if ranks > 1 and runs.find(name, settings) is None:
        train_on(ranks, config, data, "autodecoder", device, max_seconds, shard=shard, **options)
    return _get(name, settings, train, data)


def articulated_run(
    config: Experiment,
    data: SequenceSet,
    device: str = "auto",
    max_seconds: float | None = None,
    ranks: int = 1,
    **options: Any,
) -> Run:
    """The stage-1 run of videos; with `rigid_images` it goes on from a run with one part, which is trained first.

    Once it is there, it is found without that. It is found from any number of ranks, but trained on one. Raises
    ConfigError for more of them, before any work.
    """
    name, settings, start = f"{data.name}-autodecoder", articulated_settings(config, data), None
    if runs.find(name, settings) is None:
        one_rank(max(ranks, current().size))
        if config.articulation.rigid_images:
            one = rigid(config, config.articulation.rigid_images)
            start = articulated_run(one, data, device, max_seconds, ranks, **options)

    def train(work: Path) -> None:
        task = Articulation(config, data, select_device(device), start)
        fit(task, work, _record(work, config, task, current(), pixels=data.pixel_record()), max_seconds, **options)

    return _get(name, settings, train, data)


def diffusion_settings(config: Experiment, stage1: str) -> dict[str, Any]:
    """The settings that decide a stage-2 run on that stage-1 run, but for the captions of a conditional one."""
    return {
        "stage": "diffusion",
        "autodecoder": stage1,
        "unet": config.unet,
        "diffusion": config.diffusion,
        "weights_precision": config.weights_precision,
        "seed": config.seed,
    }


def diffusion_run(
    config: Experiment,
    data: SequenceSet | ShardedSet,
    device: str = "auto",
    max_seconds: float | None = None,
    ranks: int = 1,
    shard: bool = False,
    stage1: Run | None = None,
    **options: Any,
) -> Run:
    """The stage-2 run of an experiment, on the latents of its stage-1 run, which is trained first if need be.

    stage1: the stage-1 run of another experiment whose autodecoder differs only in where it is split; the latent
    resolution is then a setting of stage 2, since it decides nothing about how stage 1 trained. On one rank only. Of a
    conditional experiment, the captions and their encoding are settings too. Other arguments are those of
    `autodecoder_run`. Raises DataError, before any training, for a caption that is missing.
    """
    require(stage1 is None or ranks == 1, f"{ranks} ranks cannot share another experiment's stage 1, expected 1")
    particular: dict[str, Any] = {}
    if config.conditional:
        particular["text"] = current().in_turn(lambda: text_digest(data, config.text))
    if stage1 is None:
        stage1 = autodecoder_run(config, data, device, max_seconds, ranks, shard, **options)
    else:
        particular["latent_resolution"] = config.autodecoder.latent_resolution
    name, settings = f"{data.name}-diffusion", diffusion_settings(config, stage1.digest) | particular

    def train(work: Path) -> None:
        contexts, group = None, current(shard)
        if config.conditional:
            embeddings = group.in_turn(lambda: text_embeddings(data, config.text))
            contexts = embeddings.rows(data, "train", config.unet.context_dim)
        task = Denoising(config, stage1, select_device(device), contexts, group)
        fit(task, work, _record(work, config, task, group), max_seconds, **options)

    if ranks > 1 and runs.find(name, settings) is None:
        train_on(ranks, config, data, "diffusion", device, max_seconds, shard=shard, **options)
    return _get(name, settings, train)


def _record(work: Path, config: Experiment, task: Any, group: Ranks, **facts: Any) -> runs.Record:
    record = runs.Record(work, config.seed, task.device, **facts, **task.facts())
    record.execution = getattr(task, "execution", None)
    if group.size > 1:
        record.session["ranks"] = group.size
    return record


def _get(name: str, settings: Any, train: Callable[[Path], None], data: SequenceSet | ShardedSet | None = None) -> Run:
    """`runs.get` for all ranks together: the first finds, locks and publishes, and tells the others what to do."""
    group = current()
    if group.size == 1:
        return runs.get(name, settings, train, data)
    if not group.first:
        what, detail = group.told()
        if what == "train":
            train(Path(detail))
            what, detail = group.told()
        if what == "error":
            raise RunError(detail)
        return runs.find(name, settings)
    started = False

    def lead(work: Path) -> None:
        nonlocal started
        started = True
        group.told(("train", str(work)))
        train(work)

    try:
        run = runs.get(name, settings, lead, data)
    except RunError as error:
        if not started:
            group.told(("error", str(error)))
        raise
    group.told(("found", None))
    return run
