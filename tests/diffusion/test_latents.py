"""Latents in a file: the same numbers as in memory, whatever happened while they were written."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import balls, tiny_experiment
from vader.autodecoder.reconstruction import load_autodecoder
from vader.diffusion import latents
from vader.diffusion.denoising import Denoising, extract_latents
from vader.diffusion.latents import NormalizedLatents, StoredLatents, extract_to, stored_latents
from vader.stages import autodecoder_run, diffusion_run
from vader.store import runs
from vader.store.files import read_weights, save_weights
from vader.store.runs import RunError

CONFIG = tiny_experiment(reconstruction=dict(images_seen=8))


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    """A stage-1 run of five objects, with its autodecoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(tmp_path_factory.mktemp("runs")))
        run = autodecoder_run(CONFIG, balls(CONFIG, objects=5), "cpu")
    return run, load_autodecoder(run, CONFIG)


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))


def test_the_file_holds_what_memory_would(stage1):
    run, autodecoder = stage1
    whole = extract_latents(autodecoder, 2)
    stored = stored_latents(autodecoder, run, 2)
    assert stored.shape == whole.shape and len(stored) == 5
    (folder,) = runs.runs_dir().glob("balls-latents-*[0-9a-f]")
    assert torch.equal(load_file(folder / "latents.safetensors")["features"], whole), "as safetensors reads it"
    assert torch.equal(torch.cat(list(stored)), whole)
    chosen = torch.tensor([4, 0, 0, 3])
    assert torch.equal(stored[chosen], whole[chosen])
    assert not list(folder.glob("checkpoint*"))


def test_passes_read_a_piece_at_a_time(stage1, monkeypatch):
    stored = stored_latents(stage1[1], stage1[0])
    monkeypatch.setattr(latents, "PIECE", 2 * 4 * stored.shape[1:].numel())
    assert [len(piece) for piece in stored] == [2, 2, 1]


def test_it_is_extracted_once(stage1, monkeypatch):
    run, autodecoder = stage1
    stored_latents(autodecoder, run)
    monkeypatch.setattr(latents, "extract_to", None)
    assert len(stored_latents(autodecoder, run)) == 5
    with pytest.raises(TypeError):
        stored_latents(autodecoder, dataclasses.replace(run, digest="another"))


@pytest.mark.parametrize("saved", [1, 10**9])
def test_a_killed_extraction_goes_on_and_ends_equal(stage1, tmp_path, monkeypatch, saved):
    """saved: bytes between points to resume from; with many, the extraction begins again."""
    autodecoder = stage1[1]
    extract_to(tmp_path / "whole.safetensors", autodecoder, 5, 2)
    monkeypatch.setattr(latents, "SAVE_EVERY", saved)
    g1, calls = autodecoder.decoder.g1, []

    def dies(x):
        calls.append(len(x))
        if len(calls) == 4:  # the first is to learn the shape
            raise KeyboardInterrupt
        return g1(x)

    monkeypatch.setattr(autodecoder.decoder, "g1", dies)
    file = tmp_path / "latents.safetensors"
    with pytest.raises(KeyboardInterrupt):
        extract_to(file, autodecoder, 5, 2)
    assert not file.exists()
    with open(tmp_path / "checkpoint-latents.bin", "ab") as partial:
        partial.write(b"half a row that never reached the disk whole")
    extract_to(file, autodecoder, 5, 2)
    assert file.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert calls[4:] == ([1, 1] if saved == 1 else [1, 2, 2, 1])
    extract_to(file, autodecoder, 5, 2)
    assert len(calls) == (6 if saved == 1 else 8), "a finished file is left alone"


def test_progress_without_its_data_is_not_believed(stage1, tmp_path):
    (tmp_path / "checkpoint-latents.json").write_text('{"objects": 4}')
    (tmp_path / "checkpoint-latents.bin").write_bytes(b"\0" * 100)
    extract_to(tmp_path / "latents.safetensors", stage1[1], 5, 2)
    assert torch.equal(torch.cat(list(StoredLatents(tmp_path / "latents.safetensors"))), extract_latents(stage1[1], 2))


@pytest.mark.parametrize("changes", [{}, dict(diffusion=dict(per_channel=True))])
def test_stage_2_from_the_file_equals_stage_2_from_memory(tmp_path, monkeypatch, changes):
    data, config = balls(CONFIG), CONFIG.replace(**changes)
    memory = diffusion_run(config, data, "cpu")
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "file"))
    monkeypatch.setattr(latents, "IN_MEMORY", 0)
    file = diffusion_run(config, data, "cpu")
    assert list(runs.runs_dir().glob("balls-latents-*")) and file.digest == memory.digest
    for part in ("denoiser", "statistics"):
        a, b = (read_weights(run.weights(part))[0] for run in (memory, file))
        for name in a:
            equal = torch.equal(a[name], b[name])
            assert equal or (name in ("mean", "std") and torch.allclose(a[name], b[name], rtol=2e-7)), name
    assert file.record["largest_normalized_latent"] == memory.record["largest_normalized_latent"]
    assert file.record["latents"] == 4


def test_few_latents_stay_in_memory(stage1, monkeypatch):
    run, autodecoder = stage1
    size = 4 * extract_latents(autodecoder).numel()
    monkeypatch.setattr(latents, "IN_MEMORY", size)
    assert isinstance(Denoising(CONFIG, run, torch.device("cpu")).latents, torch.Tensor)
    monkeypatch.setattr(latents, "IN_MEMORY", size - 1)
    assert isinstance(Denoising(CONFIG, run, torch.device("cpu")).latents, NormalizedLatents)


def test_a_changed_or_foreign_file_is_refused(stage1, tmp_path):
    run, autodecoder = stage1
    stored_latents(autodecoder, run)
    (file,) = runs.runs_dir().glob("balls-latents-*/latents.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"latents\.safetensors: SHA-256 is"):
        stored_latents(autodecoder, run)
    file.write_bytes(content[:-4])
    with pytest.raises(RunError, match=r"has \d+ bytes of .*, expected \d+ of float32"):
        StoredLatents(file)
    save_weights(tmp_path / "other.safetensors", {"weight": torch.zeros(2)}, {})
    with pytest.raises(RunError, match=r"other\.safetensors: has no tensor 'features'"):
        StoredLatents(tmp_path / "other.safetensors")
    save_weights(tmp_path / "half.safetensors", {"features": torch.zeros(2, 1, 1, 1, 1).half()}, {})
    with pytest.raises(RunError, match="expected .* of float32"):
        StoredLatents(tmp_path / "half.safetensors")
