"""The layers of StyleGAN2 (Karras et al. 2020) that EG3D is made of.

Weights have an equalised learning rate: they are N(0, 1) and scaled when they are used. Pictures and features are
(b, c, h, w), styles w (b, k).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the second moment of a standard normal."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def normalize(x: Tensor) -> Tensor:
    """Rows (b, k) to second moment 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Linear(nn.Module):
    """Weights of N(0, 1), scaled when they are used (equalised learning rate)."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class Conv(nn.Module):
    """A convolution with equalised learning rate that keeps the resolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


class ModulatedConv(nn.Module):
    """StyleGAN2's convolution: a style w (b, k) scales the inputs, and the outputs are scaled back to unit variance.

    Both scales are put on the activations instead of the weights, which is the same function (without noise) and one
    convolution for the whole batch.
    """

    def __init__(self, inputs: int, outputs: int, style_dim: int, kernel: int = 3, demodulate: bool = True) -> None:
        super().__init__()
        self.style = Linear(style_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale, self.demodulate = 1 / math.sqrt(inputs * kernel**2), demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style, weight = self.style(w), self.weight * self.scale
        y = F.conv2d(x * style[:, :, None, None], weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            power = style.square() @ weight.square().sum((2, 3)).T  # (b, out)
            y = y * (power + 1e-8).rsqrt()[:, :, None, None]
        return y + self.bias[:, None, None]


def enlarge(x: Tensor, factor: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class SynthesisBlock(nn.Module):
    """(b, in, r, r) -> features (b, out, f r, f r) and an output with skip (b, image, f r, f r); factor f 1, 2 or 4."""

    def __init__(self, inputs: int, outputs: int, images: int, style_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.first = ModulatedConv(inputs, outputs, style_dim)
        self.second = ModulatedConv(outputs, outputs, style_dim)
        self.to_image = ModulatedConv(outputs, images, style_dim, kernel=1, demodulate=False)

    def forward(self, x: Tensor, image: Tensor | None, w: Tensor) -> tuple[Tensor, Tensor]:
        if self.factor > 1:
            x = enlarge(x, self.factor)
            image = None if image is None else enlarge(image, self.factor)
        x = activate(self.second(activate(self.first(x, w)), w))
        new = self.to_image(x, w)
        return x, new if image is None else image + new


class ResidualBlock(nn.Module):
    """Two convolutions and a halving, beside a 1x1 convolution: (b, in, 2r, 2r) -> (b, out, r, r)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = Conv(inputs, inputs, 3), Conv(inputs, outputs, 3)
        self.skip = Conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = activate(self.second(activate(self.first(x))))
        return (F.avg_pool2d(y, 2) + self.skip(F.avg_pool2d(x, 2))) / math.sqrt(2)


def minibatch_deviation(x: Tensor, group: int = 4) -> Tensor:
    """Append to (b, c, h, w) the mean deviation over groups of pictures, one channel (Karras et al. 2018)."""
    b, _, h, w = x.shape
    size = math.gcd(b, group)
    groups = x.view(size, -1, *x.shape[1:])
    deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))  # (b / size,)
    return torch.cat([x, deviation.repeat(size)[:, None, None, None].expand(b, 1, h, w)], dim=1)
