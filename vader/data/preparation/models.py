"""The pretrained models of the preparation tools, named in one place, and how they are opened.

    a folder (for matting: a file) given explicitly
    $VADER_WEIGHTS/<last part of the name>
    the hub, by name and revision

in this order, as in `vader.store.weights`. Another model of the same kind may be named, but none is taken unasked.
Weights are read from safetensors or TorchScript files, nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...store.weights import WeightsError, import_transformers


@dataclass(frozen=True)
class Model:
    """What is opened where nobody names another: its name on its hub, which revision, and under which licence."""

    what: str
    name: str
    revision: str
    licence: str
    types: tuple[str, ...] = ()  # `model_type`s that its place in the tools can take; empty: any
    url: str | None = None  # of a single file; None: a repository of the Hugging Face hub


MODELS = {
    "detector": Model(  # as in Grounded Segment Anything [35], the Swin-T model
        "object detector", "IDEA-Research/grounding-dino-tiny", "main", "Apache-2.0",
        ("grounding-dino", "mm-grounding-dino"),
    ),
    "segmenter": Model(  # as in Grounded Segment Anything [35], ViT-H
        "segmentation model", "facebook/sam-vit-huge", "main", "Apache-2.0", ("sam",)
    ),
    "captioner": Model(  # the paper's MiniGPT-4 is in no library; BLIP-2 is what it is made from
        "captioner", "Salesforce/blip2-opt-2.7b", "main", "MIT; OPT's own licence is for research only"
    ),
    "matting": Model(
        "matting model", "rvm_mobilenetv3_fp32.torchscript", "v1.0.0", "GPL-3.0",
        url="https://github.com/PeterL1n/RobustVideoMatting/releases/download/v1.0.0/rvm_mobilenetv3_fp32.torchscript",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a model is taken from. place: folder, file, or the hub's name for it."""

    role: str
    name: str
    source: str  # in words
    place: Path | str

    @property
    def local(self) -> bool:
        return isinstance(self.place, Path)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A frozen model in evaluation mode. about: name, source, and commit or sha256, for reports."""

    model: torch.nn.Module
    processor: Any
    device: torch.device
    about: dict[str, str]


def find(role: str, given: str | Path | None = None) -> Place:
    """The place of the model in a role of `MODELS`. given: a folder or file, or the name of another model of the hub.

    Raises WeightsError where what is given looks like a path and is not there, or $VADER_WEIGHTS is no folder.
    """
    model = MODELS[role]
    if given is not None and Path(given).exists():
        return Place(role, Path(given).name, "explicit path", Path(given))
    name = model.name if given is None else str(given)
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise WeightsError(f"{name}: no such file or folder, expected the {model.what}, for example {model.name}")
    folder = os.environ.get("VADER_WEIGHTS")
    if folder is not None:
        if not Path(folder).is_dir():
            raise WeightsError(f"$VADER_WEIGHTS is {folder!r}, which is not a folder (looking for {name})")
        own = Path(folder) / name.rsplit("/", 1)[-1]
        if own.exists():
            return Place(role, name, "folder $VADER_WEIGHTS", own)
    return Place(role, name, f"hub, revision {model.revision}", name)


def open_transformers(role: str, given: str | Path | None, loader: str, device: str | torch.device) -> Loaded:
    """Model and processor with one of transformers' automatic classes, `loader`.

    Raises ImportError without transformers, and WeightsError naming the model and every way to provide it where it
    cannot be read, is of another type than its role takes, or has weights missing.
    """
    transformers = import_transformers("preparation tools")
    found, model, device = find(role, given), MODELS[role], torch.device(device)
    own = given is not None and not found.local and found.name != model.name
    options = {"local_files_only": found.local} | (
        {} if found.local else {"revision": "main" if own else model.revision}
    )
    dtype = torch.bfloat16 if role == "captioner" and device.type == "cuda" else torch.float32
    try:
        settings = transformers.AutoConfig.from_pretrained(found.place, **options)
        if model.types and settings.model_type not in model.types:
            raise WeightsError(
                f"{found.place}: {found.name} is a {settings.model_type}, expected the {model.what}: {model.types}"
            )
        processor = transformers.AutoProcessor.from_pretrained(found.place, **options)
        network, info = getattr(transformers, loader).from_pretrained(
            found.place, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except WeightsError:
        raise
    except Exception as error:  # the readers raise a dozen types of their own
        raise WeightsError(_unavailable(found, error)) from error
    if missing := sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"]):
        raise WeightsError(f"{found.place}: these are not the weights of {found.name}: {missing[0]} is missing")
    about = {"model": found.name, "source": found.source, "licence": model.licence if not own else "see its hub page"}
    if found.local:
        about["sha256"] = _digest(found.place)
    elif commit := getattr(settings, "_commit_hash", None):
        about["commit"] = commit
    return Loaded(network.to(device).eval().requires_grad_(False), processor, device, about)


def open_torchscript(role: str, given: str | Path | None, device: str | torch.device) -> Loaded:
    """A TorchScript file, which brings its own code. Raises WeightsError as `open_transformers`."""
    found, device = find(role, given), torch.device(device)
    file = found.place if found.local else _download(found)
    try:
        network = torch.jit.load(str(file), map_location=device)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{file}: not a readable TorchScript file of {found.name} ({reason})") from error
    about = {"model": found.name, "source": found.source, "licence": MODELS[role].licence, "sha256": _digest(file)}
    return Loaded(network.eval(), None, device, about)


def _download(found: Place) -> Path:
    """The file of a release in torch.hub's cache, fetched once; it appears whole or not at all."""
    model = MODELS[found.role]
    if found.name != model.name:
        raise WeightsError(f"{found.name}: no such file, expected the {model.what}, for example {model.name}")
    target = Path(torch.hub.get_dir()) / "checkpoints" / f"{model.revision}-{model.name}"
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            partial = Path(folder) / model.name
            with urllib.request.urlopen(model.url, timeout=20) as response, open(partial, "wb") as file:
                shutil.copyfileobj(response, file)
            partial.replace(target)
    except OSError as error:
        raise WeightsError(_unavailable(found, error)) from error
    return target


def _unavailable(found: Place, error: Exception) -> str:
    model, reason = MODELS[found.role], (str(error).strip().splitlines() or [type(error).__name__])[0]
    if found.local:
        return f"{found.place}: not a readable {model.what} {found.name} ({reason})"
    last = found.name.rsplit("/", 1)[-1]
    option = {"matting": "--matting FILE"}.get(found.role, f"--{found.role} FOLDER")
    return (
        f"the {model.what} {found.name} was not found:\n"
        f"  explicit path: give it with {option}\n"
        f"  folder: there is no {last} in $VADER_WEIGHTS ({os.environ.get('VADER_WEIGHTS', 'not set')})\n"
        f"  hub: {model.url or found.name} could not be loaded ({reason})"
    )


def _digest(place: Path) -> str:
    """SHA-256 (hex) of a file, or of all safetensors files of a folder by name and content."""
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode() if place.is_dir() else b"")
    return digest.hexdigest() if place.is_dir() else content
