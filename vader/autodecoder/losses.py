"""Stage-1 losses: the pyramidal perceptual loss (Eq. 1) and foreground supervision (Eq. 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..settings.autodecoder import ReconstructionConfig
from ..store.weights import vgg_features, vgg_relu_indices

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Drawn = tuple[Tensor, list[list[Tensor]]]  # indices of images, and their features by scale and layer


def downsample(images: Tensor, scale: float) -> Tensor:
    """D_l of Eq. 1: Gaussian blur of sigma (1/scale - 1)/2 pixels, then every (1/scale)-th pixel; (n, c, h, w)."""
    if scale == 1:
        return images
    stride = round(1 / scale)
    sigma = (stride - 1) / 2
    radius = round(4 * sigma)
    x = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    images = F.conv2d(images, kernel[..., None, :], padding=(0, radius), stride=(1, stride), groups=images.shape[1])
    return F.conv2d(images, kernel[..., None], padding=(radius, 0), stride=(stride, 1), groups=images.shape[1])


class PyramidalPerceptualLoss(nn.Module):
    """Eq. 1: L1 distance of VGG features at several image scales, each layer's term a mean over its entries.

    Args:
        features: frozen convolutional network as a Sequential, expecting ImageNet-normalised input.
        layers: indices in `features` after which features are compared (VGG_i, i = 0..I).
        scales: the pyramid. At small scales, layers whose input has become smaller than a pooling window are left out.
        dtype: precision of the network. Distances are taken in float32.

    Features of target images that have a name are kept, as long as they fit into `room` bytes (0: none are): an image
    that training comes back to is not put through the network again. On a CPU the last bits of an image's features
    depend on how many are put through together: `together` computes all images of a call, or none, so that a training
    that goes on without what was kept goes on with the same bits.
    """

    room, together = 0, True

    def __init__(
        self,
        features: nn.Sequential,
        layers: tuple[int, ...],
        scales: tuple[float, ...],
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.features = features.eval().requires_grad_(False).to(dtype, memory_format=torch.channels_last)
        self.dtype = dtype
        self.layers, self.scales = layers, scales
        self.kept: dict[int, list[list[Tensor]]] = {}  # name of an image -> features by scale and layer, (1, c, h, w)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def extract(self, images: Tensor) -> list[Tensor]:
        """VGG_i(images) for every layer i; images (n, 3, h, w) in [0, 1]."""
        x = ((images - self.mean) / self.std).to(self.dtype, memory_format=torch.channels_last)
        taps = []
        for index, module in enumerate(self.features[: max(self.layers) + 1]):
            if isinstance(module, nn.MaxPool2d) and min(x.shape[-2:]) < 2:
                break
            x = module(x)
            if index in self.layers:
                taps.append(x)
        return taps

    def forward(self, rendered: Tensor, target: Tensor, names: list[int] | None = None) -> Tensor:
        """rendered, target: (n, h, w, 3) in [0, 1] -> scalar. names: a number of each target by which it is known."""
        return self.distance(rendered, self.targets(target.movedim(-1, 1), names))

    def distance(self, rendered: Tensor, targets: list[list[Tensor]]) -> Tensor:
        """Of pictures (n, h, w, 3) from those with these features (`targets`)."""
        rendered = rendered.movedim(-1, 1)
        loss = rendered.new_zeros(())
        for scale, wanted in zip(self.scales, targets, strict=True):
            got = self.extract(downsample(rendered, scale))
            loss = loss + sum((g.float() - w.float()).abs().mean() for g, w in zip(got, wanted, strict=True))
        return loss

    @torch.no_grad()
    def targets(self, images: Tensor, names: list[int] | None = None) -> list[list[Tensor]]:
        """Features of images (n, 3, h, w) by scale and layer; those of named ones are kept while there is room."""
        if names is None or not self.room:
            return [self.extract(downsample(images, scale)) for scale in self.scales]
        new = [k for k, name in enumerate(names) if name not in self.kept]
        if new and self.together:
            new = list(range(len(names)))
        found = [self.extract(downsample(images[new], scale)) for scale in self.scales] if new else []
        rows = {k: [[x[i : i + 1] for x in taps] for taps in found] for i, k in enumerate(new)}
        for k, features in rows.items():
            size = sum(x[0].numel() * x.element_size() for taps in features for x in taps)
            if size <= self.room and names[k] not in self.kept:
                self.room -= size
                self.kept[names[k]] = [[x.clone() for x in taps] for taps in features]  # not a view of all images
        each = [rows[k] if k in rows else self.kept[name] for k, name in enumerate(names)]
        return [[torch.cat(tap) for tap in zip(*scale, strict=True)] for scale in zip(*each, strict=True)]


def pyramid_l1(rendered: Tensor, target: Tensor, scales: tuple[float, ...], weights: Tensor | None = None) -> Tensor:
    """Eq. 1 with the image itself as its only feature; (n, h, w, 3) -> scalar. weights: of the pixels, (n, h, w)."""
    difference = (rendered - target).movedim(-1, 1)
    if weights is not None:
        difference = difference * weights[:, None]
    return sum(downsample(difference, scale).abs().mean() for scale in scales)


def foreground_loss(occupancy: Tensor, mask: Tensor) -> Tensor:
    """Eq. 2: mean |O - O_hat| over pixels; both (n, h, w) in [0, 1]."""
    return (occupancy - mask).abs().mean()


def perceptual_loss(settings: ReconstructionConfig, device: torch.device) -> PyramidalPerceptualLoss | None:
    """Eq. 1 with the network that the settings name, or None where they name none."""
    network = settings.perceptual_network
    if network == "none":
        return None
    precision = getattr(torch, settings.precision)
    loss = PyramidalPerceptualLoss(vgg_features(network), vgg_relu_indices(network), settings.pyramid_scales, precision)
    return loss.to(device)


def image_losses(
    settings: ReconstructionConfig,
    perceptual: PyramidalPerceptualLoss | None,
    colour: Tensor,
    occupancy: Tensor,
    target: Tensor,
    mask: Tensor,
    names: Tensor | None = None,
    drawn: Drawn | None = None,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The weighted terms that renderings are compared with images by: 'foreground', 'pixels', 'perceptual'.

    colour, target: (n, h, w, 3), occupancy, mask: (n, h, w), all in [0, 1]. The perceptual term is that of
    `perceptual_images` of them, drawn from the current random stream. names: (n,) on the CPU, a number of each image
    by which training knows it again. drawn: what `draw_perceptual` drew before. weights: (n, h, w), of the pixels in
    'pixels'.
    """
    losses = {"foreground": settings.foreground_weight * foreground_loss(occupancy, mask)}
    if settings.pixel_weight:
        losses["pixels"] = settings.pixel_weight * pyramid_l1(colour, target, settings.pyramid_scales, weights)
    if perceptual is not None:
        chosen, wanted = drawn or draw_perceptual(settings, perceptual, target, names)
        losses["perceptual"] = settings.perceptual_weight * perceptual.distance(colour[chosen], wanted)
    return losses


def draw_perceptual(
    settings: ReconstructionConfig, perceptual: PyramidalPerceptualLoss, target: Tensor, names: Tensor | None
) -> Drawn:
    """Images (n, h, w, 3) for the perceptual term, from the current random stream: which, and their features."""
    drawn = torch.randperm(len(target))[: settings.perceptual_images]
    known, chosen = None if names is None else names[drawn].tolist(), drawn.to(target.device)
    return chosen, perceptual.targets(target[chosen].movedim(-1, 1), known)
