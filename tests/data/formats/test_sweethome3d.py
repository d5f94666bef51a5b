"""Catalogues: where they are found, what they say, and every way in which one can be broken."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

from vader.data.formats import sweethome3d as furniture_catalogue
from vader.data.formats.sweethome3d import CatalogueNotFound, find_catalogues, parse_properties, read_catalogues
from vader.data.prepared import DataError

CHAIR = {"id": "Made#chair", "name": "Chair"}


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("VADER_FURNITURE", raising=False)
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(furniture_catalogue, "INSTALLED", tmp_path / "nowhere")


def debian_package(path, files: dict[str, bytes], compression="xz"):
    """An ar archive with control.tar and data.tar members, as dpkg-deb writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./usr/share/sweethome3d/furniture/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with path.open("wb") as out:
        out.write(b"!<arch>\n")
        members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar.{compression}": buffer.getvalue()}
        for name, content in members.items():
            out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
            out.write(content + b"\n" * (len(content) % 2))
    return path


def test_properties_follow_java():
    text = "\n".join(
        [
            "# a comment",
            "  ! another",
            "",
            "plain=value",
            "  spaced : a = b ",
            "blank value with blanks",
            "name#7=Bill 10\\u20ac",
            "long=one \\",
            "     two",
            "key\\ with\\=signs=x\\ty\\\\",
            "empty=",
        ]
    )
    assert parse_properties(text) == {
        "plain": "value", "spaced": "a = b", "blank": "value with blanks", "name#7": "Bill 10€", "long": "one two",
        "key with=signs": "x\ty\\", "empty": "",
    }  # fmt: skip


def test_an_entry_becomes_a_model(write_catalogue):
    rotation = "0 0 1 0 1 0 -1 0 0"
    file = write_catalogue([CHAIR | {"modelRotation": rotation}, {"id": "Made#sofa", "name": "Sofa"}])
    (catalogue,) = read_catalogues(file)
    assert (catalogue.id, catalogue.version, len(catalogue.entries)) == ("Made#Up", "1.0", 2)
    model = catalogue.model(catalogue.entries[0])
    assert (model.id, model.name, model.category) == ("Made#chair", "Chair", "Living room")
    assert model.creator == "maker of chair"
    assert model.licence == "Creative Commons Attribution 3.0" and model.member == "made/chair/box.obj"
    assert model.size == (50, 80, 40)  # width, height, depth are x, y, z
    np.testing.assert_array_equal(np.reshape(model.rotation, (3, 3)), [[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    assert catalogue.model(catalogue.entries[1]).rotation == (1, 0, 0, 0, 1, 0, 0, 0, 1)


def test_a_source_is_a_folder_a_file_a_package_or_a_variable(write_catalogue, tmp_path, monkeypatch):
    file = write_catalogue([CHAIR])
    assert find_catalogues(tmp_path) == find_catalogues(file) == find_catalogues(str(file)) == [file]
    monkeypatch.setenv("VADER_FURNITURE", str(tmp_path))
    assert find_catalogues() == [file]
    monkeypatch.delenv("VADER_FURNITURE")
    monkeypatch.setattr(furniture_catalogue, "INSTALLED", tmp_path)
    assert find_catalogues() == [file]
    for compression in ("xz", "gz"):
        package = debian_package(tmp_path / f"{compression}.deb", {"made-up.sh3f": file.read_bytes()}, compression)
        (unpacked,) = find_catalogues(package)
        assert unpacked.read_bytes() == file.read_bytes() and tmp_path / "data" in unpacked.parents
        unpacked.touch()
        assert find_catalogues(package) == [unpacked]  # not unpacked again
        assert not list((tmp_path / "data").glob(".*"))


@pytest.mark.parametrize(("source", "variable"), [(None, None), ("gone", None), (None, "gone"), ("empty", None)])
def test_missing_furniture_says_where_it_looked_and_how_to_get_it(tmp_path, monkeypatch, source, variable):
    (tmp_path / "empty").mkdir()
    if variable:
        monkeypatch.setenv("VADER_FURNITURE", str(tmp_path / variable))
    place = source or variable or "nowhere"
    with pytest.raises(CatalogueNotFound) as error:
        find_catalogues(source and tmp_path / source)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / place}: ")
    assert "apt-get install sweethome3d-furniture" in message and "apt-get download sweethome3d-furniture" in message
    assert "$VADER_FURNITURE" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", "not a Debian package, expected an ar archive with data.tar in it"),
        (b"!<arch>\n" + b"x" * 70, "not a Debian package"),
    ],
)
def test_a_broken_package_is_named(tmp_path, content, message):
    file = tmp_path / "a.deb"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{file}: {message}"):
        find_catalogues(file)


def test_a_package_with_a_damaged_payload_or_without_catalogues_is_named(tmp_path):
    file = debian_package(tmp_path / "a.deb", {"x.sh3f": b"content" * 100})
    data = bytearray(file.read_bytes())
    data[-60:-20] = b"\x00" * 40
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{file}: the package's data.tar cannot be read"):
        find_catalogues(file)
    file = debian_package(tmp_path / "b.deb", {"README": b"none here"})
    with pytest.raises(CatalogueNotFound, match=rf"^{file}: the package holds no furniture catalogue"):
        find_catalogues(file)


def test_a_package_that_cannot_be_unpacked_says_where(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VADER_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match=rf"^{tmp_path / 'file'}/.*cannot be unpacked there"):
        find_catalogues(debian_package(tmp_path / "a.deb", {"x.sh3f": b""}))


def test_broken_catalogues_are_named(write_catalogue, tmp_path):
    junk = tmp_path / "junk.sh3f"
    junk.write_bytes(b"PK no zip")
    with pytest.raises(DataError, match=rf"^{junk}: not a readable furniture catalogue, expected a zip archive"):
        read_catalogues(junk)
    file = write_catalogue([CHAIR], files={"PluginFurnitureCatalog.properties": None})
    with pytest.raises(DataError, match=rf"^{file}: the archive holds no PluginFurnitureCatalog.properties"):
        read_catalogues(file)
    file = write_catalogue([CHAIR | {"name": "x" * 500}])
    data = bytearray(file.read_bytes())
    start = data.index(b"PluginFurnitureCatalog.properties") + len("PluginFurnitureCatalog.properties")
    data[start : start + 8] = b"\xff" * 8
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{file}: PluginFurnitureCatalog.properties cannot be unpacked"):
        read_catalogues(file)
    file = write_catalogue([], files={"PluginFurnitureCatalog.properties": "name#3=Chair\n"})
    with pytest.raises(DataError, match=rf"^{file}: .*entry number 3 has no field 'id'"):
        read_catalogues(file)


def test_an_id_in_two_catalogues_is_refused(write_catalogue, tmp_path):
    first, second = write_catalogue([CHAIR], "a.sh3f"), write_catalogue([CHAIR], "b.sh3f")
    with pytest.raises(DataError, match=rf"^{second}: entry 'Made#chair' is in {first} as well"):
        read_catalogues(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": None}, "field 'width' is missing or empty"),
        ({"model": ""}, "field 'model' is missing or empty"),
        ({"depth": "wide"}, "field 'depth' is 'wide', expected 1 finite number"),
        ({"height": "inf"}, "field 'height' is 'inf', expected 1 finite number"),
        ({"height": "0"}, r"width, height and depth are \(50.0, 0.0, 40.0\), expected positive centimetres"),
        ({"modelRotation": "1 0 0"}, "field 'modelRotation' is '1 0 0', expected 9 finite number"),
        ({"modelRotation": "2 0 0 0 1 0 0 0 1"}, "expected a rotation matrix"),
        ({"modelRotation": "-1 0 0 0 1 0 0 0 1"}, "expected a rotation matrix"),  # a mirror
        ({"model": "/made/chair.dae"}, "field 'model' is 'made/chair.dae', expected a Wavefront .obj file"),
    ],
)
def test_broken_entries_are_named(write_catalogue, change, message):
    file = write_catalogue([CHAIR | change])
    (catalogue,) = read_catalogues(file)
    with pytest.raises(DataError, match=rf"^{file}: entry 'Made#chair': .*{message}"):
        catalogue.model(catalogue.entries[0])


def test_the_licence_of_a_models_own_folder_is_found(write_catalogue):
    page = "http://www.blendswap.com/blends/view/41615"
    file = write_catalogue(
        [CHAIR, {"id": "Made#stool", "name": "Stool"}],
        files={"made/chair/BLENDSWAP_LICENSE.txt": f'Released by x, see "{page}".', "LICENSE.TXT": "of all"},
    )
    (catalogue,) = read_catalogues(file)
    chair, stool = map(catalogue.model, catalogue.entries)
    assert catalogue.licence_file(chair) == ("made/chair/BLENDSWAP_LICENSE.txt", page)
    assert catalogue.licence_file(stool) == (None, None)
