"""What a net costs at each depth on this machine: multiply-accumulates, time, peak memory, and what
machine it is.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet.wrapper import ElasticWrapper, evaluating

MB = 2**20
LEAST_ROUNDS = 3  # timed whatever the time limit says
Context = Mapping[str, Any]  # keyword arguments of the net's call


@dataclass(frozen=True)
class Machine:
    """What measured times and memory hang on; `key` is one line of it. threads is None on an
    accelerator.
    """

    processor: str
    threads: int | None
    system: str
    torch: str
    dtype: str

    @property
    def key(self) -> str:
        threads = (
            "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads != 1)}"
        )
        return f"{self.processor}{threads}, {self.system}, torch {self.torch}, {self.dtype}"


class NotMeasured(RuntimeError):
    """Peak memory cannot be measured here; the message says why."""


def this_machine(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> Machine:
    """Describe the machine as it computes on `device` in `dtype`; threads: default torch's present
    number.
    """
    device = torch.device(device)
    if device.type == "cuda":
        processor, threads = torch.cuda.get_device_name(device), None
    else:
        # Cloud machines of different generations share a model name; the instruction set tells some
        # of them apart.
        processor = f"{_cpu_model()} {torch.backends.cpu.get_cpu_capability()}"
        threads = threads or torch.get_num_threads()
    if device.type not in ("cpu", "cuda"):
        processor, threads = f"{device.type} of {processor}", None
    system = f"{platform.system()} {platform.machine()}"
    return Machine(
        processor, threads, system, str(torch.__version__), str(dtype).removeprefix("torch.")
    )


def machine_key(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    threads: int | None = None,
) -> str:
    """Return the line under which a card of this machine stands in a file; equal from one run to
    the next.
    """
    return this_machine(device, dtype, threads).key


def dtype_of(net: nn.Module, example: Tensor) -> torch.dtype:
    """Return the type in which a net computes: that of its first floating parameter, or else of the
    example.
    """
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), example.dtype)


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Let torch use this many CPU threads inside a `with` block (None: as many as before)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def count_macs(
    net: ElasticWrapper, example: Tensor, depth: int, context: Context | None = None
) -> int:
    """Return the multiply-accumulates of one pass to `depth`, by PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with evaluating(net), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(example, depth=depth, **(context or {}))
    return counter.get_total_flops() // 2


def time_depths(
    net: ElasticWrapper,
    example: Tensor,
    repeats: int,
    seconds: float = float("inf"),
    context: Context | None = None,
    warm_up: int = 1,
    on_pass: Callable[[], Any] | None = None,
) -> dict[int, list[float]]:
    """Return the times in milliseconds of `repeats` passes to every depth, warmed up by `warm_up`
    passes before.

    The depths take turns, so that a busy moment of the machine does not fall on one depth alone.
    After `seconds` no new round begins, but there are at least three (or `repeats`). on_pass is
    called after every pass that is timed.
    """
    times: dict[int, list[float]] = {depth: [] for depth in net.taps}
    with evaluating(net), torch.inference_mode():
        for _ in range(warm_up):
            for depth in net.taps:
                _timed(net, example, depth, context or {})
        start = time.perf_counter()
        for done in range(repeats):
            if done >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
                break
            for depth in net.taps:
                times[depth].append(1e3 * _timed(net, example, depth, context or {}))
                if on_pass:
                    on_pass()
    return times


def peak_memory(
    net: ElasticWrapper, example: Tensor, context: Context | None = None
) -> dict[int, float]:
    """Return the megabytes (2**20 bytes) of one pass to each depth: its weights, the input, the
    most the pass adds.

    On CUDA from torch's allocator; on the CPU of Linux and macOS from the resident memory of a
    fresh process, to which the net is sent by pickle. What the first pass of a process adds once
    (compiled kernels, the code of libraries) is not counted. Raises NotMeasured where that cannot
    be done.
    """
    if example.device.type == "cuda":
        added = _added_on_cuda(net, example, context or {})
    elif example.device.type == "cpu" and sys.platform in ("linux", "darwin"):
        added = _added_on_cpu(net, example, context or {})
    else:
        raise NotMeasured(
            f"there is no way to read it on {example.device.type} under {sys.platform}"
        )
    held = {}
    for depth in net.taps:
        small = net.truncate(depth)
        tensors = [*small.parameters(), *small.buffers(), example]
        held[depth] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {depth: (held[depth] + added[depth]) / MB for depth in net.taps}


def _timed(net: ElasticWrapper, example: Tensor, depth: int, context: Context) -> float:
    _synchronize(example)
    start = time.perf_counter()
    net(example, depth=depth, **context)
    _synchronize(example)
    return time.perf_counter() - start


def _synchronize(example: Tensor) -> None:
    if example.device.type != "cpu":
        torch.accelerator.synchronize(example.device.index)


def _added_on_cuda(net: ElasticWrapper, example: Tensor, context: Context) -> dict[int, int]:
    added = {}
    with evaluating(net), torch.inference_mode():
        for depth in net.taps:
            net(example, depth=depth, **context)  # warms up
            torch.cuda.synchronize(example.device)
            torch.cuda.reset_peak_memory_stats(example.device)
            before = torch.cuda.memory_allocated(example.device)
            net(example, depth=depth, **context)
            torch.cuda.synchronize(example.device)
            added[depth] = torch.cuda.max_memory_allocated(example.device) - before
    return added


# Why not torch's profiler: equal in float32, but in bfloat16 it counts buffers that are never
# touched (+27 to +43 %). malloc gets a fixed threshold above which each block is mapped: repeatable
# to 3 %, where 147 or 173 MB came before.
_CHILD_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
_CHILD = "import sys; sys.path[:] = {path!r}; from elasticnet.card.measuring import _measure_here; _measure_here({folder!r})"


def _added_on_cpu(net: ElasticWrapper, example: Tensor, context: Context) -> dict[int, int]:
    with tempfile.TemporaryDirectory(prefix="elasticnet-") as folder:
        try:
            torch.save(
                (net, example, dict(context), torch.get_num_threads()), Path(folder, "pass.pt")
            )
        except Exception as error:  # pickle raises whatever the user's classes raise
            raise NotMeasured(
                f"the network cannot be sent to a process of its own ({error})"
            ) from error
        code = _CHILD.format(path=[os.path.abspath(entry) for entry in sys.path], folder=folder)
        environment = {**os.environ, **_CHILD_ENVIRONMENT}
        child = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        if child.returncode:
            said = child.stderr.strip().splitlines()[-1:] or [
                f"it ended with status {child.returncode}"
            ]
            raise NotMeasured(
                f"the pass failed in a process of its own ({said[0]}); the network's classes must stand in a module"
            )
        added = json.loads(Path(folder, "added.json").read_text())
    return dict(zip(net.taps, added, strict=True))


def _measure_here(folder: str) -> None:
    """The fresh process: run every depth of the net that lies in `folder`; write by how many bytes
    memory grew.
    """
    # Our own file, written a moment before by the process that started this one.
    net, example, context, threads = torch.load(Path(folder, "pass.pt"), weights_only=False)
    torch.set_num_threads(threads)
    net.eval()
    added = []
    with torch.inference_mode():
        restarts = _restart_peak()
        if restarts:
            net(example, depth=-1, **context)  # warms up
        before = _peak()
        for depth in net.taps:
            if restarts:
                net(example, depth=depth, **context)
                _restart_peak()
                before = _peak()
            net(example, depth=depth, **context)
            added.append(_peak() - before)  # where it does not restart, the peak up to this depth
    Path(folder, "added.json").write_text(json.dumps(added))


def _restart_peak() -> bool:
    """Let `_peak` begin anew from what is resident now; whether this system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    """The most memory that this process has had resident, in bytes."""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss: on Linux it starts at what the parent process had.
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) * 1024


@cache
def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()
