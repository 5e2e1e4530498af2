"""A disk that is full, as far as one process can have it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse to make any file larger, as a full disk does in the middle of a write.

    The error is EFBIG instead of ENOSPC. The block must end before pytest reports the test: its own
    output may be a file, too.

    Args:
        size: Bytes.
    """
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
