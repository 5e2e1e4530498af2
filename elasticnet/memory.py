"""How much memory is free, how much this process has taken, and what becomes of freed tensors."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MB = 10**6  # bytes, everywhere in this library

# Where Linux says what is free, and where a container's own limit stands (cgroup v2).
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")

# Words in the RuntimeErrors of failed allocations that have no type of their own.
OUT_OF_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "ALLOC_FAILED")
# The whole message of oneDNN, which computes convolutions on CPUs, if its own allocation fails.
ONEDNN_OUT_OF_MEMORY = "could not create a primitive"

# The names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes; glibc refuses more
LARGEST_TRIM_THRESHOLD = 2**31 - 1  # bytes; so large that freed memory is never handed back


def keep_freed_memory() -> bool:
    """Make glibc keep the memory of freed tensors for the next ones.

    By default it hands memory of an image's size back to the system at once, depending on what
    lies behind it, and gets it again page by page, zeroed; docs/speed.md has what that costs. The
    process then stays as large as it once was, until it ends. Tensors above 32 MiB are handed back
    all the same. What the environment says (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_) is
    overruled. Source: mallopt(3).

    Returns:
        Whether it will; False, and nothing is changed, where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    if not mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST_TRIM_THRESHOLD))


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the bytes that can still be allocated on a device without swapping.

    On Linux this is what the kernel says, and no more than a container may use; on other systems
    it is half of the memory that is built in; on CUDA it includes what PyTorch's allocator holds
    unused.

    Args:
        device: "cpu" (default) or a CUDA device.

    Returns:
        The bytes, or None where they cannot be told.
    """
    kind, _, _ = str(device).partition(":")  # "cuda" of "cuda:1"
    if kind == "cuda":
        import torch

        return _free_on_cuda(torch.device(device))
    if kind != "cpu":
        return None
    if not MEMINFO.is_file():
        return _half_of_built_in()
    left_to_container = _left_to_container()
    if left_to_container is None:
        return _available()
    return min(_available(), left_to_container)


def peak_resident() -> int | None:
    """Return the most memory that this process has had resident, in bytes.

    On Linux it counts from the last call of `restart_peak`, elsewhere from the process's start.

    Returns:
        The bytes, or None on systems other than Linux and macOS.
    """
    if sys.platform == "linux":
        # Not ru_maxrss: on Linux it starts at what the parent process had.
        return _kilobytes(Path("/proc/self/status"), "VmHWM") * 1024
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def restart_peak() -> bool:
    """Let `peak_resident` begin anew from what is resident now.

    Returns:
        Whether this system can do that.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is that of an allocation which failed, on any device.

    Args:
        error: Any error. PyTorch's CPU allocator raises a plain RuntimeError, which is told by its
            words.
    """
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # not imported: no error of it
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    message = str(error)
    if message == ONEDNN_OUT_OF_MEMORY:
        return True
    return any(words in message for words in OUT_OF_MEMORY)


def _free_on_cuda(device: torch.device) -> int:
    import torch

    unused_in_allocator = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free, _ = torch.cuda.mem_get_info(device)
    return free + unused_in_allocator


def _half_of_built_in() -> int | None:
    """Half of the memory of a system without /proc; None where it cannot be asked."""
    needed = {"SC_PHYS_PAGES", "SC_PAGE_SIZE"}
    if not hasattr(os, "sysconf") or not needed <= os.sysconf_names.keys():
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _available() -> int:
    """The bytes that Linux could hand out without swapping."""
    return _kilobytes(MEMINFO, "MemAvailable") * 1024


def _left_to_container() -> int | None:
    """The bytes that a container's limit leaves; None outside a container and without a limit."""
    limit_file = CGROUP / "memory.max"
    if not limit_file.is_file():
        return None
    limit = limit_file.read_text().strip()
    if limit == "max":
        return None
    used = int((CGROUP / "memory.current").read_text())
    statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    # Cached files count as used, but go first when memory is needed.
    cached_files = int(statistics["inactive_file"])
    return int(limit) - used + cached_files


def _kilobytes(file: Path, name: str) -> int:
    """One number of a file of /proc whose lines are `name:  number kB`."""
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise KeyError(f"{file} has no line {name}")
