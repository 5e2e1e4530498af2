"""keep_freed_memory: freed tensors' pages stay with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from elasticnet import allocator

FAULTS = """
import resource, sys
import torch
from elasticnet.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()

def work():
    large = [torch.ones(2**21) for _ in range(20)]  # 8 MiB each
    del large

for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, which this is about")
def test_pages_are_not_asked_for_again() -> None:
    """20 tensors of 8 MiB have 40,960 pages of 4 KiB; how many of them are new each time they are made?

    The environment makes glibc give every one back, which by default hangs on what lies behind it in memory.
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
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)  # not even looked for
    assert allocator.keep_freed_memory() is False
