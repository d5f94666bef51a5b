"""Sharded sets: they hold what prepared sets hold, each rank reads its own in an order that the clock decides."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_experiment
from vader.data import DataError, SequenceSet, ShardedSet, load_shards, open_set
from vader.data.pipeline import ShardWriter, _render_shard, prepare_set
from vader.data.prepared import data_digest
from vader.data.sequence import Sequence, object_cameras
from vader.data.views import MemoryViews, ShardedViews, draw_views, training_views
from vader.settings.experiment import DataConfig
from vader.stages import autodecoder_run, diffusion_run
from vader.store.files import read_weights
from vader.store.runs import Paused

CONFIG = DataConfig("toys", num_objects=10, heldout_objects=2, train_views=3, heldout_views=1, resolution=5)
SOURCES = {"kind": "toys"}
JOBS = {f"toy.{i}": i for i in range(12)}


def render(index: int, config: DataConfig = CONFIG):
    views, r = config.train_views + config.heldout_views, config.resolution
    noise = np.random.default_rng(index).integers(0, 256, (views, r, r, 4), dtype=np.uint8)
    images, masks = torch.from_numpy(noise).split((3, 1), dim=-1)
    key, split = f"toy.{index}", "test" if index % 5 == 4 else "train"
    return Sequence(
        key, images, masks[..., 0], object_cameras(config, key), split, f"toy {index}", None, {"i": index}
    ), None


def sharded(root, objects_per_shard: int = 3, render=render) -> ShardedSet:
    pytest.importorskip("webdataset")
    return prepare_set(CONFIG, SOURCES, JOBS, render, root=root, objects_per_shard=objects_per_shard)


@pytest.fixture(scope="module")
def module_set(tmp_path_factory):
    return sharded(tmp_path_factory.mktemp("toys"))


@pytest.fixture
def own_set(tmp_path):
    """One whose files a test may spoil."""
    return sharded(tmp_path)


class PowerCut(BaseException):
    pass


# ------------------------------------------------------------------------------------------------------ what is in


def test_shards_hold_what_the_prepared_set_holds(tmp_path, module_set):
    whole = prepare_set(CONFIG, SOURCES, JOBS, render, root=tmp_path)
    converted = prepare_set(CONFIG, SOURCES, {}, render, root=tmp_path, objects_per_shard=3)
    assert converted.checksum == module_set.checksum, "rendered or converted, the same bytes"
    assert [len(part) for part in (converted, converted.keys, whole)] == [12, 10, 12]
    for split in ("train", "test"):
        for a, b in zip(whole.split(split), converted.split(split), strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)
            assert torch.equal(a.cameras.world_to_camera, b.cameras.world_to_camera)
            assert torch.equal(a.cameras.intrinsics, b.cameras.intrinsics)
            assert (a.key, a.split, a.caption, a.attributes) == (b.key, b.split, b.caption, b.attributes)
    assert isinstance(open_set(whole.folder), SequenceSet) and isinstance(open_set(converted.folder), ShardedSet)
    assert converted.keys[-1] == "toy.11" and list(converted.keys[:2]) == ["toy.0", "toy.1"]


def test_webdataset_streams_them(module_set):
    webdataset = pytest.importorskip("webdataset")
    files = [str(file) for file in sorted(module_set.folder.glob("*.tar"))]
    assert len(files) == 4
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgba8"))
    assert [sample["json"]["key"] for sample in samples] == list(JOBS)
    sequence = render(7)[0]
    assert np.array_equal(samples[7]["002.png"][..., :3], sequence.images[2].numpy())
    assert np.array_equal(samples[7]["002.png"][..., 3], sequence.masks[2].numpy())


def test_an_interrupted_preparation_goes_on_with_the_next_shard(tmp_path, module_set):
    calls = []

    def interrupted(index: int):
        calls.append(index)
        if len(calls) == 8:  # in the third shard
            raise PowerCut
        return render(index)

    with pytest.raises(PowerCut):
        sharded(tmp_path, render=interrupted)
    (folder,) = tmp_path.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == [
        f"00000{i}.{end}" for i in (0, 1) for end in ("jsonl", "tar")
    ]
    with pytest.raises(DataError, match="manifest is missing"):
        load_shards(folder)
    (folder / ".000002.tar-999999").write_bytes(b"left by a killed process")
    (folder / "000001.jsonl").unlink()  # and this one was never synced
    assert sharded(tmp_path, render=interrupted).checksum == module_set.checksum
    assert calls == [*range(8), 3, 4, 5, *range(6, 12)]
    assert sorted(file.name for file in folder.iterdir()) == [*(f"00000{i}.tar" for i in range(4)), "manifest.jsonl"]
    sharded(tmp_path, render=interrupted)
    assert len(calls) == 17, "a complete set is only opened"


def test_shards_can_be_written_by_other_processes(tmp_path, module_set):
    task = ShardWriter(CONFIG, SOURCES, tmp_path, 3), render, (3, [3, 4, 5])
    function, arguments = pickle.loads(pickle.dumps((_render_shard, task)))
    function(*arguments)
    (file,) = tmp_path.glob("*/*.tar")
    assert file.read_bytes() == (module_set.folder / "000001.tar").read_bytes()


def test_objects_of_another_size_are_not_written(tmp_path):
    pytest.importorskip("webdataset")
    writer = ShardWriter(CONFIG, SOURCES, tmp_path, 3)
    sequence = render(0, DataConfig("toys", train_views=2, heldout_views=1, resolution=5))[0]
    with pytest.raises(DataError, match=r"'toy\.0': images are \(3, 5, 5\), expected \(4, 5, 5\) of toys"):
        writer.write(0, [sequence])
    assert not list(writer.folder.iterdir())
    with pytest.raises(DataError, match="objects_per_shard is 0, expected at least 1"):
        ShardWriter(CONFIG, SOURCES, tmp_path, 0)


# ------------------------------------------------------------------------------------------------------- the order


def test_batches_are_those_of_memory(module_set):
    shards, memory = ShardedViews(module_set), MemoryViews(module_set.split("train"))
    assert list(shards.keys) == memory.keys and shards.num_views == memory.num_views == 3
    for step in range(5):
        objects, views = shards.draw(step, 3), draw_views(3, 3, 2)
        a, b = shards.batch(objects, views), memory.batch(objects, views)
        for field in ("objects", "images", "masks", "world_to_camera", "intrinsics"):
            assert torch.equal(getattr(a, field), getattr(b, field)), field
    assert isinstance(training_views(module_set, "cpu", 0), ShardedViews)


def synthetic_manifest(folder, objects: int, per_shard: int, size: int = 1000) -> ShardedSet:
    """A manifest whose shards are not there, of objects of `size` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(objects):
        place = {"key": f"toy-{i:06d}", "shard": i // per_shard, "offset": i % per_shard * size, "bytes": size}
        lines.append(json.dumps({**place, "split": "train", "views": 4, "sha256": f"{i:064x}"}) + "\n")
    write_manifest(folder, lines, objects_per_shard=per_shard, longest_key=10)
    return load_shards(folder, window=3)


def write_manifest(folder, lines, **changes) -> None:
    head = {
        "schema": 1, "name": "toys", "digest": data_digest(CONFIG, SOURCES), "config": vars(CONFIG), "sources": SOURCES,
        "objects_per_shard": 3, "objects": len(lines), "longest_key": 6,
        "checksum": hashlib.sha256("".join(lines).encode()).hexdigest(),
    } | changes  # fmt: skip
    (folder / "manifest.jsonl").write_text(json.dumps(head) + "\n" + "".join(lines))


@settings(max_examples=25, deadline=None)
@given(
    objects=st.integers(1, 60),
    per_shard=st.integers(1, 9),
    partitions=st.integers(1, 4),
    count=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_an_epoch_shows_each_object_once_in_an_order_that_the_clock_decides(
    tmp_path_factory, objects, per_shard, partitions, count, seed
):
    data = synthetic_manifest(tmp_path_factory.mktemp("m"), objects, per_shard)
    views = ShardedViews(data, seed=seed)
    members = [views.members(j, partitions) for j in range(partitions)]
    assert torch.equal(torch.cat(members).sort().values, torch.arange(objects))
    for j, own in enumerate(members):
        assert all(int(k) // per_shard % partitions == j for k in own)
        if len(own) < count:
            with pytest.raises(DataError, match=f"partition {j} of {partitions} has {len(own)} training objects"):
                views.draw(0, count, j, partitions)
            continue
        steps = len(own) // count
        epochs = [torch.cat([views.draw(e * steps + i, count, j, partitions) for i in range(steps)]) for e in (0, 1)]
        for epoch in epochs:
            assert len(epoch.unique()) == steps * count and set(epoch.tolist()) <= set(own.tolist())
        resumed = ShardedViews(data, seed=seed)
        assert torch.equal(resumed.draw(2 * steps - 1, count, j, partitions), epochs[1][-count:])


def test_the_order_differs_by_seed_epoch_and_partitions_and_keeps_to_windows(tmp_path):
    data = synthetic_manifest(tmp_path, 120, 10)
    views = ShardedViews(data, seed=0)
    epoch = views.draw(0, 120)
    assert not torch.equal(epoch, views.draw(1, 120))
    assert not torch.equal(epoch, ShardedViews(data, seed=1).draw(0, 120))
    for window in epoch.split(30):  # three shards of ten
        shards = window // 10
        assert len(shards.unique()) == 3
        assert (shards.diff() != 0).sum() > 6, "objects of a window are mixed"
    assert len((epoch // 10)[::30].unique()) == 4 and not torch.equal(epoch.sort().values, epoch)
    assert load_shards(tmp_path, window=4).digest != data.digest, "a training in another order is another run"


def test_objects_are_read_once_and_ahead(module_set, monkeypatch):
    reads = []
    original = ShardedSet.read
    monkeypatch.setattr(ShardedSet, "read", lambda self, row: reads.append(row) or original(self, row))
    views = ShardedViews(module_set, ahead=2)
    for step in range(5):
        views.batch(views.draw(step, 2), draw_views(2, 3, 1))
        [future.result() for future in views._reading.values()]
        assert len(views._reading) == 6 or step > 2, "this step's objects and those of two more"
        assert len(views._reading) <= 6
    assert len(set(reads[:10])) == 10, "each object of the first epoch is read once"
    assert 10 < len(reads) <= 14, "and those of the next two steps, unless they were still there"


def test_a_rank_reads_its_own_shards_only(own_set):
    for number in (1, 3):
        (own_set.folder / f"00000{number}.tar").unlink()
    views = ShardedViews(own_set, ahead=3)
    for step in range(4):
        drawn = [views.draw(step, 2, j, 2) for j in range(2)]  # as every rank draws, so that all agree
        assert len(views.batch(drawn[0], draw_views(2, 3, 1)).objects) == 2
    with pytest.raises(DataError, match=r"000001\.tar: shard is missing, expected object 'toy\.5'"):
        views.batch(drawn[1], draw_views(2, 3, 1))


# -------------------------------------------------------------------------------------------------------- training


def test_both_stages_train_from_shards_and_resume(tmp_path, monkeypatch):
    pytest.importorskip("webdataset")
    config = tiny_experiment(
        data=dict(train_views=3, heldout_views=1), reconstruction=dict(images_seen=40), diffusion=dict(latents_seen=16)
    )
    jobs = {f"toy.{i}": (i, config.data) for i in range(5)}
    data = prepare_set(config.data, SOURCES, jobs, render_job, root=tmp_path, objects_per_shard=2)
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "whole"))
    whole = autodecoder_run(config, data, "cpu")
    assert whole.record["objects"] == [f"toy.{i}" for i in range(4)]
    assert whole.record["pixels"] == {"checksum": data.checksum}
    assert diffusion_run(config, data, "cpu").record["latents"] == 4
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "pieces"))
    for _ in range(20):
        try:
            pieces = autodecoder_run(config, load_shards(data.folder), "cpu", max_seconds=0.0)
            break
        except Paused:
            continue
    a, b = (read_weights(run.weights("autodecoder"))[0] for run in (whole, pieces))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert load_shards(data.folder).compare_pixels({"checksum": "0"}) is not None


def render_job(job):
    return render(*job)


# ------------------------------------------------------------------------------------------------------- bad input


def first_batch(data) -> None:
    views = ShardedViews(data)
    views.batch(views.draw(0, 10), draw_views(10, 3, 1))


def test_a_shard_that_disappears_during_training(own_set):
    views = ShardedViews(own_set, ahead=0)
    views.batch(views.draw(0, 2), draw_views(2, 3, 1))
    for file in own_set.folder.glob("*.tar"):
        file.unlink()
    with pytest.raises(DataError, match=r"00000\d\.tar: shard is missing, expected object 'toy\.\d+' in it"):
        views.batch(views.draw(1, 2), draw_views(2, 3, 1))


def test_a_truncated_shard_is_found_before_anything_is_read(own_set):
    file = own_set.folder / "000003.tar"
    file.write_bytes(file.read_bytes()[:-12_000])
    with pytest.raises(DataError, match=r"000003\.tar: truncated: has \d+ bytes, expected object 'toy\.11' up to byte"):
        ShardedViews(own_set).batch(torch.tensor([0]), torch.tensor([[0]]))
    with pytest.raises(DataError, match=r"000003\.tar: truncated: ends at byte \d+, expected object 'toy\.11' at"):
        own_set.read(11)


def test_a_flipped_bit(own_set):
    file = own_set.folder / "000000.tar"
    content = bytearray(file.read_bytes())
    content[int(own_set.table["offset"][1]) + 700] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"000000\.tar: object 'toy\.1': SHA-256 of its bytes is \w+…, expected \w+…"):
        first_batch(own_set)


def rewritten(data: ShardedSet, row: int, change) -> ShardedSet:
    """The set with changed members of an object and a manifest that agrees with them."""
    file, lines = data.shard(row), (data.folder / "manifest.jsonl").read_text().splitlines(keepends=True)[1:]
    members = data.read(row)
    change(members)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"{row:09d}.{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    entry = json.loads(lines[row])
    start, content = file.stat().st_size, stream.getvalue()
    entry |= {"offset": start, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    file.write_bytes(file.read_bytes() + content)
    lines[row] = json.dumps(entry) + "\n"
    write_manifest(data.folder, lines)
    return load_shards(data.folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda m: m.pop("002.png"),
            r"000000\.tar: object 'toy\.2': member \.002\.png is missing, expected .* 4 views",
        ),
        (lambda m: m.pop("json"), r"object 'toy\.2': member \.json is missing"),
        (lambda m: m.update(json=b"{}"), r"object 'toy\.2': member \.json does not describe an object"),
        (
            lambda m: m.update(json=m["json"].replace(b"toy.2", b"toy.3")),
            r"object 'toy\.2': member \.json is of object 'toy\.3'",
        ),
        (lambda m: [m.update({f"00{v}.png": b"no png"}) for v in range(3)], r"'toy\.2', view \d: cannot be decoded"),
    ],
)
def test_members_that_are_missing_or_wrong(own_set, change, message):
    with pytest.raises(DataError, match=message):
        first_batch(rewritten(own_set, 2, change))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: lines + [lines[4]], r"object 'toy\.4' is in lines 6 and 14, expected different keys"),
        (lambda lines: lines[::-1], "shards do not ascend"),
        (lambda lines: lines[:3] + ["{\n"] + lines[4:], r"manifest\.jsonl, line 5: not readable as JSON"),
        (
            lambda lines: [lines[0].replace("offset", "ofset"), *lines[1:]],
            r"line 2: field 'offset' is missing or unknown",
        ),
        (lambda lines: [lines[0].replace('"train"', '"val"'), *lines[1:]], r"line 2: object 'toy\.0' has split 'val'"),
        (lambda lines: [lines[0].replace('"views": 4', '"views": 3'), *lines[1:]], "and 3 views, expected .* and 4"),
        (lambda lines: [lines[0].replace('"offset": 0', '"offset": "x"'), *lines[1:]], "does not say where an object"),
    ],
)
def test_manifests_that_cannot_be_used(own_set, change, message):
    lines = (own_set.folder / "manifest.jsonl").read_text().splitlines(keepends=True)[1:]
    write_manifest(own_set.folder, change(lines))
    with pytest.raises(DataError, match=message):
        load_shards(own_set.folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(objects=13), r"ends after 12 objects, expected 13 as line 1 says"),
        (dict(objects=11), r"line 13: expected 11 objects as line 1 says"),
        (dict(checksum="0" * 64), "field 'checksum' is '000"),
        (dict(digest="0" * 64), "field 'digest' is '000"),
        (dict(schema=9), "field 'schema' is 9, expected 1"),
        (dict(config={"nme": "toys"}), "line 1: does not describe a set"),
        (dict(more=1), "field 'more' is missing or unknown"),
    ],
)
def test_first_lines_that_cannot_be_used(own_set, changes, message):
    lines = (own_set.folder / "manifest.jsonl").read_text().splitlines(keepends=True)[1:]
    write_manifest(own_set.folder, lines, **changes)
    with pytest.raises(DataError, match=message):
        load_shards(own_set.folder)


def test_a_window_of_nothing_and_an_unknown_split(own_set):
    with pytest.raises(DataError, match="window is 0"):
        load_shards(own_set.folder, window=0)
    with pytest.raises(DataError, match="split 'val' is unknown"):
        own_set.split("val")


# ---------------------------------------------------------------------------------------------------------- memory


def peak_of_opening(folder, objects: int, size: int) -> int:
    synthetic_manifest(folder, objects, 100, size)  # and everything is imported and cached
    tracemalloc.start()
    try:
        views = ShardedViews(load_shards(folder))
        views.draw(0, 8)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_opening_reads_the_manifest_alone_and_takes_little_memory(tmp_path):
    """No shard is there to be read, and whether they would hold kilobytes or gigabytes makes no difference."""
    few, many, large = (
        peak_of_opening(tmp_path / str(i), n, size)
        for i, (n, size) in enumerate([(3000, 10**3), (6000, 10**3), (3000, 10**9)])
    )
    assert abs(large - few) < 0.01 * few
    assert (many - few) / 3000 < 150, "bytes per object"
