"""Weights of the loss terms and factors of the learning rate, worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from elasticnet.loss_weights import (
    check_learned,
    check_tap_weights,
    deepest_share,
    equal,
    normalised,
    ramp,
    rising_deepest_share,
)
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
        ({"total": math.nan}, "total=nan, begin=0.0, finish=1.0: expected total >= 1"),
        ({"finish": math.nan}, "finish=nan: expected"),
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


def test_equal_is_one_each() -> None:
    assert equal((1, 3, 5)) == {1: 1.0, 3: 1.0, 5: 1.0}


def test_normalised_is_the_same_for_each_and_sums_to_one() -> None:
    assert normalised((1, 3, 5, 6)) == {1: 0.25, 3: 0.25, 5: 0.25, 6: 0.25}


def test_deepest_share_leaves_the_rest_to_the_others() -> None:
    assert deepest_share((1, 3, 5), share=0.5) == {1: 0.25, 3: 0.25, 5: 0.5}
    assert deepest_share((1, 3, 5), share=0.75) == {1: 0.125, 3: 0.125, 5: 0.75}
    assert deepest_share((1, 3, 5), share=1) == {1: 0.0, 3: 0.0, 5: 1.0}
    assert deepest_share((1, 3, 5), share=0) == {1: 0.5, 3: 0.5, 5: 0.0}


def test_a_single_tap_has_the_whole_weight() -> None:
    assert deepest_share((5,), share=0.25) == {5: 1.0}


def test_rising_deepest_share_goes_from_start_to_end() -> None:
    by_step = [rising_deepest_share((1, 3, 5), step, total=4, start=0.5) for step in (0, 2, 4, 9)]
    assert by_step == [
        {1: 0.25, 3: 0.25, 5: 0.5},
        {1: 0.125, 3: 0.125, 5: 0.75},
        {1: 0.0, 3: 0.0, 5: 1.0},
        {1: 0.0, 3: 0.0, 5: 1.0},
    ]
    assert rising_deepest_share((1, 2), 1, total=2, start=0.25, end=0.75) == {1: 0.5, 2: 0.5}


@given(st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
def test_shares_sum_to_one(num_taps: int, share: float, step: int) -> None:
    taps = range(1, num_taps + 1)
    by_name = {
        "normalised": normalised(taps),
        "deepest_share": deepest_share(taps, share),
        "rising_deepest_share": rising_deepest_share(taps, step, total=50, start=share),
    }
    for name, weights in by_name.items():
        assert list(weights) == list(taps), name
        assert math.fsum(weights.values()) == pytest.approx(1), name
        assert min(weights.values()) >= 0, name


@pytest.mark.parametrize("share", [1.5, -0.1, math.nan])
def test_a_wrong_share_is_named(share: float) -> None:
    message = f"share {share}: expected the deepest tap's weight, from 0 to 1"
    with pytest.raises(ValueError, match=message):
        deepest_share((1, 3, 5), share)
    with pytest.raises(ValueError, match=message):
        rising_deepest_share((1, 3, 5), step=0, total=10, start=share)


def test_checked_weights_stand_in_the_order_of_the_taps() -> None:
    checked = check_tap_weights({5: 2, 1: 0.25}, taps=(1, 5))
    assert list(checked.items()) == [(1, 0.25), (5, 2.0)]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {1: 1.0, 2: 1.0, 5: 1.0},
            r"tap weights name depths \[1, 2, 5\]: this net has taps at \[1, 3, 5\]",
        ),
        ({1: 1.0, 5: 1.0}, r"tap weights name depths \[1, 5\]: this net has taps at"),
        (
            {1: 1.0, 3: -0.5, 5: 1.0},
            "tap weight -0.5 at depth 3: expected a finite number, at least 0",
        ),
        ({1: 1.0, 3: 1.0, 5: math.nan}, "tap weight nan at depth 5"),
        ({1: math.inf, 3: 1.0, 5: 1.0}, "tap weight inf at depth 1"),
    ],
)
def test_wrong_weights_are_named(weights: dict[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tap_weights(weights, taps=(1, 3, 5))


def test_a_list_of_weights_is_in_the_order_of_the_taps() -> None:
    assert check_tap_weights([0.5, 2, 1], taps=(1, 3, 5)) == {1: 0.5, 3: 2.0, 5: 1.0}
    assert check_tap_weights((0.0, 1.0), taps=(2, 4)) == {2: 0.0, 4: 1.0}


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
def test_a_list_of_another_length_raises(weights: list[float]) -> None:
    message = rf"{len(weights)} tap weights .*this net has taps at \[1, 3, 5\]"
    with pytest.raises(ValueError, match=message):
        check_tap_weights(weights, taps=(1, 3, 5))


@pytest.mark.parametrize("weights", ["paper", 0.5, {0.5, 1.0}])
def test_weights_of_another_kind_raise(weights: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a mapping by depth.*normalised\(net\.taps\)"):
        check_tap_weights(weights, taps=(1, 3))


def test_a_weight_that_is_no_number_raises() -> None:
    with pytest.raises(TypeError, match="tap weight 1,0 at depth 3: expected a number"):
        check_tap_weights({1: 1.0, 3: "1,0"}, taps=(1, 3))  # pyright: ignore[reportArgumentType]


def test_a_weight_in_a_mapping_cannot_be_learned() -> None:
    weight: Any = nn.Parameter(torch.tensor(0.5))
    message = "at depth 3, a tensor that requires a gradient: expected a number, or for a learned"
    with pytest.raises(TypeError, match=message):
        check_tap_weights({1: 1.0, 3: weight}, taps=(1, 3))
    assert check_tap_weights({1: weight.detach()}, taps=(1,)) == {1: 0.5}


@pytest.mark.parametrize(
    ("weights", "shape", "message"),
    [
        (
            [1.0, 1.0],
            (3,),
            r"tap_weights is a parameter of shape \(2,\): expected \(3,\), a weight",
        ),
        ([1.0, 1.0], (), r"of shape \(2,\): expected one number"),
        ([1.0, -0.5], (2,), "tap_weights is a parameter that holds -0.5: expected a finite number"),
        ([math.nan], (), "tap_weights is a parameter that holds nan"),
    ],
)
def test_a_parameter_that_cannot_be_learned_as_weights_raises(
    weights: list[float], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_learned(nn.Parameter(torch.tensor(weights)), name="tap_weights", shape=shape)


def test_a_parameter_of_whole_numbers_raises() -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(TypeError, match=r"tap_weights is a parameter of torch\.int64: expected"):
        check_learned(parameter, name="tap_weights", shape=(2,))


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
