"""Where decoded images are kept: a folder of files that is complete and current, or not there.

The folder is built under a lock, renamed into place when it is complete, and named after the state
of the source files, so that a changed file leads to another folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from elasticnet._files import make_writable_folder

INDEX_FILE = "index.json"
BUILDING_SUFFIX = ".building"
WRITABLE_BY_ANYBODY = 0o222  # of a file's mode

logger = logging.getLogger(__name__)


def cache_places(root: Path, cache_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return where caches of a data set may lie, the best place first.

    Args:
        root: The data set's folder.
        cache_dir: The one place to use. By default there are two: `<root>.elasticnet-cache` beside
            the data set, and then the user's cache folder (`$XDG_CACHE_HOME/elasticnet` or
            `~/.cache/elasticnet`) for data sets in a folder that cannot be written.

    Returns:
        Folders, which need not exist.
    """
    root = Path(os.path.abspath(root))
    # Two data sets of one name stay apart by the digest of their paths.
    own_name = f"{root.name or 'root'}-{_digest(str(root))[:8]}"
    if cache_dir is not None:
        return [Path(cache_dir) / own_name]
    places: list[Path] = []
    if root.name:  # the root of the file system has nothing beside it
        places.append(root.with_name(root.name + ".elasticnet-cache"))
    user_caches = _user_caches()
    if user_caches is not None:
        places.append(user_caches / "elasticnet" / own_name)
    return places


def _user_caches() -> Path | None:
    """The folder for the user's caches; None for a user without a home, as in some containers."""
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def open_or_build(
    places: Iterable[Path],
    label: str,
    description: Mapping[str, object],
    files: Mapping[str, Path],
    write: Callable[[Path], Mapping[str, Any]],
    *,
    progress: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Return the cache of the files' present state, built if it is not there.

    The build happens once among processes that start together: the others wait for it. An
    interrupted build leaves nothing that could be taken for a cache, and the next build clears it
    away, together with caches of older states of the files. A cache with a missing or cut-off file
    is built anew.

    Args:
        places: Folders in which the cache may lie, the best one first (see `cache_places`).
        label: What the names of the cache's folders begin with.
        description: What the content depends on beside the files, as JSON can hold it.
        files: The source files by name. A file counts as changed if its size or its time of
            modification, in nanoseconds, is another one.
        write: Called with a fresh folder, puts files of its choice into it and returns the index,
            which JSON can hold.
        progress: Whether to say in the log that another process's build is waited for.

    Returns:
        The cache's folder and its index, which has gained "files", the size of each file.

    Raises:
        OSError: None of the places can be written, or the disk is full.
    """
    places = list(places)
    stamps = [[name, _stamp(path)] for name, path in files.items()]
    prefix = f"{label}-{_digest(json.dumps(description, sort_keys=True))[:8]}-"
    folder_name = prefix + _digest(json.dumps(stamps))[:16]

    # A complete cache is used wherever it lies, also in a place that cannot be written.
    for place in places:
        index = _read_complete(place / folder_name)
        if index is not None:
            return place / folder_name, index

    place = _first_writable(places)
    final = place / folder_name
    with _locked(place / f"{prefix}lock", progress):
        # Another process may have built it while this one waited for the lock.
        index = _read_complete(final)
        if index is None:
            logger.warning(
                "decoded images are written to %s, so that the next start is quick; cache_dir "
                "(--cache-dir) names another place, cache=False (--no-cache) keeps none",
                place,
            )
            _remove_unfinished(place, prefix)
            index = _build(final, write)
        _remove_outdated(place, prefix, final)
    return final, index


@contextmanager
def built_for_once(
    write: Callable[[Path], Mapping[str, Any]],
) -> Generator[tuple[Path, dict[str, Any]], None, None]:
    """Build what `open_or_build` would keep in a temporary folder, which is removed in the end.

    Args:
        write: As in `open_or_build`.

    Yields:
        The folder and the index.

    Raises:
        OSError: The temporary folder cannot be written, or its disk is full.
    """
    # Windows does not remove what is still mapped; it is then left to the system.
    with tempfile.TemporaryDirectory(prefix="elasticnet-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            index = dict(write(folder))
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot decode images into {folder}: {error.strerror or error}; make room there, "
                "name another folder by the variable TMPDIR, or let decoded images be kept",
            ) from error
        yield folder, index


def _build(final: Path, write: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Build a cache beside its final place, rename it into place, and return its index."""
    building = final.with_name(final.name + BUILDING_SUFFIX)
    try:
        building.mkdir()
        index = dict(write(building))
        index["files"] = {path.name: path.stat().st_size for path in sorted(building.iterdir())}
        (building / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
        # Contents must be on the disk before the name is: a power cut may come between the two.
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
            "make room there, choose another place by cache_dir (--cache-dir), or keep none by "
            "cache=False (--no-cache)",
        ) from error
    except BaseException:  # Ctrl-C, too, leaves nothing behind
        shutil.rmtree(building, ignore_errors=True)
        raise
    return index


def _read_complete(folder: Path) -> dict[str, Any] | None:
    """Return a cache's index if every file has the size that the index tells, otherwise None."""
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        expected = index["files"]
        found = {name: (folder / name).stat().st_size for name in expected}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or damaged
    if found != expected:
        return None
    return index


def _first_writable(places: list[Path]) -> Path:
    for place in places:
        if _is_writable(place):
            return place
    tried = ", ".join(str(place) for place in places)
    raise OSError(
        f"no place for the image cache can be written, tried: {tried}; "
        "choose another one by cache_dir (--cache-dir), or keep none by cache=False (--no-cache)"
    )


def _is_writable(folder: Path) -> bool:
    """Whether files can be written into a folder, which is made if it is not there."""
    if _is_marked_read_only(folder):
        return False
    try:
        make_writable_folder(folder)
    except OSError:
        return False
    return True


def _is_marked_read_only(folder: Path) -> bool:
    """Whether the folder, or the one that it would be made in, may be written to by nobody.

    The system lets root write there all the same.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        return existing.stat().st_mode & WRITABLE_BY_ANYBODY == 0
    except OSError:
        return True


@contextmanager
def _locked(path: Path, progress: bool) -> Generator[None, None, None]:
    """Hold the lock file; say so before waiting for another process."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if progress:
            logger.warning(
                "waiting for another process that builds the image cache %s", path.parent
            )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_unfinished(place: Path, prefix: str) -> None:
    """Remove interrupted builds: whoever calls this holds the lock, so their builder is dead."""
    for leftover in place.glob(f"{prefix}*{BUILDING_SUFFIX}"):
        shutil.rmtree(leftover)


def _remove_outdated(place: Path, prefix: str, current: Path) -> None:
    """Remove the caches of older states of the files."""
    for folder in place.glob(f"{prefix}*"):
        if folder.is_dir() and folder != current:
            # Windows does not remove what another process has mapped.
            shutil.rmtree(folder, ignore_errors=True)


def _stamp(path: Path) -> list[int] | None:
    """Return a file's size and time of modification, None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _digest(text: str) -> str:
    # Names of files that are not valid UTF-8 hold surrogates, which encode back to their bytes.
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
