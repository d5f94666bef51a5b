"""Inversion finds what made the images, interpolation starts and ends at its objects, completion reads one view."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.tiny import tiny_experiment
from vader.autodecoder.inversion import InversionError, complete, interpolate, invert
from vader.autodecoder.reconstruction import Autodecoder
from vader.rendering.cameras import sample_orbit
from vader.rendering.render import render_views
from vader.settings.autodecoder import InversionConfig
from vader.settings.checks import ConfigError

QUICK = InversionConfig(steps=40, learning_rate=0.3, noise=0.1)
OBJECTS = 4


@pytest.fixture(scope="module")
def config():
    return tiny_experiment(reconstruction=dict(views_per_object=4, objects_per_step=1, num_samples=16))


@pytest.fixture(scope="module")
def autodecoder(config):
    """Random weights, with a last layer strong enough that embeddings decide what is seen."""
    torch.manual_seed(0)
    model = Autodecoder(config, OBJECTS).to(memory_format=torch.channels_last_3d).eval()
    with torch.no_grad():
        model.decoder.head.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def cameras(config):
    return sample_orbit(4, config.data, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def views(autodecoder, config, cameras):
    """Images and masks of object 0, rendered from its embedding."""
    seen = look(autodecoder.decoder, autodecoder.embedding.all()[0], cameras)
    return seen["colour"], seen["occupancy"].clamp(0, 1)


@torch.no_grad()
def look(decoder, embedding, cameras):
    pictures = render_views(decoder(embedding[None]), cameras, 16, normals=False)
    return {name: picture[0] for name, picture in pictures.items()}


def distance(inversion, views, cameras):
    return (look(inversion.decoder, inversion.embedding, cameras)["colour"] - views[0]).abs().mean().item()


def test_inversion_starting_at_another_object_finds_the_one_in_the_images(autodecoder, config, views, cameras):
    start = autodecoder.embedding.all()[1].clone()
    before = (look(autodecoder.decoder, start, cameras)["colour"] - views[0]).abs().mean().item()
    found = invert(autodecoder, config, *views, cameras, dataclasses.replace(QUICK, noise=0.0), start=start)
    assert distance(found, views, cameras) < before / 3
    assert len(found.losses) == QUICK.steps and found.tuning_losses == ()
    assert torch.equal(start, autodecoder.embedding.all()[1])
    assert found.volume().shape == (4, 16, 16, 16)


def test_the_seed_decides_the_result_and_nothing_outside_is_changed(autodecoder, config, views, cameras):
    settings = dataclasses.replace(QUICK, steps=3, tuning_steps=2, views_per_step=2)
    before = {name: value.clone() for name, value in autodecoder.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = invert(autodecoder, config, *views, cameras, settings, seed=3)
    assert torch.equal(torch.rand(3), expected)  # the caller's random stream
    torch.manual_seed(2)
    again = invert(autodecoder, config, *views, cameras, settings, seed=3)
    other = invert(autodecoder, config, *views, cameras, settings, seed=4)
    assert torch.equal(first.embedding, again.embedding) and first.tuning_losses == again.tuning_losses
    assert not torch.equal(first.embedding, other.embedding)
    assert all(torch.equal(value, before[name]) for name, value in autodecoder.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in autodecoder.parameters())
    assert not any(p.requires_grad for p in first.decoder.parameters())


def test_it_starts_from_the_mean_and_the_rate_falls_by_quarters(autodecoder, config, views, cameras):
    centre = autodecoder.embedding.all().mean(0)
    settings = InversionConfig(steps=1, learning_rate=1e-3, noise=0.0)
    moved = invert(autodecoder, config, *views, cameras, settings).embedding - centre
    torch.testing.assert_close(moved.abs().max(), torch.tensor(1e-3), rtol=1e-2, atol=0)  # one step of Adam
    far = invert(autodecoder, config, *views, cameras, dataclasses.replace(settings, steps=4)).embedding - centre
    assert 1e-3 < far.abs().max() < 1.3e-3  # 1 + 0.1 + 0.01 + 0.001 steps, and the momentum's share


def test_tuning_moves_the_decoder_only_and_brings_other_images_nearer(autodecoder, config, views, cameras):
    tinted = views[0] * torch.tensor([1.0, 0.6, 0.6])
    settings = dataclasses.replace(QUICK, steps=10)
    plain = invert(autodecoder, config, tinted, views[1], cameras, settings)
    tuned = invert(autodecoder, config, tinted, views[1], cameras, dataclasses.replace(settings, tuning_steps=15))
    assert torch.equal(plain.embedding, tuned.embedding)
    assert distance(tuned, (tinted,), cameras) < 0.7 * distance(plain, (tinted,), cameras)
    held = dataclasses.replace(settings, tuning_steps=15, tuning_anchor_weight=1e6)
    held = invert(autodecoder, config, tinted, views[1], cameras, held)
    change = [(x.volume()[0] - plain.volume()[0]).abs().mean() for x in (held, tuned)]
    assert change[0] < 0.5 * change[1]  # the anchor holds the density


def test_completion_reads_the_one_view_only(autodecoder, config, views, cameras):
    settings = dataclasses.replace(QUICK, steps=4)
    images, masks = (x.clone() for x in views)
    first = complete(autodecoder, config, images, masks, cameras, 2, settings)
    images[[0, 1, 3]], masks[[0, 1, 3]] = 1 - images[[0, 1, 3]], 0.5
    moved = dataclasses.replace(cameras, world_to_camera=cameras.world_to_camera.clone())
    moved.world_to_camera[[0, 1, 3]] = cameras.world_to_camera[[1, 3, 0]]
    again = complete(autodecoder, config, images, masks, moved, 2, settings)
    assert torch.equal(first.embedding, again.embedding)
    other = complete(autodecoder, config, images, masks, moved, 1, settings)
    assert not torch.equal(first.embedding, other.embedding)


def test_the_prior_of_completion_keeps_to_the_learned_embeddings(autodecoder, config, views, cameras):
    centre = autodecoder.embedding.all().mean(0)
    reach = []
    for weight in (0.0, 1e4):
        settings = dataclasses.replace(QUICK, steps=6, noise=0.0, prior_weight=weight)
        found = complete(autodecoder, config, *views, cameras, 0, settings)
        reach.append((found.embedding - centre).norm())
    assert reach[1] < 0.7 * reach[0]


@pytest.mark.parametrize("space", ["embedding", "latent"])
def test_interpolation_starts_and_ends_at_the_objects(autodecoder, space):
    a, b = autodecoder.embedding.all()[:2]
    path = interpolate(autodecoder.decoder, a, b, 3, space)
    with torch.no_grad():
        ends = autodecoder(torch.tensor([0, 1]))
    torch.testing.assert_close(path[[0, 2]], ends, rtol=1e-4, atol=1e-5)
    assert (path[1] - path[0]).abs().max() > 1e-2 and (path[1] - path[2]).abs().max() > 1e-2


def test_the_two_spaces_have_different_middles_and_latents_are_taken_as_they_are(autodecoder):
    decoder, (a, b) = autodecoder.decoder, autodecoder.embedding.all()[:2]
    with torch.no_grad():
        latents = decoder.g1(torch.stack([a, b]))
        middle = decoder.g2(latents.mean(0, keepdim=True))[0]
    by_embedding, by_latent = (interpolate(decoder, a, b, 3, space)[1] for space in ("embedding", "latent"))
    torch.testing.assert_close(by_latent, middle, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(interpolate(decoder, latents[0], b, 3, "latent")[1], middle, rtol=1e-4, atol=1e-5)
    assert (by_embedding - by_latent).abs().max() > 1e-2


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, m, c: (i[:0], m[:0], c[:0]), "images hold no views, expected at least one"),
        (lambda i, m, c: (i[0], m, c), r"images have shape \(16, 16, 3\), expected \(v, h, w, 3\)"),
        (lambda i, m, c: (i[:, ::2, ::2], m[:, ::2, ::2], c), "images are 8x8 pixels, expected the cameras' 16x16"),
        (lambda i, m, c: (i, m[:, :8], c), r"masks have shape \(4, 8, 16\), expected \(4, 16, 16\)"),
        (lambda i, m, c: (i, m, c[:3]), "cameras are 3, expected one for each of 4 images"),
        (lambda i, m, c: (255 * i, m, c), r"images are torch.float32 with other values than in \[0, 1\]"),
        (lambda i, m, c: (i, m.to(torch.uint8), c), "masks are torch.uint8"),
        (lambda i, m, c: (i * torch.nan, m, c), "images are torch.float32 with other values"),
        (
            lambda i, m, c: (i, m, dataclasses.replace(c, intrinsics=-c.intrinsics)),
            "cameras, view 0: focal lengths are .* expected positive",
        ),
    ],
)
def test_views_that_do_not_fit_together_are_refused(autodecoder, config, views, cameras, change, message):
    with pytest.raises(InversionError, match=message):
        invert(autodecoder, config, *change(*views, cameras), QUICK)


def test_other_faults_are_refused(autodecoder, config, views, cameras):
    with pytest.raises(InversionError, match=r"start has shape \(3,\), expected \(16,\)"):
        invert(autodecoder, config, *views, cameras, QUICK, start=torch.zeros(3))
    for view in (-1, 4):
        with pytest.raises(InversionError, match=f"view is {view}, expected one of the 4 views"):
            complete(autodecoder, config, *views, cameras, view, QUICK)
    with pytest.raises(InversionError, match="view is 3, but there are 2 masks"):
        complete(autodecoder, config, views[0], views[1][:2], cameras, 3, QUICK)
    with pytest.raises(InversionError, match="tuning_steps is 5, expected 0"):
        complete(autodecoder, config, *views, cameras, 0, dataclasses.replace(QUICK, tuning_steps=5))
    decoder, (a, b) = autodecoder.decoder, autodecoder.embedding.all()[:2]
    with pytest.raises(InversionError, match="steps is 1, expected at least 2"):
        interpolate(decoder, a, b, 1)
    with pytest.raises(InversionError, match="space is 'pixels', expected 'embedding' or 'latent'"):
        interpolate(decoder, a, b, 3, "pixels")
    with pytest.raises(InversionError, match=r"end has shape \(5,\), expected \(16,\)$"):
        interpolate(decoder, a, b[:5], 3)
    with pytest.raises(InversionError, match=r"end has shape \(5,\), expected \(16,\) or \(16, 8, 8, 8\)"):
        interpolate(decoder, a, b[:5], 3, "latent")
    with pytest.raises(InversionError, match="decoder is in training mode"):
        interpolate(Autodecoder(config, 1).decoder, a, b, 3)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"views_per_step": 0}, {"tuning_steps": -1}, {"learning_rate": 0.0}, {"noise": -1.0}]
)
def test_settings_that_cannot_work_are_refused(change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))} is "):
        InversionConfig(**change)
