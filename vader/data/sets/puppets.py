"""Procedural puppets: articulated figures of 4 to 10 rigid parts that move smoothly before a fixed camera.

Data card: `data_cards/puppets.md`, for both sets. A puppet is a tree of rigid parts (torso, head, arms and legs of one
or two pieces), each made of a few convex solids (`raycast`). Joint angles and the root's turn are sums of a few
sinusoids, so motion is band-limited. In `puppets_waving` the same figures swing their limbs further, and across the
picture instead of towards the camera. Video i is the same puppet with the same joint angles whatever the size of the
set; the first `num_objects` are "train", the next `heldout_objects` "test" (held-out identities), and the last frames
of every video are held out.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...settings.experiment import DataConfig
from ..meshes.raycast import LIGHT_RIG, Material, Primitive, render_labelled
from ..pipeline import prepare_set
from ..prepared import SequenceSet
from ..synthetic.factors import colour_name
from ..synthetic.motion import CYCLES, Draw, curve, rotations
from ..video import (
    NO_PART,
    VIDEOS,
    Truth,
    Video,
    check_video_settings,
    part_poses,
    rendered_video,
    stored_normals,
    video_camera,
)

NAME = "puppets"
PUPPETS_VERSION = 5  # raised whenever figures, motion or shading change
HALF_EXTENT = 0.84  # of the bounding box of all frames; what is nearer than this stays within the picture
# Part -> its parent, the ranges of its joint's rest angles and amplitudes about x, y and z in degrees. Turned about z
# and y on the right side as in a mirror. Euler angles: R = R_y R_x R_z.
JOINTS: dict[str, tuple[str | None, tuple[float, float, float], tuple[float, float, float]]] = {
    "torso": (None, (0, 0, 0), (12, 65, 8)),
    "head": ("torso", (0, 0, 0), (12, 25, 8)),
    "left_arm": ("torso", (0, 0, 25), (20, 0, 12)),
    "right_arm": ("torso", (0, 0, 25), (20, 0, 12)),
    "left_leg": ("torso", (0, 0, 8), (16, 0, 5)),
    "right_leg": ("torso", (0, 0, 8), (16, 0, 5)),
    "left_forearm": ("left_arm", (-35, 0, 0), (25, 0, 0)),
    "right_forearm": ("right_arm", (-35, 0, 0), (25, 0, 0)),
    "left_shin": ("left_leg", (25, 0, 0), (20, 0, 0)),
    "right_shin": ("right_leg", (25, 0, 0), (20, 0, 0)),
}
# The same for puppets that wave.
WAVING_JOINTS: dict[str, tuple[str | None, tuple[float, float, float], tuple[float, float, float]]] = {
    "torso": (None, (0, 0, 0), (12, 65, 8)),
    "head": ("torso", (0, 0, 0), (8, 15, 15)),
    "left_arm": ("torso", (0, 0, 45), (10, 0, 35)),
    "right_arm": ("torso", (0, 0, 45), (10, 0, 35)),
    "left_leg": ("torso", (0, 0, 12), (10, 0, 12)),
    "right_leg": ("torso", (0, 0, 12), (10, 0, 12)),
    "left_forearm": ("left_arm", (-20, 0, 10), (15, 0, 30)),
    "right_forearm": ("right_arm", (-20, 0, 10), (15, 0, 30)),
    "left_shin": ("left_leg", (20, 0, 0), (15, 0, 0)),
    "right_shin": ("right_leg", (20, 0, 0), (15, 0, 0)),
}
MOTIONS = {"puppets": JOINTS, "puppets_waving": WAVING_JOINTS}  # by the set's name
LIMBS = ((1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (1, 2), (2, 1), (2, 2))  # pieces of each arm, of each leg
STYLES = ("round", "box", "ball")
SIZES = {  # ranges in metres; widths are half-widths
    "torso_height": (0.50, 0.62), "torso_width": (0.26, 0.34), "torso_depth": (0.19, 0.26), "head": (0.25, 0.31),
    "arm": (0.34, 0.44), "arm_width": (0.08, 0.10), "leg": (0.34, 0.46), "leg_width": (0.10, 0.13),
}  # fmt: skip


@dataclass(frozen=True)
class Puppet:
    """A figure in its own measures (metres): parts in order of the tree, where each hangs, and its solids."""

    names: tuple[str, ...]
    joints: dict[str, np.ndarray]  # (3,) origin of a part in its parent's frame
    solids: dict[str, list[Primitive]]  # in the part's frame
    caption: str


def _draw(seed: int, index: int) -> Draw:
    return Draw(f"{NAME}/{seed}/{index}")


def puppet(seed: int, index: int) -> Puppet:
    """The figure of a video. Left is the puppet's own left, +x as it faces the camera (+z), y up."""
    draw = _draw(seed, index)
    size = {name: draw.within(name, limits) for name, limits in SIZES.items()}
    arm_pieces, leg_pieces = draw.choice("limbs", LIMBS)
    style = draw.choice("style", STYLES)
    skin = Material(colorsys.hsv_to_rgb(draw.within("skin hue", (0.03, 0.1)), 0.45, draw.within("skin", (0.45, 0.95))))
    hair = Material(draw.colour("hair", value=(0.4, 0.9)))
    shirt = _cloth(draw, "shirt")
    trousers = _cloth(draw, "trousers")
    shoes = Material(draw.colour("shoes", value=(0.45, 0.75)))
    sleeves = draw.choice("sleeves", (skin, shirt))
    height, wide, deep, head = size["torso_height"], size["torso_width"], size["torso_depth"], size["head"]
    joints = {"torso": np.zeros(3), "head": np.array([0, height + 0.6 * head, 0])}
    solids = {"torso": _torso(style, height, wide, deep, shirt, trousers), "head": _head(style, head, skin, hair)}
    for side, sign in (("left", 1), ("right", -1)):
        shoulder = np.array([sign * (wide + 0.6 * size["arm_width"]), 0.9 * height, 0])
        hip = np.array([sign * 0.55 * wide, 0, 0])
        arm, leg = (f"{side}_arm", f"{side}_forearm")[:arm_pieces], (f"{side}_leg", f"{side}_shin")[:leg_pieces]
        for chain, start, limb, colours in (
            (arm, shoulder, "arm", (shirt, sleeves)),
            (leg, hip, "leg", (trousers,) * 2),
        ):
            radius = size[f"{limb}_width"]
            for piece, name in enumerate(chain):
                length = size[limb] / len(chain)
                joints[name] = start if piece == 0 else np.array([0, -length, 0])
                last = piece == len(chain) - 1
                solids[name] = _limb(style, length, radius * 0.88**piece, colours[piece])
                if last and limb == "arm":
                    solids[name].append(_solid("ball", (0, -length, 0), [1.25 * radius] * 3, skin, name))
                elif last:
                    reach = (1.1 * radius, 0.6 * radius, 1.9 * radius)
                    solids[name].append(_solid("box", (0, -length, 0.9 * radius), reach, shoes, name))
    names = tuple(name for name in JOINTS if name in joints)
    words = {"round": "tubular", "box": "boxy", "ball": "rounded"}
    caption = (
        f"a {words[style]} puppet with {_article(shirt)} shirt, {_words(trousers)} trousers and {_words(hair)} hair"
    )
    return Puppet(names, joints, solids, caption)


def _cloth(draw: Draw, name: str) -> Material:
    pattern = draw.choice(f"{name} pattern", ("plain", "stripes", "checker"))
    return Material(draw.colour(name), pattern, draw.within(f"{name} frequency", (3, 6)), 0.45)


def _words(material: Material) -> str:
    patterns = {"plain": "", "stripes": "striped ", "checker": "checked "}
    return patterns[material.texture] + colour_name(material.albedo)


def _article(material: Material) -> str:
    words = _words(material)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _solid(kind: str, centre, half, material: Material, part: str, taper: float = 1.0) -> Primitive:
    return Primitive(kind, np.column_stack([np.diag(half), centre]).astype(float), material, part, (taper, taper))


def _torso(style: str, height: float, wide: float, deep: float, shirt: Material, trousers: Material) -> list[Primitive]:
    middle, hips = (0, 0.55 * height, 0), (0, 0.02 * height, 0)
    chest = _solid(style, middle, (wide, 0.52 * height, deep), shirt, "torso")
    pelvis = _solid(
        "box" if style == "box" else "ball", hips, (0.95 * wide, 0.2 * height, 0.95 * deep), trousers, "torso"
    )
    neck = _solid("round", (0, 1.05 * height, 0), (0.3 * wide, 0.12 * height, 0.3 * wide), shirt, "torso")
    opposite = 1 - np.array(shirt.albedo)
    other = Material(tuple((0.85 * opposite / opposite.max()).tolist()))
    bib = _solid(style, (0, 0.5 * height, 0.62 * deep), (0.5 * wide, 0.5 * height, 0.5 * deep), other, "torso")
    badge = _solid("ball", (0.3 * wide, 0.72 * height, 1.1 * deep), (0.05,) * 3, shirt, "torso")  # on the left
    return [chest, pelvis, neck, bib, badge]


def _head(style: str, r: float, skin: Material, hair: Material) -> list[Primitive]:
    dark = Material((0.2, 0.17, 0.2))
    solids = [_solid("box" if style == "box" else "ball", (0, 0.5 * r, 0), (0.85 * r, 1.1 * r, 0.9 * r), skin, "head")]
    solids.append(_solid("ball", (0, 0.65 * r, -0.35 * r), (0.98 * r, 1.2 * r, 0.85 * r), hair, "head"))
    solids.append(_solid("ball", (0, 0.4 * r, 0.95 * r), (0.16 * r, 0.2 * r, 0.28 * r), skin, "head"))
    for side in (-1, 1):
        solids.append(_solid("ball", (0.36 * side * r, 0.7 * r, 0.82 * r), (0.17 * r, 0.2 * r, 0.12 * r), dark, "head"))
    return solids


def _limb(style: str, length: float, radius: float, material: Material) -> list[Primitive]:
    """A limb from its joint at the origin to (0, -length, 0), rounded at both ends where it is a tube (a capsule)."""
    middle = (0, -length / 2, 0)
    if style == "ball":
        return [_solid("ball", middle, (1.25 * radius, length / 2 + 0.8 * radius, 1.25 * radius), material, "limb")]
    tube = _solid(style, middle, (radius, length / 2, radius), material, "limb")
    ends = [_solid("ball", (0, y, 0), [radius] * 3, material, "limb") for y in (0, -length)]
    return [tube] if style == "box" else [tube, *ends]


# ---------------------------------------------------------------------------------------- motion


def pose_parts(figure: Puppet, seed: int, index: int, frames: int, joints: dict = JOINTS) -> np.ndarray:
    """Part-to-world matrices (frames, p, 4, 4) of a puppet in its own measures, pelvis near the origin."""
    draw = _draw(seed, index)
    poses: dict[str, np.ndarray] = {}
    for name in figure.names:
        parent, rest, amplitude = joints[name]
        angles = np.stack(
            [r + a * curve(draw, f"{name} {k}", frames) for k, (r, a) in enumerate(zip(rest, amplitude, strict=True))]
        )
        if name.startswith("right"):
            angles[1:] *= -1
        local = np.tile(np.eye(4), (frames, 1, 1))
        local[:, :3, :3] = rotations(np.radians(angles))
        local[:, :3, 3] = figure.joints[name]
        if parent is None:
            local[:, :3, 3] += 0.08 * np.stack([curve(draw, f"root {k}", frames) for k in range(3)], axis=1)
        poses[name] = local if parent is None else poses[parent] @ local
    return np.stack([poses[name] for name in figure.names], axis=1)


def place(figure: Puppet, poses: np.ndarray) -> tuple[list[list[Primitive]], list[int], np.ndarray]:
    """Solids of every frame in the world, the part each belongs to, and rigid part-to-world matrices, scaled and moved
    so that the bounding box of all frames has its centre at the origin and half sides of at most HALF_EXTENT."""
    owner = [number for number, name in enumerate(figure.names) for _ in figure.solids[name]]
    solids = [solid for name in figure.names for solid in figure.solids[name]]

    def at(frame: int, scale: float, centre: np.ndarray) -> list[Primitive]:
        moved = []
        for number, solid in zip(owner, solids, strict=True):
            rotation, shift = poses[frame, number, :3, :3], poses[frame, number, :3, 3] - centre
            whole = scale * np.column_stack([rotation @ solid.frame[:, :3], rotation @ solid.frame[:, 3] + shift])
            moved.append(Primitive(solid.kind, whole, solid.material, solid.part, solid.taper))
        return moved

    boxes = [solid.bounds() for frame in range(len(poses)) for solid in at(frame, 1.0, np.zeros(3))]
    low, high = np.min([b[0] for b in boxes], 0), np.max([b[1] for b in boxes], 0)
    centre, scale = (low + high) / 2, 2 * HALF_EXTENT / (high - low).max()
    rigid = poses.copy()
    rigid[..., :3, 3] = scale * (poses[..., :3, 3] - centre)
    return [at(frame, scale, centre) for frame in range(len(poses))], owner, rigid


# ---------------------------------------------------------------------------------------- the data set


def sources(config: DataConfig) -> dict[str, Any]:
    """What decides the pixels beside the settings, as it enters the digest."""
    return {
        "generator": NAME,
        "version": PUPPETS_VERSION,
        "joints": MOTIONS[config.name],
        "sizes": SIZES,
        "limbs": LIMBS,
        "cycles": CYCLES,
        "lights": LIGHT_RIG,
    }


def object_key(index: int) -> str:
    return f"puppet-{index:06d}"


def render_object(job: tuple[DataConfig, int]) -> tuple[Video, Truth]:
    """Video `index` of a set, and its truth."""
    config, index = job
    return render_motion(config, index, index)


def render_motion(config: DataConfig, identity: int, motion: int) -> tuple[Video, Truth]:
    """The puppet of video `identity` with the joint angles of video `motion`: what an animation should look like."""
    count = config.train_views + config.heldout_views
    figure, camera = puppet(config.seed, identity), video_camera(config)
    solids, owner, rigid = place(figure, pose_parts(figure, config.seed, motion, count, MOTIONS[config.name]))
    pictures = [render_labelled(primitives, owner, camera, config.supersampling) for primitives in solids]
    frames, masks, parts, normals = (torch.cat(layer) for layer in zip(*pictures, strict=True))
    creator = "generated by vader.data.sets.puppets"
    video = rendered_video(config, object_key, identity, motion, frames, masks, figure.caption, creator=creator)
    labels = torch.where(parts < 0, NO_PART, parts).to(torch.uint8)
    truth = Truth(labels, part_poses(rigid, camera), camera.intrinsics[0], figure.names, stored_normals(normals))
    return video, truth


def prepare(config: DataConfig, workers: int | None = None, root: Path | None = None) -> SequenceSet[Video]:
    """Load or render the puppets. workers: processes, by default one per available core where there is much to do.

    Raises ConfigError for settings that no video can have and DataError where the folder cannot be written.
    """
    check_video_settings(config, tuple(MOTIONS), "of puppets")
    count = config.num_objects + config.heldout_objects
    if workers is None:
        workers = torch.get_num_threads() if count * config.resolution**2 > 2**15 else 1
    jobs = {object_key(i): (config, i) for i in range(count)}
    return prepare_set(config, sources(config), jobs, render_object, workers, root, kind=VIDEOS)
