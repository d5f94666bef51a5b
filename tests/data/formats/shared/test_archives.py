"""Archives: unpacked for a while, and never to anywhere else."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from vader.data.formats.shared.archives import is_archive, unpacked
from vader.data.prepared import DataError


def tar(file: Path, members, mode="w") -> Path:
    """members: name -> content, or a TarInfo to add as it is."""
    with tarfile.open(file, mode) as archive:
        for name, content in members:
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info = tarfile.TarInfo(name)
                info.type, info.linkname = content
                archive.addfile(info)
    return file


def zipped(file: Path, members) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            if isinstance(content, bytes):
                archive.writestr(info, content)
            else:
                info.external_attr = (0o120777) << 16
                archive.writestr(info, "/etc/passwd")
    return file


GOOD = [("a/rgb/0.png", b"picture"), ("a/pose/0.txt", b"1 2 3")]


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tgz", "s.tar.xz", "s.zip"])
def test_content_is_there_for_a_while(tmp_path, name):
    mode = {"r": "w", "z": "w:gz", "x": "w:xz"}["z" if name.endswith("gz") else "x" if name.endswith("xz") else "r"]
    file = zipped(tmp_path / name, GOOD) if name.endswith("zip") else tar(tmp_path / name, GOOD, mode)
    (tmp_path / "work").mkdir()
    assert is_archive(file) and not is_archive(tmp_path)
    with unpacked(file, tmp_path / "work") as folder:
        found = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        assert found == dict(GOOD) and folder.parent == tmp_path / "work"
    assert list((tmp_path / "work").iterdir()) == []


LINK, HARD, DEVICE = (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "a/rgb/0.png"), (tarfile.CHRTYPE, "")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("../evil.txt", b"x"), "'../evil.txt' leads out of the archive"),
        (("a/../../evil.txt", b"x"), "leads out of the archive"),
        (("..\\evil.txt", b"x"), "leads out of the archive"),
        (("/tmp/evil.txt", b"x"), "'/tmp/evil.txt' leads out of the archive"),
        (("C:/evil.txt", b"x"), "leads out of the archive"),
        (("a/link", LINK), "'a/link' is a link, expected files and folders only"),
        (("a/hard", HARD), "'a/hard' is a link"),
        (("a/null", DEVICE), "'a/null' is a device"),
        (("a/pose/0.txt", b"again"), "'0.txt' is there twice"),
    ],
)
def test_what_leads_out_is_refused_and_nothing_is_left(tmp_path, member, message):
    (tmp_path / "work").mkdir()
    files = [tar(tmp_path / "s.tar", [*GOOD, member])]
    if isinstance(member[1], bytes) or member[1] is LINK:
        files.append(zipped(tmp_path / "s.zip", [*GOOD, member]))
    for file in files:
        with pytest.raises(DataError, match=f"{file.name}: member .*{message}"), unpacked(file, tmp_path / "work"):
            pass
    assert list((tmp_path / "work").iterdir()) == [] and not (tmp_path / "evil.txt").exists()


def test_broken_and_large_archives_are_named(tmp_path):
    content = tar(tmp_path / "s.tar.gz", [("a", bytes(range(256)) * 999)], "w:gz").read_bytes()
    (tmp_path / "s.tar.gz").write_bytes(content[: len(content) // 2])
    (tmp_path / "t.zip").write_bytes(b"nothing")
    for file in ("s.tar.gz", "t.zip"):
        with pytest.raises(DataError, match=f"{file}: cannot be unpacked"), unpacked(tmp_path / file):
            pass
    with pytest.raises(DataError, match="gone.zip: no such file"), unpacked(tmp_path / "gone.zip"):
        pass
    bomb = zipped(tmp_path / "b.zip", [("zeros", bytes(10**7))])
    with pytest.raises(DataError, match="b.zip: 10,000,000 bytes unpacked, expected at most 1,000,000"):
        with unpacked(bomb, max_bytes=10**6):
            pass
    with pytest.raises(DataError, match="cannot be unpacked in"), unpacked(bomb, tmp_path / "gone"):
        pass


def test_an_error_of_the_reader_is_not_one_of_the_archive(tmp_path):
    file = tar(tmp_path / "s.tar", GOOD)
    with pytest.raises(RuntimeError, match="mine"), unpacked(file):
        raise RuntimeError("mine")
