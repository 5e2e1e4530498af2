"""Several processes of one training, on torch.distributed.

`torchrun` or `accelerate launch` starts them. Each one computes its share of the batch; gradients,
losses and decisions are then made one for all. In a single process every function returns what it
was given.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# What `accelerate launch` can ask for in the environment, and a plain data-parallel loop is not.
_OTHER_ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: The number of this process, from 0.
        count: How many processes there are.
        device: The device that this process computes on.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = _CPU

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Log a message once for all processes, at the level INFO.

        Args:
            text: The message. `show_messages` in `elasticnet.training.log` shows it on the
                terminal.
        """
        if self.first:
            logger.info("%s", text)

    def average(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes, in its own dtype.

        Args:
            values: Floating point, of the same shape in every process.
        """
        if self.count == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)  # a sum, as gloo knows no mean
        return total / self.count

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, in one reduction for each dtype.

        Args:
            parameters: The same ones in every process. One without a gradient here must have none
                in any process; that holds because taps are sampled alike in all of them.
        """
        if self.count == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_dtype.values():
            self._average_together(gradients)

    def _average_together(self, gradients: Sequence[Tensor]) -> None:
        # reshape and not view: the gradients of channels-last weights lie in that order
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        sizes = [gradient.numel() for gradient in gradients]
        means = torch.split(self.average(flat), sizes)
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view(gradient.shape))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any of the processes.

        Args:
            flag: The flag of this process.
        """
        if self.count == 1:
            return flag
        mean = self.average(torch.tensor(float(flag), device=self.device))
        return mean.item() > 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank.

        Args:
            value: The value of this process, of a type that pickle takes.
        """
        values: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values


def single_process(device: str) -> Processes:
    """Return this process, for a training that cannot be shared among several.

    Args:
        device: Where it computes, such as "cpu".

    Raises:
        ValueError: A launcher started several processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise ValueError(
            f"this recipe trains in one process, and a launcher started {count}: start it by python"
        )
    return Processes(device=torch.device(device))


@contextmanager
def join_processes(device: torch.device | str) -> Generator[Processes, None, None]:
    """Join the processes that a launcher has started; leave them at the end of the `with` block.

    The launcher's environment says who they are: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT. Without it, or for a single process, nothing is started.

    Args:
        device: `"cpu"`, where the processes talk by gloo, or `"cuda"`, where they talk by NCCL and
            each process takes the device of its LOCAL_RANK.

    Yields:
        The processes, with the device of this one.

    Raises:
        ValueError: `accelerate launch` was asked for an engine or a precision that is not served,
            or there are more processes than GPUs on this host.
    """
    _refuse_other_engines()
    device = torch.device(device)
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        yield Processes(device=device)
        return

    rank = int(os.environ.get("RANK", 0))
    backend = "gloo"
    if device.type == "cuda":
        backend = "nccl"
        device = _own_gpu(int(os.environ.get("LOCAL_RANK", rank)))
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()


def _refuse_other_engines() -> None:
    """Refuse what `accelerate launch` was asked for where a training would go on without it."""
    for name in _OTHER_ENGINES:
        if os.environ.get(name, "false").lower() in ("true", "1"):
            raise ValueError(
                f"{name} is set: this training is data-parallel only; launch it without that engine"
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        raise ValueError(
            f"accelerate launch --mixed_precision {precision}: pass `no` there and give "
            "--precision here"
        )


def _own_gpu(local_rank: int) -> torch.device:
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise ValueError(
            f"LOCAL_RANK {local_rank}: this host has {num_gpus} GPUs; "
            "start at most one process for each"
        )
    return torch.device("cuda", local_rank)
