"""The benchmarks run, on sizes that take no time: their numbers are nobody's here, that they agree is."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.benchmarks import __main__ as command
from tests.benchmarks import contest, device, full_size, preparation, renderer, sampler, shards, skipping, training
from tests.ranks import shared_experiment
from tests.report.test_reports import faults_of_benchmark
from tests.tiny import tiny_experiment
from vader.autodecoder.reconstruction import Autodecoder
from vader.data import load_shards
from vader.rendering import cpu
from vader.settings.profiles import experiment
from vader.settings.table5 import PAPER
from vader.store.files import save_weights
from vader.store.runs import RunError
from vader.store.weights import vgg_layers, vgg_relu_indices
from vader.studies.scaling import Steps

CPU = torch.device("cpu")
SMALL = renderer.Scene(size=9, samples=7, resolution=6, views=2, batch=2)
needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


@needs_numba
def test_renderers_agree_and_are_timed():
    pytest.importorskip("pytorch3d")
    rows = renderer.compare(SMALL, CPU, repeats=1, memory=False)
    assert faults_of_benchmark({"rows": rows}) == []
    assert {row["against"] for row in rows} == {"reference (grid_sample)", "pytorch3d"}


@needs_numba
def test_skipping_is_measured_on_a_fresh_and_on_a_trained_volume(tmp_path):
    config = tiny_experiment()
    model = Autodecoder(config, config.data.num_objects)
    nn.init.constant_(model.decoder.head.bias[:1], -9.0)  # nothing anywhere
    save_weights(tmp_path / "autodecoder.safetensors", model, config)
    rows, quantities = skipping.gains(config, tmp_path / "autodecoder.safetensors", repeats=1)
    assert faults_of_benchmark({"rows": rows}) == [] and len(rows) == 12  # two volumes, three works, two clocks
    assert {row["system"] for row in rows} == {"skipping"}
    fresh, trained = (quantity.value for quantity in quantities)
    assert fresh < 0.5 and trained > 0.99


@needs_numba
def test_the_backward_that_keeps_sums_is_the_kernels_own_with_other_stores(monkeypatch):
    source = Path(cpu.__file__).read_text()
    kept = skipping.kept_source(source)
    compile(kept, "kept", "exec")
    assert kept.count("load8(g, held") == 8 and kept.count("_add_to_cell(g") == source.count("_add_to_cell(g") - 1
    monkeypatch.setattr(skipping, "kept_kernels", lambda: cpu)  # compiling it takes a minute
    assert faults_of_benchmark({"rows": skipping.kept((SMALL,), repeats=1)}) == []
    with pytest.raises(AssertionError, match="written in another way"):
        skipping.kept_source(source.replace("_add_to_cell(g", "_put(g"))


@needs_numba
def test_a_renderer_that_disagrees_is_not_timed(monkeypatch):
    def wrong(scene, device):
        run = renderer.ours("reference")(scene, device)
        return lambda: tuple(1.01 * x for x in run())

    monkeypatch.setitem(renderer.CONTESTANTS, "wrong", wrong)
    with pytest.raises(AssertionError, match="wrong"):
        renderer.compare(SMALL, CPU, repeats=1, memory=False)


def test_memory_of_the_reference_grows_with_its_samples():
    few, many = (renderer.Scene(size=16, samples=n, resolution=24, views=2, batch=2) for n in (8, 256))
    small, large = (renderer.peak_memory("reference (grid_sample)", scene, CPU) for scene in (few, many))
    samples = many.rays * many.samples
    assert large > 4 * samples * 4 > small  # at least the four values of each sample


def test_the_samplers_agree_and_are_timed():
    assert faults_of_benchmark({"rows": sampler.compare(CPU, steps=2, batch=2, repeats=1)}) == []


def test_time_outside_the_network_is_a_share():
    for quantity in sampler.overhead(CPU, steps=2, batch=2, repeats=1):
        assert 0 < quantity.value < 1


def test_parts_of_both_stages_make_up_the_step():
    """At the smoke size: the same code as at the paper's."""
    config = experiment("smoke", "procedural_chairs").replace(reconstruction=dict(perceptual_network="none"))
    for stage in (full_size.first_stage, full_size.second_stage):
        values = {q.name: q.value for q in stage(CPU, config)}
        assert sum(v for name, v in values.items() if name.startswith("share")) == pytest.approx(1)
        assert values["seconds"] > 0 and 0.05 < values["peak memory, GiB"] < 20


def test_the_full_size_is_the_papers():
    config = full_size.batch_of_one()
    assert config.autodecoder == PAPER["photoshape_chairs"].autodecoder
    assert config.unet == PAPER["photoshape_chairs"].unet


def test_a_synthetic_sharded_set_is_written_and_read(tmp_path):
    pytest.importorskip("webdataset")
    folder = shards.write(tmp_path, 25, per_shard=10)
    data = load_shards(folder)
    assert len(data.keys) == 25 and len(list(folder.glob("*.tar"))) == 3
    assert data.sequence(24).key == "tiny-000024"
    if sys.platform == "linux":
        values = shards.opened(folder, steps=4)
        assert 0 < values["of which before opening, MiB"] <= values["peak resident MiB after reading"]


def test_preparation_of_folders_is_measured(tmp_path):
    pytest.importorskip("webdataset")
    folder = preparation.write(tmp_path / "tiny", 6)
    values = preparation.measured(folder, 1, per_shard=4)
    assert values["objects per second"] > 0 and values["peak resident MiB, main process"] > 50


def test_the_loop_has_a_share_of_the_time_and_views_a_ratio(monkeypatch):
    config = shared_experiment(microbatches=1)
    for quantity in training.loop_share(config, seconds=0.3, checkpoint_seconds=0.1):
        assert 0 < quantity.value < 1
    random_vgg = vgg_layers("vgg16")[: vgg_relu_indices("vgg16")[-1] + 1]  # as fast as trained ones, and always there
    for parameter in random_vgg.parameters():
        nn.init.normal_(parameter, std=0.02)
    monkeypatch.setattr("vader.autodecoder.losses.vgg_features", lambda network: random_vgg.requires_grad_(False))
    rows = training.views((16,), repeats=1, resolution=32)
    assert faults_of_benchmark({"rows": rows}) == []


def test_two_ranks_are_not_measured_where_others_have_the_cores(monkeypatch):
    shares = {1: 0.99, 2: 0.95}
    monkeypatch.setattr(training, "measure", lambda jobs, n, _: {"": Steps({}, [9.0, 3.0 / n, 3.0 / n], shares[n])})
    [row] = training.two_ranks(repeats=2)
    assert faults_of_benchmark({"rows": [row]}) == [] and row["value"] == 2.0
    shares[2] = 0.6
    with pytest.raises(RunError, match="ranks had a core for 60% of the time, expected 80 %"):
        training.two_ranks(repeats=2)


def test_ratios_are_taken_repetition_by_repetition():
    ours, peer = contest.Timing([1.0, 2.0, 4.0], [1.0, 1.0, 1.0]), contest.Timing([2.0, 8.0, 12.0], [3.0, 3.0, 3.0])
    wall, cpu = contest.speed_rows("ours", ours, {"peer": peer}, "work")
    assert (wall["value"], wall["min"], wall["max"], wall["n"]) == (3.0, 2.0, 4.0, 3)
    assert (cpu["value"], cpu["min"], cpu["max"]) == (3.0, 3.0, 3.0)


def parts(monkeypatch, rows, quantities=(), curves=None):
    monkeypatch.setattr(command, "PARTS", {"one": (lambda device: (rows, list(quantities), curves or {}), ())})


ROW = {
    "system": "a",
    "against": "b",
    "work": "c",
    "metric": "speed_ratio",
    "value": 2.0,
    "min": 1.0,
    "max": 3.0,
    "n": 3,
}


def test_all_parts_make_a_report_and_a_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path))
    lines = {"a": [(1.0, 0.1), (2.0, 0.2)], "b": [(1.0, 0.3), (2.0, 0.6)]}
    parts(monkeypatch, [ROW], [contest.Quantity("a", "c", "seconds", 1.0)], {"samples": lines})
    assert command.main(["--device", "cpu", "--threads", str(torch.get_num_threads())]) == 0
    report = json.loads((tmp_path / "benchmarks.cpu.json").read_text())
    assert faults_of_benchmark(report) == [] and report["rows"] == [ROW] and report["left_out"] == []
    assert report["environment"]["threads"] == torch.get_num_threads() and report["quantities"][0]["value"] == 1.0
    assert (tmp_path / "benchmarks.cpu.png").stat().st_size > 1000


def test_a_selection_is_printed_and_leaves_the_report_alone(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path))
    parts(monkeypatch, [ROW])
    assert command.main(["one", "--device", "cpu", "--threads", str(torch.get_num_threads())]) == 0
    assert json.loads(capsys.readouterr().out) == ROW and not list(tmp_path.iterdir())
    named = ["one", "--device", "cpu", "--threads", str(torch.get_num_threads()), "--report", "cpu-one"]
    assert command.main(named) == 0 and [file.name for file in tmp_path.iterdir()] == ["benchmarks.cpu-one.json"]
    report = json.loads((tmp_path / "benchmarks.cpu-one.json").read_text())
    assert report["rows"] == [ROW] and report["environment"]["threads"] == torch.get_num_threads()


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        command.main(["rendrer"])
    assert "unknown part rendrer" in capsys.readouterr().err


def test_the_run_on_a_device_ends_on_a_cpu_and_goes_on_with_what_is_missing(tmp_path, capsys):
    tiny = ["--tiny", "--device", "cpu", "--out", str(tmp_path), "--only", "machine", "shards"]
    (tmp_path / "machine.done").touch()
    assert device.main(tiny) == 0
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == {"shards"} and lines[-1]["status"] == 0
    assert (tmp_path / "shards.log").exists() and capsys.readouterr().out.endswith("missing: nothing\n")
    assert device.main(tiny) == 0 and len((tmp_path / "results.jsonl").read_text().splitlines()) == len(lines)


def test_a_variant_that_fails_is_a_result_and_leaves_the_others():
    def broken() -> dict:
        raise RuntimeError("no such kernel")

    assert device.tried({"work": "a"}, broken) == {"work": "a", "error": "RuntimeError: no such kernel"}
    assert device.tried({"work": "a"}, lambda: {"seconds": 1.0}) == {"work": "a", "seconds": 1.0}


def test_the_phases_before_training_fit_the_time_and_trainings_are_told_what_is_left(tmp_path, monkeypatch):
    before = [phase.seconds for name, phase in device.PHASES.items() if phase.work or name == "tests"]
    assert sum(before) <= 600 and list(device.PHASES)[: len(before)] == [
        "machine", "tests", "render", "sampling", "training", "shards"
    ]  # fmt: skip
    said = device.Phase(540, command=(sys.executable, "-c", "print({seconds}, '{device}')"))
    monkeypatch.setattr(device, "PHASES", {"one, two": said})
    assert device.main(["--device", "cpu", "--out", str(tmp_path), "--seconds", "100"]) == 0
    log = (tmp_path / "one-two.log").read_text().splitlines()
    assert log[0].startswith("== 20") and log[1] in ("84 cpu", "85 cpu") and (tmp_path / "one-two.done").exists()


def test_numbers_of_a_device_come_one_by_one():
    for phase in ("machine", "sampling"):
        assert len(list(device.PHASES[phase].work(CPU, True))) >= 2


def test_a_phase_out_of_time_is_missing_and_said(tmp_path, monkeypatch, capsys):
    wait = device.Phase(1, command=(sys.executable, "-c", "import time; time.sleep(60)"))
    fail = device.Phase(60, command=(sys.executable, "-c", "raise SystemExit(3)"))
    monkeypatch.setattr(device, "PHASES", {"wait": wait, "fail": fail})
    assert device.main(["--device", "cpu", "--out", str(tmp_path)]) == 75
    told = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in told] == ["out of time", 3] and not list(tmp_path.glob("*.done"))
    assert "missing: wait, fail" in capsys.readouterr().out


def test_without_a_cuda_device_the_run_says_what_runs(capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(SystemExit):
            device.main(["--out", str(tmp_path / "new"), "--device", name])
        assert "torch finds no CUDA device; --tiny --device cpu runs without one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["renderer", "--device", "cuda"])
    assert "device is 'cuda', but this torch finds no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
