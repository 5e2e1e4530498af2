"""Tensors that share memory, such as tied weights: would copying into one overwrite another?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Conflict(NamedTuple):
    """Two tensors that share memory and are to hold different values.

    Attributes:
        first: The name of one of them.
        second: The name of the other.
    """

    first: str
    second: str


def find_conflict(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Conflict | None:
    """Return two targets that cannot both hold their values, as they share memory; None if all can.

    One bit of difference is enough. Nothing is written.

    Args:
        targets: Tensors that values are to be copied into, by name.
        values: What each of them is to hold, of the same shape and of any dtype.
    """
    for names in _names_by_storage(targets).values():
        if len(names) > 1:
            conflict = _conflict_in_storage(names, targets, values)
            if conflict is not None:
                return conflict
    return None


def shared_names(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the tensors of the first mapping that share memory with one of the second.

    Args:
        first: Tensors by name.
        second: Other tensors by name.

    Returns:
        A name of the second mapping by the name of the first.
    """
    in_second = _names_by_storage(second)
    found: dict[str, str] = {}
    for storage, names in _names_by_storage(first).items():
        for name in names:
            for other in in_second.get(storage, []):
                if _overlap(first[name], second[other]):
                    found[name] = other
    return found


def is_expanded(tensor: Tensor) -> bool:
    """Return whether several values of a tensor are one in memory, as `Tensor.expand` makes them.

    Args:
        tensor: Any tensor.
    """
    steps = zip(tensor.size(), tensor.stride(), strict=True)
    return any(length > 1 and stride == 0 for length, stride in steps)


def _names_by_storage(tensors: Mapping[str, Tensor]) -> dict[int, list[str]]:
    """Return the names of the tensors that lie in each piece of memory, by its address."""
    found: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        if address != 0:  # empty tensors, and those on the meta device, have no memory
            found.setdefault(address, []).append(name)
    return found


def _conflict_in_storage(
    names: list[str], targets: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> Conflict | None:
    """Copy all values into a copy of the memory, and look whether every target holds its own."""
    storage = targets[names[0]].untyped_storage()
    scratch = torch.UntypedStorage(storage.nbytes())  # on the CPU
    views: dict[str, Tensor] = {}
    for name in names:
        target = targets[name]
        view = torch.empty(0, dtype=target.dtype).set_(
            scratch, target.storage_offset(), target.size(), target.stride()
        )
        view.copy_(values[name])
        views[name] = view
    for name in names:
        value = values[name].detach().cpu().to(views[name].dtype)
        if same_bytes(views[name], value):
            continue
        for other in names:
            if other != name and _overlap(targets[name], targets[other]):
                return Conflict(name, other)
    return None


def same_bytes(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors of one dtype and shape are equal bit for bit.

    Args:
        first: Any tensor.
        second: Another one on the same device.
    """
    first_bytes = first.contiguous().view(-1).view(torch.uint8)
    second_bytes = second.contiguous().view(-1).view(torch.uint8)
    return torch.equal(first_bytes, second_bytes)


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors in one piece of memory take bytes of the same range."""
    first_range = _byte_range(first)
    second_range = _byte_range(second)
    return first_range.start < second_range.stop and second_range.start < first_range.stop


def _byte_range(tensor: Tensor) -> range:
    """Return the bytes of its memory between a tensor's first value and its last."""
    if tensor.numel() == 0:
        return range(0)
    steps = zip(tensor.size(), tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((length - 1) * stride for length, stride in steps)
    size = tensor.element_size()
    return range(tensor.storage_offset() * size, (last + 1) * size)
