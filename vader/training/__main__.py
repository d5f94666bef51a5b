"""The command `python -m vader.training`, by itself or under torchrun."""

from __future__ import annotations

import argparse
import sys

from .. import costs, runs
from ..config import Experiment
from ..data import prepare
from ..profiles import experiment
from ..runs import Paused
from .stages import autodecoder_run, diffusion_run


def main(arguments: list[str] | None = None) -> int:
    """Command line; exit status 0 when finished, 75 (temporary failure: run it again) when paused."""
    parser = argparse.ArgumentParser(prog="python -m vader.training", description=main.__doc__)
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--data", required=True, help="data set, e.g. furniture_chairs")
    parser.add_argument("--stage", choices=("autodecoder", "diffusion", "all"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-seconds", type=float, help="stop after this long with a checkpoint, to be resumed")
    parser.add_argument("--source", help="where the furniture models are, if not in their usual place")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options = parser.parse_args(arguments)
    config = experiment(options.profile, options.data).replace(seed=options.seed)
    if options.dry_run:
        print(plan(config))
        return 0
    data = prepare(config.data, **({"source": options.source} if options.source else {}))
    stage = autodecoder_run if options.stage == "autodecoder" else diffusion_run
    try:
        run = stage(config, data, options.device, options.max_seconds)
    except Paused as pause:
        print(pause, file=sys.stderr)
        return 75
    print(f"{run.folder} ({run.record['seconds']:.0f} s on {run.record['device']})")
    return 0


def plan(config: Experiment) -> str:
    """Parameters and steps of both stages, in words."""
    size = costs.parameters(config)
    first, second = config.reconstruction, config.diffusion
    images = first.objects_per_step * first.views_per_object
    return "\n".join(
        [
            f"{config.data.name}, profile {config.profile}, seed {config.seed}; runs are kept in {runs.runs_dir()}",
            f"stage 1: decoder {size['G1'] + size['G2']:,} + embeddings {size['embedding']:,} parameters, "
            f"{first.images_seen:,} images in {-(-first.images_seen // images):,} steps of {images}",
            f"stage 2: U-Net {size['denoiser']:,} parameters, "
            f"{second.latents_seen:,} latents in {-(-second.latents_seen // second.batch_size):,} steps "
            f"of {second.batch_size}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
