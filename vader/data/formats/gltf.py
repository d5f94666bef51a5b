"""Materials and textures of GLB files, which `vader.data.formats.models` puts on the geometry that trimesh reads.

trimesh keeps colour factors in 8 bits, passes over textures that it cannot decode and over extensions that it does not
know, so that a model may come out white, or as zeros. Here all of that is read from the file's own JSON, and what
cannot be read is an error. Source: glTF 2.0 specification, sections 3.9 (materials) and 4.4 (GLB).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..prepared import DataError
from .shared.scenes import inside
from .wavefront import MAX_TRIANGLES, Part, small_texture

UNREADABLE = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_mesh_quantization", "KHR_texture_basisu")
TRIANGLES, STRIP, FAN = 4, 5, 6


@dataclass(frozen=True, eq=False)
class Surface:
    """factor (4,): colour in linear light, and opacity; texture (h, w, 4) uint8 or None, as stored (sRGB)."""

    factor: np.ndarray
    texture: np.ndarray | None
    move: np.ndarray  # (3, 3) of texture coordinates (u, v, 1) with v down, as glTF has them
    mode: str  # OPAQUE, MASK or BLEND
    cutoff: float


class Glb:
    """A GLB file's JSON and binary chunk, checked. Raises DataError, beginning with `where`."""

    def __init__(self, file: Path, root: Path, where: str) -> None:
        self.file, self.root, self.where = file, root, where
        content = file.read_bytes()
        try:
            magic, version, _, length, kind = struct.unpack_from("<4sIII4s", content)
            if (magic, version, kind) != (b"glTF", 2, b"JSON") or 20 + length > len(content):
                raise DataError(f"{where}: not a whole GLB file of version 2, expected one")
            self.head: dict[str, Any] = json.loads(content[20 : 20 + length])
        except (struct.error, ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{where}: not a GLB file, expected a head and JSON in it ({error})") from error
        self.binary = content[20 + length + 8 :]
        self._check()

    def _check(self) -> None:
        used = {*self.head.get("extensionsUsed", []), *self.head.get("extensionsRequired", [])}
        if bad := sorted(used.intersection(UNREADABLE)):
            raise DataError(f"{self.where}: uses {bad[0]}, which is not read; expected a model without compression")
        for uri in [b["uri"] for b in self.head.get("buffers", []) if "uri" in b]:
            if not uri.startswith("data:"):
                raise DataError(f"{self.where}: a buffer is in {uri!r}, expected all of it in the GLB file")
        try:
            count = sum(self._triangles(p) for mesh in self.head.get("meshes", []) for p in mesh["primitives"])
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(f"{self.where}: a mesh is not as glTF has it ({error!r})") from error
        if count == 0:
            raise DataError(f"{self.where}: no triangles, expected a mesh with faces")
        if count > MAX_TRIANGLES:
            raise DataError(f"{self.where}: {count:,} triangles, expected at most {MAX_TRIANGLES:,}; simplify the mesh")

    def _triangles(self, primitive: dict[str, Any]) -> int:
        mode = primitive.get("mode", TRIANGLES)
        index = primitive.get("indices", primitive["attributes"]["POSITION"])
        count = self.head["accessors"][index]["count"]
        return {TRIANGLES: count // 3, STRIP: count - 2, FAN: count - 2}.get(mode, 0)

    def plain(self) -> bytes:
        """The file with its materials' names replaced by their numbers, one material for each primitive, and without
        pictures: what trimesh shall read."""
        head = json.loads(json.dumps(self.head))
        materials = head.setdefault("materials", [])
        spare = len(materials)
        for mesh in head["meshes"]:
            for primitive in mesh["primitives"]:
                primitive.setdefault("material", spare)
        head["materials"] = [{"name": str(i)} for i in range(spare + 1)]
        for name in ("images", "textures", "samplers", "animations"):
            head.pop(name, None)
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 4)
        binary = self.binary + b"\0" * (-len(self.binary) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        if binary:
            chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    def surface(self, name: str) -> tuple[Surface, str | None]:
        """The material of that number, and the name of its picture if that is not there."""
        number = int(name)
        materials = self.head.get("materials", [])
        material = materials[number] if number < len(materials) else {}
        try:
            return self._surface(material, f"{self.where}: material {material.get('name', number)!r}")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise DataError(f"{self.where}: material {number} is not as glTF has it ({error!r})") from error

    def _surface(self, material: dict[str, Any], what: str) -> tuple[Surface, str | None]:
        old = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
        kind = old if old is not None else material.get("pbrMetallicRoughness", {})
        colour, picture = (
            ("diffuseFactor", "diffuseTexture") if old is not None else ("baseColorFactor", "baseColorTexture")
        )
        factor = np.array(kind.get(colour, [1, 1, 1, 1]), dtype=float)
        if factor.shape != (4,) or not np.isfinite(factor).all():
            raise DataError(f"{what}: {colour} is {factor.tolist()}, expected 4 finite numbers")
        texture, missing, move = None, None, np.eye(3)
        if picture in kind:
            information = kind[picture]
            moved = information.get("extensions", {}).get("KHR_texture_transform", {})
            if moved.get("texCoord", information.get("texCoord", 0)) != 0:
                raise DataError(f"{what}: {picture} uses a second set of texture coordinates, expected TEXCOORD_0")
            texture, missing = self._texture(information["index"], f"{what}: {picture}")
            move = _move(moved)
        mode = material.get("alphaMode", "OPAQUE")
        return Surface(factor.clip(0, 1), texture, move, mode, float(material.get("alphaCutoff", 0.5))), missing

    def _texture(self, index: int, what: str) -> tuple[np.ndarray | None, str | None]:
        texture = self.head["textures"][index]
        source = texture.get("extensions", {}).get("EXT_texture_webp", {}).get("source", texture.get("source"))
        if source is None:
            return None, f"texture {index}"
        image = self.head["images"][source]
        if "bufferView" in image:
            view = self.head["bufferViews"][image["bufferView"]]
            start = view.get("byteOffset", 0)
            data = self.binary[start : start + view["byteLength"]]
        elif image["uri"].startswith("data:"):
            try:
                data = base64.b64decode(image["uri"].partition(",")[2], validate=True)
            except binascii.Error as error:
                raise DataError(f"{what}: its data are not base64 ({error})") from error
        else:
            file = inside(self.root, self.file.parent, image["uri"], what)
            if not file.is_file():
                return None, image["uri"]
            data = file.read_bytes()
        return np.asarray(small_texture(data, what)), None


def _move(transform: dict[str, Any]) -> np.ndarray:
    """KHR_texture_transform: translation, rotation and scale of (u, v, 1)."""
    (u, v), (a, b), turn = transform.get("offset", (0, 0)), transform.get("scale", (1, 1)), transform.get("rotation", 0)
    cosine, sine = math.cos(turn), math.sin(turn)
    rotation = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    return np.array([[1, 0, u], [0, 1, v], [0, 0, 1.0]]) @ rotation @ np.diag([a, b, 1.0])


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light [0, 1] to sRGB [0, 1], IEC 61966-2-1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def write_glb(file: Path, parts: list[Part]) -> None:
    """A model as a GLB file, by trimesh: colours and textures of its parts, opacity where it is not 1. Colours keep
    8 bits of linear light."""
    import trimesh
    from PIL import Image

    scene = trimesh.Scene()
    for number, part in enumerate(parts):
        mesh = trimesh.Trimesh(part.vertices, part.faces, process=False)
        if part.texture is None and part.colours is not None:
            colours = np.round(255 * to_linear(part.colours)).astype(np.uint8)
            mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colours)
        else:
            plain = part.texture is None
            factor = np.append(to_linear(np.asarray(part.colour)) if plain else np.ones(3), part.opacity)
            clear = part.opacity < 1 or (not plain and part.texture.shape[-1] == 4)
            material = trimesh.visual.material.PBRMaterial(
                name=part.material,
                baseColorFactor=np.round(255 * factor).astype(np.uint8),
                baseColorTexture=None if plain else Image.fromarray(part.texture),
                alphaMode="BLEND" if clear else "OPAQUE",
            )
            uv = np.zeros((len(part.vertices), 2)) if part.uv is None else part.uv
            mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
        scene.add_geometry(mesh, geom_name=f"{number:03d}")
    scene.export(file)
