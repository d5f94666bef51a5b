"""The filter of objects by their masks (C.1): the rule, what is compared, and failures planted in furniture."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace

import pytest
import torch

from vader.autodecoder import mask_filter
from vader.autodecoder.mask_filter import MaskJudgement, judge, mask_judge, threshold
from vader.data import DataError, load_set
from vader.data.prepared import EMBEDDED
from vader.rendering.cameras import Cameras, spread_orbit
from vader.settings.autodecoder import MaskFilterConfig
from vader.settings.checks import ConfigError
from vader.settings.experiment import DataConfig

VIEWS = 12
QUICK = MaskFilterConfig(steps=2, objects=3, rays=32, pixels=8)


@dataclass
class Item:
    key: str
    masks: torch.Tensor
    cameras: Cameras


def chairs(count):
    """Furniture from VIEWS of its 48 cameras."""
    data = load_set(next(EMBEDDED.glob("furniture_chairs-*")))
    views = torch.arange(VIEWS) * 48 // VIEWS
    return [Item(s.key, s.masks[views].clone(), s.cameras[views]) for s in list(data)[:count]]


def swapped(masks, generator):
    """Each mask is another frame's."""
    order = torch.randperm(len(masks), generator=generator)
    result = masks.clone()
    result[order] = masks[order.roll(1)]
    return result


def cut(masks, generator):
    """In half of the frames half of the mask is cut off, at a side of each frame's own."""
    result = masks.clone()
    for view in torch.randperm(len(masks), generator=generator)[: len(masks) // 2].tolist():
        rows, columns = (masks[view] > 127).nonzero().double().median(dim=0).values.long().tolist()
        side = int(torch.randint(4, (), generator=generator))
        part = [(slice(rows), ...), (slice(rows, None), ...), (..., slice(columns)), (..., slice(columns, None))][side]
        result[view][part] = 0
    return result


def inverted(masks, generator):
    """The background was taken for the object."""
    return 255 - masks


FAILURES = {"swapped": swapped, "cut": cut, "inverted": inverted}


def balls(count, resolution=16, radius=0.6):
    """Objects that are a ball at the origin, exactly, from VIEWS cameras."""
    cameras = spread_orbit(VIEWS, DataConfig("balls"), resolution)
    origins, directions = cameras.rays()
    nearest = torch.linalg.cross(origins, directions).norm(dim=-1).view(VIEWS, resolution, resolution)
    return [Item(f"ball-{i}", (255 * (nearest < radius - 0.1 * i / count)).byte(), cameras) for i in range(count)]


# ---------------------------------------------------------------------------------------- failures


def test_planted_failures_are_found_among_chairs_and_nothing_else_is_lost():
    items, generator = chairs(10), torch.Generator().manual_seed(0)
    planted = dict(zip((2, 5, 8), FAILURES.items(), strict=True))
    for index, (_, spoil) in planted.items():
        items[index].masks = spoil(items[index].masks, generator)
    found = mask_judge(items, MaskFilterConfig(steps=120))
    assert found.dropped.keys() == {items[i].key for i in planted}, found.report()
    assert found.losses.keys() == {item.key for item in items}


# ---------------------------------------------------------------------------------------- the rule


def losses_of(values):
    return {f"o{i:03d}": {"loss": v, "gap": 0.1} for i, v in enumerate(values)}


def test_threshold_is_that_of_the_formula():
    values = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9], dtype=torch.float64)  # median 5, lower quartile 3
    assert threshold(values, 2.0, (0, 100)) == pytest.approx(5 + 2 * 2 / 0.6745)
    assert threshold(values, 2.0, (0, 7)) == 7 and threshold(values, 0.1, (6, 7)) == 6
    assert threshold(values[:0], 2.0, (0, 7)) == 7


def test_threshold_of_a_normal_distribution_is_k_standard_deviations_above_its_mean():
    values = 0.5 + 0.1 * torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert threshold(values, 2.0, (0, 9)) == pytest.approx(0.7, abs=2e-3)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("count", [3, 10, 200])
def test_bad_objects_are_out_and_good_ones_stay_however_many_of_either_there_are(count, share):
    bad = round(share * count)
    good = torch.linspace(0.3, 0.7, count - bad).tolist()
    found = judge(losses_of([*good, *torch.linspace(1.3, 3.0, bad).tolist()]), MaskFilterConfig())
    assert found.dropped.keys() == {f"o{i:03d}" for i in range(count - bad, count)}


def test_an_object_with_a_single_bad_view_is_out():
    losses = losses_of([0.4, 0.45, 0.5, 0.55])
    losses["o003"]["gap"] = 0.6
    assert judge(losses, MaskFilterConfig()).dropped == {"o003": "gap 0.600 is above 0.450"}


def test_the_report_is_json_and_says_the_rule():
    found = judge(losses_of([0.4, 0.5, 2.0]), MaskFilterConfig(), ["void"])
    said = json.loads(json.dumps(found.report(), allow_nan=False))
    assert said["objects"] == 4 and said["dropped"].keys() == {"o002", "void"}
    assert said["rule"]["loss"].startswith("above median + 1.5 * (median - lower quartile)")
    assert said["losses"]["o000"] == {"loss": 0.4, "gap": 0.1} and said["thresholds"]["loss"] <= 1.0


@pytest.mark.parametrize(
    "field", [{"spreads": 0.0}, {"bounds": (2.0, 1.0)}, {"steps": 0}, {"worst_share": 0.0}, {"learning_rate": -1.0}]
)
def test_settings_that_cannot_be_are_refused(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        MaskFilterConfig(**field)


# ---------------------------------------------------------------------------------------- the loss


def test_loss_of_an_empty_volume_is_the_masks_area_over_their_outline():
    (item,) = balls(1)
    settings = replace(QUICK, pixels=16, worst_share=1.0)
    target = mask_filter._target(item, settings, torch.device("cpu"))
    found = mask_filter._losses(target, torch.zeros(1, 4, 8, 8, 8), settings)
    m = item.masks.double() / 255
    outline = sum(
        abs(float(m[v, y, x] - m[v, y2, x2]))
        for v in range(VIEWS)
        for y in range(16)
        for x in range(16)
        for y2, x2 in ((y + 1, x), (y, x + 1))
        if y2 < 16 and x2 < 16
    )
    assert target.outlines().sum().item() == pytest.approx(outline)
    assert found["loss"] == pytest.approx(m.sum().item() / outline)
    half = mask_filter._losses(target, torch.zeros(1, 4, 8, 8, 8), replace(settings, worst_share=0.5))
    expected = m.sum((1, 2)).sort(descending=True).values[: VIEWS // 2].mean() / (outline / VIEWS)
    assert half["loss"] == pytest.approx(expected.item())


def test_gap_is_the_step_from_views_that_do_not_fit_to_those_that_do():
    (item,) = balls(1)
    masks = item.masks.clone()
    masks[3], masks[7] = 0, masks[7].roll(6, dims=1)  # of an object that every other view shows alike
    settings = replace(QUICK, pixels=16)
    target = mask_filter._target(replace(item, masks=masks), settings, torch.device("cpu"))
    ball = ((item.masks.double() / 255).sum((1, 2)) / target.outlines()[0]).mean().item()  # area over outline
    full = torch.zeros(1, 4, 16, 16, 16)
    z, y, x = torch.meshgrid(*[(torch.arange(16) + 0.5) / 8 - 1] * 3, indexing="ij")
    full[0, 0] = torch.where(x**2 + y**2 + z**2 < 0.36, 100.0, 0.0)
    whole = mask_filter._losses(mask_filter._target(item, settings, torch.device("cpu")), full, settings)
    found = mask_filter._losses(target, full, settings)
    assert whole["gap"] < 0.2 and 0.6 * ball < found["gap"]


def test_rays_go_through_the_pixels_of_the_smaller_masks():
    (item,) = balls(1, resolution=32)
    target = mask_filter._target(item, replace(QUICK, pixels=8), torch.device("cpu"))
    nearest = torch.linalg.cross(target.origins, target.directions).norm(dim=-1).view(VIEWS, 8, 8)
    assert target.masks.shape == (VIEWS, 8, 8)
    assert (target.masks[nearest < 0.4] == 1).all() and (target.masks[nearest > 0.8] == 0).all()


def test_masks_of_bytes_and_of_floats_are_the_same():
    items = balls(2)
    floats = [replace(item, masks=item.masks.float() / 255) for item in items]
    assert mask_judge(items, QUICK).losses == mask_judge(floats, QUICK).losses


def test_objects_of_other_sizes_and_numbers_of_views_are_fitted_together():
    small, large = balls(1, 16), balls(1, 24)
    few = Item("few", large[0].masks[:5], large[0].cameras[torch.arange(5)])
    found = mask_judge([*small, few], QUICK)
    assert found.losses.keys() == {"ball-0", "few"}


# ---------------------------------------------------------------------------------------- the call


def test_the_result_is_the_same_again_and_the_callers_random_stream_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = mask_judge(iter(balls(4)), QUICK)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    second = mask_judge(balls(4), QUICK)
    assert first == second and isinstance(first, MaskJudgement)
    assert mask_judge(balls(4), replace(QUICK, seed=1)).losses != first.losses


@pytest.mark.parametrize(
    "count, sizes", [(1, [1]), (3, [3]), (4, [2, 2]), (6, [3, 3]), (7, [3, 2, 2]), (10, [3, 3, 2, 2])]
)
def test_groups_share_out_the_rest_evenly(count, sizes):
    assert [len(g) for g in mask_filter._groups(iter(range(count)), 3)] == sizes


def test_objects_without_any_mask_are_dropped():
    items = balls(2)
    items[1].masks = torch.zeros_like(items[1].masks)
    found = mask_judge(items, QUICK)
    assert found.dropped["ball-1"] == "all masks are empty" and found.losses.keys() == {"ball-0"}
    assert json.dumps(found.report(), allow_nan=False)


def test_objects_that_cannot_be_used_are_named():
    first, second = balls(2)
    with pytest.raises(DataError, match=r"object 'ball-0' is there twice"):
        mask_judge([first, first], QUICK)
    with pytest.raises(DataError, match=r"object 'ball-1': masks have shape \(11, 16, 16\), expected \(12, 16, 16\)"):
        mask_judge([first, replace(second, masks=second.masks[1:])], QUICK)
    with pytest.raises(DataError, match="object 'ball-1': masks have other values"):
        mask_judge([replace(second, masks=second.masks.float())], QUICK)
    broken = dataclasses.replace(second.cameras, world_to_camera=second.cameras.world_to_camera * float("nan"))
    with pytest.raises(DataError, match="object 'ball-1', view 0: world_to_camera has a NaN"):
        mask_judge([replace(second, cameras=broken)], QUICK)
