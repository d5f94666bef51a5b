"""One training step of the autodecoder, and what each of its parts takes: forward and backward.

The parts are timed by themselves, on tensors of the step's own shapes and with a random gradient from above.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from vader.autodecoder.losses import foreground_loss, pyramid_l1
from vader.autodecoder.reconstruction import Reconstruction
from vader.rendering.cameras import sample_orbit
from vader.rendering.render import render_rays
from vader.settings.experiment import Experiment
from vader.settings.profiles import experiment
from vader.studies.scaling import noise_pictures

from .contest import Quantity, alternate


def breakdown(device: torch.device, config: Experiment | None = None, repeats: int = 7) -> list[Quantity]:
    """Median seconds of a step (default: of the laptop profile), the share of each part, and what the parts leave over
    ('other'). The step meets images that it has not seen before; 'seconds, images seen before' is the usual one."""
    config = config or experiment("laptop", "furniture_chairs")
    task = Reconstruction(config, noise_pictures(config, config.data.num_objects), device)
    settings = task.settings
    b, v, r = settings.objects_per_step, settings.views_per_object, config.data.resolution
    batch = task.draw(0)
    target, mask = batch.images.float() / 255, batch.masks.float() / 255
    rectified = config.autodecoder.density_activation == "relu"
    generator = torch.Generator().manual_seed(0)
    cameras = sample_orbit(b * v, config.data, generator).to(device)
    origins, directions = (x.view(b, v * r * r, 3) for x in cameras.rays())
    colour = torch.rand(b * v, r, r, 3, generator=generator).to(device).requires_grad_()
    occupancy = torch.rand(b * v, r, r, generator=generator).to(device).requires_grad_()

    def generate() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            return task.model(batch.objects, settings.density_noise)

    volume = generate().detach()
    above = torch.randn_like(volume)

    def decoder() -> None:
        generate().backward(above)

    def renderer() -> None:
        leaf = volume.detach().requires_grad_()
        rendering = render_rays(
            leaf, origins, directions, settings.num_samples, stratified_seed=1, rectified=rectified, check=False
        )
        (rendering.colour.sum() + rendering.occupancy.sum()).backward()

    def pixels() -> None:
        loss = foreground_loss(occupancy, mask.flatten(0, 1))
        if settings.pixel_weight:
            loss = loss + pyramid_l1(colour, target.flatten(0, 1), settings.pyramid_scales)
        loss.backward()

    chosen, room = slice(0, settings.perceptual_images), 0 if task.perceptual is None else task.perceptual.room

    def perceptual() -> None:
        task.perceptual(colour[chosen], target.flatten(0, 1)[chosen], names).backward()

    def features() -> None:
        task.perceptual.targets(target.flatten(0, 1)[chosen].movedim(-1, 1))

    def optimizer() -> None:
        task.optimizer.step()
        task.optimizer.zero_grad(set_to_none=False)

    def step(kept: bool = False) -> None:
        if task.perceptual is not None:
            task.perceptual.room = room if kept else 0
        torch.manual_seed(0)  # the same images
        task.step(0)
        optimizer()

    parts: dict[str, Callable[[], None]] = {
        "decoder": decoder,
        "renderer": renderer,
        "foreground and pixel losses": pixels,
        "optimizer": optimizer,
    }
    steps: dict[str, Callable[[], None]] = {"step": step}
    if task.perceptual is not None:
        names = [-1 - k for k in range(settings.perceptual_images)]  # of no image of the set
        perceptual()
        parts |= {"perceptual loss": perceptual, "features of images not seen before": features}
        steps["seen before"] = lambda: step(kept=True)
    timings = alternate({**steps, **parts}, repeats, device)
    median = {name: statistics.median(timing.wall) for name, timing in timings.items()}
    usual = median.pop("seen before", median["step"])
    size = f"{b} objects x {v} views of {r}^2, {config.autodecoder.resolution}^3 voxels"
    work = f"{config.profile} step: {size}, {settings.perceptual_network}, {settings.precision}"
    return shares_of_step("stage 1", work, median) + [Quantity("stage 1", work, "seconds, images seen before", usual)]


def shares_of_step(system: str, work: str, seconds: dict[str, float]) -> list[Quantity]:
    """Seconds of the 'step', and its parts and what they leave over ('other') as shares of it."""
    whole = seconds["step"]
    shares = {name: value / whole for name, value in seconds.items() if name != "step"}
    shares["other"] = 1 - sum(shares.values())
    return [Quantity(system, work, "seconds", whole)] + [
        Quantity(system, work, f"share of the step: {name}", share) for name, share in shares.items()
    ]
