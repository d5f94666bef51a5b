"""An object that a model made: to be rendered from any side, turned, meshed, and saved for other programs.

chair = vader.load("furniture_chairs").sample(1)[0]
chair.render(cameras)["colour"]             # also "depth", "normals", "occupancy"
chair.save("chair.glb")                     # or .ply, .obj, .npz, .webp, .png
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..rendering.cameras import AZIMUTHS, Cameras, turntable
from ..rendering.render import render_views
from ..rendering.strips import picture_row
from ..rendering.surface import carved_surface, extract_surface, surface_colours
from ..settings.checks import nearest
from ..settings.experiment import DataConfig
from ..store.files import write_file
from . import export

if TYPE_CHECKING:
    import trimesh

SUFFIXES = {
    ".glb": "mesh with vertex colours, binary glTF",
    ".ply": "the same mesh, for MeshLab and the like",
    ".obj": "the same mesh as text",
    ".npz": "the volume",
    ".webp": "turntable",
    ".png": "four views, depth and normals side by side",
}


class ObjectError(ValueError):
    """An object without what is asked of it, such as a surface; the message names it."""


@dataclass(frozen=True, eq=False)
class VolumeObject:
    """A volume, what it is of, and how it is looked at.

    volume: (4, S, S, S) float, density per unit length and colour in [0, 1], over the cube [-1, 1]^3, y up, +z front.
    origin: what made it, as JSON values. These are `kind` ("sample", "reconstruction", ...), `model`, `profile`, `runs`
        by their digests, and others that decide it, such as `seed`, `index`, `prompt`.
    """

    name: str  # a file name without its suffix
    volume: Tensor = field(repr=False)
    origin: dict[str, Any] = field(repr=False)
    view: DataConfig = field(repr=False)  # distance, elevation and field of view of the cameras it was learned from
    num_samples: int = field(repr=False)  # of the renderer, per ray
    embedding: Tensor | None = field(default=None, repr=False)  # (embedding_dim,) that G made it from; or ...
    features: Tensor | None = field(default=None, repr=False)  # ... (c, r, r, r) that G2 made it from

    @property
    def caption(self) -> str | None:
        """The text that it was sampled with."""
        return self.origin.get("prompt")

    def require_finite(self) -> VolumeObject:
        """Return self, or raise ObjectError where the volume has a value that is NaN or infinite."""
        if not torch.isfinite(self.volume).all():
            raise ObjectError(f"{self.name}: the volume holds NaN or infinity, expected finite density and colour")
        return self

    def render(self, cameras: Cameras | None = None, resolution: int = 192) -> dict[str, Tensor]:
        """Pictures from v cameras, on the CPU: `colour` and `normals` (v, h, w, 3), `occupancy` and `depth` (v, h, w),
        as `rendering.render.render_views` describes them.

        cameras: in the world of the cube; by default four around the object, of `resolution`. Raises ObjectError for a
        volume that is not finite, RenderingError or CameraError for what has no picture.
        """
        cameras = turntable(self.view, AZIMUTHS, resolution) if cameras is None else cameras
        seen = render_views(self.require_finite().volume[None].float(), cameras, self.num_samples)
        return {name: picture[0].cpu() for name, picture in seen.items()}

    def turntable(self, frames: int = 36, resolution: int = 256) -> Tensor:
        """A whole turn around the object, (frames, h, w, 3) uint8, to be played in a loop."""
        if frames < 1:
            raise ObjectError(f"frames is {frames}, expected at least 1")
        cameras = turntable(self.view, [360 * i / frames for i in range(frames)], resolution)
        volume = self.require_finite().volume[None].float()
        colour = render_views(volume, cameras, self.num_samples, normals=False)["colour"][0]
        return _bytes(colour)

    def still(self, resolution: int = 192) -> Tensor:
        """Four views, then depth and normals of the first, side by side: (h, 6 w, 3) uint8."""
        return _bytes(picture_row(self.require_finite().volume, self.view, self.num_samples, resolution))

    def mesh(self, threshold: float | None = None) -> trimesh.Trimesh:
        """The surface as a closed mesh with vertex colours, normals outwards, in the axes of the cube.

        threshold: a density, for marching cubes at it, such as `rendering.surface.density_threshold`. By default the
        surface is carved so that its silhouettes are the rendering's (`carved_surface`).
        Raises ObjectError where there is no surface, ImportError where trimesh or scikit-image is missing.
        """
        export.require_mesh_packages()
        volume = self.require_finite().volume
        if threshold is None:
            surface = carved_surface(volume, self.view, self.num_samples)
        else:
            surface = extract_surface(volume[0], threshold)
        if surface is None:
            level = f"a density of {threshold:g} is nowhere exceeded" if threshold is not None else "nothing is opaque"
            raise ObjectError(f"{self.name}: has no surface, {level} (the most is {volume[0].max():.3g})")
        return self._coloured(*surface)

    def _coloured(self, vertices: Any, faces: Any) -> trimesh.Trimesh:
        grey = export.triangle_mesh(vertices, faces, torch.ones(len(vertices), 3).numpy() / 2, self.origin)
        colours = surface_colours(self.volume, vertices, grey.vertex_normals)
        return export.triangle_mesh(vertices, faces, colours, {"name": self.name, **self.origin})

    def save(self, file: Path | str) -> Path:
        """Write what the suffix says (`SUFFIXES`); the file appears whole or not at all.

        Raises ObjectError for another suffix and for an object without a surface, OSError where it cannot be written.
        """
        file = Path(file)
        write_file(file, self.encoded(file.suffix.lower()))
        return file

    def encoded(self, suffix: str, mesh: trimesh.Trimesh | None = None) -> bytes:
        """The bytes of a file with that suffix. mesh: of this object, where it is there already."""
        if suffix not in SUFFIXES:
            known = list(SUFFIXES)
            hint = f"{nearest(suffix, known)}, expected one of {', '.join(known)}"
            raise ObjectError(f"{self.name}: there are no files {suffix!r}{hint}")
        if suffix == ".npz":
            return export.npz(self.volume, {"name": self.name, **self.origin})
        if suffix == ".webp":
            return export.webp(self.turntable())
        if suffix == ".png":
            return export.png(self.still())
        mesh = self.mesh() if mesh is None else mesh
        return {".glb": export.glb, ".ply": export.ply, ".obj": export.obj}[suffix](mesh)

    def _repr_png_(self) -> bytes:
        """How a notebook shows it."""
        return export.png(self.still(96))


def _bytes(picture: Tensor) -> Tensor:
    return (255 * picture.clamp(0, 1)).round().to(torch.uint8).cpu()
