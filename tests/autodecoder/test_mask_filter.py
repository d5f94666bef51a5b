"""The filter of objects by their masks (C.1): the rule, what is compared, and failures planted in furniture."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace

import pytest
import torch

from tests.data.formats.rendered import orbit, pictured
from vader.autodecoder import mask_filter
from vader.autodecoder.mask_filter import MaskJudgement, judge, mask_judge, threshold, unexplained
from vader.data import DataError, load_set
from vader.data.formats.shared.normalise import normalised
from vader.data.formats.shared.scenes import Placing
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
    found = mask_judge(items, MaskFilterConfig(steps=60))
    assert found.dropped.keys() == {items[i].key for i in planted}, found.report()
    assert found.losses.keys() == {item.key for item in items}


def test_of_six_tables_that_the_pictures_edge_cuts_only_the_bad_one_is_out():
    """Few objects, few views, and every table touches the edge in most of its views."""
    items = []
    for index in range(6):
        table = pictured(orbit(14, 64, 64, 95.0), index=index)
        if index == 5:
            table = replace(table, masks=swapped(table.masks, torch.Generator().manual_seed(1)))
        placed = normalised(table, Placing(up="y"), str(index))
        items.append(Item(str(index), placed.masks[:12], placed.cameras[:12]))
    edges = [torch.cat([i.masks[:, 0], i.masks[:, -1], i.masks[:, :, 0], i.masks[:, :, -1]], 1) for i in items]
    assert all((edge > 127).any(1).sum() >= 6 for edge in edges[:3])
    found = mask_judge(items, MaskFilterConfig(steps=60))
    assert found.dropped.keys() == {"5"}, found.report()


# ---------------------------------------------------------------------------------------- the rule


def losses_of(values):
    return {f"o{i:03d}": {"loss": v, "unexplained": 0.01} for i, v in enumerate(values)}


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
    found = judge(losses_of([*good, *torch.linspace(2.6, 5.0, bad).tolist()]), MaskFilterConfig())
    assert found.dropped.keys() == {f"o{i:03d}" for i in range(count - bad, count)}


def test_an_object_that_its_hull_does_not_explain_is_out_and_one_among_others_like_it_stays():
    losses = losses_of([0.4, 0.45, 0.5, 0.55])
    losses["o003"]["unexplained"] = 0.12
    assert judge(losses, MaskFilterConfig()).dropped == {"o003": "unexplained 0.120 is above 0.030"}
    for found, share in zip(losses.values(), (0.05, 0.08, 0.1, 0.12), strict=True):
        found["unexplained"] = share  # masks of a careless segmenter
    assert judge(losses, MaskFilterConfig()).dropped == {}
    losses["o003"]["unexplained"] = 0.2
    assert judge(losses, MaskFilterConfig()).dropped == {"o003": "unexplained 0.200 is above 0.150"}


def test_the_report_is_json_and_says_the_rule():
    found = judge(losses_of([0.4, 0.5, 3.0]), MaskFilterConfig(), ["void"])
    said = json.loads(json.dumps(found.report(), allow_nan=False))
    assert said["objects"] == 4 and said["dropped"].keys() == {"o002", "void"}
    assert said["rule"]["loss"].startswith("above median + 3 * (median - lower quartile)")
    assert said["losses"]["o000"] == {"loss": 0.4, "unexplained": 0.01} and said["thresholds"]["loss"] <= 2.0


@pytest.mark.parametrize(
    "field",
    [
        {"spreads": 0.0},
        {"bounds": (2.0, 1.0)},
        {"steps": 0},
        {"worst_share": 0.0},
        {"learning_rate": -1.0},
        {"hull_views": 0},
        {"hull_slack": -1},
        {"hull_bounds": (0.2, 0.1)},
        {"density_weight": -1.0},
    ],
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


def test_masks_that_fill_their_pictures_have_the_pictures_outline_and_are_not_empty():
    (item,) = balls(1)
    near = replace(item.cameras, intrinsics=item.cameras.intrinsics * torch.tensor([8.0, 8.0, 1.0]).view(1, 3, 1))
    near.intrinsics[:, :2, 2] = 8.0
    filled = Item("filled", torch.full_like(item.masks, 255), near)
    target = mask_filter._target(filled, replace(QUICK, pixels=16), torch.device("cpu"))
    assert target.outlines().tolist() == [4 * 16] * VIEWS and target.unexplained == 0
    assert mask_judge([filled], QUICK).losses.keys() == {"filled"}


# ---------------------------------------------------------------------------------------- the hull


def carved(masks, cameras, slack, side=64):
    """The share that no voxel explains, by carving a grid: what `unexplained` says by sampling rays."""
    covered = masks >= 0.25
    grown = covered.clone()
    h, w = masks.shape[1:]
    for y in range(-slack, slack + 1):
        for x in range(-slack, slack + 1):
            shifted = covered.roll((y, x), dims=(1, 2))
            shifted[:, : max(y, 0)] = shifted[:, h + min(y, 0) :] = False
            shifted[:, :, : max(x, 0)] = shifted[:, :, w + min(x, 0) :] = False
            grown |= shifted
    axis = (torch.arange(side) + 0.5) / side * 2.1 - 1.05
    points = torch.cartesian_prod(axis, axis, axis)
    at = cameras.project(points)  # all of them in front of the cameras and inside of the pictures
    columns, rows = (at[..., i].floor().long() for i in (0, 1))
    inside = (columns >= 0) & (columns < w) & (rows >= 0) & (rows < h)
    hits = torch.zeros_like(inside)
    for dy in (-0.5, 0.5):  # one of the four pixels around a point will do
        for dx in (-0.5, 0.5):
            x, y = (at[..., 0] + dx).floor().long(), (at[..., 1] + dy).floor().long()
            hits |= grown[torch.arange(len(masks))[:, None], y.clamp(0, h - 1), x.clamp(0, w - 1)]
    hull = (hits | ~inside).all(0)
    shown = total = 0
    for view in range(len(masks)):
        picture = torch.zeros(h, w, dtype=torch.bool)
        kept = hull & inside[view]
        picture[rows[view, kept], columns[view, kept]] = True
        wanted = masks[view] >= 0.5
        shown, total = shown + int((picture & wanted).sum()), total + int(wanted.sum())
    return 1 - shown / total


EVERYTHING = replace(QUICK, hull_views=VIEWS, hull_rays=10_000)


@pytest.mark.parametrize("spoil", [None, *FAILURES])
def test_the_unexplained_share_is_that_of_carving_a_grid(spoil):
    item = chairs(1)[0]
    masks = item.masks if spoil is None else FAILURES[spoil](item.masks, torch.Generator().manual_seed(2))
    coverage, cameras = mask_filter._shrunk(masks.float() / 255, item.cameras, 32)
    found = unexplained(coverage, cameras, EVERYTHING)
    assert found == pytest.approx(carved(coverage, cameras, EVERYTHING.hull_slack), abs=0.06)
    assert found == 0 if spoil is None else found > 0.03


def test_half_of_a_single_mask_is_missed_in_the_other_views_and_one_pixel_is_not():
    (item,) = balls(1, resolution=64)
    masks = item.masks.float() / 255
    cut_off = masks.clone()
    cut_off[4, :, 32:] = 0
    assert unexplained(masks, item.cameras, EVERYTHING) == 0
    assert unexplained(cut_off, item.cameras, EVERYTHING) > 0.1
    thinner = -torch.nn.functional.max_pool2d(-masks[:, None], 3, stride=1, padding=1)[:, 0]
    mixed = torch.where((torch.arange(VIEWS) % 2 == 0)[:, None, None], masks, thinner)
    assert unexplained(mixed, item.cameras, EVERYTHING) < 0.01
    assert unexplained(mixed, item.cameras, replace(EVERYTHING, hull_slack=0)) > 0.01
    assert unexplained(torch.zeros_like(masks), item.cameras, EVERYTHING) == 0


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
