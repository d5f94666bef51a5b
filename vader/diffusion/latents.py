"""Latents of more objects than memory holds: extracted once into a file, read from it batch by batch.

The file is a run of its own (`vader.store.runs`), `<data>-latents-<digest>`, found under the digest of the stage-1 run.
One process writes it while others wait, and resumes where it was stopped. It is checked against the SHA-256 in its
DONE.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..autodecoder.reconstruction import Autodecoder
from ..store import runs
from ..store.files import RunError, canonical, read_json, write_json
from .normalization import RobustStatistics

IN_MEMORY = 2**31  # bytes of latents up to which stage 2 keeps them in memory
PIECE = 2**26  # bytes that a pass over all latents reads at a time
SAVE_EVERY = 2**28  # bytes between the points that an extraction resumes from


class StoredLatents:
    """Features (n, c, r, r, r) float32 in the only tensor of a safetensors file, mapped into memory."""

    def __init__(self, file: Path) -> None:
        """Raises RunError where the file is not one of `extract_to`."""
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            try:
                entry = json.loads(stream.read(length))["features"]
                self.shape = torch.Size(entry["shape"])
                whole = entry["data_offsets"] == [0, 4 * math.prod(self.shape)] and entry["dtype"] == "F32"
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{file}: has no tensor 'features', expected a file of latents ({error!r})") from error
        size, expected = file.stat().st_size, 8 + length + 4 * math.prod(self.shape)
        if not whole or size != expected:
            raise RunError(f"{file}: has {size} bytes of {entry}, expected {expected} of float32 from offset 0")
        self._rows = np.memmap(file, "<f4", "r", 8 + length, tuple(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: Tensor) -> Tensor:
        """Features of objects (b,), on the CPU."""
        return torch.from_numpy(self._rows[chosen.cpu().numpy()])

    def __iter__(self) -> Iterator[Tensor]:
        """All features, some objects (n, c, r, r, r) at a time."""
        objects = max(1, PIECE // (4 * math.prod(self.shape[1:])))
        for first in range(0, len(self), objects):
            yield torch.from_numpy(np.array(self._rows[first : first + objects]))


class NormalizedLatents:
    """Stored features as the diffusion model sees them, normalised when they are indexed."""

    def __init__(self, features: StoredLatents, statistics: RobustStatistics, device: torch.device | str) -> None:
        self.features, self.statistics, self.device, self.shape = features, statistics, device, features.shape

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, chosen: Tensor) -> Tensor:
        """Latents of objects (b,), on the device."""
        latents = self.statistics.normalize(self.features[chosen]).to(self.device)
        return latents.contiguous(memory_format=torch.channels_last_3d)

    def __iter__(self) -> Iterator[Tensor]:
        """All latents, some objects at a time, on the CPU."""
        return map(self.statistics.normalize, self.features)


def largest(latents: Tensor | NormalizedLatents) -> float:
    """The largest absolute value of all latents."""
    pieces = [latents] if isinstance(latents, Tensor) else latents
    return max(piece.abs().max().item() for piece in pieces)


def stored_latents(autodecoder: Autodecoder, run: runs.Run, batch_size: int = 64) -> StoredLatents:
    """G1's features of every training object of a stage-1 run, found or extracted now."""
    name, settings = run.name.removesuffix("autodecoder") + "latents", {"stage": "latents", "autodecoder": run.digest}

    def extract(work: Path) -> None:
        record = runs.Record(work, 0, next(autodecoder.parameters()).device)
        extract_to(work / "latents.safetensors", autodecoder, len(run.record["objects"]), batch_size)
        record.save()

    return StoredLatents(runs.get(name, settings, extract).weights("latents"))


@torch.no_grad()
def extract_to(file: Path, autodecoder: Autodecoder, objects: int, batch_size: int = 64) -> None:
    """Write G1's features of all objects to `file`, a batch at a time; a killed extraction goes on where it was.

    Next to the file, `checkpoint-latents.json` says how many objects are on the disk for certain.
    """
    if file.is_file():
        return
    device = next(autodecoder.parameters()).device
    partial, progress = (file.with_name(f"checkpoint-latents.{end}") for end in ("bin", "json"))
    first = autodecoder.decoder.g1(autodecoder.embedding(torch.zeros(1, dtype=torch.int64, device=device)))
    shape, row = (objects, *first.shape[1:]), 4 * first[0].numel()
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, objects * row]}
    head = json.dumps({"__metadata__": {"config": canonical({"latents": shape[1:]})}, "features": entry}).encode()
    head += b" " * (-len(head) % 8)
    head = len(head).to_bytes(8, "little") + head
    done = read_json(progress)["objects"] if progress.is_file() else 0
    if not partial.is_file() or partial.stat().st_size < len(head) + done * row:
        done = 0
    with open(partial, "r+b" if done else "wb") as stream:
        stream.write(head)
        stream.truncate(len(head) + done * row)
        stream.seek(0, os.SEEK_END)
        saved, bar = done, tqdm(total=objects, initial=done, desc="latents", unit="object", disable=None)
        with bar:
            for start in range(done, objects, batch_size):
                chunk = torch.arange(start, min(start + batch_size, objects), device=device)
                features = autodecoder.decoder.g1(autodecoder.embedding(chunk)).float().cpu()
                stream.write(features.contiguous().numpy().astype("<f4", copy=False).tobytes())
                bar.update(len(chunk))
                end = start + len(chunk)
                if (end - saved) * row >= SAVE_EVERY or end == objects:
                    stream.flush()
                    os.fsync(stream.fileno())
                    write_json(progress, {"objects": end})
                    saved = end
    partial.replace(file)
