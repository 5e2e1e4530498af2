"""Which parameters of a module no backward pass reaches, found by one pass of a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from elasticnet._modules.copies import detached_copy

Module = TypeVar("Module", bound=nn.Module)


def unused_parameters(
    module: Module, loss: Callable[[Module], Tensor], unwrapped: dict[nn.Module, Any]
) -> list[str]:
    """Return the names of the trainable parameters that get no gradient.

    A copy of the module runs in training mode. Nothing of the module itself changes, and neither do
    PyTorch's random generators.

    Args:
        module: The module.
        loss: Returns the loss of the copy, a scalar. It may change the copy.
        unwrapped: What the copy holds in the place of submodules that cannot be copied, or must not
            run: such as the network inside of DistributedDataParallel.

    Returns:
        The names, as in `module.named_parameters()`.
    """
    copies: dict[int, Any] = {}  # by the id of the original
    for wrapper, inner in unwrapped.items():
        copies[id(wrapper)] = detached_copy(inner, copies)
    probe = detached_copy(module, copies)
    probe.train()
    probe.zero_grad(set_to_none=True)

    gpus = {each.device for each in module.parameters() if each.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(gpus)), torch.enable_grad():
        total = loss(probe)
        if total.requires_grad:  # not if all parameters are frozen
            total.backward()

    unused: list[str] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and copies[id(parameter)].grad is None:
            unused.append(name)
    return unused
