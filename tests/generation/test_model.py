"""Models by name: found without their data, sampled, reconstructed, inverted and interpolated."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys

import pytest
import torch

import vader
from tests.trained import captioned_balls, trained_experiments, use_letters
from vader.autodecoder.inversion import InversionError
from vader.evaluation.metrics.images import psnr
from vader.generation.model import load_experiment
from vader.generation.volumes import load_models
from vader.settings.autodecoder import InversionConfig
from vader.settings.checks import ConfigError
from vader.store import runs
from vader.store.files import write_json
from vader.store.runs import Run, RunError
from vader.store.weights import WeightsError

QUICK = InversionConfig(steps=12, learning_rate=0.1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """(folder of runs, experiments by name), trained once."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_RUNS", str(folder))
        use_letters(patch)
        yield folder, trained_experiments(400)


@pytest.fixture(autouse=True)
def _of_the_store(store, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(store[0]))
    use_letters(monkeypatch)


@pytest.fixture
def config(store):
    return store[1]["procedural_chairs"]


@pytest.fixture
def model(config):
    return load_experiment("balls", config, "cpu")


@pytest.fixture
def own(store, tmp_path, monkeypatch):
    """A copy of the store, to be spoiled."""
    shutil.copytree(store[0], tmp_path / "runs", ignore=shutil.ignore_patterns("*.lock"))
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


# -------------------------------------------------------------------------------------------------------- loading


def test_a_model_is_found_without_its_data(config, model, monkeypatch):
    monkeypatch.setattr("vader.generation.model.prepare", lambda *_: pytest.fail("prepared data"))
    whole = load_models(config, captioned_balls(config), "cpu")
    assert [run.folder for run in model.runs] == [whole.runs[1].folder, whole.runs[0].folder][::-1]
    assert model.objects == [f"ball-{index}" for index in range(4)]


def test_the_public_entry_takes_names_and_loads_nothing_before(store, monkeypatch):
    monkeypatch.setattr("vader.generation.model.experiment_named", lambda profile, name: store[1][name])
    assert vader.load("procedural_chairs", "smoke", device="cpu").sample(1)[0].name == "procedural_chairs-seed0-000"
    script = "import sys, vader; vader.load; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'procedural_chair' is unknown.*did you mean 'procedural_chairs'\?"):
        vader.load("procedural_chair", "smoke")


def test_videos_have_another_way():
    with pytest.raises(ConfigError, match="puppets is a set of videos.*load_animator"):
        vader.load("puppets", "smoke")


def test_what_is_not_trained_is_said_with_the_command_that_trains_it(config):
    with pytest.raises(RunError, match=r"runs of .*procedural_chairs.*`vader train balls --profile smoke --seed 7`"):
        load_experiment("balls", config.replace(seed=7))
    with pytest.raises(RunError, match="is not trained"):
        load_experiment("balls", config.replace(unet=dict(channels=32, channels_per_head=32)))


def test_it_is_trained_where_that_is_asked_for(config, tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))
    prepared = []
    monkeypatch.setattr("vader.generation.model.prepare", lambda data: prepared.append(data) or captioned_balls(config))
    quick = config.replace(reconstruction=dict(images_seen=64))
    trained = load_experiment("balls", quick, "cpu", train=True)
    again = load_experiment("balls", quick, "cpu", train=True)
    assert len(prepared) == 1 and [run.digest for run in again.runs] == [run.digest for run in trained.runs]


def test_a_run_with_changed_weights_is_refused(config, own):
    file = next(own.glob("*-diffusion-*/denoiser.safetensors"))
    for name in own.glob("*-diffusion-*/denoiser.safetensors"):
        content = bytearray(name.read_bytes())
        content[-1] ^= 1
        name.write_bytes(content)
    with pytest.raises(RunError, match=rf"{file.name}: SHA-256 is .*expected .* as DONE has it"):
        load_experiment("balls", config)


def test_an_unfinished_second_stage_is_none(config, own):
    for done in own.glob("*-diffusion-*/DONE"):
        done.unlink()
    with pytest.raises(RunError, match="is not trained"):
        load_experiment("balls", config)


def on_other_data(first: Run, second: Run, started: str) -> Run:
    """The same two stages as if they had been trained then on other data, in $VADER_RUNS; the second."""
    changed = {"data": f"of {started}"}
    for run in (first, second):
        work = runs.begin(run.name, run.settings | changed)
        for file in run.files:
            shutil.copy(run.folder / file, work)
        write_json(work / "record.json", run.record | {"sessions": [run.record["sessions"][0] | {"started": started}]})
        published = runs.publish(work)
        changed = {"autodecoder": published.digest}
    return published


def test_of_several_runs_the_newest_is_taken_and_named(config, own, capsys):
    """The same settings on other data are another run; its pictures may differ."""
    known = load_experiment("balls", config, "cpu").runs
    assert capsys.readouterr().err == ""
    newer = on_other_data(*known, "2099-01-01T00:00:00Z")
    assert load_experiment("balls", config, "cpu").runs[1].digest == newer.digest
    assert f"{newer.folder.name} is taken, not {known[1].folder.name}" in capsys.readouterr().err
    shutil.rmtree(newer.folder)
    on_other_data(*known, "1999-01-01T00:00:00Z")
    assert load_experiment("balls", config, "cpu").runs[1].digest == known[1].digest


def test_own_runs_go_before_committed_ones(config, own, tmp_path, monkeypatch):
    """Whatever is newer: who has trained a model wants that one."""
    known = load_experiment("balls", config, "cpu").runs
    monkeypatch.setattr("vader.store.runs.reference_runs_dir", lambda: own)
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "mine"))
    assert load_experiment("balls", config, "cpu").runs[1].folder.parent == own
    mine = on_other_data(*known, "1999-01-01T00:00:00Z")
    assert load_experiment("balls", config, "cpu").runs[1].folder == mine.folder


# --------------------------------------------------------------------------------------------------------- making


def test_samples_are_those_of_the_models_and_depend_on_number_and_seed(config, model):
    samples = model.sample(3, seed=4)
    volumes = model.trained.ours()(range(3), 4)
    for sample, volume in zip(samples, volumes, strict=True):
        assert torch.allclose(sample.volume, volume, rtol=1e-3, atol=1e-3)
    [alone] = model.sample([2], seed=4)
    assert alone.name == samples[2].name == "balls-seed4-002"
    assert torch.allclose(alone.volume, samples[2].volume, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(model.sample([2], seed=5)[0].volume, alone.volume, rtol=1e-2, atol=1e-2)
    assert alone.origin["runs"] == {run.settings["stage"]: run.digest for run in model.runs}
    assert (alone.origin["kind"], alone.origin["seed"], alone.origin["index"]) == ("sample", 4, 2)
    assert alone.caption is None


@pytest.mark.parametrize("count", [0, -1, [], [-2]])
def test_a_count_below_one_is_refused(model, count):
    with pytest.raises(ConfigError, match="expected at least 1|expected 0 or more"):
        model.sample(count)


def test_text_goes_to_models_that_take_it_and_to_no_other(store, model):
    for given in (dict(prompt="a ball"), dict(guidance=3.0)):
        with pytest.raises(ConfigError, match="balls takes no text, but there is (prompt 'a ball'|guidance 3.0)"):
            model.sample(1, **given)
    told = load_experiment("told", store[1]["procedural_chairs_text"], "cpu")
    for prompt in (None, " "):
        with pytest.raises(ConfigError, match="told takes text, but prompt is"):
            told.sample(1, prompt=prompt, guidance=2)
    [one] = told.sample(1, prompt="A ball, of size 3!")
    [two] = told.sample(1, prompt="A ball, of size 3!", guidance=3)
    [three] = told.sample(1, prompt="zzz")
    assert (one.name, two.name) == ("told-a-ball-of-size-3-seed0-000", "told-a-ball-of-size-3-guidance3-seed0-000")
    [four], [five] = told.sample(1, prompt="мяч"), told.sample(1, prompt="球")
    assert len({three.name, four.name, five.name}) == 3 and four.name.startswith("told-prompt")
    assert one.caption == "A ball, of size 3!" and two.origin["guidance"] == 3
    assert not torch.equal(one.volume, two.volume) and not torch.equal(one.volume, three.volume)


def test_training_objects_by_name_and_number(model):
    by_name, by_number = model.reconstruct(["ball-2", "ball-0"]), model.reconstruct([2, 0])
    expected = model.trained.reconstruct([2, 0])
    for one, other, volume in zip(by_name, by_number, expected, strict=True):
        assert one.name == other.name and torch.allclose(one.volume, volume, atol=1e-4)
        assert torch.equal(one.volume, other.volume)
    assert model.reconstruct("ball-2")[0].name == "balls-ball-2" and model.reconstruct([]) == []
    with pytest.raises(ConfigError, match=r"no training object 'bal-2' \(did you mean 'ball-2'\?\)"):
        model.reconstruct(["ball-1", "bal-2"])
    with pytest.raises(ConfigError, match="training object 4 of balls, expected 0 to 3"):
        model.reconstruct(4)


def test_an_object_that_never_trained_is_fitted_to_its_images(config, model):
    ball = captioned_balls(config).split("test")[0]
    seen, hidden = slice(0, 6), slice(6, 8)
    images, cameras = ball.images[seen], ball.cameras[seen]
    rgba = torch.cat([images, ball.masks[seen, ..., None]], dim=-1)
    fitted = model.invert(rgba, cameras, settings=QUICK)
    same = model.invert(ball.colours(seen), cameras, masks=ball.alphas(seen), settings=QUICK)
    assert torch.equal(fitted.volume, same.volume) and fitted.origin["kind"] == "inversion"

    def score(made):
        return psnr(made.render(ball.cameras[hidden])["colour"], ball.colours(hidden)).mean().item()

    assert score(fitted) > score(model.mean())
    without = model.invert(images, cameras, settings=QUICK)
    assert not torch.equal(without.volume, fitted.volume), "silhouettes are compared where they are known"
    blind = dataclasses.replace(model.trained, config=config.replace(reconstruction=dict(foreground_weight=0.0)))
    assert torch.equal(
        without.volume, dataclasses.replace(model, trained=blind).invert(rgba, cameras, settings=QUICK).volume
    )
    whole = model.complete(rgba, cameras, view=1, settings=QUICK)
    assert whole.origin["kind"] == "completion" and torch.isfinite(whole.volume).all()


def test_images_that_do_not_fit_are_refused(config, model):
    ball = captioned_balls(config).split("test")[0]
    with pytest.raises(InversionError, match="cameras are 3, expected one for each of 2 images"):
        model.invert(ball.images[:2], ball.cameras[:3])
    with pytest.raises(InversionError, match=r"images have shape .* expected \(v, h, w, 3\)"):
        model.invert(ball.images[0], ball.cameras[:1])


def test_pixels_alone_need_no_network(config, model, monkeypatch):
    """A profile that trained with VGG can be inverted without it, but only where that is asked for."""
    ball = captioned_balls(config).split("test")[0]
    monkeypatch.setattr("vader.generation.model.resolve", lambda network: (_ for _ in ()).throw(WeightsError(network)))
    perceptual = config.replace(reconstruction=dict(perceptual_network="vgg16"))
    trained = dataclasses.replace(model.trained, config=perceptual)
    strict = dataclasses.replace(model, trained=trained)
    with pytest.raises(WeightsError, match="vgg16\nOr compare by pixels alone: perceptual=False"):
        strict.invert(ball.images, ball.cameras, settings=QUICK)
    made = strict.invert(ball.images, ball.cameras, settings=QUICK, perceptual=False)
    assert torch.equal(made.volume, model.invert(ball.images, ball.cameras, settings=QUICK).volume)


def test_interpolations_start_and_end_at_the_objects(model):
    samples, learned = model.sample(2), model.reconstruct([0, 1])
    for ends, space in ((samples, None), (learned, None), (learned, "latent"), ((samples[0], learned[1]), None)):
        path = model.interpolate(*ends, steps=3, space=space)
        for end, made in ((ends[0], path[0]), (ends[1], path[-1])):
            assert torch.allclose(end.volume, made.volume, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(path[1].volume, path[0].volume, rtol=1e-2, atol=1e-2)
    assert torch.equal(model.interpolate("ball-0", 1, 3)[1].volume, model.interpolate(*learned, 3)[1].volume)
    with pytest.raises(InversionError, match="balls-seed0-000 has no embedding"):
        model.interpolate(*samples, space="embedding")
