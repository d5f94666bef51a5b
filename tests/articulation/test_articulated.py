"""Stage 1 of videos: it learns, one part and then several, resumes, ablates, and says what is wrong."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from tests.tiny import balls, tiny_articulated, toys
from vader.articulation import articulated
from vader.articulation.articulated import Articulation
from vader.articulation.learning.one_part import grow, rigid, single
from vader.articulation.learning.solids import asymmetry, half_depth
from vader.articulation.losses import change_weights
from vader.articulation.pose_model import PoseModel, load_pose_model
from vader.articulation.poses import PoseError, fixed_camera, neutral
from vader.autodecoder.reconstruction import Autodecoder, load_autodecoder
from vader.commands.train import plan
from vader.diffusion.denoising import extract_latents
from vader.settings.checks import ConfigError
from vader.settings.profiles import experiment
from vader.stages import articulated_run, autodecoder_run, diffusion_run
from vader.store.files import plain, read_json, read_weights
from vader.store.runs import Paused
from vader.training.distributed import Ranks

pytest.importorskip("pytorch3d")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "runs"))


@pytest.fixture(scope="module")
def data():
    return toys(tiny_articulated())[0]


def settle(task: Articulation) -> None:
    """As after the neutral start: keypoints that are on average where the neutral pose has them."""
    model = task.pose_model
    untrained = model.predictor.forward
    with torch.no_grad():
        offset = model.project(neutral(1, 2)) - untrained(task.frames.float() / 255).mean(0)
    model.predictor.forward = lambda images: untrained(images) + offset


def test_one_step_moves_everything_and_names_its_terms(data):
    config = tiny_articulated(articulation=dict(neutral_images=0, free_depth_images=0))
    task = Articulation(config, data, CPU)
    settle(task)
    torch.manual_seed(0)
    losses = task.step(0)
    terms = {"foreground", "pixels", "depth", "equivariance", "projection", "pull"}
    guard = {"pnp_refused", "pnp_not_finite", "pnp_clipped"}
    assert losses.keys() == {"loss"} | terms | guard
    assert losses["loss"].item() == pytest.approx(sum(losses[name].item() for name in terms), rel=1e-5)
    groups = [group["params"] for group in task.optimizer.param_groups]
    for group in groups:
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in group)
        assert all(torch.isfinite(p.grad).all() for p in group if p.grad is not None)
    assert task.pose_model.keypoints.raw.grad.abs().max() > 0


def test_the_loop_is_told_how_to_clip_and_which_videos_a_step_draws(data):
    config = tiny_articulated(reconstruction=dict(clip_norm=3.0))
    task = Articulation(config, data, CPU)
    assert (task.clip_norm, task.clip_value) == (3.0, 0.1)
    torch.manual_seed(5)
    drawn = [task.keys[k] for k in task.draw(0)[0]]
    torch.manual_seed(5)
    assert task.batch(0) == drawn and len(set(drawn)) == 2


def test_poses_are_learned_on_one_rank(data, monkeypatch, tmp_path):
    config = tiny_articulated()
    with pytest.raises(ConfigError, match="poses are learned on one rank, but there are 2"):
        autodecoder_run(config, data, "cpu", ranks=2)
    with pytest.raises(ConfigError, match="shard is 'fully', which divides weights among ranks, but there is 1"):
        autodecoder_run(config, data, "cpu", shard=True)
    monkeypatch.setattr("vader.stages.current", lambda: Ranks(1, 3))
    with pytest.raises(ConfigError, match="on one rank, but there are 3; train stage 1 on one, stage 2 on any"):
        diffusion_run(config, data, "cpu")
    assert not list(tmp_path.glob("runs/*"))
    with pytest.raises(ConfigError, match="on one rank, but there are 4"):
        plan(config, 4)
    text = plan(config)
    assert "after 32 images of a run with one part" in text
    poses = sum(p.numel() for p in PoseModel(config).parameters())
    assert f"keypoints {poses:,} parameters" in text


def test_stills_are_no_videos():
    config = tiny_articulated()
    with pytest.raises(ConfigError, match="balls has no videos, expected some .* \\['ball-0'\\] is none"):
        Articulation(config, balls(config), CPU)


@pytest.mark.parametrize("term", ["equivariance", "projection", "pull", "foreground", "pixels"])
def test_every_term_can_be_left_out(data, term):
    if term in ("foreground", "pixels"):
        config = tiny_articulated(reconstruction={f"{term.removesuffix('s')}_weight": 0.0})
    else:
        config = tiny_articulated(articulation={"neutral_images": 0, f"{term}_weight": 0.0})
    losses = Articulation(config, data, CPU).step(0)
    assert losses.get(term, 0) == 0
    assert losses["loss"] > 0


def test_the_picture_alone_moves_the_keypoints_through_the_pose(data):
    off = {f"{name}_weight": 0.0 for name in ("equivariance", "projection", "pull")}
    task = Articulation(tiny_articulated(articulation=dict(neutral_images=0, **off)), data, CPU)
    settle(task)
    assert "projection" not in task.step(0)
    assert task.pose_model.keypoints.raw.grad.abs().max() > 0
    assert task.pose_model.predictor.head.weight.grad.abs().max() > 0


def test_the_neutral_start_holds_the_pose_and_asks_the_keypoints_to_agree(data):
    task = Articulation(tiny_articulated(), data, CPU)
    assert "pnp_refused" not in task.step(0) and "pnp_refused" in task.step(8)


def test_the_start_pulls_every_subject_to_one_solid(data):
    """Only while poses are neutral, only with a weight, and not for a model that grows from a finished run."""
    alone = dict(foreground_weight=0.0, pixel_weight=0.0, perceptual_weight=0.0, density_noise=0.0)
    start = dict(neutral_images=1000, own_start=False)
    task = Articulation(tiny_articulated(articulation=start, reconstruction=alone), data, CPU)

    def distance():
        with torch.no_grad():
            density = task.model.train()(torch.arange(4), 0.0)[:, 0]
        return ((density - task.solids).square().mean() / task.solids.square().mean()).item()

    assert task.solids.shape == (1, 8, 8, 8) and 0 < task.solids.max() <= 3.5
    before = distance()
    for clock in range(0, 600, 4):
        task.optimizer.zero_grad()
        task.step(clock)["loss"]
        task.optimizer.step()
    assert distance() < 0.2 * before
    assert "start" in task.step(996) and "start" not in task.step(1000)
    unasked = Articulation(tiny_articulated(articulation=dict(start_weight=0.0)), data, CPU)
    assert "start" not in unasked.step(0)


def test_each_subject_may_start_as_its_own_solid_that_follows_its_silhouette(data, monkeypatch):
    config = tiny_articulated(articulation=dict(own_start=True, predictor_warmup_images=0))
    task = Articulation(config, data, CPU)
    assert task.solids.shape == (4, 8, 8, 8) and (task.solids[0] - task.solids[1]).abs().max() > 1
    rendered = []
    original = articulated.render_posed
    monkeypatch.setattr(
        articulated, "render_posed", lambda v, poses, *a, **k: rendered.append(poses) or original(v, poses, *a, **k)
    )
    torch.manual_seed(0)
    task.step(0)
    torch.manual_seed(0)
    frames = task.draw(0)[1]
    assert torch.equal(rendered[0][..., 3], task.shifts[frames][:, :, None].expand(rendered[0].shape[:-1]))
    assert task.shifts.abs().max() > 0.01


def test_density_is_kept_out_of_what_is_deeper_than_the_silhouette_is_wide(data):
    """In the neutral pose and after it, and of each subject by its own silhouette."""
    alone = dict(foreground_weight=0.0, pixel_weight=0.0, perceptual_weight=0.0, density_noise=0.0)
    off = {f"{term}_weight": 0.0 for term in ("start", "settling", "projection", "equivariance", "pull")}
    config = tiny_articulated(articulation=off | dict(depth_weight=1.0, free_depth_images=0), reconstruction=alone)
    task = Articulation(config, data, CPU)
    axis, camera = torch.linspace(-1, 1, 8), fixed_camera(config.articulation, 16)
    for video, deep in zip(data.split("train"), task.too_deep[:, :, 0, 0], strict=True):
        assert torch.equal(deep, axis.abs() > half_depth(video.masks[:6], camera)) and 0 < deep.sum() < 8

    def density():
        with torch.no_grad():
            return task.model(torch.arange(4), 0.0)[:, 0] / config.autodecoder.density_scale

    for clock in (0, 8):
        torch.manual_seed(3)  # the step draws the same videos
        objects = task.draw(clock)[0]
        with torch.no_grad():
            raw = task.model(objects, 0.0)[:, 0] / config.autodecoder.density_scale
        torch.manual_seed(3)
        assert torch.isclose(task.step(clock)["depth"], (raw * task.too_deep[objects]).square().mean(), rtol=1e-4)
    late = config.replace(articulation=dict(free_depth_images=16))
    weights = [Articulation(late, data, CPU)._depth_weight(clock) for clock in (0, 16, 40, 64)]
    assert weights == [0, 0, 0.5, 1] and "depth" not in Articulation(late, data, CPU).step(16)
    deep = task.too_deep.expand(4, 8, 8, 8)
    before = density()
    for clock in range(0, 200, 4):
        task.optimizer.zero_grad()
        task.step(clock % 8)
        task.optimizer.step()
    assert density()[deep].square().mean() < 0.1 * before[deep].square().mean()


def test_training_begins_with_the_most_symmetric_frames_and_takes_in_the_others(data):
    early = dict(neutral_images=80, neutral_share=0.5, widening_images=40)
    task = Articulation(tiny_articulated(articulation=early), data, CPU)

    def shown(clock):
        return torch.cat([task.draw(clock)[1].flatten() for _ in range(200)]).unique().tolist()

    for k, video in enumerate(data.split("train")):
        order = asymmetry(video.frames[:6], video.masks[:6]).argsort() + 6 * k
        assert set(shown(0)) & set(range(6 * k, 6 * k + 6)) == set(order[:3].tolist())
    assert shown(79) == shown(0) and len(shown(79 + 20)) == 4 * 5 and len(shown(80 + 40)) == 4 * 6
    everything = Articulation(tiny_articulated(articulation=dict(neutral_share=1.0)), data, CPU)
    torch.manual_seed(0)
    drawn = everything.draw(0)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(drawn, task.draw(1000), strict=True)), "the same draws once all are"


def test_the_predictor_warms_up_when_the_pictures_begin_to_teach_it(data):
    task = Articulation(tiny_articulated(articulation=dict(neutral_images=8, predictor_warmup_images=12)), data, CPU)
    *others, shared, group = task.optimizer.param_groups
    parameter, rates = task.pose_model.keypoints.raw, []
    for clock in range(0, 28, 4):
        for g in task.optimizer.param_groups:
            g["lr"] = 1e-3
        task.optimizer.zero_grad()
        task.step(clock)
        assert (parameter in task.optimizer.state) == (clock not in (0, 8)), "Adam starts anew where the poses do"
        task.optimizer.step()
        rates.append(round(group["lr"] / 1e-3, 6))
        assert all(g["lr"] == 1e-3 for g in others) and shared["lr"] == group["lr"]
    assert rates == [1, 1, 0.25, 0.5, 0.75, 1, 1]


def test_keypoints_settle_in_the_neutral_pose_by_a_weight_of_its_own(data):
    weights = dict(neutral_images=8, settling_weight=3.0, projection_weight=0.0)
    task = Articulation(tiny_articulated(articulation=weights), data, CPU)
    assert task.step(0)["projection"] > 0 and "projection" not in task.step(8)
    task = Articulation(tiny_articulated(articulation=weights | dict(settling_weight=6.0)), data, CPU)
    again = Articulation(tiny_articulated(articulation=weights), data, CPU)
    both = []
    for each in (task, again):
        torch.manual_seed(0)
        both.append(each.step(0)["projection"])
    assert torch.isclose(both[0], 2 * both[1])


def test_frames_drawn_are_of_their_video_different_and_only_for_training(data):
    videos = list(data.split("train"))
    short = dataclasses.replace(videos[1], train_frames=3)
    uneven = dataclasses.replace(data, sequences=(videos[0], short, *videos[2:]))
    task = Articulation(tiny_articulated(reconstruction=dict(views_per_object=3)), uneven, CPU)
    assert len(task.frames) == 6 + 3 + 6 + 6
    for _ in range(20):
        objects, frames = task.draw(0)
        assert len(objects.unique()) == 2
        for video, chosen in zip(objects.tolist(), frames, strict=True):
            low, count = (0, 6, 9, 15)[video], (6, 3, 6, 6)[video]
            assert len(chosen.unique()) == 3 and (chosen >= low).all() and (chosen < low + count).all()


def test_it_learns_with_one_part_and_goes_on_with_more(data):
    config = tiny_articulated(reconstruction=dict(images_seen=120), articulation=dict(rigid_images=240))
    run = autodecoder_run(config, data, "cpu")
    first = articulated_run(rigid(config, 240), data, "cpu")
    assert first.folder != run.folder and run.settings["start"] == first.digest
    early, late = (
        [p["pixels"] for p in first.record["curves"]["autodecoder"]][part] for part in (slice(8), slice(-8, None))
    )
    assert sum(late) < 0.7 * sum(early)
    curve = run.record["curves"]["autodecoder"]
    went_on = [p["pixels"] for p in curve if "pixels" in p]
    assert len(went_on) == (120 - 16) / 4 and curve[0].keys() >= {"regions", "kept"}, "parts are told where they start"
    assert sum(went_on[:8]) < 0.8 * sum(early)
    assert run.record["parts"] == 2 and first.record["parts"] == 1
    assert run.record["objects"] == [v.key for v in data.split("train")]
    assert autodecoder_run(config, data, "cpu").folder == run.folder
    latents = extract_latents(load_autodecoder(run, config))
    assert latents.shape == (4, *config.autodecoder.latent_shape)
    assert diffusion_run(config, data, "cpu").settings["autodecoder"] == run.digest


def test_one_part_may_go_on_as_one_from_the_same_start(data):
    config = tiny_articulated(reconstruction=dict(images_seen=40), articulation=dict(rigid_images=32))
    alone, start = articulated_run(single(config), data, "cpu"), articulated_run(rigid(config, 32), data, "cpu")
    assert alone.settings["start"] == start.digest and alone.folder != start.folder
    assert alone.record["parts"] == 1 and len(alone.record["curves"]["autodecoder"]) == 10
    assert all("pixels" in p and "regions" not in p for p in alone.record["curves"]["autodecoder"])


def test_growing_keeps_the_picture_and_breaks_the_symmetry(data):
    config = tiny_articulated(autodecoder=dict(lbs_channels=3), weights_precision="float32")
    one = rigid(config, 32)
    start = articulated_run(one, data, "cpu")
    torch.manual_seed(0)
    model, pose_model = Autodecoder(config, 4), PoseModel(config)
    grow(model, pose_model, start, one)
    model.eval(), pose_model.eval()
    before, poses_before = load_autodecoder(start, one), load_pose_model(start, one)
    frames = data[0].frames[:2]
    poses = pose_model.read(frames)
    torch.testing.assert_close(poses, poses_before.read(frames).expand(-1, 3, -1, -1), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        volume, old = model(torch.tensor([0, 1])), before(torch.tensor([0, 1]))
    torch.testing.assert_close(volume[:, :4], old[:, :4])
    logits = volume[:, 4:]
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 0.01


def test_parts_are_told_where_they_start_before_the_pictures_are_shown(data):
    config = tiny_articulated(
        autodecoder=dict(lbs_channels=3),
        reconstruction=dict(images_seen=800),
        articulation=dict(rigid_images=240, region_images=400, region_weight=0.5, predictor_warmup_images=8),
    )
    task = Articulation(config, data, CPU, articulated_run(rigid(config, 240), data, "cpu"))
    rates, objects = [group["lr"] for group in task.optimizer.param_groups], torch.arange(4)

    def told():
        with torch.no_grad():
            volume = task.model.eval()(objects)
        task.model.train()
        return [task.division.told(volume, objects).item(), task.division.changed(volume, objects, 8.0).item()]

    assert task.division.labels.unique().numel() > 1
    before, used = told(), []
    poses = [p.clone() for p in task.pose_model.parameters()]
    for clock in range(0, 400, 4):
        for group, rate in zip(task.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        task.optimizer.zero_grad()
        losses = task.step(clock)
        used.append(task.optimizer.param_groups[0]["lr"] / rates[0])
        task.optimizer.step()
        assert losses.keys() == {"loss", "regions", "kept"}
    after = told()
    assert before[1] < 1e-9 and after[1] < 0.01 and after[0] < 0.5 * before[0]
    assert used == pytest.approx([1 - clock / 400 for clock in range(0, 400, 4)])
    assert all(torch.equal(a, b) for a, b in zip(poses, task.pose_model.parameters(), strict=True))
    for clock, share in ((400, 0.5), (600, 0.25), (796, 0.005)):
        torch.manual_seed(1)
        chosen = task.draw(clock)[0]
        with torch.no_grad():
            expected = 0.5 * share * task.division.told(task.model(chosen), chosen)
        torch.manual_seed(1)
        losses = task.step(clock)
        assert {"pixels", "projection"} <= losses.keys()
        assert losses["regions"].item() == pytest.approx(expected.item(), rel=0.05)


PHASES = dict(rigid_images=32, region_images=16, track_images=16, taught_images=16)


def test_a_second_stage_finds_poses_teaches_them_and_then_predicts_them(data):
    config = tiny_articulated(
        reconstruction=dict(images_seen=64), articulation=PHASES | dict(taught_rate=2.0, track_rate=3e-3)
    )
    task = Articulation(config, data, CPU, articulated_run(rigid(config, 32), data, "cpu"))
    rates = [group["lr"] for group in task.optimizer.param_groups]
    assert rates[-1] == 3e-3 and task.state()["tracks"] is task.tracks
    predictor, keypoints = task.pose_model.predictor, task.pose_model.keypoints
    groups = {"decoder": task.model, "predictor": predictor, "keypoints": keypoints, "tracks": task.tracks}
    seen, moved, used = [], [], []
    for clock in range(0, 64, task.per_step):
        before = {name: [p.clone() for p in module.parameters()] for name, module in groups.items()}
        for group, rate in zip(task.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        task.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(clock)
        seen.append(set(task.step(clock)))
        used.append(task.optimizer.param_groups[3]["lr"])
        task.optimizer.step()
        unequal = {
            name
            for name, module in groups.items()
            if not all(torch.equal(a, b) for a, b in zip(before[name], module.parameters(), strict=True))
        }
        moved.append(unequal)
    quarter = 16 // task.per_step
    assert all(s == {"loss", "regions", "kept"} for s in seen[:quarter])
    assert all("pixels" in s and not s & {"projection", "equivariance", "pull"} for s in seen[quarter : 2 * quarter])
    assert all(s == {"loss", "taught"} for s in seen[2 * quarter : 3 * quarter])
    assert all({"pixels", "projection", "equivariance"} <= s for s in seen[3 * quarter :])
    expected = [{"decoder"}, {"decoder", "tracks"}, {"predictor"}, {"decoder", "predictor", "keypoints"}]
    assert moved == [names for names in expected for _ in range(quarter)]
    start = 2.0 * config.articulation.predictor_learning_rate
    assert used[2 * quarter : 3 * quarter] == pytest.approx([start * (1 - k / quarter) for k in range(quarter)])


def test_what_the_predictor_is_taught_is_where_tracks_have_the_keypoints(data):
    config = tiny_articulated(reconstruction=dict(images_seen=400), articulation=PHASES | dict(taught_images=368))
    task = Articulation(config, data, CPU, articulated_run(rigid(config, 32), data, "cpu"))
    with torch.no_grad():
        task.tracks.coefficients.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(7)
    objects, frames = task.draw(32)
    with torch.no_grad():
        images = torch.stack(
            [data[int(k)].frames[f - task.first[k]] for k, row in zip(objects, frames, strict=True) for f in row]
        )
        points = task.pose_model.predictor(images.float() / 255)
        told = [
            task.pose_model.project(task.tracks(k[None], (f - task.first[k]).view(1, 1))[0])
            for k, row in zip(objects, frames, strict=True)
            for f in row
        ]
        expected = (points - torch.cat(told)).abs().mean()
    losses = []
    for clock in range(32, 400, task.per_step):
        task.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(7)
        losses.append(task.step(clock)["taught"].item())
        task.optimizer.step()
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert losses[-1] < 0.7 * losses[0], "the same frames over and over"


def test_a_predictor_made_anew_has_its_own_width_and_the_keypoints_that_were_learned(data):
    config = tiny_articulated(articulation=PHASES | dict(taught_channels=6))
    one = rigid(config, 32)
    start = articulated_run(one, data, "cpu")
    task = Articulation(config, data, CPU, start)
    widths = [PoseModel(c).predictor.hourglass.out_channels for c in (one, config)]
    assert widths == [4 + 3, 6 + 3] and task.pose_model.predictor.hourglass.out_channels == widths[1]
    keypoints = load_pose_model(start, one).keypoints.raw
    assert torch.equal(task.pose_model.keypoints.raw, keypoints.expand(2, -1, -1))
    run = articulated_run(config, data, "cpu")
    assert load_pose_model(run, config).read(data[0].frames).shape == (8, 2, 3, 4)


def test_rates_can_fall_to_zero_while_poses_are_found_and_again_while_they_are_predicted(data):
    shares = dict(parts_rate=2.0, parts_hourglass_rate=0.5, parts_restart=True, track_rate=3e-3)
    shares["predictor_warmup_images"] = 0
    config = tiny_articulated(reconstruction=dict(images_seen=64), articulation=PHASES | shares)
    task = Articulation(config, data, CPU, articulated_run(rigid(config, 32), data, "cpu"))
    decoder, hourglass = 2 * config.reconstruction.learning_rate, 0.5 * config.articulation.predictor_learning_rate
    used = {}
    for clock in range(0, 64, task.per_step):
        task.optimizer.zero_grad(set_to_none=True)
        task.step(clock)
        rates = [group["lr"] for group in task.optimizer.param_groups]
        used[clock] = [rates[0] / decoder, rates[2] / hourglass, rates[4] / 3e-3]
        task.optimizer.step()
    for first, of in ((16, (0, 2)), (48, (0, 1, 2))):  # while poses are found, and while they are predicted
        for clock in range(first, first + 16, task.per_step):
            falling = 1 - (clock - first) / 16
            assert [used[clock][k] for k in of] == pytest.approx([falling] * len(of))


def test_a_step_of_teaching_can_have_lessons_of_its_own(data):
    """What a predictor is taught is what `Lessons` draws, whose volumes are decoded once."""
    config = tiny_articulated(
        reconstruction=dict(images_seen=400),
        articulation=PHASES | dict(taught_images=368, taught_frames=6, taught_rendered=0.5, taught_sigma=0.1),
    )
    task = Articulation(config, data, CPU, articulated_run(rigid(config, 32), data, "cpu"))
    decoded, decode = [], task._decode
    task._decode = lambda objects: decoded.append(objects) or decode(objects)
    losses = []
    for clock in range(32, 400, task.per_step):
        task.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(7)
        losses.append(task.step(clock)["taught"].item())
        if clock + task.per_step < 400:
            task.optimizer.step()
    assert torch.cat(decoded).tolist() == list(range(len(task.keys)))
    assert losses[-1] < 0.7 * losses[0], "the same lesson over and over"
    torch.manual_seed(7)
    task.draw(32)
    with torch.no_grad():
        images, told = task.lessons.draw(task.pose_model)
        expected = (task.pose_model.predictor(images) - told).abs().mean().item()
    assert images.shape[0] == 6 and expected == pytest.approx(losses[-1], rel=1e-5)
    assert task.model.training and task.pose_model.training


def test_keypoints_that_are_taught_can_be_gathered_where_parts_start(data):
    config = tiny_articulated(articulation=PHASES | dict(taught_channels=4, taught_extent=0.5, refine_steps=3))
    one = rigid(config, 32)
    start = articulated_run(one, data, "cpu")
    task = Articulation(config, data, CPU, start)
    before, after = load_pose_model(start, one).keypoints(), task.pose_model.keypoints()
    for part in range(2):
        there = [x for x in task.tracks.centroids[:, part] if x.abs().max() > 0]
        centre = torch.stack(there).mean(0) if there else torch.zeros(3)
        torch.testing.assert_close(after[part], centre + 0.5 * before[0], atol=1e-5, rtol=0)
    assert not torch.equal(after[0], after[1])
    alone = Articulation(single(config), data, CPU, start)
    assert torch.equal(alone.pose_model.keypoints.raw, load_pose_model(start, one).keypoints.raw)
    run = articulated_run(config, data, "cpu")
    assert load_pose_model(run, config).read(data[0].frames).shape == (8, 2, 3, 4)


def test_an_interrupted_second_stage_keeps_its_tracks(data, monkeypatch, tmp_path):
    config = tiny_articulated(reconstruction=dict(images_seen=64), articulation=PHASES)
    whole = articulated_run(config, data, "cpu")
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "other"))
    paused, parts = 0, None
    while parts is None:
        try:
            parts = articulated_run(config, data, "cpu", max_seconds=0)
        except Paused:
            paused += 1
            assert paused < 40
    assert paused > 12
    for name in ("autodecoder", "poses"):
        a, b = (read_weights(run.weights(name))[0] for run in (whole, parts))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_phases_that_do_not_fit_are_refused(data):
    start = articulated_run(rigid(tiny_articulated(), 32), data, "cpu")
    for changes, message in (
        (dict(region_images=32, track_images=16, taught_images=24), "are 72 together, expected at most the 64 images"),
        (dict(taught_images=8), "taught_images is 8 and track_images 0, expected track_images above 0"),
        (dict(track_images=8, taught_channels=8), "taught_channels is 8 and taught_images 0, expected taught_images"),
        (dict(track_images=8, taught_extent=0.5), "taught_extent is 0.5 and taught_images 0, expected taught_images"),
        (dict(track_images=8, taught_frames=4), "taught_frames is 4 and taught_images 0, expected taught_images above"),
        (
            PHASES | dict(taught_rendered=0.5),
            "taught_rendered is 0.5 and taught_frames 0, expected taught_frames above",
        ),
        (PHASES | dict(taught_sigma=0.1), "taught_sigma is 0.1 and taught_frames 0, expected taught_frames above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Articulation(tiny_articulated(articulation=changes), data, CPU, start)
    for changes, message in (
        (dict(track_harmonics=0), "track_harmonics is 0, expected at least 1"),
        (dict(track_rate=0.0), "track_rate is 0, expected a positive number"),
        (dict(track_roll=0.0), "track_roll is 0, expected a positive number"),
        (dict(taught_extent=0.0), "taught_extent is 0, expected a positive number"),
        (dict(taught_sigma=-0.1), "taught_sigma is -0.1, expected 0 or more"),
        (dict(taught_rendered=1.5), r"taught_rendered is 1.5, expected it in \[0, 1\]"),
        (dict(taught_frames=-1), "taught_frames is -1, expected 0 or more"),
        (dict(refine_steps=-1), "refine_steps is -1, expected 0 or more"),
        (dict(symmetry_share=1.0), r"symmetry_share is 1, expected it in \[0, 1\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_articulated(articulation=changes)


def test_some_pictures_have_to_be_shown(data):
    config = tiny_articulated(articulation=dict(region_images=64))
    start = articulated_run(rigid(config, 32), data, "cpu")
    with pytest.raises(ConfigError, match="region_images is 64, expected fewer than the 64 images of the stage"):
        Articulation(config, data, CPU, start)


def test_decoder_predictor_and_heat_maps_go_on_at_rates_of_their_own(data):
    shares = dict(parts_rate=0.5, parts_hourglass_rate=0.1, parts_heads_rate=0.6)
    config = tiny_articulated(articulation=shares | dict(rigid_images=32))
    one = rigid(config, 32)
    first, second = (
        Articulation(c, data, CPU, s) for c, s in ((one, None), (config, articulated_run(one, data, "cpu")))
    )
    rates = [[group["lr"] for group in task.optimizer.param_groups] for task in (first, second)]
    assert [b / a for a, b in zip(*rates, strict=True)] == pytest.approx([0.5, 0.5, 0.1, 0.6])


def test_paused_and_resumed_training_is_the_uninterrupted_one(data, tmp_path, monkeypatch):
    config = rigid(tiny_articulated(), 32)
    whole = articulated_run(config, data, "cpu")
    monkeypatch.setenv("VADER_RUNS", str(tmp_path / "again"))
    pauses = 0
    while True:
        try:
            pieces = articulated_run(config, data, "cpu", max_seconds=0)
            break
        except Paused:
            pauses += 1
    assert pauses >= 4
    for part in ("autodecoder", "poses"):
        a, b = read_weights(whole.weights(part))[0], read_weights(pieces.weights(part))[0]
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_reads_only_what_it_can(data):
    model = PoseModel(tiny_articulated())
    with pytest.raises(PoseError, match="training mode"):
        model.read(data[0].frames)
    model.eval()
    floats, levels = model.read(data[0].frames.float() / 255), model.read(data[0].frames)
    assert torch.equal(floats, levels) and floats.shape == (8, 2, 3, 4)
    torch.testing.assert_close(levels[3:4], model.read(data[0].frames[3:4]), atol=1e-4, rtol=1e-4)  # frame by frame
    for frames, message in ((torch.zeros(0, 8, 8, 3), "at least one frame"), (torch.zeros(2, 8, 6, 3), "6x8 pixels")):
        with pytest.raises(PoseError, match=message):
            model.read(frames)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(reconstruction=dict(objects_per_step=9)), "objects_per_step is 9, but toys has 4 training videos"),
        (
            dict(reconstruction=dict(views_per_object=7)),
            "views_per_object is 7, but toys has 4 videos of fewer training frames, such as \\['toy-0'\\]",
        ),
        (dict(autodecoder=dict(lbs_channels=0)), "lbs_channels is 0, expected the number of parts"),
        (dict(reconstruction=dict(microbatches=2)), "microbatches is 2, expected 1 where poses are learned"),
        (dict(reconstruction=dict(partitioned=True)), "partitioned is True, expected False where poses are learned"),
        (dict(autodecoder=dict(sparse_embedding=True)), "sparse_embedding is True, expected False where poses"),
    ],
)
def test_settings_that_do_not_fit_the_videos_are_refused(data, changes, message):
    with pytest.raises(ConfigError, match=message):
        Articulation(tiny_articulated(**changes), data, CPU)


def test_changing_pixels_weigh_more_where_that_is_asked_for(data, monkeypatch):
    """The weights are those of the videos of the step, on its lattice of rays; nothing else of the step changes."""
    given = []
    plain_losses = articulated.image_losses

    def noted(*arguments, weights=None):
        given.append(weights)
        return plain_losses(*arguments, weights=weights)

    monkeypatch.setattr(articulated, "image_losses", noted)
    losses = []
    for weight in (0.0, 4.0):
        changes = dict(neutral_images=0, rigid_images=0, change_weight=weight, ray_stride=2)
        task = Articulation(tiny_articulated(articulation=changes), data, torch.device("cpu"))
        torch.manual_seed(0)
        losses.append(task.step(0))
    assert given[0] is None and losses[0]["pixels"] != losses[1]["pixels"]
    assert losses[0]["foreground"] == losses[1]["foreground"]
    torch.manual_seed(0)
    objects, frames = task.draw(0)
    v = frames.shape[1]
    for k, weights in enumerate(given[1]):
        whole = task.changes[objects[k // v]]
        offsets = [whole[dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]
        assert any(torch.equal(weights, offset) for offset in offsets)
    video = data.split("train")[int(objects[0])]
    expected = change_weights([video.frames[: video.train_frames]], 4.0)[0]
    torch.testing.assert_close(task.changes[objects[0]], expected)
    with pytest.raises(ConfigError, match="change_weight is 4, but pixel_weight, whose loss it divides, is 0"):
        tiny_articulated(articulation=dict(change_weight=4.0), reconstruction=dict(pixel_weight=0.0))


def test_a_finished_run_is_found_without_the_one_that_it_started_from(data, monkeypatch):
    """As a committed run is, whose start is not committed: nothing is trained, and nothing is changed."""
    short = dict(rigid_images=8, neutral_images=8, region_images=4)
    config = tiny_articulated(reconstruction=dict(images_seen=8), articulation=short)
    run = autodecoder_run(config, data, "cpu")
    [start] = [folder for folder in run.folder.parent.glob("toys-*") if folder.is_dir() and folder != run.folder]
    assert run.settings["start"] == read_json(start / "settings.json")["digest"]
    shutil.rmtree(start)
    monkeypatch.setattr("vader.stages.fit", lambda *_, **__: pytest.fail("trained again"))
    assert autodecoder_run(config, data, "cpu").digest == run.digest and not start.exists()


def test_settings_of_other_experiments_keep_their_digests():
    assert "articulation" not in plain(experiment("laptop", "procedural_chairs"))
    assert "articulation" in plain(experiment("laptop", "puppets"))


def test_the_stage_with_one_part_has_its_own_settings():
    config = experiment("laptop", "puppets")
    one = rigid(config, 100)
    assert (config.autodecoder.lbs_channels, one.autodecoder.lbs_channels) == (10, 1)
    assert (one.reconstruction.images_seen, one.articulation.rigid_images) == (100, 0)
    assert (one.articulation.pull_weight, one.articulation.pull_threshold) == (10.0, 0.01)
    others = config.replace(
        autodecoder=dict(lbs_scale=3.0, lbs_skips=False),
        articulation=dict(
            region_images=7,
            region_weight=3.0,
            parts_rate=0.7,
            parts_restart=True,
            parts_heads_rate=0.2,
            track_images=9,
            taught_images=5,
            track_harmonics=3,
            track_rate=0.1,
            track_roll=2.0,
            taught_rate=2.0,
            taught_frames=3,
            taught_rendered=0.5,
            taught_sigma=0.2,
            taught_extent=0.5,
            refine_steps=4,
        ),
    )
    assert rigid(others, 100) == one, "what only ten parts have decides nothing about one"
    stored = plain(rigid(experiment("laptop", "puppets").replace(articulation=PHASES), 100))["articulation"]
    assert not [name for name in stored if name.startswith(("track", "taught", "refine", "region", "parts_"))], (
        "as before they were"
    )
    uva = rigid(experiment("paper", "celebv_text"), 100).articulation
    assert (uva.pull_weight, uva.pull_threshold) == (10.0, 0.1)
    assert (config.articulation.pull_weight, config.articulation.pull_threshold) == (200.0, 0.001)
