"""Which depths carry a prediction: resolve, validate, sample. Pure functions of plain integers.

Depths count blocks and start at 1: depth 3 is the network's first three blocks and its head. -1
stands for the deepest.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence


def _is_depth(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(depths: Iterable[int]) -> str:
    return ", ".join(map(str, depths))


def resolve_taps(taps: Iterable[int] | None, num_blocks: int) -> tuple[int, ...]:
    """Return the sorted depths that carry a tap in a network of `num_blocks` blocks; None means
    every depth.

    The deepest block always needs a tap, because blocks behind the last one could never be used or
    trained. Raises ValueError for a depth outside 1..num_blocks, for a depth named twice and for a
    missing deepest tap.
    """
    if taps is None:
        return tuple(range(1, num_blocks + 1))
    depths = []
    for tap in taps:
        if not _is_depth(tap) or not (tap == -1 or 1 <= tap <= num_blocks):
            raise ValueError(
                f"tap {tap!r}: taps are whole numbers from 1 to {num_blocks}, or -1 for the deepest"
            )
        depths.append(num_blocks if tap == -1 else tap)
    if len(set(depths)) < len(depths):
        raise ValueError(f"taps {_listed(depths)}: a depth is named twice")
    if num_blocks not in depths:
        raise ValueError(
            f"taps {_listed(depths)}: the deepest block, {num_blocks}, needs a tap; "
            "add it, or leave out the blocks behind the last tap"
        )
    return tuple(sorted(depths))


def resolve_depth(depth: int | None, taps: Sequence[int]) -> int:
    """Return `depth` as one of the depths in `taps` (sorted); None and -1 mean the deepest.

    Raises ValueError for anything else: 0, a bool, a float, a depth that carries no tap.
    """
    if depth is None or (_is_depth(depth) and depth == -1):
        return taps[-1]
    if not _is_depth(depth) or depth not in taps:
        raise ValueError(
            f"depth {depth!r}: this net has taps at depths {_listed(taps)} (-1 is the deepest)"
        )
    # not `depth`, which torch.compile makes symbolic when it changes between calls
    return taps[taps.index(depth)]


def resolve_depths(depths: Iterable[int] | None, taps: Sequence[int]) -> tuple[int, ...]:
    """Return `depths` sorted, each checked as by `resolve_depth` and named once; None means all of
    `taps`.
    """
    if depths is None:
        return tuple(taps)
    resolved = [resolve_depth(depth, taps) for depth in depths]
    if not resolved:
        raise ValueError(f"depths is empty: name at least one of {_listed(taps)}")
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"depths {_listed(resolved)}: a depth is named twice")
    return tuple(sorted(resolved))


def sample_depths(taps: Sequence[int], num_sampled: int, seed: int, step: int) -> tuple[int, ...]:
    """Return the deepest tap and `num_sampled` of the others, drawn without replacement.

    A pure function of its arguments: the same on every rank and every machine, and exact when a run
    is resumed. Every depth but the deepest is drawn with probability `inclusion_probability(taps,
    num_sampled)`.
    """
    if not _is_depth(num_sampled) or num_sampled < 0:
        raise ValueError(
            f"sampled taps {num_sampled!r}: expected a whole number from 0 to {len(taps) - 1}"
        )
    others = taps[:-1]
    if num_sampled >= len(others):
        return tuple(taps)
    # A string seed goes through SHA-512, so that neighbouring seeds and steps are unrelated draws.
    drawn = random.Random(f"taps:{seed}:{step}").sample(others, num_sampled)
    return (*sorted(drawn), taps[-1])


def inclusion_probability(taps: Sequence[int], num_sampled: int) -> float:
    """Return the probability that `sample_depths` draws a given depth other than the deepest."""
    return min(1.0, num_sampled / max(1, len(taps) - 1))
