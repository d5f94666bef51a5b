"""Adversarial baselines as runs: found or trained, loaded, and sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..data import SequenceSet
from ..diffusion.edm import standard_normal
from ..diffusion.sampling import object_generators
from ..generation.parallel import side_by_side
from ..rendering.cameras import Cameras
from ..rendering.rays import voxel_centres
from ..settings.checks import nearest, require
from ..settings.experiment import Experiment
from ..settings.gans import AdversarialConfig
from ..store import runs
from ..store.files import load_weights, plain
from ..store.runs import Run, RunError
from ..training import fit, select_device
from .adversarial import Adversarial, RealViews, Scene

CHUNK = 2**16  # points of a density grid that are evaluated at once
Settings = TypeVar("Settings", bound=AdversarialConfig)


@dataclass(frozen=True)
class Baseline(Generic[Settings]):
    """An adversarial baseline: its sizes, its task for `training.fit`, and its generator."""

    name: str  # of its runs and its module
    label: str
    profiles: Mapping[str, Settings]
    task: type[Adversarial]
    generator: Callable[[Settings], nn.Module]  # a `SceneGenerator`

    def settings(self, profile: str) -> Settings:
        """The baseline's settings in a profile. Raises ConfigError naming the nearest known one."""
        known = list(self.profiles)
        hint = nearest(profile, known)
        require(profile in known, f"{self.label} has no profile {profile!r}{hint}; it has: {', '.join(known)}")
        return self.profiles[profile]

    def decisive(self, config: Experiment, data: SequenceSet, settings: Settings | None = None) -> dict[str, Any]:
        """The settings that decide a run of it. settings: default, those of the profile."""
        return {
            "stage": self.name,
            "data": data.digest,
            self.name: settings or self.settings(config.profile),
            "weights_precision": config.weights_precision,
            "seed": config.seed,
        }

    def find(self, config: Experiment, data: SequenceSet) -> Run | None:
        """The baseline's run on a data set, if the run store has it."""
        return runs.find(f"{data.name}-{self.name}", self.decisive(config, data))

    def run(
        self,
        config: Experiment,
        data: SequenceSet,
        device: str = "auto",
        max_seconds: float | None = None,
        settings: Settings | None = None,
    ) -> Run:
        """The baseline's run on a data set, found or trained now. settings: default, those of the profile."""
        settings = settings or self.settings(config.profile)

        def train(work: Path) -> None:
            task = self.task(config, settings, data, select_device(device))
            record = runs.Record(work, config.seed, task.device, pixels=data.pixel_record(), **task.facts())
            fit(task, work, record, max_seconds)

        return runs.get(f"{data.name}-{self.name}", self.decisive(config, data, settings), train, data)

    def load(
        self,
        run: Run,
        config: Experiment,
        data: SequenceSet,
        device: torch.device | str = "cpu",
        settings: Settings | None = None,
    ) -> GANSystem:
        """A trained generator, ready to generate.

        Raises RunError where the run is of another baseline, data set or configuration.
        """
        settings = settings or self.settings(config.profile)
        for field, value in {"stage": self.name, "data": data.digest, self.name: plain(settings)}.items():
            found = run.settings.get(field)
            if found != value:
                raise RunError(f"{run.folder}: {field} is {_short(found)}, expected {_short(value)} ({data.name})")
        generator = self.generator(settings)
        load_weights(run.weights("generator"), generator)
        poses = RealViews(data, torch.device("cpu")).cameras
        generator = generator.to(device).eval().requires_grad_(False)
        return GANSystem(self.name, generator, poses, 2 * settings.num_samples)  # finer bins than in training

    def plan(self, profile: str) -> str:
        """Images and steps of its training, in words."""
        settings = self.settings(profile)
        steps = -(-settings.images_seen // settings.batch_size)
        return f"{self.label}: {settings.images_seen:,} images in {steps:,} steps of {settings.batch_size}"


class GANSystem:
    """Pictures and densities of generated objects; (seed, index) decides an object, whatever else is asked for.

    A generator that is conditioned on the pose is given one camera for each object, drawn from the data's. What is not
    finite somewhere is returned as NaN throughout, for the evaluation to count.
    """

    def __init__(self, name: str, generator: nn.Module, poses: Cameras, num_samples: int) -> None:
        """generator: a `SceneGenerator` in evaluation mode, on the device to work on; poses: the data's cameras."""
        self.name, self.generator, self.num_samples = name, generator, num_samples
        self.device = next(generator.parameters()).device
        self.poses = poses.to(self.device)

    def scene(self, index: int, seed: int) -> Scene:
        """The scene of one object, with a batch of 1."""
        generators = object_generators(seed, [index])
        z = standard_normal((1, self.generator.latent_dim), generators, "cpu").to(self.device)
        pose = int(torch.randint(len(self.poses), (), generator=generators[0]))
        return self.generator.scene(z, self.poses[pose])

    def pictures(self, indices: Sequence[int], cameras: Sequence[Cameras], seed: int) -> Tensor:
        """Pictures (n, v, h, w, 3) in [0, 1] of the objects numbered `indices`, each from v cameras of its own."""
        require(
            len(cameras) == len(indices), f"{len(cameras)} sets of cameras, expected one for each of {len(indices)}"
        )

        @torch.no_grad()
        def picture(index: int, views: Cameras) -> Tensor:
            scene = self.scene(index, seed)
            # a view at a time: its activations fit into the caches
            views = [views[v : v + 1].to(self.device) for v in range(len(views))]
            image = torch.cat([self.generator.render(scene, v, self.num_samples, None)["image"] for v in views])
            return whole_or_nan(image).div(2).add(0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu()

        jobs = list(zip(indices, cameras, strict=True))
        return torch.stack(list(side_by_side(lambda job: picture(*job), jobs, self.device)))

    @torch.no_grad()
    def density(self, indices: Sequence[int], seed: int, resolution: int) -> Tensor:
        """sigma per unit length (n, S, S, S) = (n, z, y, x) at the points of a grid over [-1, 1]^3, faces included."""
        require(resolution >= 2, f"resolution is {resolution}, expected at least 2")
        points = voxel_centres(resolution, self.device)[None]
        grids = []
        for index in indices:
            scene = self.scene(index, seed)
            values = torch.cat([self.generator.density(scene, chunk) for chunk in points.split(CHUNK, dim=1)], dim=1)
            grids.append(whole_or_nan(values).view(resolution, resolution, resolution).cpu())
        return torch.stack(grids)


def whole_or_nan(values: Tensor) -> Tensor:
    """`values`, or NaN of its shape where one of them is NaN or infinite."""
    return values if values.isfinite().all() else torch.full_like(values, float("nan"))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
