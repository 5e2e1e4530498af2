"""Byte ranges of a file, wherever it lies: a path, an open file, an http(s) URL, the hub; one
function reads them.
"""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

TIMEOUT = 30.0  # seconds without a byte from the server
DEFAULT_FILE = "model.safetensors"  # of a repository on the hub
HUB = re.compile(
    r"hf://(?P<repo>[^/@\s]+/[^/@\s]+)(@(?P<revision>refs/(?:pr|convert)/[^/\s]+|[^/\s]+))?(/(?P<file>.+))?"
)
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class Remote:
    """A file behind an http(s) URL.

    name: as messages show it. headers: sent to this URL's host, and not where it redirects to.
    size: in bytes, None until the first answer tells it.
    """

    url: str
    name: str
    headers: dict[str, str] = field(default_factory=dict)
    size: int | None = None


Source = str | os.PathLike[str] | BinaryIO | Remote


def read_range(source: Source, start: int, end: int) -> bytearray:
    """Return the bytes [start, end) of a file, all of them.

    source: a path, a seekable file opened in binary mode, an http or https URL whose server answers
    range requests, or hf://owner/name[@revision][/file]. Raises ValueError where the file ends
    earlier or the server does not serve ranges, and OSError where the file cannot be reached.
    """
    if not 0 <= start <= end:
        raise ValueError(f"{name_of(source)}: range [{start}, {end}): expected 0 <= start <= end")
    with opened(source) as file:
        if start == end:
            return bytearray()
        return _fetch(file, start, end) if isinstance(file, Remote) else _read(file, start, end)


def size_of(source: Source) -> int:
    """Return the size of a file in bytes."""
    with opened(source) as file:
        if not isinstance(file, Remote):
            return file.seek(0, os.SEEK_END)
        if file.size is None:
            _fetch(file, 0, 1)
        assert file.size is not None
        return file.size


@contextmanager
def opened(source: Source) -> Iterator[BinaryIO | Remote]:
    """Open a source once for many reads; one that is open already stays so."""
    located = _located(source)
    if isinstance(located, (str, os.PathLike)):
        with open(located, "rb") as file:
            yield file
    else:
        yield located


def name_of(source: Source) -> str:
    """Return a source's name as messages show it: a URL without its query, which may hold a key."""
    if isinstance(source, Remote):
        return source.name
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source).partition("?")[0] if _is_url(source) else os.fspath(source)
    name = getattr(source, "name", None)
    return str(name) if isinstance(name, (str, os.PathLike)) else f"<{type(source).__name__}>"


def parse_hub(source: str) -> tuple[str, str | None, str]:
    """Return repository, revision and file of hf://owner/name[@revision][/file].

    No revision means the newest, no file "model.safetensors". A slash in a revision is written %2F
    (refs/pr/1 may stand as it is).
    """
    match = HUB.fullmatch(source)
    if match is None:
        raise ValueError(
            f"{source}: expected hf://owner/name, hf://owner/name@revision or hf://owner/name/file"
        )
    revision = match["revision"]
    return match["repo"], unquote(revision) if revision else None, match["file"] or DEFAULT_FILE


def hub_library() -> None:
    """Raise a ModuleNotFoundError that names the extra where huggingface_hub is not installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the hub needs huggingface_hub: pip install "elastic-depth[hub]"'
        ) from error


def _is_url(source: str | os.PathLike[str]) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def _located(source: Source) -> str | os.PathLike[str] | BinaryIO | Remote:
    if isinstance(source, str) and source.startswith("hf://"):
        return _on_hub(source)
    if isinstance(source, str) and _is_url(source):
        try:
            host = urlsplit(source).hostname
        except ValueError:
            host = None
        if not host:
            raise ValueError(f"{name_of(source)}: a URL without a host")
        return Remote(source, name_of(source))
    if isinstance(source, (str, os.PathLike)):
        return source
    if isinstance(source, Remote):
        return source
    if not all(hasattr(source, method) for method in ("read", "seek", "seekable")) or hasattr(
        source, "encoding"
    ):
        raise TypeError(
            f"{name_of(source)}: expected a path, a URL or a file opened in binary mode"
        )
    if not source.seekable():
        raise ValueError(
            f"{name_of(source)}: this stream cannot be read out of order: write it to a file first"
        )
    return source


def _read(file: BinaryIO, start: int, end: int) -> bytearray:
    size = size_of(file)
    if size < end:  # before memory is taken for what is not there
        raise ValueError(f"{name_of(file)}: ends at byte {size}, and byte {end - 1} is needed")
    file.seek(start)
    data = bytearray(end - start)
    position = 0
    while position < len(data):
        part = file.read(len(data) - position)
        if not part:
            raise ValueError(
                f"{name_of(file)}: ends at byte {start + position}, and byte {end - 1} is needed"
            )
        data[position : position + len(part)] = part
        position += len(part)
    return data


def _fetch(remote: Remote, start: int, end: int) -> bytearray:
    headers = {
        "Range": f"bytes={start}-{end - 1}",
        "Accept-Encoding": "identity",
        "User-Agent": "elasticnet",
    }
    try:
        request = urllib.request.Request(remote.url, headers=headers)
        for name, value in remote.headers.items():
            # a token is the hub's, and not its storage's
            request.add_unredirected_header(name, value)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status != 206 or found is None:
                raise ValueError(
                    f"{remote.name}: the server answers {response.status} where a byte range was asked for, so that it "
                    "cannot be read in parts: download the file and load that"
                )
            first, last, size = map(int, found.groups())
            if first != start or last >= end or remote.size not in (None, size):
                raise ValueError(
                    f"{remote.name}: bytes {start}-{end - 1} were asked for, and the server sent {found[0]}"
                )
            remote.size = size
            if last + 1 < end:
                raise ValueError(
                    f"{remote.name}: ends at byte {size}, and byte {end - 1} is needed"
                )
            data = bytearray(response.read(end - start))
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                raise ValueError(
                    f"{remote.name}: ends before byte {end - 1}, which is needed"
                ) from error
            raise OSError(
                f"{remote.name}: the server answers {error.code} {error.reason}"
            ) from error
    except (http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise OSError(
            f"{remote.name}: cannot be read ({str(reason) or type(reason).__name__})"
        ) from error
    if len(data) < end - start:
        raise OSError(
            f"{remote.name}: the connection ended after {len(data)} of {end - start} bytes"
        )
    return data


def _on_hub(source: str) -> Path | Remote:
    """Where a file of the hub is to be read: in the local cache if it is the newest, else by ranges
    from the hub.
    """
    repo, revision, file = parse_hub(source)
    hub_library()
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import build_hf_headers

    cached = try_to_load_from_cache(repo, file, revision=revision)
    if isinstance(cached, str) and COMMIT.fullmatch(revision or ""):
        return Path(cached)
    url, headers = hf_hub_url(repo, file, revision=revision), build_hf_headers()
    try:
        found = get_hf_file_metadata(url)
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "not found" in line.lower()), lines[0])
        raise FileNotFoundError(
            f"{source}: not on the hub, or not for this user ({reason})"
        ) from error
    except Exception as error:  # of whatever http client the hub's library uses; it changed twice
        if isinstance(cached, str):
            return Path(cached)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(
            f"{source}: the hub cannot be reached ({reason}), and the file is not in the local cache"
        ) from error
    if found.commit_hash:
        newest = try_to_load_from_cache(repo, file, revision=found.commit_hash)
        if isinstance(newest, str):
            return Path(newest)
    same_host = urlsplit(found.location).netloc == urlsplit(url).netloc
    authorization = {
        name: value
        for name, value in headers.items()
        if same_host and name.lower() == "authorization"
    }
    return Remote(found.location, source, authorization, found.size)
