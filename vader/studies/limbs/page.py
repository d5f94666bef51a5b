"""The results as a page in Markdown: each question, its numbers, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .explanations import ALL_TRUE, CHANCES, GIVEN, ONE, STAGED
from .keypoints import epnp_strain, expected_correlation, predicted_error, recipe_spread
from .scene import ACROSS, TOWARDS

EXACT = 1e-3  # difference of gradients, as a share, up to which they count as equal
TURNS = 0.5  # correlation with the truth from which on a limb turns with it
STRAINED = 0.2  # strain of EPnP from which on its error is far from the bound


def page(found: dict[str, Any]) -> str:
    """`study.measured` in words."""
    profile = found["profile"]
    lines = [
        f"# Why limbs hardly turn: a body and one limb, profile {profile}",
        "",
        f"Written by `vader study limbs --profile {profile}`. Two boxes stand before the videos' camera, a body and a "
        "limb on a joint. Volume, skinning weights and poses are known, so each can be given or learned "
        "(`vader/studies/limbs/scene.py`). Losses are the recipe's of `puppets_waving`. All pictures have "
        f"{found['study']['resolution']}² pixels, the size that the laptop's keypoint network sees. There is "
        f"one seed, and {found['study']['frames']} pictures a scene: small differences mean nothing.",
        "",
    ]
    for part in (_answers, _gradients, _stay, _basins, _explanations, _predictor, _keypoints, _sets, _next):
        lines += [*part(found), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _last(steps: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The last step that was measured, and its scores."""
    step = max(steps, key=int)
    return step, steps[step]


def _far(found: dict[str, Any]) -> dict[str, Any]:
    """The scene with the largest turns, where all arms are."""
    return max(found["explanations"].values(), key=lambda scene: len(scene["arms"]))


# ------------------------------------------------------------------------------------------------------- answers


def _answers(found: dict[str, Any]) -> list[str]:
    worst = max(share for places in found["gradients"].values() for share in places.values())
    scene, courses = _far(found), _far(found)["arms"]
    arms = {name: _last(steps)[1] for name, steps in courses.items()}
    early, steps = sorted(courses[ONE], key=int)[-2:]
    first, stayed = courses[ALL_TRUE][early], arms[ALL_TRUE]
    pulls = {name: scene["pull"][name]["correlation"] for name in ("true", "one part")}
    *_, (small, few), (narrow, depth) = found["explanations"].items()
    few, depth = ({name: _last(x)[1] for name, x in other["arms"].items()} for other in (few, depth))
    towards, across = (_middle(found, axis) for axis in (TOWARDS, ACROSS))
    return [
        "## In short",
        "",
        f"- The gradients are {'right' if worst < EXACT else 'WRONG'}: the largest difference from finite differences "
        f"is {worst:.1g} of the largest derivative.",
        f"- True poses {'stay' if stayed['correlation'] > TURNS else 'do not stay'}: after {steps} steps with "
        f"everything free, turns correlate by {stayed['correlation']:.2f} with the truth. Their size drifts first. It "
        f"is {first['share']:.2f} of the true one after {early} steps, {stayed['share']:.2f} at the end.",
        f"- {_released(found)}",
        f"- With the poses given, parts come out: their ARI is {arms[GIVEN]['ari']:.2f}, and turns correlate by "
        f"{arms[GIVEN]['correlation']:.2f}.",
        f"- One part does not win by its loss. After {early} steps it has {courses[ONE][early]['loss']:.2f}, parts in "
        f"given poses {courses[GIVEN][early]['loss']:.2f}. What fails is the way from one to the other. A limb painted "
        f"over its whole swing is pulled with a correlation of {pulls['one part']:.2f} to its true angles, the true "
        f"limb with {pulls['true']:.2f}. After one part turns correlate by {arms[STAGED]['correlation']:.2f}, although "
        f"the weights are told, and by {arms[CHANCES]['correlation']:.2f} with {arms[CHANCES]['share']:.2f} of their "
        "size with nothing given.",
        f"- Small turns are found ({small}: correlation {few[STAGED]['correlation']:.2f}, share "
        f"{few[STAGED]['share']:.2f}).",
        f"- Turns towards the camera are not ({narrow}: share {depth[STAGED]['share']:.2f}). Even with the poses given "
        f"no parts come out (ARI {depth[GIVEN]['ari']:.2f}). One of {towards['truth_deg']:.0f}° changes the loss by "
        f"{_told(towards):.2f}, one across the picture by {_told(across):.2f}: a narrow camera sees a limb get shorter "
        "by the cosine.",
        f"- {_epnp_limit(found)}",
        f"- {_set_limit(found)}",
    ]


def _released(found: dict[str, Any]) -> str:
    ends = {name: _last(steps) for name, steps in found["predictor"]["released"].items()}
    said = [f"{s['correlation']:.2f} (share {s['share']:.2f}) by {name}" for name, (_, s) in ends.items()]
    steps = max(step for step, _ in ends.values())
    return (
        "A keypoint network that was told the truth, and is then released among the recipe's losses, reads turns that "
        f"correlate after {steps} steps by {' and '.join(said)}."
    )


def _middle(found: dict[str, Any], axis: str) -> dict[str, Any]:
    """The limb of medium width that turns about an axis."""
    [row] = [row for row in found["basins"] if row["axis"] == axis and "returned" in row]
    return row


def _told(row: dict[str, Any]) -> float:
    """How much more the loss is at the angle 0 than at the true one."""
    true, still, _ = row["loss"]
    return still - true


def _epnp_limit(found: dict[str, Any]) -> str:
    spread, noise = found["sets"]["puppets"]["spread_px"] / 2, max(found["study"]["noises"])
    count = found["study"]["per_axis"][0] ** 3
    row = min(
        (r for r in found["keypoints"] if r["keypoints"] == count and r["noise_px"] == noise),
        key=lambda r: abs(r["spread_px"] - spread),
    )
    return (
        f"EPnP cannot read a limb from keypoints on it: for {count} keypoints that spread by {row['spread_px']:g} px "
        f"with {noise:g} px of noise its error is {row['EPnP']:.0f}°. That of least squares is "
        f"{row['least squares']:.1f}°."
    )


def _set_limit(found: dict[str, Any]) -> str:
    still, waving = found["sets"]["puppets"], found["sets"]["puppets_waving"]
    return (
        f"Limbs of `puppets` turn by {still['across_deg']:.1f}° across the picture and {still['towards_deg']:.1f}° "
        f"towards the camera (root mean square), which moves their far ends by {still['end_px']:.1f} px of 64. Those "
        f"of `puppets_waving` turn by {waving['across_deg']:.1f}° across it, and their ends move by "
        f"{waving['end_px']:.1f} px."
    )


# --------------------------------------------------------------------------------------------------- experiments


def _gradients(found: dict[str, Any]) -> list[str]:
    places = list(next(iter(found["gradients"].values())))
    rows = [(name, *(f"{values[place]:.1g}" for place in places)) for name, values in found["gradients"].items()]
    return [
        "## a. Is the pictures' gradient right?",
        "",
        "Autograd against central differences of the image losses, in float64, through renderer, inverse skinning and "
        "the solver. Numbers are the largest difference over random directions, as a share of the largest derivative. "
        "Gradients of least squares go through the last step alone, which is exact where keypoints fit exactly.",
        "",
        *_table(("variable", *places), rows),
    ]


def _stay(found: dict[str, Any]) -> list[str]:
    courses = {"image losses, free poses": _far(found)["arms"][ALL_TRUE]}
    courses |= {f"all losses, told network, {name}": steps for name, steps in found["predictor"]["released"].items()}
    return [
        "## b. Do true poses stay?",
        "",
        "Volume, weights and poses start as the truth, and all are trained. Poses are free. A keypoint network, where "
        "one is named, was told them before, and projection, equivariance and pull are added.",
        "",
        *_course_table(courses),
    ]


def _course_table(courses: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    rows = [
        (name, step, f"{s['loss']:.2f}", f"{s['psnr']:.1f}", f"{s['ari']:.2f}", f"{s['correlation']:.2f}",
         f"{s['share']:.2f}", f"{s['turn_error_deg']:.1f}")
        for name, steps in courses.items() for step, s in steps.items()
    ]  # fmt: skip
    head = ("what is learned", "step", "loss", "PSNR (dB)", "ARI", "correlation", "share", "error of turns (°)")
    return _table(head, rows)


def _basins(found: dict[str, Any]) -> list[str]:
    rows = [
        (row["axis"], f"{row['width_px']:.1f} x {row['length_px']:.0f}", f"{row['truth_deg']:.0f}",
         f"-{row['well_deg'][0]:.0f} to +{row['well_deg'][1]:.0f}", f"{row['off_deg']:.1f}", str(row["minima"]),
         *(f"{loss:.2f}" for loss in row["loss"]), *(_returned(row, error) for error in found["study"]["errors"]))
        for row in found["basins"]
    ]  # fmt: skip
    head = ("turn", "limb (px)", "true angle (°)", "well (°)", "its minimum off by (°)", "minima")
    head += ("at the truth", "at 0°", "mirrored", *(f"from {error:g}°" for error in found["study"]["errors"]))
    return [
        "## c. From how far away do pictures lead a limb back?",
        "",
        "Volume and weights are true. The loss over the limb's angle has a well around the truth. Beside it "
        "stand the losses at the true angle, at 0 and at minus the true angle. On the right is the "
        f"share of limbs that {found['study']['descent_steps']} steps of Adam bring back to 5°, with the angle alone "
        "free and, behind the stroke, with all turns and shifts across the picture.",
        "",
        *_table(head, rows),
    ]


def _returned(row: dict[str, Any], error: float) -> str:
    if "returned" not in row:
        return "–"
    return " / ".join(f"{row[free][f'{error:g}']:.2f}" for free in ("returned_angle", "returned"))


def _explanations(found: dict[str, Any]) -> list[str]:
    lines = [
        "## d, e. What do pictures teach, and does one part win?",
        "",
        "Free voxels, and free poses in every frame. The *share* is how much of a true turn is shown.",
        "",
        f"- *{ONE}*: the limb can only be painted into the volume where it was seen.",
        f"- *{GIVEN}*: volume and weights start at chance.",
        f"- *{CHANCES}*: so do the poses of two equal parts, as in UVA.",
        f"- *{STAGED}*: the recipe's order, with the true weights instead of regions.",
        "",
    ]
    for name, scene in found["explanations"].items():
        true, painted = scene["pull"]["true"], scene["pull"]["one part"]
        lines += [
            f"### {name}",
            "",
            *_course_table({arm: steps for arm, steps in scene["arms"].items() if arm != ALL_TRUE}),
            "",
            f"In the neutral pose the pictures pull the true limb with {true['pull']:.2f} of loss a radian, which "
            f"correlates by {true['correlation']:.2f} with the true angles. They pull a limb that is painted by one "
            f"part with {painted['pull']:.2f}, which correlates by {painted['correlation']:.2f}.",
            "",
        ]
    return lines[:-1]


def _predictor(found: dict[str, Any]) -> list[str]:
    rows = [
        (name, f"{r['noise_px']:.2f}", f"{r['shared']:.2f}", f"{r['independent_deg']:.1f}",
         *(f"{r['error_deg'][solver]:.1f}" for solver in r["error_deg"]),
         *(f"{r['correlation'][solver]:.2f}" for solver in r["correlation"]))
        for name, r in found["predictor"]["read"].items()
    ]  # fmt: skip
    solvers = list(next(iter(found["predictor"]["read"].values()))["error_deg"])
    head = ("turns up to", "noise (px)", "shared", "if independent (°)", *(f"error, {s} (°)" for s in solvers))
    return [
        "## f. What does a keypoint network read that is told the truth?",
        "",
        f"After {found['study']['taught_steps']} steps, at angles that it was not told. *Shared* is the part of the "
        "noise's power that moves all keypoints of a picture as a pose does. More keypoints do not average it out, so "
        "that turns are worse than independent noise would make them.",
        "",
        *_table((*head, *(f"correlation, {s}" for s in solvers)), rows),
    ]


def _keypoints(found: dict[str, Any]) -> list[str]:
    rows = [
        (f"{r['keypoints']:.0f}", f"{r['spread_px']:g}", f"{r['noise_px']:g}", f"{r['bound_deg']:.2f}",
         f"{r['least squares']:.2f}", f"{r['EPnP']:.2f}", f"{r['strain']:.2f}")
        for r in found["keypoints"]
    ]  # fmt: skip
    few, resolution = found["study"]["per_axis"][0], found["study"]["resolution"]
    wide, gathered = (recipe_spread(few, extent, resolution) for extent in (1.0, 0.6))
    return [
        "## g. What does noise on keypoints cost?",
        "",
        "k keypoints spread by r pixels along each axis, with s pixels of independent noise. The least error of a turn "
        "is s / (r √(2k)) across the picture and s / (r √k) about an axis in it, together √2.5 s / (r √k). Least "
        "squares reach it. EPnP's equations hold a turn only by perspective, which moves a keypoint by r² p / D (p is "
        "a pixel's width, D the distance). *Strain* is s / √k over that. From a strain of about "
        f"{STRAINED} on EPnP's error leaves the bound, whatever the spread.",
        "",
        *_table(("k", "r (px)", "s (px)", "bound (°)", "least squares (°)", "EPnP (°)", "strain"), rows),
        "",
        f"The recipe's {few**3} keypoints fill the cube and spread by {wide:.1f} px, or {gathered:.1f} px where they "
        "are drawn together around parts (`taught_extent`).",
    ]


def _sets(found: dict[str, Any]) -> list[str]:
    count, rows = found["study"]["per_axis"][0] ** 3, []
    for name, f in found["sets"].items():
        spread = f["spread_px"] / 2  # in pixels of the network's picture
        for axis, turn in ((ACROSS, f["across_deg"]), (TOWARDS, f["towards_deg"])):
            errors = [predicted_error(noise, spread, count, axis) for noise in found["study"]["noises"]]
            best = (f"{e:.1f}° ({expected_correlation(turn, e):.2f})" for e in errors)
            rows.append((name, axis, f"{turn:.1f}", f"{spread:.1f}", *best))
    first = next(iter(found["sets"].values()))
    return [
        "## h. Where are the sets' limbs?",
        "",
        f"Means over {first['limbs']} limbs of {found['study']['puppets']} puppets. They are {first['length_px']:.0f} "
        f"px long and {first['width_px']:.0f} px wide in pictures of 64² pixels, half of that where networks see them. "
        f"The best error, and the correlation that it leaves, are those of {count} keypoints on the limb itself with "
        "independent noise.",
        "",
        *_table(
            ("set", "turn", "root mean square (°)", "r (px)", *(f"noise {n:g} px" for n in found["study"]["noises"])),
            rows,
        ),
    ]


def _next(found: dict[str, Any]) -> list[str]:
    still, waving = found["sets"]["puppets"], found["sets"]["puppets_waving"]
    count, noise, resolution = found["study"]["per_axis"][0] ** 3, 0.25, found["study"]["resolution"]
    strain = epnp_strain(noise, still["spread_px"] / 2, count, resolution)
    towards = _middle(found, TOWARDS)
    return [
        "## What to change",
        "",
        "1. *Solver.* Where keypoints are on a limb, take least squares (`refine_steps`). EPnP's strain falls with the "
        f"pictures' resolution alone. With {noise:g} px of noise on {count} keypoints on a limb of `puppets` it needs "
        f"pictures of about {resolution * strain / STRAINED:.0f}² pixels.",
        "2. *Set.* Ask for turns across the picture. Those towards the camera change the loss by "
        f"{_told(towards):.2f} at {towards['truth_deg']:.0f}°, and are {still['towards_deg']:.1f}° in `puppets`, "
        f"{waving['towards_deg']:.1f}° in `puppets_waving`. A second camera or a wider one would show them. So would "
        "shading, which the volume's colours cannot follow.",
        "3. *Order.* The recipe learns one part first, and that paints a limb over its whole swing. Frames whose limbs "
        "are within a limb's width of each other leave it a pull: begin with those, or give poses from elsewhere. Once "
        "poses are right, parts come out by themselves.",
    ]
