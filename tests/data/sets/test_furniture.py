"""The furniture sets: what belongs to them, how they are split, prepared and attributed; on made-up catalogues."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from vader.commands import main as vader
from vader.data import DataError, load_set, prepare
from vader.data.formats import sweethome3d as furniture_catalogue
from vader.data.formats.sweethome3d import CatalogueNotFound, read_catalogues
from vader.data.meshes import render as mesh_render
from vader.data.prepared import data_digest
from vader.data.sequence import object_cameras
from vader.data.sets import furniture
from vader.data.sets.furniture import HELDOUT_MODELS, attribution_page, list_jobs, select, sources, split_models
from vader.settings.checks import ConfigError
from vader.settings.experiment import DataConfig

ROOT = Path(__file__).resolve().parents[3]
TINY = DataConfig(
    "furniture_chairs", num_objects=2, heldout_objects=1, train_views=2, heldout_views=1, resolution=12, supersampling=2
)
CHAIRS = [{"id": f"Made#chair{i}", "name": "Chair"} for i in range(5)]  # of five, one is held out


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("VADER_FURNITURE", raising=False)
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(furniture_catalogue, "INSTALLED", tmp_path / "nowhere")


@pytest.fixture
def drawing():
    """Skips where nothing can be drawn."""
    pytest.importorskip("pyvista", reason="drawing needs pyvista (extra 'data')")
    try:
        mesh_render._require_off_screen()
    except DataError as error:
        pytest.skip(str(error))


# ---------------------------------------------------------------------------------------- selection and split

FALSE_FRIENDS = [
    ("Wheelchair", "Miscellaneous", "Seat"),
    ("Workbench", "Miscellaneous", "Table"),
    ("Abdominal bench", "Miscellaneous", "Sport"),
    ("Seat Leon", "Vehicles", "Car"),
    ("Sofa", "Living room", "Couch, Seat"),
    ("Rocking horse", "Bedroom", ""),
    ("Opened convertible sofa", "Bedroom", "Bed"),
    ("Chairman", "Living room", "Armchairs"),
    ("Desk lamp", "Lights", ""),
    ("Table fan", "Miscellaneous", ""),
    ("Table tennis bat", "Miscellaneous", "Game"),
    ("Pool table", "Miscellaneous", "Billiard"),
    ("Tablet", "Office", "Electronics"),
    ("Desktop computer", "Office", ""),
    ("Sitting girl", "Characters", "Chair"),
]


def test_names_tags_and_rooms_decide_what_belongs(write_catalogue):
    chairs = ["Chair", "Armchair", "Bar stool", "Piano bench", "Chair with cushion", "Folding CHAIR"]
    tables = ["Table", "Desk", "Coffee table", "Table with tablecloth", "Wooden desk"]
    entries = [{"id": f"M#{i}", "name": name} for i, name in enumerate(chairs + tables)]
    entries.append({"id": "M#bag", "name": "Puff", "tags": "Seat,  Chair"})
    entries += [
        {"id": f"M#f{i}", "name": name, "category": room, "tags": tags}
        for i, (name, room, tags) in enumerate(FALSE_FRIENDS)
    ]
    entries.append({"id": "Scopia#changing-table", "name": "Changing table", "category": "Bedroom"})
    catalogues = read_catalogues(write_catalogue(entries))
    assert sorted(m.name for m in select(catalogues, "furniture_chairs")) == sorted([*chairs, "Puff"])
    assert sorted(m.name for m in select(catalogues, "furniture_tables")) == sorted(tables)


def made_up_models(count: int):
    return [
        furniture_catalogue.Model(f"M#{i}", "Chair", "Office", "x", "CC0", Path("a"), "m", (1, 1, 1), (1,) * 9)
        for i in range(count)
    ]


@pytest.mark.parametrize(("count", "heldout"), [(1, 0), (4, 0), (5, 1), (39, 7), (40, 8), (72, 8), (500, 8)])
def test_a_fixed_number_of_base_models_is_held_out(count, heldout):
    models = made_up_models(count)
    split = split_models(models, 0)
    assert len(split["test"]) == heldout <= HELDOUT_MODELS
    assert {m.id for m in split["train"]} | {m.id for m in split["test"]} == {m.id for m in models}
    assert len(split["train"]) + len(split["test"]) == count
    assert split_models(models[::-1], 0) == split  # whatever the order of the catalogue
    if count >= 40:
        assert split_models(models, 1)["test"] != split["test"]


def test_no_base_model_is_on_both_sides_whatever_counts_and_variants():
    models = made_up_models(72)
    heldout = {m.id for m in split_models(models, 0)["test"]}
    config = DataConfig("furniture_chairs", num_objects=64, heldout_objects=8)
    for change in ({}, dict(variants=3, num_objects=150, heldout_objects=20), dict(num_objects=5, heldout_objects=2)):
        jobs = list_jobs(dataclasses.replace(config, **change), models).values()
        assert {job.model.id for job in jobs if job.split == "test"} <= heldout
        assert not {job.model.id for job in jobs if job.split == "train"} & heldout


def test_objects_are_listed_variant_by_variant_and_larger_sets_contain_smaller_ones():
    config = DataConfig("furniture_chairs", num_objects=70, heldout_objects=9, variants=4)
    models = made_up_models(72)
    jobs = list_jobs(config, models)
    kinds = Counter((job.split, job.variant) for job in jobs.values())
    assert kinds == {("train", 0): 64, ("train", 1): 6, ("test", 0): 8, ("test", 1): 1}
    assert [job.split for job in jobs.values()] == ["train"] * 70 + ["test"] * 9
    larger = list_jobs(dataclasses.replace(config, num_objects=200), models)
    assert [key for key in jobs if jobs[key].split == "train"] == list(larger)[:70]
    fewer = list_jobs(dataclasses.replace(config, variants=2), models)
    assert list(fewer) == list(jobs)  # the number of variants only opens room for more


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_objects=65), r"num_objects is 65, expected 0 to 64: 64 base models \(train\) in 1 variant"),
        (dict(heldout_objects=9), r"heldout_objects is 9, expected 0 to 8: 8 base models \(test\) in 1 variant"),
        (dict(num_objects=129, variants=2), r"num_objects is 129, expected 0 to 128"),
        (dict(num_objects=-1), r"num_objects is -1, expected 0 to 64"),
    ],
)
def test_more_objects_than_there_are_is_an_error_that_counts_them(change, message):
    config = dataclasses.replace(DataConfig("furniture_chairs"), **change)
    with pytest.raises(ConfigError, match=f"^data set furniture_chairs: {message}"):
        list_jobs(config, made_up_models(72))


def test_keys_that_collide_are_refused():
    models = [dataclasses.replace(made_up_models(1)[0], id=name) for name in ("M#a b", "M#a-b")]
    with pytest.raises(DataError, match="its key 'M-a-b.v0' is that of 'M#a"):
        list_jobs(DataConfig("furniture_chairs", num_objects=2, heldout_objects=0), models)


# ---------------------------------------------------------------------------------------- preparation


def test_a_set_is_prepared_once_and_then_loaded(write_catalogue, drawing, tmp_path, monkeypatch):
    source = write_catalogue(CHAIRS)
    data = prepare(TINY, source=source, workers=1)
    catalogues = read_catalogues(source)
    jobs = list_jobs(TINY, select(catalogues, TINY.name))
    assert data.folder == tmp_path / "data" / f"{TINY.name}-{data_digest(TINY, sources(catalogues, jobs))[:12]}"
    assert [s.key for s in data] == list(jobs) and [s.split for s in data] == ["train", "train", "test"]
    for s in data:
        assert s.images.shape == (3, 12, 12, 3) and s.masks.amax() == 255 and s.masks.amin() == 0
        assert torch.equal(s.cameras.world_to_camera, object_cameras(TINY, s.key).world_to_camera)
        job = jobs[s.key]
        assert s.attributes["base_model"] == job.model.id and s.attributes["variant"] == 0
        assert s.attributes["creator"] == job.model.creator
        assert s.attributes["licence"] == "Creative Commons Attribution 3.0"
        assert s.caption == "chair" and s.attributes["stretch"] == [1, 1, 1]
        mesh = trimesh.load(s.mesh)
        # 50 x 80 x 40 cm, the height limits the size
        np.testing.assert_allclose(mesh.bounds, 0.9 * np.array([[-5, -8, -4], [5, 8, 4]]) / 8, atol=1e-5)
    table = (data.folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(f"| {e['id']} | Chair | maker of {e['id'][5:]} |" in table for e in CHAIRS)
    monkeypatch.setattr(furniture, "read_obj", lambda *_: pytest.fail("rendered again"))
    assert prepare(TINY, source=source).pixel_checksum == load_set(data.folder).pixel_checksum == data.pixel_checksum
    # nothing but the prepared set: found again by its settings, and by these only
    assert prepare(TINY).pixel_checksum == data.pixel_checksum
    with pytest.raises(CatalogueNotFound):
        prepare(dataclasses.replace(TINY, seed=1))
    with pytest.raises(CatalogueNotFound):
        prepare(TINY, source=tmp_path / "gone")
    monkeypatch.setattr(furniture, "MIN_ALBEDO", 0.5)
    with pytest.raises(CatalogueNotFound):  # rendered otherwise
        prepare(TINY)


def test_an_interrupted_preparation_goes_on_with_the_next_object(write_catalogue, drawing, monkeypatch):
    source, real, rendered = write_catalogue(CHAIRS), furniture.read_obj, []

    def interrupted(archive, member, where):
        if len(rendered) == 2:
            raise KeyboardInterrupt
        rendered.append(member)
        return real(archive, member, where)

    monkeypatch.setattr(furniture, "read_obj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(TINY, source=source, workers=1)
    monkeypatch.setattr(furniture, "read_obj", lambda *args: rendered.append(args[1]) or real(*args))
    assert len(prepare(TINY, source=source, workers=1)) == 3
    assert len(rendered) == len(set(rendered)) == 3


def test_variants_differ_in_colour_and_proportions_and_are_reproducible(write_catalogue, drawing):
    (catalogue,) = read_catalogues(write_catalogue(CHAIRS))
    config = dataclasses.replace(TINY, variants=3, num_objects=12, heldout_objects=0)
    jobs = list_jobs(config, select([catalogue], config.name))
    same_model = [job for job in jobs.values() if job.model == next(iter(jobs.values())).model]
    assert [job.variant for job in same_model] == [0, 1, 2]
    assert all(pickle.loads(pickle.dumps(job)) == job for job in same_model)  # for worker processes
    results = [furniture.render_object(job) for job in same_model]
    shapes = [mesh.extents / mesh.extents[1] for _, mesh in results]
    colours = [mesh.visual.vertex_colors[0].tolist() for _, mesh in results]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(shapes[one] - shapes[other]).max() > 1e-3 and colours[one] != colours[other]
    assert np.abs(shapes[1] / shapes[0] - 1).max() < 1.12 / 0.88 - 1
    assert [s.caption for s, _ in results] == ["chair", None, None]
    again, _ = furniture.render_object(same_model[1])
    assert torch.equal(again.images, results[1][0].images)
    assert not torch.equal(results[0][0].cameras.world_to_camera, results[1][0].cameras.world_to_camera)


def test_the_digest_knows_sources_and_settings_but_no_paths(write_catalogue, tmp_path, monkeypatch):
    def digest(config=TINY, **options):
        catalogues = read_catalogues(write_catalogue(CHAIRS, **options))
        return data_digest(config, sources(catalogues, list_jobs(config, select(catalogues, config.name))))

    first = digest()
    assert digest(file="elsewhere.sh3f") == first
    others = {digest(version="2.0"), digest(catalogue_id="Another"), digest(dataclasses.replace(TINY, resolution=13))}
    others.add(digest(dataclasses.replace(TINY, variants=2)))
    monkeypatch.setattr(furniture, "LIGHT_RIG", {"ambient": 1.0})
    others.add(digest())
    assert len(others | {first}) == 6
    catalogues = read_catalogues(write_catalogue(CHAIRS))
    facts = json.dumps(sources(catalogues, list_jobs(TINY, select(catalogues, TINY.name))))
    assert str(tmp_path) not in facts


# ---------------------------------------------------------------------------------------- bad input


def test_an_entry_whose_model_file_is_gone_is_named_before_rendering(write_catalogue, tmp_path):
    source = write_catalogue(CHAIRS, files={"made/chair3/box.obj": None})
    message = rf"^{source}: entry 'Made#chair3' \(Chair\): the model file 'made/chair3/box.obj' is gone"
    with pytest.raises(DataError, match=message):
        prepare(TINY, source=source)
    assert not (tmp_path / "data").exists()


def test_a_broken_entry_that_is_no_furniture_does_no_harm(write_catalogue):
    source = write_catalogue([*CHAIRS, {"id": "Made#lamp", "name": "Lamp", "width": "wide", "model": None}])
    assert len(select(read_catalogues(source), "furniture_chairs")) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("v 0 0 0\nv 1 0 0\n", "'made/chair0/box.obj' has no faces, expected a mesh"),
        ("v 0 0 zero\n", "'made/chair0/box.obj' line 1 is not valid OBJ"),
        ("v 0 0 0\nv 1 0 0\nv 1 0 1\nf 1 2 3\n", "the model's bounding box measures"),
    ],
)
def test_models_that_cannot_be_used_are_named(write_catalogue, content, message):
    source = write_catalogue(CHAIRS[:1], files={"made/chair0/box.obj": content})
    config = dataclasses.replace(TINY, num_objects=1, heldout_objects=0)
    with pytest.raises(DataError, match=rf"^{source}: entry 'Made#chair0' \(Chair\): {message}"):
        prepare(config, source=source, workers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(variants=0), "variants is 0, expected at least 1"),
        (dict(camera_distance=1.0), "camera_distance is 1.0, expected more than 1.2"),
        (dict(num_objects=5), "num_objects is 5, expected 0 to 4: 4 base models"),
        (dict(name="furniture_tables"), "none of the models of .*made-up.sh3f is named like"),
    ],
)
def test_settings_that_cannot_work_are_refused(write_catalogue, change, message):
    with pytest.raises((ConfigError, DataError), match=f"^data set furniture_[a-z]+: {message}"):
        prepare(dataclasses.replace(TINY, **change), source=write_catalogue(CHAIRS))


def test_a_data_set_that_is_no_furniture_is_refused():
    with pytest.raises(ConfigError, match="'furniture_chair' is not furniture .did you mean 'furniture_chairs'"):
        furniture.prepare(DataConfig("furniture_chair"))


def test_an_unwritable_output_folder_is_named(write_catalogue, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match=rf"^{tmp_path / 'file'}/furniture_chairs-.*not writable"):
        prepare(TINY, source=write_catalogue(CHAIRS), workers=1)


def test_commands_report_errors_in_one_line(write_catalogue, tmp_path, capsys):
    assert vader(["data", "furniture_chairs", "--source", str(tmp_path / "gone")]) == 1
    assert "apt-get install sweethome3d-furniture" in capsys.readouterr().err
    assert vader(["data", "furniture_chairs", "--source", str(tmp_path / "gone"), "--attribution", "x.md"]) == 1
    assert "apt-get install sweethome3d-furniture" in capsys.readouterr().err
    out = tmp_path / "table.md"
    source = str(write_catalogue([*CHAIRS, {"id": "Made#table", "name": "Pipe | table"}]))
    assert vader(["data", "furniture_chairs", "--source", source, "--attribution", str(out)]) == 0
    assert r"| Made#table | Pipe \| table | maker of table |" in out.read_text(encoding="utf-8")
    assert vader(["data", "furniture_chairs", "--source", source, "--attribution", str(tmp_path)]) == 1


# ---------------------------------------------------------------------------------------- the real models


@pytest.fixture
def real_catalogues(monkeypatch):
    monkeypatch.undo()
    try:
        return read_catalogues()
    except CatalogueNotFound as error:
        pytest.skip(f"the Debian package's models are not at hand: {error}")


def test_the_package_has_the_models_the_data_cards_count(real_catalogues):
    for name, train in (("furniture_chairs", 64), ("furniture_tables", 39)):
        models = select(real_catalogues, name)
        split = split_models(models, 0)
        assert (len(split["train"]), len(split["test"])) == (train, 8)
        card = (ROOT / "data_cards" / f"{name}.md").read_text(encoding="utf-8")
        assert f"{train + 8} base models" in card and f"{train} for training" in card


def test_the_attribution_table_is_that_of_the_package(real_catalogues):
    written = (ROOT / "data_cards" / "ATTRIBUTION_furniture.md").read_text(encoding="utf-8")
    assert attribution_page(real_catalogues, *map(DataConfig, sorted(furniture.NAMES))) == written


def test_backs_of_real_chairs_are_behind_their_seats(real_catalogues):
    """Upright, and the front towards +z: what is above the middle lies behind what is below, on nearly all chairs."""
    models = [m for m in select(real_catalogues, "furniture_chairs") if re.fullmatch("(Arm)?[Cc]hair", m.name)][::3]
    behind = []
    for model in models:
        with zipfile.ZipFile(model.catalogue) as archive:
            parts, _ = furniture.read_obj(archive, model.member, model.where)
        parts = furniture.to_canonical(parts, np.reshape(model.rotation, (3, 3)), model.size, np.ones(3), model.where)
        points = np.array(trimesh.sample.sample_surface(furniture.reference_mesh(parts), 2000, seed=0)[0])
        upper = points[:, 1] > np.median(points[:, 1]) + 0.5 * (points[:, 1].max() - np.median(points[:, 1]))
        behind.append(points[upper, 2].mean() < points[~upper, 2].mean())
    assert len(models) >= 10 and np.mean(behind) >= 0.9


def test_the_attribution_table_lists_every_model_with_a_licence():
    """Holds without the package: the committed table is complete in itself."""
    page = (ROOT / "data_cards" / "ATTRIBUTION_furniture.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if re.search(r"\| (train|test) \|", line)]
    assert len(rows) == 64 + 8 + 39 + 8 and len({row[0] for row in rows}) == len(rows)
    for row in rows:
        assert row[2] and re.match("Public domain|Creative Commons Attribution 3.0", row[3]), row
