"""Lessons: pictures show the keypoints where they are said to be, in frames and in renderings, warped or not."""

from __future__ import annotations

import pytest
import torch

from vader.articulation.learning.teaching import SHARES, Lessons
from vader.articulation.learning.tracks import Tracks
from vader.articulation.pose_model import PoseModel
from vader.articulation.poses import neutral, rotation_matrices
from vader.settings.profiles import experiment

SIZE, FRAMES = 32, (5, 3)


def setting(**changes):
    settings = dict(taught_frames=12, track_images=16, taught_images=16) | changes
    return experiment("laptop", "puppets").replace(articulation=settings)


@pytest.fixture
def tracks():
    """Of two subjects, as a whole turned by other angles in each frame of each video."""
    roots = []
    for video, count in enumerate(FRAMES):
        vectors = torch.zeros(count, 3)
        vectors[:, 1] = 0.1 + 0.2 * torch.arange(count) + 0.05 * video
        roots.append(torch.cat([rotation_matrices(vectors), torch.zeros(count, 3, 1)], dim=-1))
    tracks = Tracks(roots, torch.full((2, 10, 3), 0.1), 4)
    with torch.no_grad():
        tracks.coefficients.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    return tracks


def ball(at: torch.Tensor, colour: tuple[float, float, float]) -> torch.Tensor:
    """A volume (1, 14, 24, 24, 24) of one ball, all of which is part 3."""
    axis = torch.linspace(-1, 1, 24)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    near = (torch.stack([x, y, z], dim=-1) - at).norm(dim=-1)
    logits = torch.full((10, 24, 24, 24), -10.0)
    logits[3] = 10.0
    shown = [torch.full_like(near, c) for c in colour]
    return torch.cat([torch.stack([40 * ((0.18 - near) / 0.05).sigmoid(), *shown]), logits])[None]


def lessons_and_model(config, tracks):
    torch.manual_seed(0)
    model = PoseModel(config)
    centre = torch.tensor([0.3, 0.15, -0.1])
    model.keypoints.gather_around(centre.expand(10, 3), 0.3)
    videos = [torch.randint(256, (count, 64, 64, 3), dtype=torch.uint8) for count in FRAMES]
    colours = ((1.0, 0.2, 0.2), (0.2, 1.0, 0.2))
    decoded = []

    def decode(k):
        decoded.append(int(k))
        return ball(centre, colours[int(k)])

    return Lessons(config.articulation, videos, tracks, decode, 24), model, videos, decoded


def test_frames_are_the_videos_and_keypoints_are_on_the_tracks(tracks):
    lessons, model, videos, decoded = lessons_and_model(setting(), tracks)
    seen = set()
    for _ in range(6):
        images, told = lessons.draw(model)
        assert images.shape == (12, SIZE, SIZE, 3) and told.shape == (12, 10, 27, 2)
        for image, keypoints in zip(images, told, strict=True):
            [(video, frame)] = [
                (k, f)
                for k, count in enumerate(FRAMES)
                for f in range(count)
                if torch.allclose(model.predictor.resize(videos[k][f][None].float() / 255)[0], image)
            ]
            seen.add((video, frame))
            pose = tracks(torch.tensor([video]), torch.tensor([[frame]]))[0]
            torch.testing.assert_close(keypoints, model.project(pose)[0])
    assert len(seen) == sum(FRAMES) and decoded == []


@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_renderings_show_the_subject_where_the_keypoints_are(tracks, sigma):
    lessons, model, _, decoded = lessons_and_model(setting(taught_rendered=1.0, taught_sigma=sigma), tracks)
    assert decoded == [0, 1]
    axis = (2 * torch.arange(SIZE) + 1) / SIZE - 1
    colours, spread = set(), []
    for _ in range(4):
        images, told = lessons.draw(model)
        for image, keypoints in zip(images, told, strict=True):
            brightness = image.sum(-1)
            if max(brightness[[0, -1]].max(), brightness[:, [0, -1]].max()) > 0.05:
                continue  # a map moved it to the picture's edge
            y, x = ((brightness.sum(d) * axis).sum() / brightness.sum() for d in (1, 0))
            middle = keypoints[3].mean(0)
            torch.testing.assert_close(torch.stack([x, y]), middle, atol=0.03, rtol=0)  # half a pixel
            spread.append(middle)
            colours.add("red" if image[..., 0].max() > image[..., 1].max() else "green")
    assert colours == {"red", "green"}
    assert len(spread) > 30 and torch.stack(spread).std(0)[0] > 0.05, "poses are different ones"


def test_renderings_recombine_whole_and_limbs(tracks, monkeypatch):
    """The whole subject is where some frame of some video has it, its limbs do 0.5 to 1.5 times what those of another
    frame of its own video do."""
    lessons, model, *_ = lessons_and_model(setting(taught_rendered=1.0), tracks)
    drawn, own = [], tracks.own
    monkeypatch.setattr(tracks, "own", lambda *a: drawn.append(a) or own(*a))
    posed = []
    seen = model.project
    monkeypatch.setattr(model, "project", lambda poses: posed.append(poses) or seen(poses))
    for _ in range(8):
        images, _ = lessons.draw(model)
        red = images[..., 0].amax((1, 2)) > images[..., 1].amax((1, 2))
        assert (~red).long().tolist() == drawn[-1][0].tolist(), "a subject with its own limbs"
    every = torch.cat([root[:count] for root, count in zip(tracks.roots, FRAMES, strict=True)])
    wholes = set()
    for (subjects, frames, share), poses in zip(drawn, posed, strict=True):
        assert share.min() >= SHARES[0] and share.max() <= SHARES[1]
        limbs = own(subjects, frames, share)[:, 0]
        for k in range(len(poses)):
            root = poses[k, :, :, :3] @ limbs[k, :, :, :3].mT
            error = (every[:, None, :, :3] - root).abs().amax(dim=(1, 2, 3))
            assert error.min() < 1e-4
            wholes.add((int(subjects[k]), int(error.argmin())))
    assert len(wholes) > sum(FRAMES), "subjects are seen as other videos have theirs"
    shares = torch.cat([share for *_, share in drawn])
    assert shares.std() > 0.2
    torch.testing.assert_close(
        own(torch.tensor([1]), torch.tensor([[2]]), torch.zeros(1)), neutral(1, 1, 10), atol=1e-6, rtol=0
    )


def test_shares_of_both_kinds(tracks):
    lessons, model, *_ = lessons_and_model(setting(taught_rendered=0.25), tracks)
    images, _ = lessons.draw(model)
    edge = torch.cat([images[:, [0, -1]].flatten(1), images[:, :, [0, -1]].flatten(1)], dim=1)
    assert (edge.amax(1) < 0.05).tolist() == [False] * 9 + [True] * 3
