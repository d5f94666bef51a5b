"""The procedural sets end to end: prepared, resumed, reproduced elsewhere; their command and their data cards."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from vader.commands import data as command
from vader.commands import main as vader
from vader.data import open_set, prepare
from vader.data.meshes.raycast import HALF_EXTENT, LIGHT_RIG, SPHERE_RADIUS
from vader.data.prepared import DataError, data_digest
from vader.data.sequence import object_cameras
from vader.data.sets import procedural
from vader.data.synthetic.factors import CONTINUOUS, DISCRETE, describe, draw
from vader.settings.checks import ConfigError
from vader.settings.experiment import DataConfig
from vader.settings.profiles import experiment

TINY = DataConfig(
    "procedural_chairs",
    num_objects=2,
    heldout_objects=1,
    train_views=2,
    heldout_views=1,
    resolution=12,
    supersampling=2,
)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_DATA", str(tmp_path))
    return tmp_path


def test_a_set_is_prepared_once_and_then_loaded(root, monkeypatch):
    first = prepare(TINY)
    assert [s.key for s in first] == ["chair-000000", "chair-000001", "chair-000002"]
    assert [s.split for s in first] == ["train", "train", "test"]
    assert first.folder == root / f"procedural_chairs-{data_digest(TINY, procedural.sources(TINY))[:12]}"
    for index, s in enumerate(first):
        assert s.images.shape == (3, 12, 12, 3) and s.masks.shape == (3, 12, 12)
        assert s.caption == describe("chairs", draw("chairs", 0, index))
        assert s.attributes["licence"] == "CC0-1.0"
        assert s.attributes["factors"] == draw("chairs", 0, index)
        assert torch.equal(s.cameras.world_to_camera, object_cameras(TINY, s.key).world_to_camera)
    monkeypatch.setattr(procedural, "render", lambda *_: pytest.fail("rendered again"))
    assert prepare(TINY).pixel_checksum == first.pixel_checksum


@pytest.mark.parametrize("name", ["procedural_chairs", "procedural_tables"])
def test_masks_are_the_projection_of_the_reference_mesh(root, name):
    """Silhouette of the stored mesh, its triangles filled in a 4 times finer image, against the stored masks."""
    config = dataclasses.replace(TINY, name=name, num_objects=1, heldout_objects=0, resolution=32, supersampling=4)
    (sequence,) = prepare(config)
    surface = trimesh.load(sequence.mesh)
    assert np.abs(surface.vertices).max() <= HALF_EXTENT + 1e-6
    assert np.linalg.norm(surface.vertices, axis=1).max() <= SPHERE_RADIUS + 1e-6
    pixels = sequence.cameras.project(torch.tensor(surface.vertices, dtype=torch.float32)).double().numpy()
    y, x = np.mgrid[:128, :128] / 4 + 0.125
    for view, mask in zip(pixels, sequence.masks, strict=True):
        silhouette = np.zeros((128, 128), dtype=bool)
        for a, b, c in view[surface.faces]:
            low, high = np.min([a, b, c], 0), np.max([a, b, c], 0)
            where = np.s_[
                int(max(low[1] * 4 - 1, 0)) : int(high[1] * 4 + 2), int(max(low[0] * 4 - 1, 0)) : int(high[0] * 4 + 2)
            ]
            sides = [
                (q[0] - p[0]) * (y[where] - p[1]) - (q[1] - p[1]) * (x[where] - p[0])
                for p, q in ((a, b), (b, c), (c, a))
            ]
            silhouette[where] |= (np.min(sides, 0) >= 0) | (np.max(sides, 0) <= 0)
        coverage = silhouette.reshape(32, 4, 32, 4).mean((1, 3))
        ours = mask.numpy() / 255
        assert np.minimum(coverage, ours).sum() / np.maximum(coverage, ours).sum() > 0.97


def test_object_pixels_are_bright_and_the_background_is_black(root):
    for s in prepare(TINY):
        assert (s.images[s.masks == 0] == 0).all()
        assert (s.images[s.masks == 255].amax(-1) > 40).all()
        assert 0.03 < s.alphas().mean() < 0.6


def test_objects_do_not_depend_on_how_many_there_are_nor_on_the_other_category(root):
    more = prepare(dataclasses.replace(TINY, num_objects=1, heldout_objects=3))
    for a, b in zip(prepare(TINY), more, strict=False):
        assert torch.equal(a.images, b.images) and a.caption == b.caption
    other = prepare(dataclasses.replace(TINY, seed=1))
    assert not torch.equal(prepare(TINY)[0].images, other[0].images)


def test_another_process_renders_the_same_bits(root):
    script = (
        "import hashlib, torch\n"
        "from vader.settings.experiment import DataConfig\n"
        "from vader.data.sets.procedural import render_object\n"
        f"sequence, mesh = render_object(({TINY!r}, 1))\n"
        "print(sequence.pixel_checksum(), hashlib.sha256(mesh.vertices.tobytes()).hexdigest())\n"
    )
    elsewhere = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    sequence, mesh = procedural.render_object((TINY, 1))
    vertices = hashlib.sha256(mesh.vertices.tobytes()).hexdigest()
    assert elsewhere.stdout.split() == [sequence.pixel_checksum(), vertices]
    assert prepare(TINY)[1].pixel_checksum() == sequence.pixel_checksum()


def test_worker_processes_render_the_same_set(root, tmp_path):
    alone = prepare(TINY)
    together = prepare(TINY, workers=2, root=tmp_path / "parallel")
    assert together.folder != alone.folder and together.pixel_checksum == alone.pixel_checksum


def test_preparation_resumes_after_an_interruption(root, monkeypatch, tmp_path):
    whole = prepare(TINY, root=tmp_path / "whole")
    rendered, real = [], procedural.render

    def failing(*arguments):
        rendered.append(len(rendered))
        if len(rendered) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(procedural, "render", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare(TINY)
    assert prepare(TINY).pixel_checksum == whole.pixel_checksum
    assert len(rendered) == 4  # one, the one that failed, and the other two


def test_the_generator_is_in_the_digest(monkeypatch):
    before = data_digest(TINY, procedural.sources(TINY))
    monkeypatch.setitem(LIGHT_RIG, "ambient", 0.5)
    assert data_digest(TINY, procedural.sources(TINY)) != before


def test_bad_settings_are_refused_before_rendering(root, monkeypatch):
    monkeypatch.setattr(procedural, "render", lambda *_: pytest.fail("rendered"))
    with pytest.raises(DataError, match="camera_distance is 1.0, expected more than 1.2"):
        prepare(dataclasses.replace(TINY, camera_distance=1.0))
    with pytest.raises(ConfigError, match="'procedural_table' is unknown.*did you mean 'procedural_tables'"):
        prepare(dataclasses.replace(TINY, name="procedural_table"))
    with pytest.raises(ConfigError, match="'furniture_chairs' is not procedural"):
        procedural.prepare(dataclasses.replace(TINY, name="furniture_chairs"))
    monkeypatch.setenv("VADER_DATA", str(root / "file"))
    (root / "file").write_text("in the way")
    with pytest.raises(DataError, match="procedural_chairs: output folder is not writable"):
        prepare(TINY)


# ------------------------------------------------------------------------------------------------ command


def test_the_command_prepares_a_set_and_says_where_it_is(root, monkeypatch, capsys):
    tiny = dataclasses.replace(experiment("laptop", "procedural_chairs"), data=TINY)
    monkeypatch.setattr(command, "experiment_named", lambda profile, name: tiny if profile == "laptop" else None)
    sheet = root / "sheet.png"
    assert vader(["data", "procedural_chairs", "--profile", "laptop", "--workers", "1", "--sheet", str(sheet)]) == 0
    pixels = np.asarray(Image.open(sheet).convert("RGB")).reshape(12, 12, 12, 3)  # one row of twelve places
    assert (pixels[:, 1] == prepare(TINY)[1].images[0].numpy()).all() and (pixels[:, 3:] == 0).all()
    said = capsys.readouterr().out
    assert "2 training and 1 held-out objects" in said and str(root) in said
    assert prepare(TINY).digest in said and prepare(TINY).pixel_checksum in said


def test_the_command_writes_shards(root, monkeypatch, capsys):
    pytest.importorskip("webdataset")
    tiny = dataclasses.replace(experiment("laptop", "procedural_chairs"), data=TINY)
    monkeypatch.setattr(command, "experiment_named", lambda profile, name: tiny)
    assert vader(["data", "procedural_chairs", "--workers", "1", "--objects-per-shard", "2"]) == 0
    assert "3 objects, 2 of them for training" in capsys.readouterr().out
    (folder,) = root.glob("procedural_chairs-*-by2")
    sharded, whole = open_set(folder), prepare(TINY)
    assert torch.equal(sharded.split("train")[1].images, whole.split("train")[1].images)
    assert vader(["data", "procedural_chairs", "--objects-per-shard", "0"]) == 1
    assert "objects_per_shard is 0, expected at least 1" in capsys.readouterr().err


def test_the_command_refuses_what_it_does_not_know(root, capsys):
    assert vader(["data", "procedural_chair"]) == 1
    assert "did you mean 'procedural_chairs'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        vader(["data", "procedural_chairs", "--speed", "9"])


# ------------------------------------------------------------------------------------------------ data cards


@pytest.mark.parametrize("name", ["procedural_chairs", "procedural_tables"])
def test_the_data_card_says_what_the_code_does(name):
    card, category = (ROOT / "data_cards" / f"{name}.md").read_text(encoding="utf-8"), procedural.CATEGORIES[name]
    continuous, discrete = CONTINUOUS[category], DISCRETE[category]
    assert f"{len(continuous)} continuous and {len(discrete)} discrete factors" in card
    for factor, (low, high) in continuous.items():
        assert re.search(rf"\| `{factor}` \| {low:g} to {high:g} \|", card), factor
    for factor, options in discrete.items():
        listed = ", ".join(str(o) for o in dict.fromkeys(options))
        assert f"| `{factor}` | {listed} |" in card, factor
    for light in ("key", "fill", "back"):
        direction, intensity = LIGHT_RIG[light]["direction"], LIGHT_RIG[light]["intensity"]
        assert f"| {light} | {direction} | {intensity:.2f} |" in card
    assert f"{LIGHT_RIG['ambient']:.2f} + {LIGHT_RIG['ambient_from_above']:.2f} n_y" in card
    assert f"exponent {LIGHT_RIG['highlight_exponent']}" in card
    assert f"at most {HALF_EXTENT} from" in card and f"radius {SPHERE_RADIUS}" in card
    captions = re.findall(rf"- `({category.removesuffix('s')}-(\d+))`: (.+)", card)
    assert len(captions) >= 3
    for key, index, caption in captions:
        assert key == procedural.object_key(category, int(index))
        assert caption == describe(category, draw(category, 0, int(index)))
    for profile in ("smoke", "laptop", "gpu"):
        data = experiment(profile, name).data
        views, rays = f"{data.train_views} + {data.heldout_views}", data.supersampling**2
        size = f"{data.resolution} x {data.resolution}"
        assert f"| {profile} | {data.num_objects} | {data.heldout_objects} | {views} | {size} | {rays} |" in card
        assert f"field of view {data.field_of_view:g} degrees" in card and f"distance {data.camera_distance:g}" in card
        assert "elevation {:g} to {:g} degrees".format(*data.elevation) in card
        if profile == "laptop":
            assert f"digest (of settings, ranges and lights, not of pixels) begins `{digest_of(data)[:12]}`" in card


def digest_of(config: DataConfig) -> str:
    return data_digest(config, procedural.sources(config))
