"""Meshes of the people of `vader.data.sets.people`, dressed and ready to be posed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .people_looks import HAIR_CUTS, Person, albedo, dress
from .people_mesh import BODY_PARTS, HEAD_PARTS, BodyModel, long_hair, parts_of_bones, skin

BUST = 0.35  # metres below the neck that heads are shown with, if the picture reaches so far


@dataclass(frozen=True, eq=False)
class Figure:
    """A person ready to be posed, in metres: only the vertices that some face uses."""

    rest: np.ndarray  # (n, 3)
    joints: np.ndarray  # (b, 3)
    weights: np.ndarray  # (n, b)
    offsets: np.ndarray  # (a, n, 3), of facial actions at full strength
    faces: np.ndarray  # (f, 3)
    labels: np.ndarray  # (f,) uint8, index of the part in `roots`
    colours: np.ndarray  # (n, 3)
    roots: dict[str, str]  # part -> bone
    chin: float  # heights of the bare head
    crown: float
    face: np.ndarray  # (n,) bool: from the hairline to the chin, between the ears

    def restricted(self, chosen: np.ndarray) -> Figure:
        """The vertices (n,) bool alone, without the triangles between them."""
        kept = {name: getattr(self, name)[chosen] for name in ("rest", "weights", "colours", "face")}
        nothing = {"faces": np.empty((0, 3), np.int64), "labels": np.empty(0, np.uint8)}
        return replace(self, offsets=self.offsets[:, chosen], **kept, **nothing)

    def skin(self, strength: np.ndarray, rotation: np.ndarray, joint: np.ndarray) -> np.ndarray:
        """Vertices (n, 3) at strengths (a,) of the facial actions and a pose of the bones."""
        rest = self.rest + np.tensordot(strength, self.offsets, 1)
        return skin(rest, self.weights, self.joints, rotation, joint)


def build(body: BodyModel, who: Person, heads: bool) -> Figure:
    """The mesh of a person: dressed, with hair, cut off below the picture where only the head is shown."""
    bare, joints = body.rest(who.phenotype, who.shapes)
    rest, weights, faces = dress(who, bare, body.faces, body.regions), body.weights, body.faces
    colours, offsets = albedo(who, body.regions, rest[:, 1]), np.stack(list(body.actions.values()))
    roots = HEAD_PARTS if heads else BODY_PARTS
    part_of_bone = parts_of_bones(body.labels, body.parents, roots)
    part_of_vertex = np.stack([weights[:, part_of_bone == k].sum(1) for k in range(len(roots))], axis=1)
    labels = part_of_vertex[faces].sum(1).argmax(1).astype(np.uint8)
    if heads:
        keep = (rest[faces, 1] > joints[body.bone("neck01"), 1] - BUST).any(1)
        faces, labels = faces[keep], labels[keep]
    if who.cut == "long":
        extra, surface = long_hair(bare, body.regions["scalp"], who.length, HAIR_CUTS["long"])
        held = np.zeros((len(extra), weights.shape[1]))
        held[:, body.bone("head")] = 1
        faces = np.concatenate([faces, surface + len(rest)])
        labels = np.append(labels, np.full(len(surface), list(roots).index("head"), np.uint8))
        rest, weights = np.concatenate([rest, extra]), np.concatenate([weights, held])
        colours = np.concatenate([colours, np.tile(who.hair, (len(extra), 1))])
        offsets = np.pad(offsets, ((0, 0), (0, len(extra)), (0, 0)))
    face = np.pad(body.regions["face"] > 0.5, (0, len(rest) - len(bare)))
    used, faces = np.unique(faces, return_inverse=True)
    skull = bare[body.regions["head"] > 0.5, 1]
    return Figure(
        rest=rest[used],
        joints=joints,
        weights=weights[used],
        offsets=offsets[:, used],
        faces=faces.reshape(-1, 3),
        labels=labels,
        colours=colours[used],
        roots=roots,
        chin=skull.min(),
        crown=skull.max(),
        face=face[used],
    )
