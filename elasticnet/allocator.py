"""How the C library's allocator treats the memory of freed tensors; for programs, which own their process."""

from __future__ import annotations

import ctypes
import platform

# The names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes; glibc refuses more
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed tensors for the next ones; return whether it will.

    By default it hands memory of an image's size back to the system at once (not always: it hangs on what lies behind
    it) and gets it again page by page, zeroed; on a CPU that takes up to half of an inference's time. The process then
    stays as large as it once was, until it ends. Tensors above 32 MiB are handed back all the same. Nothing happens
    where the C library is another one. What the environment says (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_) is
    overruled. Source: mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, NEVER))
