"""Which depths carry a prediction: resolve, check, sample. Pure functions of whole numbers.

Depths count blocks and start at 1: depth 3 is the network's first three blocks and its head. -1
stands for the deepest. A tap is a depth that carries a prediction.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

DEEPEST = -1


def resolve_taps(taps: Iterable[int] | None, num_blocks: int) -> tuple[int, ...]:
    """Return the depths that carry a tap in a network, sorted.

    Args:
        taps: Depths from 1 to `num_blocks`, or -1 for the deepest, in any order. None: every depth.
        num_blocks: The number of blocks.

    Returns:
        The depths, the deepest last: the deepest block always has a tap, because blocks behind the
        last tap could never be used or trained.

    Raises:
        ValueError: A depth is outside the network or named twice, or the deepest is missing.
    """
    if taps is None:
        return tuple(range(1, num_blocks + 1))
    depths: list[int] = []
    for tap in taps:
        if not _is_depth(tap) or not (tap == DEEPEST or 1 <= tap <= num_blocks):
            raise ValueError(
                f"tap {tap!r}: taps are whole numbers from 1 to {num_blocks}, or -1 for the deepest"
            )
        depths.append(num_blocks if tap == DEEPEST else tap)
    _refuse_twice("taps", depths)
    if num_blocks not in depths:
        raise ValueError(
            f"taps {_listed(depths)}: the deepest block, {num_blocks}, needs a tap; "
            "add it, or leave out the blocks behind the last tap"
        )
    return tuple(sorted(depths))


def resolve_depth(depth: int | None, taps: Sequence[int]) -> int:
    """Return a depth as one of the depths that carry a tap.

    Args:
        depth: A tap. None and -1: the deepest.
        taps: The network's taps, sorted.

    Returns:
        The depth.

    Raises:
        ValueError: It is something else: 0, a bool, a float, a depth that carries no tap.
    """
    if depth is None:
        return taps[-1]
    if _is_depth(depth) and depth == DEEPEST:
        return taps[-1]
    if not _is_depth(depth) or depth not in taps:
        raise ValueError(
            f"depth {depth!r}: this net has taps at depths {_listed(taps)} (-1 is the deepest)"
        )
    # Not `depth` itself, which torch.compile makes symbolic when it changes between calls.
    return taps[taps.index(depth)]


def resolve_depths(depths: Iterable[int] | None, taps: Sequence[int]) -> tuple[int, ...]:
    """Return several depths, sorted, each checked as `resolve_depth` does.

    Args:
        depths: Taps, or -1 for the deepest, in any order. None: all taps.
        taps: The network's taps, sorted.

    Returns:
        The depths, the deepest of them last.

    Raises:
        ValueError: A depth carries no tap or is named twice, or none is given.
    """
    if depths is None:
        return tuple(taps)
    resolved = [resolve_depth(depth, taps) for depth in depths]
    if not resolved:
        raise ValueError(f"depths is empty: name at least one of {_listed(taps)}")
    _refuse_twice("depths", resolved)
    return tuple(sorted(resolved))


def sample_depths(taps: Sequence[int], num_sampled: int, seed: int, step: int) -> tuple[int, ...]:
    """Return the deepest tap and some of the others, drawn without replacement.

    A pure function of its arguments: the same in every process and on every machine, and exact
    when a run is resumed. Every tap but the deepest is drawn with the probability
    `inclusion_probability(taps, num_sampled)`.

    Args:
        taps: The network's taps, sorted.
        num_sampled: How many taps to draw beside the deepest, from 0; all if there are fewer.
        seed: The seed of the run.
        step: The training step.

    Returns:
        The depths, sorted.

    Raises:
        ValueError: The number is no whole number from 0 up.
    """
    if not _is_depth(num_sampled) or num_sampled < 0:
        raise ValueError(
            f"sampled taps {num_sampled!r}: expected a whole number from 0 to {len(taps) - 1}"
        )
    others, deepest = taps[:-1], taps[-1]
    if num_sampled >= len(others):
        return tuple(taps)
    # A text as the seed goes through SHA-512, so that neighbouring steps are unrelated draws.
    generator = random.Random(f"taps:{seed}:{step}")
    drawn = generator.sample(others, num_sampled)
    return (*sorted(drawn), deepest)


def inclusion_probability(taps: Sequence[int], num_sampled: int) -> float:
    """Return the probability that `sample_depths` draws a given tap other than the deepest.

    Args:
        taps: The network's taps.
        num_sampled: How many taps are drawn beside the deepest.
    """
    num_others = max(1, len(taps) - 1)
    return min(1.0, num_sampled / num_others)


def _is_depth(value: object) -> bool:
    """Whether a value is a whole number; True and 1.0 are equal to one, but are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(depths: Iterable[int]) -> str:
    return ", ".join(str(depth) for depth in depths)


def _refuse_twice(what: str, depths: Sequence[int]) -> None:
    if len(set(depths)) < len(depths):
        raise ValueError(f"{what} {_listed(depths)}: a depth is named twice")
