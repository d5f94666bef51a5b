"""Captions and categories beside the data."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from vader.data.formats.shared.captions import captioned, read_captions, with_captions
from vader.data.formats.shared.scenes import Scene
from vader.data.prepared import DataError

HERE = Path("/x")
SCENES = [Scene(key, "srn", HERE / key, HERE, attributes={"a": 1}) for key in ("chair-1", "chair-2", "sofa_3")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", 'key,caption,category\nchair-1,"a red, soft chair",chairs\nsofa_3,,sofas\n'),
        ("c.csv", '\ufeffCaption, ID,category\r\n" a  red, soft chair ",chair/1,chairs\r\n\r\n,sofa 3,sofas\r\n'),
        ("c.json", json.dumps({"chair-1": {"caption": "a red, soft chair", "category": "chairs"},
                               "sofa_3": {"category": "sofas", "caption": None}})),
        ("c.json", json.dumps([{"key": "chair-1", "caption": "a red, soft chair", "category": "chairs"},
                               {"uid": "sofa_3", "category": "sofas"}])),
    ],
)  # fmt: skip
def test_the_same_from_every_kind_of_file(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    first, second, third = with_captions(SCENES, tmp_path / name)
    assert (first.caption, first.attributes) == ("a red, soft chair", {"a": 1, "category": "chairs"})
    assert second == SCENES[1] and third.caption is None and third.attributes["category"] == "sofas"


def test_captions_alone_and_splits(tmp_path):
    (tmp_path / "c.json").write_text('{"chair-1": "a chair"}')
    assert with_captions(SCENES, tmp_path / "c.json")[0].caption == "a chair"
    (tmp_path / "c.csv").write_text("key,split\nchair-1,test\n")
    assert [s.split for s in with_captions(SCENES, tmp_path / "c.csv")] == ["test", "train", "train"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "c.csv",
            "key,caption\nchair-9,x\n",
            r"c.csv: 1 of 1 keys are of no object, .*'chair-9' \(did you mean 'chair-[12]'",
        ),
        ("c.csv", "key,caption\nchair-1,x\nchair-1,y\n", "c.csv: line 3: key 'chair-1' is there twice"),
        ("c.csv", "key,captoin\nchair-1,x\n", r"line 1: column 'captoin' is unknown \(did you mean 'caption'"),
        ("c.csv", "chair-1,x\n", "line 1: the head is chair-1,x, expected key,caption,category,split"),
        ("c.csv", "key,caption\nchair-1,a red, soft chair\n", r"line 2: 3 fields, expected 2 as in the head \(quote"),
        ("c.csv", 'key,caption\nchair-1,"never ends\n', "not CSV"),
        ("c.csv", "key,caption\n,x\n", "line 2: key is '', expected the key"),
        ("c.csv", "key,split\nchair-1,val\n", r"line 2: split is 'val', expected one of \('train', 'test'\)"),
        ("c.csv", "", "line 1: the head is"),
        ("c.csv", "key,caption\n", "c.csv: no entries"),
        ("c.json", '{"chair-1": "a", "chair-1": "b"}', "c.json: key 'chair-1' is there twice"),
        ("c.json", '{"chair-1": {"text": "a"}}', "entry 'chair-1': field 'text' is unknown"),
        ("c.json", '{"chair-1": 5}', "entry 'chair-1' is 5, expected a caption or an object"),
        ("c.json", '{"chair-1": {"caption": ["a"]}}', r"entry 'chair-1': caption is \['a'\], expected text"),
        ("c.json", '[{"caption": "a"}]', "entry 0 has no key"),
        ("c.json", '"a"', "holds str, expected an object by key"),
        ("c.json", "{", "c.json: not JSON"),
        ("c.txt", "a", "suffix '.txt', expected .csv or .json"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        with_captions(SCENES, tmp_path / name)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="gone.csv: cannot be read"):
        read_captions(tmp_path / "gone.csv")
    (tmp_path / "c.csv").write_bytes(b"key,caption\nchair-1,\xff\xfe\n")
    with pytest.raises(DataError, match="c.csv: cannot be read, expected a CSV or JSON file .*utf-8"):
        read_captions(tmp_path / "c.csv")


def test_captions_of_very_many_objects_are_not_in_memory(tmp_path):
    peaks = {}
    for number in (300, 30_000):
        with open(tmp_path / "c.csv", "w") as file:
            file.write("key,caption\n")
            file.writelines(f"chair-{i},a chair of wood with {i} legs\n" for i in range(number))
        scenes = (Scene(f"chair-{i}", "srn", HERE, HERE) for i in reversed(range(number)))
        tracemalloc.start()
        last = None
        for scene in captioned(scenes, tmp_path / "c.csv"):
            last = scene
        peaks[number] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert last.caption == "a chair of wood with 0 legs"
    assert peaks[30_000] - peaks[300] < 300_000, "the keys that messages show, and no more"
