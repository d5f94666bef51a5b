"""Captions made by the preparation tools."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vader import commands
from vader.data.formats import scan
from vader.data.formats.shared.captions import read_captions, with_captions
from vader.data.preparation import captions as captions_module
from vader.data.preparation.captions import QUESTION, Subject, captioner, write_captions
from vader.data.prepared import DataError
from vader.store.weights import WeightsError


def picture(seed, size=(20, 30)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


class Reader:
    """A captioner without a model: says the hint and the picture's first level. Dies before a given batch."""

    class loaded:
        about = {"model": "reader"}

    def __init__(self, dies_at=None):
        self.batches, self.dies_at = [], dies_at

    def __call__(self, pictures, hints):
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append(list(hints))
        return ["" if h == "nothing" else f'A {h}, "{p[0, 0, 0]}".' for p, h in zip(pictures, hints, strict=True)]


def subjects(*hints):
    return [Subject(f"k{i}", hint, lambda i=i: picture(i)) for i, hint in enumerate(hints)]


def test_the_question_is_the_papers_word_for_word():
    assert QUESTION.format(hint="<hint>") == (
        "Describe this <hint> in one sentence. Describe its shape and color. Be concise, use only a single sentence."
    )


def test_random_tiny_captioner_says_the_same_alone_and_among_others(random_tiny_captioner):
    model = captioner(random_tiny_captioner)
    seen = [picture(0), picture(1, (40, 20)), picture(2), picture(3)]
    hints = ["chair", "red table", "lamp", "chair in a lamp"]
    said = model(seen, hints)
    assert said == [model([p], [h])[0] for p, h in zip(seen, hints, strict=True)]
    assert len(set(said)) > 1 and all(said)
    assert model.prompt("chair") == f"Question: {QUESTION.format(hint='chair')} Answer:"
    assert not any("Question" in text[:12] for text in said)  # the answer without the question


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_captions_are_written_as_the_readers_read_them(tmp_path, suffix):
    file = tmp_path / f"captions{suffix}"
    assert write_captions(subjects("chair", "größe", "lamp"), file, Reader(), batch_size=2) == 3
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    expected = {f"k{i}": f'A {h}, "{picture(i)[0, 0, 0]}".' for i, h in enumerate(["chair", "größe", "lamp"])}
    assert read_captions(file) == {key: {"caption": text} for key, text in expected.items()}


def test_captions_of_a_run_that_was_killed_stay(tmp_path):
    file, things = tmp_path / "captions.csv", subjects(*"abcde")
    with pytest.raises(KeyboardInterrupt):
        write_captions(things, file, Reader(dies_at=2), batch_size=2)
    assert not file.exists()
    partial = tmp_path / "captions.csv.partial"
    partial.write_text(partial.read_text() + '{"key": "k4", "capt')  # killed in the middle of a line
    model = Reader()
    assert write_captions(things, file, model, batch_size=2) == 5
    assert model.batches == [["e"]] and len(read_captions(file)) == 5 and not partial.exists()


def test_captions_and_fields_that_are_there_stay(tmp_path):
    file = tmp_path / "captions.csv"
    file.write_text("key,caption,category,split\nk0,My own words.,chair,test\nk1,,table,train\n")
    model = Reader()
    assert write_captions(subjects("a", "b", "c"), file, model) == 2 and model.batches == [["b", "c"]]
    found = read_captions(file)
    assert found["k0"] == {"caption": "My own words.", "category": "chair", "split": "test"}
    assert found["k1"]["category"] == "table" and found["k1"]["caption"].startswith("A b")
    assert write_captions(subjects("a", "b", "c"), file, model) == 0 and len(model.batches) == 1


def test_captions_of_another_model_are_not_mixed_in(tmp_path):
    file = tmp_path / "captions.csv"
    with pytest.raises(KeyboardInterrupt):
        write_captions(subjects("a", "b"), file, Reader(dies_at=1), batch_size=1)
    other = Reader()
    other.loaded = type("Loaded", (), {"about": {"model": "another"}})
    with pytest.raises(DataError, match=r"partial: an earlier run asked .*reader.*expected .*another"):
        write_captions(subjects("a", "b"), file, other)


def test_objects_that_cannot_be_described_are_named_and_the_others_are_not_lost(tmp_path):
    def broken():
        raise DataError("x.png: cannot be decoded")

    things = [Subject("bad", "chair", broken), *subjects("nothing", "lamp")]
    with pytest.raises(DataError, match="x.png"):
        write_captions(things, tmp_path / "a.csv", Reader())
    faults = {}
    assert write_captions(things, tmp_path / "b.csv", Reader(), faults=faults) == 1
    assert faults.keys() == {"bad", "k0"} and "says nothing" in faults["k0"]


def test_random_tiny_captioner_describes_a_folder_from_the_command_line(tmp_path, random_tiny_captioner, capsys):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(picture(i + ord(name))).save(tmp_path / "data" / name / f"{i}.png")
    command = ["prepare", "captions", str(tmp_path / "data"), "--captioner", str(random_tiny_captioner)]
    assert commands.main(command) == 1 and "'a' has neither category nor name" in capsys.readouterr().err
    assert commands.main([*command, "--hint", "chair", "--device", "cpu"]) == 0
    assert "2 new captions of 2 objects" in capsys.readouterr().out
    scenes = with_captions(scan(tmp_path / "data"), tmp_path / "data" / "captions.csv")
    model = captioner(random_tiny_captioner)
    assert [s.caption for s in scenes] == [model([picture(ord(s.key))], ["chair"])[0] for s in scenes]


def test_random_tiny_captioner_describes_a_data_set_by_name(tmp_path, random_tiny_captioner, capsys, monkeypatch):
    seen = []

    def write(things, file, model, batch_size, faults):
        seen.extend((s.key, s.hint, s.picture().shape) for s in list(things)[:2])
        return 0

    monkeypatch.setattr("vader.commands.prepare.write_captions", write)
    command = ["prepare", "captions", "furniture_tables", "--captioner", str(random_tiny_captioner), "--hint", "table"]
    assert commands.main(command) == 1 and "--out is missing" in capsys.readouterr().err
    assert commands.main([*command, "--out", str(tmp_path / "c.csv")]) == 0
    assert all(hint == "table" and shape == (48, 48, 3) for _, hint, shape in seen) and len(seen) == 2


def test_random_tiny_models_of_other_kinds_are_no_captioners(random_tiny_segmenter, tmp_path):
    with pytest.raises(WeightsError, match="not a readable captioner"):
        captioner(random_tiny_segmenter)
    (tmp_path / "blip").mkdir()
    (tmp_path / "blip" / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(WeightsError, match="blip: not a readable captioner"):
        captioner(tmp_path / "blip")
    assert captions_module.TOKENS >= 32
