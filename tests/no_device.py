"""What shows on the CPU that a step could be recorded on a GPU: it reads nothing from its device.

Tensors on the device "meta" have no values, so that a read is an error. What a step takes from the
host, which CUDA could not record, is a tensor on another device.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elasticnet.training.step import TrainingStep

READS = (
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "equal",
    "unique",
    "masked_select",
    "_unique2",
)


class RefusingReads(TorchDispatchMode):
    """Refuses operations whose results the host needs, or that take tensors of the host.

    Args:
        device: The only kind of device whose tensors may take part.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in READS, f"{func} waits for the device"
        output = func(*args, **kwargs)
        for leaf in tree_leaves((args, kwargs, output)):
            if isinstance(leaf, Tensor):
                assert leaf.device.type == self.device, f"{func} has a tensor on {leaf.device}"
        self.num_operations += 1
        return output


class AdamOfNoDevice(torch.optim.Adam):
    """Stands in for fused Adam, which is not there for meta tensors, and changes nothing."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__(parameters, fused=False)
        self.param_groups[0]["fused"] = True

    def step(self, closure: Any = None) -> None:
        assert self.param_groups[0]["lr"].device.type == "meta"


class StepOfNoDevice(TrainingStep):
    """A step without autocast, which is not there for meta tensors either."""

    def autocast(self) -> Any:
        return nullcontext()
