"""Nests: tensors in lists, tuples, dicts and dataclasses, as networks take and return them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a nest of lists, tuples, dicts and dataclasses.

    Args:
        value: A tensor, a nest of tensors, or any other value.
    """
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    for entry in _entries(value):
        found += tensors_in(entry)
    return found


def numbers_in(value: Any) -> list[int | float]:
    """Return the numbers that a nest holds beside its tensors, truth values among them.

    Args:
        value: As in `tensors_in`.
    """
    if isinstance(value, (int, float)):
        return [value]
    found: list[int | float] = []
    for entry in _entries(value):
        found += numbers_in(entry)
    return found


def copied(value: Any) -> Any:
    """Return a nest of the same kind in which every tensor is a copy, with its gradient.

    Args:
        value: A tensor, a nest of tensors in lists, tuples, dicts and dataclasses, or any other
            value.
    """
    return mapped(value, Tensor.clone)


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a nest of the same kind with another tensor in place of each.

    Args:
        value: As in `copied`.
        function: Returns the other tensor. It is called in the order of `tensors_in`.
    """
    if isinstance(value, Tensor):
        return function(value)
    entries = [mapped(entry, function) for entry in _entries(value)]
    if _is_tuple(value):
        # A named tuple, such as PackedSequence, takes its fields one by one.
        is_named = hasattr(value, "_fields")
        return type(value)(*entries) if is_named else tuple(entries)
    return _with_entries(value, entries)


def in_own_containers(value: Any) -> Any:
    """Return a nest of the same tensors in lists, dicts and dataclasses of its own.

    A part of a network that appends to a list, or sets a key of a dict, then changes its own alone.

    Args:
        value: As in `copied`. Named tuples are returned as they are.
    """
    if isinstance(value, Tensor):
        return value
    if type(value) is tuple:
        return tuple(in_own_containers(entry) for entry in _entries(value))
    return _with_entries(value, [in_own_containers(entry) for entry in _entries(value)])


def _with_entries(value: Any, entries: Sequence[Any]) -> Any:
    """Return a copy of a list, dict or dataclass with other entries; any other value as it is."""
    # torch.compile can trace the first two, and not copy.copy.
    if type(value) is list:
        return list(entries)
    if _is_list(value):
        changed_list = copy.copy(value)
        changed_list[:] = entries
        return changed_list
    if _is_dict(value):
        if _is_plain(value):
            return dict(zip(value, entries, strict=True))
        changed_dict = copy.copy(value)  # keeps its class, such as transformers' ModelOutput
        for key, entry in zip(value, entries, strict=True):
            changed_dict[key] = entry
        return changed_dict
    if _is_dataclass(value):
        changed = copy.copy(value)
        for field, entry in zip(dataclasses.fields(value), entries, strict=True):
            object.__setattr__(changed, field.name, entry)  # as a frozen one refuses setattr
        return changed
    return value


def _entries(value: Any) -> Sequence[Any]:
    """Return what a list, tuple, dict or dataclass contains; nothing for any other value."""
    if _is_dict(value):
        return list(value.values())
    if _is_list(value) or _is_tuple(value):
        return value
    if _is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return ()


def _is_plain(value: Any) -> bool:
    """Return whether a dict is of no class of its own."""
    return type(value) is dict


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_dict(value: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)
