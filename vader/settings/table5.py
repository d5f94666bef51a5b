"""Table 5: the settings of the paper's five models, and how the paper writes them."""

from __future__ import annotations

from typing import Any

from .autodecoder import AutodecoderConfig, ReconstructionConfig
from .diffusion import UNetConfig
from .experiment import DataConfig, Experiment
from .videos import UVA_CLIP

# Training objects (Sec. 4.1), as stated: exact for the first two, about for the others.
TRAINING_OBJECTS = {
    "abo_tables": 1_676,
    "photoshape_chairs": 15_576,
    "celebv_text": 44_400,
    "mvimgnet": 206_990,
    "objaverse": 300_000,
}


def _paper(
    name: str,
    views: int,
    *,
    depth: int,
    resolution: int = 64,
    foreground: float = 10.0,
    unet: dict[str, Any],
    lbs: int = 0,
    hash_rows: int = 0,
) -> Experiment:
    """A column of Table 5: what the columns share is the dataclasses' defaults.

    Objects and views are Sec. 4.1's, hash_rows are those of B.3's last paragraph.
    """
    return Experiment(
        "paper",
        DataConfig(name, num_objects=TRAINING_OBJECTS[name], train_views=views, resolution=128),
        AutodecoderConfig(depth=depth, resolution=resolution, lbs_channels=lbs, hash_rows=hash_rows),
        ReconstructionConfig(foreground_weight=foreground, clip_value=UVA_CLIP if lbs else 0.0),
        UNetConfig(**unet),
    )


_LARGE = dict(channels=192, depth=3)
PAPER = {
    "abo_tables": _paper("abo_tables", 91, depth=2, resolution=128, unet={}, hash_rows=256),
    "photoshape_chairs": _paper("photoshape_chairs", 200, depth=4, unet={}),
    "celebv_text": _paper("celebv_text", 373, depth=2, unet=_LARGE, lbs=10, hash_rows=8_192),
    "mvimgnet": _paper("mvimgnet", 30, depth=4, unet=_LARGE),
    "objaverse": _paper("objaverse", 6, depth=4, foreground=0.0, unet=_LARGE, hash_rows=32_768),
}
# Where Table 5 has "None/CA", a second model is conditioned on text by cross-attention (CA); the rest is the same.
PAPER_TEXT = {
    name: PAPER[name].replace(
        unet=dict(cross_attention_resolutions=(8, 4), context_dim=1024, transformer_depth=transformer_depth)
    )
    for name, transformer_depth in (("celebv_text", 1), ("mvimgnet", 1), ("objaverse", 2))
}


def column_cells(name: str) -> dict[tuple[str, str], str]:
    """A column of Table 5 from its configurations, {(part, row): cell}, written as the paper writes it.

    The last three rows are those of the text-conditioned model, and "-" where there is none.
    """
    e, text = PAPER[name], PAPER_TEXT.get(name)
    c, r, *_ = e.autodecoder.latent_shape
    autodecoder = {
        "z-length": e.autodecoder.embedding_dim,
        "MaxChannels": e.autodecoder.max_channels,
        "Depth": e.autodecoder.depth,
        "SA-Resolutions": _list(e.autodecoder.attention_resolutions),
        "ForegroundLoss λ": f"{e.reconstruction.foreground_weight:g}",
        "#Renders/batch": e.reconstruction.views_per_object,
        "VoxelGridSize": f"{e.autodecoder.resolution}³ × {1 + 3 + e.autodecoder.lbs_channels}",
        "Learning Rate": _scientific(e.reconstruction.learning_rate),
    }
    diffusion = {
        "z-shape": f"{r}³ × {c}",
        "Sampler": e.sampler.name,
        "Channels": e.unet.channels,
        "Depth": e.unet.depth,
        "Channel Multiplier": _list(e.unet.channel_mult),
        "SA-resolutions": _list(e.unet.attention_resolutions),
        "Learning Rate": _scientific(e.diffusion.learning_rate),
        "Conditioning": "None/CA" if text else "None",
        "CA-resolutions": _list(text.unet.cross_attention_resolutions) if text else "-",
        "Embedding Dimension": text.unet.context_dim if text else "-",
        "Transformers Depth": text.unet.transformer_depth if text else "-",
    }
    parts = {"3D AutoDecoder": autodecoder, "Latent 3D Diffusion Model": diffusion}
    return {(part, row): str(cell) for part, rows in parts.items() for row, cell in rows.items()}


def _list(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))


def _scientific(value: float) -> str:
    """0.0005 -> '5e-4'."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
