"""The viewer in a real browser: it shows what the renderer shows, obeys every hand, and asks no server for anything."""

from __future__ import annotations

import base64
import fnmatch
import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vader.rendering.render import render_views
from vader.report.viewer import Exhibit, ViewerError, view, viewer_page
from vader.report.viewer.page import ASSETS, cameras_at

from .viewing import drawn, haze, launched, opened, psnr, scene, until

POSES = [(30.0, 20.0), (140.0, -10.0), (260.0, 60.0)]
HOSTILE = """</script><script>hacked = 1</script> "chair" 'n' <img src=x onerror="hacked = 1">"""
HOSTILE += " a/b\\c {{ 7 * 7 }} Стул 椅子 \u2028"


@pytest.fixture(scope="module")
def browser():
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def one() -> str:
    return viewer_page([Exhibit("scene", scene(), samples=64)], "One object")


@pytest.fixture(scope="module")
def three() -> str:
    objects = [("first", scene(16)), SimpleNamespace(name="second", volume=haze(0.5, 20.0, 16)), ("third", scene(12))]
    return viewer_page(objects, "Three objects")


def pose(page) -> dict[str, float]:
    return page.evaluate("viewer.pose")


def expected(mode: str) -> torch.Tensor:
    """The renderer's pictures (3, 256, 256, 3) of the scene as it was before it was made small to travel."""
    views = render_views(scene()[None], cameras_at(POSES, 4.0, 36.0, 256), 64)
    depth, occupancy = views["depth"][0, ..., None], views["occupancy"][0, ..., None]
    shade = torch.where(depth > 0, 1 - 0.8 * ((depth - 2.8) / 2.4).clamp(0, 1), torch.zeros_like(depth))
    normals = (0.5 * (views["normals"][0] + 1)) * occupancy
    return {"colour": views["colour"][0], "depth": shade.expand(-1, -1, -1, 3), "normals": normals}[mode]


@pytest.mark.parametrize(("mode", "least"), [("colour", 56), ("depth", 38), ("normals", 54)])
def test_the_canvas_shows_what_the_renderer_shows(browser, tmp_path, one, mode, least):
    """30 dB would do for the eye. Samples half a bin beside their place cost 10 dB of the 62, 42 and 61 there are."""
    pictures = expected(mode)
    with opened(browser, tmp_path / "page.html", one) as page:
        for (azimuth, elevation), picture in zip(POSES, pictures, strict=True):
            assert psnr(drawn(page, azimuth, elevation, mode=mode), picture) >= least
            assert psnr(drawn(page, azimuth + 5, elevation, mode=mode), picture) < least, "5 degrees go unnoticed"


@pytest.mark.parametrize(("shape", "filled"), [((7, 4, 5), 0.3), ((2, 2, 2), 1.0), ((5, 6, 7), 0.0)])
def test_volumes_that_fill_their_cube_are_shown_to_its_faces(browser, tmp_path, shape, filled):
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(4, *shape, generator=generator)
    volume[0] *= 4 * (torch.rand(shape, generator=generator) < filled)
    volume[0, 0, 0, 0] = volume[0, -1, -1, -1] = 3.0  # corners that face each other
    cameras = cameras_at(POSES, 4.0, 36.0, 96)
    views = render_views(volume[None], cameras, 64)
    with opened(browser, tmp_path / "page.html", viewer_page([Exhibit("full", volume, samples=64)])) as page:
        for number, (azimuth, elevation) in enumerate(POSES):
            assert psnr(drawn(page, azimuth, elevation, 96), views["colour"][0, number]) > 50
            normals = (0.5 * (views["normals"][0, number] + 1)) * views["occupancy"][0, number, ..., None]
            assert psnr(drawn(page, azimuth, elevation, 96, "normals"), normals) > 45


def test_the_first_picture_is_the_still_and_the_pose_that_was_asked_for(browser, tmp_path):
    shown = Exhibit("near", scene(16), azimuth=200.0, elevation=-5.0, field_of_view=10.0, distance=10.5, samples=48)
    with opened(browser, tmp_path / "page.html", viewer_page([shown])) as page:
        assert pose(page) == {"azimuth": 200, "elevation": -5, "distance": 10.5}
        page.evaluate("viewer.draw(256)")
        still = page.evaluate(
            """() => {
              viewer.draw(256);
              const [a, b] = [viewer.canvas, document.getElementById("still")].map((source) => {
                const flat = document.createElement("canvas").getContext("2d");
                flat.canvas.width = flat.canvas.height = 256;
                flat.drawImage(source, 0, 0, 256, 256);
                return flat.getImageData(0, 0, 256, 256).data;
              });
              return a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0) / a.length;
            }"""
        )
        assert still < 60  # of 255^2: WebP is lossy


def test_a_threshold_shows_the_surface_where_the_density_reaches_it(browser, tmp_path):
    """The density of the haze is 20 at radius 0.4 in a ball of radius 0.8."""
    page_html = viewer_page([Exhibit("haze", haze(0.8, 50.0, 64), samples=128)])
    with opened(browser, tmp_path / "page.html", page_html) as page:
        for threshold, radius in [(20.0, 0.4), (30.0, 0.2)]:
            depth = 2.8 + 2.4 * (1 - drawn(page, 70, 10, 128, "depth", threshold)[64, 64, 0].item()) / 0.8
            assert depth == pytest.approx(4 - radius, abs=0.02)
        surface = drawn(page, 70, 10, 128, "colour", 20.0)
        assert ((surface < 0.01) | (surface > 0.99)).all(), "a surface is white or not there"
        page.locator("#threshold").press("End")
        assert "surface at σ = " in page.locator("#level").inner_text()
        page.locator("#threshold").press("Home")
        assert page.locator("#level").inner_text() == "off" and page.evaluate("viewer.look.threshold") == 0


def test_a_mouse_turns_and_zooms(browser, tmp_path, one):
    with opened(browser, tmp_path / "page.html", one) as page:
        box, before = page.locator("#canvas").bounding_box(), pose(page)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + box["width"] / 4, y + box["width"] / 12, steps=3)
        page.mouse.up()
        page.mouse.move(x, y)  # no button is held
        after = pose(page)
        assert before["azimuth"] - after["azimuth"] == pytest.approx(45, abs=0.5)
        assert after["elevation"] - before["elevation"] == pytest.approx(15, abs=0.5)
        page.mouse.wheel(0, -200)
        until(page, f"viewer.pose.distance < {before['distance'] - 0.5}")
        page.mouse.wheel(0, 20_000)
        until(page, f"viewer.pose.distance === {2.5 * before['distance']}")


def test_keys_and_buttons_turn_zoom_and_reset(browser, tmp_path, one):
    with opened(browser, tmp_path / "page.html", one) as page:
        home, canvas = pose(page), page.locator("#canvas")
        moves = {
            "ArrowRight": ("azimuth", -5), "ArrowLeft": ("azimuth", 5), "ArrowDown": ("elevation", 5),
            "ArrowUp": ("elevation", -5), "+": ("distance", 4 / 1.1 - 4), "-": ("distance", 0.4),
        }  # fmt: skip
        for key, (part, change) in moves.items():
            for press in (lambda key=key: canvas.press(key), page.locator(f'[data-key="{key}"]').click):
                press()
                assert pose(page)[part] - home[part] == pytest.approx(change), key
                canvas.press("Home")
                assert pose(page) == home
        for _ in range(25):
            canvas.press("ArrowDown")
        assert pose(page)["elevation"] == 89
        page.get_by_role("button", name="Reset").click()
        assert pose(page) == home


def test_fingers_turn_and_pinch(browser, tmp_path, one):
    with opened(browser, tmp_path / "page.html", one, has_touch=True) as page:
        box, before = page.locator("#canvas").bounding_box(), pose(page)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        hand = page.context.new_cdp_session(page)

        def touch(kind: str, *fingers: float) -> None:
            points = [{"x": x + at, "y": y, "id": number} for number, at in enumerate(fingers)]
            hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", 0)
        for step in range(1, 5):
            touch("touchMove", step * box["width"] / 16)
        touch("touchEnd")
        until(page, f"Math.abs(viewer.pose.azimuth - {before['azimuth'] - 45}) < 1")
        touch("touchStart", -40, 40)
        touch("touchMove", -50, 50)
        touch("touchMove", -60, 60)
        touch("touchEnd")
        until(page, f"Math.abs(viewer.pose.distance - {before['distance']} / 1.5) < 0.1")


def test_the_picture_is_smaller_while_it_moves_and_whole_when_it_rests(browser, tmp_path, one):
    with opened(browser, tmp_path / "page.html", one) as page:
        page.evaluate("viewer.cost = 1; viewer.frames = []; viewer.turn(5, 0)")  # a machine that is slow
        until(page, "viewer.frames.length > 1 && !viewer.pending")
        sizes = [size for _, size, _ in page.evaluate("viewer.frames")]
        assert sizes[0] == 96 and sizes[-1] >= 512
        assert page.locator("#where").inner_text() == "azimuth 25°, elevation 20°, distance 4.0"
        assert page.locator("#canvas").get_attribute("aria-label").startswith("scene, colour, azimuth 25°")


def test_the_keyboard_alone_reaches_everything_and_one_sees_where_it_is(browser, tmp_path):
    html = viewer_page([Exhibit("first", scene(12), glb=b"glTF"), Exhibit("second", scene(12), glb="meshes/2.glb")])
    with opened(browser, tmp_path / "page.html", html) as page:
        reached = []
        for _ in range(30):
            page.keyboard.press("Tab")
            name, seen = page.evaluate(
                """() => {
                  const at = document.activeElement;
                  const look = at.matches("input[type=radio]") ? at.nextElementSibling : at;
                  const name = at.id || at.dataset.key || at.value || at.hash || at.tagName;
                  return [name, getComputedStyle(look).outlineStyle];
                }"""
            )
            if name == "BODY":
                break
            reached.append(name)
            assert seen == "solid", f"{name} is reached and does not look so"
        assert reached == [
            "canvas", "colour", "threshold", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "+", "-", "Home",
            "turn", "download", "#object-1", "#object-2",
        ]  # fmt: skip
        page.locator("[value=colour]").press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("viewer.look.mode") == "normals"


def test_everything_has_a_name_for_those_who_do_not_see_it(browser, tmp_path, three):
    with opened(browser, tmp_path / "page.html", three) as page:
        names = page.evaluate(
            """[...document.querySelectorAll("button, input, a:not([hidden]), canvas, img, nav, section")].map(one => {
              const by = document.getElementById(one.getAttribute("aria-labelledby") ?? "none")?.textContent;
              const around = one.closest("a, label")?.textContent ?? one.labels?.[0]?.textContent;
              const own = one.getAttribute("aria-label") || one.alt || one.innerText;
              return [one.outerHTML.slice(0, 80), own || by || around];
            })"""
        )
        assert len(names) > 20 and not [one for one, name in names if not (name or "").strip()]


def test_objects_are_chosen_by_links_and_by_the_address(browser, tmp_path, three):
    file = tmp_path / "page.html"
    with opened(browser, file, three) as page:
        page.get_by_role("link", name="second").click()
        page.evaluate("viewer.shown")
        assert page.locator("#name").inner_text() == "second" and page.url.endswith("#object-2")
        assert page.locator("[aria-current]").inner_text().strip() == "second"
        assert drawn(page, 0, 0, 64)[32, 32].min() > 0.9, "the haze is white"
        for address, name in [("#object-3", "third"), ("#object-99", "third"), ("#object-0", "first"), ("#x", "first")]:
            page.goto("about:blank")
            page.goto(file.as_uri() + address)
            page.evaluate("viewer.shown")
            assert page.locator("#name").inner_text() == name


def test_the_turntable_turns_until_it_is_told_to_stop(browser, tmp_path, three):
    with opened(browser, tmp_path / "page.html", three) as page:
        page.wait_for_timeout(150)
        assert pose(page)["azimuth"] == 30, "nothing moves by itself"
        page.locator("#turn").click()
        until(page, "viewer.pose.azimuth < 29")
        page.locator("#turn").click()
        until(page, "!viewer.pending")
        assert page.evaluate("viewer.frames.at(-1)[1]") >= 512


def test_nothing_turns_for_those_who_asked_for_little_motion(browser, tmp_path, three):
    with opened(browser, tmp_path / "page.html", three) as page:
        page.locator("#turn").click()
        page.emulate_media(reduced_motion="reduce")
        until(page, "!viewer.turning")
        assert page.locator("#turn").is_disabled() and page.locator("#calm").is_visible()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("HTMLCanvasElement.prototype.getContext = () => null", "no WebGL 2"),
        ("delete window.DecompressionStream", "inflate"),
    ],
)
def test_a_browser_that_cannot_gets_a_still_and_a_sentence(browser, tmp_path, three, missing, words):
    with opened(browser, tmp_path / "page.html", three, script=missing) as page:
        assert words in page.locator("#notice").inner_text()
        assert page.locator("#still").is_visible() and page.locator("#turn").is_disabled()
        first = page.locator("#still").get_attribute("src")
        page.get_by_role("link", name="third").click()
        assert page.locator("#still").get_attribute("src") not in ("", first)
        assert page.locator("#name").inner_text() == "third" and page.locator("#notice").is_visible()


def test_graphics_memory_that_is_taken_away_leaves_the_still_and_comes_back(browser, tmp_path, one):
    with opened(browser, tmp_path / "page.html", one, faults=True) as page:
        before = drawn(page, 30, 20, 64)
        page.evaluate("loss = viewer.renderer.gl.getExtension('WEBGL_lose_context'); loss.loseContext()")
        until(page, "!viewer.drawable")
        assert page.locator("#still").is_visible() and "taken back" in page.locator("#notice").inner_text()
        page.evaluate("loss.restoreContext()")
        until(page, "viewer.drawable")
        assert page.locator("#notice").is_hidden() and torch.equal(drawn(page, 30, 20, 64), before)


def test_an_empty_volume_says_so(browser, tmp_path):
    with opened(browser, tmp_path / "page.html", viewer_page([("nothing", torch.zeros(4, 8, 8, 8))])) as page:
        assert "empty" in page.locator("#notice").inner_text() and not drawn(page, 0, 0, 32).any()


def test_a_volume_that_was_damaged_on_its_way_says_so(browser, tmp_path, one):
    data = json.loads(re.search(r'id="data">(.*?)</script>', one)[1])[0]["payload"]["data"]
    damaged = base64.b64encode(base64.b64decode(data)[:-40]).decode("ascii")
    with opened(browser, tmp_path / "page.html", one.replace(data, damaged), faults=True) as page:
        assert "cannot be drawn" in page.locator("#notice").inner_text() and page.locator("#still").is_visible()


def test_names_are_text_whatever_is_in_them(browser, tmp_path):
    html = viewer_page([Exhibit(HOSTILE, scene(8), caption=HOSTILE, glb=b"glTF"), ("other", scene(8))], HOSTILE)
    with opened(browser, tmp_path / "page.html", html) as page:
        for place in ("h1", "#name", "#caption", "#objects span >> nth=0"):
            assert page.locator(place).text_content() == HOSTILE
        assert page.evaluate("viewer.object.name") == HOSTILE and page.evaluate("typeof hacked") == "undefined"
        file = page.locator("#download").get_attribute("download")
        assert file.endswith("椅子.glb") and not set(file) & set("<>\"'/\\ {}")


def test_the_page_runs_its_own_program_and_no_other(browser, tmp_path, one):
    planted = one.replace("<h1>", "<script>hacked = 1</script><h1 onclick='hacked = 1'>", 1)
    with opened(browser, tmp_path / "page.html", planted, faults=True) as page:
        page.locator("h1").click()
        assert page.evaluate("typeof hacked") == "undefined"
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", one)


def test_a_page_that_asked_for_more_would_be_noticed(browser, tmp_path, one):
    planted = one.replace("<h1>", "<img src='http://127.0.0.1:9/x.png' alt=''><h1>", 1)
    with pytest.raises(AssertionError, match="asked for .*9/x.png"), opened(browser, tmp_path / "page.html", planted):
        pass
    with (
        pytest.raises(AssertionError, match="console says .*boo"),
        opened(browser, tmp_path / "page.html", one) as page,
    ):
        page.evaluate("console.warn('boo')")


def test_meshes_are_downloaded_from_the_page_or_from_beside_it(browser, tmp_path):
    mesh = b"glTF" + bytes(range(256))
    html = viewer_page(
        [Exhibit("a chair", scene(8), glb=mesh), Exhibit("b", scene(8), glb="meshes/b.glb"), ("c", scene(8))]
    )
    with opened(browser, tmp_path / "page.html", html) as page:
        with page.expect_download() as download:
            page.locator("#download").click()
        assert download.value.suggested_filename == "a-chair.glb"
        assert Path(download.value.path()).read_bytes() == mesh
        page.get_by_role("link", name="b", exact=True).click()
        assert page.locator("#download").get_attribute("href") == "meshes/b.glb"
        page.get_by_role("link", name="c", exact=True).click()
        assert page.locator("#download").is_hidden()


def test_a_notebook_shows_the_same_page_in_a_frame(browser, tmp_path):
    cell = view([("first", scene(12)), ("second", scene(12))])._repr_html_()
    file = tmp_path / "notebook.html"
    html = f"<!doctype html><title>notebook</title><script>viewer = {{shown: Promise.resolve()}}</script>{cell}"
    with opened(browser, file, html) as page:
        frame = page.frames[1]
        until(frame, "window.viewer?.drawable")
        frame.get_by_role("link", name="second").click()
        until(frame, "viewer.index === 1 && viewer.drawable")
        assert frame.locator("#name").inner_text() == "second" and frame.url == "about:srcdoc"
        assert frame.evaluate("viewer.frames.length") >= 2


def test_view_takes_a_single_object_too():
    for single in (("chair", scene(8)), Exhibit("chair", scene(8)), SimpleNamespace(name="chair", volume=scene(8))):
        assert view(single).html.count('href="#object-') == 1


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (scene(8), "a Tensor is no object to view"),
        (("chair", scene(8) * torch.nan), "object 'chair': .*NaN"),
        (("", scene(8)), "an object is named ''"),
        (Exhibit("chair", scene(8), samples=0), "object 'chair': samples is 0, expected a number from 1"),
        (
            Exhibit("chair", scene(8), elevation=90.0),
            "object 'chair': elevation is 90.0, expected a number from -89 to 89",
        ),
        (Exhibit("chair", scene(8), distance=float("nan")), "object 'chair': distance is nan"),
        (Exhibit("chair", scene(8), glb="javascript:alert(1)"), "object 'chair': glb is .*relative to the page"),
        (Exhibit("chair", scene(8), glb="/etc/mesh.glb"), "object 'chair': glb is .*relative to the page"),
    ],
)
def test_what_cannot_be_shown_is_refused(item, words):
    with pytest.raises(ViewerError, match=words):
        viewer_page([("good", scene(8)), item])


def test_a_page_of_nothing_is_refused():
    with pytest.raises(ViewerError, match="no objects"):
        viewer_page([])


def test_an_installed_package_has_the_files_of_the_page():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["vader.report.viewer"]
    for file in ASSETS.iterdir():
        if file.is_file() and file.suffix != ".py":
            assert any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns), file.name
