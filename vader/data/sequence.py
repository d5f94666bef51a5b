"""One type for multi-view data sets, `Sequence`: an object seen by cameras, and its files on disk.

In a prepared set (`vader.data.prepared`) an object is a folder

    object.json        split, caption, attributes
    cameras.json       world_to_camera and intrinsics of each view, image height and width
    images/000.png ... RGB, the object composited on black
    masks/000.png ...  coverage of the object, 0 to 255
    mesh.ply           reference mesh in canonical coordinates, where there is one

and in a packed one (`vader.data.packed`), which is small enough to travel with the code and has the SHA-256 of
each file in its manifest,

    object.json        as above
    cameras.xz         world_to_camera and intrinsics of each view, and the size of the images
    views.webp         images and masks
    mesh.xz            the triangles of the reference mesh, where there is one

All errors are `DataError`s that name file, object, field and expectation.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..rendering.cameras import CameraError, Cameras, sample_orbit
from ..settings.experiment import DataConfig
from .packed import read_arrays, read_mesh, read_sheet, write_arrays, write_mesh, write_sheet
from .prepared import (
    FACTS,
    DataError,
    Kind,
    SequenceSet,
    check_identity,
    facts,
    load_prepared,
    mean_levels,
    new_folder,
    pixel_checksum,
    read_image,
    read_json,
    write_json,
    write_pictures,
)

CAMERA_FIELDS = ("world_to_camera", "intrinsics")


@dataclass(frozen=True, eq=False)
class Sequence:
    """One object as `v` views see it. Images are uint8 and as composited on black, masks are antialiased coverage."""

    key: str
    images: Tensor  # (v, h, w, 3) uint8
    masks: Tensor  # (v, h, w) uint8, 255 = foreground
    cameras: Cameras
    split: str = "train"  # "train" | "test" (held-out object)
    caption: str | None = None
    mesh: Path | None = None  # in canonical coordinates, see `surface`
    attributes: dict[str, Any] = field(default_factory=dict)  # JSON values: creator, licence, factors, ...

    def __len__(self) -> int:
        return self.images.shape[0]

    def colours(self, views=None) -> Tensor:
        """Images as float in [0, 1], (n, h, w, 3), of all views or of an index, slice, list or tensor of views."""
        return self._chosen(self.images, views)

    def alphas(self, views=None) -> Tensor:
        """Masks as float in [0, 1], (n, h, w)."""
        return self._chosen(self.masks, views)

    @staticmethod
    def _chosen(values: Tensor, views) -> Tensor:
        views = slice(None) if views is None else [views] if isinstance(views, int) else views
        return values[views].float() / 255

    def validate(self, source: Path | str | None = None) -> Sequence:
        """Return self, or raise `DataError` naming `source` (the folder it came from), the object and the field."""
        name = f"object {self.key!r}" if source is None else f"{source}: object {self.key!r}"
        check_identity(name, self.key, self.split)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            got = f"{tuple(self.images.shape)} {self.images.dtype}"
            raise DataError(f"{name}: images are {got}, expected (v, h, w, 3) torch.uint8")
        if len(self) == 0:
            raise DataError(f"{name}: images hold no views, expected at least one")
        if self.masks.dtype != torch.uint8 or self.masks.shape != self.images.shape[:3]:
            got = f"{tuple(self.masks.shape)} {self.masks.dtype}"
            raise DataError(
                f"{name}: masks are {got}, expected {tuple(self.images.shape[:3])} torch.uint8 as the images"
            )
        if len(self.cameras) != len(self):
            raise DataError(f"{name}: cameras are {len(self.cameras)}, expected one for each of {len(self)} images")
        if (self.cameras.height, self.cameras.width) != tuple(self.images.shape[1:3]):
            h, w = self.images.shape[1:3]
            raise DataError(
                f"{name}: images are {w}x{h} pixels, expected the cameras' {self.cameras.width}x{self.cameras.height}"
            )
        try:
            self.cameras.validate(f"{name}: cameras")
        except CameraError as error:
            raise DataError(str(error)) from error
        return self

    def surface(self) -> tuple[np.ndarray, np.ndarray]:
        """Vertices (n, 3) and triangles (f, 3) of the reference mesh, in canonical coordinates.

        Raises DataError where there is none or its file cannot be read, and ImportError where trimesh is needed and
        not there.
        """
        if self.mesh is None:
            raise DataError(f"object {self.key!r} has no mesh")
        return _mesh_arrays(self)[:2]

    def pixel_checksum(self) -> str:
        """SHA-256 of images and masks."""
        return pixel_checksum(self.images, self.masks)

    def mean_levels(self) -> list[float]:
        """Mean r, g, b and mask levels, 0 to 255."""
        return mean_levels(self.images, self.masks)


def object_cameras(config: DataConfig, key: str) -> Cameras:
    """The cameras of an object, train_views and then heldout_views of them: a function of (config.seed, key)."""
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}/{key}".encode()).digest()[:7], "big")
    views = config.train_views + config.heldout_views
    return sample_orbit(views, config, torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- one object on disk


def save_sequence(sequence: Sequence, folder: Path, mesh=None) -> None:
    """Write one object to a new `folder`, which appears complete or not at all.

    mesh: a trimesh.Trimesh to store as mesh.ply; otherwise that of `sequence.mesh` is copied, if any.
    Raises DataError where the sequence is invalid or the folder cannot be written.
    """
    sequence.validate()
    with new_folder(folder, sequence.key) as partial:
        write_pictures(partial / "images", sequence.images)
        write_pictures(partial / "masks", sequence.masks)
        cameras = sequence.cameras
        write_json(
            partial / "cameras.json",
            {
                "height": cameras.height,
                "width": cameras.width,
                "world_to_camera": cameras.world_to_camera.tolist(),
                "intrinsics": cameras.intrinsics.tolist(),
            },
            indent=None,
        )
        if mesh is not None:
            mesh.export(partial / "mesh.ply")
        elif sequence.mesh is not None and sequence.mesh.suffix == ".ply":
            shutil.copyfile(sequence.mesh, partial / "mesh.ply")
        elif sequence.mesh is not None:
            vertices, faces, colours = _mesh_arrays(sequence)
            _trimesh().Trimesh(vertices, faces, vertex_colors=colours, process=False).export(partial / "mesh.ply")
        write_json(partial / "object.json", facts(sequence))


def load_sequence(folder: Path) -> Sequence:
    """Read one object back, validated. Raises DataError naming the file, object and field at fault."""
    key = folder.name
    stored = read_json(folder / "object.json", key, FACTS)
    cameras = read_json(folder / "cameras.json", key, ("height", "width", *CAMERA_FIELDS))
    try:
        matrices = [torch.tensor(cameras[k], dtype=torch.float32) for k in CAMERA_FIELDS]
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder / 'cameras.json'}: object {key!r}: expected lists of matrices ({error})") from error
    views = _cameras(folder / "cameras.json", key, *matrices, cameras["height"], cameras["width"])
    for name in ("images", "masks"):
        count = len(list((folder / name).glob("*.png")))
        if count == 0:
            raise DataError(f"{folder / name}: object {key!r} has no views there, expected {len(views)} PNG files")
        if count > len(views):
            raise DataError(f"{folder / name}: object {key!r}: {count} files, expected one per camera ({len(views)})")
    size = (views.height, views.width)
    images, masks = (
        [
            read_image(folder / f"{what}s" / f"{v:03d}.png", key, f"view {v}: {what}", mode, size, "camera")
            for v in range(len(views))
        ]
        for what, mode in (("image", "RGB"), ("mask", "L"))
    )
    return Sequence(
        key=stored["key"],
        images=torch.from_numpy(np.stack(images)),
        masks=torch.from_numpy(np.stack(masks)),
        cameras=views,
        split=stored["split"],
        caption=stored["caption"],
        mesh=folder / "mesh.ply" if (folder / "mesh.ply").is_file() else None,
        attributes=stored["attributes"],
    ).validate(folder)


def _cameras(file: Path, key: str, world_to_camera: Tensor, intrinsics: Tensor, height: int, width: int) -> Cameras:
    """Those that were read from a file. Raises DataError where there are none."""
    for name, values in zip(CAMERA_FIELDS, (world_to_camera, intrinsics), strict=True):
        if values.numel() == 0:
            raise DataError(f"{file}: object {key!r}: {name} has no views, expected at least one")
        if values.ndim != 3:
            raise DataError(f"{file}: object {key!r}: {name} has shape {tuple(values.shape)}, expected matrices")
    return Cameras(world_to_camera, intrinsics, height, width)


# ---------------------------------------------------------------------------------------- one packed object


def save_packed(sequence: Sequence, folder: Path, mesh=None) -> None:
    """`save_sequence`, packed: the triangles of the mesh are kept, in their order, but not the vertices' numbers."""
    cameras = sequence.validate().cameras
    with new_folder(folder, sequence.key) as partial:
        write_sheet(partial / "views.webp", torch.cat([sequence.images, sequence.masks[..., None]], dim=-1).numpy())
        matrices = {name: getattr(cameras, name).numpy() for name in CAMERA_FIELDS}
        write_arrays(partial / "cameras.xz", {**matrices, "size": np.array([cameras.height, cameras.width], np.int32)})
        if mesh is not None:
            write_mesh(partial / "mesh.xz", mesh.vertices, mesh.faces, mesh.visual.vertex_colors)
        elif sequence.mesh is not None:
            write_mesh(partial / "mesh.xz", *_mesh_arrays(sequence))
        write_json(partial / "object.json", facts(sequence))


def load_packed(folder: Path) -> Sequence:
    """Read one packed object back, validated. Raises DataError naming the file, object and field at fault."""
    key = folder.name
    stored = read_json(folder / "object.json", key, FACTS)
    file, mesh = folder / "cameras.xz", folder / "mesh.xz"
    world_to_camera, intrinsics, size = read_arrays(file, key, (*CAMERA_FIELDS, "size"))
    if size.shape != (2,):
        raise DataError(f"{file}: object {key!r}: size has shape {size.shape}, expected height and width")
    views = _cameras(file, key, torch.from_numpy(world_to_camera), torch.from_numpy(intrinsics), *size.tolist())
    pixels = read_sheet(folder / "views.webp", key, len(views), (views.height, views.width))
    return Sequence(
        key=stored["key"],
        images=torch.from_numpy(np.ascontiguousarray(pixels[..., :3])),
        masks=torch.from_numpy(np.ascontiguousarray(pixels[..., 3])),
        cameras=views,
        split=stored["split"],
        caption=stored["caption"],
        mesh=mesh if mesh.is_file() else None,
        attributes=stored["attributes"],
    ).validate(folder)


def _mesh_arrays(sequence: Sequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, triangles and colours of its mesh."""
    if sequence.mesh.suffix == ".xz":
        return read_mesh(sequence.mesh, sequence.key)
    mesh = _trimesh().load(sequence.mesh, process=False)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces), np.asarray(mesh.visual.vertex_colors)


def _trimesh():
    try:
        import trimesh
    except ModuleNotFoundError as error:
        raise ImportError("reference meshes need trimesh: pip install 'vader[data]'") from error
    return trimesh


# ---------------------------------------------------------------------------------------- sets


def _departure(sequence: Sequence, config: DataConfig) -> str | None:
    """How an object departs from its set's settings."""
    views, resolution = config.train_views + config.heldout_views, config.resolution
    if len(sequence) != views:
        return f"has {len(sequence)} views, expected the {views}"
    if sequence.images.shape[1:3] != (resolution, resolution):
        return f"images are not {resolution}x{resolution} pixels"
    return None


SEQUENCES = Kind("sequences", save_sequence, load_sequence, _departure)
PACKED = Kind("packed sequences", save_packed, load_packed, _departure, sealed=True)


def load_set(folder: Path) -> SequenceSet[Sequence]:
    """Load a complete set of Sequences, packed or not. Raises DataError naming what is missing, broken or altered."""
    return load_prepared(folder, SEQUENCES, PACKED)
