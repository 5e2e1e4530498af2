"""Download DIV2K: resumed after an interruption, checked by MD5, unpacked without leaving its
folder.
"""

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
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

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
_CHUNK = 1 << 20


class DownloadError(RuntimeError):
    """A download that could not be completed or is not what it should be; the message says what to
    do.
    """


class _ConnectionLost(Exception):
    """The network's part of a failure, to be tried again; a full disk is not."""


def download_div2k(
    folder: str | os.PathLike[str],
    scale: int | None = None,
    *,
    splits: Iterable[str] = ("train", "valid"),
    url: str = DIV2K_URL,
    keep_zips: bool = False,
    progress: bool = True,
) -> Path:
    """Download and unpack DIV2K into `folder` and return it.

    HR images always, about 4 GB for both splits; with `scale` 2, 3, 4 or 8 also the bicubic LR
    images, otherwise LR is made from HR when the set is loaded. The result has the layout "div2k"
    of `find_pairs`.

    Archives that are unpacked already are not fetched again, and an interrupted download goes on
    where it stopped. Zips are removed once unpacked unless `keep_zips`. Raises `DownloadError`.
    """
    if scale not in (None, 2, 3, 4, 8):
        raise ValueError(
            f"scale {scale}: DIV2K has LR images for 2, 3, 4, 8; leave scale out to make LR from HR"
        )
    names = []
    for split in splits:
        if split not in ("train", "valid"):
            raise ValueError(f"split {split!r}: expected 'train' or 'valid'")
        names.append(f"DIV2K_{split}_HR.zip")
        if scale is not None:
            names.append(f"DIV2K_{split}_LR_{'x8' if scale == 8 else f'bicubic_X{scale}'}.zip")
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
    """Download `url` to `path`, which appears only when complete and of the given MD5 sum; return
    `path`.

    Bytes gather in `path` + ".part", from whose end a later call or attempt goes on. A lost
    connection is tried again, up to `attempts` times in a row without a new byte, after waits that
    double from `wait_s` seconds. A sum that differs after resuming an older part is tried once more
    from the start. Raises `DownloadError`.
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
                f"{url}: the file received has MD5 {found}, expected {md5}; it is damaged or was changed and "
                f"has been removed; try again later, or put a good copy at {path}"
            )
        resumed = False


def unzip(path: Path, folder: Path, *, progress: bool = True) -> dict[str, int]:
    """Unpack a zip file into `folder` and return its files, name -> size in bytes.

    Every file appears only when it is complete and its CRC is right. Before anything is written, an
    archive with a link, a device, an absolute name or a name that leads out of `folder` is refused
    with `DownloadError`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                _refuse_unsafe(member, path)
            files = [member for member in members if not member.is_dir()]
            _require_space(
                folder, sum(member.file_size for member in files), f"unpacking {path.name}"
            )
            for member in tqdm(
                files, desc=f"unpacking {path.name}", unit="file", disable=not progress
            ):
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(target.name + ".part")
                with archive.open(member) as source, open(part, "wb") as sink:
                    shutil.copyfileobj(source, sink, _CHUNK)
                os.replace(part, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DownloadError(
            f"{path} is damaged ({error}); remove it and download it again"
        ) from error
    return {member.filename: member.file_size for member in files}


def _refuse_unsafe(member: zipfile.ZipInfo, path: Path) -> None:
    name = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on Unix
    if name.is_absolute() or ".." in name.parts or re.search(r"[\\:]", member.filename):
        raise DownloadError(
            f"{path} holds {member.filename!r}, which leads outside; nothing was unpacked"
        )
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DownloadError(
            f"{path} holds {member.filename!r}, a link or device; nothing was unpacked"
        )
    if member.flag_bits & 1:
        raise DownloadError(
            f"{path} holds {member.filename!r}, which is encrypted; nothing was unpacked"
        )


def _receive_all(
    url: str, part: Path, attempts: int, wait_s: float, timeout_s: float, progress: bool
) -> None:
    failures = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            _receive(url, part, have, timeout_s, progress)
            return
        except _ConnectionLost as error:
            now = part.stat().st_size if part.exists() else 0
            failures = 0 if now > have else failures + 1
            if failures >= attempts:
                raise DownloadError(
                    f"{url}: gave up at byte {now:,} after {attempts} attempts without progress ({error}); "
                    "run again to go on from there"
                ) from error
        time.sleep(wait_s * 2 ** max(failures - 1, 0))


def _receive(url: str, part: Path, have: int, timeout_s: float, progress: bool) -> None:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after byte `have`: complete, or not a part of this file
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            raise _ConnectionLost(f"the part of {have:,} bytes was no beginning of it") from error
        if error.code >= 500 or error.code in (408, 429):
            raise _ConnectionLost(f"HTTP {error.code} {error.reason}") from error
        raise DownloadError(
            f"{url}: HTTP {error.code} {error.reason}; check the address"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(str(error) or type(error).__name__) from error

    with response:
        resumes = response.status == 206
        if resumes and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise _ConnectionLost(
                f"asked for byte {have:,}, got {response.headers.get('Content-Range')}"
            )
        have = have if resumes else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        if total is not None:
            _require_space(part.parent, total - have, f"downloading {url}")
        with (
            open(part, "ab" if resumes else "wb") as file,
            tqdm(
                total=total,
                initial=have,
                desc=part.stem,
                unit="B",
                unit_scale=True,
                disable=not progress,
            ) as bar,
        ):
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
            received = file.tell()
        if total is not None and received < total:
            raise _ConnectionLost(f"the connection ended at byte {received:,} of {total:,}")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(str(error) or type(error).__name__) from error


def _require_space(folder: Path, needed: int, purpose: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{purpose} needs {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free; "
            "make room or choose another folder"
        )


def _md5(path: Path, progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as file,
        tqdm(
            total=path.stat().st_size,
            desc=f"checking {path.name}",
            unit="B",
            unit_scale=True,
            disable=not progress,
        ) as bar,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _is_unpacked(record: Path, folder: Path) -> bool:
    try:
        sizes = json.loads(record.read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
