"""Running statistics of BatchNorm inside the shared head, one set for each tap.

In eval mode a BatchNorm normalises by its running mean and variance. A head that is called at
several depths has one BatchNorm for features of all of them, and the mean over depths fits none.
A `HeadStatistics` holds the statistics of one depth. A call of the head with them reads and updates
them in the place of the head's own; weights and biases stay shared.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.modules import batchnorm

from elasticnet._modules.unwrapping import plain_name, unwrapped

BatchNorm = batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]

# A call of the head with other statistics exchanges its buffers until it returns. Threads that
# share a net must not do so at the same time. Reentrant, because a head may hold an elastic net.
_EXCHANGE = threading.RLock()


class HeadStatistics(nn.Module):
    """The running statistics of every BatchNorm in a head, for one depth.

    The state dict has the keys that the buffers have in the head, such as `0.norm.running_mean`.

    Args:
        head: The shared head. The statistics begin as copies of its own.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        for path, norm in batch_norms(head).items():
            holder = self._holder(path)
            for name, buffer in norm.named_buffers(recurse=False):
                holder.register_buffer(name, buffer.detach().clone())

    def _holder(self, path: str) -> nn.Module:
        """Return the module at a path such as `0.norm`; modules that are missing are made."""
        holder: nn.Module = self
        for name in path.split(".") if path else []:
            if name not in dict(holder.named_children()):
                holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        return holder


def batch_norms(module: nn.Module | None) -> dict[str, BatchNorm]:
    """Return every BatchNorm in a module that has running statistics, by its path without wrappers.

    Args:
        module: Any module. None: there are none.
    """
    found: dict[str, BatchNorm] = {}
    if module is None:
        return found
    for path, each in _named_modules(module):
        if isinstance(each, BatchNorm) and each.running_mean is not None:
            found[plain_name(module, path)] = each
    return found


def call_head(head: nn.Module, statistics: nn.Module | None, inputs: tuple[Any, ...]) -> Any:
    """Return what a head makes of its inputs with the statistics of one depth.

    Args:
        head: The shared head.
        statistics: A `HeadStatistics`. None: the head's own.
        inputs: The positional arguments of the head.
    """
    if statistics is None:
        return head(*inputs)
    buffers = _buffers_by_name(head, statistics)
    if torch.compiler.is_compiling():  # a lock has no place in a graph
        return functional_call(head, buffers, inputs)
    with _EXCHANGE:
        return functional_call(head, buffers, inputs)


def write_into_head(head: nn.Module, statistics: nn.Module) -> None:
    """Make statistics the head's own: afterwards an ordinary call of the head uses their values.

    Args:
        head: The head; its buffers are replaced.
        statistics: A `HeadStatistics` of this head.
    """
    for name, buffer in _buffers_by_name(head, statistics).items():
        path, _, attribute = name.rpartition(".")
        setattr(head.get_submodule(path), attribute, buffer.detach().clone())


def statistics_by_depth(statistics: nn.ModuleDict, depths: Iterable[int]) -> nn.ModuleDict:
    """Return the statistics of some depths, shallowest first; depths without any are left out.

    Args:
        statistics: `net.head_statistics`.
        depths: The depths.
    """
    wanted = [str(depth) for depth in sorted(depths) if str(depth) in statistics]
    kept = nn.ModuleDict({name: statistics[name] for name in wanted})
    kept.training = statistics.training
    return kept


def _buffers_by_name(head: nn.Module, statistics: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of statistics by the names that they have in the head."""
    buffers = dict(statistics.named_buffers())
    if unwrapped(head) is head:
        return buffers
    # A compiled head has a piece more in its names.
    names = {plain_name(head, name): name for name, _ in head.named_buffers()}
    return {names[name]: buffer for name, buffer in buffers.items()}


def _named_modules(module: Any) -> list[tuple[str, nn.Module]]:
    """Return all modules with their paths, typed, which PyTorch's own method is not."""
    return list(module.named_modules())
