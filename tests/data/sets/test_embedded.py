"""The sets that come with the package: whole, small, attributed, and found before anything is rendered."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from vader import training
from vader.commands import data as command
from vader.commands import main as vader
from vader.data import DataError, ShardedSet, load_set, open_set, prepare, prepared
from vader.data.formats import sweethome3d
from vader.data.formats.sweethome3d import CatalogueNotFound
from vader.data.meshes import render as mesh_render
from vader.data.pipeline import pack_set
from vader.data.prepared import EMBEDDED
from vader.data.sets import furniture
from vader.diffusion.text import embeddings_file
from vader.settings.diffusion import TextConfig
from vader.settings.experiment import DataConfig
from vader.settings.profiles import experiment
from vader.store.paths import reference_runs_dir

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("furniture_chairs", "furniture_tables")
MEGABYTE = 10**6


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_FURNITURE", str(tmp_path / "nonexistent"))
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sweethome3d, "INSTALLED", tmp_path / "nowhere")


@pytest.fixture(scope="module")
def sets():
    return {name: load_set(*EMBEDDED.glob(f"{name}-*")) for name in NAMES}


# ------------------------------------------------------------------------------------------------ what is there


@pytest.mark.parametrize("name", NAMES)
def test_the_laptop_profile_needs_no_models_and_writes_nothing(name, sets, tmp_path, monkeypatch):
    monkeypatch.setattr(furniture, "read_catalogues", lambda *_: pytest.fail("looked for models"))
    config = experiment("laptop", name).data
    data = prepare(config)
    assert data.embedded and data.folder.name == f"{name}-{data.digest[:12]}"
    assert data.pixel_checksum == sets[name].pixel_checksum
    assert (len(data.split("train")), len(data.split("test"))) == (config.num_objects, config.heldout_objects)
    assert all(s.images.shape == (48, 48, 48, 3) and s.mesh.is_file() for s in data)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_they_are_the_pixels_that_the_committed_runs_saw(name, sets):
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in reference_runs_dir().glob(f"{name}-*/record.json")]
    records = [run["pixels"] for run in runs if "pixels" in run]
    assert records
    assert all(record["checksum"] == sets[name].pixel_checksum for record in records)
    settings = json.loads(next(reference_runs_dir().glob(f"{name}-autodecoder-*/settings.json")).read_text())
    assert settings["settings"]["data"] == sets[name].digest


def test_they_measure_at_most_eight_megabytes():
    assert sum(file.stat().st_size for file in EMBEDDED.rglob("*") if file.is_file()) <= 8 * MEGABYTE
    assert {folder.name.rpartition("-")[0] for folder in EMBEDDED.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_object_is_attributed_to_its_creator_with_a_licence(name, sets):
    pages = [sets[name].folder / "ATTRIBUTION.md", ROOT / "data_cards" / "ATTRIBUTION_furniture.md"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        cells = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")
        ]
        rows = {row[0]: row for row in cells if len(row) == 8}
        for sequence in sets[name]:
            facts = sequence.attributes
            row = rows[facts["base_model"]]
            assert row[2] == facts["creator"].replace("|", "\\|") != "" and row[5] == sequence.split
            assert row[3] == " ".join(facts["licence"].split())
            assert re.match("Public domain|Creative Commons Attribution 3.0", row[3])
        for licence in ("publicdomain/zero/1.0", "licenses/by/3.0", "licenses/by/3.0/us"):
            assert f"https://creativecommons.org/{licence}/" in text
        assert "is a change in the sense of their licences" in text.replace("\n", " ")
    assert set(rows) >= {s.attributes["base_model"] for s in sets[name]}


@pytest.mark.parametrize("name", NAMES)
def test_the_data_card_has_digest_checksum_and_licence(name, sets):
    card = (ROOT / "data_cards" / f"{name}.md").read_text(encoding="utf-8")
    assert sets[name].digest in card and sets[name].pixel_checksum in card and "CC0" in card
    files = [file for file in sets[name].folder.rglob("*") if file.is_file()]
    assert f"{sum(file.stat().st_size for file in files) / MEGABYTE:.2f} MB" in card


def test_an_installed_package_has_all_their_files():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["vader.data"]
    packaged = {file for pattern in patterns for file in (ROOT / "vader" / "data").glob(pattern) if file.is_file()}
    assert packaged == {file for file in EMBEDDED.rglob("*") if file.is_file()}
    assert "vader/data/embedded/** -text" in (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()


# ------------------------------------------------------------------------------------------------ what is taken


def test_an_own_set_of_the_same_digest_comes_first(sets, tmp_path):
    folder = sets["furniture_tables"].folder
    own = shutil.copytree(folder, tmp_path / "data" / folder.name)
    config = experiment("laptop", "furniture_tables").data
    assert prepare(config).folder == own and not prepare(config).embedded
    (own / "manifest.json").unlink()  # not prepared to its end
    assert prepare(config).embedded


def test_other_sizes_need_the_models_and_the_message_says_so():
    config = dataclasses.replace(experiment("laptop", "furniture_chairs").data, resolution=64, variants=2)
    with pytest.raises(CatalogueNotFound) as caught:
        prepare(config)
    for words in ("furniture_chairs", "resolution is 64, expected 48; variants is 2, expected 1", "apt-get install"):
        assert words in str(caught.value)
    with pytest.raises(CatalogueNotFound, match="as asked for"):
        prepare(experiment("laptop", "furniture_chairs").data, source="/nonexistent/too")


def test_pictures_made_in_another_way_are_not_taken_for_them(monkeypatch):
    monkeypatch.setattr(furniture, "RENDERING_VERSION", 2)
    with pytest.raises(CatalogueNotFound, match="pictures are made in another way"):
        prepare(experiment("laptop", "furniture_tables").data)


def test_shards_are_written_among_ones_own_data(sets, tmp_path):
    pytest.importorskip("webdataset", reason="shards need webdataset (extra 'scale')")
    sharded = prepare(experiment("laptop", "furniture_tables").data, objects_per_shard=30)
    assert isinstance(sharded, ShardedSet) and sharded.folder.parent == tmp_path / "data"
    whole = {s.key: s.pixel_checksum() for s in sets["furniture_tables"]}
    assert {s.key: s.pixel_checksum() for s in sharded.split("test")}.items() <= whole.items()


def test_what_is_made_from_them_goes_among_ones_own_data(sets, tmp_path, monkeypatch):
    data = sets["furniture_tables"]
    assert data.workplace == tmp_path / "data" / data.folder.name
    assert embeddings_file(data, TextConfig()).parent == data.workplace
    own = dataclasses.replace(data, folder=tmp_path / "elsewhere")
    assert own.workplace == own.folder and not own.embedded


def test_the_ranks_of_a_training_open_them(sets, tmp_path, monkeypatch):
    seen = []

    class Ended:
        stdout = type("Nothing", (), {"read1": lambda self, n: b""})()

        def __init__(self, command, **options):
            from vader.training.launch import read_job

            seen.append(read_job(command[command.index("--job") + 1])[1])

        wait, terminate = (lambda self: 0), (lambda self: None)

    monkeypatch.setattr(training.launch.subprocess, "Popen", Ended)
    data = sets["furniture_tables"]
    training.launch.train_on(2, experiment("laptop", "furniture_tables"), data, "autodecoder", "cpu")
    assert seen[0].pixel_checksum == data.pixel_checksum == open_set(data.folder).pixel_checksum


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_says_where_the_set_comes_from(sets, capsys):
    assert vader(["data", "furniture_tables"]) == 0
    said = capsys.readouterr().out
    assert sets["furniture_tables"].digest in said and sets["furniture_tables"].pixel_checksum in said
    assert "comes with the package, nothing was rendered" in said


@pytest.fixture
def tiny(write_catalogue, tmp_path, monkeypatch):
    """A made-up embedded set, and the arguments that render it anew."""
    pytest.importorskip("pyvista", reason="drawing needs pyvista (extra 'data')")
    try:
        mesh_render._require_off_screen()
    except DataError as error:
        pytest.skip(str(error))
    config = DataConfig(
        "furniture_chairs", num_objects=2, heldout_objects=1, train_views=2, heldout_views=1, resolution=12,
        supersampling=1,
    )  # fmt: skip
    source = write_catalogue([{"id": f"Made#chair{i}", "name": "Chair"} for i in range(5)])
    place = pack_set(prepare(config, source=source, workers=1, root=tmp_path / "first"), tmp_path / "embedded").folder
    for module in (prepared, furniture, command):
        monkeypatch.setattr(module, "EMBEDDED", place.parent)
    monkeypatch.setattr(
        command, "experiment_named", lambda *_: dataclasses.replace(experiment("smoke", config.name), data=config)
    )
    return ["data", "furniture_chairs", "--source", str(source), "--workers", "1"]


def test_a_set_that_is_rendered_anew_is_compared_with_the_embedded_one(tiny, capsys, monkeypatch, tmp_path):
    assert vader(tiny) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "data") in said and "all pixels are equal to those of the set that comes with" in said
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "other"))
    monkeypatch.setattr(mesh_render, "MULTISAMPLES", 2)
    assert vader(tiny) == 1
    said = capsys.readouterr()
    assert "digest" in said.out
    assert re.search(r"differ from those that come with the package: .* at most [\d.]+ .object 'Made-chair", said.err)


def test_a_set_of_other_settings_is_said_to_be_another_one(tiny, capsys, monkeypatch):
    config = command.experiment_named("smoke", "x").data
    other = dataclasses.replace(experiment("smoke", config.name), data=dataclasses.replace(config, resolution=11))
    monkeypatch.setattr(command, "experiment_named", lambda *_: other)
    assert vader(tiny) == 0
    assert "other settings or models than those of the set that comes with the package" in capsys.readouterr().out


def test_the_command_packs_a_set(tiny, capsys, tmp_path):
    assert vader([*tiny, "--pack", str(tmp_path / "small")]) == 0
    (folder,) = (tmp_path / "small").iterdir()
    assert f"packed in {folder}" in capsys.readouterr().out
    data = load_set(folder)
    assert torch.equal(data[0].images, load_set(*(tmp_path / "data").iterdir())[0].images)
