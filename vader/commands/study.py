"""`vader study`: the trainings and timings of one study, which its notebook then reports."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch

from ..data import prepare
from ..data.sets.own import experiment_named
from ..settings.checks import check_seed, require
from ..settings.experiment import Experiment
from ..settings.profiles import experiment
from ..settings.videos import VIDEO_SETS
from ..stages import autodecoder_run, require_weights
from ..store.weights import resolve

STUDIES = {
    "table2": "autodecoders without some of their components, three seeds each",
    "figure3": "diffusion at three latent resolutions, three seeds each",
    "sharpness": "what makes furniture sharper: one change of stage 1 at a time, three seeds each",
    "hashing": "dense and hash embeddings, three seeds each",
    "foreground": "trainings with and without foreground supervision",
    "budget": "timings of the trainings of Table 1's systems",
    "tails": "what makes robust normalisation lose on a planted tail (smoke or laptop)",
    "limits": "reconstructions, or samples of captions, with one part after the other replaced by the truth",
    "faces": "sharpness and mouths of people's heads, inside the face",
    "limbs": "a body and a limb: which step of learning poses from video fails (smoke or laptop)",
    "memory": "one model on 64 to 512 variants of chairs: whether samples become new (smoke or laptop)",
    "power": "number of seeds that would decide the open claims (no training)",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="vader study",
        description="Run the trainings of a study, or resume them. Exit status 75 means paused: run it again.",
        epilog="studies:\n" + "\n".join(f"  {name:<11} {what}" for name, what in STUDIES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--profile", default="laptop", help="size of the experiments (default: %(default)s)")
    parser.add_argument(
        "--data", help=f"data set, for foreground ({', '.join(VIDEO_SETS)}), budget (any of Table 1) and limits (any)"
    )
    parser.add_argument("--seed", type=int, default=0, help="first of the seeds (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (default)")
    parser.add_argument("--seeds", type=int, help="trainings of each size, for memory alone (default: 1)")
    parser.add_argument(
        "--workers", type=int, help="processes, for table2, figure3, sharpness and memory (default: one per core)"
    )
    parser.add_argument("--max-seconds", type=float, help="pause with checkpoints after this many seconds")
    options = parser.parse_args(arguments)
    check_seed(options.seed)
    require(options.seeds is None or options.study == "memory", f"{options.study} takes no --seeds, memory alone does")
    for line in _run(options):
        print(line)
    return 0


def _run(options: argparse.Namespace) -> Iterable[str]:
    from ..studies import budget, hashing, power
    from ..studies.normalization import tails
    from ..studies.videos import foreground

    if options.study == "power":
        return [str(power.write(options.profile))]
    if options.study == "tails":
        require(
            options.profile in tails.STUDIES, f"profile is {options.profile!r}, expected one of {set(tails.STUDIES)}"
        )
        config = experiment(options.profile, options.data or "procedural_chairs").replace(seed=options.seed)
        return [str(tails.write(config, options.profile, options.device))]
    if options.study == "limbs":
        from ..studies.limbs import study as limbs

        return [str(limbs.write(options.profile))]
    if options.study == "budget":
        config = experiment(options.profile, options.data or "furniture_chairs")
        if (network := config.reconstruction.perceptual_network) != "none":
            resolve(network)  # timing stage 1 needs it, whatever is trained already
        return budget.lines(budget.measure_and_write(config, prepare(config.data)))
    if options.study == "limits":
        from ..studies.many_kinds import heard, limits

        config = experiment_named(options.profile, options.data or "household").replace(seed=options.seed)
        study = heard if config.conditional else limits
        return study.lines(study.measure_and_write(config, prepare(config.data)))
    if options.study == "faces":
        from ..studies.videos import faces

        config = experiment(options.profile, options.data or faces.NAME).replace(seed=options.seed)
        return faces.lines(faces.measure_and_write(config, prepare(config.data), options.device))
    if options.study == "foreground":
        return _train(foreground.experiments(options.profile, options.data or "puppets", options.seed), options)
    if options.study == "hashing":
        return _train(hashing.experiments(options.profile, options.seed), options)
    return _sweep(options)


def _sweep(options: argparse.Namespace) -> Iterable[str]:
    """Table 2, Figure 3, sharpness or memory: many trainings in several processes, and what is written of them."""
    from ..studies import sharpness, sweep
    from ..studies.memory import study as memory

    trainings = 1 if options.seeds is None else options.seeds
    sweeps = {
        **sweep.SWEEPS,
        "sharpness": sharpness.sharpness,
        "memory": lambda profile, seed: memory.memory(profile, seed, trainings),
    }
    writers = {"sharpness": lambda: sharpness.write(done), "memory": lambda: memory.write(done, data)}
    asked = sweeps[options.study](options.profile, options.seed)
    sweep.require_trainable(asked)
    workers = torch.get_num_threads() if options.workers is None else options.workers
    data = prepare(asked.base.data)
    done = sweep.table(asked, data, options.device, workers, options.max_seconds)
    if options.study in writers:
        return map(str, writers[options.study]())
    return [str(done.run.folder)]


def _train(experiments: list[Experiment], options: argparse.Namespace) -> Iterable[str]:
    require_weights(*experiments)
    data = prepare(experiments[0].data)
    for config in experiments:
        yield str(autodecoder_run(config, data, options.device, options.max_seconds).folder)
