"""A browser for tests, and volumes that are cheap to make and telling to look at."""

from __future__ import annotations

import base64
import contextlib
import shutil
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vader.rendering.rays import voxel_centres

WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


def scene(resolution: int = 32) -> Tensor:
    """A red ball on a box with a pole beside it, soft and hard densities, (4, S, S, S): no view looks like another."""
    points = voxel_centres(resolution).view(resolution, resolution, resolution, 3)
    x, y, z = points.unbind(-1)
    ball = 60 * (0.4 - (points - torch.tensor([0.15, 0.25, 0.1])).norm(dim=-1)).clamp_min(0)
    box = 25.0 * ((x.abs() < 0.55) & ((y + 0.4).abs() < 0.15) & (z.abs() < 0.4))
    pole = 120.0 * ((x + 0.5).abs() < 0.07) * ((z - 0.3).abs() < 0.07) * (y.abs() < 0.8)
    colour = torch.stack([0.5 + 0.5 * torch.sin(3 * x), 0.4 + 0.3 * y, 0.5 - 0.4 * z]).clamp(0, 1)
    return torch.cat([(ball + box + pole)[None], colour])


def haze(radius: float, slope: float, resolution: int = 32) -> Tensor:
    """A white ball whose density falls by `slope` per unit length and is 0 at `radius`, (4, S, S, S)."""
    distance = voxel_centres(resolution).norm(dim=-1).view(1, resolution, resolution, resolution)
    return torch.cat([slope * (radius - distance).clamp_min(0), torch.ones(3, *distance.shape[1:])])


@contextlib.contextmanager
def launched() -> Iterator:
    """A headless Chromium with WebGL on the CPU. Skips the test that asks where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    with api.sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        found = next(filter(None, map(shutil.which, names)), playwright.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip("no Chromium found (apt-get install chromium, or playwright install chromium)")
        browser = playwright.chromium.launch(executable_path=found, args=WEBGL)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser, file: Path, html: str, faults: bool = False, script: str = "", **context) -> Iterator:
    """A page written to `file` and opened from there without a network, its viewer at rest.

    On leaving, fails on anything it asked for beyond its own file, and unless `faults` on messages of its console.
    script: run before the page's own. context: of `Browser.new_context`.
    """
    file.write_text(html, encoding="utf-8")
    with visited(browser, file, file, faults, script, **context) as page:
        yield page


@contextlib.contextmanager
def visited(browser, file: Path, inside: Path, faults: bool = False, script: str = "", **context) -> Iterator:
    """As `opened`, a page that is there. inside: the only file, or the folder of the files, that it may ask for."""
    asked, said = [], []
    with contextlib.closing(browser.new_context(offline=True, **context)) as window:
        window.add_init_script(script or "0")
        page = window.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri())
        page.evaluate("window.viewer?.shown.catch(() => 0)")
        yield page
    allowed = f"{inside.as_uri()}/" if inside.is_dir() else file.as_uri()
    outside = [
        url
        for url in asked
        if not url.startswith(("data:", "blob:"))
        and not (url.startswith(allowed) if inside.is_dir() else url.partition("#")[0] == allowed)
    ]
    assert not outside, f"the page asked for {outside}"
    said = [text for text in said if "OpenGL, Performance" not in text]  # a driver's word on reading pixels back
    assert faults or not said, f"the console says {said}"


def barriers(page) -> list[str]:
    """What axe-core finds that keeps people out: missing names, contrast too low, ... Skips the test without it."""
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed (pip install axe-playwright-python)")
    page.evaluate((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'], preload: false })")["violations"]
    return [f"{one['id']}: {node['html'][:160]} {node['any'][:1]}" for one in found for node in one["nodes"]]


def until(frame, condition: str, seconds: float = 20.0) -> None:
    """Wait for a page's expression to hold. Playwright's own wait needs `eval`, which the page's policy forbids."""
    deadline = time.monotonic() + seconds
    while not frame.evaluate(condition):
        assert time.monotonic() < deadline, f"after {seconds:g} s, this does not hold: {condition}"
        time.sleep(0.02)


def drawn(
    page, azimuth: float, elevation: float, size: int = 256, mode: str = "colour", threshold: float = 0
) -> Tensor:
    """What the canvas shows of the object on display from a pose at distance 4, (size, size, 3) in [0, 1]."""
    pixels = page.evaluate(
        """([azimuth, elevation, size, mode, threshold]) => {
          viewer.look = { mode, threshold };
          viewer.draw(size, { azimuth, elevation, distance: 4 });
          return btoa(Array.from(viewer.renderer.pixels(), (byte) => String.fromCharCode(byte)).join(""));
        }""",
        [azimuth, elevation, size, mode, threshold],
    )
    rows = np.frombuffer(base64.b64decode(pixels), dtype=np.uint8).reshape(size, size, 4)[::-1, :, :3]
    return torch.from_numpy(rows.copy()) / 255


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * torch.log10((a - b).square().mean()).item()
