"""Where parts start: discs within silhouettes, their numbers, and the regions of space around them."""

from __future__ import annotations

import pytest
import torch

from vader.articulation.learning.regions import SPACING, Division, inscribed_discs, number_discs, regions, within
from vader.articulation.poses import fixed_camera, neutral, project
from vader.settings.articulation import ArticulationConfig

CAMERA = fixed_camera(ArticulationConfig(), 64)
Y, X = torch.meshgrid(*[(2 * torch.arange(64) + 1) / 64 - 1] * 2, indexing="ij")  # of pixels, in [-1, 1]


def disc(x: float, y: float, radius: float) -> torch.Tensor:
    return (X - x).square() + (Y - y).square() < radius**2


def figure(x: float = 0.0, legs: bool = True) -> torch.Tensor:
    """A trunk, a head above it, two arms and perhaps two legs."""
    arm = ((X - x).abs() - 0.42).abs() < 0.08
    leg = ((X - x).abs() - 0.15).abs() < 0.07
    shape = disc(x, 0.0, 0.3) | disc(x, -0.5, 0.2) | (arm & (Y > -0.2) & (Y < 0.3))
    return shape | (leg & (Y > 0.2) & (Y < 0.7)) if legs else shape


def test_the_largest_disc_of_a_disc_is_the_disc():
    found = inscribed_discs(disc(0.25, -0.125, 0.4), 10)
    assert found[0].tolist() == pytest.approx([0.25, -0.125, 0.4], abs=2 / 64)
    assert len(found) == 1, "nothing else is thick enough beyond 1.3 radii"


def test_trunk_head_and_limbs_have_discs_of_their_own_in_the_order_of_their_size():
    found = inscribed_discs(figure(), 20)
    radii = found[:, 2]
    assert (radii[:-1] >= radii[1:]).all() and radii.tolist()[:2] == pytest.approx([0.3, 0.2], abs=0.06)
    assert found[:2, :2].flatten().tolist() == pytest.approx([0, 0, 0, -0.5], abs=0.05)
    for x, y, radius in ((-0.42, 0.05, 0.08), (0.42, 0.05, 0.08), (-0.15, 0.45, 0.07), (0.15, 0.45, 0.07)):
        near = (found[:, 0] - x).abs() < 0.06
        assert (near & ((found[:, 1] - y).abs() < 0.3) & (found[:, 2] < radius + 0.05)).any()
    assert len(inscribed_discs(figure(), 3)) == 3


@pytest.mark.parametrize("seed", range(5))
def test_discs_lie_within_and_apart(seed):
    generator = torch.Generator().manual_seed(seed)
    shape = torch.zeros(64, 64, dtype=torch.bool)
    for x, y, r in torch.rand(6, 3, generator=generator).tolist():
        shape |= disc(1.6 * x - 0.8, 1.6 * y - 0.8, 0.1 + 0.3 * r)
    found = inscribed_discs(shape, 10)
    for number, (x, y, radius) in enumerate(found.tolist()):
        assert not (disc(x, y, radius - 1e-3) & ~shape).any()
        assert abs(x) + radius <= 1 + 2 / 64 and abs(y) + radius <= 1 + 2 / 64, "the picture's edge is an outline"
        for earlier in found[:number]:
            assert (earlier[:2] - found[number, :2]).norm() >= SPACING * earlier[2] - 1e-6


def test_a_silhouette_of_nothing_or_of_a_thread_has_no_discs():
    assert inscribed_discs(torch.zeros(64, 64, dtype=torch.bool), 10).shape == (0, 3)
    assert len(inscribed_discs(X.abs() < 1 / 64, 10)) == 0


def test_a_number_means_the_same_limb_for_all_subjects():
    shapes = [figure(), figure(0.1), figure(-0.1, legs=False), figure(0.05, legs=False)]
    discs = [inscribed_discs(shape, 10) for shape in shapes]
    order = torch.randperm(len(discs[1]), generator=torch.Generator().manual_seed(0))
    discs[1] = discs[1][order]
    numbers = number_discs(discs)
    for own, found in zip(numbers, discs, strict=True):
        assert len(own) == len(found) == len(own.unique()) and own.max() < max(map(len, discs))
    places = {n: (x, y) for (x, y, _), n in zip(discs[0].tolist(), numbers[0].tolist(), strict=True)}
    for own, found, shift in zip(numbers, discs, (0, 0.1, -0.1, 0.05), strict=True):
        for (x, y, radius), number in zip(found.tolist(), own.tolist(), strict=True):
            if radius > 0.15 or abs(x - shift) > 0.3:  # trunk, head, arms
                assert (x - shift, y) == pytest.approx(places[number], abs=0.12)


def test_subjects_without_discs_get_no_numbers():
    none = torch.zeros(0, 3)
    assert [len(n) for n in number_discs([none, none])] == [0, 0]
    assert [n.tolist() for n in number_discs([none, torch.tensor([[0.0, 0.0, 0.3]])])] == [[], [0]]
    assert regions(none, torch.zeros(0, dtype=torch.int64), CAMERA, 4).eq(0).all()


def test_space_is_divided_where_discs_overlap_at_all_depths():
    discs, numbers = torch.tensor([[-0.3, 0.0, 0.4], [0.3, 0.0, 0.2]]), torch.tensor([7, 2])
    labels = regions(discs, numbers, CAMERA, 33)
    axis = torch.linspace(-1, 1, 33)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    seen = project(neutral(1), torch.stack([x, y, z], -1).view(1, -1, 3), CAMERA).view(33, 33, 33, 2)
    # (u + 0.3)^2 - 0.16 = (u - 0.3)^2 - 0.04 at u = 0.1
    assert torch.equal(labels == 7, seen[..., 0] < 0.1) and set(labels.unique().tolist()) == {2, 7}


def test_what_a_silhouette_shows_is_within():
    inside = within(disc(0.2, 0.1, 0.5), CAMERA, 33)
    axis = torch.linspace(-1, 1, 33)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    seen = project(neutral(1), torch.stack([x, y, z], -1).view(1, -1, 3), CAMERA).view(33, 33, 33, 2)
    far = ((seen - torch.tensor([0.2, 0.1])).norm(dim=-1) - 0.5).abs() > 0.05
    assert torch.equal(inside[far], ((seen - torch.tensor([0.2, 0.1])).norm(dim=-1) < 0.5)[far])


def test_a_division_tells_weights_where_parts_start_and_sees_what_changes():
    axis = torch.linspace(-1, 1, 17)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    ball = lambda cx, r: ((x - cx).square() + y.square() + z.square() < r * r).float()  # noqa: E731
    volumes = torch.zeros(2, 4, 17, 17, 17)
    volumes[0, 0], volumes[1, 0] = 30 * torch.maximum(ball(-0.4, 0.4), ball(0.4, 0.25)), 0  # nothing is seen of one
    division = Division(volumes, 4, CAMERA, 32)
    assert division.labels[0, 8, 8, 4] != division.labels[0, 8, 8, 12] and division.labels[1].eq(0).all()
    assert division.within[0, 8, 8, 4] and not division.within[1].any()
    logits = 20 * torch.nn.functional.one_hot(division.labels.long(), 4).movedim(-1, 1).float()
    right, both = torch.cat([volumes, logits], 1), torch.tensor([0, 1])
    assert division.told(right, both) < 1e-6
    assert division.told(torch.cat([volumes, 0 * logits], 1), both) == pytest.approx(1.3863, abs=1e-3)  # log 4
    assert division.changed(right, both, 8.0) == 0
    other = right.clone()
    other[:, 1:4, 0] += 1  # colours far from any density
    assert division.changed(other, both, 8.0) == 0
    other[:, 1, 8, 8, 4] += 1
    other[:, 0, 0, 0, 0] += 8
    cells = 2 * 17**3
    assert division.changed(other, both, 8.0).item() == pytest.approx(1 / (3 * cells) + 2 / cells)
