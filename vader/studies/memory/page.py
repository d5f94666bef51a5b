"""The results as a page and a picture, and the sentence that follows from them by a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...report import decide_equal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WITHIN = 1.25  # the factor of Table 4's claim
NEW, NEVER, FAR, OPEN = "new", "never", "far", "undecided"  # what the rule can say


def verdicts(arms: dict[str, dict[str, Any]], quantity: str) -> dict[int, str]:
    """Table 4's two-sided verdict on a ratio, by number of training objects: 'holds', 'below', 'above', 'inconclusive'
    or, where no sample has a shape, 'none'."""
    found = {}
    for count, arm in sorted((int(count), arm) for count, arm in arms.items()):
        value, low, high = (arm[quantity].get(key) for key in ("value", "low", "high"))
        if None in (value, low, high):
            found[count] = "none"
            continue
        verdict, _ = decide_equal(value, low, high, WITHIN)
        found[count] = verdict if verdict != "fails" else "below" if high < 1 / WITHIN else "above"
    return found


def answer(arms: dict[str, dict[str, Any]], quantity: str, whose: str) -> tuple[str, str]:
    """From which number of training objects on samples are as new as unseen objects, by a rule: (kind, sentence).

    They are from n on where Table 4's verdict holds at n and at each larger number. They never are where every number's
    interval is below 1 / 1.25. Where every one is above 1.25, samples are far from everything. All else is open.
    whose: the objects that samples are compared with.
    """
    found = verdicts(arms, quantity)
    counts, first, last = list(found), min(found), max(found)
    holding = [n for n in counts if all(found[m] == "holds" for m in counts if m >= n)]
    ratios = (
        f"{ratio(arms, quantity, first)} with {first} training objects and {ratio(arms, quantity, last)} with {last}"
    )
    compared = f"their distance to the nearest training object, over that of {whose}, is {ratios}"
    if holding:
        return NEW, f"From {holding[0]} training objects on, samples are as new as unseen objects: {compared}."
    kinds = set(found.values())
    if kinds == {"below"}:
        return NEVER, f"Samples are never as new as unseen objects, up to {last} training objects: {compared}."
    if kinds == {"above"}:
        return FAR, f"Samples are no objects of the kind, up to {last} training objects, but far from all: {compared}."
    said = ", ".join(f"{n}: {SAID[verdict]}" for n, verdict in found.items())
    return OPEN, f"From where on samples are as new as unseen objects is undecided: {compared} ({said})."


SAID = {
    "holds": "as new",
    "below": "nearer than unseen objects",
    "above": "farther than unseen objects",
    "inconclusive": "undecided",
    "none": "no sample has a shape",
}
HELD_OUT, OTHERS = "{} held-out models", "{} unseen models (held out, or each against the objects of the others)"


def answers(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The rule on Table 4's ratio, and on the one that rests on more objects."""
    real, arms = found["real"], found["arms"]
    return [
        answer(arms, "novelty", HELD_OUT.format(real["held_out"])),
        answer(arms, "novelty_others", OTHERS.format(real["held_out"] + real["others"])),
    ]


def ratio(arms: dict[str, dict[str, Any]], quantity: str, count: int) -> str:
    return _number(arms[str(count)][quantity], 2)


def _number(entry: dict[str, Any], digits: int) -> str:
    """A value with its interval, if it has one."""
    if entry["value"] is None:
        return "–"
    ends = [entry.get(end) for end in ("low", "high")]
    interval = "" if None in ends else f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"
    return f"{entry['value']:.{digits}f}{interval}"


# --------------------------------------------------------------------------------------------------------- page

ROWS = {  # quantity -> name of its row, digits
    "novelty": ("novelty: samples over held-out models (Table 4's ratio)", 2),
    "novelty_others": ("the same over all unseen models", 2),
    "novelty_copies": ("reconstructed training objects over held-out models: the ratio of a copy", 2),
    "kd": ("KD × 10³ to views of the arm's own training objects", 1),
    "kd_originals": ("KD × 10³ to views of the originals", 1),
    "cov": ("COV against the originals, %", 1),
    "psnr": ("PSNR of held-out views, one variant of each model, dB", 2),
    "psnr_originals": ("PSNR of held-out views of the originals, dB", 2),
    "neighbours": ("training objects that are some sample's nearest", 0),
    "without_shape": ("samples without a surface", 0),
    "seconds_stage1": ("seconds of stage 1, of wall time beside other work", 0),
    "seconds_stage2": ("seconds of stage 2, likewise", 0),
}
DISTANCES = {  # Chamfer distances
    "distance_samples": "samples",
    "distance_copies": "reconstructed training objects",
    "distance_variants": "further variants of trained models",
    "distance_others": "all unseen models",
    "distance_held_out": "held-out models",
}


def page(found: dict[str, Any]) -> str:
    """`study.content` in words."""
    data, profile = found["data"]["name"], found["profile"]
    trainings = len(found["seeds"])
    lines = [
        f"# Do samples become new with more training objects? {data}, profile {profile}",
        "",
        f"Written by `vader study memory --profile {profile}`. One model, scaled down, is trained on "
        f"{_listed(list(found['arms']))} objects, {'once' if trainings == 1 else f'{trainings} times'} each. More "
        "objects are variants of the same base models: other materials, and stretched by up to 12 %. Held-out "
        "models are in no training set.",
        "",
        "## In short",
        "",
        *(f"- {sentence}" for _, sentence in answers(found)),
        f"- {_copies(found)}",
        "",
        f"![Novelty, kernel distance and coverage by number of training objects](memory-{data}-{profile}.png)",
        "",
        "## Numbers",
        "",
        *_table(found, {name: row for name, row in ROWS.items()}),
        "",
        "Median Chamfer distance × 10³ to the nearest training object:",
        "",
        *_table(found, {name: (text, 2) for name, text in DISTANCES.items()}, 1000),
        "",
        *_protocol(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _listed(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _table(found: dict[str, Any], rows: dict[str, tuple[str, int]], scale: float = 1) -> list[str]:
    arms = found["arms"]
    lines = ["| training objects | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for quantity, (text, digits) in rows.items():
        cells = [_number(_scaled(arm[quantity], scale), digits) for arm in arms.values()]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {text} | " + " | ".join(cells) + " |")
    return lines


def _scaled(entry: dict[str, Any], scale: float) -> dict[str, Any]:
    return {key: scale * entry[key] for key in ("value", "low", "high") if entry.get(key) is not None} or {
        "value": None
    }


def _copies(found: dict[str, Any]) -> str:
    """What a copy, and a new stretch of a trained model, would have."""
    count = max(map(int, found["arms"]))
    arm = found["arms"][str(count)]
    variants, held_out = arm["distance_variants"]["value"], arm["distance_held_out"]["value"]
    said = (
        f"With {count} training objects, a copy that the decoder draws has a ratio of "
        f"{ratio(found['arms'], 'novelty_copies', count)}"
    )
    if None in (variants, held_out):
        return said + "."
    return said + f", and a further variant of a trained model has {variants / held_out:.2f}."


def _protocol(found: dict[str, Any]) -> list[str]:
    real, settings = found["real"], found["settings"]
    data, evaluation = settings["data"], settings["evaluation"]
    samples = evaluation["num_samples"] * len(evaluation["sampling_seeds"])
    pictures = real["originals"] * evaluation["real_views"]
    intervals = "They cover objects, not trainings: there is one training each."
    if len(found["seeds"]) > 1:
        intervals = f"They cover objects and the {len(found['seeds'])} trainings, whichever reaches further."
    return [
        "## Protocol",
        "",
        f"- Equal in all trainings: {found['budget']}, the seeds, {data['train_views']} views of "
        f"{data['resolution']}² pixels an object, the network but for its table of embeddings.",
        f"- Equal in all comparisons: {samples} samples, {pictures} real pictures, and the real objects below.",
        f"- Held out: {real['held_out_said']}.",
        f"- All unseen models: the held-out ones, and {real['others']} trained models, each against the objects of the "
        "other models. Models with a copy among the others are left out.",
        f"- Further variants: {real['variants']} objects that no training sees, of models that all see.",
        f"- COV has the {real['originals']} originals as references, as Table 4 has. The picture shows KD to the "
        "training objects as a line, and KD to the originals dashed.",
        "- Novelty is as in Table 4: the median distance of samples to their nearest training object, over that of "
        f"unseen objects. It holds where its whole interval is between {1 / WITHIN:g} and {WITHIN:g}.",
        f"- Intervals are 95 %. {intervals}",
    ]


# ------------------------------------------------------------------------------------------------------ picture


def figure(found: dict[str, Any]) -> Figure:
    """Novelty, KD and COV against the number of training objects."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.0, 2.7), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    left.axhspan(1 / WITHIN, WITHIN, color="0.9", label=f"{1 / WITHIN:g} to {WITHIN:g}")
    _curve(left, found, "novelty", "samples / held-out models", "C0")
    _curve(left, found, "novelty_others", "samples / all unseen models", "C1", "--")
    _curve(left, found, "novelty_copies", "reconstructions / held-out models", "C2", ":")
    left.set_title("distance to nearest training object, ratio", fontsize=8)
    _curve(middle, found, "kd", "to training objects", "C0")
    _curve(middle, found, "kd_originals", "to the originals", "C1", "--")
    middle.set_title("KD × 10³", fontsize=8)
    _curve(right, found, "cov", "of the originals", "C0")
    right.set_title("COV, %", fontsize=8)
    counts = [int(count) for count in found["arms"]]
    for axis in (left, middle, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(n) for n in counts], fontsize=7)
        axis.set_xlabel("training objects", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=6)
    return drawn


def _curve(axis: Axes, found: dict[str, Any], quantity: str, label: str, colour: str, style: str = "-") -> None:
    points = [(int(n), arm[quantity]) for n, arm in found["arms"].items() if arm[quantity]["value"] is not None]
    values = [entry["value"] for _, entry in points]
    reach = [[abs(entry["value"] - entry.get(end, entry["value"])) for _, entry in points] for end in ("low", "high")]
    axis.errorbar(
        [n for n, _ in points],
        values,
        reach,
        label=label,
        color=colour,
        linestyle=style,
        marker="o",
        ms=3,
        capsize=2,
        lw=1,
    )
