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

from elasticnet._autocast import computing_in
from elasticnet.card.example_tensors import first_tensor, tensors_in
from elasticnet.checkpoint.header import first_depth_that_needs
from elasticnet.memory import MB, peak_resident, restart_peak
from elasticnet.wrapper import ElasticWrapper, evaluating

PASS_FILE = "pass.pt"
ADDED_FILE = "added.json"
# The fresh process: the same modules as here, and nothing but the measurement.
CHILD_CODE = (
    "import sys; sys.path[:] = {path!r}; "
    "from elasticnet.card.memory_of_passes import measure_in_this_process; "
    "measure_in_this_process({folder!r})"
)
# Above a fixed threshold malloc maps each block by itself and gives it back at once: repeatable to
# 3 %, where 147 or 173 MB came without. Torch's profiler is no substitute: equal in float32, but in
# bfloat16 it counts buffers that are never touched (27 to 43 % more).
CHILD_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}


class NotMeasured(RuntimeError):
    """Peak memory cannot be measured here; the message says why."""


def peak_memory(
    net: ElasticWrapper,
    example: Any,
    context: Mapping[str, Any] | None = None,
    compute_dtype: torch.dtype | None = None,
) -> dict[int, float]:
    """Return the megabytes of one pass to each depth: weights, input, and the most the pass adds.

    On CUDA they come from torch's allocator; on the CPU of Linux and macOS from the resident memory
    of a fresh process, to which the net is sent by pickle. What the first pass of a process adds
    once (compiled kernels, the code of libraries) is not counted.

    Args:
        net: The net.
        example: Its input: a tensor, or a tuple, list or dict of tensors.
        context: Keyword arguments of its call.
        compute_dtype: As in `measure`.

    Returns:
        MB (10**6 bytes) by depth.

    Raises:
        NotMeasured: This system has no way to tell, or the net cannot be sent to another process.
    """
    keywords = dict(context or {})
    device = first_tensor(example).device
    if device.type == "cuda":
        added = _added_on_cuda(net, example, keywords)
    elif device.type == "cpu" and sys.platform in ("linux", "darwin"):
        added = _added_on_cpu(net, example, keywords, compute_dtype)
    else:
        raise NotMeasured(f"there is no way to read it on {device.type} under {sys.platform}")
    megabytes: dict[int, float] = {}
    for depth in net.taps:
        tensors = [*_tensors_of(net, depth), *tensors_in(example)]
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        megabytes[depth] = (held + added[depth]) / MB
    return megabytes


def _tensors_of(net: ElasticWrapper, depth: int) -> list[Tensor]:
    """Return the parameters and buffers of the net cut to a depth, shared ones once."""
    parameters = net.named_parameters(remove_duplicate=False)
    buffers = net.named_buffers(remove_duplicate=False)
    held: dict[int, Tensor] = {}  # by identity
    for name, tensor in (*parameters, *buffers):
        if first_depth_that_needs(name) <= depth:
            held[id(tensor)] = tensor
    return list(held.values())


def measure_in_this_process(folder: str) -> None:
    """Run every depth of the net that lies in a folder; write by how many bytes memory grew.

    `peak_memory` starts a process that does nothing else.

    Args:
        folder: Where the net was put, and where the numbers go.
    """
    # Our own file, written a moment before by the process that started this one.
    net, example, context, threads, compute_dtype = torch.load(
        Path(folder, PASS_FILE), weights_only=False
    )
    torch.set_num_threads(threads)
    net.eval()
    added: list[int] = []
    with torch.no_grad(), computing_in(compute_dtype, "cpu"):
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


def _added_on_cuda(net: ElasticWrapper, example: Any, context: dict[str, Any]) -> dict[int, int]:
    """Return the bytes that a pass to each depth adds, by torch's allocator."""
    added: dict[int, int] = {}
    device = first_tensor(example).device
    with evaluating(net), torch.no_grad():
        for depth in net.taps:
            net(example, depth=depth, **context)  # warms up
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            net(example, depth=depth, **context)
            torch.cuda.synchronize(device)
            added[depth] = torch.cuda.max_memory_allocated(device) - before
    return added


def _added_on_cpu(
    net: ElasticWrapper,
    example: Any,
    context: dict[str, Any],
    compute_dtype: torch.dtype | None,
) -> dict[int, int]:
    """Return the bytes that a pass to each depth adds, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="elasticnet-") as folder:
        sent = (net, example, context, torch.get_num_threads(), compute_dtype)
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
