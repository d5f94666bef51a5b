"""The voxel decoder G = G2 o G1 (Sec. 3.1, B.1): embedding -> latent 3D features -> density and colour.

A fully-connected layer makes a 4^3 volume. Each stage doubles the resolution, halves the features and refines them with
residual blocks, with self-attention at some resolutions. A 1x1x1 convolution makes density, RGB and, for articulated
subjects, skinning weights. Volumes are (b, c, d, h, w).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..settings.autodecoder import AutodecoderConfig


class ConvUnit(nn.Sequential):
    """ReLU -> batch norm -> 3x3x3 convolution, UVA's order [63]."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(nn.ReLU(), nn.BatchNorm3d(c_in), nn.Conv3d(c_in, c_out, 3, padding=1))


class UpConv3d(nn.Conv3d):
    """Nearest upsampling followed by a 3x3x3 convolution, (b, c_in, r, r, r) -> (b, c_out, 2r, 2r, 2r).

    Along an axis an output's three taps meet only two different inputs, so the same result is a transposed
    convolution of stride 2 with folded weights: 8 multiplications per output and channel pair instead of 27.
    """

    FOLD = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))  # [offset of the output from twice its input][tap]

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fold = self.weight.new_tensor(self.FOLD)
        kernel = torch.einsum("ax,by,cz,oixyz->ioabc", fold, fold, fold, self.weight)
        return F.conv_transpose3d(x, kernel, self.bias, stride=2, padding=1)


class UpBlock(nn.Module):
    """Residual block that doubles the resolution: (b, c_in, r, r, r) -> (b, c_out, 2r, 2r, 2r).

    Nearest upsampling commutes with everything pointwise, so the activation, its batch norm (whose statistics
    repetition leaves unchanged) and the 1x1x1 skip run on an eighth of the voxels.
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.activation, self.norm = nn.ReLU(), nn.BatchNorm3d(c_in)
        self.conv = UpConv3d(c_in, c_out)
        self.unit = ConvUnit(c_out, c_out)
        self.skip = nn.Conv3d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(self.norm(self.activation(x)))
        return upsample(self.skip(x)) + self.unit(h)


class SameBlock(nn.Module):
    """Residual block with an identity skip, (b, c, r, r, r) -> same."""

    def __init__(self, c: int):
        super().__init__()
        self.units = nn.Sequential(ConvUnit(c, c), ConvUnit(c, c))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.units(x)


class SelfAttention(nn.Module):
    """Single-head attention among all cells of a volume [74], with a residual connection."""

    def __init__(self, c: int):
        super().__init__()
        self.norm = nn.BatchNorm3d(c)
        self.qkv = nn.Conv3d(c, 3 * c, 1)
        self.out = nn.Conv3d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *grid = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)  # (b, 1, cells, c)
        return x + self.out(attend(q, k, v).squeeze(1).mT.reshape(b, c, *grid))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of (b, 1, cells, c), scaled by c^-1/2.

    On a CPU two products in bfloat16 take 0.4 times as long, for 512 cells forward and backward, as the fused kernel.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def upsample(x: Tensor, mode: str = "nearest") -> Tensor:
    """Doubling of all three axes."""
    return F.interpolate(x, scale_factor=2, mode=mode)


class Decoder(nn.Module):
    """G: embedding (b, embedding_dim) -> volume (b, 1 + 3 (+ lbs), S, S, S).

    `g1` stops at the latent volume, `g2` starts from it; both take part in training as one network. Channel 0 of the
    result is the density (>= 0, per unit length), 1..3 the colour, the rest skinning logits.
    """

    def __init__(self, config: AutodecoderConfig):
        super().__init__()
        self.config = config
        start = config.base_resolution
        self.fc = nn.Linear(config.embedding_dim, config.max_channels * start**3)
        stages, c_in = [], config.max_channels
        for resolution in config.stage_resolutions:
            c = config.channels_at(resolution)
            blocks: list[nn.Module] = [UpBlock(c_in, c)]
            blocks += [SameBlock(c) for _ in range(config.depth - config.depth_counts_up_block)]
            if resolution in config.attention_resolutions:
                blocks.append(SelfAttention(c))
            stages.append(nn.Sequential(*blocks))
            c_in = c
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm3d(c_in)
        self.head = nn.Conv3d(c_in, 1 + 3 + config.lbs_channels, 1)
        nn.init.zeros_(self.head.bias)
        nn.init.constant_(self.head.bias[:1], config.density_bias)
        self.lbs_heads = nn.ModuleList()  # of what G2 starts from, and of its stages but the last, which has `head`
        if config.lbs_skips:
            inner = [r for r in config.stage_resolutions if config.latent_resolution <= r < config.resolution]
            self.lbs_heads.extend(nn.Conv3d(config.channels_at(r), config.lbs_channels, 1) for r in inner)
        # G1 ends with the stage that makes the latent volume (after its attention), G2 starts with the next.
        self.num_g1_stages = (config.base_resolution, *config.stage_resolutions).index(config.latent_resolution)

    def g1(self, embedding: Tensor) -> Tensor:
        """Embedding (b, embedding_dim) -> latent features F (b, c, r, r, r)."""
        r = self.config.base_resolution
        x = self.fc(embedding).view(-1, self.config.max_channels, r, r, r)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        for stage in self.stages[: self.num_g1_stages]:
            x = stage(x)
        return x

    def g2(self, features: Tensor, density_noise: float | Tensor = 0.0) -> Tensor:
        """Latent features (b, c, r, r, r) -> volume (b, 1 + 3 (+ lbs), S, S, S), float32.

        density_noise: standard deviation of Gaussian noise on the raw density (training, [63]).
        """
        x = features.contiguous(memory_format=torch.channels_last_3d)
        coarse: Tensor | float = 0.0  # skinning logits so far
        for number, stage in enumerate(self.stages[self.num_g1_stages :]):
            if self.lbs_heads:
                coarse = upsample(coarse + self.lbs_heads[number](x), "trilinear")
            x = stage(x)
        raw = self.head(self.norm(x)).float()
        density, colour, skinning = raw[:, :1], raw[:, 1:4], self.config.lbs_scale * (raw[:, 4:] + coarse)
        if isinstance(density_noise, Tensor) or density_noise > 0:
            density = density + density_noise * torch.randn_like(density)
        activation = F.softplus if self.config.density_activation == "softplus" else F.relu
        density = self.config.density_scale * activation(density)
        if self.config.colour_activation == "sigmoid":
            colour = colour.sigmoid()
        return torch.cat([density, colour, skinning], dim=1)

    def forward(self, embedding: Tensor, density_noise: float | Tensor = 0.0) -> Tensor:
        return self.g2(self.g1(embedding), density_noise)
