"""The gallery in a real browser, from a disk and with no network: every link leads somewhere, every object opens."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
import torch

from vader.rendering.render import render_views
from vader.report.gallery import GalleryError, Hall, Picture, Row, Work, read_record
from vader.report.gallery.contents import slug
from vader.report.gallery.pages import hall_files
from vader.report.gallery.pictures import strip
from vader.report.gallery.writing import LARGEST, write
from vader.report.viewer import Exhibit
from vader.report.viewer.page import cameras_at

from .pages import dead_links
from .test_viewer import HOSTILE, POSES
from .viewing import barriers, drawn, launched, psnr, scene, until, visited

REPORTS = Path(__file__).parents[2] / "reports"


def moving(frames: int, seed: int, size: int = 24) -> torch.Tensor:
    """Frames that differ, (frames, size, size, 3) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, size, size, 3), dtype=torch.uint8, generator=generator)


def work(number: int, name: str = "", **changes) -> Work:
    name = name or f"Sample {number}"
    beside = (Picture("Nearest in training: x", moving(1, 9), "The nearest training object, x"),)
    exhibit = Exhibit(name, scene(16).roll(number, -1), f"{name} of seed 0", samples=48)
    parts = {"film": moving(6, number), "alt": f"{name}, turning", "beside": beside, "exhibit": exhibit}
    return Work(name, **parts | {"mesh": b"glTF" + bytes(40)} | changes)


def hall(key: str = "chairs", title: str = "Chairs", works: tuple[Work, ...] = (), **changes) -> Hall:
    facts = (("run of stage 1", "ab" * 32), ("seed", "0"))
    rows = (
        Row("ours", "Ours", works or (work(0), work(1)), facts),
        Row("eg3d", "EG3D", (work(2, exhibit=None, mesh=None),), facts, "Pictures only."),
        Row("way", "Interpolation", tuple(work(n, f"Step {n}", beside=()) for n in range(3)), facts, "", slider=True),
    )
    told = {"profile": "smoke", "size": (24, 16), "objects": 4, "rows": rows, "names": (key,), "runs": ("ab" * 32,)}
    return Hall(key, title, **told | changes)


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """A gallery of two sets. In the second all names are hostile, and its objects are of two kinds."""
    folder = tmp_path_factory.mktemp("reports") / "gallery"
    odd = (work(0, HOSTILE, text=f"“{HOSTILE}”", group=HOSTILE), work(1, alt=HOSTILE, group="<b>"))
    second = hall("odd", HOSTILE, odd, groups=(HOSTILE, "<b>"), credits=(HOSTILE,))
    write([hall(), second], "smoke", ["others", HOSTILE], folder)
    return folder


def pages(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.html"))


# ------------------------------------------------------------------------------------------------------ in a browser


def test_every_page_opens_without_a_word_of_complaint_and_every_picture_is_there(browser, gallery):
    assert len(pages(gallery)) == 1 + 2 * 3 + 2, "an index; of each set a page and two viewers; two categories"
    for file in pages(gallery):
        with visited(browser, file, gallery) as page:
            page.evaluate("document.querySelectorAll('img').forEach((image) => (image.loading = 'eager'))")
            until(page, "[...document.images].every((image) => image.complete)")
            assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)"), file.name
            assert page.evaluate("[...document.images].every((i) => i.alt.trim() || i.closest('a')?.innerText.trim())")
            assert page.evaluate("typeof hacked") == "undefined"


def test_every_link_resolves_and_a_dead_one_would_be_found(gallery, tmp_path):
    assert [fault for file in pages(gallery) for fault in dead_links(file)] == []
    (tmp_path / "b.html").write_text("<p id='x'></p>")
    for address in ("gone.html", "b.html#y", "#z"):
        (tmp_path / "a.html").write_text(f"<a href='b.html#x'>ok</a><a href='{address}'>dead</a>")
        assert dead_links(tmp_path / "a.html") == [f"a.html: {address}"]


def test_every_object_opens_from_its_tile_and_is_what_the_renderer_shows(browser, gallery):
    shown = {link for file in pages(gallery) for link in re.findall(r'class="work" href="(.*?)"', file.read_text())}
    assert len(shown) == 2 * (2 + 1)
    for link in sorted(shown):
        name, _, number = link.partition("#object-")
        with visited(browser, gallery / name, gallery) as page:
            page.get_by_role("navigation", name="Objects").get_by_role("link").nth(int(number) - 1).click()
            page.evaluate("viewer.shown")
            assert page.evaluate("viewer.drawable") and page.locator("#notice").is_hidden()
            assert page.evaluate("viewer.object.name") and int(number) == page.evaluate("viewer.index") + 1
            if name == "chairs.ours.html":
                volume = scene(16).roll(int(number) - 1, -1)
                expected = render_views(volume[None], cameras_at(POSES, 4.0, 36.0, 256), 48, normals=False)["colour"][0]
                for (azimuth, elevation), picture in zip(POSES, expected, strict=True):
                    assert psnr(drawn(page, azimuth, elevation), picture) > 50  # 30 asked; another object has 20
            mesh = page.locator("#download")
            assert (gallery / mesh.get_attribute("href")).read_bytes()[:4] == b"glTF" and mesh.is_visible()


def test_films_stand_still_until_they_are_looked_at(browser, gallery):
    states = "[...document.querySelectorAll('.work .film img')].map((one) => getComputedStyle(one).animationPlayState)"
    with visited(browser, gallery / "index.html", gallery) as page:
        assert set(page.evaluate(states)) == {"paused"}
        page.locator("a.work").nth(1).hover()
        assert page.evaluate(states)[:3] == ["paused", "running", "paused"]
        page.mouse.move(0, 0)
        page.locator("a.work").nth(0).focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")
        assert page.evaluate(states)[:3] == ["running", "paused", "paused"]
        page.get_by_label("Turn all of them").check()
        assert set(page.evaluate(states)) == {"running"}
        seen = page.locator(".film").first
        first = seen.screenshot()
        assert any(seen.screenshot() != first for _ in range(100)), "no frame follows the first"


def test_nothing_moves_for_those_who_asked_for_little_motion_or_on_paper(browser, gallery):
    moving = "document.getAnimations().length"
    with visited(browser, gallery / "index.html", gallery) as page:
        page.get_by_label("Turn all of them").check()
        assert page.evaluate(moving) > 0
        page.emulate_media(reduced_motion="reduce")
        page.locator("a.work").first.hover()
        assert page.evaluate(moving) == 0 and page.locator(".calm").is_visible()
        page.emulate_media(reduced_motion="no-preference", media="print")
        assert page.evaluate(moving) == 0 and page.locator(".play").is_hidden()


def test_a_slider_moves_through_the_steps_and_leads_to_the_one_it_shows(browser, gallery):
    with visited(browser, gallery / "chairs.html", gallery) as page:
        slider, film = page.get_by_role("slider"), page.locator(".slider .film")
        first = film.screenshot()
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator(".slider output").inner_text() == "1" and film.screenshot() != first
        page.keyboard.press("End")
        page.locator(".slider a.work").click()
        until(page, "window.viewer?.drawable")
        assert page.locator("#name").inner_text() == "Step 2"


@pytest.mark.parametrize("name", ["index.html", "chairs.html", "odd.html"])
def test_the_keyboard_alone_reaches_everything_and_one_sees_where_it_is(browser, gallery, name):
    with visited(browser, gallery / name, gallery) as page:
        wanted = page.evaluate("document.querySelectorAll('a, input, [tabindex]').length")
        reached = set()
        for _ in range(wanted):
            page.keyboard.press("Tab")
            at, outline = page.evaluate(
                """() => {
                  const all = [...document.querySelectorAll('a, input, [tabindex]')];
                  return [all.indexOf(document.activeElement), getComputedStyle(document.activeElement).outlineStyle];
                }"""
            )
            assert outline != "none"
            reached.add(at)
        assert reached == set(range(wanted))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(browser, gallery, scheme):
    for name in ("index.html", "chairs.html", "chairs.ours.html"):
        with visited(browser, gallery / name, gallery, color_scheme=scheme) as page:
            assert barriers(page) == []
    with visited(browser, gallery / "index.html", gallery) as page:  # that it would find one
        page.evaluate("document.querySelector('h1').style.color = '#eee'; document.images[0].removeAttribute('alt')")
        assert {one.partition(":")[0] for one in barriers(page)} >= {"color-contrast", "link-name"}


@pytest.mark.parametrize("width", [360, 1400])
def test_no_page_is_wider_than_its_screen(browser, gallery, width):
    for file in pages(gallery):
        with visited(browser, file, gallery, viewport={"width": width, "height": 700}) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width, file.name


def test_names_are_text_whatever_is_in_them(browser, gallery):
    with visited(browser, gallery / "odd.html", gallery) as page:
        assert page.locator("h1").text_content() == HOSTILE
        assert page.locator("figcaption b").first.text_content() == HOSTILE
        assert page.locator(".work img").nth(1).get_attribute("alt") == HOSTILE
        categories = page.get_by_role("navigation", name="Categories").get_by_role("link")
        assert categories.all_text_contents() == [HOSTILE, "<b>"]
        categories.first.click()
        assert page.locator("figcaption b").all_text_contents() == [HOSTILE]
    assert all(re.fullmatch(r"[\w./-]+", str(file.relative_to(gallery)), re.ASCII) for file in gallery.rglob("*"))


def test_a_volume_that_is_gone_leaves_the_still_and_a_sentence(browser, gallery, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(gallery, copy)
    (copy / "chairs" / "ours-0.js").unlink()
    with visited(browser, copy / "chairs.ours.html", copy, faults=True) as page:
        assert "ours-0.js is not there" in page.locator("#notice").inner_text() and page.locator("#still").is_visible()
        page.get_by_role("link", name="Sample 1").click()
        page.evaluate("viewer.shown")
        assert page.evaluate("viewer.drawable"), "the next one opens"
    (copy / "chairs" / "ours-1.js").write_text("0")
    with visited(browser, copy / "chairs.ours.html", copy, faults=True) as page:
        page.get_by_role("link", name="Sample 1").click()
        page.evaluate("viewer.shown.catch(() => 0)")
        assert "holds no volume" in page.locator("#notice").inner_text()


def test_without_webgl_there_are_stills(browser, gallery):
    missing = "HTMLCanvasElement.prototype.getContext = () => null"
    with visited(browser, gallery / "chairs.ours.html", gallery, script=missing) as page:
        assert "no WebGL 2" in page.locator("#notice").inner_text()
        until(page, "document.getElementById('still').naturalWidth > 0")


# -------------------------------------------------------------------------------------------------------- on the disk


def test_the_same_again_gives_the_same_files_and_takes_the_place_of_the_old_ones(tmp_path):
    folder = tmp_path / "gallery"

    def files() -> dict[str, bytes]:
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    write([hall()], "smoke", [], folder)
    first = files()
    (folder / "left.txt").write_text("of an earlier one")
    write([hall()], "smoke", [], folder)
    assert files() == first and [file.name for file in tmp_path.iterdir()] == ["gallery"]
    assert read_record(folder)["halls"][0]["runs"] == ["ab" * 32]


def test_a_failure_on_the_way_leaves_the_old_gallery(tmp_path, monkeypatch):
    folder = tmp_path / "gallery"
    write([hall()], "smoke", [], folder)
    before = sorted(folder.rglob("*"))

    def halls():
        yield hall("new")
        raise RuntimeError("boo")

    with pytest.raises(RuntimeError, match="boo"):
        write(halls(), "smoke", [], folder)
    monkeypatch.setattr("vader.report.gallery.writing.LARGEST", 1000)
    with pytest.raises(GalleryError, match="gallery would be .* MB, expected at most.*by name: chairs "):
        write([hall()], "smoke", [], folder)
    assert sorted(folder.rglob("*")) == before and [file.name for file in tmp_path.iterdir()] == ["gallery"]


@pytest.mark.parametrize("key", ["a/b", "../x", "", "a b", "ключ"])
def test_a_name_that_no_page_can_have_is_refused(key):
    with pytest.raises(GalleryError, match="no name of a page"):
        hall_files(hall(key))


def test_slugs_are_file_names():
    assert slug("Doors & windows") == "doors-windows" and slug(HOSTILE).startswith("script-script-hacked")
    assert slug("椅子", "category") == "category" and len(slug("x" * 99)) == 40


def test_a_strip_holds_its_frames_in_order():
    import io

    from PIL import Image

    frames = torch.tensor([0, 120, 250], dtype=torch.uint8)[:, None, None, None].expand(3, 16, 16, 3).contiguous()
    picture = Image.open(io.BytesIO(strip(frames)))
    assert picture.size == (48, 16)
    assert [round(picture.convert("L").getpixel((x, 8)) / 10) for x in (8, 24, 40)] == [0, 12, 25]
    with pytest.raises(ValueError, match="wider than"):
        strip(frames.repeat(400, 1, 1, 1))


def test_a_smaller_mesh_keeps_its_shape():
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("pyvista")
    from vader.generation.export import simplified

    ball = trimesh.creation.icosphere(4)
    vertices, faces = simplified(ball.vertices.astype("float32"), ball.faces, 400)
    small = trimesh.Trimesh(vertices, faces)
    assert 200 < len(faces) <= 400 and small.is_watertight and small.volume == pytest.approx(ball.volume, rel=0.03)
    assert simplified(ball.vertices, ball.faces, 10**6)[1] is ball.faces


# ------------------------------------------------------------------------------------------------- what is committed


@pytest.fixture(scope="module")
def committed() -> Path:
    if not (REPORTS / "gallery" / "gallery.json").is_file():
        pytest.skip("no gallery is committed")
    return REPORTS / "gallery"


def test_the_committed_gallery_is_small_whole_and_of_committed_runs(committed):
    files = [file for file in committed.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= LARGEST
    volumes = [file for file in committed.rglob("*.js") if file.parent != committed]
    assert volumes and max(file.stat().st_size for file in volumes) <= 25_000
    assert [fault for file in pages(committed) for fault in dead_links(file)] == []
    digests = {folder.name.rpartition("-")[2] for folder in (REPORTS / "runs").iterdir()}
    shown = {run for one in read_record(committed)["halls"] for run in one["runs"]}
    assert shown and {run[:12] for run in shown} <= digests


def test_the_committed_gallery_opens(browser, committed):
    with visited(browser, committed / "index.html", REPORTS) as page:
        assert barriers(page) == []
        page.locator("a.work").first.click()
        until(page, "window.viewer?.drawable")


def test_pages_name_what_they_show_and_what_not_to_compare(gallery):
    text = html.unescape((gallery / "chairs.html").read_text(encoding="utf-8"))
    assert "ab" * 6 in text and "Compare the systems on this page with each other only" in text
    assert "“" not in text and "others" in (gallery / "index.html").read_text(encoding="utf-8")
