"""Motion of rendered subjects: hashed random draws, band-limited curves, motion clips.

A clip is a text file of DeepMimic's humanoid (Peng et al. 2018), as PyBullet's data ship them. It is JSON with "Loop"
("wrap" or "none") and "Frames" of 44 numbers each. These are seconds, the root's position (3), then quaternions
(w, x, y, z) relative to the parent, and angles about z of knees and elbows, in the order of `CLIP_JOINTS`. A clip's
axes are x forward, y up, z right, and at rest the humanoid stands upright with arms and legs straight down.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from ..prepared import DataError
from .factors import hashed_uniform

CYCLES = (1 / 64, 1 / 16)  # per frame, range of the motion's frequencies
SINUSOIDS = 3


class Draw:
    """Random numbers of one subject, each a function of (prefix, name)."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def unit(self, name: str) -> float:
        return hashed_uniform(f"{self.prefix}/{name}")

    def choice(self, name: str, options):
        return options[int(self.unit(name) * len(options))]

    def within(self, name: str, limits: tuple[float, float]) -> float:
        return limits[0] + (limits[1] - limits[0]) * self.unit(name)

    def colour(self, name: str, saturation=(0.3, 0.9), value=(0.55, 0.95)) -> tuple[float, float, float]:
        limits = {"hue": (0.0, 1.0), "saturation": saturation, "value": value}
        return colorsys.hsv_to_rgb(*(self.within(f"{name} {k}", v) for k, v in limits.items()))


def curve(draw: Draw, name: str, frames: int, cycles: tuple[float, float] = CYCLES) -> np.ndarray:
    """A smooth signal (frames,) within [-1, 1]: sinusoids of random share, frequency (within cycles) and phase."""
    time, share = np.arange(frames), [0.3 + draw.unit(f"{name} share {k}") for k in range(SINUSOIDS)]
    waves = (
        share[k]
        * np.sin(2 * math.pi * (draw.within(f"{name} cycles {k}", cycles) * time + draw.unit(f"{name} phase {k}")))
        for k in range(SINUSOIDS)
    )
    return sum(waves) / sum(share)


def rotations(angles: np.ndarray) -> np.ndarray:
    """(t, 3, 3) of angles (3, t) in radians about x, y and z: R_y R_x R_z."""
    (cx, cy, cz), (sx, sy, sz), one, zero = (
        np.cos(angles),
        np.sin(angles),
        np.ones(angles.shape[1]),
        np.zeros(angles.shape[1]),
    )
    rows = {
        "x": [[one, zero, zero], [zero, cx, -sx], [zero, sx, cx]],
        "y": [[cy, zero, sy], [zero, one, zero], [-sy, zero, cy]],
        "z": [[cz, -sz, zero], [sz, cz, zero], [zero, zero, one]],
    }
    x, y, z = (np.moveaxis(np.array(rows[axis]), 2, 0) for axis in "xyz")
    return y @ x @ z


# ---------------------------------------------------------------------------------------- clips

# Joint -> its parent and how many numbers of a frame are its own: a quaternion, or an angle about z.
CLIP_JOINTS: dict[str, tuple[str | None, int]] = {
    "root": (None, 4), "chest": ("root", 4), "neck": ("chest", 4),
    "right_hip": ("root", 4), "right_knee": ("right_hip", 1), "right_ankle": ("right_knee", 4),
    "right_shoulder": ("chest", 4), "right_elbow": ("right_shoulder", 1),
    "left_hip": ("root", 4), "left_knee": ("left_hip", 1), "left_ankle": ("left_knee", 4),
    "left_shoulder": ("chest", 4), "left_elbow": ("left_shoulder", 1),
}  # fmt: skip
SEAM_SPEED = 150.0  # degrees per second
FRAME_NUMBERS = 4 + sum(numbers for _, numbers in CLIP_JOINTS.values())
# Clip axes (forward, up, right) to ours (left, up, forward).
TO_OURS = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


@dataclass(frozen=True, eq=False)
class Clip:
    """Times (t,) in seconds from 0, height of the root (t,) in metres, rotations relative to the parent in our axes."""

    times: np.ndarray
    height: np.ndarray
    joints: dict[str, Rotation]
    wraps: bool

    def at(self, times: np.ndarray) -> tuple[np.ndarray, dict[str, Rotation]]:
        """Height (n,) and each joint's rotation in the world at `times` >= 0: the clip over and over where it wraps,
        and forth and back where it does not."""
        length = self.times[-1]
        if self.wraps:
            times = np.mod(times, length)
        else:
            times = length - np.abs(np.mod(times, 2 * length) - length)
        world: dict[str, Rotation] = {}
        for name, (parent, _) in CLIP_JOINTS.items():
            local = Slerp(self.times, self.joints[name])(np.clip(times, 0, length))
            world[name] = local if parent is None else world[parent] * local
        return np.interp(times, self.times, self.height), world


def read_clip(path: Path) -> Clip:
    """Read a clip. Raises DataError naming the file, the frame and what was expected."""
    path = Path(path)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such motion clip; {_WHERE}") from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: motion clip cannot be read ({error}), expected JSON of DeepMimic's humanoid"
        ) from error
    if not isinstance(stored, dict) or not isinstance(stored.get("Frames"), list):
        raise DataError(f"{path}: motion clip has no field 'Frames', expected a list of frames")
    if stored.get("Loop") not in ("wrap", "none"):
        raise DataError(f"{path}: motion clip's field 'Loop' is {stored.get('Loop')!r}, expected 'wrap' or 'none'")
    if len(stored["Frames"]) < 2:
        raise DataError(f"{path}: motion clip has {len(stored['Frames'])} frames, expected at least 2")
    for number, frame in enumerate(stored["Frames"]):
        count = len(frame) if isinstance(frame, list) else type(frame).__name__
        if count != FRAME_NUMBERS:
            raise DataError(
                f"{path}: frame {number} has {count} numbers, expected {FRAME_NUMBERS} (DeepMimic's humanoid)"
            )
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in frame):
            raise DataError(f"{path}: frame {number} has an entry that is not a finite number")
    numbers = np.array(stored["Frames"], dtype=float)
    if (numbers[:-1, 0] <= 0).any():
        short = int((numbers[:-1, 0] <= 0).argmax())
        raise DataError(f"{path}: frame {short} lasts {numbers[short, 0]:g} seconds, expected more than 0")
    joints, column = {}, 4
    for name, (_, count) in CLIP_JOINTS.items():
        own = numbers[:, column : column + count]
        column += count
        if count == 4:
            length = np.linalg.norm(own, axis=1)
            if (np.abs(length - 1) > 0.5).any():  # PyBullet's kick has one of length 0.58
                worst = int(np.abs(length - 1).argmax())
                raise DataError(
                    f"{path}: frame {worst}: the quaternion of {name} has length {length[worst]:.2f}, expected about 1"
                )
            turned = Rotation.from_quat(own[:, [1, 2, 3, 0]]).as_matrix()
        else:
            turned = Rotation.from_rotvec(own * [[0.0, 0.0, 1.0]]).as_matrix()
        joints[name] = Rotation.from_matrix(TO_OURS @ turned @ TO_OURS.T)
    times, height, wraps = np.concatenate([[0], np.cumsum(numbers[:-1, 0])]), numbers[:, 2], stored["Loop"] == "wrap"
    if wraps:  # back to the first frame no faster than SEAM_SPEED: the clips' ends do not quite meet
        seam = max((r[-1].inv() * r[0]).magnitude() for r in joints.values())
        times = np.append(times, times[-1] + max(numbers[0, 0], seam / math.radians(SEAM_SPEED)))
        height = np.append(height, height[0])
        joints = {name: Rotation.concatenate([r, r[0]]) for name, r in joints.items()}
    return Clip(times, height, joints, wraps)


_WHERE = (
    "expected the folder data/motions of PyBullet's data (pip install pybullet, or name a folder with "
    "'--source' or VADER_MOTIONS)"
)


def clip_folder(source: Path | str | None = None) -> Path:
    """Where the clips are: `source`, $VADER_MOTIONS, or in the installed package `pybullet_data`, which is not
    imported. Raises DataError where there is no such folder."""
    source = source or os.environ.get("VADER_MOTIONS")
    if source:
        folder = Path(source)
    else:
        package = find_spec("pybullet_data")
        if package is None or not package.submodule_search_locations:
            raise DataError(f"motion clips humanoid3d_*.txt: package pybullet_data is not installed; {_WHERE}")
        folder = Path(next(iter(package.submodule_search_locations))) / "data" / "motions"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of motion clips; {_WHERE}")
    return folder
