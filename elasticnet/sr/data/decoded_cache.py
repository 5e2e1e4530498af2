"""A folder of derived files that is either complete and current or not there at all.

It is built beside its source under a lock, renamed into place when complete, and named after the
state of the source files, so that a changed file leads to another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

_INDEX = "index.json"
_BUILDING = ".building"


def cache_places(root: Path, cache_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return where caches of the data set `root` may lie, the best place first.

    Without `cache_dir`: `<root>.elasticnet-cache` beside the data set, then the user's cache folder
    (`$XDG_CACHE_HOME/elasticnet` or `~/.cache/elasticnet`) for data sets in a folder that cannot be
    written.
    """
    root = Path(os.path.abspath(root))
    own_name = f"{root.name or 'root'}-{_digest(str(root))[:8]}"
    if cache_dir is not None:
        return [Path(cache_dir) / own_name]
    user = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elasticnet" / own_name
    )
    beside = root.with_name(root.name + ".elasticnet-cache") if root.name else user
    return [beside, user]


def open_or_build(
    places: Iterable[Path],
    label: str,
    description: Mapping[str, object],
    files: Mapping[str, Path],
    write: Callable[[Path], Mapping[str, Any]],
    *,
    progress: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Return (folder, index) of the cache that `description` and the present `files` define, built
    if needed.

    `write(folder)` puts files of its choice into a fresh folder and returns the index, a JSON
    object. `files` maps a name to each source file; a file counts as changed when its size or its
    time of modification (in nanoseconds) does. The build happens once among processes that start
    together: the others wait for it. An interrupted build leaves nothing that could be taken for a
    cache, and the next one clears it away, as it does caches of older states of the files. A cache
    with a missing or cut-off file is built anew.
    """
    places = list(places)
    prefix = f"{label}-{_digest(json.dumps(description, sort_keys=True))[:8]}-"
    name = prefix + _digest(json.dumps([[key, _stamp(path)] for key, path in files.items()]))[:16]
    for place in places:
        index = _read_complete(place / name)
        if index is not None:
            return place / name, index

    place = next(filter(_writable, places), None)
    if place is None:
        raise OSError(
            f"no place for the image cache can be written, tried: {', '.join(map(str, places))}; "
            "choose another one by cache_dir"
        )
    final = place / name
    with _lock(place / f"{prefix}lock", progress):
        index = _read_complete(final)
        if index is None:
            # its builder is dead, as the lock is ours
            for leftover in place.glob(f"{prefix}*{_BUILDING}"):
                shutil.rmtree(leftover)
            index = _build(final, write)
        for stale in place.glob(f"{prefix}*"):
            if stale.is_dir() and stale != final:
                # Windows keeps what another process has mapped
                shutil.rmtree(stale, ignore_errors=True)
    return final, index


def open_pixels(path: Path) -> np.ndarray:
    """Map a file of RGB bytes into memory as a read-only uint8 array of shape (number of pixels,
    3).
    """
    return np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, 3)


def _build(final: Path, write: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    building = final.with_name(final.name + _BUILDING)
    try:
        building.mkdir()
        index = dict(write(building))
        index["files"] = {path.name: path.stat().st_size for path in sorted(building.iterdir())}
        (building / _INDEX).write_text(json.dumps(index), encoding="utf-8")
        for path in building.iterdir():
            _sync(path)
        if final.exists():
            shutil.rmtree(final)
        building.rename(final)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise OSError(
            error.errno,
            f"cannot write the image cache {final}: {error.strerror or error}; "
            "make room there or choose another place by cache_dir",
        ) from error
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return index


def _read_complete(folder: Path) -> dict[str, Any] | None:
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in index["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if sizes == index["files"] else None


def _lock(path: Path, progress: bool) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            print(
                f"waiting for another process that builds the image cache {path.parent}",
                file=sys.stderr,
            )
        lock.acquire()
    return lock


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
