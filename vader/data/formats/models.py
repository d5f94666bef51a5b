"""3D models (GLB, OBJ with MTL, PLY with colours), drawn under the light rig of `vader.data.meshes.render`.

OBJ files are read by `vader.data.formats.wavefront`; GLB and PLY geometry by trimesh, the materials of GLB by
`vader.data.formats.gltf`. A model keeps its proportions and is scaled into the cube; its world has y up unless
`placing.up` says otherwise. Its front is where +z is.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...settings.checks import require
from ..meshes.render import MeshRenderer, reference_mesh, to_canonical
from ..prepared import DataError
from ..sequence import Sequence
from .gltf import Glb, Surface, to_linear, to_srgb
from .shared.normalise import up_rotation
from .shared.scenes import Options, Places, Scene, folders, sampled
from .wavefront import MAX_TRIANGLES, FolderFiles, Part, named_files, read_obj

if TYPE_CHECKING:
    import trimesh

SUFFIXES = (".glb", ".obj", ".ply")
SIGNS = f"3D models ({', '.join(SUFFIXES)})"
UP = None  # models come out placed
COLOURED = 1e-3  # difference of colours that are not the same


def find(folder: Path) -> str | None:
    return next((f"{file} is a 3D model" for f in sampled(folder) for file in _models(f)), None)


def places(folder: Path) -> Places:
    """All models of a folder and below, keyed by path and name."""
    files = (file for f in folders(folder) for file in _models(f))
    return ((str(file.relative_to(folder).with_suffix("")), file, {}) for file in files)


def extra_files(scene: Scene) -> list[Path]:
    """Files beside a model that decide what it is: what an OBJ file names; pictures of a GLB file are mostly in it."""
    if scene.place.suffix.lower() != ".obj":
        return []
    files = FolderFiles(scene.root)
    return [f for name in named_files(files, scene.place.relative_to(scene.root).as_posix()) if (f := files.find(name))]


def _models(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())


def read(scene: Scene, options: Options) -> Sequence:
    return read_with_mesh(scene, options)[0]


def read_with_mesh(
    scene: Scene, options: Options, parts_of_it: tuple[list[Part], list[str]] | None = None
) -> tuple[Sequence, trimesh.Trimesh]:
    """The model as `options.cameras` see it, and its mesh with colours of vertices, in the cube.

    parts_of_it: what `read_parts` gave, where that was called before. Raises ConfigError without cameras, and DataError
    for a model that cannot be read or has no extent, no faces, coordinates that are not finite, or too many triangles.
    """
    require(options.cameras is not None, "3D models come without cameras: options.cameras is None, expected some")
    parts, missing = parts_of_it or read_parts(scene)
    cameras = options.cameras(scene.key)
    turn = up_rotation(options.placing.up or scene.placing.up or "y", cameras)
    corners = np.concatenate([p.vertices for p in parts]) @ turn.T
    parts = to_canonical(parts, turn, corners.max(0) - corners.min(0), np.ones(3), scene.where)
    with MeshRenderer(parts) as renderer:
        images, masks = renderer.render(cameras, options.supersampling)
    if masks.max() == 0:
        raise DataError(f"{scene.where}: nothing of the model is to be seen (all of it transparent?)")
    about: dict[str, Any] = {"format": scene.format, "triangles": sum(len(p.faces) for p in parts)}
    if missing:
        about["missing_textures"] = missing
    sequence = Sequence(
        scene.key, images, masks, cameras, scene.split, scene.caption, attributes=scene.attributes | about
    )
    return sequence.validate(scene.place), reference_mesh(parts)


def read_parts(scene: Scene) -> tuple[list[Part], list[str]]:
    """A model's parts as they are in its file, and the names of textures that are not there."""
    file, where = scene.place, scene.where
    kind = file.suffix.lower()
    if kind == ".obj":
        parts, missing = read_obj(FolderFiles(scene.root), file.relative_to(scene.root).as_posix(), where, opaque=False)
    else:
        parts, missing = (_read_glb if kind == ".glb" else _read_ply)(file, scene.root, where)
    parts = [p for p in parts if len(p.faces)]
    if not parts:
        raise DataError(f"{where}: no triangles, expected a mesh with faces")
    for part in parts:
        used = part.vertices[part.faces]
        if not np.isfinite(used).all():
            raise DataError(f"{where}: part {part.material!r} has coordinates that are NaN or infinite")
    return [_without_unused(p) for p in parts], missing


def is_coloured(parts: list[Part]) -> bool:
    """Whether a model has a texture, colours of vertices, or a material of another colour than white or default grey:
    what Objaverse is filtered by."""
    for part in parts:
        if part.texture is not None or (part.colours is not None and np.ptp(part.colours, axis=0).max() > COLOURED):
            return True
        colour = part.colour if part.colours is None else part.colours[0]
        if np.ptp(colour) > COLOURED:
            return True
    return len({tuple(np.round(p.colour, 3)) for p in parts}) > 1


def _without_unused(part: Part) -> Part:
    """Points that no face uses would count in the bounding box."""
    used, faces = np.unique(part.faces, return_inverse=True)
    if len(used) == len(part.vertices):
        return part
    uv, colours = (None if a is None else a[used] for a in (part.uv, part.colours))
    return Part(
        part.material, part.vertices[used], faces.reshape(-1, 3), part.colour, uv, part.texture, colours, part.opacity
    )


# ---------------------------------------------------------------------------------------- by trimesh


def _load(source: Any, kind: str, where: str) -> trimesh.Scene:
    try:
        import trimesh
    except ImportError as error:
        raise ImportError(
            "reading GLB and PLY models needs trimesh, which the extra 'data' installs: pip install 'vader[data]'"
        ) from error
    try:
        return trimesh.load_scene(source, file_type=kind, process=False)
    except Exception as error:  # whatever a broken file makes of the library
        raise DataError(f"{where}: cannot be read, expected a whole {kind.upper()} file ({error!r})") from error


def _read_glb(file: Path, root: Path, where: str) -> tuple[list[Part], list[str]]:
    try:
        glb = Glb(file, root, where)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error})") from error
    scene = _load(io.BytesIO(glb.plain()), "glb", where)
    parts, missing = [], set()
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        mesh = scene.geometry[name]
        if not hasattr(mesh, "faces") or not hasattr(mesh.visual, "material"):
            continue  # lines and points
        surface, gone = glb.surface(mesh.visual.material.name)
        missing |= {gone} - {None}
        vertices = mesh.vertices @ transform[:3, :3].T + transform[:3, 3]
        colours = mesh.visual.vertex_attributes.get("color")
        parts.append(_dressed(node, vertices, np.asarray(mesh.faces), mesh.visual.uv, colours, surface))
    return parts, sorted(missing)


def _dressed(name: str, vertices: np.ndarray, faces: np.ndarray, uv: Any, colours: Any, surface: Surface) -> Part:
    """A part with its material: factor times texture, or times the mean light of its vertices' colours."""
    opacity = float(surface.factor[3]) if surface.mode == "BLEND" else 1.0
    factor, own = surface.factor[:3], None
    if colours is not None:
        colours = np.asarray(colours)
        if np.issubdtype(colours.dtype, np.integer):
            colours = colours / np.iinfo(colours.dtype).max
        own = to_srgb((colours[:, :3] * factor).clip(0, 1))
    part = Part(name, np.asarray(vertices), faces, to_srgb(factor), colours=own, opacity=opacity)
    if surface.texture is None or uv is None:
        return part
    if colours is not None:
        factor = factor * colours[:, :3].mean(0)
    texture = surface.texture
    rgb = texture[..., :3]
    if not np.allclose(factor, 1):
        rgb = np.round(255 * to_srgb(to_linear(rgb / 255) * factor)).astype(np.uint8)
    if surface.mode == "MASK":
        alpha = np.where(texture[..., 3] * surface.factor[3] >= 255 * surface.cutoff, 255, 0).astype(np.uint8)
        rgb = np.dstack([rgb, alpha]) if alpha.min() == 0 else rgb
    elif surface.mode == "BLEND" and texture[..., 3].min() < 255:
        rgb = np.dstack([rgb, texture[..., 3]])
    uv = np.column_stack([uv[:, 0], 1 - uv[:, 1], np.ones(len(uv))]) @ surface.move.T  # v down, as glTF has it
    return Part(name, part.vertices, faces, part.colour, np.column_stack([uv[:, 0], 1 - uv[:, 1]]), rgb, None, opacity)


def _read_ply(file: Path, root: Path, where: str) -> tuple[list[Part], list[str]]:
    try:
        with open(file, "rb") as stream:
            head = stream.read(64_000).partition(b"end_header")[0].decode("ascii", "replace").split()
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error})") from error
    count = next((int(n) for a, b, n in zip(head, head[1:], head[2:], strict=False)
                  if (a, b) == ("element", "face") and n.isdecimal()), 0)  # fmt: skip
    if count == 0:
        raise DataError(f"{where}: no faces, expected a mesh and no cloud of points")
    if count > MAX_TRIANGLES:
        raise DataError(f"{where}: {count:,} triangles, expected at most {MAX_TRIANGLES:,}; simplify the mesh")
    parts, meshes = [], list(_load(str(file), "ply", where).geometry.values())
    read = sum(len(getattr(mesh, "faces", ())) for mesh in meshes)
    if read < count:  # the library keeps what it could read
        raise DataError(f"{where}: {read} of {count} faces are there, expected a whole PLY file")
    for mesh in meshes:
        faces, colours = np.asarray(mesh.faces), None
        vertices = np.asarray(mesh.vertices, dtype=np.float64)
        if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
            raise DataError(f"{where}: a face points outside of the {len(vertices)} vertices")
        if mesh.visual.kind == "vertex":
            colours = mesh.visual.vertex_colors[:, :3] / 255
        elif mesh.visual.kind == "face":
            vertices, colours = vertices[faces.ravel()], np.repeat(mesh.visual.face_colors[:, :3] / 255, 3, axis=0)
            faces = np.arange(3 * len(faces)).reshape(-1, 3)
        parts.append(Part(file.stem, vertices, faces, np.full(3, 0.7), colours=colours))
    return parts, []
