"""The viewer's page: one file with its objects, style and program in it, which asks no server for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...rendering.cameras import Cameras, intrinsics_from_fov, look_at
from ...rendering.render import render_views
from ...settings.experiment import DataConfig
from .payload import ViewerError, check_volume, volume_payload

ASSETS = Path(__file__).parent
SCRIPTS = ("volume.js", "renderer.js", "viewer.js")  # one program, in this order
STILL = 256  # pixels along a side of the picture that is there before, or instead of, the one that turns


@dataclass(frozen=True, eq=False)
class Exhibit:
    """An object to show.

    volume: (4 or more, d, h, w), density >= 0 first, then colour. Further channels are ignored.
    caption: what it is, under its name: the system, the run, the seed, the prompt.
    glb: its mesh, for download: the bytes of a GLB, which the page then carries, or the path of one beside the page.
    samples: per ray. None is two a voxel and at least 96. The pictures of an experiment have their own number.
    azimuth, elevation: degrees from the front and from the horizon, where the camera starts.
    field_of_view, distance: the camera's full angle in degrees and its distance, as in `DataConfig`.
    """

    name: str
    volume: Tensor
    caption: str = ""
    glb: bytes | str | None = None
    samples: int | None = None
    azimuth: float = 30.0
    elevation: float = 20.0
    field_of_view: float = DataConfig.field_of_view
    distance: float = DataConfig.camera_distance

    @property
    def samples_per_ray(self) -> int:
        return self.samples or max(96, 2 * max(self.volume.shape[1:]))

    def cameras(self, resolution: int = STILL) -> Cameras:
        """The one camera that the viewer starts from."""
        return cameras_at([(self.azimuth, self.elevation)], self.distance, self.field_of_view, resolution)


def cameras_at(
    angles: Iterable[tuple[float, float]], distance: float, field_of_view: float, resolution: int
) -> Cameras:
    """Cameras at (azimuth, elevation) in degrees that look at the origin, where the page's program has them."""
    a, e = torch.deg2rad(torch.tensor(list(angles), dtype=torch.float64)).unbind(-1)
    eyes = distance * torch.stack([a.sin() * e.cos(), e.sin(), a.cos() * e.cos()], dim=-1)
    intrinsics = intrinsics_from_fov(field_of_view, resolution, resolution)
    return Cameras(look_at(eyes).float(), intrinsics.expand(len(eyes), 3, 3).contiguous(), resolution, resolution)


def exhibit(item: Any) -> Exhibit:
    """`item` as it is if it is an Exhibit; else from a (name, volume) pair or anything with a name and a volume.

    Raises ViewerError where it is neither, or naming the object and the field that cannot be shown.
    """
    if not isinstance(item, Exhibit):
        if isinstance(item, tuple) and len(item) == 2:
            name, volume = item
        elif hasattr(item, "name") and hasattr(item, "volume"):
            name, volume = item.name, item.volume
        else:
            kind = type(item).__name__
            raise ViewerError(
                f"a {kind} is no object to view, expected a name and a volume: (name, volume) or both fields"
            )
        item = Exhibit(name, volume)
    if not isinstance(item.name, str) or not item.name.strip():
        raise ViewerError(f"an object is named {item.name!r}, expected a text")
    check_volume(item.volume, item.name)
    limits = {"elevation": (-89, 89), "field_of_view": (1, 120), "distance": (0.1, 1000), "azimuth": (-1e6, 1e6)}
    if item.samples is not None:
        limits["samples"] = (1, 4096)
    for field, (low, high) in limits.items():
        value = getattr(item, field)
        if not (isinstance(value, int | float) and math.isfinite(value) and low <= value <= high):
            raise ViewerError(f"object {item.name!r}: {field} is {value!r}, expected a number from {low:g} to {high:g}")
    if isinstance(item.glb, str) and (re.match(r"[a-zA-Z][\w+.-]*:", item.glb) or item.glb.startswith(("/", "\\"))):
        raise ViewerError(f"object {item.name!r}: glb is {item.glb!r}, expected a path relative to the page")
    return item


def still(shown: Exhibit) -> str:
    """A WebP of an object from where the viewer starts, as a data address."""
    from PIL import Image

    volume = check_volume(shown.volume, shown.name)
    views = render_views(volume, shown.cameras(), shown.samples_per_ray, normals=False)
    pixels = (255 * views["colour"][0, 0]).round().to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", quality=80, method=6)
    return _address(buffer.getvalue(), "image/webp")


def viewer_page(objects: Iterable[Any], title: str = "Objects that turn") -> str:
    """One HTML file in which volumes are looked at from all sides, from a disk and with no network.

    Args:
        objects: each an Exhibit, a (name, volume) pair, or anything with a `name` and a `volume` (4 or more, d, h, w).
        title: of the page.

    Raises:
        ViewerError: before anything is drawn, naming the object at fault: NaN, infinite or negative values, no
            volume, no name, settings that no camera has; or no object at all.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown = [exhibit(item) for item in objects]
    if not shown:
        raise ViewerError("there are no objects to view, expected one or more")
    script, style = "\n".join(map(_asset, SCRIPTS)), _asset("viewer.css")
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("template.html").render(
        title=title,
        objects=[{"name": item.name, "caption": item.caption, "still": still(item)} for item in shown],
        data=[_description(item) for item in shown],
        shader=_asset("march.glsl"),
        script=script,
        script_hash=_hash(script),
        style=style,
        style_hash=_hash(style),
    )


class View:
    """The viewer as the value of a notebook's cell: a page in a frame of its own. `html` is the page as a file."""

    def __init__(self, page: str, height: int):
        self.html, self.height = page, height

    def _repr_html_(self) -> str:
        """A frame without the notebook's origin: its program sees nothing of the page around it."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" sandbox="allow-scripts allow-downloads" title="3D viewer" '
            f'style="width: 100%; height: {self.height}px; border: 0" loading="lazy"></iframe>'
        )


def view(objects: Any, title: str = "Objects that turn", height: int = 760) -> View:
    """Look at volumes in JupyterLab: `view(objects)` as the last line of a cell.

    objects: as `viewer_page` takes them, or a single one. height: of the frame in pixels.
    """
    single = isinstance(objects, Exhibit) or hasattr(objects, "volume") or _is_pair(objects)
    return View(viewer_page([objects] if single else objects, title), height)


def _is_pair(objects: Any) -> bool:
    return isinstance(objects, tuple) and len(objects) == 2 and isinstance(objects[0], str)


def _description(shown: Exhibit) -> dict[str, Any]:
    """What the page's program is told about an object."""
    payload = volume_payload(shown.volume, shown.name).as_json()
    glb = _address(shown.glb, "model/gltf-binary") if isinstance(shown.glb, bytes) else shown.glb
    return {
        "name": shown.name,
        "caption": shown.caption,
        "payload": payload,
        "kilobytes": round(len(payload["data"]) / 1000, 1),
        "samples": shown.samples_per_ray,
        "lens": shown.field_of_view,
        "camera": {"azimuth": shown.azimuth, "elevation": shown.elevation, "distance": shown.distance},
        "glb": glb,
        "file": re.sub(r"[^\w.-]+", "-", shown.name).strip("-.") + ".glb",
    }


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What the page's content security policy lets run, and nothing else."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _address(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
