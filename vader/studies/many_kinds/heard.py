"""What limits how well a caption is heard: one part after the other is replaced by the truth (Sec. 4.5).

Between a caption and the category and colour that are read off its sample lie the encoded caption, the denoiser, the
latents, the autodecoder and the judge. Real views leave only the judge. Reconstructions add the autodecoder. Latents
that are noised half way and denoised add the denoiser's second half, and samples of training captions its first.
Held-out captions add names that training never saw. Captions of which only the category is kept, or only the category
is changed, say which words are heard.

Training objects are read by judges that saw neither them nor their namesakes (`evaluation.text.UnseenJudges`). How they
read real views of the same objects is the ceiling of these parts. Chance is that of captions in random order, and
intervals come from resampling captions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

from torch import Tensor

from ...data import Sequence, SequenceSet
from ...diffusion.sampling import from_the_middle
from ...evaluation import text
from ...evaluation.metrics.features import Features, extract
from ...evaluation.pictures import real_features
from ...generation.volumes import Models, System, load_models
from ...settings.checks import require
from ...settings.experiment import Experiment
from ...store.files import write_json
from ...store.provenance import environment
from .limits import chosen_objects, kept, limits_file

OBJECTS, SEEDS, GUIDANCE = 64, 2, 3.0  # of each split, the first sampling seeds, the paper's guidance
REAL = ("held-out objects, real views", "training objects, real views")  # nothing of these is drawn by a model
OLD = "the same, read against their old category"


@dataclass(frozen=True)
class Reading:
    """How often what captions say was read: the accuracy with its 95 % interval, its chance, and how many captions."""

    value: float
    low: float
    high: float
    chance: float
    n: int


Heard = dict[str, dict[str, Reading]]  # part -> 'category', 'colour' -> reading
Read = tuple[list[str], list[list[str]]]  # category and colours of each object


@dataclass(frozen=True, eq=False)
class Side:
    """Objects of a split, what is said of them, and the judge of their category."""

    split: str
    numbers: list[int]  # positions in the split
    items: list[Sequence]
    categories: list[str]
    colours: list[list[str]]  # of the training views, as captions have them
    judge: Callable[[Features], list[str]]

    @property
    def captions(self) -> list[str]:
        return [item.caption for item in self.items]


def sides(models: Models, wanted: int = OBJECTS) -> tuple[Side, Side]:
    """Up to `wanted` training and held-out objects, evenly spread. Raises ConfigError for a set of one category."""
    data, score = models.data, models.config.evaluation
    kinds = {item.attributes.get("category") for item in data.split("train")}
    require(len(kinds - {None}) > 1, f"{data.name} has one category, expected several to tell apart")
    taught = text.lessons(data, score)
    everything, unseen = text.train_judge(taught.features, taught.labels), text.UnseenJudges.train(taught)

    def side(split: str, judge: Callable[[Features, list[int]], list[str]]) -> Side:
        items = data.split(split)
        numbers = chosen_objects(len(items), wanted)
        chosen, views = [items[number] for number in numbers], slice(data.train_views)
        colours = [text.read_colours(one.colours(views)[None], one.alphas(views)[None])[0] for one in chosen]
        categories = [one.attributes["category"] for one in chosen]
        return Side(split, numbers, chosen, categories, colours, lambda seen: judge(seen, numbers))

    return side("train", unseen.read), side("test", lambda seen, _: everything.read(seen))


def other_categories(side: Side) -> list[int]:
    """For each object the number of the next one, in a circle, that has another category."""
    count = len(side.categories)
    circles = [[(i + step) % count for step in range(1, count)] for i in range(count)]
    return [
        next((j for j in circle if side.categories[j] != side.categories[i]), i) for i, circle in enumerate(circles)
    ]


def without_category(caption: str, category: str) -> str:
    """A caption without the category at its end, where rules have put it (`data.describe.caption`)."""
    return caption.removesuffix(f", {category.lower()}")


def read_real(models: Models, side: Side) -> list[Read]:
    """Random real views of the objects; colours are read off the views that captions do not come from."""
    data = models.data
    seen = real_features(data, models.config.evaluation, side.split, chosen=side.numbers)
    views = slice(data.train_views, None)
    colours = [text.read_colours(one.colours(views)[None], one.alphas(views)[None])[0] for one in side.items]
    return [(side.judge(seen), colours)]


def read_drawn(models: Models, side: Side, system: System, seeds: Items[int]) -> list[Read]:
    """Pictures of what a system draws, one reading for each sampling seed."""
    score, found = models.config.evaluation, []
    for seed in seeds:
        pictures, occupancies = text.picture_samples(models, system, len(side.numbers), score.views, seed)
        seen = extract(pictures, score.features)
        found.append((side.judge(seen), text.read_colours(pictures, occupancies)))
    return found


def readings(read: Items[Read], categories: Items[str], colours: Items[Items[str]]) -> dict[str, Reading]:
    """What was read against what was said; means over sampling seeds."""
    matches = {
        "category": [text.match_categories(one, categories) for one, _ in read],
        "colour": [text.match_colours(one, colours) for _, one in read],
    }
    found = {}
    for what, sets in matches.items():
        chance = sum(match.chance for match in sets) / len(sets)
        found[what] = Reading(*text.excess(sets, 0.0), chance, len(categories))
    return found


def measured(models: Models, wanted: int = OBJECTS, seeds: int = SEEDS) -> Heard:
    """The parts one after the other. Raises ConfigError for an unconditional model and a set of one category."""
    require(models.config.conditional, f"{models.data.name}: the model is unconditional, expected one of captions")
    training, heldout = sides(models, wanted)
    used = models.config.evaluation.sampling_seeds[:seeds]
    found = {
        REAL[0]: readings(read_real(models, heldout), heldout.categories, heldout.colours),
        REAL[1]: readings(read_real(models, training), training.categories, training.colours),
    }
    for part, system in _of_training(models, training).items():
        read = read_drawn(models, training, system, used)
        found[part] = readings(read, training.categories, training.colours)
    changed = [heldout.categories[j] for j in other_categories(heldout)]
    for part, (captions, categories) in _of_heldout(heldout, changed).items():
        read = read_drawn(models, heldout, models.ours(captions, GUIDANCE), used)
        found[part] = readings(read, categories, heldout.colours)
    found[OLD] = readings(read, heldout.categories, heldout.colours)  # of the last part
    return found


def _of_training(models: Models, side: Side) -> dict[str, System]:
    """Systems whose sample i is of training object side.numbers[i], from the truest to the least."""

    def embeddings(indices: Items[int]) -> list[int]:
        return [side.numbers[index] for index in indices]

    def latents(indices: Items[int]) -> Tensor:
        return models.autodecoder.decoder.g1(models.autodecoder.embedding.all()[embeddings(indices)])

    others = [side.captions[j] for j in other_categories(side)]
    later = from_the_middle(models.config.sampler)
    half = "training objects, latents denoised from half way"
    return {
        "training objects, reconstructed": lambda indices, _: models.reconstruct(embeddings(indices)),
        half: models.ours(side.captions, GUIDANCE, later, latents),
        f"{half} with a caption of another category": models.ours(others, GUIDANCE, later, latents),
        "samples of training captions": models.ours(side.captions, GUIDANCE),
    }


def _of_heldout(side: Side, changed: Items[str]) -> dict[str, tuple[list[str], list[str]]]:
    """{part: (captions, categories that these name)}."""
    bare = [without_category(*pair) for pair in zip(side.captions, side.categories, strict=True)]
    return {
        "samples of held-out captions": (side.captions, side.categories),
        "samples of held-out categories alone": (
            [f"an object, {category.lower()}" for category in side.categories],
            side.categories,
        ),
        "samples of held-out captions with another category": (
            [f"{caption}, {category.lower()}" for caption, category in zip(bare, changed, strict=True)],
            list(changed),
        ),
    }


# ------------------------------------------------------------------------------------------- kept beside the reports


def name(config: Experiment) -> str:
    """How the measurements of a conditional experiment are called: its data, with captions."""
    return f"{config.data.name}_text"


def measure_and_write(config: Experiment, data: SequenceSet, wanted: int = OBJECTS, seeds: int = SEEDS) -> Heard:
    """`measured`, kept beside the reports. Both stages are trained first where they are not there."""
    models = load_models(config, data, "cpu")
    found = measured(models, wanted, seeds)
    write_json(
        limits_file(name(config), config.profile),
        {
            "environment": environment("cpu"),
            "runs": [run.digest for run in models.runs],
            "guidance": GUIDANCE,
            "noise_level_half_way": from_the_middle(config.sampler).sigma_max,
            "sampling_seeds": list(config.evaluation.sampling_seeds[:seeds]),
            "parts": {part: {what: dataclasses.asdict(one) for what, one in r.items()} for part, r in found.items()},
        },
    )
    return found


def read_heard(config: Experiment) -> Heard:
    """What was measured, empty where nothing was."""
    parts = kept(name(config), config.profile)
    return {part: {what: Reading(**one) for what, one in found.items()} for part, found in parts.items()}


def rows(found: Heard) -> Iterator[dict]:
    """Rows of a report, but for the data set."""
    for part, scores in found.items():
        for what, one in scores.items():
            yield dict(
                system="real" if part in REAL else "ours", variant=f"{part}, {what}", metric="attribute_accuracy",
                value=one.value, low=one.low, high=one.high, n=one.n, source="measured",
                note=f"chance {one.chance:.3f}; kept by vader study limits",
            )  # fmt: skip


def lines(found: Heard) -> Iterator[str]:
    """Each part in words."""
    for part, scores in found.items():
        told = [f"{k} {s.value:.2f} ({s.low:.2f} to {s.high:.2f}), chance {s.chance:.2f}" for k, s in scores.items()]
        yield f"{part}: {'; '.join(told)}; {scores['category'].n} captions"
