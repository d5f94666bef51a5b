"""Scores inside faces: on pictures whose faces are planted, and on mouths that are open or closed by construction."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vader.data import Video
from vader.evaluation import faces
from vader.evaluation.faces import FOLDS, crops, face_scores, heldout_pictures, inside, mouth_pixels, mouth_probe
from vader.evaluation.metrics import MetricError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_crop_of_whole_pixels_is_those_pixels_and_black_outside():
    images = torch.rand(2, 8, 10, 3, generator=rng())
    boxes = torch.tensor([[2.0, 1, 6, 5], [7, 5, 11, 9]])
    taken = crops(images, boxes, 4)
    torch.testing.assert_close(taken[0], images[0, 1:5, 2:6])
    torch.testing.assert_close(taken[1, :3, :3], images[1, 5:8, 7:10])
    assert not taken[1, 3].any() and not taken[1, :, 3].any()
    ramp = (torch.arange(10.0) + 0.5).expand(1, 8, 10)[..., None]
    doubled = crops(ramp, torch.tensor([[2.0, 1, 6, 5]]), 8)[0, 3, :, 0]
    torch.testing.assert_close(doubled, 2 + (torch.arange(8) + 0.5) / 2)


def test_pixels_are_inside_where_their_centres_are():
    found = inside(torch.tensor([[1.4, 0.0, 3.6, 1.5], [0, 0, 0.4, 9]]), 4, 5)
    assert found[0].nonzero().tolist() == [[0, 1], [0, 2], [0, 3]]
    assert not found[1].any()


def clip_of(frames: int = 6, held: int = 2) -> Video:
    pictures = torch.randint(256, (frames, 12, 12, 3), generator=rng(), dtype=torch.uint8)
    masks = torch.zeros(frames, 12, 12, dtype=torch.uint8)
    masks[:, :, 2:] = 255
    return Video("person-000001", pictures, masks, frames - held)


def test_only_the_subjects_pixels_in_the_box_count():
    """All is wrong by 0.1 in the face, and by far more beside it, before it and in frames that are not held out."""
    video, boxes = clip_of(), torch.tensor([[0.0, 3, 8, 11]]).expand(2, 4)
    true = video.frames[4:].float() / 255
    pictures = (true > 0.5).float()
    face = inside(boxes, 12, 12) & (video.masks[4:] > 0)
    pictures[face] = true[face] + torch.where(true[face] > 0.5, -0.1, 0.1)
    seen = []

    def perceptual(one, other):
        seen.append((one, other))
        return torch.tensor([0.2, 0.4])

    sharp, perceived = face_scores(pictures, video, boxes, perceptual)
    assert sharp == pytest.approx(20, abs=1e-3) and perceived == pytest.approx(0.3)
    [(one, other)] = seen
    torch.testing.assert_close(one, crops(pictures, boxes))
    torch.testing.assert_close(other, crops(true, boxes))


def test_held_out_frames_are_shown_by_the_subjects_own_volume():
    video = clip_of()
    asked = []

    def animate(volume, frames):
        asked.append((volume, frames))
        return SimpleNamespace(colour=frames.float() / 100)

    shown = heldout_pictures(SimpleNamespace(volume=lambda key: f"volume of {key}", animate=animate), video)
    assert asked[0][0] == "volume of person-000001" and torch.equal(asked[0][1], video.frames[4:]) and shown.max() == 1
    with pytest.raises(MetricError, match="'person-000001' has no held-out frames"):
        heldout_pictures(None, Video("person-000001", video.frames, video.masks, 6))


# --------------------------------------------------------------------------------------------------------- mouths


def people(count: int, signal: float, seed: int = 0, frames: int = 8) -> tuple[list, list]:
    """Pictures in which a dark mouth grows with the jaw, on faces of a brightness and a texture of their own."""
    g, pixels, jaws = rng(seed), [], []
    boxes = torch.tensor([[8.0, 8, 24, 24]]).expand(frames, 4)
    for _ in range(count):
        jaw = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.45, 0.6])[torch.randperm(8, generator=g)]
        pictures = (torch.rand(1, 32, 32, 1, generator=g) + 2 * torch.rand(1, generator=g)).repeat(frames, 1, 1, 3) / 3
        pictures[:, 18:21, 13:19] -= signal * jaw[:, None, None, None]
        pixels.append(mouth_pixels(pictures + 0.02 * torch.randn(pictures.shape, generator=g), boxes))
        jaws.append(jaw)
    return pixels, jaws


def test_the_probe_sees_the_lower_half_of_the_face_whoever_it_is():
    boxes = torch.tensor([[0.0, 0, 64, 64]]).expand(3, 4)
    pictures = torch.rand(3, 64, 64, 3, generator=rng())
    upper = pictures.clone()
    upper[:, :32] = torch.rand(3, 32, 64, 3, generator=rng(1))
    found = mouth_pixels(pictures, boxes)
    assert found.shape == (3, 128) and found.mean(0).abs().max() < 1e-6
    torch.testing.assert_close(mouth_pixels(upper, boxes), found)
    torch.testing.assert_close(mouth_pixels(pictures + 0.3, boxes), found, atol=1e-5, rtol=0)


def test_mouths_that_open_are_told_from_closed_ones_and_others_are_not():
    probe = mouth_probe(*people(24, signal=0.6))
    assert probe.accuracy > 0.95 and 0.9 < probe.low <= probe.accuracy <= probe.high
    assert (probe.opened, probe.closed) == (72, 72), "half-open ones are left out"
    still = [mouth_probe(*people(24, signal=0.0, seed=s)).accuracy for s in range(4)]
    assert 0.4 < sum(still) / 4 < 0.6


def test_nobody_is_judged_by_a_rule_that_was_fitted_to_them(monkeypatch):
    """Frames of one person are copies of each other with a label of their own. A rule that saw them would be right."""
    g, pixels, jaws = rng(), [], []
    for k in range(40):
        pixels.append(torch.randn(1, 60, generator=g).repeat(4, 1))
        jaws.append(torch.full((4,), 0.6 if k % 2 else 0.0))
    assert mouth_probe(pixels, jaws).accuracy < 0.7
    fitted = []
    ridge = faces._ridge
    monkeypatch.setattr(faces, "_ridge", lambda x, opened: fitted.append(len(x)) or ridge(x, opened))
    mouth_probe(pixels, jaws)
    assert fitted == [4 * 35] * FOLDS


def test_accuracy_is_balanced_between_open_and_closed():
    """Nine of ten mouths are closed. To call all of them closed is no better than chance."""
    pixels = [torch.randn(10, 30, generator=rng(k)) for k in range(16)]
    jaws = [torch.tensor([0.6] + [0.0] * 9) for _ in range(16)]
    assert abs(mouth_probe(pixels, jaws).accuracy - 0.5) < 0.2


@pytest.mark.parametrize(
    ("count", "jaw", "message"),
    [(7, 0.0, "7 people and 7 jaws, expected as many, 8 at least"), (9, 0.0, "0 open and .* closed mouths to fit")],
)
def test_what_no_probe_can_tell_is_refused(count, jaw, message):
    with pytest.raises(MetricError, match=message):
        mouth_probe([torch.zeros(4, 6)] * count, [torch.full((4,), jaw)] * count)
