"""Volumes as they travel to a browser: cropped to what is occupied, one byte a value, deflated.

A payload is a small description (JSON) and the bytes of the crop, which `volume.js` turns back into textures and
`restore` into a tensor. Before compression the bytes are the density's codes in the crop's order (z, y, x), then red,
green and blue of those voxels alone that are occupied or touch one that is: no other colours anything.

- Density, code k: sigma = FLOOR (e^(k c) - 1) with c such that 255 is the largest density. The step between codes is
  a fixed share of sigma + FLOOR: 3 % where the largest density is 200, 5 % where it is the highest there can be. So a
  ray's alpha is off by less than 1/70 whatever the density's scale, even if every voxel on its way errs to the same
  side. What rounds to code 0 is empty.
- Colour: each channel in 255 equal steps between its lowest and its highest value, as differences modulo 256.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...rendering.rays import RenderingError, check_shapes, check_values

FLOOR = 0.1  # density per unit length: below it the code's steps are even, above it they are a share of the density
HIGHEST = 65504.0  # what the browser's half floats hold; density beyond it is as opaque, a colour has no business there
MOST = 256  # voxels along an axis: what every WebGL 2 can hold


class ViewerError(ValueError):
    """An object that cannot be shown; the message names it and says what was expected."""


@dataclass(frozen=True)
class Payload:
    """A volume ready to travel.

    grid, crop, start: voxels along (x, y, z) of the volume, of the part that is sent, and where that part begins.
    density: the largest one, which code 255 stands for. It is 0 where the volume is empty.
    colour: the (lowest, highest) red, green and blue.
    data: the deflated bytes (no header: 'deflate-raw' in a browser).
    """

    grid: tuple[int, int, int]
    crop: tuple[int, int, int]
    start: tuple[int, int, int]
    density: float
    colour: tuple[tuple[float, float], ...]
    data: bytes

    def as_json(self) -> dict[str, Any]:
        """The payload as JSON values, the bytes in base64."""
        return {
            "grid": self.grid,
            "crop": self.crop,
            "start": self.start,
            "density": [FLOOR, density_scale(self.density)],
            "colour": self.colour,
            "data": base64.b64encode(self.data).decode("ascii"),
        }


def check_volume(volume: Tensor, name: str) -> Tensor:
    """`volume` (4 or more, d, h, w) as float32 (1, 4, d, h, w) on the CPU. Raises ViewerError naming the object."""
    if not isinstance(volume, Tensor):
        raise ViewerError(f"object {name!r}: volume is a {type(volume).__name__}, expected a tensor (4, S, S, S)")
    batch = volume.detach()[None].to("cpu", torch.float32)
    nowhere = torch.zeros(1, 0, 3)
    try:
        check_shapes(batch, nowhere, nowhere, 1)
        check_values(batch[:, :4], nowhere, nowhere)
    except RenderingError as error:
        raise ViewerError(f"object {name!r}: {error}") from error
    if max(batch.shape[2:]) > MOST:
        raise ViewerError(f"object {name!r}: volume is {tuple(volume.shape)}, expected at most {MOST} voxels an axis")
    if (strongest := batch[:, 1:4].abs().max().item()) > HIGHEST:
        raise ViewerError(f"object {name!r}: colour reaches {strongest:.3g}, expected at most {HIGHEST:g}")
    return batch[:, :4].contiguous()


def density_scale(largest: float) -> float:
    """c of sigma = FLOOR (e^(k c) - 1), with which code 255 is `largest`."""
    return math.log1p(largest / FLOOR) / 255


def volume_payload(volume: Tensor, name: str = "volume") -> Payload:
    """What travels of a radiance volume (4 or more, d, h, w): density first, then colour; further channels do not.

    Raises:
        ViewerError: naming the object: no tensor, another shape, NaN or infinite values, density below 0, too large.
    """
    values = check_volume(volume, name)[0]
    grid = tuple(reversed(values.shape[1:]))
    density = values[0].clamp_max(HIGHEST)
    largest = density.max().item()
    if largest == 0:
        return Payload(grid, (2, 2, 2), (0, 0, 0), 0.0, ((0.0, 0.0),) * 3, _deflate(bytes(8)))
    codes = (torch.log1p(density.double() / FLOOR) / density_scale(largest)).round()
    # One voxel more than is occupied: the density falls to 0 between the two, and colours are interpolated there.
    near = touched(codes)
    bounds = [_bounds(near.movedim(axis, 0).flatten(1).any(1)) for axis in range(3)]  # z, y, x
    cut = tuple(slice(low, high) for low, high in bounds)
    near, parts, ranges = near[cut], [codes[cut].flatten()], []
    for channel in values[1:]:
        channel = channel[cut][near]
        low, high = channel.min().item(), channel.max().item()
        steps = ((channel - low) / ((high - low) or 1) * 255).round()
        parts.append(steps.diff(prepend=torch.zeros(1)) % 256)
        ranges.append((low, high))
    crop, start = (tuple(numbers[::-1]) for numbers in zip(*((high - low, low) for low, high in bounds), strict=True))
    data = torch.cat(parts).to(torch.uint8).numpy().tobytes()
    return Payload(grid, crop, start, largest, tuple(ranges), _deflate(data))


def restore(payload: Payload) -> Tensor:
    """The volume (4, d, h, w) that a browser makes of a payload; 0 outside the crop."""
    data = torch.frombuffer(bytearray(zlib.decompress(payload.data, wbits=-15)), dtype=torch.uint8)
    cells = math.prod(payload.crop)
    codes = data[:cells].view(*reversed(payload.crop))
    near = touched(codes)
    colours = data[cells:].view(3, -1).long().cumsum(1) % 256
    volume = torch.zeros(4, *reversed(payload.grid))
    cut = tuple(slice(low, low + size) for low, size in zip(payload.start, payload.crop, strict=True))[::-1]
    volume[0][cut] = (FLOOR * torch.expm1(codes.double() * density_scale(payload.density))).float()
    for channel, (low, high), steps in zip(volume[1:], payload.colour, colours, strict=True):
        channel[cut][near] = low + (high - low) / 255 * steps
    return volume


def touched(codes: Tensor) -> Tensor:
    """Voxels (d, h, w) that are occupied or touch an occupied one, by a corner at least: those whose colour counts."""
    return F.max_pool3d(codes[None].float(), 3, stride=1, padding=1)[0] > 0


def _bounds(used: Tensor) -> tuple[int, int]:
    """Begin and end of the part of an axis that is used, at least two voxels long."""
    indices = used.nonzero()
    low, high = int(indices[0]), int(indices[-1]) + 1
    return (low, high) if high - low > 1 else (max(low - 1, 0), max(low - 1, 0) + 2)


def _deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, wbits=-15)
    return compressor.compress(data) + compressor.flush()
