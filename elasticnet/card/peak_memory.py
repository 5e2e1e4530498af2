"""How much memory one pass to each depth takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elasticnet.memory import MB, peak_resident, restart_peak
from elasticnet.wrapper import ElasticWrapper, evaluating

PASS_FILE = "pass.pt"
ADDED_FILE = "added.json"
# The fresh process: the same modules as here, and nothing but the measurement.
CHILD_CODE = (
    "import sys; sys.path[:] = {path!r}; "
    "from elasticnet.card.peak_memory import measure_in_this_process; "
    "measure_in_this_process({folder!r})"
)
# Above a fixed threshold malloc maps each block by itself and gives it back at once: repeatable to
# 3 %, where 147 or 173 MB came without. Torch's profiler is no substitute: equal in float32, but in
# bfloat16 it counts buffers that are never touched (27 to 43 % more).
CHILD_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}


class NotMeasured(RuntimeError):
    """Peak memory cannot be measured here; the message says why."""


def peak_memory(
    net: ElasticWrapper, example: Tensor, context: Mapping[str, Any] | None = None
) -> dict[int, float]:
    """Return the megabytes of one pass to each depth: weights, input, and the most the pass adds.

    On CUDA they come from torch's allocator; on the CPU of Linux and macOS from the resident memory
    of a fresh process, to which the net is sent by pickle. What the first pass of a process adds
    once (compiled kernels, the code of libraries) is not counted.

    Args:
        net: The net.
        example: Its input.
        context: Keyword arguments of its call.

    Returns:
        MB (10**6 bytes) by depth.

    Raises:
        NotMeasured: This system has no way to tell, or the net cannot be sent to another process.
    """
    keywords = dict(context or {})
    if example.device.type == "cuda":
        added = _added_on_cuda(net, example, keywords)
    elif example.device.type == "cpu" and sys.platform in ("linux", "darwin"):
        added = _added_on_cpu(net, example, keywords)
    else:
        raise NotMeasured(
            f"there is no way to read it on {example.device.type} under {sys.platform}"
        )
    megabytes: dict[int, float] = {}
    for depth in net.taps:
        cut = net.truncate(depth)
        tensors = [*cut.parameters(), *cut.buffers(), example]
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        megabytes[depth] = (held + added[depth]) / MB
    return megabytes


def measure_in_this_process(folder: str) -> None:
    """Run every depth of the net that lies in a folder; write by how many bytes memory grew.

    `peak_memory` starts a process that does nothing else.

    Args:
        folder: Where the net was put, and where the numbers go.
    """
    # Our own file, written a moment before by the process that started this one.
    net, example, context, threads = torch.load(Path(folder, PASS_FILE), weights_only=False)
    torch.set_num_threads(threads)
    net.eval()
    added: list[int] = []
    with torch.inference_mode():
        can_restart = restart_peak()
        if can_restart:
            net(example, depth=-1, **context)  # warms up
        before = peak_resident() or 0
        for depth in net.taps:
            if can_restart:
                net(example, depth=depth, **context)
                restart_peak()
                before = peak_resident() or 0
            net(example, depth=depth, **context)
            # where it cannot restart, the peak of all passes up to this depth
            added.append((peak_resident() or 0) - before)
    Path(folder, ADDED_FILE).write_text(json.dumps(added))


def _added_on_cuda(net: ElasticWrapper, example: Tensor, context: dict[str, Any]) -> dict[int, int]:
    """Return the bytes that a pass to each depth adds, by torch's allocator."""
    added: dict[int, int] = {}
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


def _added_on_cpu(net: ElasticWrapper, example: Tensor, context: dict[str, Any]) -> dict[int, int]:
    """Return the bytes that a pass to each depth adds, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="elasticnet-") as folder:
        sent = (net, example, context, torch.get_num_threads())
        try:
            torch.save(sent, Path(folder, PASS_FILE))
        except Exception as error:  # pickle raises whatever the user's classes raise
            raise NotMeasured(
                f"the network cannot be sent to a process of its own ({error})"
            ) from error
        path = [os.path.abspath(entry) for entry in sys.path]
        code = CHILD_CODE.format(path=path, folder=folder)
        environment = {**os.environ, **CHILD_ENVIRONMENT}
        child = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        if child.returncode != 0:
            said = child.stderr.strip().splitlines() or [f"status {child.returncode}"]
            raise NotMeasured(
                f"the pass failed in a process of its own ({said[-1]}); "
                "the network's classes must stand in a module"
            )
        added = json.loads(Path(folder, ADDED_FILE).read_text())
    return dict(zip(net.taps, added, strict=True))
