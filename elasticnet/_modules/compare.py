"""Whether two outputs of networks are equal, and how far apart they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

SPARSE_LAYOUTS = (
    torch.sparse_coo,
    torch.sparse_csr,
    torch.sparse_csc,
    torch.sparse_bsr,
    torch.sparse_bsc,
)


def same_bits(first: Any, second: Any) -> bool:
    """Return whether two outputs are equal in every value, without any tolerance.

    Args:
        first: A tensor, or a list, tuple or mapping of outputs, or any other value.
        second: What it is compared with.

    Returns:
        True if structure, shapes, types and values are equal. NaN equals NaN, and 0.0 equals -0.0.
    """
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return isinstance(first, Tensor) and isinstance(second, Tensor) and _same(first, second)
    pairs = _pairs(first, second)
    if pairs is None:
        return bool(first == second)
    return all(same_bits(one, other) for one, other in pairs)


def largest_difference(first: Any, second: Any) -> float:
    """Return the largest absolute difference between two outputs of the same structure.

    Args:
        first: A tensor or a number, or a list, tuple or mapping of outputs.
        second: What it is compared with.

    Returns:
        The difference, computed in float64; 0 if there is no value to compare, and NaN if either
        output holds a NaN.

    Raises:
        ValueError: Structures or shapes differ, so that there is no difference to compute.
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _difference(first, second)
    pairs = _pairs(first, second)
    if pairs is not None:
        differences = [largest_difference(one, other) for one, other in pairs]
        return torch.tensor([0.0, *differences], dtype=torch.float64).max().item()
    if isinstance(first, (int, float)) and isinstance(second, (int, float)):
        return abs(float(first) - float(second))
    if first is None and second is None:
        return 0.0
    raise ValueError(f"cannot compare {_described(first)} with {_described(second)}")


def kind_of_tensor(tensor: Tensor) -> str:
    """Return "dense", or the kind of a tensor that most of PyTorch's operations do not take.

    Args:
        tensor: Any tensor.

    Returns:
        "dense", "sparse", "nested" or, for a nested tensor of the newer kind, "jagged".
    """
    if tensor.layout == torch.jagged:
        return "jagged"
    if tensor.is_nested:
        return "nested"
    if tensor.layout in SPARSE_LAYOUTS:
        return "sparse"
    return "dense"


def _same(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    if torch.equal(first, second):
        return True
    if not (first.is_floating_point() or first.is_complex()):
        return False
    both_nan = first.isnan() & second.isnan()
    return bool(((first == second) | both_nan).all())


def _difference(first: Tensor, second: Tensor) -> float:
    if first.shape != second.shape:
        raise ValueError(f"cannot compare {_described(first)} with {_described(second)}")
    if first.numel() == 0:
        return 0.0
    wide = torch.complex128 if first.is_complex() or second.is_complex() else torch.float64
    # On the CPU, because some accelerators have no float64.
    gap = first.detach().cpu().to(wide) - second.detach().cpu().to(wide)
    return gap.abs().max().item()


def _pairs(first: Any, second: Any) -> list[tuple[Any, Any]] | None:
    """The entries of two containers of one structure, side by side; None for anything else."""
    if _is_mapping(first) and _is_mapping(second):
        if set(first) != set(second):
            return None
        return [(first[key], second[key]) for key in first]
    if _is_sequence(first) and _is_sequence(second):
        if len(first) != len(second):
            return None
        return list(zip(first, second, strict=True))
    if dataclasses.is_dataclass(first) and type(first) is type(second):
        names = [field.name for field in dataclasses.fields(first)]
        return [(getattr(first, name), getattr(second, name)) for name in names]
    return None


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple))


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}"
    if _is_sequence(value):
        return f"a {type(value).__name__} of {len(value)}"
    if _is_mapping(value):
        return f"a mapping with keys {list(value)}"
    return f"the {type(value).__name__} {value!r:.100}"
