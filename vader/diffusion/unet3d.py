"""The denoising network (Sec. 3.3, B.2): the ADM U-Net of Dhariwal & Nichol, as EDM sizes it, in 3D.

Every 2D operation has its 3D counterpart. Convolutions are 3x3x3, group normalisation runs over a channel group's whole
volume, and self-attention over all d * h * w cells. A 2x2x2 box filter changes the resolution of all three axes inside
a residual block. For text, an LDM transformer (Rombach et al.) follows the self-attention at the resolutions of
Table 5.

Shapes: volumes (b, c, d, h, w), tokens (b, n, c) with n = d * h * w, context (b, l, k). The network is
made for `memory_format=torch.channels_last_3d`, in which the two are the same memory. Any other format works.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..settings.checks import ConfigError, require
from ..settings.diffusion import UNetConfig


def zero_init(module: nn.Module) -> nn.Module:
    """Zero a layer that ends a residual branch, so that the branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def downsample(x: Tensor) -> Tensor:
    """Halve d, h and w with a 2x2x2 box filter."""
    for axis in (2, 3, 4):  # not avg_pool3d: on the CPU it knows no bfloat16
        even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
        x = even + odd
    return x / 8


def upsample(x: Tensor) -> Tensor:
    """Double d, h and w; each cell becomes a 2x2x2 box."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


def to_tokens(x: Tensor) -> Tensor:
    """(b, c, d, h, w) -> (b, d * h * w, c)."""
    return x.flatten(2).mT


def to_volume(tokens: Tensor, like: Tensor) -> Tensor:
    """(b, d * h * w, c) -> the (b, c, d, h, w) of `like`."""
    return tokens.mT.unflatten(2, like.shape[2:])


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention of (b, n, c) queries over (b, l, c) keys and values, scaled by 1 / sqrt(c / heads)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (b, heads, n or l, c / heads)
    if q.device.type == "cpu":  # for some hundred cells two matrix products take half the time of the fused kernel
        out = (q / math.sqrt(q.shape[-1]) @ k.mT).softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(-2)


class GroupNorm(nn.GroupNorm):
    """Normalisation over 32 groups, fewer where a group would have less than 4 channels (EDM's rule), and FiLM.

    forward: GN(x) for x (b, c, d, h, w), or GN(x) * (1 + scale) + shift for scale and shift (b, c).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(min(32, max(1, channels // 4)), channels), channels)

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last_3d):
            return to_volume(self._channels_last(to_tokens(x), scale, shift), x)
        h = super().forward(x)
        if scale is None:
            return h
        return torch.addcmul(shift[:, :, None, None, None], h, 1 + scale[:, :, None, None, None])

    def _channels_last(self, tokens: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        """The same on tokens (b, n, c), as sums over n and one affine map per object and channel.

        PyTorch's CPU kernel for channels last costs as much as a convolution; this one is ten times faster.
        """
        groups, x = self.num_groups, tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        mean, square = (t.sum(1).unflatten(1, (groups, -1)).mean(2, keepdim=True) / x.shape[1] for t in (x, x * x))
        gain = self.weight.unflatten(0, (groups, -1)) * ((square - mean**2).clamp_min(0) + self.eps).rsqrt()
        bias = self.bias.unflatten(0, (groups, -1)) - mean * gain
        gain, bias = gain.flatten(1), bias.flatten(1)
        if scale is not None:
            gain, bias = gain * (1 + scale.to(x.dtype)), bias * (1 + scale.to(x.dtype)) + shift.to(x.dtype)
        return torch.addcmul(bias[:, None], x, gain[:, None]).to(tokens.dtype)


class NoiseEmbedding(nn.Module):
    """c_noise (b,) -> (b, 4 * channels): sinusoids of geometric frequencies 1 ... 1e-4, then a two-layer MLP."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.layer0 = nn.Linear(channels, 4 * channels)
        self.layer1 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, c_noise: Tensor) -> Tensor:
        exponent = torch.arange(self.half, device=c_noise.device, dtype=torch.float64) / self.half
        phase = c_noise.float()[:, None] * (1e-4**exponent).float()
        embedding = torch.cat([phase.cos(), phase.sin()], dim=1).to(self.layer0.weight.dtype)
        return F.silu(self.layer1(F.silu(self.layer0(embedding))))


class SelfAttention(nn.Module):
    """Residual self-attention over all cells of the volume, `channels_per_head` wide heads."""

    def __init__(self, channels: int, channels_per_head: int) -> None:
        super().__init__()
        self.heads = channels // channels_per_head
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(to_tokens(self.norm(x))).chunk(3, dim=-1)
        return x + to_volume(self.proj(attend(q, k, v, self.heads)), x)


class Attention(nn.Module):
    """LDM attention: bias-free q, k, v; keys and values come from `context`, or from the tokens themselves."""

    def __init__(self, channels: int, channels_per_head: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = channels // channels_per_head
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(context_dim or channels, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        k, v = self.kv(x if context is None else context).chunk(2, dim=-1)
        return self.out(attend(self.q(x), k, v, self.heads))


class TransformerBlock(nn.Module):
    """LN self-attention, LN cross-attention, LN GEGLU of width 4c; each residual, on tokens (b, n, c)."""

    def __init__(self, channels: int, channels_per_head: int, context_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.self_attention = Attention(channels, channels_per_head)
        self.cross_attention = Attention(channels, channels_per_head, context_dim)
        self.geglu = nn.Linear(channels, 8 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), context)
        value, gate = self.geglu(self.norm3(x)).chunk(2, dim=-1)
        return x + self.out(value * F.gelu(gate))


class ContextTransformer(nn.Module):
    """LDM's SpatialTransformer in 3D: GN, 1x1x1, `depth` transformer blocks, zero-initialised 1x1x1, skip."""

    def __init__(self, channels: int, channels_per_head: int, context_dim: int, depth: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.proj_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels, channels_per_head, context_dim) for _ in range(depth))
        self.proj_out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = self.proj_in(to_tokens(self.norm(x)))
        for block in self.blocks:
            tokens = block(tokens, context)
        return x + to_volume(self.proj_out(tokens), x)


class Conv3d(nn.Conv3d):
    """A 3x3x3 convolution whose weights have the right gradient on a CPU, too.

    oneDNN's bfloat16 gradient for the weights is wrong where the volume is 2^3, and sometimes not finite: it is taken
    in float32 there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and 2 in x.shape[2:] and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))
        return super().forward(x)


class ResidualBlock(nn.Module):
    """ADM block: GN-SiLU-[resample]-conv, FiLM by the noise embedding, SiLU-dropout-conv, skip, then attention.

    `film` makes of the noise embedding (b, e) what scales and shifts the second normalisation, GN(x) * (1 + scale) +
    shift: (b, 2 * out_channels), or (1, ...) for all objects. The block makes it itself unless it is given, since
    divided weights (`fully_shard`) are whole only while their block runs.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        config: UNetConfig,
        resample=None,
        self_attention: bool = False,
        cross_attention: bool = False,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm0 = GroupNorm(in_channels)
        self.conv0 = Conv3d(in_channels, out_channels, 3, padding=1)
        self.film = nn.Linear(4 * config.channels, 2 * out_channels)
        self.norm1 = GroupNorm(out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv1 = zero_init(Conv3d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)
        width = config.channels_per_head
        self.self_attention = SelfAttention(out_channels, width) if self_attention else None
        self.cross_attention = (
            ContextTransformer(out_channels, width, config.context_dim, config.transformer_depth)
            if cross_attention
            else None
        )

    def forward(
        self, x: Tensor, embedding: Tensor | None, context: Tensor | None, film: Tensor | None = None
    ) -> Tensor:
        film = self.film(embedding) if film is None else film
        h = F.silu(self.norm0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = F.silu(self.norm1(self.conv0(h), *film.chunk(2, dim=1)))
        x = self.skip(x) + self.conv1(self.dropout(h))
        if self.self_attention is not None:
            x = self.self_attention(x)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context)
        return x


class UNet3D(nn.Module):
    """F(x; c_noise, context) of Eq. 7 in EDM, for volumes (b, in_channels, r, r, r) with r = `resolution`.

    Level i works at resolution / 2^i with channels * channel_mult[i] features: `depth` residual blocks in the
    encoder, depth + 1 in the decoder, each of these fed with the encoder's matching output. The centre is one
    block with self-attention and one without.

    Raises `ConfigError` if the resolution cannot be halved often enough or an attention resolution never occurs.
    """

    def __init__(self, config: UNetConfig, in_channels: int, resolution: int) -> None:
        super().__init__()
        resolutions = config.resolutions(resolution)
        levels = len(resolutions)
        self.config, self.in_channels, self.resolution = config, in_channels, resolution

        def block(c_in: int, c_out: int, r: int, resample=None, attention: bool | None = None) -> ResidualBlock:
            at = attention is None  # a block of its level, not one that resamples or sits in the centre
            return ResidualBlock(
                c_in,
                c_out,
                config,
                resample,
                self_attention=r in config.attention_resolutions if at else attention,
                cross_attention=(at or bool(attention)) and r in config.cross_attention_resolutions,
            )

        widths = [config.channels * mult for mult in config.channel_mult]
        self.embed_noise = NoiseEmbedding(config.channels)
        self.conv_in = Conv3d(in_channels, widths[0], 3, padding=1)

        self.encoder, skips, c = nn.ModuleList(), [widths[0]], widths[0]
        for level, (width, r) in enumerate(zip(widths, resolutions, strict=True)):
            if level > 0:
                self.encoder.append(block(c, c, r, downsample, attention=False))
                skips.append(c)
            for _ in range(config.depth):
                self.encoder.append(block(c, width, r))
                skips.append(c := width)

        self.centre = nn.ModuleList([block(c, c, r, attention=True), block(c, c, r, attention=False)])

        self.decoder = nn.ModuleList()  # one list per level: blocks that take a skip, then the one that upsamples
        for level in reversed(range(levels)):
            stage, width, r = nn.ModuleList(), widths[level], resolutions[level]
            for _ in range(config.depth + 1):
                stage.append(block(c + skips.pop(), width, r))
                c = width
            if level > 0:
                stage.append(block(c, c, resolutions[level - 1], upsample, attention=False))
            self.decoder.append(stage)

        self.norm_out = GroupNorm(c)
        self.conv_out = zero_init(Conv3d(c, in_channels, 3, padding=1))

    def films(self, c_noise: Tensor) -> list[Tensor]:
        """All that depends on the noise level alone: of every residual block, in order, its `film` of c_noise (n,)."""
        embedding = self.embed_noise(c_noise)  # (n, 4 * channels)
        blocks = [*self.encoder, *self.centre, *(block for stage in self.decoder for block in stage)]
        return [block.film(embedding) for block in blocks]

    def forward(
        self, x: Tensor, c_noise: Tensor, context: Tensor | None = None, films: list[Tensor] | None = None
    ) -> Tensor:
        """(b, c, d, h, w), (b,), and (b, l, context_dim) if conditional -> (b, c, d, h, w).

        films: those of c_noise, if they are known; rows (1, ...) hold for all objects.
        Raises `ConfigError` for a volume, noise level or context that does not fit the network.
        """
        self._check(x, c_noise, context)
        embedding = self.embed_noise(c_noise) if films is None else None  # (b, 4 * channels)
        film = itertools.repeat(None) if films is None else iter(films)
        dtype = self.conv_in.weight.dtype  # a network cast to bfloat16 as a whole takes float32 volumes
        context = None if context is None else context.to(dtype)
        x = self.conv_in(x.to(dtype))
        skips = [x]
        for block in self.encoder:
            skips.append(x := block(x, embedding, context, next(film)))
        for block in self.centre:
            x = block(x, embedding, context, next(film))
        for stage in self.decoder:
            for block in stage:
                if block.resample is None:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = block(x, embedding, context, next(film))
        return self.conv_out(F.silu(self.norm_out(x)))

    def _check(self, x: Tensor, c_noise: Tensor, context: Tensor | None) -> None:
        b, volume = x.shape[0], (self.in_channels, *3 * (self.resolution,))
        require(x.ndim == 5 and x.shape[1:] == volume, f"x has shape {tuple(x.shape)}, expected (b, *{volume})")
        require(c_noise.shape == (b,), f"c_noise has shape {tuple(c_noise.shape)}, expected ({b},)")
        width = self.config.context_dim
        if (context is None) != (width == 0):
            raise ConfigError(
                "this U-Net is unconditional (context_dim 0), but a context was given"
                if context is not None
                else f"this U-Net is conditional: expected a context of shape ({b}, l, {width}), got none"
            )
        if context is not None:
            require(
                context.ndim == 3 and context.shape[::2] == (b, width),
                f"context has shape {tuple(context.shape)}, expected ({b}, l, {width})",
            )
