"""Image features in which FID and KID compare distributions (Sec. 4.2).

Only InceptionV3's features make a FID or KID. Distances in any other network's are FD and KD, with the
network named (`metric_names`). The networks are torch-fidelity feature extractors:

    inception-v3        torch-fidelity's own, 2048-d: the paper's metric; weights from the hub
    efficientnet-lite0  1280-d pooled last features; its weights install with the package
    vgg16-relu5         512-d pooled relu5_3: a second opinion, slow on a CPU

A metric's network must not be that of the perceptual loss (`check_independent`).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ...generation.parallel import side_by_side
from ...store import weights
from . import MetricError, optional_import

NETWORKS = {"inception-v3": "inception-v3", "efficientnet-lite0": "efficientnet-lite0", "vgg16-relu5": "vgg16"}
"""Features by name, and whose weights (`weights.ORIGINS`) they need."""


@dataclass(frozen=True)
class Features:
    """Features of images of several objects, and what must agree before two sets may be compared.

    values: (n, f) float32; objects: (n,) int64, which object each image shows, numbered from 0.
    """

    values: Tensor
    objects: Tensor
    network: str
    resolution: tuple[int, int]  # (h, w) of the images
    corner: tuple[float, float, float]  # median colour of the image corners in [0, 1]: the background
    left_out: int = 0  # further objects whose images were not finite

    def __len__(self) -> int:
        return len(self.values)

    @property
    def num_objects(self) -> int:
        return int(self.objects.max()) + 1

    def first(self, objects: int) -> Features:
        """The features of the first objects' images only."""
        chosen = self.objects < objects
        return dataclasses.replace(self, values=self.values[chosen], objects=self.objects[chosen], left_out=0)

    def check_comparable(self, other: Features) -> None:
        """Raise `MetricError` unless both sets come from the same network, image size and background."""
        for field in ("network", "resolution"):
            a, b = getattr(self, field), getattr(other, field)
            if a != b:
                raise MetricError(f"{field} is {a} in one set and {b} in the other, expected the same")
        if max(abs(a - b) for a, b in zip(self.corner, other.corner, strict=True)) > 0.5:
            raise MetricError(
                f"the background is {_rgb(self.corner)} in one set and {_rgb(other.corner)} in the other (median "
                "colour of the image corners), expected the same: FID would measure mostly that"
            )


def metric_names(network: str) -> tuple[str, str]:
    """Names of the Fréchet and the kernel distance in a network's features: only InceptionV3's are FID and KID."""
    return ("fid", "kid") if network == "inception-v3" else ("fd", "kd")


def check_independent(network: str, perceptual_network: str) -> None:
    """Raise `MetricError` if features `network` would judge a model by the network of its own training loss."""
    judge, trainer = NETWORKS[network], perceptual_network
    if judge[:3] == trainer[:3] == "vgg":
        raise MetricError(
            f"features {network!r} cannot judge a model trained with a {trainer} loss: take another network"
        )


def to_uint8(images: Tensor) -> Tensor:
    """Colours in [0, 1] to 8 bits, clamped and rounded as an image file would."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _checked(images: Tensor, objects: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pictures (n, h, w, 3) uint8 and which object each shows (n,), of the arguments of `extract`."""
    if images.ndim == 5:
        if objects is not None:
            raise MetricError("images are (o, v, h, w, 3), which says which object each shows: leave out `objects`")
        objects = torch.arange(images.shape[0]).repeat_interleave(images.shape[1])
        images = images.flatten(0, 1)
    if images.ndim != 4 or images.shape[-1] != 3 or images.numel() == 0:
        raise MetricError(
            f"images have shape {tuple(images.shape)}, expected (o, v, h, w, 3) or (n, h, w, 3), none empty"
        )
    objects = torch.arange(len(images)) if objects is None else torch.as_tensor(objects)
    if objects.shape != images.shape[:1]:
        raise MetricError(f"objects has shape {tuple(objects.shape)}, expected ({len(images)},)")
    if images.is_floating_point():
        finite = torch.isfinite(images).flatten(1).all(1)
        if not finite.all():
            raise MetricError(f"image {int((~finite).nonzero()[0])} holds NaN or infinity, expected colours in [0, 1]")
        if not -1e-3 <= images.min() <= images.max() <= 1 + 1e-3:
            raise MetricError(
                f"colours range over [{images.min():.3g}, {images.max():.3g}], expected [0, 1]; see to_uint8"
            )
        images = to_uint8(images)
    elif images.dtype != torch.uint8:
        raise MetricError(f"images are {images.dtype}, expected uint8, or floats in [0, 1]")
    return images, objects


def extract(
    images: Tensor,
    network: str = "efficientnet-lite0",
    objects: Tensor | None = None,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
) -> Features:
    """Features of images held in memory.

    images: (o, v, h, w, 3), v views of o objects, or (n, h, w, 3) with `objects` (n,) saying which object
    each shows (default: each its own). uint8, or floats in [0, 1], which are rounded to 8 bits.
    Raises `MetricError` before any work for NaN, colours out of range and other shapes.
    """
    images, objects = _checked(images, objects)
    model = feature_network(network).to(device)
    on_cpu = torch.device(device).type == "cpu"
    if batch_size is None:
        batch_size = 4 if on_cpu else 256  # on a CPU, activations that stay in the cache beat large batches

    def forward(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(batch.to(device).movedim(-1, 1)).float().cpu()

    batches = images.split(batch_size)
    done = side_by_side(forward, batches, device)
    values = list(tqdm(done, desc=network, total=len(batches), disable=None, leave=False))
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]].flatten(0, 1)  # (4 n, 3)
    corner = tuple(float(c) / 255 for c in corners.float().median(0).values)
    objects = objects.unique(return_inverse=True)[1]
    return Features(torch.cat(values), objects, network, tuple(images.shape[1:3]), corner)


@functools.cache
def feature_network(name: str) -> nn.Module:
    """The frozen network: uint8 (b, 3, h, w) -> float32 (b, f). Raises `MetricError`, `WeightsError`."""
    if name not in NETWORKS:
        raise MetricError(f"no features are called {name!r}; known are {sorted(NETWORKS)}")
    resolved = weights.resolve(NETWORKS[name])
    if name == "inception-v3":
        return _Inception(resolved)
    state = weights.load_state(resolved, "features.")
    if name == "vgg16-relu5":
        return _VGG16(resolved, state)
    return EfficientNetLite0(resolved, state)


def register_extractors() -> None:
    """Make `efficientnet-lite0` and `vgg16-relu5` known to torch-fidelity, as `feature_extractor=` of its functions."""
    base = optional_import("torch_fidelity.feature_extractor_base").FeatureExtractorBase
    registry = optional_import("torch_fidelity.registry")

    class Extractor(base):
        """One of `NETWORKS` behind torch-fidelity's interface; its only output is called 'pooled'."""

        def __init__(self, name: str, features_list: list[str], **_) -> None:
            super().__init__(name, features_list)
            self.network = feature_network(name)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("pooled",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "pooled"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, input: Tensor) -> tuple[Tensor]:
            return (self.network(input),)

    for name in ("efficientnet-lite0", "vgg16-relu5"):
        if name not in registry.FEATURE_EXTRACTORS_REGISTRY:
            registry.register_feature_extractor(name, Extractor)


class EfficientNetLite0(nn.Sequential):
    """EfficientNet-Lite0 up to its pooled last features: uint8 (b, 3, h, w) -> (b, 1280).

    Reads the tensor names of the package that ships the weights. Batch norms are folded into their
    convolutions, since nothing here trains. Raises `WeightsError` for weights of another network.
    """

    # (blocks, kernel size, stride, expansion, channels) of each stage
    STAGES = (
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
    )  # fmt: skip

    def __init__(self, resolved: weights.Resolved, state: dict[str, Tensor]) -> None:
        left = {name for name in state if not name.startswith("_fc.") and not name.endswith("num_batches_tracked")}

        def convolution(name: str, norm: str, shape: tuple[int, ...], stride: int = 1, relu: bool = True) -> list:
            names = [
                f"{name}.weight",
                *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
            ]
            for key, expected in zip(names, [shape] + 4 * [shape[:1]], strict=True):
                if key not in state or tuple(state[key].shape) != expected:
                    found = f"is {tuple(state[key].shape)}" if key in state else "is missing"
                    raise weights.WeightsError(f"{resolved.file}: {key} {found}, expected {expected}")
            left.difference_update(names)
            kernel, gamma, beta, mean, variance = (state[key].double() for key in names)
            gamma = gamma / (variance + 1e-3).sqrt()
            kernel, bias = kernel * gamma[:, None, None, None], beta - mean * gamma
            if stride == 2:
                # TensorFlow's "same" pads an even size by one more on the right than on the left:
                # a kernel with an empty first row and column starts one pixel later
                kernel = F.pad(kernel, (1, 0, 1, 0))
            out, per_group, size, _ = shape
            groups = out if per_group == 1 else 1
            # A single entry cannot be spread, but torch gives dilated kernels to oneDNN, where on one thread it takes
            # 1x1 ones of small batches to a matrix product that takes 1.7 times as long.
            dilation = 2 if size == 1 else 1
            layer = nn.utils.skip_init(
                nn.Conv2d, per_group * groups, out, kernel.shape[-1], stride, size // 2, dilation, groups
            )
            layer.load_state_dict({"weight": kernel.float(), "bias": bias.float()})
            return [layer, nn.ReLU6(inplace=True)] if relu else [layer]

        layers = convolution("_conv_stem", "_bn0", (32, 3, 3, 3), stride=2)
        channels, block = 32, 0
        for repeats, size, stride, expansion, width in self.STAGES:
            for repeat in range(repeats):
                at, first, wide = f"_blocks.{block}.", repeat == 0, channels * expansion
                branch = convolution(f"{at}_expand_conv", f"{at}_bn0", (wide, channels, 1, 1)) if expansion > 1 else []
                branch += convolution(
                    f"{at}_depthwise_conv", f"{at}_bn1", (wide, 1, size, size), stride if first else 1
                )
                branch += convolution(f"{at}_project_conv", f"{at}_bn2", (width, wide, 1, 1), relu=False)
                layers.append(nn.Sequential(*branch) if first else _Residual(*branch))
                channels, block = width, block + 1
        layers += convolution("_conv_head", "_bn1", (1280, channels, 1, 1))
        if left:
            raise weights.WeightsError(f"{resolved.file}: {sorted(left)[0]} is unexpected in {resolved.need}")
        super().__init__(*layers)
        self.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        # the constants of the original training code, not ImageNet's mean and deviation
        return super().forward((_resize(images, 224) - 127) / 128).mean((2, 3))


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class _VGG16(nn.Module):
    def __init__(self, resolved: weights.Resolved, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.layers = weights.vgg_layers("vgg16")[:30]  # up to relu5_3
        weights.fit(self.layers, state, resolved, unused=("classifier.",))
        self.register_buffer("mean", 255 * torch.tensor(weights.IMAGENET_MEAN)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(weights.IMAGENET_STD)[:, None, None])
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers((_resize(images, 112) - self.mean) / self.std).mean((2, 3))


class _Inception(nn.Module):
    def __init__(self, resolved: weights.Resolved) -> None:
        super().__init__()
        module = optional_import("torch_fidelity.feature_extractor_inceptionv3")
        weights.load_state(resolved)  # refuses a pickle of anything but tensors, which torch-fidelity would open
        self.network = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(resolved.file)
        )
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


def _resize(images: Tensor, size: int) -> Tensor:
    images = images.float().contiguous(memory_format=torch.channels_last)
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def _rgb(colour: tuple[float, float, float]) -> str:
    return "(" + ", ".join(f"{c:.2f}" for c in colour) + ")"
