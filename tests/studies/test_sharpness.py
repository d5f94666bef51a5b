"""What makes furniture sharper: one change at a time, paired by seed, and what storing a model costs it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tiny import balls, tiny_experiment
from vader.autodecoder.reconstruction import load_autodecoder
from vader.settings.profiles import differences
from vader.stages import autodecoder_run
from vader.store.files import read_json
from vader.studies import sharpness
from vader.studies.sharpness import PLAIN, QUANTITIES, STORED
from vader.studies.sweep import Table, table


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))
    base = tiny_experiment(
        data=dict(resolution=32),  # LPIPS takes no less
        reconstruction=dict(images_seen=16, num_samples=8),
        weights_precision="float32",
    )
    monkeypatch.setattr(sharpness, "study", lambda *_: base)
    return sharpness.sharpness("smoke")


def test_each_training_departs_from_the_plain_one_in_what_its_name_says():
    found = sharpness.sharpness("laptop")
    changed = {name: set(differences(e, found.base)) for name, e in found.experiments.items()}
    stage1 = "reconstruction."
    assert changed == {
        PLAIN: set(),
        "twice the images": {stage1 + "images_seen"},
        "twice the objects a step, half the views of each": {stage1 + "objects_per_step", stage1 + "views_per_object"},
        "half the objects a step, twice the steps": {stage1 + "objects_per_step"},
        "twice the learning rate": {stage1 + "learning_rate"},
        "twice the voxels along each side": {"autodecoder.resolution"},
        "0.4 of the perceptual weight": {stage1 + "perceptual_weight"},
        "half the images under the perceptual loss": {stage1 + "perceptual_images"},
    }
    assert len(found.seeds) == 3 and found.base.weights_precision == "float32"
    assert all("perceptual" not in name for name in sharpness.sharpness("smoke").experiments), "smoke has no network"


def test_rounding_and_statistics_are_measured_on_the_plain_training_alone(small):
    data = balls(small.base)
    plain = small.measure(small, small.base.replace(seed=1), data, "cpu", None)
    kept = {quantity + ending for quantity in QUANTITIES for ending in STORED}
    assert set(plain) == {*QUANTITIES, "seconds", *kept}
    shift = (plain["psnr_float16"] - plain["psnr"]).abs().max()
    assert 0 < shift < 0.01, "half precision moves a picture by a little, and is no copy of the whole weights"
    other = small.measure(small, small.experiments["twice the learning rate"], data, "cpu", None)
    assert set(other) == {*QUANTITIES, "seconds"}


def test_statistics_are_those_of_all_objects_at_every_norm(small):
    data = balls(small.base)
    model, seen = load_autodecoder(autodecoder_run(small.base, data), small.base), {}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm3d)}
    for name, module in norms.items():
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    sharpness.take_statistics(model, 4)
    for name, module in norms.items():
        x = seen[name].movedim(1, 0).flatten(1)
        assert len(seen[name]) == 4 and not module.training
        torch.testing.assert_close(module.running_mean, x.double().mean(1).float(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(module.running_var, x.double().var(1).float(), atol=1e-4, rtol=1e-3)


def planted(sweep):
    """A table in which the learning rate wins 1 dB and loses LPIPS in both seeds, and the images are undecided."""
    values = {}
    for seed in sweep.seeds:
        for name in sweep.experiments:
            shift = {"twice the learning rate": 1 + 0.01 * seed, "twice the images": (-1) ** seed}.get(name, 0)
            for quantity in QUANTITIES:
                for ending in ("", *STORED) if name == PLAIN else ("",):
                    stored = -0.5 - 0.01 * seed if ending == "_float16" else 0.0
                    values[name, seed, quantity + ending] = torch.tensor([20.0 + 5 * seed + shift + stored])
            values[name, seed, "seconds"] = torch.tensor(10.0 * (1 + (name == "twice the images")) * (1 + seed))
    return Table(sweep, None, values)


def test_gains_are_paired_by_seed_and_lower_lpips_is_better(small):
    found = sharpness.gains(planted(small))
    rate = found["twice the learning rate"]
    assert [sharpness.verdict(q, rate[q]) for q in QUANTITIES] == ["better", "better", "worse"]
    assert rate["psnr"][0] == pytest.approx(1.005), "seeds lie 5 dB apart, which pairing takes out"
    assert {sharpness.verdict(q, found["twice the images"][q]) for q in QUANTITIES} == {"open"}
    rounded = found[STORED["_float16"]]
    assert rounded["psnr"][0] == pytest.approx(-0.505) and sharpness.verdict("psnr", rounded["psnr"]) == "worse"
    assert sharpness.relative_cost(planted(small), "twice the images") == pytest.approx(2)


def test_the_study_writes_a_page_and_its_numbers(small, monkeypatch, tmp_path):
    monkeypatch.setenv("VADER_REPORTS", str(tmp_path / "new" / "reports"))
    kept = {PLAIN: small.base, "twice the images": small.experiments["twice the images"]}
    small = sharpness.Sweep("sharpness", small.base, kept, (0, 1), small.budget, small.measure)
    numbers, file = sharpness.write(table(small, balls(small.base)))
    rows = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0][2:] for row in rows] == ["change", "twice the images", *STORED.values()]
    written = read_json(numbers)
    assert numbers.name == "sharpness-smoke.json"
    assert set(written["differences"]) == {"twice the images", *STORED.values()}
    assert len(written["plain"]["psnr"]) == 2 and written["environment"]["commit"]
