"""What `.ci/device --pack` gathers is what was there, weighs what it says, and is refused where it is too much."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.benchmarks import bundle
from tests.tiny import balls, tiny_experiment
from vader.data import load_set, prepare
from vader.data.pipeline import SetWriter, prepare_set
from vader.data.sets import furniture
from vader.settings.profiles import experiment
from vader.store.weights import vgg_features, vgg_layers, vgg_relu_indices

CI_DEVICE = bundle.ROOT / ".ci" / "device"
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    """A set of furniture as far as its identity goes, on disk: balls of 16 x 16 pixels."""
    config = tiny_experiment().data
    config = dataclasses.replace(config, name="furniture_chairs", num_objects=2, heldout_objects=1)
    writer = SetWriter(config, {"rendering": furniture.rendering()}, tmp_path_factory.mktemp("prepared"))
    made = balls(SimpleNamespace(data=config), 2, 1)
    for one in made:
        writer.write(one)
    return config, writer.finish([one.key for one in made])


@pytest.fixture
def vgg(tmp_path, monkeypatch):
    """A random VGG-16 of 1/1024ths, which float16 holds, as the one that is found."""
    state = vgg_layers("vgg16").state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randint(-9, 10, x.shape, generator=generator) / 1024 for name, x in state.items()}
    (tmp_path / "found").mkdir()
    save_file(state, tmp_path / "found" / "vgg16_features.safetensors")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path / "found"))
    return state


@pytest.fixture
def packing(small_set, monkeypatch):
    """`bundle.main` on the small set, beside code of 1,000 bytes, with a network of few bytes."""
    config, data = small_set
    monkeypatch.setattr(bundle, "prepare", lambda asked: data)
    monkeypatch.setattr(bundle, "experiment_named", lambda profile, name: SimpleNamespace(data=config))
    monkeypatch.setattr(bundle, "code_files", lambda: {"a.py": 400, "reports/b.json": 600})
    monkeypatch.setattr(bundle, "network_state", lambda: {"0.weight": torch.zeros(4, dtype=torch.float16)})
    return bundle.main


def unpacked(folder: Path, work: Path, **environment: str) -> dict[str, str]:
    """Where `.ci/device --from folder` has the run find data and weights: a stand-in for Python writes that down."""
    work.mkdir(exist_ok=True)
    stand_in = work / "python"
    stand_in.write_text(f'#!/bin/sh\nenv > "{work}/environment"; echo "$@" > "{work}/arguments"\n')
    stand_in.chmod(0o755)
    variables = {name: value for name, value in os.environ.items() if not name.startswith("VADER_")} | environment
    variables |= {"PYTHON": str(stand_in)}
    subprocess.run(["bash", str(CI_DEVICE), "--from", str(folder), "--tiny"], env=variables, check=True)
    assert (work / "arguments").read_text().split() == ["-m", "tests.benchmarks.device", "--tiny"]
    return dict(line.split("=", 1) for line in (work / "environment").read_text().splitlines() if "=" in line)


@needs_bash
def test_views_come_out_of_a_bundle_bit_by_bit_under_the_same_digest(packing, small_set, tmp_path, capsys):
    config, whole = small_set
    assert packing([str(tmp_path / "bundle")]) == 0
    weighed, told = json.loads((tmp_path / "bundle" / "bundle.json").read_text()), capsys.readouterr().out
    place = whole.folder.name
    expected = {f"{place}, views", f"{place}, cameras and facts", "weights"}
    assert weighed["bytes"].keys() == expected and all(part in told for part in [*expected, "code", "together, of 64"])
    files = [f for f in (tmp_path / "bundle").rglob("*") if f.is_file() and f.name != "bundle.json"]
    assert sum(weighed["bytes"].values()) == sum(f.stat().st_size for f in files)
    assert weighed["sets"][config.name] == {"digest": whole.digest, "pixels": whole.pixel_checksum, "objects": 3}

    data = tmp_path / "data"
    seen = unpacked(tmp_path / "bundle", tmp_path / "machine", VADER_DATA=str(data))
    assert seen["VADER_WEIGHTS"] == str(tmp_path / "bundle" / "weights")
    there = load_set(data / place)
    assert (there.digest, there.pixel_checksum) == (whole.digest, whole.pixel_checksum)
    for ours, theirs in zip(there, whole, strict=True):
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.masks, theirs.masks)
        assert torch.equal(ours.cameras.world_to_camera, theirs.cameras.world_to_camera)
        assert torch.equal(ours.cameras.intrinsics, theirs.cameras.intrinsics)

    shutil.rmtree(data / place / "objects")  # what is there is left as it is, a copy that broke off is made again
    (data / f".{place}").mkdir()
    unpacked(tmp_path / "bundle", tmp_path / "machine", VADER_DATA=str(data))
    assert [file.name for file in (data / place).iterdir()] == ["manifest.json"]
    shutil.rmtree(data / place)
    unpacked(tmp_path / "bundle", tmp_path / "machine", VADER_DATA=str(data))
    assert load_set(data / place).digest == whole.digest and not (data / f".{place}").exists()


def test_a_machine_without_catalogues_finds_the_views_by_their_settings(packing, small_set, tmp_path, monkeypatch):
    config, whole = small_set
    assert packing([str(tmp_path)]) == 0
    monkeypatch.setattr(furniture, "read_catalogues", in_vain)
    found = prepare(config, root=tmp_path / "data")
    assert found.folder == tmp_path / "data" / whole.folder.name and found.digest == whole.digest
    identity = (config, {"rendering": furniture.rendering()}, {one.key: one.key for one in whole})
    again = prepare_set(*identity, in_vain, root=tmp_path / "data")  # with catalogues, nothing is rendered either
    assert again.folder == found.folder and again.pixel_checksum == whole.pixel_checksum


def in_vain(source):
    raise furniture.CatalogueNotFound("there is none")


def test_what_is_over_the_limit_is_refused_with_the_way_out(packing, tmp_path, monkeypatch, capsys):
    assert packing([str(tmp_path)]) == 0
    size = sum(json.loads((tmp_path / "bundle.json").read_text())["bytes"].values()) + 1000
    assert packing([str(tmp_path), "--limit-mib", repr(size / bundle.MIB)]) == 0  # just as much
    capsys.readouterr()
    assert packing([str(tmp_path), "--limit-mib", repr((size - 1) / bundle.MIB)]) == 1
    said = capsys.readouterr().err
    assert "together 0.0, expected at most" in said and "without reports is 0.0 MiB smaller" in said
    assert not (tmp_path / "bundle.json").exists()
    monkeypatch.setattr(bundle, "prepare", None)  # what cannot fit is refused before anything is rendered
    assert packing([str(tmp_path), "--limit-mib", repr(1000 / bundle.MIB)]) == 1
    assert "the bundle has 0.0 MiB and the code 0.0" in capsys.readouterr().err


@needs_bash
def test_a_folder_that_was_not_packed_to_the_end_is_refused(tmp_path):
    for arguments, said in (
        (["--from", str(tmp_path)], f"--from: {tmp_path} holds no bundle.json"),
        (["--from"], "--from: expected a folder"),
        (["--pack"], "--pack: expected a folder"),
        (["--pack", "--no-meshes"], "--pack: expected a folder"),
    ):
        done = subprocess.run(["bash", str(CI_DEVICE), *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(said)


def test_meshes_travel_or_not(small_set, packing, tmp_path, monkeypatch, capsys):
    trimesh = pytest.importorskip("trimesh")
    _, whole = small_set
    for one in whole:
        trimesh.creation.box().export(tmp_path / f"{one.key}.ply")
    meshed = tuple(dataclasses.replace(one, mesh=tmp_path / f"{one.key}.ply") for one in whole)
    data = dataclasses.replace(whole, sequences=meshed)
    monkeypatch.setattr(bundle, "prepare", lambda asked: data)
    for options, there in (([], 3), (["--no-meshes"], 0), ([], 3)):
        assert packing([str(tmp_path / "bundle"), *options]) == 0
        assert len(list((tmp_path / "bundle").rglob("mesh.xz"))) == there
        packed = load_set(tmp_path / "bundle" / "data" / whole.folder.name)
        assert packed.digest == whole.digest and all((one.mesh is not None) == bool(there) for one in packed)
    limit = (sum(json.loads((tmp_path / "bundle" / "bundle.json").read_text())["bytes"].values()) + 900) / bundle.MIB
    capsys.readouterr()
    assert packing([str(tmp_path / "bundle"), "--limit-mib", repr(limit)]) == 1
    assert "--no-meshes saves 0.0" in capsys.readouterr().err


def test_videos_and_unknown_sets_are_refused_in_one_sentence(packing, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bundle, "prepare", lambda asked: object())
    assert packing([str(tmp_path), "people_heads"]) == 2
    assert "'people_heads' of profile 'gpu': expected pictures of objects" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(bundle, "network_state", dict)
    assert bundle.main([str(tmp_path), "furniture_chair"]) == 2
    assert capsys.readouterr().err.startswith("--pack: data set 'furniture_chair' is unknown")


def test_the_network_travels_in_half_the_bytes_and_ends_where_training_does(vgg, tmp_path, monkeypatch):
    state, last = bundle.network_state(), vgg_relu_indices("vgg16")[-1]
    assert max(int(name.split(".")[0]) for name in state) == last - 1
    assert all(x.dtype == torch.float16 for x in state.values())
    whole = vgg_features("vgg16")
    save_file(state, tmp_path / "vgg16_features.safetensors")
    monkeypatch.setenv("VADER_WEIGHTS", str(tmp_path))
    half = vgg_features("vgg16")
    assert len(half) == len(whole) == last + 1
    assert all(torch.equal(a, b) for a, b in zip(half.parameters(), whole.parameters(), strict=True))
    assert load_file(tmp_path / "vgg16_features.safetensors").keys() == state.keys()


def test_code_is_what_is_tracked_and_there(tmp_path):
    git = ["git", "-c", "user.email=a@b", "-c", "user.name=a", "-C", str(tmp_path)]
    for name, text in {"a.py": "12", "b.py": "3", "c.txt": "456", ".gitignore": "ignored\n"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "ignored").write_text("no")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "a.py", "b.py", ".gitignore"], check=True)
    (tmp_path / "b.py").unlink()  # as a sparse checkout has it
    assert bundle.code_files(tmp_path) == {"a.py": 2, "c.txt": 3, ".gitignore": 8}


@pytest.mark.parametrize("name", ["furniture_chairs", "furniture_tables"])
def test_furniture_of_the_gpu_profile_is_the_laptops_with_more_pixels(name):
    large, small = experiment("gpu", name), experiment("laptop", name)
    changed = {
        field.name
        for field in dataclasses.fields(large.data)
        if getattr(large.data, field.name) != getattr(small.data, field.name)
    }
    assert changed == {"resolution"} and large.data.resolution == 128
    views = large.data.train_views + large.data.heldout_views
    real = min(large.evaluation.real_views, views) * large.data.num_objects
    assert real >= large.evaluation.kid_subset_size
