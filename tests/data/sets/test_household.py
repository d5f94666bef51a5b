"""Household: what belongs to it, how it is grouped, split, described and prepared; on made-up catalogues."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from vader.commands import main as vader
from vader.data import DataError, prepare
from vader.data.describe import caption
from vader.data.formats import sweethome3d
from vader.data.formats.sweethome3d import CatalogueNotFound, Model, read_catalogues
from vader.data.formats.wavefront import Part
from vader.data.meshes import render as mesh_render
from vader.data.meshes import selection
from vader.data.meshes.selection import Survey, filtered, group_models, near_copies, stem, surface_points, survey
from vader.data.prepared import data_digest
from vader.data.sets import household
from vader.data.sets.household import LARGEST_HELDOUT, list_jobs, sources, split_models
from vader.settings.checks import ConfigError
from vader.settings.experiment import DataConfig
from vader.settings.profiles import experiment

ROOT = Path(__file__).resolve().parents[3]
TINY = DataConfig(
    "household", num_objects=4, heldout_objects=1, train_views=2, heldout_views=1, resolution=12, supersampling=2
)


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("VADER_FURNITURE", raising=False)
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sweethome3d, "INSTALLED", tmp_path / "nowhere")


@pytest.fixture
def drawing():
    """Skips where nothing can be drawn."""
    pytest.importorskip("pyvista", reason="drawing needs pyvista (extra 'data')")
    try:
        mesh_render._require_off_screen()
    except DataError as error:
        pytest.skip(str(error))


def obj(mesh: trimesh.Trimesh) -> str:
    lines = ["mtllib box.mtl", "usemtl front"]
    lines += ["v {:.6f} {:.6f} {:.6f}".format(*vertex) for vertex in mesh.vertices]
    return "\n".join(lines + ["f {} {} {}".format(*(face + 1)) for face in mesh.faces]) + "\n"


SHAPES = {
    "ball": ("Ball", trimesh.creation.icosphere(2)),
    "ring": ("Ring", trimesh.creation.torus(1.0, 0.3, 16, 16)),
    "cone": ("Cone", trimesh.creation.cone(1.0, 2.0, sections=64)),
    "post": ("Post", trimesh.creation.annulus(0.5, 1.0, 1.0, sections=32)),
    "bean": ("Bean", trimesh.creation.capsule(1.0, 0.4, count=[12, 12])),
}
ENTRIES = [{"id": f"Made#{id}", "name": name, "category": "Kitchen"} for id, (name, _) in SHAPES.items()]
FILES = {f"made/{id}/box.obj": obj(mesh) for id, (_, mesh) in SHAPES.items()}


def made_up(entries=(), files=None):
    """Entries and files of the shapes and of more models."""
    return [*ENTRIES, *entries], FILES | (files or {})


def model(id: str, name: str = "Chair", category: str = "Office") -> Model:
    return Model(id, name, category, "x", "CC0", Path("a"), "m", (1, 1, 1), (1,) * 9)


# ---------------------------------------------------------------------------------------- what belongs


def part(triangles: int = 200, colour=(0.5, 0.2, 0.1), extents=(1.0, 1.0, 1.0), **fields) -> Part:
    points = np.random.default_rng(0).random((triangles + 2, 3))
    points[0], points[1] = 0, 1
    faces = np.stack([np.arange(triangles), np.arange(triangles) + 1, np.arange(triangles) + 2], 1)
    return Part("paint", points * extents, faces, np.array(colour), **fields)


def test_filters_are_colour_polygons_and_thickness():
    texture = dict(uv=np.zeros((202, 2)), texture=np.zeros((2, 2, 3), np.uint8))
    assert filtered([part()]) is None
    assert filtered([part(99)])[0] == "few polygons" and filtered([part(50), part(50)]) is None
    for grey in (0.64, 0.7, 0.8):
        assert filtered([part(colour=(grey,) * 3)])[0] == "unpainted"
        assert filtered([part(colour=(grey,) * 3, **texture)]) is None
        assert filtered([part(colour=(grey,) * 3), part(colour=(0.1, 0.1, 0.1))]) is None
    assert filtered([part(colour=(0.9, 0.9, 0.9))]) is None  # white paint
    assert filtered([part(extents=(1, 0.019, 1))])[0] == "thin" and filtered([part(extents=(1, 0.021, 1))]) is None


def test_every_model_is_kept_or_left_out_for_a_reason(write_catalogue):
    bad = {
        "made/torn/box.obj": "v 0 0 0\nf 1 2 3\n",
        "made/lost/box.obj": FILES["made/ball/box.obj"].replace("box.mtl", "gone.mtl"),
        "made/grey/box.obj": FILES["made/ring/box.obj"].replace("usemtl front", "usemtl nothing"),
    }
    more = [{"id": f"Made#{id}", "name": id} for id in ("torn", "lost", "grey", "crate")]  # the crate is the plain box
    more += [{"id": "Made#sheet", "name": "Sheet", "height": "0.5"}]
    entries, files = made_up(more, bad | {"made/sheet/box.obj": FILES["made/ball/box.obj"]})
    found = survey(read_catalogues(write_catalogue(entries, files=files)))
    assert [m.id for m in found.models] == sorted(entry["id"] for entry in ENTRIES)
    reasons = {id: reason for id, (reason, _) in found.dropped.items()}
    assert reasons == {
        "Made#torn": "broken", "Made#lost": "broken", "Made#grey": "unpainted", "Made#crate": "few polygons",
        "Made#sheet": "thin",
    }  # fmt: skip
    assert "line 2 is not valid OBJ" in found.dropped["Made#torn"][1]
    assert "gone.mtl" in found.dropped["Made#lost"][1]
    page = found.page(split_models(found, 0))
    assert page["kept"] + sum(page["dropped"].values()) == len(ENTRIES) + len(more)
    assert set(page["models"]) | set(page["left_out"]) == {f"Made#{id}" for id in SHAPES} | set(reasons)


def test_a_catalogue_of_which_nothing_passes_says_why(write_catalogue):
    source = write_catalogue([{"id": "Made#crate", "name": "Crate"}])
    with pytest.raises(DataError, match="^data set household: none of the models .*passes the filters: 1 few polygons"):
        prepare(TINY, source=source)


# ---------------------------------------------------------------------------------------- groups and split


def test_a_stem_has_no_numbers_units_and_words_of_size():
    families = (
        ("Bill 10€", "Bill 50€"), ("Parking slot 45°", "Parking slot"), ("Concept Sedan 01", "Concept Sedan 02 Sport"),
        ("Small upper cabinet", "Lower corner cabinet"), ("TV", "TV 16:9"), ("Square switch", "Rounded double switch"),
    )  # fmt: skip
    for one, other in families:
        assert stem(one) == stem(other)
    assert len({stem(name) for name in ("Chair", "Armchair", "Chair with cushion", "Desk", "Desk lamp")}) == 5
    assert stem("Small") == "small" and stem("42") == "42"


def surface(mesh: trimesh.Trimesh, seed: str = "s") -> np.ndarray:
    points = surface_points([Part("p", np.array(mesh.vertices), np.array(mesh.faces), np.zeros(3))], 1024, seed)
    return selection._per_axis(points)


def test_points_are_even_on_the_surface():
    points = surface_points([Part("p", *_sphere(), np.zeros(3))], 20_000, "s")
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=0.03)
    np.testing.assert_allclose(points.mean(0), 0, atol=0.02)
    np.testing.assert_allclose((points**2).mean(0), 1 / 3, atol=0.02)


def _sphere():
    mesh = trimesh.creation.icosphere(3)
    return np.array(mesh.vertices), np.array(mesh.faces)


def test_near_copies_are_the_same_shape_up_to_the_scale_of_each_axis():
    surfaces = {id: surface(mesh, id) for id, (_, mesh) in SHAPES.items()}
    stretched = SHAPES["ring"][1].copy().apply_scale([3, 1, 2])
    noisy = SHAPES["cone"][1].subdivide()
    noisy.vertices += np.random.default_rng(0).normal(0, 0.01, noisy.vertices.shape)
    surfaces |= {"ring2": surface(stretched, "other"), "cone2": surface(noisy, "other")}
    assert sorted(near_copies(list(surfaces), surfaces)) == [("cone", "cone2"), ("ring", "ring2")]


def test_names_and_copies_make_groups_together():
    models = [model("a", "Ring"), model("b", "Small ring"), model("c", "Hoop"), model("d", "Cone")]
    ring, cone, ball = (surface(SHAPES[id][1], id) for id in ("ring", "cone", "ball"))
    groups = group_models(models, {"a": ring, "b": ball, "c": ring[::-1], "d": cone})
    assert groups["a"] == groups["b"] == groups["c"] != groups["d"]


names = st.lists(st.tuples(st.integers(0, 40), st.sampled_from("KLOE")), min_size=1, max_size=120)


@settings(max_examples=40, deadline=None)
@given(names, st.integers(0, 5), st.sampled_from([household.HELDOUT_SHARE, 0.6]))
def test_no_group_stands_on_both_sides_and_nothing_is_lost(drawn, seed, share):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(household, "HELDOUT_SHARE", share)
        _check_split(drawn, seed)


def _check_split(drawn, seed):
    models = tuple(model(f"m{i}", f"n{name}", category) for i, (name, category) in enumerate(drawn))
    found = Survey(models, {f"m{i}": f"g{name}" for i, (name, _) in enumerate(drawn)}, {})
    split = split_models(found, seed)
    sides = defaultdict(set)
    for side, members in split.items():
        for m in members:
            sides[found.groups[m.id]].add(side)
    assert all(len(side) == 1 for side in sides.values())
    assert sorted(m.id for side in split.values() for m in side) == sorted(m.id for m in models)
    sizes, held = (Counter(m.category for m in ms) for ms in (models, split["test"]))
    assert all(held[category] <= round(household.HELDOUT_SHARE * sizes[category]) for category in held)
    groups = Counter(found.groups.values())
    assert all(groups[found.groups[m.id]] <= LARGEST_HELDOUT for m in split["test"])
    assert split == split_models(dataclasses.replace(found, models=models[::-1]), seed)


def test_large_groups_train(monkeypatch):
    monkeypatch.setattr(household, "HELDOUT_SHARE", 0.9)
    models = [model(f"m{i}", "chair") for i in range(LARGEST_HELDOUT + 1)]
    models += [model(f"n{i}", "lamp") for i in range(LARGEST_HELDOUT)]
    for seed in range(5):
        split = split_models(Survey(tuple(models), {m.id: m.name for m in models}, {}), seed)
        assert {m.name for m in split["train"]} == {"chair"} and {m.name for m in split["test"]} == {"lamp"}


def test_a_small_set_has_objects_of_every_category():
    models = [model(f"m{i}", f"n{i}", category) for i, category in enumerate("AAAAAAAAAAAABBBBC" * 3)]
    split = split_models(Survey(tuple(models), {m.id: m.id for m in models}, {}), 0)
    config = dataclasses.replace(TINY, num_objects=6, heldout_objects=0)
    chosen = [job.model.category for job in list_jobs(config, split).values()]
    assert Counter(chosen) == {"A": 2, "B": 2, "C": 2}
    more = list_jobs(dataclasses.replace(config, num_objects=20), split)
    assert list(more)[:6] == list(list_jobs(config, split))
    with pytest.raises(ConfigError, match=f"num_objects is 99, expected 0 to {len(split['train'])}: so many models"):
        list_jobs(dataclasses.replace(config, num_objects=99), split)


# ---------------------------------------------------------------------------------------- preparation


@pytest.fixture
def source(write_catalogue, monkeypatch):
    """The five shapes, of which one is held out."""
    monkeypatch.setattr(household, "HELDOUT_SHARE", 0.2)
    return write_catalogue(ENTRIES, files=FILES)


def test_a_set_is_prepared_once_and_then_loaded(source, drawing, monkeypatch):
    data = prepare(TINY, source=source, workers=1)
    assert [s.split for s in data] == ["train"] * 4 + ["test"]
    assert data.digest == data_digest(TINY, sources(read_catalogues(source)))
    for s in data:
        assert s.images.shape == (3, 12, 12, 3) and s.masks.amax() == 255
        a = s.attributes
        assert a["colours"] == ["red"] and a["category"] == "Kitchen" and a["creator"].startswith("maker of")
        adjectives = [word for word in a["shape"] if not word.startswith("on ")]
        stand = next((word for word in a["shape"] if word.startswith("on ")), None)
        assert s.caption == caption(a["name"], a["category"], a["colours"], adjectives, stand)
    [ball] = [s for s in data if s.key == "Made-ball"]
    assert ball.caption == "a round red ball, kitchen"
    page = json.loads((data.folder / "filter.json").read_text(encoding="utf-8"))
    assert page["kept"] == 5 and page["categories"] == {"Kitchen": 5} and not any(page["dropped"].values())
    assert "| Made#cone | Cone | maker of cone |" in (data.folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    monkeypatch.setattr(household, "survey", lambda *_: pytest.fail("surveyed again"))
    assert prepare(TINY, source=source).pixel_checksum == data.pixel_checksum
    # nothing but the prepared set: found again by its settings, and by these only
    assert prepare(TINY).pixel_checksum == data.pixel_checksum
    with pytest.raises(CatalogueNotFound):
        prepare(dataclasses.replace(TINY, seed=1))
    monkeypatch.setattr(household, "VERSION", 99)
    with pytest.raises(CatalogueNotFound):
        prepare(TINY)


def test_the_digest_knows_files_and_rules_but_no_paths(write_catalogue, monkeypatch, tmp_path):
    def digest(**options):
        return data_digest(TINY, sources(read_catalogues(write_catalogue(ENTRIES, **{"files": FILES} | options))))

    first = digest()
    assert digest(file="elsewhere.sh3f") == first
    others = {digest(version="2.0"), digest(files=FILES | {"made/ball/box.mtl": "newmtl front\nKd 0 0 1\n"})}
    monkeypatch.setattr(household, "NEAR_COPY", 0.5)
    assert len(others | {first, digest()}) == 4
    assert str(tmp_path) not in json.dumps(sources(read_catalogues(write_catalogue(ENTRIES, files=FILES))))


def test_settings_that_cannot_work_are_refused_before_any_rendering(source, tmp_path):
    for change, message in (
        (dict(variants=2), "variants is 2, expected 1"),
        (dict(camera_distance=1.0), "camera_distance is 1.0, expected more than 1.2"),
        (dict(num_objects=5), "num_objects is 5, expected 0 to 4"),
        (dict(heldout_objects=2), "heldout_objects is 2, expected 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=f"^data set household: {message}"):
            prepare(dataclasses.replace(TINY, **change), source=source)
    assert not (tmp_path / "data").exists()


def test_without_the_package_one_line_says_how_to_get_it(capsys):
    assert vader(["data", "household"]) == 1
    message = capsys.readouterr().err
    assert "data set household" in message and "apt-get install sweethome3d-furniture" in message


# ---------------------------------------------------------------------------------------- the real models


def test_the_attribution_table_and_the_profile_count_the_same_models():
    """Holds without the package: the committed table is complete in itself."""
    page = (ROOT / "data_cards" / "ATTRIBUTION_household.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if re.search(r"\| (train|test) \|", line)]
    assert len({row[0] for row in rows}) == len(rows)
    counts = Counter(row[-1] for row in rows)
    for name in ("household", "household_text"):
        data = experiment("laptop", name).data
        assert counts == {"train": data.num_objects, "test": data.heldout_objects}
    sides = defaultdict(set)
    for row in rows:
        assert row[2] and re.match("Public domain|Creative Commons Attribution 3.0", row[3]), row
        sides[stem(row[1])].add(row[-1])
    assert all(len(side) == 1 for side in sides.values())  # no name on both sides


def test_the_two_experiments_share_the_first_stage():
    one, other = (experiment("laptop", name) for name in ("household", "household_text"))
    assert (one.data, one.autodecoder, one.reconstruction) == (other.data, other.autodecoder, other.reconstruction)
    assert not one.conditional and other.conditional
    assert one.autodecoder.hash_rows and one.reconstruction.foreground_weight > 0


def test_the_package_has_the_models_that_the_table_lists(monkeypatch):
    monkeypatch.undo()
    try:
        catalogues = read_catalogues()
    except CatalogueNotFound as error:
        pytest.skip(f"the Debian package's models are not at hand: {error}")
    known = {entry["id"] for catalogue in catalogues for entry in catalogue.entries}
    page = (ROOT / "data_cards" / "ATTRIBUTION_household.md").read_text(encoding="utf-8")
    listed = {line.split(" | ")[0].strip("| ") for line in page.splitlines() if re.search(r"\| (train|test) \|", line)}
    assert len(known) == 820 and listed <= known
