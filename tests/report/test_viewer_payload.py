"""Volumes travel in one byte a value, and what arrives looks like what was sent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vader.rendering.render import render_views
from vader.report.viewer import ViewerError, restore, volume_payload
from vader.report.viewer.page import cameras_at
from vader.report.viewer.payload import COARSER, FLOOR, HIGHEST, density_scale, touched

from .viewing import haze, psnr, scene

POSES = [(30.0, 20.0), (140.0, -10.0), (260.0, 60.0)]


def half_step(largest: float) -> float:
    """The most that a density + FLOOR is off by, as a share of it."""
    return math.expm1(density_scale(largest) / 2)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.tuples(*[st.integers(2, 7)] * 3), st.floats(1e-3, 6e4), st.floats(0, 1))
def test_values_arrive_within_half_a_step(seed, shape, largest, filled):
    generator = torch.Generator().manual_seed(seed)
    volume = torch.rand(4, *shape, generator=generator) * torch.tensor([largest, 3.0, 0.1, 1.0]).view(4, 1, 1, 1)
    volume[1] -= 1
    volume[0] *= torch.rand(shape, generator=generator) < filled
    arrived = restore(volume_payload(volume))
    error = (arrived[0] - volume[0]).abs()
    highest = volume[0].max().item()
    assert (error <= 1.001 * half_step(highest) * (volume[0] + FLOOR) + 1e-6).all()
    near = touched(arrived[0])
    spread = torch.tensor([3.0, 0.1, 1.0]).view(3, 1)
    assert ((arrived[1:] - volume[1:])[:, near].abs() <= spread / 255 / 2 + 1e-5).all()
    assert not arrived[:, ~near].any()


def test_pictures_of_what_arrives_are_those_of_what_was_sent():
    volume = scene()
    cameras = cameras_at(POSES, 4.0, 36.0, 64)
    sent = render_views(volume[None], cameras, 64)
    arrived = render_views(restore(volume_payload(volume))[None], cameras, 64)
    assert psnr(sent["colour"], arrived["colour"]) > 50
    assert psnr(sent["normals"], arrived["normals"]) > 40
    assert (sent["occupancy"] - arrived["occupancy"]).abs().max() < 1 / 100


@settings(max_examples=25)
@given(st.floats(-3, 3), st.floats(0, 4.8))
def test_haze_of_any_density_keeps_its_opacity_beside_any_highest_density(density, highest):
    """The docstring's 1/70, where it is hardest: a ray through a cube of one density, all of whose voxels err alike."""
    volume = torch.full((4, 4, 4, 4), 10**density)
    volume[0, 0, 0, 0] = max(10**density, 10**highest)
    ray = torch.tensor([2 * math.sqrt(3)], dtype=torch.float64)
    opacity = [-torch.expm1(-v[0, 2, 2, 2] * ray) for v in (volume, restore(volume_payload(volume)))]
    assert (opacity[0] - opacity[1]).abs() < 1 / 70


def test_an_object_of_32_voxels_travels_in_25_kilobytes():
    assert len(volume_payload(scene(32)).as_json()["data"]) <= 25_000


def test_only_what_is_occupied_travels_with_a_margin_inside_the_cube():
    volume = torch.zeros(4, 9, 8, 7)
    volume[:, 4, 0, 5] = 1.0
    payload = volume_payload(volume)
    assert payload.grid == (7, 8, 9) and payload.start == (4, 0, 3) and payload.crop == (3, 2, 3)
    assert torch.allclose(restore(payload)[0], volume[0], atol=1e-5)


def test_an_empty_volume_travels_as_one():
    payload = volume_payload(torch.cat([torch.zeros(1, 5, 5, 5), torch.rand(3, 5, 5, 5)]))
    assert not restore(payload).any() and len(payload.data) < 20


def test_density_beyond_half_floats_is_as_opaque():
    volume = haze(0.5, 1e7, 16)
    assert restore(volume_payload(volume))[0].max().item() == pytest.approx(HIGHEST)


def broken(channel: int, value: float) -> torch.Tensor:
    volume = scene(8)
    volume[channel, 1, 2, 3] = value
    return volume


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        (broken(2, math.nan), "NaN or infinite"),
        (broken(0, math.inf), "NaN or infinite"),
        (broken(0, -1.0), "density reaches -1, expected none below 0"),
        (broken(3, 1e6), "colour reaches 1e\\+06, expected at most 65504"),
        (scene(8)[:3], "expected \\(b, 1 \\+ 3, d, h, w\\)"),
        (scene(8)[0], "expected \\(b, 1 \\+ 3, d, h, w\\)"),
        (torch.zeros(4, 2, 2, 300), "at most 256 voxels"),
        ([[1.0]], "volume is a list, expected a tensor"),
    ],
)
def test_a_volume_that_cannot_be_shown_is_refused_by_name(volume, words):
    with pytest.raises(ViewerError, match=f"object 'the chair': .*{words}"):
        volume_payload(volume, "the chair")


def test_a_payload_that_is_too_large_takes_coarser_steps_and_looks_the_same():
    generator = torch.Generator().manual_seed(0)
    volume = scene(32)
    volume[1:] = (volume[1:] + 0.02 * torch.randn(volume[1:].shape, generator=generator)).clamp(0, 1)
    volume[0] *= 1 + 0.2 * torch.rand(volume[0].shape, generator=generator)
    fine = volume_payload(volume)
    assert volume_payload(volume, most=len(fine.data)) == fine
    sizes, views = [], render_views(volume[None], cameras_at(POSES, 4.0, 36.0, 96), 64, normals=False)["colour"]
    for most in (len(fine.data) - 1, len(fine.data) * 6 // 10, 1):
        small = volume_payload(volume, most=most)
        sizes.append(len(small.data))
        seen = render_views(restore(small)[None], cameras_at(POSES, 4.0, 36.0, 96), 64, normals=False)["colour"]
        assert psnr(seen, views) > 45
        assert torch.equal(restore(small)[0] > 0, restore(fine)[0] > 0), "what is there stays there"
    assert len(fine.data) > sizes[0] > sizes[1] > sizes[2] and len(COARSER) == 4
