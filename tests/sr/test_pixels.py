"""Float images become integers: ties, neighbours of ties, ends of the range, both libraries."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elasticnet.sr.pixels import tensor_to_integers, tensor_to_uint8, to_integers, to_uint8

WHITE = {"uint8": 255, "uint16": 65535}


def around_every_tie(white: int, dtype: type) -> np.ndarray:
    """Each n + 1/2 with the nearest number of this precision below and above it."""
    ties = np.arange(white, dtype=dtype) + dtype(0.5)
    below = np.nextafter(ties, dtype(0))
    above = np.nextafter(ties, dtype(white))
    return np.concatenate([below, ties, above])


def exactly_rounded(values: np.ndarray) -> list[int]:
    """Half away from zero, in fractions without rounding errors."""
    return [math.floor(Fraction(float(value)) + Fraction(1, 2)) for value in values]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("integers", ["uint8", "uint16"])
def test_every_tie_and_its_neighbours_are_rounded_exactly(dtype: type, integers: str) -> None:
    values = around_every_tie(WHITE[integers], dtype)
    expected = exactly_rounded(values)
    from_numpy = to_integers(values, integers)
    from_torch = tensor_to_integers(torch.from_numpy(values), WHITE[integers])
    assert from_numpy.dtype == integers
    assert from_numpy.tolist() == expected
    assert from_torch.tolist() == expected


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    integers=st.sampled_from(["uint8", "uint16"]),
)
def test_a_tensor_becomes_the_narrow_integers_that_int32_would_hold(
    values: list[float], dtype: torch.dtype, integers: str
) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    result = tensor_to_integers(tensor, WHITE[integers])
    assert result.dtype == getattr(torch, integers)
    computed = torch.promote_types(dtype, torch.float32)
    below_half = torch.nextafter(torch.tensor(0.5, dtype=computed), torch.tensor(0.0).to(computed))
    wide = (tensor.to(computed).clamp(0, WHITE[integers]) + below_half).int()
    assert result.tolist() == wide.tolist()


def test_a_device_without_uint16_takes_int32() -> None:
    on_another_device = torch.empty(3, device="meta")
    assert tensor_to_integers(on_another_device, 65535).dtype == torch.int32
    assert tensor_to_integers(on_another_device, 255).dtype == torch.uint8


def test_what_lies_outside_the_range_is_clipped() -> None:
    values = np.array([-1e9, -0.6, -0.5, -0.0, 254.5, 255.4, 256.0, 1e9])
    expected = [0, 0, 0, 0, 255, 255, 255, 255]
    assert to_uint8(values).tolist() == expected
    assert tensor_to_uint8(torch.from_numpy(values)).tolist() == expected


def test_values_are_left_as_they_are() -> None:
    values = np.array([1.25, 300.0], np.float32)
    tensor = torch.tensor([1.25, 300.0])
    to_uint8(values)
    tensor_to_uint8(tensor)
    assert values.tolist() == [1.25, 300.0]
    assert tensor.tolist() == [1.25, 300.0]


def test_half_precision_reaches_white() -> None:
    assert to_integers(np.array([np.inf, 2.5], np.float16), np.uint16).tolist() == [65535, 3]
    assert tensor_to_uint8(torch.tensor([2.5, 250.0], dtype=torch.bfloat16)).tolist() == [3, 250]


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_byte_order_is_that_of_the_result(byte_order: str) -> None:
    result = to_integers(np.array([[256.5]]), byte_order)
    assert result.dtype == np.dtype(byte_order)
    assert result.tolist() == [[257]]
