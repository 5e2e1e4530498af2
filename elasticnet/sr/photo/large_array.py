"""Arrays for large results: mapped to a nameless file instead of taking memory."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

IN_MEMORY = 512 * 1024**2  # bytes; larger arrays are memory-mapped


def large_array(
    shape: tuple[int, ...],
    dtype: Any,
    folder: str | os.PathLike[str] | None = None,
    limit: int = IN_MEMORY,
) -> np.ndarray:
    """An array for a result: in memory, or mapped to a nameless file in `folder` when it has more
    than `limit` bytes.

    The file takes its whole room at once, so that a full disk is an OSError here and not a crash
    later.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size <= limit:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                zeros = bytes(2**24)
                for start in range(0, size, len(zeros)):
                    file.write(zeros[: size - start])
                file.flush()
        except OSError as error:
            place = folder or tempfile.gettempdir()
            reason = f"no room for the result in {place}: {size / 1e9:.1f} GB are needed ({error.strerror})"
            raise OSError(error.errno, reason) from error
        return np.memmap(file, dtype, "r+", shape=shape)
