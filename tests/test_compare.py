"""Equality without tolerance and the largest difference, over outputs of any structure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from elasticnet._modules.compare import largest_difference, same_bits

NAN = math.nan
ONE = torch.ones(2, 3)
values = arrays.arrays(np.float32, (2, 3), elements=st.floats(-9, 9, width=32))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ONE, ONE.clone()),
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0])),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([1, 2]), torch.tensor([1, 2])),
        ((ONE, {"a": [ONE, None]}), (ONE.clone(), {"a": [ONE.clone(), None]})),
        ([], []),
        ("text", "text"),
    ],
)
def test_equal_outputs_are_equal(first: Any, second: Any) -> None:
    assert same_bits(first, second)
    assert same_bits(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ONE, ONE + 1e-7),
        (ONE, ONE.double()),
        (ONE, torch.ones(3, 2)),
        (ONE, torch.ones(3)),
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, NAN])),
        (torch.tensor([NAN]), torch.tensor([math.inf])),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (ONE, None),
        (1.0, torch.tensor(1.0)),
        ((ONE,), (ONE, ONE)),
        ((ONE, ONE), (ONE, ONE + 1)),
        ({"a": ONE}, {"b": ONE}),
        ({"a": ONE}, {"a": ONE + 1}),
        (1, 2),
    ],
)
def test_unequal_outputs_are_not(first: Any, second: Any) -> None:
    assert not same_bits(first, second)
    assert not same_bits(second, first)


@given(values, values)
def test_the_largest_difference_is_numpys(first: np.ndarray, second: np.ndarray) -> None:
    expected = np.abs(first.astype(np.float64) - second).max()
    tensors = torch.from_numpy(first), torch.from_numpy(second)
    assert largest_difference(*tensors) == expected
    zero = torch.zeros(2)
    nested = largest_difference({"a": (tensors[0], zero)}, {"a": (tensors[1], zero)})
    assert nested == expected


def test_the_largest_of_several_outputs_counts() -> None:
    assert largest_difference((ONE, ONE), (ONE + 1, ONE - 2)) == 2.0
    assert (
        largest_difference([torch.tensor([True]), 3, None], [torch.tensor([False]), 5, None]) == 2
    )
    assert largest_difference(torch.tensor([3 + 4j]), torch.tensor([0j])) == 5.0
    assert largest_difference(torch.zeros(0), torch.zeros(0)) == 0.0
    assert largest_difference([], []) == 0.0


def test_a_nan_on_either_side_is_passed_on() -> None:
    with_nan = (torch.tensor([1.0, NAN]), ONE)
    without = (torch.tensor([1.0, 9.0]), ONE)
    assert math.isnan(largest_difference(with_nan, without))
    assert math.isnan(largest_difference(without, with_nan))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (ONE, torch.ones(3), r"cannot compare shape \(2, 3\) with shape \(3,\)"),
        (ONE, None, r"cannot compare shape \(2, 3\) with the NoneType None"),
        ([ONE], [ONE, ONE], "cannot compare a list of 1 with a list of 2"),
        ({"a": 1}, {"b": 1}, r"a mapping with keys \['a'\] with a mapping with keys \['b'\]"),
    ],
)
def test_outputs_of_other_structure_have_no_difference(
    first: Any, second: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        largest_difference(first, second)
