"""Objaverse: GLB files, lists and captions laid out here as its package leaves them, filtered and drawn; and pictures
as objaverse-xl's script leaves them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.formats.rendered import World, check_in_its_place, orbit, pictured, rigid_inverse
from tests.data.formats.test_models import glb, quad
from vader.commands import main as vader
from vader.data import prepare
from vader.data.formats.shared.normalise import hull_iou
from vader.data.meshes.raycast import mesh, render
from vader.data.prepared import DataError
from vader.data.sets.objaverse import FEW_POLYGONS, NO_COLOUR
from vader.data.sets.own import experiment_named
from vader.data.synthetic.factors import draw
from vader.data.synthetic.shapes import build
from vader.settings.checks import ConfigError
from vader.settings.profiles import experiment

pytest.importorskip("trimesh", reason="extra 'data'")
CONFIG = experiment("smoke", "objaverse").data
UIDS = [f"{i:02x}" * 16 for i in range(1, 9)]
TABLES, GREY, LOW, WHITE, CUT = UIDS[:4], UIDS[4], UIDS[5], UIDS[6], UIDS[7]
CAPTION = "A green and white rifle, or a table."


def table(index: int, materials=(), coloured: bool = True) -> bytes:
    """A procedural table as GLB; colours of vertices are linear light there."""
    solid = mesh(build("tables", draw("tables", 0, index)))
    part = {"POSITION": solid.vertices.astype(np.float32), "indices": solid.faces.ravel().astype(np.uint32)}
    if coloured:
        srgb = solid.visual.vertex_colors[:, :3] / 255
        part["COLOR_0"] = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)
    return glb([part | ({"material": 0} if materials else {})], materials)


def write_packed(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        json.dump(content, stream)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    base = tmp_path_factory.mktemp("objaverse") / "hf-objaverse-v1"
    red = {"pbrMetallicRoughness": {"baseColorFactor": [0.6, 0.05, 0.05, 1]}}
    contents = {uid: table(i) for i, uid in enumerate(TABLES)} | {
        TABLES[3]: table(3, [red], coloured=False),
        GREY: table(4, [{"pbrMetallicRoughness": {"baseColorFactor": [0.4, 0.4, 0.4, 1]}}], coloured=False),
        LOW: glb([quad(COLOR_0=np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], np.float32))]),
        WHITE: table(5, coloured=False),
        CUT: table(6)[:5000],
    }
    for n, (uid, content) in enumerate(contents.items()):
        file = base / "glbs" / f"000-{n % 2:03d}" / f"{uid}.glb"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (base / "glbs" / "000-000" / f"{'ab' * 16}.glb.tmp").write_bytes(b"half")
    (base / "glbs" / "000-000" / f"{'cd' * 32}.glb").write_bytes(contents[TABLES[0]])  # a hash of objaverse-xl
    write_packed(base / "object-paths.json.gz", {uid: f"glbs/000-000/{uid}.glb" for uid in [*UIDS, "ee" * 16]})
    about = {
        uid: {"uid": uid, "name": f"Table {i}", "license": ["by", "cc0", "by-nc", "by-sa"][i % 4],
              "tags": [{"name": "wood"}], "categories": [{"name": "furniture-home"}], "faceCount": None,
              "isAgeRestricted": False}
        for i, uid in enumerate(UIDS)
    }  # fmt: skip
    about[TABLES[1]] = {"uid": TABLES[1], "license": "cc0", "tags": None, "categories": None, "faceCount": None}
    write_packed(base / "metadata" / "000-000.json.gz", {u: about[u] for u in UIDS[::2]})
    write_packed(base / "metadata" / "000-001.json.gz", {u: about[u] for u in UIDS[1::2] if u != TABLES[3]})
    write_packed(base / "lvis-annotations.json.gz", {"table": TABLES[:1], "aerosol_can": ["ee" * 16]})
    rows = [f'{TABLES[0]},"{CAPTION}"', f"{TABLES[1]},A stool.", f"{'cd' * 32},Never joined.", f"{TABLES[1]},A desk."]
    (base / "Cap3D_automated_Objaverse_full.csv").write_text("\n".join(rows) + "\n")
    return base.parent


@pytest.fixture(autouse=True)
def _root(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))


def test_models_are_filtered_drawn_and_described(source, capsys):
    command = ["data", "objaverse", "--profile", "smoke", "--workers", "1", "--source", str(source)]
    assert vader(command) == 0
    said = capsys.readouterr().out
    assert "found 10 objects x 16 views (the paper: 300,000 x 6), kept 4\n" in said
    data = prepare(CONFIG)
    assert {s.key for s in data} == set(TABLES) and (data.train_views, data.heldout_views) == (12, 4)
    for found in data:
        index = TABLES.index(found.key)
        images, masks = render(build("tables", draw("tables", 0, index)), found.cameras, 2)
        ours, theirs = (m.numpy() >= 128 for m in (found.masks, masks))
        assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9, "as a ray caster sees the same shape"
        assert hull_iou(found.cameras, found.masks, [0, 8]) >= 0.95 and found.mesh is not None
        if index != 3:  # dark colours are lifted, and lights are not the same, but what is where is
            pixels = [x[ours & theirs].float().numpy().ravel() for x in (found.images, images)]
            assert np.corrcoef(*pixels)[0, 1] > 0.9
    about = {s.key: s.attributes for s in data}
    assert [about[uid]["licence"] for uid in TABLES] == ["by", "cc0", "by-nc", None], "kept for each object"
    assert [about[uid]["category"] for uid in TABLES] == ["table", None, "furniture-home", None]
    assert (
        about[TABLES[0]]["name"] == "Table 0" and about[TABLES[0]]["tags"] == ["wood"] and not about[TABLES[1]]["tags"]
    )
    assert {s.key: s.caption for s in data} == dict(zip(TABLES, [CAPTION, "A desk.", None, None], strict=True))
    report = json.loads((data.folder / "filter.json").read_text())
    dropped = report["dropped_objects"]
    assert dropped[NO_COLOUR].keys() == {GREY, WHITE} and dropped[FEW_POLYGONS].keys() == {LOW}
    assert "2 polygons, expected at least 100" in dropped[FEW_POLYGONS][LOW]
    assert dropped["download broke off"].keys() == {f"{'ab' * 16}.glb.tmp"}
    assert dropped["name is no uid"].keys() == {f"{'cd' * 32}.glb"}
    assert dropped["cannot be used"].keys() == {CUT} and "expected a whole GLB" in dropped["cannot be used"][CUT]
    assert (report["listed_but_not_there"], report["without_licence"]) == (1, 1)
    assert experiment_named("smoke", "objaverse").reconstruction.foreground_weight == 0, "as in Table 5"


def test_a_filter_is_no_fault_but_a_broken_file_is(source, tmp_path):
    with pytest.raises(DataError, match=f"{'ab' * 16}.glb.tmp: a download that broke off, expected {'ab' * 16}.glb"):
        prepare(CONFIG, source=source, workers=1, strict=True)
    for name, content in ((TABLES[0], table(0)), (LOW, glb([quad()]))):
        file = tmp_path / "a" / "glbs" / "000-000" / f"{name}.glb"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    data = prepare(CONFIG, source=tmp_path / "a", workers=1, strict=True)
    assert [s.key for s in data] == [TABLES[0]]
    (file.parent / f"{CUT}.glb").write_bytes(table(6)[:5000])
    with pytest.raises(DataError, match=f"{CUT}.glb: object '{CUT}': .*expected a whole GLB"):
        prepare(CONFIG, source=tmp_path / "a", workers=1, strict=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata/000-000.json.gz", b"broken", "000-000.json.gz: cannot be read, expected JSON in a gzip file"),
        ("lvis-annotations.json.gz", gzip.compress(b"[1]"), "lvis-annotations.json.gz: holds a list, expected a dict"),
        ("object-paths.json.gz", gzip.compress(b"{}")[:9], "object-paths.json.gz: cannot be read"),
        (
            "Cap3D_a.csv",
            b"uid,a caption, with a comma\n",
            "Cap3D_a.csv: row 1 has 3 fields, expected a uid and a caption",
        ),
    ],
    ids=["not gzip", "a list", "cut off", "a comma"],  # gzip writes the time, and workers must agree on names
)
def test_broken_lists_are_named(tmp_path, name, content, message):
    for file, data in ((f"glbs/000-000/{TABLES[0]}.glb", glb([quad()])), (name, content)):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(data)
    with pytest.raises(DataError, match=message):
        prepare(CONFIG, source=tmp_path)


def test_a_folder_of_nothing_two_files_of_captions_and_near_cameras_are_said(tmp_path, source):
    with pytest.raises(DataError, match="data set objaverse: no objects, expected glbs/<folder>/<uid>.glb"):
        prepare(CONFIG, source=tmp_path)
    (tmp_path / "glbs").mkdir()
    with pytest.raises(DataError, match="no GLB files named by their uid"):
        prepare(CONFIG, source=tmp_path)
    (tmp_path / "glbs" / f"{TABLES[0]}.glb").write_bytes(glb([quad()]))
    for name in ("Cap3D_a.csv", "cap3D_b.csv"):
        (tmp_path / name).write_text(f"{TABLES[0]},A table.\n")
    with pytest.raises(DataError, match="2 files of captions, .* expected one"):
        prepare(CONFIG, source=tmp_path)
    with pytest.raises(ConfigError, match="camera_distance is 1.0, expected more than"):
        prepare(CONFIG.__class__(**{**vars(CONFIG), "camera_distance": 1.0}), source=source)


def test_pictures_of_objaverse_xl_are_read_back(tmp_path):
    """512 pixels there, 64 here: f is 35 / 32 of the width. Poses are world to camera with Blender's axes, z up."""
    world = World([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], scale=2.0)
    truth = pictured(orbit(12, 64, 64, 64 * 35 / 32), index=1)
    for uid in UIDS[:2]:
        (tmp_path / uid).mkdir()
        for i, pose in enumerate(world.camera_to_world(truth.cameras)):
            rgba = np.dstack([truth.images.numpy()[i], truth.masks.numpy()[i]])
            Image.fromarray(rgba).save(tmp_path / uid / f"{i:03d}.png")
            np.save(tmp_path / uid / f"{i:03d}.npy", (np.diag([1.0, -1, -1, 1]) @ rigid_inverse(pose))[:3])
    (tmp_path / UIDS[1] / "004.npy").write_bytes(b"broken")
    Image.new("RGBA", (64, 64)).save(tmp_path / UIDS[1] / "007.png")  # nothing was drawn
    data = prepare(CONFIG, source=tmp_path, workers=1)
    assert [len(s) for s in data] == [10, 10] and len(data.split("test")) == 1
    by_key = {s.key: s for s in data}
    broken = [i for i in range(12) if i not in (4, 7)]
    for uid, there in ((UIDS[0], [i * 12 // 10 for i in range(10)]), (UIDS[1], broken)):
        order = [there[i] for i in (0, 1, 2, 3, 4, 6, 7, 8, 9, 5)]
        check_in_its_place(by_key[uid], truth, world, order)
        blocks = truth.images.numpy().reshape(12, 32, 2, 32, 2, 3).mean((2, 4))[order]
        assert np.abs(by_key[uid].images.numpy() - blocks).max() <= 1
    reasons = by_key[UIDS[1]].attributes["left_out"]
    assert "pose cannot be read" in reasons["004.png"] and "mask is empty" in reasons["007.png"]
