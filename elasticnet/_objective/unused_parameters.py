"""Which parameters of an objective no backward pass reaches, found by one pass of a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from elasticnet._modules.copies import detached_copy
from elasticnet._modules.unwrapping import name_of_sharding, unwrapped

Objective = TypeVar("Objective", bound=nn.Module)


def unused_parameters(objective: Objective, loss: Callable[[Objective], Tensor]) -> list[str]:
    """Return the names of the trainable parameters that get no gradient.

    A copy of the objective runs in training mode. Nothing of the objective itself changes, and
    neither do PyTorch's random generators.

    Args:
        objective: A module with a network `net`.
        loss: Returns the loss of the copy, a scalar.

    Returns:
        The names, as in `objective.named_parameters()`.

    Raises:
        ValueError: The objective is sharded.
    """
    sharded_by = name_of_sharding(objective)
    if sharded_by is not None:
        raise ValueError(
            f"find_unused runs a copy of the network, which is sharded by {sharded_by}: call it "
            "before the network is sharded"
        )
    copies: dict[int, Any] = {}  # by the id of the original, as copy.deepcopy wants it
    # The copy holds the net without what other libraries wrapped around it, which may not be copied
    # or must not run here: DistributedDataParallel would wait for the other processes.
    copies[id(objective.net)] = detached_copy(unwrapped(objective.net), copies)
    probe = detached_copy(objective, copies)
    probe.train()
    probe.zero_grad(set_to_none=True)

    gpus = {each.device for each in objective.parameters() if each.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(gpus)), torch.enable_grad():
        total = loss(probe)
        if total.requires_grad:  # not if all parameters are frozen
            total.backward()

    unused: list[str] = []
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad and copies[id(parameter)].grad is None:
            unused.append(name)
    return unused
