"""Objects as files that other programs open: meshes (GLB, PLY, OBJ), volumes (NPZ), pictures (PNG, animated WebP).

Every function here returns the bytes of a file. Meshes keep the axes of the cube [-1, 1]^3, which are glTF's as well:
right-handed, y up, front towards +z. Their colours are the volume's, in which the light is already painted.
"""

from __future__ import annotations

import importlib.util
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    import trimesh

FRAME_MILLISECONDS = 80  # of an animated WebP
VOLUME_UNITS = (
    "volume: density per unit length, then red, green and blue in [0, 1], on voxel centres that fill the cube "
    "[-1, 1]^3 from face to face; index (channel, z, y, x), each axis rising; y is up, +z the front"
)


def require_mesh_packages() -> None:
    """Raise ImportError, with the way to get it, unless what meshes are made with is installed."""
    for module, package in (("trimesh", "trimesh"), ("skimage", "scikit-image")):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"meshes need {package}: pip install 'vader[data,eval]'")


def triangle_mesh(vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray, facts: dict[str, Any]) -> Any:
    """A `trimesh.Trimesh` with vertex colours (v, 3) in [0, 1]; facts become its metadata."""
    import trimesh

    rgb = (255 * colours).round().astype(np.uint8)
    return trimesh.Trimesh(vertices, faces, vertex_colors=rgb, metadata=facts, process=False)


def simplified(vertices: np.ndarray, faces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A surface with about `count` triangles at most, by quadric errors (Garland & Heckbert 1997), VTK's.

    Raises ImportError where PyVista is missing.
    """
    if len(faces) <= count:
        return vertices, faces
    try:
        import pyvista
    except ImportError as error:
        raise ImportError("simplified meshes need pyvista: pip install 'vader[data]'") from error
    mesh = pyvista.PolyData.from_regular_faces(vertices, faces).decimate(1 - count / len(faces)).clean()
    return np.asarray(mesh.points, np.float32), np.asarray(mesh.regular_faces, np.int64)


def glb(mesh: trimesh.Trimesh) -> bytes:
    """Binary glTF 2.0 with normals, and colours as glTF wants them: linear, not as a screen shows them.

    The material is unlit (KHR_materials_unlit), so that a viewer adds no light to that which is painted in; one that
    does not know the extension sees a rough dielectric.
    """
    import trimesh

    bare = trimesh.Trimesh(mesh.vertices, mesh.faces, metadata=mesh.metadata, process=False)
    linear = _linear(np.asarray(mesh.visual.vertex_colors[:, :3]) / 255)
    opaque = np.ones((len(linear), 1))
    bare.vertex_attributes["_COLOUR"] = (65535 * np.concatenate([linear, opaque], 1)).round().astype(np.uint16)

    def finish(tree: dict[str, Any]) -> None:
        """trimesh writes colours of 8 bits, too few for linear ones: name the attribute of 16 bits what it is."""
        primitive = tree["meshes"][0]["primitives"][0]
        colour = primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop("_COLOUR")
        tree["accessors"][colour]["normalized"] = True
        primitive["material"] = 0
        rough = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
        tree["materials"] = [{"pbrMetallicRoughness": rough, "extensions": {"KHR_materials_unlit": {}}}]
        tree["extensionsUsed"] = ["KHR_materials_unlit"]
        tree["asset"]["generator"] = "vader"
        for accessor in primitive["attributes"].values():
            tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = 34962  # ARRAY_BUFFER
        indices = tree["accessors"][primitive["indices"]]
        tree["bufferViews"][indices["bufferView"]]["target"] = 34963  # ELEMENT_ARRAY_BUFFER

    return trimesh.exchange.gltf.export_glb(bare.scene(), include_normals=True, tree_postprocessor=finish)


def _linear(display: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1], as pictures have them, as linear light."""
    return np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)


def ply(mesh: trimesh.Trimesh) -> bytes:
    """Binary PLY with vertex colours and normals."""
    return mesh.export(file_type="ply", vertex_normal=True)


def obj(mesh: trimesh.Trimesh) -> bytes:
    """Wavefront OBJ whose `v` lines carry colours behind the coordinates, as MeshLab and Blender read them."""
    return mesh.export(file_type="obj", include_normals=True, include_color=True, include_texture=False).encode()


def npz(volume: Tensor, facts: dict[str, Any]) -> bytes:
    """NumPy's archive of a volume (4, S, S, S): `volume` float32, `units` (`VOLUME_UNITS`), and `origin`, JSON."""
    file = io.BytesIO()
    values = volume.detach().cpu().float().contiguous().numpy()
    np.savez_compressed(file, volume=values, units=VOLUME_UNITS, origin=json.dumps(facts, ensure_ascii=False))
    return file.getvalue()


def png(picture: Tensor) -> bytes:
    """A picture (h, w, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "PNG")
    return file.getvalue()


def webp(frames: Tensor) -> bytes:
    """Frames (n, h, w, 3) uint8 as an animation that repeats for ever."""
    file, pictures = io.BytesIO(), [Image.fromarray(frame) for frame in frames.numpy()]
    options = dict(duration=FRAME_MILLISECONDS, loop=0, quality=90, method=4)
    pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], **options)
    return file.getvalue()
