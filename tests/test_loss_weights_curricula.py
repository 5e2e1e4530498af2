"""Weights that say which taps a step trains: by hand, over a round, in expectation, in a loss."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from elasticnet import ElasticObjective
from elasticnet.loss_weights import alternating, deepest_first, gradual, rotating, sandwich
from tiny_nets import conv_net

WEIGHTS = {1: 0.125, 2: 0.125, 3: 0.125, 4: 0.125, 6: 0.5}
ANY_WEIGHTS = st.dictionaries(st.integers(1, 9), st.floats(0, 4), min_size=1).map(
    lambda weights: dict(sorted(weights.items()))
)


def test_the_deepest_tap_is_trained_alone_at_first() -> None:
    alone = {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 6: 1.0}
    by_step = [deepest_first(WEIGHTS, step, until=2) for step in range(4)]
    assert by_step == [alone, alone, WEIGHTS, WEIGHTS]


def test_shallower_taps_join_one_after_the_other() -> None:
    by_step = [gradual(WEIGHTS, step, until=4) for step in range(6)]
    trained = [[depth for depth, weight in each.items() if weight > 0] for each in by_step]
    assert trained == [[6], [4, 6], [3, 4, 6], [2, 3, 4, 6], [1, 2, 3, 4, 6], [1, 2, 3, 4, 6]]
    assert by_step[1] == {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.125, 6: 0.875}
    assert by_step[4] == WEIGHTS
    with pytest.raises(ValueError, match="until 0: expected at least 1"):
        gradual(WEIGHTS, 0, until=0)


def test_every_second_step_trains_the_deepest_tap_alone() -> None:
    alone = {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.0, 6: 1.0}
    assert [alternating(WEIGHTS, step) for step in range(4)] == [alone, WEIGHTS, alone, WEIGHTS]


@given(ANY_WEIGHTS, st.integers(0, 9))
def test_the_sum_of_the_weights_stays_the_same(weights: dict[int, float], step: int) -> None:
    expected = pytest.approx(sum(weights.values()))
    assert sum(deepest_first(weights, step, until=5).values()) == expected
    assert sum(alternating(weights, step).values()) == expected
    assert sum(gradual(weights, step, until=7).values()) == expected


def test_taps_take_turns_from_the_deepest_up() -> None:
    turns: list[list[int]] = []
    for step in range(6):
        weights = rotating(WEIGHTS, step)
        turns.append([depth for depth, weight in weights.items() if weight > 0])
    assert turns == [[6], [4], [3], [2], [1], [6]]


@given(ANY_WEIGHTS, st.integers(0, 99))
def test_the_mean_over_a_round_of_turns_is_the_weights(
    weights: dict[int, float], first_step: int
) -> None:
    total = dict.fromkeys(weights, 0.0)
    for step in range(first_step, first_step + len(weights)):
        for depth, weight in rotating(weights, step).items():
            total[depth] += weight
    for depth, weight in weights.items():
        assert total[depth] / len(weights) == pytest.approx(weight)


def test_a_sandwich_has_the_outer_taps_in_every_step_and_the_inner_ones_equally_often() -> None:
    counts: Counter[int] = Counter()
    for step in range(3000):
        weights = sandwich(WEIGHTS, step, num_sampled=1, seed=3)
        assert list(weights) == list(WEIGHTS)
        assert weights[1] == WEIGHTS[1]
        assert weights[6] == WEIGHTS[6]
        drawn = [depth for depth in (2, 3, 4) if weights[depth] > 0]
        assert len(drawn) == 1
        assert weights[drawn[0]] == pytest.approx(3 * 0.125)  # drawn in a third of the steps
        counts[drawn[0]] += 1
    # within 4 standard deviations of a third
    assert max(abs(counts[depth] - 1000) for depth in (2, 3, 4)) < 4 * (3000 * 2 / 9) ** 0.5


def test_a_sandwich_is_a_pure_function_of_seed_and_step() -> None:
    def draws(seed: int) -> list[dict[int, float]]:
        return [sandwich(WEIGHTS, step, num_sampled=2, seed=seed) for step in range(20)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)


def test_sandwiches_stay_the_same_across_versions() -> None:
    """Written down once: a run that is resumed elsewhere must go on with the same draws."""
    drawn: list[int] = []
    for step in range(8):
        weights = sandwich(WEIGHTS, step, num_sampled=1, seed=7)
        drawn += [depth for depth in (2, 3, 4) if weights[depth] > 0]
    assert drawn == [3, 4, 2, 3, 2, 2, 4, 2]


def test_the_weight_of_a_drawn_tap_is_divided_by_its_probability() -> None:
    weights = sandwich(WEIGHTS, step=0, num_sampled=2, seed=0)
    assert sorted(weights[depth] for depth in (2, 3, 4)) == [0.0, 0.1875, 0.1875]


@pytest.mark.parametrize("weights", [{3: 1.0}, {1: 0.5, 3: 0.5}, {1: 0.2, 2: 0.3, 3: 0.5}])
def test_a_sandwich_of_all_taps_is_the_weights(weights: dict[int, float]) -> None:
    assert sandwich(weights, step=5, num_sampled=1, seed=0) == weights


def test_a_negative_number_of_sampled_taps_is_named() -> None:
    with pytest.raises(ValueError, match="num_sampled -1: expected a whole number, at least 0"):
        sandwich(WEIGHTS, step=0, num_sampled=-1, seed=0)


def test_a_step_computes_the_taps_that_it_trains() -> None:
    net = conv_net(3, 4)
    weights = {1: 0.25, 2: 0.25, 3: 0.5}
    objective = ElasticObjective(
        net, nn.MSELoss(), psd_weight=0, tap_weights=partial(rotating, weights)
    )
    assert [objective.depths_at(step) for step in range(3)] == [(3,), (2, 3), (1, 3)]

    x = torch.randn(2, 4, 5, 5)
    target = torch.randn(2, 2, 5, 5)
    terms = objective(x, target, step=1)
    torch.testing.assert_close(terms.total, 3 * 0.25 * terms.per_depth[2])
    assert terms.routine == 0
