"""Several ranks train what one does, exchange what the model of costs says, and say what they cannot do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import (
    CPU,
    PARTITIONED,
    draw_on_ranks,
    free_port,
    given_latents,
    group,
    meet_late,
    shared_experiment,
    start,
    train_stage_1,
    train_stage_2,
    write_in_turn,
)
from tests.tiny import balls, tiny_experiment
from vader.autodecoder.reconstruction import Reconstruction
from vader.commands import main as vader
from vader.commands.train import plan
from vader.data import SequenceSet
from vader.data.pipeline import SetWriter
from vader.data.views import MemoryViews
from vader.evaluation import costs
from vader.settings.checks import ConfigError
from vader.settings.experiment import Experiment
from vader.settings.profiles import experiment
from vader.settings.table5 import PAPER
from vader.stages import autodecoder_run
from vader.store import runs
from vader.store.files import from_plain, plain, read_weights
from vader.store.runs import RunError
from vader.training import launch, torchrun_command
from vader.training.distributed import Ranks, current, joined, select_device, threads_each
from vader.training.launch import PAUSED

REPLICATED = shared_experiment()
HASHED = shared_experiment(partitioned=True).replace(
    autodecoder=dict(hash_rows=4, hash_codebooks=4), reconstruction=dict(images_seen=16)
)
# Float32 sums in another order differ by 1e-7 of their size, which Adam's division enlarges where a gradient is small.
TOLERANCE = dict(rtol=1e-3, atol=2e-4)
# Batch norm takes away what these add, so their gradient is rounding error alone, and Adam steps by its sign.
CANCELLED = ("decoder.stages.1.0.skip.bias", "decoder.stages.1.0.unit.2.bias", "decoder.norm.running_mean")


def trained(work: Path, size: int, config: Experiment, **options) -> dict[str, torch.Tensor]:
    work.mkdir(exist_ok=True)
    assert group(train_stage_1, size, config, work, *options.values()) == [0] * size, list(work.glob("error*"))
    return read_weights(work / "autodecoder.safetensors")[0]


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a.keys() - {*CANCELLED}:
        torch.testing.assert_close(a[name].float(), b[name].float(), **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, torch.Tensor]:
    return trained(tmp_path_factory.mktemp("one"), 1, PARTITIONED)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_own_their_embeddings_train_what_one_rank_does(tmp_path, one, size):
    assert_close(trained(tmp_path, size, PARTITIONED), one)
    steps = 3
    for rank in range(size):
        sent = torch.load(tmp_path / f"sent-{rank}.pt")
        for kind, count in costs.exchanged(PARTITIONED, "autodecoder", size, objects=9).items():
            assert sent[kind] == steps * count, (rank, kind)


def test_a_run_resumes_on_another_number_of_ranks(tmp_path, one):
    """One step on four ranks, one on a single one, the rest on two."""
    for size in (4, 1):
        assert group(train_stage_1, size, PARTITIONED, tmp_path, True) == [PAUSED] * size
    [newest, before] = sorted(tmp_path.glob("checkpoint-*"), reverse=True)
    names = {file.name for file in newest.iterdir()}
    assert names == {file.name for file in before.iterdir()}
    assert names == {"checkpoint.json", "shared.pt", *(f"rows-{j:05d}.pt" for j in range(4))}
    assert_close(trained(tmp_path, 2, PARTITIONED), one)


@pytest.mark.parametrize("config", [REPLICATED, HASHED], ids=["replicated", "hashed"])
def test_a_library_that_all_ranks_have_is_reduced_with_the_decoder(tmp_path, config):
    assert_close(trained(tmp_path / "two", 2, config), trained(tmp_path / "one", 1, config))
    steps = config.reconstruction.images_seen // 8
    sent = torch.load(tmp_path / "two" / "sent-0.pt")
    expected = costs.exchanged(config, "autodecoder", 2, objects=9)
    assert {kind: sent[kind] for kind in expected} == {kind: steps * count for kind, count in expected.items()}


def test_the_denoiser_trains_on_two_ranks_as_on_one(tmp_path):
    """With copies of its weights (DDP) as with parts of them (`fully_shard`), its moving average too."""
    latents = torch.randn(9, *REPLICATED.autodecoder.latent_shape, generator=torch.Generator().manual_seed(0))
    one, copied, divided = (tmp_path / name for name in ("one", "copied", "divided"))
    for work, size in ((one, 1), (copied, 2), (divided, 2)):
        work.mkdir()
        assert group(train_stage_2, size, REPLICATED, work, latents, work is divided) == [0] * size
    expected = read_weights(one / "denoiser.safetensors")[0]
    for work in (copied, divided):
        assert_close(read_weights(work / "denoiser.safetensors")[0], expected)


@pytest.mark.parametrize("config", [PARTITIONED, REPLICATED], ids=["partitioned", "replicated"])
def test_divided_weights_train_as_copied_ones_and_share_their_checkpoints(tmp_path, config):
    """A step with parts of the weights, one with copies on a single rank, one with parts again."""
    pieces = [(2, True), (1, False)]
    for size, sharded in pieces:
        assert group(train_stage_1, size, config, tmp_path, True, sharded) == [PAUSED] * size
    [newest, before] = sorted(tmp_path.glob("checkpoint-*"), reverse=True)
    contents = [torch.load(folder / "shared.pt", weights_only=True) for folder in (before, newest)]
    assert {f.name for f in newest.iterdir()} == {f.name for f in before.iterdir()}
    assert_same_form(*contents)
    expected = trained(tmp_path / "copied", 2, config)
    assert_close(trained(tmp_path, 2, config, pieces=False, sharded=True), expected)


def assert_same_form(a, b) -> None:
    """Nested content with the same names, and tensors of the same shapes."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
    if isinstance(a, dict | list):
        for x, y in zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else zip(a, b, strict=True):
            assert_same_form(x, y)
    if isinstance(a, torch.Tensor):
        assert a.shape == b.shape and a.dtype == b.dtype


def test_microbatches_add_up_to_the_gradient_of_the_whole_step():
    """Without batch norm: stage 2. The draws stay, so only the order of sums differs."""
    gradients = []
    for parts in (1, 4):
        config = shared_experiment().replace(diffusion=dict(microbatches=parts), unet=dict(dropout=0.0))
        latents = torch.randn(9, *config.autodecoder.latent_shape, generator=torch.Generator().manual_seed(0))
        task = given_latents(config, latents)
        torch.nn.init.normal_(task.denoiser.network.conv_out.weight, std=0.1)
        torch.manual_seed(5)
        losses = task.step(0)
        gradients.append([losses["loss"], *(p.grad for p in task.denoiser.parameters())])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_batch_norm_moves_by_the_mean_of_its_microbatches():
    norm = torch.nn.BatchNorm1d(3)
    parts = [torch.randn(8, 3) + i for i in range(2)]
    losses = [lambda j: {"loss": norm(parts[j]).square().sum()}]
    Ranks().accumulate(norm, 2, 0, 0, losses[0])
    mean = sum(x.mean(0) for x in parts) / 2
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * sum(x.var(0) for x in parts) / 2)
    assert norm.num_batches_tracked == 1


def test_ranks_that_are_started_again_do_not_look_for_dead_ones():
    """What the first two left in the store could send the next two to processes that are gone, to wait for ever."""
    server = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for attempt in range(2):
        for key in server.list_keys():
            server.set(key, "address of a dead process")
        processes = [start(meet_late, rank, 2, server.port, attempt) for rank in range(2)]
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0, 0], attempt


def test_the_first_rank_prepares_before_the_others(tmp_path):
    assert group(write_in_turn, 3, tmp_path) == [0] * 3
    assert sorted((tmp_path / "made").read_text().split()) == ["0", "1", "2"]


def test_ranks_of_one_machine_share_its_cores(monkeypatch):
    """A group of one, which a launcher says shares the machine with another; without OMP_NUM_THREADS, and with it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(7), raising=False)
    variables = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    for given in (None, "5"):
        monkeypatch.setenv("MASTER_PORT", str(free_port()))
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        with joined():
            pass
        assert threads_each(2) == int(given or 3)
    assert seen == [3] and torch.get_num_threads() == before
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_each(8) == 1


# ------------------------------------------------------------------------------------------------ what cannot be


def test_a_task_that_knows_of_no_other_ranks_is_refused_in_a_group(tmp_path):
    assert group(draw_on_ranks, 2, tmp_path) == [0, 0]
    for rank in range(2):
        assert "drawing trains on one rank only, but there are 2" in (tmp_path / f"error-{rank}").read_text()
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_single_rank_has_nobody_to_divide_weights_with(capsys):
    with pytest.raises(ConfigError, match="shard is 'fully', which divides weights among ranks, but there is 1"):
        current(sharded=True)
    assert vader(["train", "procedural_chairs", "--profile", "smoke", "--shard", "fully"]) == 1
    assert "start several or leave it out" in capsys.readouterr().err


def test_ranks_that_do_not_divide_the_step_are_refused(monkeypatch, capsys):
    with pytest.raises(ConfigError, match="3 ranks cannot share 4 microbatches a step equally; set microbatches to a"):
        Ranks(0, 3).share(4)
    with pytest.raises(ConfigError, match="2 ranks cannot share 1 microbatches"):
        Reconstruction(tiny_experiment(), balls(tiny_experiment()), CPU, Ranks(0, 2))
    command = ["train", "procedural_chairs", "--profile=smoke"]  # before data are prepared or processes started
    assert vader([*command, "--ranks=2"]) == 1
    assert "2 ranks cannot share 1 microbatches a step" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert vader([*command, "--microbatches=4"]) == 1
    assert "3 ranks cannot share 4 microbatches a step" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="objects_per_step 4 does not divide into 3 microbatches"):
        shared_experiment(microbatches=3)
    with pytest.raises(ConfigError, match="sparse_embedding trains on 2 ranks only where the library is partitioned"):
        config = REPLICATED.replace(autodecoder=dict(sparse_embedding=True))
        Reconstruction(config, balls(config, objects=9), CPU, Ranks(0, 2))


def test_a_partition_with_too_few_objects_is_named(monkeypatch):
    monkeypatch.setattr(MemoryViews, "members", lambda self, j, parts: torch.arange(3)[j:])
    with pytest.raises(ConfigError, match="partition 3 of 4 has 0 objects of balls, expected at least the 1 of a"):
        Reconstruction(PARTITIONED, balls(PARTITIONED, objects=9), CPU)


def test_a_port_in_use_and_incomplete_variables_are_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port} cannot be used .* take another one"):
            launch.launch(["--data", "procedural_chairs"], 2, port)
        for name, value in {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(RunError, match=f"cannot meet at localhost:{port} .* if the port is in use"), joined():
            pass
    monkeypatch.delenv("RANK")
    with pytest.raises(RunError, match="WORLD_SIZE is set, but RANK is not"), joined():
        pass


def test_more_ranks_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select_device("cuda") == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RunError, match="rank 2 of this machine needs a GPU, but there are 2"):
        select_device("auto")


# --------------------------------------------------------------------------------------------------- the command


def test_the_plan_says_memory_exchange_and_files(monkeypatch, tmp_path):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path))
    config = PAPER["objaverse"].replace(autodecoder=dict(hash_rows=0))
    config = config.replace(reconstruction=dict(microbatches=8, partitioned=True), diffusion=dict(microbatches=8))
    text = plan(config, 8)
    assert f"kept in {tmp_path}" in text and "8 microbatches a step" in text and "checkpoints" in text
    whole, eighth = (costs.training_memory(config, "autodecoder", n)["library"] for n in (1, 8))
    assert whole == 16 * 1024 * config.data.num_objects and eighth == pytest.approx(whole / 8, rel=1e-4)
    with pytest.raises(ConfigError, match="3 ranks cannot share 8"):
        plan(config, 3)
    assert "exchanges nothing" in plan(experiment("smoke", "procedural_chairs"))
    copied, divided = (costs.training_memory(config, "diffusion", 8, sharded=s)["network"] for s in (False, True))
    assert copied == pytest.approx(8 * divided, rel=1e-4) and plan(config, 8, sharded=True) != text
    config = config.replace(reconstruction=dict(partitioned=False))
    copied, divided = (costs.training_memory(config, "autodecoder", 8, sharded=s)["library"] for s in (False, True))
    assert copied == pytest.approx(8 * divided, rel=1e-4)


def test_settings_come_back_from_json():
    for config in (PARTITIONED, HASHED, PAPER["celebv_text"], experiment("smoke", "procedural_chairs_text")):
        assert from_plain(Experiment, plain(config)) == config
    with pytest.raises(ConfigError, match=r"UNetConfig has no field 'chanels' \(did you mean 'channels'\?\)"):
        from_plain(Experiment, plain(PARTITIONED) | {"unet": {"chanels": 3}})


def test_a_cluster_command_names_its_nodes():
    options = dict(profile="paper", max_seconds=60, partitioned=True, tensorboard=False)
    command = torchrun_command(8, 4, "node-0:29500", "mvimgnet", **options)
    assert command[0] == "torchrun" and command[-7:-3] == ["-m", "vader", "train", "mvimgnet"]
    assert {"--nnodes=8", "--nproc-per-node=4", "--rdzv-endpoint=node-0:29500"} <= {*command}
    assert command[-3:] == ["--profile=paper", "--max-seconds=60", "--partitioned"]


def prepared(config: Experiment) -> SequenceSet:
    """The balls on the disk."""
    writer, sequences = SetWriter(config.data, {}), balls(config, objects=9).sequences
    for key in writer.pending([s.key for s in sequences]):
        writer.write(next(s for s in sequences if s.key == key))
    return writer.finish([s.key for s in sequences])


def test_a_notebook_trains_on_two_ranks_pauses_and_resumes(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    data = prepared(PARTITIONED)
    with pytest.raises(runs.Paused, match="autodecoder paused at 8 of 24 seen"):
        autodecoder_run(PARTITIONED, data, "cpu", max_seconds=0.0, ranks=2)
    run = autodecoder_run(PARTITIONED, data, "cpu", ranks=2, shard=True)
    assert [session["ranks"] for session in run.record["sessions"]] == [2, 2]
    assert "autodecoder:" in capfd.readouterr().err, "progress shows where the training was asked for"
    assert run.settings["reconstruction"]["partitioned"] is True


def test_a_worker_that_dies_is_started_again_from_the_last_checkpoint(tmp_path, one):
    """torchrun itself, on a training whose second rank kills itself at the second step, the first time."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, "-m", "tests.ranks", str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "died").exists()
    assert (tmp_path / "starts").read_text().split() == ["0", "8"], "it went on after the first step"
    assert_close(read_weights(tmp_path / "autodecoder.safetensors")[0], one)
