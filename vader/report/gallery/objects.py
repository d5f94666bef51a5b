"""The hall of a set of objects. Samples of every system stand beside their nearest training objects, and training
objects beside their real views. A slider leads from one object to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ...autodecoder.reconstruction import load_autodecoder
from ...baselines.direct_latent_sampling import PRIORS, direct_latent_sampling
from ...baselines.systems import RIVALS, Rival, trained_rivals
from ...data import Sequence as Views
from ...data import prepare
from ...evaluation.metrics.features import Features
from ...evaluation.metrics.neighbours import memorisation
from ...evaluation.pictures import finite_features, random_views, real_features
from ...generation.export import glb
from ...generation.model import Model
from ...generation.objects import ObjectError, VolumeObject
from ...generation.volumes import Models
from ...settings.experiment import DataConfig
from ...training import select_device
from ..schema import SYSTEMS
from ..viewer import Exhibit
from .contents import Hall, Picture, Row, Work
from .finding import Found, check_data
from .pictures import START, as_bytes, film, grid, turn

SAMPLES, RECONSTRUCTIONS, STEPS = 8, 4, 9
OF_OTHERS = 4  # samples of each other system
FACES = 600  # of a mesh for download: about 20 KB
SEED = 0  # of the sampling
BROKEN = "This sample is not finite: there is nothing to see."
FAINT = 0.05  # density per unit length
GUIDANCE = 3.0  # of text: the paper's
ELEVATION = 20.0  # degrees: of turntables, and where the viewer begins
BY_CATEGORY = ("household",)  # sets with a page for each category of their objects
PICTURES_ONLY = {
    "eg3d": "EG3D renders planes of features and enlarges the picture (super-resolution), which is no radiance volume: "
    "its own pictures are shown, and the viewer cannot open them.",
    "pi_gan": "π-GAN's colours depend on the side that they are seen from, so that no radiance volume holds them: its "
    "own pictures are shown, and the viewer cannot open them.",
}


def hall(found: Found, device: str, step: Callable[[str], None]) -> Hall:
    """Everything that is shown of a set. step: told what is done, once for each row."""
    config, data = found.config, prepare(found.config.data)
    check_data(found, data.digest)
    chosen = select_device(device)
    models = Models(config, data, found.runs, load_autodecoder(found.runs[0], config, chosen), chosen)
    maker = _Maker(found.name, Model(found.name, models), models)
    rows = []
    for row in maker.rows():
        step(f"{found.name}: {row.title}")
        rows.append(row)
    credits = sorted({credit for views in maker.shown if (credit := _credit(views))})
    groups = sorted({work.group for row in rows for work in row.works if work.group})
    training = data.split("train")
    shown = [fact for row in rows for label, fact in row.facts if label.startswith("run")]
    return Hall(
        key=found.name,
        title=found.name.replace("_", " ").capitalize(),
        profile=config.profile,
        size=(config.data.resolution, config.autodecoder.resolution),
        objects=len(training),
        rows=tuple(rows),
        names=(found.name, data.name, *(s.key for s in training)),
        runs=tuple(dict.fromkeys(shown)),
        groups=tuple(groups),
        credits=tuple(credits),
    )


@dataclass(frozen=True)
class _Maker:
    name: str
    model: Model
    models: Models
    shown: list[Views] = field(default_factory=list)  # training objects, in the order in which they come

    @property
    def view(self) -> DataConfig:
        return self.models.config.data

    @cached_property
    def training(self) -> list[Views]:
        return list(self.models.data.split("train"))

    @cached_property
    def real(self) -> Features:
        return real_features(self.models.data, self.models.config.evaluation)

    @cached_property
    def grouped(self) -> bool:
        return self.models.data.name.startswith(BY_CATEGORY)

    def rows(self) -> Iterator[Row]:
        config = self.models.config
        if config.conditional:
            yield self.prompts()
        else:
            made = self.model.sample(SAMPLES, SEED)
            yield self.samples(made)
            yield self.interpolation(made[0], made[1])
        if not config.conditional:
            yield self.direct()
            for name, rival in trained_rivals(self.models, train=False).items():
                yield self.diffrf(rival) if name == "diffrf" else self.pictures_of(name, rival)
        yield self.reconstructions()

    # ------------------------------------------------------------------------------------------------- our systems

    def facts(self, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
        return (*((f"run of stage {i}", run.digest) for i, run in enumerate(self.models.runs, 1)), *more)

    def samples(self, made: Sequence[VolumeObject]) -> Row:
        title = f"{SYSTEMS['ours']}, latent diffusion"
        volumes = torch.stack([one.volume for one in made])
        works = self.volume_works("Sample", volumes, f"{title}, sample {{}} of seed {SEED}", made)
        return Row("ours", title, works, self.facts(("seed", str(SEED))))

    def prompts(self) -> Row:
        held_out = [s for s in self.models.data.split("test") if s.caption] or self.training
        chosen = held_out if self.grouped else held_out[:: max(1, len(held_out) // SAMPLES)][:SAMPLES]
        if self.grouped:  # two of each kind
            kinds = [_category(s) for s in chosen]
            chosen = [s for i, s in enumerate(chosen) if kinds[:i].count(kinds[i]) < 2]
        made = [self.model.sample([i], SEED, s.caption, GUIDANCE)[0] for i, s in enumerate(chosen)]
        title = f"{SYSTEMS['ours']}, text to 3D"
        volumes = torch.stack([one.volume for one in made])
        works = self.volume_works("Sample", volumes, f"{title}, seed {SEED}", made, [s.caption for s in chosen])
        note = "Each sample is of a prompt that training never saw: the caption of a held-out object."
        return Row("ours", title, works, self.facts(("seed", str(SEED)), ("guidance", f"{GUIDANCE:g}")), note)

    def direct(self) -> Row:
        """Of both priors, the stronger."""
        title = f"{SYSTEMS['dls']}, {PRIORS['fitted']}"
        volumes = direct_latent_sampling(self.models, "fitted")(range(OF_OTHERS), SEED).cpu()
        works = self.volume_works("Sample", volumes, f"{title}, sample {{}} of seed {SEED}")
        note = "Random embeddings, decoded by our own autodecoder: there is no second stage."
        return Row("dls", title, works, (*self.facts()[:1], ("seed", str(SEED))), note)

    def reconstructions(self) -> Row:
        count = len(self.training)
        chosen = range(0, count, max(1, count // RECONSTRUCTIONS))[:RECONSTRUCTIONS]
        if self.grouped:  # one of each kind
            kinds = [_category(s) for s in self.training]
            chosen = [kinds.index(kind) for kind in sorted(set(kinds))]
        works = []
        for number, made in zip(chosen, self.model.reconstruct(list(chosen)), strict=True):
            views = self.training[number]
            [work] = self.volume_works(
                views.key, made.volume[None].cpu(), "Reconstruction of a training object", [made], neighbours=False
            )
            works.append(self.with_real_views(work, views, made.volume))
        note = "Training objects from their learned embeddings, in views that training never drew."
        return Row("reconstructions", "Reconstructions", tuple(works), self.facts()[:1], note)

    def with_real_views(self, work: Work, views: Views, volume: Tensor) -> Work:
        data = self.models.data
        self.shown.append(views)
        held_out = slice(data.train_views, data.train_views + 3)
        drawn = film(volume, views.cameras[held_out], self.models.config.reconstruction.num_samples)
        both = grid([views.images[held_out], drawn])
        alt = f"{views.key} in {len(drawn)} views that were held out: photographs above, reconstruction below"
        picture = Picture("Above: real views, held out. Below: the reconstruction.", both, alt)
        group = _category(views) if self.grouped else None
        return replace(work, beside=(picture,), group=group)

    def interpolation(self, start: VolumeObject | int, end: VolumeObject | int) -> Row:
        made = self.model.interpolate(start, end, STEPS)
        space = made[0].origin["space"]
        ends = [f"{one.name}" if isinstance(one, VolumeObject) else self.training[one].key for one in (start, end)]
        works = self.volume_works(
            "Step",
            torch.stack([one.volume for one in made]),
            f"Step {{}} from {ends[0]} to {ends[1]}",
            neighbours=False,
        )
        note = f"From {ends[0]} to {ends[1]}, in {STEPS} even steps through the space of the {space}s."
        facts = self.facts() if space == "latent" else self.facts()[:1]
        return Row("interpolation", "Interpolation", works, facts, note, slider=True)

    # ------------------------------------------------------------------------------------------------------ rivals

    def diffrf(self, rival: Rival) -> Row:
        volumes = rival.generator.system(range(OF_OTHERS), SEED).cpu()
        label = RIVALS["diffrf"]
        cleared, worst = clear(volumes, self.view, self.models.config.reconstruction.num_samples)
        works = self.volume_works("Sample", cleared, f"{label}, sample {{}} of seed {SEED}")
        note = (
            f"Its fog thinner than {FAINT:g} per unit length fills the cube and is left out, so that a volume is "
            f"small: pictures without it agree with pictures with it to {worst:.0f} dB or better."
        )
        return Row("diffrf", label, works, (("run", rival.run.digest), ("seed", str(SEED))), note)

    def pictures_of(self, name: str, rival: Rival) -> Row:
        label, indices = SYSTEMS[name], range(OF_OTHERS)
        films = self.film_of(rival)
        cameras = [random_views(self.models.config, i, self.models.config.evaluation.views, SEED) for i in indices]
        near = self.nearest(rival.generator.pictures(indices, cameras, SEED), label)
        works = tuple(
            Work(f"Sample {i}", film, f"{label}, sample {i} of seed {SEED}", beside=self.beside(near[i]))
            for i, film in enumerate(films)
        )
        return Row(name, label, works, (("run", rival.run.digest), ("seed", str(SEED))), PICTURES_ONLY[name])

    def film_of(self, rival: Rival) -> list[Tensor]:
        """Turntables of a system's own pictures, in the size that it makes."""
        cameras = turn(self.view, self.view.resolution)
        pictures = rival.generator.pictures(range(OF_OTHERS), [cameras] * OF_OTHERS, SEED)
        return [as_bytes(torch.nan_to_num(one)) for one in pictures]

    # ------------------------------------------------------------------------------------------------------- works

    def volume_works(
        self,
        word: str,
        volumes: Tensor,
        caption: str,
        made: Sequence[VolumeObject] | None = None,
        prompts: Sequence[str] | None = None,
        neighbours: bool = True,
    ) -> tuple[Work, ...]:
        samples = self.models.config.reconstruction.num_samples
        near: list[int | None] = [None] * len(volumes)
        if neighbours:
            near = self.nearest(self.random_pictures(volumes), caption.partition(",")[0])
        works = []
        for i, volume in enumerate(volumes):
            alone = word not in ("Sample", "Step")
            name, said = (word if alone else f"{word} {i}"), caption.format(i)
            sound = bool(torch.isfinite(volume).all())
            shown = volume if sound else torch.zeros_like(volume)
            text = f"“{prompts[i]}”" if prompts else "" if sound else BROKEN
            looked_at = dict(field_of_view=self.view.field_of_view, distance=self.view.camera_distance)
            words = " ".join(part for part in (text, said) if part)
            exhibit = Exhibit(name, shown, words, samples=samples, azimuth=START, elevation=ELEVATION, **looked_at)
            neighbour = near[i]
            works.append(
                Work(
                    name,
                    film(shown, turn(self.view), samples),
                    f"{said}{f', of {text}' if prompts else ''}",
                    text,
                    self.beside(neighbour),
                    exhibit if sound else None,
                    _mesh(made[i]) if made is not None and sound else None,
                    _category(self.training[neighbour]) if self.grouped and neighbour is not None else None,
                )
            )
        return tuple(works)

    def random_pictures(self, volumes: Tensor) -> Tensor:
        config = self.models.config
        generator = self.models.generator(lambda indices, seed: volumes[list(indices)])
        cameras = [random_views(config, i, config.evaluation.views, SEED) for i in range(len(volumes))]
        return generator.pictures(range(len(volumes)), cameras, SEED)

    def nearest(self, pictures: Tensor, name: str) -> list[int | None]:
        """The nearest training object of each sample by its pictures (n, v, h, w, 3); None where one is not finite."""
        finite = torch.isfinite(pictures).flatten(1).all(1)
        if not finite.any():
            return [None] * len(pictures)
        features = finite_features(pictures, self.models.config.evaluation.features, name)
        found = iter(memorisation(features, self.real).sample_neighbours.tolist())
        return [next(found) if sound else None for sound in finite.tolist()]

    def beside(self, neighbour: int | None) -> tuple[Picture, ...]:
        """The nearest training object in the view of it that is most like the turntable's first."""
        if neighbour is None:
            return ()
        views = self.training[neighbour]
        self.shown.append(views)
        centres = F.normalize(views.cameras.centres(), dim=-1)
        first = F.normalize(turn(self.view, 8, 1).centres(), dim=-1)
        view = int((centres @ first[0].to(centres)).argmax())
        alt = f"The nearest training object, {views.key}"
        return (Picture(f"Nearest in training: {views.key}", views.images[view : view + 1], alt),)


def _category(views: Views) -> str:
    return str(views.attributes.get("category") or "other")


def _credit(views: Views) -> str:
    """Who made a training object, and under which licence it is."""
    said = [str(views.attributes[name]) for name in ("creator", "licence") if views.attributes.get(name)]
    return f"{views.key}: {', '.join(said)}" if said else ""


def _mesh(made: VolumeObject) -> bytes | None:
    try:
        return glb(made.mesh(faces=FACES))
    except ObjectError:
        return None  # nothing of it is opaque, which the volume shows


def clear(volumes: Tensor, view: DataConfig, num_samples: int) -> tuple[Tensor, float]:
    """Volumes (n, 4, S, S, S) without density below `FAINT`, and the least PSNR in dB that this leaves of a picture."""
    cleared = volumes.clone()
    cleared[:, 0][cleared[:, 0] < FAINT] = 0
    cameras, worst = turn(view, 96, 3), float("inf")
    for whole, less in zip(volumes, cleared, strict=True):
        if torch.isfinite(whole).all():
            error = (film(whole, cameras, num_samples).float() - film(less, cameras, num_samples).float()) / 255
            worst = min(worst, -10 * float(torch.log10(error.square().mean().clamp_min(1e-12))))
    return cleared, worst
