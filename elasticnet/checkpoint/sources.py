"""Read ranges of bytes from a file: a path, a packaged net's name, open, a URL, or on the hub."""

from __future__ import annotations

import http.client
import importlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard
from urllib.parse import unquote, urlsplit

from elasticnet.checkpoint.packaged import source_of, why_no_name

TIMEOUT = 30.0  # seconds without a byte from the server
PARTIAL_CONTENT = 206  # HTTP's answer to a request for a range
RANGE_NOT_SATISFIABLE = 416  # HTTP's answer if the file ends before the range
DEFAULT_FILE = "model.safetensors"  # in a repository on the hub
MAX_NAMED = 5  # files that one message names
RUN_FILE = "best.safetensors"  # in the folder of a run, the network to use
HUB_SOURCE = re.compile(
    r"hf://(?P<repo>[^/@\s]+/[^/@\s]+)"
    r"(@(?P<revision>refs/(?:pr|convert)/[^/\s]+|[^/\s]+))?"
    r"(/(?P<file>.+))?"
)
CONTENT_RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?P<size>\d+)")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass
class Remote:
    """A file behind an http(s) URL.

    Attributes:
        url: The URL.
        name: The file's name in messages.
        headers: HTTP headers that are sent to the URL's host, but not to a host it redirects to.
        size: The file's size in bytes; None until the first answer of the server.
    """

    url: str
    name: str
    headers: dict[str, str] = field(default_factory=dict[str, str])
    size: int | None = None


Source = str | os.PathLike[str] | BinaryIO | Remote


def read_range(source: Source, start: int, end: int) -> bytearray:
    """Return the bytes [start, end) of a file.

    Args:
        source: A path, the name of a packaged net such as "asrn-x4" (a file of that name wins), a
            seekable file opened in binary mode, an http or https URL whose server answers range
            requests, or `hf://owner/name[@revision][/file]`.
        start: The first byte.
        end: The byte behind the last one.

    Raises:
        ValueError: The file ends before `end`, or the server does not serve ranges.
        OSError: The file cannot be reached.
    """
    if not 0 <= start <= end:
        raise ValueError(f"{name_of(source)}: range [{start}, {end}): expected 0 <= start <= end")
    with opened(source) as file:
        if start == end:
            return bytearray()
        if isinstance(file, Remote):
            return _fetch(file, start, end)
        return _read(file, start, end)


def size_of(source: Source) -> int:
    """Return the size of a file in bytes.

    Args:
        source: As in `read_range`.

    Raises:
        ValueError: The server does not serve ranges.
        OSError: The file cannot be reached.
    """
    with opened(source) as file:
        if not isinstance(file, Remote):
            return file.seek(0, os.SEEK_END)
        if file.size is None:
            _fetch(file, 0, 1)  # every answer tells the size
        assert file.size is not None
        return file.size


@contextmanager
def opened(source: Source) -> Generator[BinaryIO | Remote, None, None]:
    """Open a source once for many reads; an open file is passed through and stays open.

    Args:
        source: As in `read_range`.

    Yields:
        The open file, or a `Remote` for a file on a server. Both are sources, too.

    Raises:
        TypeError: `source` is not of a kind that `read_range` takes.
        ValueError: `source` is a URL without a host, a stream that cannot seek, or an invalid
            hf:// name.
        OSError: The file cannot be reached.
    """
    located = _located(source)
    if isinstance(located, (str, os.PathLike)):
        with open_local(located) as file:
            yield file
    else:
        yield located


def open_local(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file of weights to read; errors are one line with the path and what to do.

    Args:
        path: Of a file on this machine.

    Returns:
        The open file, in binary mode.

    Raises:
        FileNotFoundError: There is no such file; the message names the weights beside it.
        IsADirectoryError: It is a folder; the message names the likeliest file in it.
        PermissionError: This user may not read it.
        OSError: It cannot be opened for another reason.
    """
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(_why_not_there(Path(path))) from error
    except IsADirectoryError as error:
        raise IsADirectoryError(_why_not_a_folder(Path(path))) from error
    except PermissionError as error:
        # Windows says so of folders, too.
        if Path(path).is_dir():
            raise IsADirectoryError(_why_not_a_folder(Path(path))) from error
        raise PermissionError(f"{os.fspath(path)}: may not be read by this user") from error
    except OSError as error:
        raise OSError(f"{os.fspath(path)}: cannot be opened ({error.strerror})") from error


def name_of(source: Source) -> str:
    """Return a source's name for messages.

    Args:
        source: As in `read_range`.

    Returns:
        A path as it is; a URL without its query, which may hold a secret key; for an open file its
        `name`, or else its type.
    """
    if isinstance(source, Remote):
        return source.name
    if _is_path(source):
        path = os.fspath(source)
        if _is_url(path):
            return path.partition("?")[0]
        return path
    name = getattr(source, "name", None)
    if _is_path(name):
        return str(name)
    return f"<{type(source).__name__}>"


def parse_hub(source: str) -> tuple[str, str | None, str]:
    """Return the parts of a name `hf://owner/name[@revision][/file]`.

    Args:
        source: The name. A slash in a revision is written as %2F, except in refs/pr/1 and
            refs/convert/parquet.

    Returns:
        The repository as "owner/name"; the revision, None for the newest one; the file, by default
        "model.safetensors".

    Raises:
        ValueError: The name has another form.
    """
    match = HUB_SOURCE.fullmatch(source)
    if match is None:
        raise ValueError(
            f"{source}: expected hf://owner/name, hf://owner/name@revision or hf://owner/name/file"
        )
    revision = match["revision"]
    if revision is not None:
        revision = unquote(revision)
    file = match["file"] or DEFAULT_FILE
    return match["repo"], revision, file


def check_hub_library() -> None:
    """Raise unless huggingface_hub is installed.

    Raises:
        ModuleNotFoundError: It is not installed. The message says what to install.
    """
    try:
        importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the hub needs huggingface_hub: pip install "elastic-depth[hub]"'
        ) from error


def _is_path(source: Any) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(source, (str, os.PathLike))


def _is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _located(source: Source) -> str | os.PathLike[str] | BinaryIO | Remote:
    """Return a source as a path, an open file or a URL; raise if it is none of these."""
    if isinstance(source, Remote):
        return source
    if isinstance(source, str) and source.startswith("hf://"):
        return _on_hub(source)
    if isinstance(source, str) and _is_url(source):
        if not _has_host(source):
            raise ValueError(f"{name_of(source)}: a URL without a host")
        return Remote(url=source, name=name_of(source))
    if isinstance(source, str):
        return source_of(source)
    if isinstance(source, os.PathLike):
        return source
    is_file = all(hasattr(source, method) for method in ("read", "seek", "seekable"))
    is_text = hasattr(source, "encoding")
    if not is_file or is_text:
        raise TypeError(
            f"{name_of(source)}: expected a path, a URL or a file opened in binary mode"
        )
    if not source.seekable():
        raise ValueError(
            f"{name_of(source)}: this stream cannot be read out of order: write it to a file first"
        )
    return source


def _has_host(url: str) -> bool:
    """Whether a URL names a host."""
    try:
        return bool(urlsplit(url).hostname)
    except ValueError:  # such as http://[1/x
        return False


def _why_not_there(path: Path) -> str:
    """What to say of a file that is not there: what is there in its place."""
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: there is no such file, and no folder {folder}"
    message = f"{path}: there is no such file{why_no_name(str(path))}"
    files = _weights_in(folder)
    if not files:
        return message
    shown = ", ".join(files[:MAX_NAMED])
    if len(files) > MAX_NAMED:
        shown += ", ..."
    return f"{message}; the weights in {folder} are: {shown}"


def _weights_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _why_not_a_folder(folder: Path) -> str:
    """What to say where a folder stands in a file's place; of its files the likeliest is named."""
    message = f"{folder}: a folder, and a file of weights is needed"
    files = _weights_in(folder)
    if not files:
        return f"{message}; there is none in it whose name ends in .safetensors"
    likeliest = RUN_FILE if RUN_FILE in files else files[0]
    return f"{message}; give a file in it, such as {folder / likeliest}"


def _read(file: BinaryIO, start: int, end: int) -> bytearray:
    """Return the bytes [start, end) of an open file."""
    size = size_of(file)
    if size < end:  # before memory is allocated: a forged header can ask for any number of bytes
        raise ValueError(f"{name_of(file)}: ends at byte {size}, and byte {end - 1} is needed")
    file.seek(start)
    data = bytearray(end - start)
    num_read = 0
    while num_read < len(data):
        part = file.read(len(data) - num_read)  # an unbuffered file may return less
        if not part:
            raise ValueError(
                f"{name_of(file)}: ends at byte {start + num_read}, and byte {end - 1} is needed"
            )
        data[num_read : num_read + len(part)] = part
        num_read += len(part)
    return data


# --- a server


def _fetch(remote: Remote, start: int, end: int) -> bytearray:
    """Return the bytes [start, end) of a remote file, by one request; note the file's size."""
    try:
        request = _range_request(remote, start, end)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            remote.size = _checked_size(remote, response, start, end)
            data = bytearray(response.read(end - start))
    except urllib.error.HTTPError as error:
        with error:  # closes the connection
            raise _error_of_answer(remote, error, end) from error
    except (http.client.HTTPException, OSError) as error:
        reason = _network_reason(error)
        raise OSError(f"{remote.name}: cannot be read ({reason})") from error
    if len(data) < end - start:
        raise OSError(
            f"{remote.name}: the connection ended after {len(data)} of {end - start} bytes"
        )
    return data


def _range_request(remote: Remote, start: int, end: int) -> urllib.request.Request:
    """Return the request for the bytes [start, end), with the remote's headers for its own host."""
    headers = {
        "Range": f"bytes={start}-{end - 1}",
        "Accept-Encoding": "identity",
        "User-Agent": "elasticnet",
    }
    request = urllib.request.Request(remote.url, headers=headers)
    for name, value in remote.headers.items():
        # A token is for the hub, not for the storage server that the hub redirects to.
        request.add_unredirected_header(name, value)
    return request


def _checked_size(remote: Remote, response: Any, start: int, end: int) -> int:
    """Return the file's size from a server's answer; raise unless it is for [start, end)."""
    content_range = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status != PARTIAL_CONTENT or content_range is None:
        raise ValueError(
            f"{remote.name}: the server answers {response.status} where a byte range was asked "
            "for, so that it cannot be read in parts: download the file and load that"
        )
    first = int(content_range["first"])
    last = int(content_range["last"])
    size = int(content_range["size"])
    size_changed = remote.size is not None and remote.size != size
    if first != start or last >= end or size_changed:
        raise ValueError(
            f"{remote.name}: bytes {start}-{end - 1} were asked for, "
            f"and the server sent {content_range[0]}"
        )
    if last + 1 < end:
        raise ValueError(f"{remote.name}: ends at byte {size}, and byte {end - 1} is needed")
    return size


def _network_reason(error: Exception) -> str:
    """Return why a request failed: the message, or the type of an error without a message."""
    cause = getattr(error, "reason", None) or error  # urllib's URLError wraps the cause
    return str(cause) or type(error).__name__


def _error_of_answer(remote: Remote, error: urllib.error.HTTPError, end: int) -> Exception:
    """Return the error to raise if the server answers with an HTTP error."""
    if error.code == RANGE_NOT_SATISFIABLE:
        return ValueError(f"{remote.name}: ends before byte {end - 1}, which is needed")
    return OSError(f"{remote.name}: the server answers {error.code} {error.reason}")


# --- the hub


def _on_hub(source: str) -> Path | Remote:
    """Return where to read a file of the hub: the local cache if it holds the newest version."""
    repo, revision, file = parse_hub(source)
    check_hub_library()
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try_to_load_from_cache = huggingface_hub.try_to_load_from_cache
    cached = try_to_load_from_cache(repo, file, revision=revision)
    is_one_commit = revision is not None and COMMIT.fullmatch(revision)
    if isinstance(cached, str) and is_one_commit:
        return Path(cached)  # a commit never changes, so nobody needs to ask the hub
    url = huggingface_hub.hf_hub_url(repo, file, revision=revision)
    try:
        found = huggingface_hub.get_hf_file_metadata(url)
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        reason = _first_line_with("not found", error)
        raise FileNotFoundError(
            f"{source}: not on the hub, or not for this user ({reason})"
        ) from error
    except Exception as error:  # any type: the hub's library changed its HTTP client twice
        if isinstance(cached, str):
            return Path(cached)  # without a connection, the cached version has to do
        raise OSError(
            f"{source}: the hub cannot be reached ({_first_line(error)}), "
            "and the file is not in the local cache"
        ) from error
    if found.commit_hash:
        newest = try_to_load_from_cache(repo, file, revision=found.commit_hash)
        if isinstance(newest, str):
            return Path(newest)
    headers: dict[str, str] = {}
    if _same_host(found.location, url):
        headers = _authorization(huggingface_hub.utils.build_hf_headers())
    return Remote(url=found.location, name=source, headers=headers, size=found.size)


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message; the error's type if the message is empty."""
    lines = str(error).splitlines()
    if not lines:
        return type(error).__name__
    return lines[0]


def _first_line_with(text: str, error: Exception) -> str:
    """Return the first line of an error's message that contains a text, else the first line."""
    for line in str(error).splitlines():
        if text in line.lower():
            return line
    return _first_line(error)


def _same_host(url: str, other: str) -> bool:
    """Whether two URLs have the same host and port."""
    return urlsplit(url).netloc == urlsplit(other).netloc


def _authorization(headers: dict[str, str]) -> dict[str, str]:
    """Return the headers that hold the user's token."""
    return {name: value for name, value in headers.items() if name.lower() == "authorization"}
