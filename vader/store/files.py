"""Files that appear whole or not at all: settings as JSON, weights as safetensors. Nothing is ever unpickled.

A weights file may be packed by xz, which loses nothing (`pack_weights`): 15 % less of weights in half precision.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import lzma
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn

from ..settings.checks import nearest, require

PACKED = ".xz"  # behind the name of a weights file
# Weights are of two bytes, of which the one with the exponent alone can be packed: literals are told apart by position.
PACKING = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 1, "pb": 1}]


class RunError(ValueError):
    """A run, its settings or a weights file that cannot be used; the message names it and says what was expected."""


def plain(value: Any, where: str = "settings") -> Any:
    """`value` as JSON values: dataclasses become objects, tuples lists, and floats that are whole become ints.

    The last makes settings that compare equal (1 == 1.0) look equal. A field declared with `checks.later` is left
    out while it has its default. Raises RunError naming the place of anything else, such as a path or a tensor,
    which has no business in a setting.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        kept = [(f.name, item) for f, item in fields if not (f.metadata.get("later") and item == f.default)]
        return {name: plain(item, f"{where}.{name}") for name, item in kept}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise RunError(f"{where}: key {key!r} is a {type(key).__name__}, expected a string")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RunError(f"{where} is {value}, expected a finite number")
        return int(value) if value.is_integer() and abs(value) < 2**53 else float(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise RunError(f"{where} is a {type(value).__name__}, expected JSON values and dataclasses")


def from_plain(kind: type, values: dict[str, Any]) -> Any:
    """Settings of a dataclass from the JSON values of `plain`. Raises ConfigError naming an unknown field."""
    types, made = get_type_hints(kind), {}
    for name, value in values.items():
        require(name in types, f"{kind.__name__} has no field {name!r}{nearest(name, list(types))}")
        if dataclasses.is_dataclass(types[name]):
            made[name] = from_plain(types[name], value)
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
    return kind(**made)


def canonical(value: Any, where: str = "settings") -> str:
    """The one JSON text of `plain(value)`: keys sorted, no spaces."""
    return json.dumps(plain(value, where), sort_keys=True, separators=(",", ":"), allow_nan=False)


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """['reconstruction.learning_rate is 0.1, expected 0.2', ...]: where two settings differ, field by field."""
    found, expected = plain(found), plain(expected)
    if isinstance(found, dict) and isinstance(expected, dict):
        dot = f"{where}." if where else ""
        names = dict.fromkeys([*expected, *found])
        absent = "absent"  # a later field at its default, or one of another version
        return [line for n in names for line in differences(found.get(n, absent), expected.get(n, absent), f"{dot}{n}")]
    return [] if found == expected else [f"{where} is {json.dumps(found)}, expected {json.dumps(expected)}"]


def write_json(file: Path, value: Any) -> None:
    """Write JSON, whole or not at all as `write_file` does."""
    write_file(file, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_file(file: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) so that it is the old or the new one whole, whatever happens.

    Its folder is made where there is none: what was measured for an hour is not lost for that.
    """
    partial = file.with_name(file.name + ".tmp")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        sync(partial)
        partial.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def read_json(file: Path) -> Any:
    """Raises RunError naming the file where it is missing or no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{file}: no such file") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: not readable as JSON ({error})") from error


def save_weights(
    path: Path, tensors: nn.Module | Mapping[str, Tensor], config: Any, dtype: torch.dtype | None = None
) -> None:
    """Write a module's state, or named tensors, to a safetensors file with `config` as JSON in its metadata.

    dtype: what floating-point tensors are stored as (others, such as batch counts, stay as they are). The same
    tensors, config and dtype give the same bytes. Raises RunError naming a tensor that `dtype` cannot hold, and where
    the file cannot be written.
    """
    path = Path(path)
    stored = {}
    for name, tensor in (tensors.state_dict() if isinstance(tensors, nn.Module) else tensors).items():
        kept = tensor.detach().to("cpu", dtype if dtype and tensor.is_floating_point() else tensor.dtype)
        if torch.isfinite(tensor).all() and not torch.isfinite(kept).all():
            raise RunError(f"{path}: {name} has values up to {tensor.abs().max():.3g}, more than {dtype} can hold")
        stored[name] = kept.contiguous()
    partial = path.with_name(path.name + ".tmp")
    try:
        save_file(stored, partial, metadata={"config": canonical(config, "config")})
        sync(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:  # the latter from a full disk, too
        with contextlib.suppress(OSError):
            partial.unlink()
        raise RunError(f"{path}: weights cannot be written ({error}); checkpoints stay") from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a weights file as they are stored, and its configuration; of a packed one, too (`pack_weights`).

    Raises RunError naming the file.
    """
    path = Path(path)
    try:
        if path.suffix == PACKED:
            content = lzma.decompress(path.read_bytes())
            tensors = load(content)
            length = int.from_bytes(content[:8], "little")
            return tensors, json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["config"])
        with safe_open(path, framework="pt") as file:
            names, metadata = file.keys(), file.metadata()
            return {name: file.get_tensor(name) for name in names}, json.loads(metadata["config"])
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such weights file") from error
    except (OSError, EOFError, lzma.LZMAError, SafetensorError) as error:
        raise RunError(f"{path}: not a readable safetensors file ({error})") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: its metadata has no JSON in 'config', expected a file of save_weights") from error


def pack_weights(path: Path) -> Path:
    """Replace a weights file by `<its name>.xz`, which `read_weights` reads as well; return that. A packed one stays.

    The same file gives the same bytes. It is removed when the packed one is whole.
    """
    path = Path(path)
    if path.suffix == PACKED:
        return path
    packed = path.with_name(path.name + PACKED)
    write_file(packed, lzma.compress(path.read_bytes(), lzma.FORMAT_XZ, filters=PACKING))
    path.unlink()
    return packed


def load_weights(path: Path, module: nn.Module) -> Any:
    """Copy a weights file into `module`, whose dtypes and devices stay, and return the file's configuration.

    Raises RunError naming the file and every tensor that is missing, extra or of another shape.
    """
    tensors, config = read_weights(path)
    own = module.state_dict()
    faults = [f"{name} is missing" for name in own if name not in tensors]
    faults += [f"{name} is extra" for name in tensors if name not in own]
    faults += [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise RunError(f"{path}: not the weights of this {type(module).__name__}: {'; '.join(faults[:8])}{more}")
    module.load_state_dict(tensors)
    return config


def sync(path: Path) -> None:
    """Force a file or folder to the disk (Windows opens no folders, and needs none of this for a rename)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tree_sha256(place: Path) -> str:
    """SHA-256 (hex) of a file, or of all files of a folder and below, by name and content."""
    files = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(place.parent).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()
