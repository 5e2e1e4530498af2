"""The learning rate's factor: numbers by hand, and the same computed on a device."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from elasticnet.training.learning_rate import (
    cosine,
    cosine_on_device,
    halving,
    halving_on_device,
)

FLOAT64_ROUNDING = 1e-15


def test_factors_by_hand():
    assert [halving(step, every=2) for step in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    assert [cosine(step, total=4, warmup=2) for step in range(2)] == [0.5, 1]
    assert cosine(2, total=4, warmup=2) == 1
    assert cosine(3, total=4, warmup=2) == pytest.approx(0.5)
    assert cosine(9, total=4, warmup=2, floor=0.1) == pytest.approx(0.1)


@given(step=st.integers(0, 10**7), every=st.integers(1, 10**6))
def test_halving_on_the_device_is_that_of_the_host(step, every):
    found = halving_on_device(torch.tensor(step), every)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(halving(step, every), rel=FLOAT64_ROUNDING)


@given(
    step=st.integers(0, 2 * 10**6),
    total=st.integers(1, 10**6),
    warmup=st.integers(0, 1000),
    floor=st.floats(0, 1),
)
def test_cosine_on_the_device_is_that_of_the_host(step, total, warmup, floor):
    found = cosine_on_device(torch.tensor(step), total, warmup, floor)
    wanted = cosine(step, total, warmup, floor)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(wanted, rel=FLOAT64_ROUNDING, abs=FLOAT64_ROUNDING)
