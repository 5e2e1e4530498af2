"""Downloads from a loopback server that drops connections and serves damaged files; unpacking."""

from __future__ import annotations

import hashlib
import io
import stat
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elasticnet.sr.data import download, find_pairs, load_pairs
from elasticnet.sr.data.download import DIV2K_MD5, DownloadError, download_div2k, fetch, unzip

CONTENT = np.random.default_rng(0).bytes(300_000)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Server:
    """Files by name, and how often which part of them was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"file.bin": CONTENT}
        self.requests: list[tuple[str, str | None]] = []
        # bytes to send before hanging up, one entry per coming answer
        self.drop_after: list[int] = []
        self.statuses: list[int] = []  # errors to answer with, one per coming request
        self.ranges = True
        self.shift = 0  # lie about the start of a range
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/")
        asked = request.headers.get("Range")
        self.requests.append((name, asked))
        request.close_connection = True
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        if name not in self.files:
            request.send_error(404)
            return
        content = self.files[name]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if start >= len(content) > 0:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        body = content[start:]
        if asked and self.ranges:
            request.send_response(206)
            first = start + self.shift
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.drop_after.pop(0)] if self.drop_after else body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Path]:
    def get(
        name: str = "file.bin", attempts: int = 3, wait_s: float = 0, progress: bool = False
    ) -> Path:
        address = f"{server.url}/{name}"
        return fetch(
            address,
            tmp_path / name,
            md5(CONTENT),
            attempts=attempts,
            wait_s=wait_s,
            progress=progress,
        )

    return get


def ranges(server: Server) -> list[str | None]:
    return [asked for _, asked in server.requests]


def test_whole_file(server: Server, get: Callable[..., Path], tmp_path: Path) -> None:
    assert get().read_bytes() == CONTENT
    assert ranges(server) == [None]
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]
    get()
    assert len(server.requests) == 1  # there already


def test_a_dropped_connection_is_resumed(server: Server, get: Callable[..., Path]) -> None:
    server.drop_after = [150_000, 1, 149_998]
    assert get().read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-", "bytes=150001-", "bytes=299999-"]


def test_a_later_call_goes_on(server: Server, get: Callable[..., Path], tmp_path: Path) -> None:
    server.drop_after = [120_000, 0, 0]
    with pytest.raises(
        DownloadError,
        match=(
            r"file\.bin: gave up at byte 120,000 after 2 attempts "
            r".*ended at byte 120,000 of 300,000.*run again"
        ),
    ):
        get(attempts=2)
    assert not (tmp_path / "file.bin").exists()
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:120_000]
    assert get().read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=120000-"


def test_progress_renews_the_patience(server: Server, get: Callable[..., Path]) -> None:
    server.drop_after = [10, 0, 10, 0, 10, 0, 10, 0]
    assert get(attempts=2).read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(server: Server, get: Callable[..., Path]) -> None:
    server.ranges = False
    server.drop_after = [150_000]
    assert get().read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-"]


def test_a_wrong_range_is_not_appended(server: Server, get: Callable[..., Path]) -> None:
    server.drop_after = [150_000]
    server.shift = 5
    assert get().read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-", None]


def test_a_complete_part_is_taken(server: Server, get: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT
    assert ranges(server) == ["bytes=300000-"]


@pytest.mark.parametrize("part", [b"x" * 400_000, b"x" * 300_000, b"x" * 1000])
def test_a_part_of_something_else_is_replaced(
    server: Server, get: Callable[..., Path], tmp_path: Path, part: bytes
) -> None:
    (tmp_path / "file.bin.part").write_bytes(part)
    assert get().read_bytes() == CONTENT


def test_without_a_sum_a_part_too_long_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 400_000)
    path = fetch(f"{server.url}/file.bin", tmp_path / "file.bin", wait_s=0, progress=False)
    assert path.read_bytes() == CONTENT


def test_a_damaged_file_is_refused_and_removed(
    server: Server, get: Callable[..., Path], tmp_path: Path
) -> None:
    server.files["file.bin"] = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    found = md5(server.files["file.bin"])
    with pytest.raises(
        DownloadError, match=rf"has MD5 {found}, expected {md5(CONTENT)}; it is damaged"
    ):
        get()
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


def test_a_damaged_copy_on_disk_is_fetched_anew(get: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"old")
    assert get().read_bytes() == CONTENT


def test_server_errors_are_tried_again(server: Server, get: Callable[..., Path]) -> None:
    server.statuses = [503, 500]
    assert get().read_bytes() == CONTENT
    server.statuses = [404, 200]
    with pytest.raises(DownloadError, match=r"gone\.bin: HTTP 404"):
        get(name="gone.bin")
    assert server.statuses == [200]  # not tried again
    server.statuses = [503] * 3
    with pytest.raises(
        DownloadError, match=r"other\.bin: gave up at byte 0 after 3 attempts .*HTTP 503"
    ):
        get(name="other.bin")


def test_no_server(tmp_path: Path) -> None:
    server = Server()
    server.http.server_close()
    with pytest.raises(DownloadError, match="gave up at byte 0 after 2 attempts"):
        fetch(f"{server.url}/file.bin", tmp_path / "file.bin", attempts=2, wait_s=0, progress=False)


def test_waits_double(
    server: Server, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server.statuses = [503] * 4
    get(wait_s=0.5, attempts=5)
    assert waits == [0.5, 1, 2, 4]


def test_progress_is_shown_on_a_terminal(
    get: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    get(progress=True)
    unzip(zipped(tmp_path / "a.zip", {"a.txt": b"a"}), tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "file.bin: 100%" in shown
    assert "checking file.bin.part: 100%" in shown
    assert "unpacking a.zip: 100%" in shown


def test_no_progress_goes_into_pipes_and_files(
    get: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    get(progress=True)
    unzip(zipped(tmp_path / "a.zip", {"a.txt": b"a"}), tmp_path, progress=True)
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_told_before(
    server: Server, get: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(
        DownloadError, match=r"downloading .*file\.bin needs 0\.0 GB, but .* has 0\.0 GB free"
    ):
        get()


# Unpacking.


def zipped(path: Path, files: dict[str, bytes], mode: int | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            if mode is not None:
                member.external_attr = mode << 16
            archive.writestr(member, content)
    return path


def test_unzip(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path / "a.zip", {"set/": b"", "set/0001.png": b"one", "set/X2/0001x2.png": b"two"}
    )
    assert unzip(archive, tmp_path / ".", progress=False) == {
        "set/0001.png": 3,
        "set/X2/0001x2.png": 3,
    }
    assert (tmp_path / "set/0001.png").read_bytes() == b"one"
    assert (tmp_path / "set/X2/0001x2.png").read_bytes() == b"two"
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "name",
    [
        "../out.txt",
        "set/../../out.txt",
        "/out.txt",
        "C:/out.txt",
        "C:out.txt",
        "..\\out.txt",
        "set\\..\\out.txt",
    ],
)
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    archive = zipped(tmp_path / "a.zip", {"good.txt": b"good", name: b"bad"})
    with pytest.raises(
        DownloadError, match=r"a\.zip holds '.*out\.txt', which leads outside; nothing was unpacked"
    ):
        unzip(archive, folder, progress=False)
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "inside"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    archive = zipped(tmp_path / "a.zip", {"link": b"/etc"}, kind | 0o644)
    with pytest.raises(
        DownloadError, match=r"a\.zip holds 'link', a link or device; nothing was unpacked"
    ):
        unzip(archive, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"secret": b"text"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    archive.write_bytes(content)
    with pytest.raises(DownloadError, match="holds 'secret', which is encrypted"):
        unzip(archive, tmp_path, progress=False)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_archives_are_named(tmp_path: Path, damage: str) -> None:
    archive = zipped(tmp_path / "a.zip", {"noise.bin": CONTENT})
    content = bytearray(archive.read_bytes())
    if damage == "cut":
        del content[1000:]
    else:
        content[1000] ^= 1
    archive.write_bytes(content)
    with pytest.raises(
        DownloadError, match=r"a\.zip is damaged \(.*\); remove it and download it again"
    ):
        unzip(archive, tmp_path, progress=False)
    assert not (tmp_path / "noise.bin").exists()


# DIV2K as a whole.


def png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(
        np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def div2k_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Two small images in the archives of DIV2K, whose sums stand in the place of the published."""
    members = {
        "DIV2K_train_HR.zip": {"DIV2K_train_HR/": b"", "DIV2K_train_HR/0001.png": png(24, 36)},
        "DIV2K_valid_HR.zip": {"DIV2K_valid_HR/0801.png": png(12, 12)},
        "DIV2K_train_LR_bicubic_X2.zip": {"DIV2K_train_LR_bicubic/X2/0001x2.png": png(12, 18)},
        "DIV2K_valid_LR_bicubic_X2.zip": {"DIV2K_valid_LR_bicubic/X2/0801x2.png": png(6, 6)},
        "DIV2K_valid_LR_x8.zip": {"DIV2K_valid_LR_x8/0801x8.png": png(1, 1)},
    }
    for name, files in members.items():
        server.files[name] = zipped(tmp_path / "made.zip", files).read_bytes()
        monkeypatch.setitem(DIV2K_MD5, name, md5(server.files[name]))
    (tmp_path / "made.zip").unlink()
    return server


def test_div2k_is_downloaded_and_found(div2k_server: Server, tmp_path: Path) -> None:
    folder = download_div2k(tmp_path / "new" / "DIV2K", 2, url=div2k_server.url, progress=False)
    assert not list(folder.glob("[!.]*.zip*"))
    (train,) = find_pairs(folder, 2)
    assert train == (
        "0001",
        folder / "DIV2K_train_HR/0001.png",
        folder / "DIV2K_train_LR_bicubic/X2/0001x2.png",
    )
    assert load_pairs(folder, 2, split="valid", progress=False).hr(0).shape == (12, 12, 3)


def test_only_what_is_missing_is_fetched(div2k_server: Server, tmp_path: Path) -> None:
    def names(scale: int | None) -> list[str]:
        div2k_server.requests.clear()
        download_div2k(tmp_path, scale, splits=("valid",), url=div2k_server.url, progress=False)
        return [name for name, _ in div2k_server.requests]

    assert names(None) == ["DIV2K_valid_HR.zip"]
    assert names(8) == ["DIV2K_valid_LR_x8.zip"]
    assert names(8) == []
    (tmp_path / "DIV2K_valid_HR/0801.png").unlink()
    assert names(8) == ["DIV2K_valid_HR.zip"]
    assert (tmp_path / "DIV2K_valid_HR/0801.png").exists()


def test_zips_are_kept_on_request(div2k_server: Server, tmp_path: Path) -> None:
    download_div2k(
        tmp_path, splits=("valid",), url=div2k_server.url, keep_zips=True, progress=False
    )
    assert (tmp_path / "DIV2K_valid_HR.zip").read_bytes() == div2k_server.files[
        "DIV2K_valid_HR.zip"
    ]


def test_damaged_div2k_is_not_unpacked(div2k_server: Server, tmp_path: Path) -> None:
    div2k_server.files["DIV2K_valid_HR.zip"] = zipped(
        tmp_path / "x.zip", {"DIV2K_valid_HR/x.png": b"x"}
    ).read_bytes()
    with pytest.raises(DownloadError, match=r"DIV2K_valid_HR\.zip: the file received has MD5"):
        download_div2k(tmp_path, splits=("valid",), url=div2k_server.url, progress=False)
    assert not (tmp_path / "DIV2K_valid_HR").exists()


def test_wrong_scale_and_split(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"scale 5: DIV2K has LR images for 2, 3, 4, 8; leave scale out"
    ):
        download_div2k(tmp_path, 5)
    with pytest.raises(ValueError, match=r"split 'test': expected 'train' or 'valid'"):
        download_div2k(tmp_path, splits=("test",))


def test_every_archive_has_a_sum() -> None:
    parts = ["HR", "LR_bicubic_X2", "LR_bicubic_X3", "LR_bicubic_X4", "LR_x8"]
    assert set(DIV2K_MD5) == {
        f"DIV2K_{split}_{part}.zip" for split in ("train", "valid") for part in parts
    }
    assert all(len(value) == 32 for value in DIV2K_MD5.values())
    assert len(set(DIV2K_MD5.values())) == 10
