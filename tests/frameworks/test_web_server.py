"""The page's FastAPI program, on loopback: a photograph comes back larger, with its metadata."""

from __future__ import annotations

import io
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from elasticnet.sr import Upscaler
from elasticnet.sr.photo import read_photo
from elasticnet.sr.photo.upscale import upscale_photo

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("multipart", reason="python-multipart is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "web_server.md"


def page_program() -> str:
    """The page's only Python snippet."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("```python\n")
    program, _, _ = rest.partition("```\n")
    return program


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's program, served by uvicorn on a free port of this machine; its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        module = ModuleType("server")
        patch.setitem(sys.modules, "server", module)  # where FastAPI looks annotations up
        exec(compile(page_program(), str(PAGE), "exec", dont_inherit=True), vars(module))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            config = uvicorn.Config(module.app, log_level="warning")
            running = uvicorn.Server(config)
            thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                running.should_exit = True
                thread.join()


def posted_jpeg() -> bytes:
    """A photograph of a phone: on its side, with a maker and a resolution."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture lies on the right
    exif[0x010F] = "a phone"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif, dpi=(300, 300), quality=95)
    return file.getvalue()


def post(server: str, data: bytes, query: str = "") -> Any:
    files = {"photo": ("photo.jpg", data)}
    return httpx.post(f"{server}/upscale{query}", files=files, timeout=200)


def test_a_photograph_comes_back_larger_upright_and_with_its_metadata(server: str) -> None:
    answer = post(server, posted_jpeg())
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/jpeg"
    large = read_photo(io.BytesIO(answer.content))
    assert large.size == (120, 80)
    assert large.dpi == (300, 300)
    assert b"a phone" in large.exif
    assert answer.headers["x-depth"] in "12345"


def test_the_pixels_are_those_of_the_library(server: str) -> None:
    small = io.BytesIO()
    Image.open(io.BytesIO(posted_jpeg())).save(small, "PNG")
    answer = post(server, small.getvalue(), "?depth=2")
    expected = upscale_photo(read_photo(small), Upscaler("asrn-x4", depth=2))
    found = read_photo(io.BytesIO(answer.content))
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert answer.headers["x-depth"] == "2"


def test_requests_at_once_do_not_disturb_each_other(server: str) -> None:
    alone = [post(server, posted_jpeg(), f"?depth={depth}").content for depth in (1, 2, 3)]
    together: dict[int, bytes] = {}

    def ask(number: int) -> None:
        together[number] = post(server, posted_jpeg(), f"?depth={number % 3 + 1}").content

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(6):
        assert together[number] == alone[number % 3]


@pytest.mark.parametrize(
    ("data", "query", "message"),
    [
        (b"no image", "", "cannot read image photo.jpg: not a PNG"),
        (None, "?depth=6", "less than or equal to 5"),
    ],
)
def test_what_cannot_be_used_is_a_422_that_says_why(
    server: str, data: bytes | None, query: str, message: str
) -> None:
    answer = post(server, posted_jpeg() if data is None else data, query)
    assert answer.status_code == 422
    assert message in answer.text


def test_too_many_pixels_are_refused(server: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (2000, 1001)).save(file, "PNG")
    answer = post(server, file.getvalue())
    assert answer.status_code == 422
    assert "2,002,000 pixels are more than the limit of 2,000,000" in answer.text
