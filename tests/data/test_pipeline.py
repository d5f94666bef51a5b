"""Preparing data sets: interruptions resume, processes agree, and nothing is rendered where it cannot be kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vader.data import prepare, sequence
from vader.data.pipeline import SetWriter, prepare_set
from vader.data.prepared import DataError
from vader.data.sequence import Sequence, load_sequence, load_set, object_cameras
from vader.settings.checks import ConfigError
from vader.settings.experiment import DataConfig

CONFIG = DataConfig("toys", num_objects=3, heldout_objects=1, train_views=2, heldout_views=1, resolution=5)
JOBS = {f"toy-{i}": i for i in range(4)}


def render(index: int):
    noise = torch.from_numpy(np.random.default_rng(index).integers(0, 256, (3, 5, 5, 4), dtype=np.uint8))
    key = f"toy-{index}"
    return Sequence(key, noise[..., :3].clone(), noise[..., 3].clone(), object_cameras(CONFIG, key)), None


class PowerCut(BaseException):
    pass


def test_an_interrupted_preparation_goes_on_with_the_next_object(tmp_path):
    whole = prepare_set(CONFIG, {"kind": "toys"}, JOBS, render, root=tmp_path / "first")
    calls = []

    def interrupted(index: int):
        calls.append(index)
        if len(calls) == 3:
            raise PowerCut
        return render(index)

    root = tmp_path / "second"
    with pytest.raises(PowerCut):
        prepare_set(CONFIG, {"kind": "toys"}, JOBS, interrupted, root=root)
    with pytest.raises(DataError, match="manifest is missing"):
        load_set(root / whole.folder.name)
    resumed = prepare_set(CONFIG, {"kind": "toys"}, JOBS, interrupted, root=root)
    assert calls == [0, 1, 2, 2, 3]
    assert resumed.pixel_checksum == whole.pixel_checksum
    prepare_set(CONFIG, {"kind": "toys"}, JOBS, interrupted, root=root)
    assert calls == [0, 1, 2, 2, 3]  # a complete set is only loaded


def test_an_object_that_was_half_written_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(sequence, "write_json", lambda *a, **k: (_ for _ in ()).throw(PowerCut))
    writer = SetWriter(CONFIG, {}, tmp_path)
    with pytest.raises(PowerCut):
        writer.write(render(0)[0])
    monkeypatch.undo()
    leftover = writer.object_folder("toy-0").parent / ".toy-0-999999"  # as a killed process leaves it
    (leftover / "images").mkdir(parents=True)
    assert writer.pending(["toy-0"]) == ["toy-0"]
    writer.write(render(0)[0])
    assert writer.pending(["toy-0"]) == []
    writer.finish(["toy-0"])
    assert [f.name for f in leftover.parent.iterdir()] == ["toy-0"]
    assert torch.equal(load_sequence(writer.object_folder("toy-0")).images, render(0)[0].images)


def test_processes_are_one_threaded_and_leave_the_callers_threads_alone(tmp_path):
    def render_counting(index: int):
        seen.append(torch.get_num_threads())
        return render(index)

    before, seen = torch.get_num_threads(), []
    prepare_set(CONFIG, {}, JOBS, render_counting, root=tmp_path)
    assert seen == [1] * 4 and torch.get_num_threads() == before


def test_an_unwritable_output_folder_is_named_before_rendering(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/toys-\w+: data set toys: output folder is not writable.*VADER_DATA"):
        prepare_set(CONFIG, {}, JOBS, lambda i: pytest.fail("rendered before the check"), root=tmp_path / "file")


def test_a_set_with_too_few_views_is_refused(tmp_path):
    fewer = dataclasses.replace(CONFIG, heldout_views=2)
    with pytest.raises(DataError, match="object 'toy-0': has 3 views, expected the 4"):
        prepare_set(fewer, {}, JOBS, render, root=tmp_path)


def test_an_option_that_a_reader_does_not_take_is_named():
    with pytest.raises(ConfigError, match="'puppets' takes no option 'objects_per_shard'"):
        prepare(DataConfig("puppets"), objects_per_shard=4)
