"""Freed pages stay with the process; free memory and the peak are what the system says."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from elasticnet import memory

FAULTS = """
import resource, sys
import torch
from elasticnet.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def work():
    large = [torch.ones(2**21) for _ in range(20)]  # 8 MiB each
    del large

for _ in range(3):
    work()
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))  # a system that takes idle pages back meanwhile adds to some rounds
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, which this is about"
)
def test_pages_are_not_asked_for_again() -> None:
    """20 tensors of 8 MiB have 40,960 pages of 4 KiB: how many are new each time they are made?

    The environment makes glibc give every one back, which by default depends on what lies behind
    it in memory.
    """
    faults = {}
    for what in ("keep", "give back"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, what],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)},
            capture_output=True,
            text=True,
            check=True,
        )
        faults[what] = float(done.stdout)
    assert faults["keep"] < 100
    assert faults["give back"] > 1000  # pages may be larger than 4 KiB


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # not even looked for
    assert memory.keep_freed_memory() is False


def meminfo(folder: Path, kilobytes: int) -> Path:
    (folder / "meminfo").write_text(
        f"MemTotal:  99 kB\nMemFree: 1 kB\nMemAvailable:   {kilobytes} kB\nBuffers: 3 kB\n"
    )
    return folder / "meminfo"


def test_free_memory_is_what_the_kernel_says_within_the_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MEMINFO", meminfo(tmp_path, 5000))
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory() == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory("cpu") == 5000 * 1024
    (tmp_path / "memory.max").write_text("900000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\nactive_file 7\n")
    assert memory.free_memory() == 900_000 - 700_000 + 100_000


def test_free_memory_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(
        memory.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__
    )
    assert memory.free_memory() == 500 * 4096
    monkeypatch.setattr(memory.os, "sysconf_names", {})
    assert memory.free_memory() is None
    assert memory.free_memory("meta") is None


def test_free_memory_here_is_a_part_of_what_is_built_in() -> None:
    free = memory.free_memory()
    if sys.platform == "linux":
        assert free is not None
        assert 2**20 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


PEAK = """
from elasticnet import memory

assert memory.restart_peak()
before = memory.peak_resident()
block = b"\\1" * (64 * memory.MB)
after = memory.peak_resident()
del block
assert memory.restart_peak()
print(after - before > 0.9 * 64 * memory.MB, memory.peak_resident() < after)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux restarts the peak")
def test_the_peak_counts_from_its_restart() -> None:
    """In a process of its own: one that has freed memory before may keep it, and need no more."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert run.stdout == "True True\n"


def test_the_peak_on_a_system_that_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert memory.peak_resident() is None
