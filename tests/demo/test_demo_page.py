"""The demo page in a real browser: a dropped photograph, the slid depth, and PyTorch's pixels."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import io
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from elasticnet.sr import asrn

DEMO = Path(__file__).parents[2] / "docs" / "demo"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SIZE = (230, 200)  # width, height: four tiles
MILLISECONDS = 240_000

playwright: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
    pytest.mark.skipif(not (DEMO / "vendor").exists(), reason="`make demo-page` was not run"),
]


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (25, 29, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Build the documentation's site, which takes the demo page with what it needs."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-d", str(folder)]
    subprocess.run(command, check=True, cwd=DEMO.parents[1])
    return folder


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback address, which is returned."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}/"
    serving.shutdown()
    thread.join()
    serving.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(site, browser) -> Iterator[Any]:
    context = browser.new_context()
    page = context.new_page()
    with served(site) as address:
        page.goto(f"{address}guides/export/")
        page.locator("article").get_by_role("link", name="A page", exact=True).click()
        wait_for(page, "Ready.")
    # from here on there is no server: what follows works without it
    context.set_offline(True)
    yield page
    context.close()


def wait_for(page: Any, said: str) -> None:
    """Wait until the page's status begins with these words."""
    page.wait_for_function(
        "said => document.getElementById('status').textContent.startsWith(said)",
        arg=said,
        timeout=MILLISECONDS,
    )


def drop(page: Any, photograph: Image.Image) -> None:
    """Drop a photograph on the page, as a PNG file."""
    file = io.BytesIO()
    photograph.save(file, format="PNG")
    page.evaluate(
        """async (encoded) => {
            const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
            const dropped = new DataTransfer();
            dropped.items.add(new File([bytes], "photograph.png", { type: "image/png" }));
            const event = new DragEvent("drop", { dataTransfer: dropped, bubbles: true });
            document.getElementById("drop").dispatchEvent(event);
        }""",
        base64.b64encode(file.getvalue()).decode(),
    )


def shown(page: Any) -> np.ndarray:
    """Return the enlarged image that the page shows, (h, w, 3)."""
    url = page.evaluate("document.getElementById('after').toDataURL('image/png')")
    data = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@torch.no_grad()
def by_pytorch(photograph: Image.Image, depth: int) -> np.ndarray:
    """Return what the network makes of the photograph in one piece."""
    x = torch.from_numpy(np.asarray(photograph).copy()).permute(2, 0, 1)[None] / 255
    sr = asrn(4, pretrained=True).eval()(x, depth=depth)
    rounded = (255 * sr).round().clamp(0, 255)[0].permute(1, 2, 0)
    return rounded.numpy().astype(int)


def test_a_dropped_photograph_is_enlarged_at_the_depth_that_is_slid_to(page, photograph):
    drop(page, photograph)
    wait_for(page, f"Depth 1: {SIZE[0]} × {SIZE[1]} to {4 * SIZE[0]} × {4 * SIZE[1]} pixels in ")
    at_depth_1 = shown(page)
    # a pixel on the edge between two levels may be rounded to either
    assert np.abs(at_depth_1 - by_pytorch(photograph, depth=1)).max() <= 1

    page.locator("#depth").fill("3")
    wait_for(page, "Depth 3: ")
    at_depth_3 = shown(page)
    assert np.abs(at_depth_3 - by_pytorch(photograph, depth=3)).max() <= 1
    assert np.abs(at_depth_3 - at_depth_1).max() > 1


def test_the_browsers_own_enlargement_lies_over_the_part_that_is_slid_to(page):
    page.locator("#split").fill("30")
    shown_value = page.evaluate("document.getElementById('split-shown').value")
    clipped = page.evaluate("document.getElementById('before').style.clipPath")
    assert (shown_value, clipped) == ("30 %", "inset(0px 70% 0px 0px)")


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("vendor", r"Error: \./vendor/ort\.\w+\.min\.mjs cannot be loaded: `make demo-page` makes"),
        (
            "models",
            r"Error: \./models/asrn_x4_d\d\.onnx cannot be loaded \(404\): `make demo-page` ",
        ),
    ],
)
def test_a_page_without_its_files_says_what_makes_them(tmp_path, browser, missing, words):
    for file in DEMO.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    for name in {"vendor", "models"} - {missing}:
        shutil.copytree(DEMO / name, tmp_path / name)
    page = browser.new_page()

    with served(tmp_path) as address:
        page.goto(address)
        wait_for(page, "Error")

    assert re.match(words, page.locator("#status").text_content())
