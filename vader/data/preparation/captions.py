"""Captions of objects from one picture of each (C.2): the paper's question, with a hint at what the thing is.

The paper asks MiniGPT-4. Here any captioner of transformers can be named that takes pictures and a text; by default
BLIP-2. The hint is the name of the object's class (MVImgNet) or of the asset (Objaverse).

What is captioned is kept in `<file>.partial`, a line for each object, and becomes `<file>` (captions.csv or .json, as
`formats.shared.captions` reads it) when all are done. A run that was stopped goes on where it was. A caption that is
in `<file>` already stays.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ...settings.checks import require
from ...store.files import write_file
from ..formats.shared.captions import FIELDS, read_captions
from ..prepared import DataError
from .layouts import batches
from .models import Loaded, open_transformers

QUESTION = "Describe this {hint} in one sentence. Describe its shape and color. Be concise, use only a single sentence."
BLIP2_PROMPT = "Question: {question} Answer:"  # how BLIP-2 was shown questions
TOKENS = 60  # of an answer, at most; the encoder keeps 32


@dataclass(frozen=True)
class Subject:
    """An object to describe. picture: gives its first view (h, w, 3) uint8, which is opened when its turn comes."""

    key: str
    hint: str
    picture: Callable[[], np.ndarray]


# ---------------------------------------------------------------------------------------- the model


@dataclass(frozen=True, eq=False)
class Captioner:
    """Answers the question about pictures, always the likeliest next word."""

    loaded: Loaded

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray], hints: Sequence[str]) -> list[str]:
        """Pictures (h, w, 3) uint8 and a hint each -> a sentence each, which is empty where the model says nothing."""
        processor, model = self.loaded.processor, self.loaded.model
        inputs = processor(
            images=list(pictures), text=[self.prompt(hint) for hint in hints], padding=True, return_tensors="pt"
        )
        inputs = inputs.to(self.loaded.device, dtype=model.dtype)
        tokens = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, num_beams=1)
        asked = inputs["input_ids"]
        if tokens.shape[1] >= asked.shape[1] and torch.equal(tokens[:, : asked.shape[1]], asked):
            tokens = tokens[:, asked.shape[1] :]  # some models repeat the question
        return [" ".join(text.split()) for text in processor.batch_decode(tokens, skip_special_tokens=True)]

    def prompt(self, hint: str) -> str:
        """The paper's question in the form that the model expects."""
        question = QUESTION.format(hint=hint)
        if self.loaded.model.config.model_type == "blip-2":
            return BLIP2_PROMPT.format(question=question)
        if getattr(self.loaded.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            turns = [{"role": "user", "content": content}]
            return self.loaded.processor.apply_chat_template(turns, add_generation_prompt=True)
        return question


def captioner(given: str | Path | None = None, device: str | torch.device = "cpu") -> Captioner:
    """given: a folder, or the name of a model on the hub (see `models`). Raises WeightsError."""
    loaded = open_transformers("captioner", given, "AutoModelForImageTextToText", device)
    loaded.processor.tokenizer.padding_side = "left"  # answers begin where all questions of a batch end
    return Captioner(loaded)


# ---------------------------------------------------------------------------------------- many objects


def write_captions(
    subjects: Iterable[Subject],
    file: Path,
    model: Captioner,
    batch_size: int = 8,
    faults: dict[str, str] | None = None,
) -> int:
    """Write captions of all objects that have none in `file`, and return how many are new.

    faults: gets the message of each object whose picture cannot be opened or about which the model says nothing;
    without it the first such object is an error (DataError). Raises DataError where what an earlier run left is by
    another model or question.
    """
    require(file.suffix in (".csv", ".json"), f"{file}: expected a file of suffix .csv or .json")
    kept = read_captions(file) if file.is_file() else {}
    partial = Partial(file.with_name(file.name + ".partial"), {"question": QUESTION, **model.loaded.about})
    subjects = list(subjects)
    done = partial.captions.keys() | {key for key, fields in kept.items() if "caption" in fields}
    pending = [s for s in subjects if s.key not in done]
    with tqdm(total=len(subjects), initial=len(subjects) - len(pending), desc="captions", disable=None) as progress:
        for chunk in batches(pending, batch_size):
            _caption(list(chunk), partial, model, faults)
            progress.update(len(chunk))
    new = {s.key: partial.captions[s.key] for s in subjects if s.key in partial.captions}
    require(bool(kept or new), f"{file}: no object has a caption, expected some")
    merged = {key: {**kept.get(key, {}), "caption": caption} for key, caption in new.items()}
    write_file(file, _content({**kept, **merged}, file.suffix))
    partial.file.unlink()
    return len(new)


def _caption(chunk: list[Subject], partial: Partial, model: Captioner, faults: dict[str, str] | None) -> None:
    """Describe the objects of a batch that can be opened, and keep what was said."""
    problems, opened = {}, []
    for subject in chunk:
        try:
            opened.append((subject, subject.picture()))
        except DataError as error:
            problems[subject.key] = str(error)
    if opened:
        said = model([picture for _, picture in opened], [s.hint for s, _ in opened])
        for (subject, _), caption in zip(opened, said, strict=True):
            if caption:
                partial.add(subject.key, caption)
            else:
                problems[subject.key] = f"object {subject.key!r}: the captioner says nothing, expected a sentence"
    if problems and faults is None:
        raise DataError(next(iter(problems.values())))
    if faults is not None:
        faults.update(problems)


class Partial:
    """Captions of a run that is not finished: its settings in the first line, then an object a line.

    Raises DataError where the settings are others, or a line cannot be read. Half a line at the end is dropped: the
    run was killed while it wrote it.
    """

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        self.file, self.captions = file, {}
        if not file.is_file():
            write_file(file, json.dumps(settings) + "\n")
            return
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        try:
            found, *entries = [json.loads(line) for line in whole]
            self.captions = {entry["key"]: entry["caption"] for entry in entries}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: is not as 'vader prepare captions' writes it; remove it ({error})") from error
        if found != settings:
            raise DataError(
                f"{file}: an earlier run asked {json.dumps(found)}, expected {json.dumps(settings)}; to begin anew, "
                "remove this file"
            )
        if len(whole) < len(lines):
            write_file(file, "".join(whole))

    def add(self, key: str, caption: str) -> None:
        self.captions[key] = caption
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "caption": caption}) + "\n")


def _content(captions: dict[str, dict[str, str]], suffix: str) -> str:
    """The file that `formats.shared.captions` reads."""
    if suffix == ".json":
        return json.dumps(captions, indent=1, ensure_ascii=False) + "\n"
    used = [name for name in FIELDS if any(name in fields for fields in captions.values())]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["key", *used], lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({"key": key, **fields} for key, fields in captions.items())
    return text.getvalue()
