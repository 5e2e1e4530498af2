"""Download DIV2K: resumed after an interruption, checked by MD5, unpacked safely."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NoReturn

from filelock import FileLock
from tqdm import tqdm

DIV2K_URL = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
# MD5 sums as several public loaders of this data set list them; they agree in every one.
DIV2K_MD5 = {
    "DIV2K_train_HR.zip": "bdc2d9338d4e574fe81bf7d158758658",
    "DIV2K_train_LR_bicubic_X2.zip": "9a637d2ef4db0d0a81182be37fb00692",
    "DIV2K_train_LR_bicubic_X3.zip": "ad80b9fe40c049a07a8a6c51bfab3b6d",
    "DIV2K_train_LR_bicubic_X4.zip": "76c43ec4155851901ebbe8339846d93d",
    "DIV2K_train_LR_x8.zip": "613db1b855721b3d2b26f4194a1d22a6",
    "DIV2K_valid_HR.zip": "9fcdda83005c5e5997799b69f955ff88",
    "DIV2K_valid_LR_bicubic_X2.zip": "1512c9a3f7bde2a1a21a73044e46b9cb",
    "DIV2K_valid_LR_bicubic_X3.zip": "18b1d310f9f88c13618c287927b29898",
    "DIV2K_valid_LR_bicubic_X4.zip": "21962de700c8d368c6ff83314480eff0",
    "DIV2K_valid_LR_x8.zip": "c5aeea2004e297e9ff3abfbe143576a5",
}
DIV2K_SPLITS = ("train", "valid")
DIV2K_LR_SCALES = (2, 3, 4, 8)
CHUNK_BYTES = 2**20  # read and written at a time

# Statuses of HTTP.
PARTIAL_CONTENT = 206
REQUEST_TIMEOUT = 408
RANGE_NOT_SATISFIABLE = 416
TOO_MANY_REQUESTS = 429


class DownloadError(RuntimeError):
    """A download that could not be completed or is not what it should be, and what to do."""


class _ConnectionLost(Exception):
    """The network's part of a failure, which is tried again; a full disk is not."""


def download_div2k(
    folder: str | os.PathLike[str],
    scale: int | None = None,
    *,
    splits: Iterable[str] = DIV2K_SPLITS,
    url: str = DIV2K_URL,
    keep_zips: bool = False,
    progress: bool = True,
) -> Path:
    """Download and unpack DIV2K, in the layout "div2k" of `find_pairs`.

    Archives that are unpacked already are not fetched again, and an interrupted download goes on
    where it stopped.

    Args:
        folder: Where to unpack; it is made if it is not there.
        scale: 2, 3, 4 or 8 for the bicubic LR images beside the HR images, which are about 4 GB for
            both splits. With None, LR is made from HR when the set is loaded.
        splits: "train", "valid" or both.
        url: The address of the folder that holds the archives.
        keep_zips: Whether to keep the archives once they are unpacked.
        progress: Whether to show progress bars, where standard error is a terminal.

    Returns:
        The folder.

    Raises:
        ValueError: There is no such scale or split.
        DownloadError: An archive cannot be fetched, is damaged, or does not fit the disk.
    """
    names = _archives(scale, splits)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        record = folder / f".{name}.unpacked.json"
        with FileLock(folder / f".{name}.lock"):
            if _is_unpacked(record, folder):
                continue
            archive = fetch(f"{url}/{name}", folder / name, DIV2K_MD5[name], progress=progress)
            sizes = unzip(archive, folder, progress=progress)
            record.write_text(json.dumps(sizes), encoding="utf-8")
            if not keep_zips:
                archive.unlink()
    return folder


def fetch(
    url: str,
    path: Path,
    md5: str | None = None,
    *,
    attempts: int = 5,
    wait_s: float = 1.0,
    timeout_s: float = 60.0,
    progress: bool = True,
) -> Path:
    """Download a file, which appears only when it is complete and of the given MD5 sum.

    Bytes gather in `path` + ".part". A later call or attempt goes on from the end of that file. If
    the sum differs after an older part was resumed, the file is fetched once more from its start.

    Args:
        url: The file's address.
        path: Where to put it. If it is there with the given sum, nothing is fetched.
        md5: The sum in hexadecimal digits; None checks nothing.
        attempts: How often in a row to try without a single new byte.
        wait_s: Seconds before the second attempt; the wait doubles for each further one.
        timeout_s: Seconds without an answer after which a connection counts as lost.
        progress: Whether to show progress bars, where standard error is a terminal.

    Returns:
        `path`.

    Raises:
        DownloadError: The server refuses, all attempts failed, the sum is wrong, or the file does
            not fit the disk.
    """
    if path.exists() and (md5 is None or _md5(path, progress) == md5):
        return path
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    while True:
        _receive_all(url, part, attempts, wait_s, timeout_s, progress)
        found = None if md5 is None else _md5(part, progress)
        if found == md5:
            os.replace(part, path)
            return path
        part.unlink()
        if not resumed:
            raise DownloadError(
                f"{url}: the file received has MD5 {found}, expected {md5}; "
                "it is damaged or was changed and has been removed; "
                f"try again later, or put a good copy at {path}"
            )
        resumed = False


def unzip(path: Path, folder: Path, *, progress: bool = True) -> dict[str, int]:
    """Unpack a zip file; every file appears only when it is complete and its CRC is right.

    Args:
        path: The zip file.
        folder: Where to unpack. An archive with a link, a device, an encrypted file, an absolute
            name or a name that leads out of the folder is refused before anything is written.
        progress: Whether to show a progress bar, where standard error is a terminal.

    Returns:
        The unpacked files, name -> size in bytes.

    Raises:
        DownloadError: The archive is refused or damaged, or does not fit the disk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _unpack(archive, path, folder, progress)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DownloadError(
            f"{path} is damaged ({error}); remove it and download it again"
        ) from error


def _archives(scale: int | None, splits: Iterable[str]) -> list[str]:
    """Return the names of DIV2K's archives for a scale and splits."""
    if scale is not None and scale not in DIV2K_LR_SCALES:
        raise ValueError(
            f"scale {scale}: DIV2K has LR images for 2, 3, 4, 8; leave scale out to make LR from HR"
        )
    names: list[str] = []
    for split in splits:
        if split not in DIV2K_SPLITS:
            raise ValueError(f"split {split!r}: expected 'train' or 'valid'")
        names.append(f"DIV2K_{split}_HR.zip")
        if scale == 8:
            names.append(f"DIV2K_{split}_LR_x8.zip")
        elif scale is not None:
            names.append(f"DIV2K_{split}_LR_bicubic_X{scale}.zip")
    return names


def _is_unpacked(record: Path, folder: Path) -> bool:
    """Whether all files of an archive lie in the folder, in the sizes that the record tells."""
    try:
        sizes = json.loads(record.read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False  # never unpacked, a file is gone, or the record is damaged


# --- unpacking


def _unpack(archive: zipfile.ZipFile, path: Path, folder: Path, progress: bool) -> dict[str, int]:
    members = archive.infolist()
    for member in members:
        _refuse_unsafe(member, path)
    files = [member for member in members if not member.is_dir()]
    total = sum(member.file_size for member in files)
    _require_space(folder, total, f"unpacking {path.name}")
    hidden = None if progress else True  # None: unless standard error is a terminal
    for member in tqdm(files, desc=f"unpacking {path.name}", unit="file", disable=hidden):
        target = folder / member.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        with archive.open(member) as source, open(part, "wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)
        os.replace(part, target)
    return {member.filename: member.file_size for member in files}


def _refuse_unsafe(member: zipfile.ZipInfo, path: Path) -> None:
    """Raise for a member that would be written outside the folder, or is no plain file."""
    name = PurePosixPath(member.filename)
    # On Windows a backslash separates folders, and a colon begins a drive or a stream.
    leads_outside = name.is_absolute() or ".." in name.parts
    if leads_outside or re.search(r"[\\:]", member.filename):
        raise DownloadError(
            f"{path} holds {member.filename!r}, which leads outside; nothing was unpacked"
        )
    # The upper 16 bits are the file's mode on Unix, 0 if the archive was made elsewhere.
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DownloadError(
            f"{path} holds {member.filename!r}, a link or device; nothing was unpacked"
        )
    is_encrypted = member.flag_bits & 1
    if is_encrypted:
        raise DownloadError(
            f"{path} holds {member.filename!r}, which is encrypted; nothing was unpacked"
        )


# --- receiving


def _receive_all(
    url: str, part: Path, attempts: int, wait_s: float, timeout_s: float, progress: bool
) -> None:
    """Receive the rest of a file, over as many connections as it takes."""
    failures = 0  # in a row, without a new byte
    while True:
        before = _size(part)
        try:
            _receive(url, part, timeout_s, progress)
            return
        except _ConnectionLost as error:
            now = _size(part)
            failures = 0 if now > before else failures + 1
            if failures >= attempts:
                raise DownloadError(
                    f"{url}: gave up at byte {now:,} after {attempts} attempts without progress "
                    f"({error}); run again to go on from there"
                ) from error
        time.sleep(wait_s * 2 ** max(failures - 1, 0))


def _receive(url: str, part: Path, timeout_s: float, progress: bool) -> None:
    """Receive what is missing at the end of `part`, over one connection."""
    have = _size(part)
    response = _open(url, part, have, timeout_s)
    if response is None:
        return
    with response:
        if response.status == PARTIAL_CONTENT:
            content_range = response.headers.get("Content-Range")
            if not (content_range or "").startswith(f"bytes {have}-"):
                part.unlink()
                raise _ConnectionLost(f"asked for byte {have:,}, got {content_range}")
            mode = "ab"
        else:  # a server that knows no ranges sends the whole file
            have = 0
            mode = "wb"
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        if total is not None:
            _require_space(part.parent, total - have, f"downloading {url}")
        with (
            open(part, mode) as file,
            _byte_bar(part.stem, total, progress, initial=have) as bar,
        ):
            for chunk in _chunks(response):
                file.write(chunk)
                bar.update(len(chunk))
            received = file.tell()
        if total is not None and received < total:
            raise _ConnectionLost(f"the connection ended at byte {received:,} of {total:,}")


def _open(url: str, part: Path, have: int, timeout_s: float) -> http.client.HTTPResponse | None:
    """Ask for the file from byte `have` on; None if the part is complete."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        status = f"HTTP {error.code} {error.reason}"
        if error.code == RANGE_NOT_SATISFIABLE:
            # There is nothing from byte `have` on: the part is complete, or is of another file.
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return None
            part.unlink()
            raise _ConnectionLost(f"the part of {have:,} bytes was no beginning of it") from error
        if error.code >= 500 or error.code in (REQUEST_TIMEOUT, TOO_MANY_REQUESTS):
            raise _ConnectionLost(status) from error
        raise DownloadError(f"{url}: {status}; check the address") from error
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(str(error) or type(error).__name__) from error


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield a response's bytes; what goes wrong here is the network's fault."""
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _ConnectionLost(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


# --- sizes, sums, bars


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise if a folder's disk has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{purpose} needs {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free; "
            "make room or choose another folder"
        )


def _md5(path: Path, progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    title = f"checking {path.name}"
    with open(path, "rb") as file, _byte_bar(title, path.stat().st_size, progress) as bar:
        for chunk in _file_chunks(file):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _file_chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _byte_bar(title: str, total: int | None, progress: bool, initial: int = 0) -> tqdm[NoReturn]:
    """A bar of bytes, which is drawn on a terminal alone."""
    return tqdm(
        desc=title,
        total=total,
        initial=initial,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: unless standard error is a terminal
    )
