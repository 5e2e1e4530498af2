"""Tensors that share memory: different values are noticed by one bit, and nothing is written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from elasticnet._modules.ties import find_conflict, is_expanded, shared_names


def shared_ways(whole: Tensor) -> dict[str, Tensor]:
    """Return views of one tensor (4, 4) that overlap in every way."""
    return {
        "same": whole,
        "transposed": whole.t(),
        "part": whole[1:3],
        "as integers": whole.view(torch.int32),
    }


@pytest.mark.parametrize("way", ["same", "transposed", "part", "as integers"])
def test_one_bit_of_difference_is_a_conflict(way: str) -> None:
    whole = torch.rand(4, 4)
    targets = {"whole": whole, "view": shared_ways(whole)[way]}
    before = whole.clone()
    values = {name: target.clone() for name, target in targets.items()}
    assert find_conflict(targets, values) is None

    bits = values["view"].view(torch.int32)
    bits[1, 1] ^= 1
    conflict = find_conflict(targets, values)
    assert conflict is not None
    assert set(conflict) == {"whole", "view"}
    assert torch.equal(whole, before)


def test_neighbours_in_one_storage_are_no_conflict() -> None:
    flat = torch.zeros(10)
    targets = {"first": flat[:4], "second": flat[4:]}
    values = {"first": torch.ones(4), "second": torch.rand(6)}
    assert find_conflict(targets, values) is None


def test_values_are_compared_in_the_dtype_of_the_target() -> None:
    half = torch.zeros(2, dtype=torch.float16)
    targets = {"first": half, "second": half}
    values = {"first": torch.tensor([1.0, 2.0]), "second": torch.tensor([1.0, 2.0 + 1e-6])}
    assert find_conflict(targets, values) is None


def test_tensors_of_their_own_memory_are_no_conflict() -> None:
    targets = {"first": torch.zeros(2), "second": torch.zeros(2), "empty": torch.zeros(0)}
    values = {"first": torch.ones(2), "second": torch.rand(2), "empty": torch.zeros(0)}
    assert find_conflict(targets, values) is None


def test_what_two_groups_share_is_named() -> None:
    whole = torch.rand(4, 4)
    first = {"a": whole[:2], "b": torch.rand(2)}
    assert shared_names(first, {"c": whole[1:]}) == {"a": "c"}
    assert shared_names(first, {"c": whole[2:]}) == {}


def test_an_expanded_tensor_is_known() -> None:
    assert is_expanded(torch.zeros(1).expand(3))
    assert not is_expanded(torch.zeros(1, 3).expand(1, 3))
    assert not is_expanded(torch.zeros(4, 4).t())
