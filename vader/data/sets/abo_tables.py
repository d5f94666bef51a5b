"""ABO Tables: the tables of Amazon Berkeley Objects, as published, or as they are handed round in the SRN layout.

Data card: `data_cards/abo_tables.md`. An object is one table under one of its lightings, `<item id>_<lighting>`, as the
paper counts them (1,676 x 91). As published (`vader.data.formats.abo`), listings say which items are tables and what
they are called, `train_test_split.csv` which are held out, and `3dmodels.csv.gz` how large they are. In the SRN layout
folders say what is held out. Without either, a hash of the item does, so that its lightings stay together.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..formats import Options, Scene, abo, scan, srn
from ..formats.shared.scenes import require_folder
from ..prepared import DataError
from ..reading.objects import Found, Sieve

NAME = "abo_tables"
READER_VERSION = 1  # raised whenever the code between the files and their pictures changes them
PRODUCT_TYPE = "table"
STATED = {"objects": 1_676, "views": 91}  # Sec. 4.1
LICENCE = "CC BY 4.0"  # older copies: CC BY-NC 4.0
BOX = "in the middle of the box, whose diagonal becomes 2 (3dmodels.csv.gz)"
HULL = "by the visual hull of the masks, as nobody says how large the object is"


def find(source: Path) -> Found:
    """The tables of a folder. Raises DataError where there are none, or where nothing says which items are tables."""
    require_folder(source)
    if abo.find(source):
        return _published(source)
    if srn.find(source):
        return _as_srn(source)
    raise DataError(f"{source}: data set {NAME}: no objects, expected {abo.SIGNS}; or {srn.SIGNS}")


def item_of(scene: Scene) -> str:
    """The table itself, whatever the lighting."""
    return scene.key.rpartition("_")[0] or scene.key


def _published(source: Path) -> Found:
    listed = abo.listings(source)
    if not listed:
        raise DataError(
            f"{source}: data set {NAME}: listings/metadata/listings_*.json.gz are missing in it and beside it, "
            "expected them: they say which items are tables"
        )
    rendered = scan(source, "abo")
    scenes = [_described(s, listed) for s in rendered if _is_table(s, listed)]
    if not scenes:
        raise DataError(
            f"{source}: data set {NAME}: none of the {len(rendered)} rendered objects is of product_type "
            f"{PRODUCT_TYPE!r} in the listings, expected some"
        )
    placed = sum(scene.placing.scale is not None for scene in scenes)
    rules = {
        "tables": f"product_type is {PRODUCT_TYPE!r} in the listings, and there are renders",
        "split": "train_test_split.csv" if abo.has_splits(source) else "by a hash of the item",
        "placing": BOX if placed == len(scenes) else HULL if not placed else f"{placed} objects {BOX}, others {HULL}",
    }
    sieve = Sieve(len(scenes), rules, notes={"other_products": len(rendered) - len(scenes)}, stated=STATED)
    identity = {"reader": NAME, "version": READER_VERSION, "layout": "abo", "placing": rules["placing"]}
    return Found("set", source, scenes, Options(), identity, sieve, files=files_of_table, group=item_of)


def _is_table(scene: Scene, listed: dict[str, dict[str, str | None]]) -> bool:
    return listed.get(scene.attributes["item_id"], {}).get("product_type") == PRODUCT_TYPE


def _described(scene: Scene, listed: dict[str, dict[str, str | None]]) -> Scene:
    attributes = scene.attributes | {"category": PRODUCT_TYPE, "licence": LICENCE}
    caption = listed[scene.attributes["item_id"]]["caption"]
    return dataclasses.replace(scene, caption=caption, attributes=attributes)


def files_of_table(scene: Scene) -> list[Path]:
    """Those of one lighting, and what it shares with others."""
    folders = (Path(scene.files["render"]), scene.place / "segmentation")
    pictures = sorted(f for folder in folders if folder.is_dir() for f in folder.iterdir() if f.is_file())
    return [scene.place / "metadata.json", *pictures]


def _as_srn(source: Path) -> Found:
    scenes = [
        dataclasses.replace(s, attributes=s.attributes | {"category": PRODUCT_TYPE, "licence": LICENCE})
        for s in scan(source, "srn")
    ]
    told = any(scene.split == "test" for scene in scenes)
    rules = {
        "tables": "all objects of the folder",
        "split": "the folders' names" if told else "by a hash of the item",
        "placing": HULL,
    }
    identity = {"reader": NAME, "version": READER_VERSION, "layout": "srn"}
    sieve = Sieve(len(scenes), rules, stated=STATED)
    options = Options(background="white")
    return Found("set", source, scenes, options, identity, sieve, group=item_of)
