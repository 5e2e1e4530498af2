"""Weights of the loss terms and factors of the learning rate: values worked out by hand, and
properties.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticnet.loss_weights import ramp, tap_weights
from elasticnet.training.learning_rate import cosine, halving


@pytest.mark.parametrize(
    ("step", "options", "expected"),
    [
        (0, {}, 2.0),
        (50, {}, 4.0),
        (100, {}, 6.0),
        (150, {}, 6.0),
        (20, {"begin": 0.2, "finish": 0.6}, 2.0),
        (30, {"begin": 0.2, "finish": 0.6}, 3.0),
        (60, {"begin": 0.2, "finish": 0.6}, 6.0),
        (25, {"shape": "cosine"}, 2 + 4 * (0.5 - 0.5 * math.sqrt(0.5))),
        (50, {"shape": "cosine"}, 4.0),
        (49, {"begin": 0.5, "finish": 0.5}, 2.0),  # a jump
        (50, {"begin": 0.5, "finish": 0.5}, 6.0),
        (0, {"finish": 0.0}, 6.0),
    ],
)
def test_ramp(step: int, options: dict[str, Any], expected: float) -> None:
    assert ramp(step, 100, 2.0, 6.0, **options) == pytest.approx(expected)


@given(
    st.integers(1, 1000),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["linear", "cosine"]),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_ramp_goes_one_way_and_stays_between(
    total: int, begin: float, finish: float, shape: str, start: float, end: float
) -> None:
    begin, finish = sorted([begin, finish])
    steps = range(0, total + 1, max(1, total // 20))
    values = [ramp(step, total, start, end, begin, finish, shape) for step in steps]
    assert all(min(start, end) - 1e-9 <= value <= max(start, end) + 1e-9 for value in values)
    assert all((after - before) * (end - start) >= -1e-9 for before, after in pairwise(values))
    assert ramp(total, total, start, end, begin, finish, shape) == end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total": 0}, "total=0, begin=0.0, finish=1.0: expected total >= 1"),
        ({"begin": 0.6, "finish": 0.5}, "begin=0.6, finish=0.5: expected"),
        ({"finish": 1.5}, "finish=1.5: expected"),
        ({"begin": -0.1}, "begin=-0.1, finish=1.0: expected"),
        ({"shape": "square"}, "shape 'square': expected linear or cosine"),
    ],
)
@pytest.mark.parametrize("step", [0, 100])
def test_misuse_of_ramp(options: dict[str, Any], message: str, step: int) -> None:
    with pytest.raises(ValueError, match=message):
        ramp(**{"step": step, "total": 100, "start": 0.0, "end": 1.0, **options})


def test_tap_weights() -> None:
    assert tap_weights("paper", (1, 3, 5)) == {1: 1.0, 3: 1.0, 5: 1.0}
    assert tap_weights("normalised", (1, 3, 5, 6)) == {1: 0.25, 3: 0.25, 5: 0.25, 6: 0.25}
    assert tap_weights("deepest", (1, 3, 5)) == {1: 0.25, 3: 0.25, 5: 0.5}
    assert tap_weights(0.75, (1, 3, 5)) == {1: 0.125, 3: 0.125, 5: 0.75}
    assert tap_weights(1, (1, 3, 5)) == {1: 0.0, 3: 0.0, 5: 1.0}
    assert tap_weights(0.25, (5,)) == {5: 1.0}
    assert tap_weights([0, 0.5, 2], (1, 3, 5)) == {1: 0.0, 3: 0.5, 5: 2.0}
    assert tap_weights({5: 2, 1: 0.25}, (1, 5)) == {1: 0.25, 5: 2.0}
    assert list(tap_weights({5: 2, 1: 0.25}, (1, 5))) == [1, 5]


@given(st.integers(1, 30), st.sampled_from(["normalised", "deepest"]) | st.floats(0, 1))
def test_normalised_weights_sum_to_one(num_taps: int, kind: str | float) -> None:
    assert math.fsum(tap_weights(kind, range(1, num_taps + 1)).values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "equal",
            "tap weights 'equal': expected paper, normalised, deepest, a number, a sequence or a mapping",
        ),
        (1.5, "tap weights 1.5: expected the deepest tap's share, from 0 to 1"),
        (math.nan, "tap weights nan: expected the deepest tap's share"),
        (True, "tap weights True: expected the deepest tap's share"),
        ([1.0, 1.0], r"2 tap weights for 3 taps: give one for each of \[1, 3, 5\]"),
        (
            {1: 1.0, 2: 1.0, 5: 1.0},
            r"tap weights name depths \[1, 2, 5\]: this net has taps at \[1, 3, 5\]",
        ),
        ([1.0, -0.5, 1.0], "tap weight -0.5 at depth 3: expected a finite number, at least 0"),
        ([1.0, 1.0, math.nan], "tap weight nan at depth 5"),
        ({1: math.inf, 3: 1.0, 5: 1.0}, "tap weight inf at depth 1"),
    ],
)
def test_misuse_of_tap_weights(kind: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tap_weights(kind, (1, 3, 5))


def test_halving() -> None:
    assert [halving(step, 200) for step in (0, 199, 200, 399, 400, 1000)] == [
        1,
        1,
        0.5,
        0.5,
        0.25,
        0.5**5,
    ]


def test_cosine() -> None:
    assert [cosine(step, 100, warmup=4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine(4, 100, warmup=4) == 1
    assert cosine(52, 100, warmup=4) == pytest.approx(0.5)
    assert cosine(100, 100, warmup=4) == pytest.approx(0)
    assert cosine(50, 100, floor=0.1) == pytest.approx(0.55)
    assert cosine(130, 100, floor=0.1) == pytest.approx(0.1)
    assert cosine(25, 100) == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
