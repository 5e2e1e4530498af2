"""Run a net without leaving a trace in what its modules hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elasticnet._modules.compare import same_bits
from elasticnet._modules.kept_attributes import attributes_put_back, values_held_by


@contextmanager
def left_as_it_was(net: nn.Module) -> Generator[None, None, None]:
    """Give all modules what they held back when a `with` block ends, also by an exception.

    That is their attributes and buffers, the entries of lists, dicts and sets in these, the values
    of tensors, and the states of random generators. Parameters are left out, because no pass in
    eval mode changes them.

    Args:
        net: The net that may run in the block.

    Yields:
        Nothing.
    """
    restores: dict[int, Callable[[], object]] = {}  # by the identity of what several may hold
    for module in net.modules():
        for value in values_held_by(module):
            restore = _way_back(value)
            if restore is not None:
                restores[id(value)] = restore
    with attributes_put_back(net):
        try:
            yield
        finally:
            for restore in restores.values():
                restore()


def _way_back(value: Any) -> Callable[[], object] | None:
    """Return what gives a tensor its values back, or a generator its state; None for others."""
    if isinstance(value, Tensor):
        return _way_back_of_tensor(value)
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return partial(setattr, bits, "state", bits.state)
    return None


def _way_back_of_tensor(tensor: Tensor) -> Callable[[], object] | None:
    has_plain_values = tensor.layout is torch.strided and not tensor.is_meta
    if not has_plain_values or tensor.requires_grad or isinstance(tensor, nn.Parameter):
        return None
    return partial(_write_back, tensor, tensor.clone())


def _write_back(tensor: Tensor, before: Tensor) -> None:
    """Write the earlier values back, unless they are there still: nothing counts as changed."""
    if not same_bits(tensor, before):
        tensor.copy_(before)
