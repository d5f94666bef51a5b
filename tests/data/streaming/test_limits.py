"""Sets of so many objects as one asks for, with rules that leave some out: the same in memory, as tars and in parts."""

from __future__ import annotations

import dataclasses
import errno
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.formats.rendered import orbit
from tests.data.formats.rendered import pictured as rendered
from tests.data.formats.test_posed_layouts import write_srn
from vader.data import transient
from vader.data.formats import Placing, Scene, walk
from vader.data.formats.shared import images
from vader.data.prepared import DataError
from vader.data.sets.own import prepare_folder
from vader.data.streaming.listing import Listing, chosen_groups
from vader.data.streaming.parts import Join, Part
from vader.data.streaming.streamed import LeftOut
from vader.data.video import VIDEOS
from vader.settings.checks import ConfigError

from .test_parts import CONFIG, never, pictured, prepare, write

pytest.importorskip("webdataset")
RULE = "is a sofa"


def read(scene: Scene, _options=None):
    """Every fourth object is broken, and every fifth one is left out by a rule."""
    number = int((scene.place / "rgb" / "text").read_text())
    if number % 4 == 3:
        raise DataError(f"{scene.where}: is broken, expected a whole one")
    if number % 5 == 4:
        raise LeftOut(RULE, f"{scene.where}: {RULE}")
    return pictured(scene.key, str(number), scene.split), None


class Verdict:
    """Of masks: those whose first level is high are out."""

    def __init__(self, objects):
        self.levels = {found.key: int(found.masks[0, 0, 0]) for found in objects}
        self.dropped = {key: f"level {level}" for key, level in self.levels.items() if level > 160}

    def report(self):
        return {"levels": self.levels}


def pair(scene: Scene) -> str:
    return str(int(scene.key[-2:]) // 2)


def in_three(source, root, **options):
    """The same set in memory, as tars, and as tars in three parts."""
    options = {"limited": True, "read": read, "group": pair, "judge": Verdict} | options
    memory = prepare(source, root / "memory", objects_per_shard=None, **options)
    tars = prepare(source, root / "tars", **options)
    for number in (2, 3, 1):
        prepare(source, root / "parts", Part(number, 3), **options)
    return memory, tars, prepare(source, root / "parts", Join(), **options | {"read": never})


def report_of(data) -> dict:
    return json.loads((data.folder / "filter.json").read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("source") / "toys", 24)


@pytest.mark.parametrize("wanted", [(3, 1), (7, 2), (100, 3), (5, 0)])
def test_limits_rules_and_a_judge_make_one_set_of_one_report(source, tmp_path, wanted):
    config = dataclasses.replace(CONFIG, num_objects=wanted[0], heldout_objects=wanted[1])
    memory, tars, joined = in_three(source, tmp_path, config=config)
    assert tars.folder.name == joined.folder.name == f"{memory.folder.name}-by3"
    assert tars.checksum == joined.checksum and report_of(memory) == report_of(tars) == report_of(joined)
    for split in ("train", "test"):
        for a, b in zip(memory.split(split), joined.split(split), strict=True):
            assert (a.key, a.split, a.pixel_checksum()) == (b.key, b.split, b.pixel_checksum())
    files = [{f.name: f.read_bytes() for f in data.folder.glob("*.tar")} for data in (tars, joined)]
    assert files[0] == files[1] and sorted(files[0]) == sorted({tars.shard(row).name for row in range(len(tars))})
    assert [s.split for s in memory] == sorted((s.split for s in memory), reverse=True), "held-out objects come last"
    report, kept = report_of(memory), {s.key for s in memory}
    assert {folder.name for folder in (memory.folder / "objects").iterdir()} == kept, "and nothing else lies there"
    assert not kept & {key for keys in report["dropped_objects"].values() for key in keys}
    assert report["found"] == 24 == report["kept"] + sum(report["dropped"].values()) + report["not_needed"]
    assert report["kept"] == len(memory) == len(tars) and set(report["mask_fit"]["levels"]) >= kept
    groups = [{key for key in map(pair, _scenes(source, memory.split(split)))} for split in ("train", "test")]
    assert not groups[0] & groups[1], "a group is in one split"
    if wanted[0] == 100:
        sizes = {"cannot be used": 6, RULE: 3}  # 3, 7, 11, 15, 19 and 23; of 4, 9, 14 and 19 the last is broken
        assert report["not_needed"] == 0 and {k: report["dropped"][k] for k in sizes} == sizes
    assert [len(memory.split("train")) <= wanted[0], len(memory.split("test")) <= wanted[1] + 1] == [True, True]


def _scenes(source, sequences) -> list[Scene]:
    keys = {s.key for s in sequences}
    return [scene for scene in walk(source, "srn") if scene.key in keys]


def test_another_object_takes_the_place_of_one_that_is_dropped_and_no_more_are_read_than_that(source, tmp_path):
    seen: list[str] = []

    def noted(scene, options):
        seen.append(scene.key)
        return read(scene)

    config = dataclasses.replace(CONFIG, num_objects=9, heldout_objects=1)
    data = prepare(source, tmp_path, objects_per_shard=None, limited=True, config=config, read=noted)
    report = report_of(data)
    assert len(data) == 10 and len(set(seen)) == 10 + sum(report["dropped"].values()) == 24 - report["not_needed"]
    with Listing(walk(source, "srn"), source, tmp_path, config.seed, shuffled=True) as listing:
        order = [scene.key for scene in listing]
    assert [s.key for s in data] == [key for key in order if key in {s.key for s in data}], "in the listing's order"
    assert set(seen) == set(order[: len(set(seen))]) and order != sorted(order)


def test_a_rule_is_no_fault_where_one_is_strict_and_a_judge_is_asked_once_when_parts_are_joined(tmp_path):
    source, asked = write(tmp_path / "toys", 3), []
    for place in (tmp_path / "toys" / "object-01", tmp_path / "toys" / "object-02"):
        (place / "rgb" / "text").write_text("4" if place.name.endswith("1") else "2")

    def judge(objects):
        asked.append(sorted(found.key for found in objects))
        return Verdict([])

    options = {"limited": True, "read": read, "strict": True, "judge": judge}
    for number in (1, 2):
        part = prepare(source, tmp_path / "data", Part(number, 2), objects_per_shard=1, **options)
    assert not asked and part.objects == 2
    data = prepare(source, tmp_path / "data", Join(), objects_per_shard=1, **options | {"read": never})
    assert asked == [["object-00", "object-02"]] and report_of(data)["dropped"] == {RULE: 1}
    assert not list(data.folder.glob("*.npz")) and not (data.folder / "ledger").exists()


@pytest.mark.parametrize(("name", "value"), [("supersampling", 3), ("seed", 1), ("train_views", 4), ("num_objects", 9)])
def test_parts_of_other_settings_are_not_joined(source, tmp_path, name, value):
    options = {"limited": True, "read": read}
    prepare(source, tmp_path, Part(1, 2), **options)
    prepare(source, tmp_path, Part(2, 2), config=dataclasses.replace(CONFIG, **{name: value}), **options)
    with pytest.raises(DataError, match="shards are missing .* prepare part 2/2 first"):
        prepare(source, tmp_path, Join(), **options)
    assert len(list(tmp_path.glob("*.partial"))) == 2


@pytest.mark.parametrize("gone", ["000001.tar", "ledger/000001.npz", "ledger/000001.jsonl"])
def test_a_unit_of_which_a_file_is_gone_is_read_again_and_not_joined_before(source, tmp_path, gone):
    options = {"limited": True, "read": read, "judge": Verdict, "config": dataclasses.replace(CONFIG, num_objects=99)}
    expected = prepare(source, tmp_path / "whole", **options)
    for number in (1, 2):
        part = prepare(source, tmp_path / "data", Part(number, 2), **options)
    (part.folder / gone).unlink()
    with pytest.raises(DataError, match=r"1 of 8 shards are missing \(000001\), expected all; prepare part 1/2 first"):
        prepare(source, tmp_path / "data", Join(), **options | {"read": never})
    assert not list((tmp_path / "data").glob("*/manifest.jsonl")), "half a set has no manifest"
    prepare(source, tmp_path / "data", Part(1, 2), **options)
    joined = prepare(source, tmp_path / "data", Join(), **options | {"read": never})
    assert (joined.checksum, report_of(joined)) == (expected.checksum, report_of(expected))


def test_sets_in_memory_and_of_tars_of_any_size_do_not_get_in_each_others_way(source, tmp_path):
    sets = [prepare(source, tmp_path, objects_per_shard=size, limited=True, read=read) for size in (None, 3, 2, 3)]
    names = [data.folder.name for data in sets]
    assert names == [names[0], f"{names[0]}-by3", f"{names[0]}-by2", f"{names[0]}-by3"]
    assert [len(list(data.folder.glob("*.tar"))) > 0 for data in sets] == [False, True, True, True]


def test_a_fault_of_any_part_is_an_error_where_one_is_strict_when_they_are_joined(source, tmp_path):
    options = {"limited": True, "read": read}
    for number in (1, 2):
        prepare(source, tmp_path, Part(number, 2), **options)
    with pytest.raises(DataError, match="is broken, expected a whole one"):
        prepare(source, tmp_path, Join(), strict=True, **options | {"read": never})


CHANGES = {
    "caption": lambda scene: dataclasses.replace(scene, caption=f"{scene.caption} of wood"),
    "attributes": lambda scene: dataclasses.replace(scene, attributes={"category": "chair"}),
    "placing": lambda scene: dataclasses.replace(scene, placing=Placing(scale=2.0)),
    "key": lambda scene: dataclasses.replace(scene, key=f"x{scene.key}"),
    "split": lambda scene: dataclasses.replace(scene, split="train" if scene.key == "object-00" else scene.split),
    "splits of two": lambda scene: dataclasses.replace(
        scene, split={"object-00": "train", "object-02": "test"}.get(scene.key, scene.split)
    ),
    "nothing": lambda scene: scene,
    "its place": lambda scene: dataclasses.replace(scene, root=scene.place),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_said_of_objects_and_what_they_are_decides_which_set_it_is(tmp_path, what):
    """Objects 0 and 1 are test objects. Swapped captions are another set."""
    source = write(tmp_path / "toys", 5)

    def scenes():
        for number, scene in enumerate(walk(source, "srn")):
            split = "test" if number < 2 else "train"
            yield dataclasses.replace(scene, caption=f"chair {number}", split=split)

    def drawn(scene, _options):
        return dataclasses.replace(pictured(scene.key[-9:], "x", scene.split), key=scene.key), None

    first = prepare(source, tmp_path / "data", read=drawn, scenes=scenes())
    second = prepare(source, tmp_path / "data", read=drawn, scenes=map(CHANGES[what], scenes()))
    assert (first.digest == second.digest) == (what in ("nothing", "its place"))
    swapped = {"chair 2": "chair 3", "chair 3": "chair 2"}
    other = (dataclasses.replace(s, caption=swapped.get(s.caption, s.caption)) for s in scenes())
    assert prepare(source, tmp_path / "data", read=drawn, scenes=other).digest not in (first.digest, second.digest)


def test_settings_are_those_of_the_first_objects_until_these_change(tmp_path):
    source, seen = write(tmp_path / "toys", 5), []

    def noted(scene, options):
        seen.append(scene.key)
        return pictured(scene.key, (scene.place / "rgb" / "text").read_text()), None

    for number in (1, 2):
        prepare(source, tmp_path / "data", Part(number, 5), objects_per_shard=1, limited=True, looked_at=3, read=noted)
    assert len(seen) == 3 + 2, "the second part looks at none"
    with Listing(walk(source, "srn"), source, tmp_path, CONFIG.seed, shuffled=True) as listing:
        (listing[0].place / "rgb" / "text").write_text("other")
    prepare(source, tmp_path / "data", Part(3, 5), objects_per_shard=1, limited=True, looked_at=3, read=noted)
    assert len(seen) == 5 + 3 + 1, "they are looked at again"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(0, 12))
def test_whole_groups_are_held_out_and_never_all_objects(groups, wanted):
    chosen = chosen_groups(np.array(groups, np.uint64), wanted)
    held = {g for g, out in zip(groups, chosen, strict=True) if out}
    assert all(out == (g in held) for g, out in zip(groups, chosen, strict=True)) and not chosen.all()
    assert wanted > 0 or not chosen.any()
    if wanted and len(set(groups)) > 1:
        assert chosen.any()
    if held:
        last = max(held)
        assert sum(g in held and g != last for g in groups) < wanted, "no group more than is needed"


# ---------------------------------------------------------------------------------------- disks and networks


@pytest.fixture
def pauses(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(transient.time, "sleep", slept.append)
    return slept


def failing(times: int, code: int, key: str = "object-02"):
    """A reader whose disk fails so many times."""
    left = [times]

    def fails(scene, options):
        if scene.key == key and left[0]:
            left[0] -= 1
            try:
                raise OSError(code, "the server is away")
            except OSError as error:
                raise DataError(f"{scene.where}: cannot be decoded ({error})") from error
        return pictured(scene.key, "x"), None

    return fails


@pytest.mark.parametrize("times", [1, 3])
def test_an_object_is_read_again_where_a_disk_fails_for_a_moment(tmp_path, pauses, times):
    source = write(tmp_path / "toys", 5)
    expected = prepare(source, tmp_path / "well", read=failing(0, errno.EIO))
    data = prepare(source, tmp_path / "data", read=failing(times, errno.ESTALE))
    assert data.checksum == expected.checksum and pauses == list(transient.PAUSES[:times])


def test_a_disk_that_stays_away_stops_the_preparation_and_leaves_nothing_out(tmp_path, pauses):
    source = write(tmp_path / "toys", 5)
    with pytest.raises(DataError, match=r"object-02.*the server is away.*; tried 4 times; started again, it goes on"):
        prepare(source, tmp_path / "data", read=failing(4, errno.EIO))
    assert pauses == list(transient.PAUSES) and not list((tmp_path / "data").glob("*/manifest*"))
    data = prepare(source, tmp_path / "data", read=failing(0, errno.EIO))
    assert len(data) == 5 and report_of(data)["dropped"] == {}


def test_what_is_no_matter_of_time_is_not_tried_again(tmp_path, pauses):
    source = write(tmp_path / "toys", 5)
    data = prepare(source, tmp_path / "data", read=failing(99, errno.ENOENT))
    assert not pauses and len(data) == 4 and report_of(data)["dropped"] == {"cannot be used": 1}


def test_a_transient_error_of_one_picture_does_not_cost_the_picture(tmp_path, pauses, monkeypatch):
    write_srn(tmp_path / "mugs" / "a", rendered(orbit(6, 32, 32, 45.0), index=0))
    opened, left = images.Image.open, [2]

    def fails(file, *rest, **options):
        if str(file).endswith("000003.png") and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return opened(file, *rest, **options)

    monkeypatch.setattr(images.Image, "open", fails)
    data = prepare_folder(tmp_path / "mugs", "mugs", "smoke", workers=1, root=tmp_path / "data")
    assert left == [0] and len(data[0]) == 6 and "left_out" not in data[0].attributes


# ---------------------------------------------------------------------------------------- what is no tar


def test_videos_are_not_written_as_tars(tmp_path):
    source = write(tmp_path / "toys", 2)
    with pytest.raises(ConfigError, match="tars hold posed images, and these are videos; expected no"):
        prepare(source, tmp_path / "data", holds=VIDEOS)
    assert not (tmp_path / "data").exists()
