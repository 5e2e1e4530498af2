"""Files that appear whole or not at all, what must be known before writing one, and strict JSON."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import secrets
import shutil
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

if sys.platform != "win32":
    import fcntl

AnyPath = str | os.PathLike[str]

# A temporary file's name begins with that of its target, cut so that a long one still fits.
_NAME_IN_TEMPORARY = 32
_TEMPORARY_NAME = re.compile(r"\..{0,32}\.\d+-[0-9a-f]{8}\.tmp", re.DOTALL)
_cleaned_folders: set[Path] = set()  # once in a process is enough


@contextmanager
def replacing(path: AnyPath, *, overwrite: bool = False) -> Generator[BinaryIO, None, None]:
    """Open a binary file that becomes `path` when the `with` block ends well.

    It is written beside `path`, flushed to the disk and renamed, so that a kill, a power cut or a
    full disk leaves the old content or the new, never a part. After an exception nothing is left
    behind. A file that existed keeps its permissions, and a link stays a link: what it points to
    is replaced. Temporary files that killed processes have left in the folder, which nobody holds
    a lock on, are removed.

    Args:
        path: The target. Its folder must exist.
        overwrite: Whether a target that exists is replaced.

    Yields:
        The open file, for reading, writing and seeking.

    Raises:
        FileExistsError: The target exists and `overwrite` is false; this is looked up at the end,
            so ask `check_target` before work that takes long.
        OSError: Something else went wrong while writing, also inside the block; the message names
            `path`.

    Example:
        `with replacing("out.png", overwrite=True) as file: image.save(file, "PNG")`
    """
    target = Path(os.path.realpath(path))
    _remove_what_kills_left(target.parent)
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.name[:_NAME_IN_TEMPORARY]}.{unique}.tmp")
    lock: int | None = None
    try:
        with _open_new(temporary) as file:
            if sys.platform != "win32":  # which renames no file that is open
                lock = _second_descriptor(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            if not overwrite:
                raise FileExistsError(_exists(target))
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except FileExistsError:
        raise
    except OSError as error:
        reason = _reason_of(error, own_files=(temporary, target))
        message = f"could not write {target} ({reason}); nothing was changed"
        raise OSError(error.errno, message) from error
    finally:
        # It is gone after the rename, and it never was there if its name could not be opened.
        with suppress(OSError):
            temporary.unlink()
        if lock is not None:
            os.close(lock)
    _flush_folder(target.parent)


def _reason_of(error: OSError, own_files: tuple[Path, Path]) -> str:
    """Why a file could not be written: an error of another file names that file."""
    is_of_another_file = isinstance(error.filename, str) and Path(error.filename) not in own_files
    if is_of_another_file:
        return message_of(error)
    return error.strerror or str(error)


def _open_new(path: Path) -> BinaryIO:
    """A new file, locked, so that no other process takes it for one that a kill has left."""
    while True:
        file = open(path, "xb+")  # noqa: SIM115 - the caller closes it
        _has_locked(file)
        # Another process may have removed the file before it was locked.
        if path.exists():
            return file
        file.close()


def _second_descriptor(file: BinaryIO) -> int:
    """A second descriptor of the file: it holds the lock from closing the file to renaming it."""
    return os.dup(file.fileno())


def _has_locked(file: BinaryIO) -> bool:
    """Lock a file; False if another process has, or the system has no such locks."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, or a file system without locks
        return False
    return True


def _remove_what_kills_left(folder: Path) -> None:
    """Remove temporary files whose writer is gone: a lock says so, as process ids come again."""
    if folder in _cleaned_folders:
        return
    _cleaned_folders.add(folder)
    with suppress(OSError):  # whatever is wrong with the folder, the writer says it better
        for path in folder.iterdir():
            if _TEMPORARY_NAME.fullmatch(path.name):
                remove_if_left(path)


def remove_if_left(path: Path) -> None:
    """Remove a temporary file, unless a process that still writes it holds a lock on it.

    Args:
        path: The file; nothing happens if it is gone, or if nobody may remove it.
    """
    with suppress(OSError), open(path, "rb+") as file:
        if _has_locked(file):
            path.unlink()


def write_atomic(path: AnyPath, data: bytes | bytearray | str) -> None:
    """Write a whole file, replacing the one that is there; see `replacing` for what is promised.

    Args:
        path: The target. Its folder must exist.
        data: The content; text is written as UTF-8, and the bytes of a file's name that are none
            as \\udcff and the like.

    Raises:
        OSError: The file could not be written; the old one, if any, is as it was.
    """
    with replacing(path, overwrite=True) as file:
        file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)


def message_of(error: Exception) -> str:
    """Return what an error says, without the number that the system has for it.

    Args:
        error: Any. An OSError of the system's names its file first.

    Returns:
        Such as "a.png: Permission denied", and not "[Errno 13] Permission denied: 'a.png'". The
        name of the error's class if it says nothing.
    """
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    if error.filename is None:
        return str(error.strerror)
    return f"{error.filename}: {error.strerror}"


def check_target(path: AnyPath, *, overwrite: bool) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Args:
        path: Where the file shall be written. Nothing is created.
        overwrite: Whether a file that exists may be replaced.

    Raises:
        ValueError: The path is a folder.
        FileNotFoundError: The path's folder does not exist.
        PermissionError: The path's folder cannot be written to.
        FileExistsError: The file exists and `overwrite` is false.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder; name a file in it")
    folder = path.parent
    if path.is_symlink():  # what it leads to is written
        folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {folder}; make it first")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{path}: the folder {folder} cannot be written to; choose another")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(_exists(path))


def make_writable_folder(path: AnyPath) -> Path:
    """Make a folder, its parents too, unless it exists, and check that files can be made in it.

    Args:
        path: The folder.

    Returns:
        The folder.

    Raises:
        OSError: The folder cannot be made, for example because a part of the path is a file.
        PermissionError: The folder is there, but cannot be written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder}: cannot make this folder ({error.strerror}); choose another"
        raise OSError(error.errno, message) from error
    if not os.access(folder, os.W_OK):
        message = f"{folder}: this folder cannot be written to; choose another"
        raise PermissionError(errno.EACCES, message)
    return folder


def write_json(path: AnyPath, value: Any) -> None:
    """Write strict JSON atomically, with sorted keys and an indent of two.

    Args:
        path: The target. Its folder must exist.
        value: What `strict_json` takes.

    Raises:
        TypeError: A part of `value` cannot stand in JSON.
        OSError: The file could not be written.
    """
    strict = strict_json(value, place="value")
    text = json.dumps(strict, indent=2, sort_keys=True, allow_nan=False)
    write_atomic(path, text + "\n")


def strict_json(value: Any, place: str) -> Any:
    """Return a value in the types that every JSON reader takes.

    Arrays and tensors become lists, paths become text, keys become text, and the floats that JSON
    lacks become "NaN", "Infinity" and "-Infinity".

    Args:
        value: Numbers, text, None, paths, arrays, tensors, and lists and mappings of these.
        place: What an error calls the value.

    Returns:
        The same in dicts, lists, text, numbers, bools and None.

    Raises:
        TypeError: Some part is of another kind; the message says where.
    """
    # Arrays and tensors are told by their method, so that neither NumPy nor torch is imported here.
    if hasattr(value, "tolist"):
        return strict_json(value.tolist(), place)
    if isinstance(value, float):
        return _strict_float(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if _is_path(value):
        return os.fspath(value)
    if _is_list(value):
        return [strict_json(entry, f"{place}[{index}]") for index, entry in enumerate(value)]
    if _is_mapping(value) and all(isinstance(key, (str, int)) for key in value):
        return {str(key): strict_json(entry, f"{place}[{key!a}]") for key, entry in value.items()}
    raise TypeError(f"{place}: JSON cannot hold the {type(value).__name__} {value!r:.100}")


def _is_path(value: Any) -> TypeGuard[os.PathLike[str]]:
    return isinstance(value, os.PathLike)


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple))


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _strict_float(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _exists(path: Path) -> str:
    """What is said of a file that may not be replaced."""
    return f"{path} exists: use --force (in Python: overwrite=True), or choose another name"


def _flush_folder(folder: Path) -> None:
    """Write a folder's own entries to the disk: until then a power cut can undo a rename."""
    if sys.platform == "win32":  # which has no such call
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
