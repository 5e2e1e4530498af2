"""Which depths carry a prediction: resolving, validating and sampling them."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticnet.taps import (
    inclusion_probability,
    resolve_depth,
    resolve_depths,
    resolve_taps,
    sample_depths,
)

TAPS = st.sets(st.integers(1, 12), min_size=1, max_size=7).map(lambda taps: tuple(sorted(taps)))


@given(st.integers(1, 6), st.lists(st.integers(-2, 8), max_size=6))
def test_resolve_taps_accepts_exactly_what_it_should(num_blocks: int, taps: list[int]) -> None:
    depths = [num_blocks if tap == -1 else tap for tap in taps]
    valid = (
        all(1 <= depth <= num_blocks for depth in depths)
        and len({*depths}) == len(depths)
        and num_blocks in depths
    )
    if valid:
        assert resolve_taps(iter(taps), num_blocks) == tuple(sorted(depths))
    else:
        with pytest.raises(ValueError, match=r"^taps? "):
            resolve_taps(taps, num_blocks)


def test_no_taps_named_means_every_depth() -> None:
    assert resolve_taps(None, 4) == (1, 2, 3, 4)
    assert resolve_taps([-1], 4) == (4,)
    assert resolve_taps([4, 2], 4) == (2, 4)


@pytest.mark.parametrize("tap", [0, 5, -2, True, 1.0, "2", None])
def test_a_wrong_tap_is_named(tap: Any) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"tap {tap!r}: taps are whole numbers from 1 to 4")
    ):
        resolve_taps([tap, 4], 4)


def test_the_deepest_block_needs_a_tap() -> None:
    with pytest.raises(
        ValueError, match="taps 1, 3: the deepest block, 4, needs a tap; add it, or leave out"
    ):
        resolve_taps([1, 3], 4)
    with pytest.raises(ValueError, match="taps 4, 4: a depth is named twice"):
        resolve_taps([-1, 4], 4)


@pytest.mark.parametrize(("depth", "expected"), [(None, 5), (-1, 5), (5, 5), (2, 2)])
def test_resolve_depth(depth: int | None, expected: int) -> None:
    assert resolve_depth(depth, (2, 5)) == expected


@pytest.mark.parametrize("depth", [0, 1, 3, 6, -2, True, False, 2.0, -1.0, "2"])
def test_a_wrong_depth_is_named_and_the_valid_ones_are_listed(depth: Any) -> None:
    message = f"depth {depth!r}: this net has taps at depths 2, 5 (-1 is the deepest)"
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_depth(depth, (2, 5))
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_depths([depth], (2, 5))


def test_resolve_depths() -> None:
    assert resolve_depths(None, (2, 5)) == (2, 5)
    assert resolve_depths([-1, 2], (2, 5)) == (2, 5)
    with pytest.raises(ValueError, match="depths is empty: name at least one of 2, 5"):
        resolve_depths([], (2, 5))
    with pytest.raises(ValueError, match="depths 5, 5: a depth is named twice"):
        resolve_depths([-1, 5], (2, 5))


# --- sampling


@given(TAPS, st.integers(0, 8), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_sample_is_the_deepest_tap_and_others_without_replacement(
    taps: tuple[int, ...], num_sampled: int, seed: int, step: int
) -> None:
    sample = sample_depths(taps, num_sampled, seed, step)
    assert sample[-1] == taps[-1]
    assert len(sample) == min(num_sampled, len(taps) - 1) + 1
    assert sorted({*sample}) == list(sample)
    assert {*sample} <= {*taps}


@given(TAPS, st.integers(0, 8), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 99))
def test_a_sample_is_a_pure_function_of_its_arguments(
    taps: tuple[int, ...], num_sampled: int, seed: int, step: int, other: int
) -> None:
    """Whatever else was drawn meanwhile; and Python's own generator stays as it was."""
    first = sample_depths(taps, num_sampled, seed, step)
    sample_depths(taps, num_sampled, seed + other, step + other)
    random.seed(other)
    state = random.getstate()
    assert sample_depths(taps, num_sampled, seed, step) == first
    assert random.getstate() == state


def test_samples_stay_the_same_across_versions() -> None:
    """Written down once: a run that is resumed elsewhere must go on with the same draws."""
    drawn = [sample_depths((1, 2, 3, 4, 5), 2, seed=7, step=step)[:-1] for step in range(8)]
    assert drawn == [(2, 3), (1, 2), (2, 4), (2, 3), (1, 3), (2, 3), (1, 3), (1, 2)]


def test_sampling_is_uniform() -> None:
    """Every pair of 6 depths is drawn within 4 standard deviations of its share."""
    taps, draws = (1, 2, 3, 4, 5, 6, 9), 6000
    share = draws / 15
    for name, samples in {
        "steps": [sample_depths(taps, 2, 0, step) for step in range(draws)],
        "seeds": [sample_depths(taps, 2, seed, 0) for seed in range(draws)],
    }.items():
        counts = Counter(sample[:-1] for sample in samples)
        assert set(counts) == set(combinations(taps[:-1], 2)), name
        assert (
            max(abs(count - share) for count in counts.values()) < 4 * (share * 14 / 15) ** 0.5
        ), name
        # a draw says nothing about the next one
        repeats = sum(before == after for before, after in pairwise(samples))
        assert abs(repeats - share) < 4 * share**0.5, name


@given(TAPS, st.integers(0, 8))
def test_inclusion_probability_counts_the_subsets(taps: tuple[int, ...], num_sampled: int) -> None:
    others = taps[:-1]
    subsets = list(combinations(others, min(num_sampled, len(others))))
    for depth in others:
        share = sum(depth in subset for subset in subsets) / len(subsets)
        assert inclusion_probability(taps, num_sampled) == pytest.approx(share)


@pytest.mark.parametrize("num_sampled", [-1, 1.0, True, "2", None])
def test_a_wrong_number_of_sampled_taps_is_named(num_sampled: Any) -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(f"sampled taps {num_sampled!r}: expected a whole number from 0 to 4"),
    ):
        sample_depths((1, 2, 3, 4, 5), num_sampled, 0, 0)
