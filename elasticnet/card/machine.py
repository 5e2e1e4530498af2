"""What machine measured times and memory belong to; torch is imported when one is described."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What measured times and memory depend on.

    Attributes:
        processor: The model, and on a CPU its instruction set.
        threads: Of the CPU; None on an accelerator.
        system: Operating system and architecture.
        torch: The version of torch.
        dtype: In which the net computes, such as "float32".
    """

    processor: str
    threads: int | None
    system: str
    torch: str
    dtype: str

    @property
    def key(self) -> str:
        """The machine in one line; a file keeps a card under it."""
        parts = [self.processor]
        if self.threads is not None:
            parts.append("1 thread" if self.threads == 1 else f"{self.threads} threads")
        parts += [self.system, f"torch {self.torch}", self.dtype]
        return ", ".join(parts)


def this_machine(
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    threads: int | None = None,
) -> Machine:
    """Return this machine as it computes on a device.

    Args:
        device: By default the CPU.
        dtype: In which the net computes; by default float32.
        threads: Of the CPU; by default torch's present number.
    """
    import torch

    device = torch.device(device)
    used_threads = None
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        processor = _described_cpu()
        used_threads = threads or torch.get_num_threads()
    else:
        processor = f"{device.type} of {_described_cpu()}"
    return Machine(
        processor=processor,
        threads=used_threads,
        system=f"{platform.system()} {platform.machine()}",
        torch=str(torch.__version__),
        dtype=str(dtype or torch.float32).removeprefix("torch."),
    )


def machine_key(
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    threads: int | None = None,
) -> str:
    """Return the line under which a card of this machine stands in a file.

    It is the same from one run to the next.

    Args:
        device: As in `this_machine`.
        dtype: As in `this_machine`.
        threads: As in `this_machine`.
    """
    return this_machine(device, dtype, threads).key


def _described_cpu() -> str:
    """Return the CPU's model and instruction set.

    Machines of different generations that a cloud lends share a model name; the instruction set
    tells some of them apart.
    """
    import torch

    return f"{_cpu_model()} {torch.backends.cpu.get_cpu_capability()}"


@cache
def _cpu_model() -> str:
    """Return the CPU's model as the system names it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                _, _, name = line.partition(":")
                return " ".join(name.split())
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()
