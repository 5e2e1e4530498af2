"""The tensors in an example input, which may be one tensor, or a tuple, list or dict of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from torch import Tensor


def tensors_in(example: Any) -> list[Tensor]:
    """Return all tensors in an example, in their order.

    Args:
        example: A tensor, or a tuple, list or mapping of examples. Anything else holds none.
    """
    if isinstance(example, Tensor):
        return [example]
    entries: Sequence[Any] = ()
    if _is_mapping(example):
        entries = list(example.values())
    elif _is_sequence(example):
        entries = example
    found: list[Tensor] = []
    for entry in entries:
        found += tensors_in(entry)
    return found


def first_tensor(example: Any) -> Tensor:
    """Return the first tensor in an example: its shape, type and device stand for the example's.

    Args:
        example: A tensor, or a tuple, list or mapping of examples.

    Raises:
        ValueError: There is no tensor in it.
    """
    tensors = tensors_in(example)
    if not tensors:
        raise ValueError(
            f"example: a {type(example).__name__} without a tensor; expected a tensor, "
            "or a tuple, list or dict of tensors"
        )
    return tensors[0]


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (tuple, list))
