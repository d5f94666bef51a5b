"""A trained model by its name, and the objects that it makes: `vader.load`.

    model = vader.load("furniture_chairs")
    chairs = model.sample(8, seed=0)                        # objects that no image shows
    same = model.reconstruct(model.objects[:2])             # training objects, from their learned embeddings
    fitted = model.invert(images, cameras)                  # an object that never trained, from its images
    path = model.interpolate(chairs[0], chairs[1], 7)

Each is a list of `VolumeObject`, or one. No data set is needed: the runs hold all of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..autodecoder.inversion import Inversion, InversionError, complete, interpolate, invert
from ..autodecoder.reconstruction import load_autodecoder
from ..data import prepare
from ..data.sets.own import experiment_named
from ..rendering.cameras import Cameras
from ..settings.autodecoder import INVERSION, InversionConfig
from ..settings.checks import ConfigError, check_seed, nearest, require
from ..settings.experiment import Experiment
from ..stages import require_weights, trained_runs
from ..store.paths import reference_runs_dir, runs_dir
from ..store.runs import Run, RunError
from ..store.weights import WeightsError, resolve
from ..training import select_device
from ..training.process import keep_freed_memory
from .objects import VolumeObject
from .parallel import spread
from .volumes import Models, System, load_models

BATCH = 4  # samples that one core of a CPU draws at once: a user waits for few, and wants them from all cores


@dataclass(frozen=True, eq=False)
class Model:
    """Both trained stages of an experiment, ready to make objects."""

    name: str
    trained: Models = field(repr=False)
    _systems: dict[Any, System] = field(default_factory=dict, repr=False)  # by prompt and guidance

    @property
    def config(self) -> Experiment:
        return self.trained.config

    @property
    def runs(self) -> tuple[Run, Run]:
        """The runs of stage 1 and stage 2."""
        return self.trained.runs

    @property
    def objects(self) -> list[str]:
        """Names of the training objects."""
        return list(self.runs[0].record["objects"])

    def sample(
        self,
        count: int | Sequence[int],
        seed: int = 0,
        prompt: str | None = None,
        guidance: float | None = None,
    ) -> list[VolumeObject]:
        """New objects, from latent diffusion. Sample i of a seed is the same one whatever else is sampled with it.

        count: how many, or the numbers of the samples. prompt, guidance: of a model that takes text, see
        `check_prompt`. Raises ConfigError for a count below 1, no seed, and what `check_prompt` refuses.
        """
        check_prompt(self.name, self.config, prompt, guidance)
        check_seed(seed)
        indices = check_count(count)
        if (prompt, guidance) not in self._systems:
            captions = None if prompt is None else [prompt]
            system = self.trained.features(captions, guidance)
            self._systems[prompt, guidance] = spread(system, self.trained.device, BATCH)
        features = self._systems[prompt, guidance](indices, seed)
        stem = "-".join([self.name, *_words(prompt, guidance), f"seed{seed}"])
        facts = {"seed": seed, "prompt": prompt, "guidance": guidance}
        facts = {name: value for name, value in facts.items() if value is not None}
        return [
            self._object(f"{stem}-{index:03d}", "sample", volume, features=own, **facts, index=index)
            for index, own, volume in zip(indices, features, self._decoded(features), strict=True)
        ]

    def reconstruct(self, objects: str | int | Sequence[str | int]) -> list[VolumeObject]:
        """Training objects from their learned embeddings, by name or number.

        Raises ConfigError naming the nearest known name of one that there is not.
        """
        chosen = [objects] if isinstance(objects, str | int) else list(objects)
        numbers = [self.number(one) for one in chosen]
        names = self.objects
        return [
            self._object(
                f"{self.name}-{names[number]}", "reconstruction", volume, embedding=embedding, object=names[number]
            )
            for number, embedding, volume in self._learned(numbers)
        ]

    def number(self, one: str | int) -> int:
        """The number of a training object. Raises ConfigError as `reconstruct`."""
        names = self.objects
        if isinstance(one, str):
            require(
                one in names,
                f"{self.name} has no training object {one!r}{nearest(one, names)}; model.objects lists them",
            )
            return names.index(one)
        require(0 <= one < len(names), f"training object {one} of {self.name}, expected 0 to {len(names) - 1}")
        return int(one)

    def mean(self) -> VolumeObject:
        """The object of the mean embedding, from which `invert` starts."""
        embedding = self.trained.autodecoder.embedding.all().detach().mean(0)
        return self._object(f"{self.name}-mean", "mean", self._decoded(embedding[None])[0], embedding=embedding)

    def invert(
        self,
        images: Tensor,
        cameras: Cameras,
        masks: Tensor | None = None,
        settings: InversionConfig | None = None,
        *,
        seed: int = 0,
        perceptual: bool = True,
    ) -> VolumeObject:
        """An object that never trained, fitted to its images (`autodecoder.inversion.invert`).

        Args:
            images: (v, h, w, 3), the object on black, or (v, h, w, 4) with coverage as alpha, uint8 or float in
                [0, 1]. cameras: v cameras of that image size, in the world of the cube.
            masks: (v, h, w) coverage, of the same kind. Where there is neither mask nor alpha, silhouettes are not
                compared (Eq. 2), and black may be empty or black.
            settings: steps and rates, those of the profile by default.
            perceptual: whether images are compared by VGG features, too, where the training did so. Needs the weights.

        Raises InversionError for images, masks and cameras that do not fit together, WeightsError for missing VGG.
        """
        config, views = self._views(images, masks, perceptual)
        settings = INVERSION[self.config.profile] if settings is None else settings
        fitted = invert(self.trained.autodecoder, config, *views, cameras, settings, seed=seed)
        return self._fitted("inversion", fitted, seed)

    def complete(
        self,
        images: Tensor,
        cameras: Cameras,
        masks: Tensor | None = None,
        view: int = 0,
        settings: InversionConfig | None = None,
        *,
        seed: int = 0,
        perceptual: bool = True,
    ) -> VolumeObject:
        """The whole of an object from number `view` of its images alone: the other sides are left to what was learned
        (`autodecoder.inversion.complete`). Arguments and errors as of `invert`; the decoder is not tuned."""
        config, views = self._views(images, masks, perceptual)
        default = dataclasses.replace(INVERSION[self.config.profile], tuning_steps=0)
        fitted = complete(self.trained.autodecoder, config, *views, cameras, view, settings or default, seed=seed)
        return self._fitted("completion", fitted, seed)

    def interpolate(
        self,
        start: VolumeObject | str | int,
        end: VolumeObject | str | int,
        steps: int = 7,
        space: Literal["embedding", "latent"] | None = None,
    ) -> list[VolumeObject]:
        """Objects on the way from one to another, both included (`autodecoder.inversion.interpolate`).

        start, end: objects of this model, or training objects by name or number. space: 'embedding', or 'latent', the
        only one for samples; by default the first that both ends have.
        """
        ends = [self.reconstruct(end)[0] if isinstance(end, str | int) else end for end in (start, end)]
        if space is None:
            space = "embedding" if all(end.embedding is not None for end in ends) else "latent"
        codes = []
        for end in ends:
            code = end.embedding if end.embedding is not None else end.features
            if code is None or (space == "embedding" and end.embedding is None):
                raise InversionError(f"{end.name} has no {space}, expected an object that this model made from one")
            codes.append(code.to(self.trained.device))
        volumes = interpolate(self.trained.autodecoder.decoder, *codes, steps, space)
        facts = {"start": ends[0].name, "end": ends[1].name, "space": space, "steps": steps}
        stem = f"{self.name}-interpolation"
        return [
            self._object(f"{stem}-{step:03d}", "interpolation", volume, **facts, index=step)
            for step, volume in enumerate(volumes)
        ]

    @torch.no_grad()
    def _decoded(self, codes: Tensor) -> Tensor:
        """Volumes of embeddings (n, embedding_dim), or of features (n, c, r, r, r)."""
        decoder = self.trained.autodecoder.decoder
        decode = decoder if codes.ndim == 2 else decoder.g2
        return torch.cat([decode(chunk) for chunk in codes.split(BATCH)]).float()

    @torch.no_grad()
    def _learned(self, numbers: list[int]) -> list[tuple[int, Tensor, Tensor]]:
        """Number, embedding and volume of training objects."""
        if not numbers:
            return []
        embeddings = self.trained.autodecoder.embedding(torch.tensor(numbers, device=self.trained.device))
        return list(zip(numbers, embeddings, self._decoded(embeddings), strict=True))

    def _views(
        self, images: Tensor, masks: Tensor | None, perceptual: bool
    ) -> tuple[Experiment, tuple[Tensor, Tensor]]:
        """The experiment by which images are compared, and images and masks as floats."""
        images, alpha = _fractions(images), None
        if images.ndim == 4 and images.shape[-1] == 4:
            images, alpha = images[..., :3], images[..., 3]
        masks = alpha if masks is None else _fractions(masks)
        changes: dict[str, Any] = {}
        network = self.config.reconstruction.perceptual_network
        if not perceptual:
            require(
                self.config.reconstruction.pixel_weight > 0, "pixel_weight is 0: nothing is left without perceptual"
            )
            changes["perceptual_network"] = "none"
        elif network != "none":
            try:
                resolve(network)
            except WeightsError as error:
                raise WeightsError(f"{error}\nOr compare by pixels alone: perceptual=False") from error
        if masks is None:
            changes["foreground_weight"], masks = 0.0, torch.zeros(images.shape[:-1])
        return self.config.replace(reconstruction=changes), (images, masks)

    def _fitted(self, kind: str, fitted: Inversion, seed: int) -> VolumeObject:
        volume = fitted.volume().float()
        return self._object(f"{self.name}-{kind}", kind, volume, embedding=fitted.embedding.detach(), seed=seed)

    def _object(
        self,
        name: str,
        kind: str,
        volume: Tensor,
        *,
        embedding: Tensor | None = None,
        features: Tensor | None = None,
        **facts: Any,
    ) -> VolumeObject:
        origin = {"kind": kind, "model": self.name, "profile": self.config.profile, **facts}
        origin["runs"] = {run.settings["stage"]: run.digest for run in self.runs}
        return VolumeObject(
            name, volume, origin, self.config.data, self.config.reconstruction.num_samples, embedding, features
        )


# ------------------------------------------------------------------------------------------------------ arguments


def check_count(count: int | Sequence[int]) -> list[int]:
    """The numbers of the samples. Raises ConfigError for none of them, and for negative ones."""
    indices = list(range(count)) if isinstance(count, int) else list(count)
    require(bool(indices), f"count is {count}, expected at least 1")
    require(min(indices) >= 0, f"sample {min(indices)}, expected 0 or more")
    return indices


def check_prompt(name: str, config: Experiment, prompt: str | None, guidance: float | None) -> None:
    """Raise ConfigError unless prompt and guidance are what the model takes: both none, or a text and perhaps the
    weight s of u + s (c - u), where 0 samples without the text and 1, the default, with it as it was trained."""
    if not config.conditional:
        given = [
            f"{what} {value!r}" for what, value in (("prompt", prompt), ("guidance", guidance)) if value is not None
        ]
        require(not given, f"{name} takes no text, but there is {' and '.join(given)}")
        return
    require(
        prompt is not None and bool(prompt.strip()), f"{name} takes text, but prompt is {prompt!r}, expected a text"
    )
    if guidance is not None:
        config.replace(sampler=dict(guidance=guidance))  # raises for one that is no number


def _words(prompt: str | None, guidance: float | None) -> list[str]:
    """Parts of a file name that tell prompts apart at a glance."""
    words = []
    if prompt is not None:  # one in another script is told by a number
        legible = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
        words.append(legible or f"prompt{hashlib.sha256(prompt.encode()).hexdigest()[:8]}")
    return words + ([] if guidance is None else [f"guidance{guidance:g}"])


def _fractions(values: Tensor) -> Tensor:
    return values.float() / 255 if values.dtype == torch.uint8 else values


# -------------------------------------------------------------------------------------------------------- loading


def load(name: str, profile: str = "laptop", seed: int = 0, device: str = "auto", train: bool = False) -> Model:
    """A trained model: an experiment's name, as `vader train` takes it, with its profile and training seed.

    Its runs are found among the own and the committed ones by their settings; no data set is read. train: where there
    are none, prepare the data and train them now. Raises ConfigError for an unknown name, and for videos, RunError
    where there are no runs, or ones that were changed.
    """
    return load_experiment(name, experiment_named(profile, name).replace(seed=seed), device, train)


def load_experiment(name: str, config: Experiment, device: str = "auto", train: bool = False) -> Model:
    """`load` for settings that no profile has; `name` is what files are called by."""
    if config.articulated:
        raise ConfigError(
            f"{name} is a set of videos, whose subjects have poses: vader.generation.animation.load_animator has them"
        )
    found = trained_runs(config)
    if found is None:
        if not train:
            raise RunError(_missing(name, config))
        require_weights(config)
        return Model(name, load_models(config, prepare(config.data), device))
    chosen = select_device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    return Model(name, Models(config, None, found, load_autodecoder(found[0], config, chosen), chosen))


def _missing(name: str, config: Experiment) -> str:
    """Why there is no model, what there is instead, and how to get it."""
    known = sorted(
        {_model(folder) for place in (runs_dir(), reference_runs_dir()) for folder in place.glob("*-diffusion-*")}
    )
    there = f"; there are runs of {', '.join(known)}" if known else ""
    hint = "" if name in known else nearest(name, known)
    seed = f" --seed {config.seed}" if config.seed else ""
    return (
        f"{name} is not trained in profile {config.profile} with seed {config.seed}{hint}{there}; "
        f"`vader train {name} --profile {config.profile}{seed}` trains it"
    )


def _model(folder: Path) -> str:
    return folder.name.partition("-diffusion-")[0]
