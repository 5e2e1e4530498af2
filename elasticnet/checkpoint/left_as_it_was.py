"""Run a net without leaving a trace in what its modules hold."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from elasticnet._modules.compare import same_bits

# What every module holds: parameters, children, hooks. The buffers among them are looked at.
MODULE_INTERNALS = frozenset(vars(nn.Module()))


@contextmanager
def left_as_it_was(net: nn.Module) -> Generator[None, None, None]:
    """Give all modules what they held back when a `with` block ends, also by an exception.

    That is their attributes and buffers, and what is in these: the values of tensors, the entries
    of lists, dicts and sets, the states of random generators. What an object of another class
    holds is not seen. Parameters are left out, because no pass in eval mode changes them.

    Args:
        net: The net that may run in the block.

    Yields:
        Nothing.
    """
    kept = _Kept()
    for module in net.modules():
        attributes = vars(module)
        kept.note_table(attributes)
        kept.note_table(attributes["_buffers"])
        kept.note_each(value for name, value in attributes.items() if name not in MODULE_INTERNALS)
        kept.note_each(attributes["_buffers"].values())
    try:
        yield
    finally:
        kept.restore()


class _Kept:
    """What values held, each with the way to put it back."""

    def __init__(self) -> None:
        self._restores: list[Callable[[], object]] = []
        self._seen: set[int] = set()  # by identity: a container may contain itself

    def restore(self) -> None:
        for restore in self._restores:
            restore()

    def note_table(self, table: dict[Any, Any]) -> None:
        """Note which objects the keys of a dict stand for."""
        self._restores.append(partial(_refill_dict, table, dict(table)))

    def note_each(self, values: Iterable[Any]) -> None:
        """Note what is in each of some values, which may be nested."""
        for value in values:
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self._note(value)

    def _note(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._note_tensor(value)
        elif _is_dict(value):
            self.note_table(value)
            self.note_each(value.values())
        elif _is_list(value):
            self._restores.append(partial(_refill_list, value, list(value)))
            self.note_each(value)
        elif _is_set(value):
            self._restores.append(partial(_refill_set, value, set(value)))
        elif _is_tuple(value):
            self.note_each(value)
        else:
            self._note_generator(value)

    def _note_tensor(self, tensor: Tensor) -> None:
        has_plain_values = tensor.layout is torch.strided and not tensor.is_meta
        if has_plain_values and not tensor.requires_grad:
            self._restores.append(partial(_write_back, tensor, tensor.clone()))

    def _note_generator(self, value: Any) -> None:
        if isinstance(value, torch.Generator):
            self._restores.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._restores.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.RandomState):
            self._restores.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._restores.append(partial(setattr, bits, "state", bits.state))


def _is_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[list[Any] | deque[Any]]:
    return isinstance(value, (list, deque))


def _is_set(value: Any) -> TypeGuard[set[Any]]:
    return isinstance(value, set)


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)


def _refill_dict(table: dict[Any, Any], before: dict[Any, Any]) -> None:
    for key in table.keys() - before.keys():
        del table[key]
    table.update(before)


def _refill_list(entries: list[Any] | deque[Any], before: list[Any]) -> None:
    entries.clear()
    entries.extend(before)


def _refill_set(members: set[Any], before: set[Any]) -> None:
    members.clear()
    members.update(before)


def _write_back(tensor: Tensor, before: Tensor) -> None:
    """Write the earlier values back, unless they are there still: nothing counts as changed."""
    if not same_bits(tensor, before):
        tensor.copy_(before)
