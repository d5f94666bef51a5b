"""From runs to pictures and scores: reproducible, independent of batches, and right where the answer is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.tiny import balls, tiny_experiment
from vader.baselines.direct_latent_sampling import direct_latent_sampling
from vader.diffusion.sampling import object_generators
from vader.evaluation import pictures as evaluation
from vader.evaluation.metrics import MetricError
from vader.evaluation.pictures import random_views, render_samples
from vader.generation import volumes as generation
from vader.generation.volumes import load_models
from vader.rendering.cameras import sample_orbit
from vader.rendering.render import render_views
from vader.report import figures


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(tmp_path_factory.mktemp("runs")))
        config = tiny_experiment(data=dict(resolution=32), reconstruction=dict(images_seen=1_600))
        yield load_models(config, balls(config), "cpu")


@pytest.fixture(params=["ours", "standard", "fitted"])
def system(request, models):
    return models.ours() if request.param == "ours" else direct_latent_sampling(models, request.param)


def test_volumes_are_finite_and_depend_on_number_and_seed(system):
    volumes = system([0, 1, 5], 0)
    assert volumes.shape == (3, 4, 16, 16, 16)
    assert torch.isfinite(volumes).all() and (volumes[:, 0] >= 0).all()
    alone = system([5], 0)[0]
    assert torch.allclose(alone, volumes[2], rtol=1e-3, atol=1e-3), "a sample does not depend on its batch"
    assert not torch.allclose(system([5], 1)[0], volumes[2], rtol=1e-2, atol=1e-2)


def test_pictures_are_the_same_again(models, system, monkeypatch):
    pictures = render_samples(models, system, 3, 2, seed=0)
    assert pictures.shape == (3, 2, 32, 32, 3)
    assert torch.equal(pictures, render_samples(models, system, 3, 2, seed=0))
    monkeypatch.setattr(generation, "BATCH", 1)
    assert (render_samples(models, system, 3, 2, seed=0) - pictures).abs().max() < 0.02


def test_a_system_of_volumes_is_a_generator_of_the_same_pictures(models, system):
    """Bit for bit what rendering its volumes one by one gives, whoever calls."""
    generator = models.generator(system, "name")
    assert generator.name == "name" and models.generator(generator) is generator
    cameras = [random_views(models.config, index, 2, 5) for index in (1, 3)]
    pictures = generator.pictures([1, 3], cameras, 5)
    samples = models.config.reconstruction.num_samples
    for volume, views, picture in zip(system([1, 3], 5), cameras, pictures, strict=True):
        expected = render_views(volume[None], views, samples, normals=False)["colour"][0]
        assert torch.equal(picture, expected)
    assert torch.equal(render_samples(models, generator, 4, 2, 5), render_samples(models, system, 4, 2, 5))


def test_density_of_a_generator_at_its_own_and_another_resolution(models):
    axis = torch.linspace(-1, 1, 16)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    plane = 4 + x + 2 * y - z  # linear, so that resampling is exact
    generator = models.generator(lambda indices, seed: plane.expand(len(indices), 4, 16, 16, 16))
    assert torch.equal(generator.density([0], 0, 16)[0], plane)
    finer = torch.linspace(-1, 1, 31)
    z, y, x = torch.meshgrid(finer, finer, finer, indexing="ij")
    assert torch.allclose(generator.density([0, 1], 0, 31)[1], 4 + x + 2 * y - z, atol=1e-5)


def broken_samples(models, *broken: int):
    """Direct latent sampling of which some samples come out as NaN."""
    system = direct_latent_sampling(models, "fitted")

    def draw(indices, seed):
        volumes = system(indices, seed).clone()
        for k, index in enumerate(indices):
            if index in broken:
                volumes[k, 2, 0, 0, 0] = torch.nan
        return volumes

    return draw


def test_broken_samples_are_nan_left_out_and_counted(models):
    config, system = models.config.evaluation, broken_samples(models, 2, 5)
    pictures = render_samples(models, system, 6, 2, seed=0)
    assert [bool(p.isnan().all()) for p in pictures] == [k in (2, 5) for k in range(6)]
    assert not pictures[[0, 1, 3, 4]].isnan().any()
    assert [bool(d.isnan().all()) for d in models.generator(system).density(range(6), 0, 16)] == [
        k in (2, 5) for k in range(6)
    ]
    sets = evaluation.sample_features(models, system, "dls")
    assert [(s.num_objects, s.left_out) for s in sets] == [(6, 2), (6, 2)], "of 8 samples and two seeds"
    rows = evaluation.distance_rows(sets, evaluation.real_features(models.data, config), config)
    assert all("4 of 16 samples are not finite and left out" in row["note"] for row in rows)
    with pytest.raises(MetricError, match="dls, seed 0: none of 8 samples has finite pictures"):
        evaluation.sample_features(models, broken_samples(models, *range(8)), "dls")


def test_what_cannot_be_scored_is_refused_before_any_work(models):
    def never(indices, seed):
        pytest.fail("sampled")

    few = dataclasses.replace(models, config=models.config.replace(evaluation=dict(num_samples=3)))
    with pytest.raises(MetricError, match="ours: 3 samples of 4 views, but KID draws subsets of 16 pictures"):
        evaluation.sample_features(few, never, "ours")

    class Small:
        name = "small"

        def pictures(self, indices, cameras, seed):
            return torch.zeros(len(indices), len(cameras[0]), 8, 8, 3)

    message = r"gan: pictures have shape \(3, 2, 8, 8, 3\), expected \(3, 2, 32, 32, 3\)"
    with pytest.raises(MetricError, match=message):
        render_samples(models, Small(), 3, 2, 0, "gan")


def test_random_views_follow_the_data(models):
    cameras = random_views(models.config, 3, 400, 0)
    centres = cameras.centres()
    distance = models.config.data.camera_distance
    assert torch.allclose(centres.norm(dim=-1), torch.tensor(distance), atol=1e-4)
    elevation = torch.rad2deg(torch.asin(centres[:, 1] / distance))
    low, high = models.config.data.elevation
    assert low - 1e-3 <= elevation.min() and elevation.max() <= high + 1e-3
    assert not torch.equal(random_views(models.config, 4, 2, 0).centres(), centres[:2])


def test_random_views_are_drawn_anew_for_each_seed_and_not_from_the_samples_own_stream():
    """A sample's noise and its cameras are independent: neither stream continues or repeats the other."""
    config = tiny_experiment()
    centres = random_views(config, 3, 5, 7).centres()
    assert torch.equal(centres, random_views(config, 3, 5, 7).centres())
    assert not torch.isclose(centres, random_views(config, 3, 5, 8).centres()).all(1).any()
    [own] = object_generators(7, [3])
    assert not torch.isclose(centres, sample_orbit(5, config.data, own).centres()).all(1).any()


def test_real_images_are_random_ones_of_each_object_training_and_held_out_views_alike(monkeypatch):
    """Sec. 4.2: FID and KID compare with random images. Other seeds draw others, and each object has its own."""
    taken = []
    monkeypatch.setattr(evaluation, "extract", lambda pictures, network: taken.append(pictures))
    config, drawn_from = tiny_experiment(evaluation=dict(real_views=3)), balls(tiny_experiment())
    numbered = [
        dataclasses.replace(s, images=torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand_as(s.images))
        for s in drawn_from
    ]
    data = dataclasses.replace(drawn_from, sequences=tuple(numbered))
    for seed in range(12):
        evaluation.real_features(data, config.evaluation, "train", seed)
    drawn = torch.stack(taken)[..., 0, 0, 0].tolist()  # [seed][object]: numbers of its views
    assert all(len(set(views)) == 3 for objects in drawn for views in objects)
    assert {view for objects in drawn for views in objects for view in views} == set(range(8))
    assert all(len({tuple(views) for views in objects}) > 1 for objects in drawn), "the same views of all objects"
    assert len({str(objects) for objects in drawn}) == 12


def test_reconstruction_is_scored_on_the_views_that_training_never_drew(models):
    """Other training views change no score, other held-out views change all."""

    def scores(views: slice) -> dict[str, torch.Tensor]:
        changed = []
        for sequence in models.data:
            images = sequence.images.clone()
            images[views] = 255 - images[views]
            changed.append(dataclasses.replace(sequence, images=images))
        data = dataclasses.replace(models.data, sequences=tuple(changed))
        return evaluation.heldout_scores(dataclasses.replace(models, data=data))

    original, boundary = evaluation.heldout_scores(models), models.data.train_views
    trained, heldout = scores(slice(0, boundary)), scores(slice(boundary, None))
    for name, values in original.items():
        assert torch.equal(values, trained[name]), name
        assert not torch.isclose(values, heldout[name]).any(), name


def test_a_trained_autodecoder_beats_the_mean_image(models):
    scores = evaluation.heldout_reconstruction(models)
    train = models.data.split("train")
    mean = torch.stack([s.colours(slice(0, train.train_views)).mean(0) for s in train]).mean(0)
    errors = [((s.colours(slice(-2, None)) - mean) ** 2).mean() for s in train]
    trivial = -10 * torch.stack(errors).log10().mean().item()
    assert scores["psnr"].value > trivial + 3
    assert scores["psnr"].low <= scores["psnr"].value <= scores["psnr"].high
    assert scores["psnr"].n == len(train)


def test_a_heldout_view_without_foreground_is_left_out_and_counted(models):
    train = list(models.data.split("train"))
    sliver = [dataclasses.replace(s, masks=s.masks.clone()) for s in train]
    first = models.data.train_views
    sliver[0].masks[first] = 0  # one held-out view of the first object
    sliver[1].masks[first:] = 0  # all of the second
    changed = dataclasses.replace(models, data=dataclasses.replace(models.data, sequences=tuple(sliver)))
    with pytest.warns(UserWarning, match=rf"3 held-out views of 2 objects \({train[0].key}, .* left out of psnr_fore"):
        scores = evaluation.heldout_scores(changed)
    before = evaluation.heldout_scores(models)
    assert torch.equal(scores["psnr"], before["psnr"]) and torch.equal(scores["lpips"], before["lpips"])
    assert scores["psnr_foreground"].isnan().tolist() == [False, True, *[False] * (len(train) - 2)]
    assert torch.equal(scores["psnr_foreground"][2:], before["psnr_foreground"][2:])
    rest = evaluation.heldout_scores(changed, [0])["psnr_foreground"]  # the other view alone
    assert rest.isfinite().all() and rest != before["psnr_foreground"][0]
    assert evaluation.mean_over_objects(scores["psnr_foreground"]).n == len(train) - 1
    with pytest.raises(MetricError, match="no object has a held-out view with a foreground pixel"):
        evaluation.mean_over_objects(torch.tensor([torch.nan]))


def test_mean_over_objects():
    mean = evaluation.mean_over_objects(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert mean.value == 2.5
    assert mean.std == pytest.approx(1.2909944)
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * 1.2909944 / 2)


def test_other_views_of_the_same_objects_are_nearest(models):
    """The kernel distance ranks real against real before anything a hardly trained model makes."""
    config = models.config.evaluation
    real = evaluation.real_features(models.data, config)
    assert real.num_objects == 4
    again = evaluation.real_features(models.data, config, seed=1)

    def kernel_distance(features):
        rows = evaluation.distance_rows([features], real, config)
        assert [row["metric"] for row in rows] == ["fd", "kd"], "EfficientNet's distances are no FID and KID"
        return rows[1]["value"]

    noise = evaluation.sample_features(models, direct_latent_sampling(models, "standard"), "noise")
    same = kernel_distance(again)
    assert same < 0.2 * kernel_distance(evaluation.reconstruction_features(models))
    assert same < 0.2 * kernel_distance(noise[0])


def test_rows_have_the_spread_over_seeds(models):
    config = models.config.evaluation
    real = evaluation.real_features(models.data, config)
    sets = evaluation.sample_features(models, direct_latent_sampling(models, "fitted"), "fitted")
    frechet, kernel = evaluation.distance_rows(sets, real, config)
    single = [evaluation.distance_rows([s], real, config)[1]["value"] for s in sets]
    assert kernel["n"] == len(config.sampling_seeds) == 2
    assert kernel["value"] == pytest.approx(sum(single) / 2)
    assert kernel["std"] == pytest.approx(abs(single[0] - single[1]) / 2**0.5)
    assert (kernel["scale"], frechet["scale"]) == (1000, 1)


def test_real_against_real_is_of_as_many_objects_for_every_system(models):
    config = models.config.evaluation
    real, heldout = (evaluation.real_features(models.data, config, split) for split in ("train", "test"))
    noise = evaluation.sample_features(models, direct_latent_sampling(models, "standard"), "noise")
    broken = [dataclasses.replace(f, values=f.values[:1], objects=f.objects[:1]) for f in noise]
    count, views = heldout.num_objects, config.views
    assert len(heldout) < len(noise[0])  # so that there is something to cut
    rows = evaluation.real_against_real_rows(heldout, real, {("dls", "a"): noise, ("dls", "b"): broken}, config)
    assert [(r["system"], r["variant"]) for r in rows] == [
        *[("real", f"{count} objects against all")] * 2,
        *[("dls", f"a, {count} objects against all")] * 2,
    ]
    assert all(r["note"].startswith(f"{count * views} generated") for r in rows)
    kernel = {r["system"]: r["value"] for r in rows if r["metric"] == "kd"}
    assert kernel["real"] < 0.5 * kernel["dls"]


def test_the_network_of_the_loss_does_not_judge(models):
    config = models.config.replace(
        evaluation=dict(features="vgg16-relu5"), reconstruction=dict(perceptual_network="vgg16")
    )
    judge = generation.Models(config, models.data, models.runs, models.autodecoder, models.device)
    with pytest.raises(MetricError, match="cannot judge"):
        evaluation.sample_features(judge, direct_latent_sampling(judge, "fitted"), "dls")


def test_figures_show_every_object(models, tmp_path):
    volumes = models.reconstruct(range(2))
    strip = figures.picture_row(volumes[0], models.config.data, 16, resolution=24)
    assert strip.shape == (24, 6 * 24, 3)
    assert strip.max() <= 1 and strip[:, : 4 * 24].max() > 0.1
    figures.object_grid({"reconstruction": volumes}, models.config.data, 16, "balls").savefig(tmp_path / "grid.png")
    figures.data_grid(models.data, 2, "balls", views=3).savefig(tmp_path / "data.png")
    assert (tmp_path / "grid.png").stat().st_size > 1000
