"""Stage 1 for videos (Sec. 3.2, B.1): the autodecoder and, with it, the poses of N_p parts in each frame.

One step shows a few frames of a few videos to the keypoint predictor, solves for poses, decodes each subject's volume
and renders it in those poses. As in UVA [63] there is one part at first, then N_p that start as copies of it. Each of
the two trainings is a run of its own, and the second can begin with other kinds of steps (`phases`). Training reads
frames and masks and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..autodecoder.losses import image_losses, perceptual_loss
from ..autodecoder.reconstruction import Autodecoder
from ..data import Video
from ..rendering.cameras import Cameras
from ..settings.checks import require
from ..settings.experiment import Experiment
from ..store.files import save_weights
from ..store.runs import Run
from .learning.one_part import grow, rigid
from .learning.phases import DIVIDING, TEACHING, TRACKING, Phases
from .learning.regions import Division
from .learning.solids import asymmetry, centre_shifts, half_depth, inflated_silhouette
from .learning.teaching import Lessons
from .learning.tracks import Tracks
from .losses import change_weights, pose_losses, projection_loss, ray_lattice
from .pose_model import PoseModel, load_pose_model
from .poses import fixed_camera, neutral
from .skinning import render_posed

if TYPE_CHECKING:
    from ..data import SequenceSet

KEPT_WEIGHT = 200.0  # of the mean squared change of density and colour while parts are told where they start


def one_rank(ranks: int) -> None:
    """Raises ConfigError for more than one, where poses are to be learned."""
    require(ranks == 1, f"poses are learned on one rank, but there are {ranks}; train stage 1 on one, stage 2 on any")


class Articulation:
    """The stage-1 task of `training.fit` for videos; `start` is the finished run with one part, if there was one.

    It trains on one rank, in whole steps, and keeps all embeddings in one dense table.
    """

    name = "autodecoder"

    def __init__(self, config: Experiment, data: SequenceSet, device: torch.device, start: Run | None = None):
        videos = data.split("train")
        stills = [item.key for item in videos if not isinstance(item, Video)]
        require(not stills, f"{data.name} has no videos, expected some to learn poses from; {stills[:1]} is none")
        settings = self.settings = config.reconstruction
        require(
            len(videos) >= settings.objects_per_step,
            f"objects_per_step is {settings.objects_per_step}, but {data.name} has {len(videos)} training videos",
        )
        few = [video.key for video in videos if video.train_frames < settings.views_per_object]
        require(
            not few,
            f"views_per_object is {settings.views_per_object}, but {data.name} has {len(few)} videos of fewer training "
            f"frames, such as {few[:1]}",
        )
        for name, found, expected in (
            ("microbatches", settings.microbatches, 1),
            ("partitioned", settings.partitioned, False),
            ("sparse_embedding", config.autodecoder.sparse_embedding, False),
        ):
            require(found == expected, f"{name} is {found}, expected {expected} where poses are learned")
        self.config, self.device, self.seed, self.started = config, device, config.seed, start is not None
        self.keys = [video.key for video in videos]
        self.per_step = settings.objects_per_step * settings.views_per_object
        self.total = -(-settings.images_seen // self.per_step) * self.per_step
        self.warmup, self.clip_norm, self.clip_value = settings.warmup_images, settings.clip_norm, settings.clip_value
        self.counts = torch.tensor([video.train_frames for video in videos])
        self.first = self.counts.cumsum(0) - self.counts  # a video's first frame among those of all
        self.frames = torch.cat([video.frames[: video.train_frames] for video in videos]).to(device)
        self.masks = torch.cat([video.masks[: video.train_frames] for video in videos]).to(device)
        self.changes = change_weights(self.frames.split(self.counts.tolist()), config.articulation.change_weight)
        self.phases = Phases(config.articulation, self.total) if self.started else None
        h, w = self.masks.shape[1:]
        require(h == w, f"{data.name}: frames are {w}x{h} pixels, expected square ones")
        camera = fixed_camera(config.articulation, h)
        self.rays = [x.to(device) for x in camera.rays()]  # (1, h w, 3) each
        self._prepare_start(camera)
        torch.manual_seed(config.seed)
        self.model = Autodecoder(config, len(videos)).to(device).to(memory_format=torch.channels_last_3d).train()
        self.pose_model = PoseModel(config).to(device).train()
        self.tracks: Tracks | None = None
        self.lessons: Lessons | None = None
        if start is not None:
            grow(self.model, self.pose_model, start, rigid(config, config.articulation.rigid_images))
            self._prepare_parts(start, camera)
        self.perceptual = perceptual_loss(settings, device)
        shared = list(self.pose_model.predictor.hourglass.parameters())
        own = [*self.pose_model.predictor.head.parameters(), *self.pose_model.keypoints.parameters()]
        poses = config.articulation
        rates = (poses.parts_rate, poses.parts_hourglass_rate, poses.parts_heads_rate) if self.started else (1.0,) * 3
        groups = [
            {"params": list(self.model.decoder.parameters()), "lr": rates[0] * settings.learning_rate},
            {"params": list(self.model.embedding.parameters()), "lr": rates[0] * settings.embedding_learning_rate},
            {"params": shared, "lr": rates[1] * poses.predictor_learning_rate},
            {"params": own, "lr": rates[2] * poses.predictor_learning_rate},
        ]
        if self.tracks is not None:
            groups.append({"params": list(self.tracks.parameters()), "lr": poses.track_rate})
        self.optimizer = torch.optim.Adam(groups, betas=settings.betas, fused=True)
        self.rates = [group["lr"] for group in groups]

    def _prepare_start(self, camera: Cameras) -> None:
        """What is too deep, the solids that subjects start as, how they move, how late each frame is shown: `start`."""
        settings, size, counts = self.config.articulation, self.config.autodecoder.resolution, self.counts.tolist()
        self.turn = torch.zeros(len(counts), max(counts))  # of each frame, from 0 to 1; the most symmetric come first
        masks = self.masks.split(counts)
        if settings.depth_weight:
            limits = torch.tensor([half_depth(mask, camera) for mask in masks])
            self.too_deep = torch.linspace(-1, 1, size).abs() > limits[:, None]  # (videos, z)
            self.too_deep = self.too_deep[..., None, None].to(self.device)
        if self.started or not settings.neutral_images:
            return
        if settings.neutral_share < 1:
            for turn, frames, mask in zip(self.turn, self.frames.split(counts), masks, strict=True):
                found = asymmetry(frames, mask, settings.symmetry_share)
                turn[: len(mask)] = found.cpu().argsort().argsort() / len(mask)
        if settings.own_start:
            self.shifts = torch.cat([centre_shifts(mask.cpu(), camera) for mask in masks]).to(self.device)
        if settings.start_weight:
            shown = masks if settings.own_start else [self.masks]
            solids = torch.stack([inflated_silhouette(mask, camera, size) for mask in shown])
            self.solids = (size - 1) / 2 * solids.to(self.device)  # opaque per voxel

    @torch.no_grad()
    def _prepare_parts(self, start: Run, camera: Cameras) -> None:
        """Where parts start in the volumes of the run that this one goes on from, and the poses that they start in."""
        settings, parts = self.config.articulation, self.config.autodecoder.lbs_channels
        objects = torch.arange(len(self.keys), device=self.device)
        centroids = torch.zeros(len(objects), parts, 3, device=self.device)
        if settings.region_images or settings.region_weight:
            volumes = torch.cat([self._decode(chunk)[:, :4] for chunk in objects.split(1)])
            self.division = Division(volumes, parts, camera, self.settings.num_samples)
            centroids = self.division.centroids(parts)
        if settings.track_images:
            one = load_pose_model(start, rigid(self.config, settings.rigid_images), self.device)
            roots = [one.read(frames)[:, 0] for frames in self.frames.split(self.counts.tolist())]
            tracks = Tracks(roots, centroids, settings.track_harmonics, settings.track_roll)
            self.tracks = tracks.to(self.device)
        if settings.taught_extent != 1:
            there = (centroids != 0).any(-1, keepdim=True)
            centres = (there * centroids).sum(0) / there.sum(0).clamp_min(1)
            self.pose_model.keypoints.gather_around(centres, settings.taught_extent)

    def _divide(self, objects: Tensor, over: float) -> dict[str, Tensor]:
        """A step that teaches the skinning weights where parts start and leaves the rest of the volume as it was.

        Batch norm keeps the statistics that it has, so that there is nothing to restore at first, and the learning rate
        falls to 0, so that little is left to restore at the end.
        """
        for group in self.optimizer.param_groups:
            group["lr"] *= 1 - over
        volume = self._decode(objects)
        kept = KEPT_WEIGHT * self.division.changed(volume, objects, self.config.autodecoder.density_scale)
        losses = {"regions": self.division.told(volume, objects), "kept": kept}
        loss = sum(losses.values())
        loss.backward()
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    def _decode(self, objects: Tensor) -> Tensor:
        """Volumes of subjects by the statistics that batch norm has collected."""
        volumes = self.model.eval()(objects).float()
        self.model.train()
        return volumes

    def _tracked(self, objects: Tensor, frames: Tensor) -> Tensor:
        """Poses (b v, p, 3, 4) on the curves of videos (b,) in frames (b, v) among those of all."""
        first = self.first.to(frames.device)[objects, None]
        return self.tracks(objects, frames - first).flatten(0, 1)

    def _teach(self, objects: Tensor, frames: Tensor, over: float) -> dict[str, Tensor]:
        """A step that tells the predictor the poses that were found, without a picture rendered; its learning rate
        falls to 0. The 3D keypoints stay, or they would meet in one point, which is the easiest to be told."""
        settings = self.config.articulation
        for group in self.optimizer.param_groups[2:4]:
            group["lr"] = settings.taught_rate * settings.predictor_learning_rate * (1 - over)
        if settings.taught_frames:
            if self.lessons is None:  # the decoder stays as it is meanwhile
                videos = list(self.frames.split(self.counts.tolist()))
                self.lessons = Lessons(settings, videos, self.tracks, self._decode, self.settings.num_samples)
            images, told = self.lessons.draw(self.pose_model)
        else:
            images = self.frames[frames].flatten(0, 1).float() / 255
            with torch.no_grad():
                told = self.pose_model.project(self._tracked(objects, frames))
        loss = projection_loss(self.pose_model.predictor(images), told)
        loss.backward()
        return {"loss": loss.detach(), "taught": loss.detach()}

    def draw(self, clock: int) -> tuple[Tensor, Tensor]:
        """Videos (b,) and the frames (b, v) of each, without repetition, from the current random stream."""
        chosen = torch.randperm(len(self.keys))[: self.settings.objects_per_step]
        counts, most = self.counts[chosen, None], int(self.counts[chosen].max())
        order = torch.rand(len(chosen), most).masked_fill(torch.arange(most) >= counts, 3)
        order += self.turn[chosen, :most] >= self._share(clock)  # what is not shown yet comes behind
        frames = order.argsort(dim=1)[:, : self.settings.views_per_object]
        return chosen.to(self.device), (self.first[chosen, None] + frames).to(self.device)

    def batch(self, clock: int) -> list[str]:
        """Keys of the videos that the step draws, from the current random stream."""
        return [self.keys[k] for k in self.draw(clock)[0].tolist()]

    def _share(self, clock: int) -> float:
        """Of a video's frames, how many are shown."""
        settings = self.config.articulation
        since = clock - settings.neutral_images
        if self.started or settings.neutral_share == 1 or since >= settings.widening_images:
            return math.inf
        return settings.neutral_share + (1 - settings.neutral_share) * max(0, since) / settings.widening_images

    def _depth_weight(self, clock: int) -> float:
        """Of what is too deep: a deep subject is easily told to turn, and is flattened once its turns are known."""
        settings = self.config.articulation
        free = 0 if self.started else settings.free_depth_images
        rise = (clock - free) / max(1, self.total - free) if free else 1.0
        return settings.depth_weight * min(1.0, max(0.0, rise))

    def _warm_up(self, clock: int) -> None:
        """Let the predictor learn slowly at first when the pictures begin to teach it poses.

        Its gradients are many times what they were in the neutral pose, and by Adam's moments from there each step
        would be several times the rate. The loop sets the rate anew for each step.
        """
        settings = self.config.articulation
        unseen = self.phases.images if self.phases else settings.neutral_images
        warmup, since = settings.predictor_warmup_images, clock - unseen
        if not 0 <= since < warmup:
            return
        for group in self.optimizer.param_groups[2:4]:
            if since < self.per_step:
                for parameter in group["params"]:
                    self.optimizer.state.pop(parameter, None)
            group["lr"] *= (since + self.per_step) / (warmup + self.per_step)

    def step(self, clock: int) -> dict[str, Tensor]:
        settings, articulation = self.settings, self.config.articulation
        objects, frames = self.draw(clock)
        phase, over = self.phases.at(clock) if self.phases else (None, 0.0)
        if phase == DIVIDING:
            return self._divide(objects, over)
        if phase == TEACHING:
            return self._teach(objects, frames, over)
        b, v = frames.shape
        target = self.frames[frames].flatten(0, 1).float() / 255  # (b v, h, w, 3)
        mask = self.masks[frames].flatten(0, 1).float() / 255
        if self.started and articulation.parts_restart:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * (1 - over)
        neutral_start = clock < articulation.neutral_images and not self.started
        if phase == TRACKING:
            poses, points2d, shares = self._tracked(objects, frames), None, None
        else:
            poses, points2d, shares = self._predicted(clock, target, frames, neutral_start)
        noise = settings.density_noise * max(0.0, 1 - clock / max(1, settings.density_noise_images))
        noise *= not self.started  # the first stage has had it
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            volume = self.model(objects, noise)
        lattice, h, w = ray_lattice(*mask.shape[1:], articulation.ray_stride)
        origins, directions = (x[None, :, lattice.to(self.device)] for x in self.rays)
        stratified_seed = int(torch.randint(2**31, ()))
        poses_of_views, count = poses.unflatten(0, (b, v)), settings.num_samples
        seen = render_posed(volume, poses_of_views, origins, directions, count, stratified_seed=stratified_seed)
        lattice = lattice.to(self.device)
        target_seen, mask_seen = (x.flatten(1, 2)[:, lattice].unflatten(1, (h, w)) for x in (target, mask))
        colour, occupancy = (x.flatten(0, 1).unflatten(1, (h, w)) for x in (seen.colour, seen.occupancy))
        weights = None
        if self.changes is not None:
            weights = self.changes[objects].repeat_interleave(v, 0).flatten(1)[:, lattice].unflatten(1, (h, w))
        losses = image_losses(settings, self.perceptual, colour, occupancy, target_seen, mask_seen, weights=weights)
        losses |= self._volume_losses(clock, volume, objects, neutral_start)
        if points2d is not None:
            raw = seen.part_density / self.config.autodecoder.density_scale
            losses |= pose_losses(articulation, self.pose_model, target, poses, points2d, raw, neutral_start)
        loss = sum(losses.values())
        loss.backward()
        counted = shares() if shares else {}  # after backward, which the guard watches
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}, **counted}

    def _predicted(
        self, clock: int, target: Tensor, frames: Tensor, neutral_start: bool
    ) -> tuple[Tensor, Tensor, Callable[[], dict[str, Any]] | None]:
        """Poses (b v, parts, 3, 4) of frames (b v, h, w, 3), the 2D keypoints that they come from, and what EPnP's
        guard counts: in the neutral start poses are neutral, whatever the keypoints say."""
        articulation = self.config.articulation
        if not neutral_start:
            self._warm_up(clock)
            found = self.pose_model(target)
            return found.poses, found.points2d, found.guard.shares
        points2d = self.pose_model.predictor(target)
        poses = neutral(len(target), points2d.shape[1], device=self.device)
        if articulation.own_start:
            poses = torch.cat([poses[..., :3], poses[..., 3:] + self.shifts[frames].view(-1, 1, 3, 1)], dim=-1)
        return poses, points2d, None

    def _volume_losses(self, clock: int, volume: Tensor, objects: Tensor, neutral_start: bool) -> dict[str, Tensor]:
        """What holds the volume to its start, keeps it flat, and tells its parts their regions."""
        articulation, losses = self.config.articulation, {}
        if neutral_start and articulation.start_weight:
            solid = self.solids[objects] if articulation.own_start else self.solids
            distance = (volume[:, 0].float() - solid) / self.config.autodecoder.density_scale
            losses["start"] = articulation.start_weight * distance.square().mean()
        if weight := self._depth_weight(clock):
            deep = volume[:, 0].float() / self.config.autodecoder.density_scale * self.too_deep[objects]
            losses["depth"] = weight * deep.square().mean()
        if self.started and articulation.region_weight:
            weight = articulation.region_weight * (1 - clock / self.total)
            losses["regions"] = weight * self.division.told(volume, objects)
        return losses

    def after_step(self, clock: int) -> None:
        """Stage 1 has nothing to add: no EMA."""

    def state(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"model": self.model, "poses": self.pose_model}
        return modules if self.tracks is None else modules | {"tracks": self.tracks}

    def facts(self) -> dict[str, Any]:
        """Facts that the run's record keeps beside the usual ones."""
        return {
            "objects": self.keys,
            "parts": self.config.autodecoder.lbs_channels,
            "perceptual_network": self.settings.perceptual_network,
            "renderer": "reference",
            "parameters": sum(p.numel() for m in (self.model, self.pose_model) for p in m.parameters()),
        }

    def save(self, work: Path) -> None:
        precision = getattr(torch, self.config.weights_precision)
        metadata = {
            "autodecoder": self.config.autodecoder,
            "articulation": self.config.articulation,
            "objects": self.keys,
        }
        save_weights(work / "autodecoder.safetensors", self.model, metadata, precision)
        save_weights(work / "poses.safetensors", self.pose_model, metadata, precision)
