"""Furniture catalogues made up for tests."""

from __future__ import annotations

import zipfile

import pytest

# Half a metre of box, its faces named by the side they look to; unit OBJ coordinates.
BOX = """mtllib box.mtl
v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
usemtl front
f 5 6 7 8
usemtl rest
f 2 1 4 3
f 6 2 3 7
f 1 5 8 4
f 8 7 3 4
f 1 2 6 5
"""
BOX_MATERIALS = "newmtl front\nKd 0.9 0.2 0.1\nnewmtl rest\nKd 0.3 0.4 0.8\n"


@pytest.fixture
def write_catalogue(tmp_path):
    """write_catalogue([{id, name, ...}, ...], file="a.sh3f", files={}) -> path of a catalogue; each model is a box.

    Fields of an entry override the defaults and None removes one; files adds members or, with None, removes them.
    """

    def write(entries, file="made-up.sh3f", files=None, catalogue_id="Made#Up", version="1.0"):
        lines = [f"id={catalogue_id}", f"version={version}", "license=Creative Commons Attribution 3.0"]
        members = {}
        for number, entry in enumerate(entries, 1):
            short = entry["id"].partition("#")[2] or entry["id"]
            fields = {
                "category": "Living room", "tags": "", "creator": f"maker of {short}",
                "model": f"/made/{short}/box.obj", "width": "50", "depth": "40", "height": "80",
            } | entry  # fmt: skip
            lines += [f"{key}#{number}={value}" for key, value in fields.items() if value is not None]
            members |= {f"made/{short}/box.obj": BOX, f"made/{short}/box.mtl": BOX_MATERIALS}
        members |= {"PluginFurnitureCatalog.properties": "\n".join(lines)} | (files or {})
        path = tmp_path / file
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                if content is not None:
                    archive.writestr(name, content)
        return path

    return write
