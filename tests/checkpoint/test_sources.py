"""A source gives the bytes that were asked for and no others, or an error that names the file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticnet.checkpoint.sources import Remote, name_of, opened, parse_hub, read_range, size_of
from loopback import Loopback, serving

DATA = bytes(range(256)) * 3


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with serving() as state:
        state.files["data.bin"] = DATA
        state.files["empty.bin"] = b""
        yield state


class Dribble(io.RawIOBase):
    """A file that gives at most seven bytes a call, as raw files may."""

    def __init__(self, data: bytes) -> None:
        self.inner = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self.inner.read(min(size, 7))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.inner.seek(offset, whence)

    def seekable(self) -> bool:
        return True


@given(st.integers(0, len(DATA)), st.integers(0, len(DATA)))
def test_every_source_gives_the_range(
    server: Loopback, tmp_path_factory: pytest.TempPathFactory, one: int, other: int
) -> None:
    start, end = sorted((one, other))
    path = tmp_path_factory.getbasetemp() / "range.bin"
    path.write_bytes(DATA)
    for source in (
        path,
        str(path),
        io.BytesIO(DATA),
        Dribble(DATA),
        f"{server.url}/files/data.bin",
    ):
        assert read_range(source, start, end) == DATA[start:end]  # pyright: ignore[reportArgumentType]


def test_a_url_is_asked_for_the_range_alone(server: Loopback) -> None:
    server.log.clear()
    with opened(f"{server.url}/files/data.bin") as file:
        assert read_range(file, 5, 5) == b""
        assert read_range(file, 700, 768) == DATA[700:]
        assert size_of(file) == len(DATA)
    assert server.ranges() == [(700, 768)]
    assert size_of(f"{server.url}/files/data.bin") == len(DATA)


def test_redirects_are_followed_and_headers_stay_at_home(server: Loopback) -> None:
    server.log.clear()
    remote = Remote(f"{server.url}/moved/data.bin", "moved", {"Authorization": "Bearer secret"})
    assert read_range(remote, 1, 4) == DATA[1:4]
    assert [(request.path, request.token) for request in server.log] == [
        ("/moved/data.bin", "Bearer secret"),
        ("/files/data.bin", None),
    ]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("plain/data.bin", ValueError, "the server answers 200 where a byte range was asked for"),
        (
            "other/data.bin",
            ValueError,
            r"bytes 760-767 were asked for, and the server sent bytes 761-767/768",
        ),
        ("short/data.bin", OSError, "4 of 8 bytes|cannot be read"),
        ("files/none.bin", OSError, "the server answers 404 Not Found"),
        ("error/500", OSError, "the server answers 500"),
        ("files/empty.bin", ValueError, "ends before byte 767"),
    ],
)
def test_servers_that_go_wrong(
    server: Loopback, path: str, error: type[Exception], message: str
) -> None:
    url = f"{server.url}/{path}"
    with pytest.raises(error, match=f"^{re.escape(url)}: .*({message})"):
        read_range(f"{url}?key=secret", 760, 768)


def test_a_file_that_changes_size_between_two_reads(server: Loopback) -> None:
    remote = Remote(f"{server.url}/files/data.bin", "data", size=700)
    with pytest.raises(
        ValueError, match="data: bytes 0-7 were asked for, and the server sent bytes 0-7/768"
    ):
        read_range(remote, 0, 8)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x", "http://", "http://no such host/x", "http://[1/x"]
)
def test_urls_that_lead_nowhere(url: str) -> None:
    with pytest.raises((OSError, ValueError)) as caught:
        read_range(url, 0, 1)
    assert url in str(caught.value)


def test_ranges_that_are_not_there(server: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(DATA)
    for source in (path, io.BytesIO(DATA), f"{server.url}/files/data.bin"):
        name = re.escape(name_of(source))
        with pytest.raises(
            ValueError, match=rf"^{name}: ends at byte 768, and byte {10**15 - 1} is needed"
        ):
            read_range(source, 700, 10**15)
        with pytest.raises(
            ValueError, match=rf"^{name}: range \[8, 7\): expected 0 <= start <= end"
        ):
            read_range(source, 8, 7)
    with pytest.raises(FileNotFoundError):
        read_range(tmp_path / "none.bin", 0, 1)


def test_sources_of_other_kinds() -> None:
    wrong: list[tuple[Any, type[Exception], str]] = [
        (
            io.StringIO("text"),
            TypeError,
            "<StringIO>: expected a path, a URL or a file opened in binary mode",
        ),
        (7, TypeError, "<int>: expected a path"),
    ]
    for source, error, message in wrong:
        with pytest.raises(error, match=message):
            read_range(source, 0, 1)
    pipe = io.BytesIO(b"x")
    pipe.seekable = lambda: False
    with pytest.raises(ValueError, match="<BytesIO>: this stream cannot be read out of order"):
        read_range(pipe, 0, 1)


def test_names_show_no_keys() -> None:
    assert name_of("https://host/net.safetensors?token=secret") == "https://host/net.safetensors"
    assert name_of(Path("a") / "what?") == str(Path("a") / "what?")
    assert name_of(io.BytesIO()) == "<BytesIO>"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://owner/name", ("owner/name", None, "model.safetensors")),
        ("hf://owner/name@v1.0", ("owner/name", "v1.0", "model.safetensors")),
        ("hf://owner/name/x4.safetensors", ("owner/name", None, "x4.safetensors")),
        ("hf://owner/name@main/a/b.safetensors", ("owner/name", "main", "a/b.safetensors")),
        ("hf://owner/name@refs/pr/3/x4.safetensors", ("owner/name", "refs/pr/3", "x4.safetensors")),
        ("hf://owner/name@a%2Fb", ("owner/name", "a/b", "model.safetensors")),
    ],
)
def test_names_on_the_hub(source: str, expected: tuple[str, str | None, str]) -> None:
    assert parse_hub(source) == expected


@pytest.mark.parametrize(
    "source", ["hf://", "hf://name", "hf://owner/", "hf://owner/name@", "hf://o w/name"]
)
def test_wrong_names_on_the_hub(source: str) -> None:
    with pytest.raises(
        ValueError, match=f"^{source}: expected hf://owner/name, hf://owner/name@revision"
    ):
        parse_hub(source)
