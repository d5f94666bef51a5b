"""Sets prepared in parts, in one go, after kills at any moment: the same set, and never half of one."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import time
import tracemalloc
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from vader.data import load_shards, sequence
from vader.data.formats import Options, Scene, files_of, walk
from vader.data.pipeline import prepare_set
from vader.data.prepared import DataError
from vader.data.reading.objects import Found, Sieve
from vader.data.reading.passes import prepare_found
from vader.data.sequence import Sequence, object_cameras
from vader.data.streaming import streamed, tars
from vader.data.streaming.listing import Listing, content, stamp
from vader.data.streaming.parts import Join, Part, PartOfSet
from vader.data.streaming.streamed import SOURCES, TRAIN, Work, join
from vader.settings.checks import ConfigError
from vader.settings.experiment import DataConfig

pytest.importorskip("webdataset")
CONFIG = DataConfig("toys", num_objects=10, heldout_objects=2, train_views=3, heldout_views=1, resolution=5)
COUNT, PER_SHARD = 11, 3
BROKEN = "object-04"


def pictured(key: str, content: str, split: str = "train") -> Sequence:
    seed = int.from_bytes(content.encode()[:4].ljust(4, b"."), "big")
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 5, 4), dtype=np.uint8)
    images, masks = torch.from_numpy(noise).split((3, 1), dim=-1)
    return Sequence(key, images, masks[..., 0], object_cameras(CONFIG, key), split)


def read(scene: Scene, _options=None):
    """An object whose pictures are made of the text in its folder."""
    text = (scene.place / "rgb" / "text").read_text()
    if text == "broken":
        raise DataError(f"{scene.where}: is broken, expected a whole one")
    return pictured(scene.key, text, scene.split), None


def write(root: Path, objects: int = COUNT, broken: bool = False) -> Path:
    for i in range(objects):
        folder = root / f"object-{i:02d}"
        (folder / "pose").mkdir(parents=True)
        (folder / "rgb").mkdir()
        (folder / "rgb" / "text").write_text("broken" if broken and folder.name == BROKEN else f"{i}")
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("source") / "toys")


def prepare(source: Path, root: Path, part: Part | Join | None = None, read=read, config=CONFIG, **options):
    """options: of `prepare_found`, and fields of `Found`. All objects are wanted unless one says otherwise."""
    options = {"objects_per_shard": PER_SHARD, "workers": 1} | options
    fields = {f.name: options.pop(f.name) for f in dataclasses.fields(Found) if f.name in options}
    fields = {"limited": False, "looked_at": 1, "read": read, "scenes": walk(source, "srn")} | fields
    found = Found("own", source, fields.pop("scenes"), Options(), {"format": "srn"}, Sieve(), **fields)
    return prepare_found(config, found, root=root, part=part, **options)


def never(scene: Scene, _options=None):
    pytest.fail("no object is read")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    return prepare(source, tmp_path_factory.mktemp("whole"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Of a set's files, without the stamps of its sources."""
    files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    lines = [json.loads(line) for line in files.pop(SOURCES).splitlines()]
    return files | {SOURCES: json.dumps([{k: v for k, v in line.items() if k != "stamp"} for line in lines]).encode()}


def test_a_set_in_parts_is_the_set_in_one_go(source, whole, tmp_path):
    assert (len(whole), len(whole.keys)) == (COUNT, COUNT - 2) and whole.folder.name.endswith("-by3")
    for number in (3, 1, 2):  # in any order
        found = prepare(source, tmp_path, Part(number, 3))
        assert isinstance(found, PartOfSet) and found.left_out == {}
    assert [p.name for p in tmp_path.iterdir()] == [found.folder.name] and found.folder.name.endswith(".partial")
    joined = prepare(source, tmp_path, Join(), read=never)
    assert (joined.digest, joined.checksum, joined.folder.name) == (whole.digest, whole.checksum, whole.folder.name)
    assert bytes_of(joined.folder) == bytes_of(whole.folder)
    again = prepare(source, tmp_path, read=never)
    assert again.folder == joined.folder
    assert isinstance(prepare(source, tmp_path, Part(1, 3)), type(joined)), "nothing is left for a part to do"


def test_tars_hold_what_a_set_in_memory_holds_and_are_of_the_same_identity(source, whole, tmp_path):
    memory = prepare(source, tmp_path, objects_per_shard=None)
    assert whole.folder.name == f"{memory.folder.name}-by3"
    for split in ("train", "test"):
        for a, b in zip(memory.split(split), whole.split(split), strict=True):
            assert (a.key, a.split, a.pixel_checksum()) == (b.key, b.split, b.pixel_checksum())
    assert not (memory.folder / "ledger").exists()
    assert prepare(source, tmp_path, objects_per_shard=None, read=never).folder


def test_parts_cover_all_units_once_and_missing_ones_are_named(source, tmp_path):
    for units, of in ((0, 3), (4, 3), (10, 64), (64, 64), (1000, 7)):
        parts = [Part(n, of).units(units) for n in range(1, of + 1)]
        assert [u for part in parts for u in part] == list(range(units))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    prepare(source, tmp_path, Part(1, 3))
    with pytest.raises(DataError, match=r"3 of 4 shards are missing \(000001 to 000003\).*parts 2/3, 3/3 first"):
        prepare(source, tmp_path, Join())
    prepare(source, tmp_path, Part(3, 3))
    with pytest.raises(DataError, match=r"1 of 4 shards are missing \(000001\), expected all; prepare part 2/3 first"):
        prepare(source, tmp_path, Join())
    assert not list(tmp_path.glob("*/manifest.jsonl")), "half a set has no manifest"
    with pytest.raises(DataError, match="manifest is missing"):
        load_shards(next(tmp_path.iterdir()))


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3"])
def test_a_part_that_cannot_be_is_refused(text):
    with pytest.raises(ConfigError, match="part is .*, expected"):
        Part.parse(text)
    assert Part.parse("3/64") == Part(3, 64) and str(Part(3, 64)) == "3/64"


def test_named_sets_are_prepared_in_parts_as_well(tmp_path):
    jobs = {f"object-{i}": i for i in range(7)}

    def render(index: int):
        return pictured(f"object-{index}", str(index)), None

    make = partial(prepare_set, CONFIG, {"kind": "toys"}, jobs, render, objects_per_shard=2)
    expected = make(root=tmp_path / "a")
    for number in (2, 1):
        assert isinstance(make(root=tmp_path / "b", part=Part(number, 3)), PartOfSet)
    with pytest.raises(DataError, match=r"2 of 4 shards are missing \(000002 to 000003\), .*prepare part 3/3 first"):
        make(root=tmp_path / "b", part=Join())
    assert make(root=tmp_path / "b", part=Part(3, 3)).objects == 3
    joined = make(root=tmp_path / "b", part=Join())
    assert (joined.digest, joined.checksum) == (expected.digest, expected.checksum)
    assert sorted(f.name for f in joined.folder.iterdir()) == sorted(f.name for f in expected.folder.iterdir())
    with pytest.raises(ConfigError, match="expected objects_per_shard"):
        prepare_set(CONFIG, {}, jobs, render, root=tmp_path, part=Part(1, 2))


# ---------------------------------------------------------------------------------------- kills and changes


def prepare_and_die(source: Path, root: Path, per_shard: int | None, die_at: int) -> None:
    """Prepare in this process, which kills itself at its so-many-th operation on the file system."""
    torch.set_num_threads(1)
    left = count()

    def counted(operation):
        def run(*arguments, **options):
            if next(left) == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return run

    for name in ("replace", "rename", "mkdir", "write_text", "write_bytes", "unlink", "open"):
        setattr(Path, name, counted(getattr(Path, name)))
    for module, name in ((streamed, "write_file"), (streamed, "write_tar"), (tars, "sync"), (sequence, "write_json")):
        setattr(module, name, counted(getattr(module, name)))
    shutil.rmtree = counted(shutil.rmtree)
    prepare(source, root, objects_per_shard=per_shard)
    os._exit(9)


@pytest.mark.parametrize("per_shard", [PER_SHARD, None])
def test_no_kill_leaves_half_a_set_or_changes_it(tmp_path, per_shard):
    source = write(tmp_path / "toys", 5, broken=True)
    expected = prepare(source, tmp_path / "whole", objects_per_shard=per_shard)
    fork, statuses = multiprocessing.get_context("fork"), []
    for die_at in count(step=3 if per_shard else 7):
        process = fork.Process(target=prepare_and_die, args=(source, root := tmp_path / str(die_at), per_shard, die_at))
        process.start()
        process.join(60)
        statuses.append(process.exitcode)
        finished = [f.parent for f in root.glob("*/manifest.json*") if not f.parent.name.endswith(".partial")]
        assert all(bytes_of(f).keys() >= bytes_of(expected.folder).keys() for f in finished), "half a set has its name"
        found = prepare(source, root, objects_per_shard=per_shard)
        whole, kept = bytes_of(expected.folder), bytes_of(found.folder)
        assert found.folder.name == expected.folder.name and all(kept[name] == whole[name] for name in whole)
        if statuses[-1] == 9:
            break
    assert statuses[:-1] == [-signal.SIGKILL] * (len(statuses) - 1) and len(statuses) > 8


def read_slowly(scene: Scene, _options):
    time.sleep(0.2)
    return read(scene)


def prepare_with_workers(source: Path, root: Path) -> None:
    prepare(source, root, read=read_slowly, workers=2, objects_per_shard=2)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are looked for in /proc")
def test_workers_end_with_a_process_that_is_killed_and_their_shards_are_kept(source, tmp_path):
    """The main process gets no chance to tell them."""
    expected = prepare(source, tmp_path / "whole", objects_per_shard=2)
    process = multiprocessing.get_context("spawn").Process(target=prepare_with_workers, args=(source, tmp_path / "a"))
    process.start()
    deadline = time.monotonic() + 300
    while not list((tmp_path / "a").glob("*.partial/ledger/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    children = _descendants(process.pid)
    process.kill()
    process.join()
    assert len(children) >= 2
    while any(map(_is_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(_is_alive, children)), "workers outlive the process that started them"
    written = {f.stem for f in (tmp_path / "a").glob("*.partial/ledger/*")}
    assert 0 < len(written) < 6
    seen = []
    found = prepare(source, tmp_path / "a", read=lambda s, _: seen.append(s.key) or read(s), objects_per_shard=2)
    assert found.checksum == expected.checksum and len(seen) <= COUNT - 2 * len(written) + 1


def _descendants(pid: int) -> list[int]:
    own = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return own + [below for child in own for below in _descendants(child)]


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_objects_that_changed_since_they_were_read_are_read_again(tmp_path):
    source, root = write(tmp_path / "toys"), tmp_path / "data"
    seen: list[str] = []

    def counting(scene, _options):
        seen.append(scene.key)
        return read(scene)

    prepare(source, root, Part(1, 2), counting)
    assert len(seen) == 1 + 6, "the first one is looked at, for the settings"
    prepare(source, root, Part(1, 2), counting)
    assert len(seen) == 1 + 6, "whole shards are kept"
    place = source / seen[5] / "rgb" / "text"
    place.write_text("other")
    del seen[:]
    prepare(source, root, Part(1, 2), counting)
    assert len(seen) == 3 and place.parent.parent.name in seen, "the shard that the object is in"
    changed = prepare(source, root)
    assert changed.digest != prepare(write(tmp_path / "again" / "toys"), root).digest
    place.touch()  # another time, the same content
    assert prepare(source, root, read=never).folder == changed.folder
    place.write_text("more")
    assert prepare(source, root).checksum != changed.checksum


def test_the_same_files_elsewhere_are_the_same_set(source, whole, tmp_path):
    shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copyfile)
    assert prepare(tmp_path / "copy", tmp_path / "data").folder.name == whole.folder.name


# ---------------------------------------------------------------------------------------- broken objects


@pytest.mark.parametrize("per_shard", [PER_SHARD, None])
def test_a_broken_object_is_left_out_named_and_part_of_the_identity(tmp_path, whole, per_shard):
    source, root = write(tmp_path / "toys", broken=True), tmp_path / "data"
    data = prepare(source, root, objects_per_shard=per_shard)
    assert len(data) == COUNT - 1
    report = json.loads((data.folder / "filter.json").read_text())
    message = f"{BROKEN}: object '{BROKEN}': is broken, expected a whole one"
    assert report["dropped_objects"] == {"cannot be used": {BROKEN: message}} and report["kept"] == COUNT - 1
    file = data.folder / ("manifest.json" if per_shard is None else "manifest.jsonl")
    head = json.loads(file.read_text() if per_shard is None else file.read_text().splitlines()[0])
    assert head["config"]["num_objects"] == COUNT - 3
    assert data.digest != whole.digest
    strict = pytest.raises(DataError, match="is broken, expected a whole one")
    with strict:
        prepare(source, root, objects_per_shard=per_shard, strict=True)
    with strict:
        prepare(source, tmp_path / "strict", objects_per_shard=per_shard, strict=True)
    if per_shard:
        assert prepare(source, tmp_path / "part", Part(1, 1)).left_out.keys() == {BROKEN}
        with strict:
            prepare(source, tmp_path / "part", Part(1, 1), strict=True)


def test_objects_that_are_all_broken_are_an_error(tmp_path):
    folder = write(tmp_path / "toys", 2)
    for file in folder.glob("*/rgb/text"):
        file.write_text("broken")
    with pytest.raises(DataError, match=r"none of the objects can be used for training\n.*object-00': is broken"):
        prepare(folder, tmp_path / "data")


def test_a_disk_that_is_full_is_no_fault_of_an_object(tmp_path, source, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streamed, "write_tar", full)
    with pytest.raises(DataError, match=r"ledger/000000.jsonl: cannot be written .*No space left"):
        prepare(source, tmp_path)
    assert not list(tmp_path.glob("*/ledger/*"))


# ---------------------------------------------------------------------------------------- the listing


def test_a_listing_gives_back_its_scenes_training_objects_first(tmp_path):
    scenes = [
        Scene(f"k{i}", "srn", tmp_path / f"k{i}", tmp_path, "test" if i == 1 else "train", f"caption {i}", {"a": [i]},
              {"frames": str(tmp_path / f"k{i}" / "x"), "n": i})
        for i in range(4)
    ]  # fmt: skip
    with Listing(iter(scenes), tmp_path, tmp_path / "data") as listing:
        assert list(listing) == [scenes[0], scenes[2], scenes[3], scenes[1]]
        assert listing.told and listing.tests.tolist() == [False, False, False, True]
        assert str(tmp_path) not in json.dumps([listing.entry(i) for i in range(4)]), "another root, the same digest"
    assert not list((tmp_path / "data").iterdir())
    twice = [*scenes, Scene("k2", "srn", tmp_path / "other", tmp_path)]
    with pytest.raises(DataError, match=r"other: its key 'k2' is that of .*k2 as well"):
        Listing(iter(twice), tmp_path, tmp_path)


def test_stamps_and_contents_tell_files_apart(tmp_path):
    scene = next(walk(write(tmp_path / "toys", 1), "srn"))
    marks = [(stamp(scene), content(scene))]
    os.utime(scene.place / "rgb" / "text", (1, 1))
    marks.append((stamp(scene), content(scene)))
    assert marks[0][0] != marks[1][0] and marks[0][1] == marks[1][1]
    (scene.place / "rgb" / "more").touch()
    assert content(scene) != marks[1][1]
    (scene.place.parent / "intrinsics.txt").write_text("1 2 3")  # above the object, which is read with it
    assert content(scene) not in (marks[1][1], (scene.place / "rgb" / "more").unlink())


def test_memory_is_a_few_dozen_bytes_an_object(tmp_path):
    """Listing, sharing out and joining 3,000 objects, against 300: those that prepare are what they are for one."""
    peaks = {}
    for number in (300, 3_000):
        root = tmp_path / str(number)

        def scenes(count=number, root=root):
            return (Scene(f"object{i:06d}", "srn", root / f"object{i:06d}", root) for i in range(count))

        tracemalloc.start()
        with Listing(scenes(), root, root) as listing:
            work = Work(CONFIG, root / "work", root, sequence.SEQUENCES, read, files_of, 100, False, False)
            (work.folder / "ledger").mkdir(parents=True)
            for unit in range(number // 100):
                rows = [{"key": f"object{i:06d}", "shard": unit, "offset": 0, "bytes": 1, "split": "train", "views": 4,
                         "sha256": "0" * 64} for i in range(100 * unit, 100 * unit + 100)]  # fmt: skip
                lines = [{"key": r["key"], "stamp": "", "content": "", "reason": None, "row": r} for r in rows]
                work.ledger(unit).write_text("".join(json.dumps(line) + "\n" for line in lines))
            fates = np.full(number, TRAIN, np.int8)
            load_shards(join(work, {"own": {}}, {}, listing, fates, lambda _: ("filter.json", {})))
        peaks[number] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (peaks[3_000] - peaks[300]) / 2_700 < 250  # the opened set has 70 of them
