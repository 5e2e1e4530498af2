"""Several processes of one training, on torch.distributed: `torchrun` or `accelerate launch` starts
them.

Each process computes its share of the batch; gradients, losses and decisions are then made one for
all. Alone, every function returns what it was given.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

# What `accelerate launch` can ask for in the environment, and a loop of ours would not do.
_OTHER_ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")


class Processes(NamedTuple):
    """The processes of a training, seen from one of them: `rank` of `count`, and the `device` that
    is its own.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line above the line of progress, once for all processes."""
        if self.first:
            tqdm.write(text)

    def average(self, values: Tensor) -> Tensor:
        """Return the mean of a floating-point tensor over the processes, in its own dtype."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)  # a sum: gloo knows no mean
            values = values / self.count
        return values

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, in one reduction for each dtype.

        A parameter without a gradient must have none in any process; taps are sampled alike in all
        of them.
        """
        if self.count == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            # (reshape, not view: gradients of channels-last weights lie in their order)
            mean = self.average(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            parts = mean.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any of the processes."""
        if self.count == 1:
            return flag
        return bool(self.average(torch.tensor(float(flag), device=self.device)).item())

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, by rank."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values


@contextmanager
def join_processes(device: torch.device | str) -> Iterator[Processes]:
    """Join the processes that a launcher has started, and leave them at the end of the `with`
    block.

    The launcher's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) says who
    they are; without it, or for a single process, nothing is started. On CUDA each process takes
    the device of its LOCAL_RANK and NCCL, on the CPU gloo. Raises ValueError when `accelerate
    launch` was asked for an engine or a precision that is not served.
    """
    device = torch.device(device)
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    for name in _OTHER_ENGINES:
        if os.environ.get(name, "false").lower() in ("true", "1"):
            raise ValueError(
                f"{name} is set: this training is data-parallel only; launch it without that engine"
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise ValueError(
            f"accelerate launch --mixed_precision {precision}: pass `no` there and give --precision here"
        )
    if count == 1:
        yield Processes(device=device)
        return
    if device.type == "cuda":
        local, gpus = int(os.environ.get("LOCAL_RANK", rank)), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(
                f"LOCAL_RANK {local}: this host has {gpus} GPUs; start at most one process for each"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()
