"""How much memory is free, and what becomes of the memory of freed tensors."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

# in messages of RuntimeError
OUT_OF_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "ALLOC_FAILED")
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
# The names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes; glibc refuses more
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed tensors for the next ones; return whether it will.

    By default it hands memory of an image's size back to the system at once (not always: it hangs
    on what lies behind it) and gets it again page by page, zeroed; docs/speed.md has what that
    costs. The process then stays as large as it once was, until it ends. Tensors above 32 MiB are
    handed back all the same. Nothing happens where the C library is another one. What the
    environment says (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_) is overruled. Source:
    mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(M_TRIM_THRESHOLD, NEVER)
    )


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the bytes that can still be allocated on a device without swapping; None where it
    cannot be told.

    On Linux what the kernel says, and no more than a container may (cgroup v2); on other systems
    half of the memory that is built in; on CUDA also what PyTorch's allocator holds unused.
    """
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    if not MEMINFO.is_file():
        known = (
            hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys()
        )
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if known else None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used, split = (CGROUP / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.is_file() and limit.read_text().strip() != "max":  # a container's own limit
        cache = dict(line.split() for line in split.read_text().splitlines())["inactive_file"]
        free = min(free, int(limit.read_text()) - int(used.read_text()) + int(cache))
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of an allocation which failed, on any device; PyTorch's CPU
    allocator has no type for it.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
