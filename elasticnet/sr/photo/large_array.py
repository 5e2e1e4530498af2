"""Arrays for large results: mapped to a nameless file instead of taking memory."""

from __future__ import annotations

import os
import tempfile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

IN_MEMORY = 512 * 10**6  # bytes; larger arrays are mapped to a file
_ZEROS = 2**24  # bytes that are written at a time where a system cannot reserve room


def large_array(
    shape: tuple[int, ...],
    dtype: DTypeLike,
    folder: str | os.PathLike[str] | None = None,
    limit: int = IN_MEMORY,
) -> NDArray[Any]:
    """Return an array for a result, in memory or, if it is large, mapped to a nameless file.

    The file takes its whole room at once, so that a full disk is an OSError here and not a crash
    later.

    Args:
        shape: Of the array.
        dtype: Of the array.
        folder: Where the file lies. Default: where temporary files go.
        limit: Bytes above which the array is mapped to a file.

    Returns:
        The array; what it holds is undefined.

    Raises:
        OSError: There is no room for the file.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size <= limit:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            _take_room(file, size)
        except OSError as error:
            place = folder or tempfile.gettempdir()
            raise OSError(
                error.errno,
                f"no room for the result in {place}: {size / 1e9:.1f} GB are needed "
                f"({error.strerror})",
            ) from error
        return np.memmap(file, dtype, "r+", shape=shape)  # keeps the file open


def _take_room(file: BinaryIO, size: int) -> None:
    """Make a file as long as `size` bytes, on the disk and not only in its directory."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(_ZEROS)
    for start in range(0, size, _ZEROS):
        file.write(zeros[: size - start])
    file.flush()
