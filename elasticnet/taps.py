"""The depths that carry a prediction: resolve, check and sample them; what a pass gives at them.

Depths count blocks and start at 1: depth 3 is the network's first three blocks and its head. -1
stands for the deepest. A tap is a depth that carries a prediction. All functions are pure.
"""

from __future__ import annotations

import numbers
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

DEEPEST = -1


class Taps(NamedTuple):
    """The predictions and features of one pass over all blocks.

    Attributes:
        depths: The depths of the predictions, shallowest first.
        predictions: The head's output at each of `depths`.
        features: The features at every tap of the net, shallowest first, also at taps that are not
            in `depths`. They are what the blocks returned, before any adapter.
    """

    depths: tuple[int, ...]
    predictions: tuple[Any, ...]
    features: tuple[Tensor, ...]


class TapReport(NamedTuple):
    """What `ElasticWrapper.check` saw at one tap.

    Attributes:
        depth: The tap's depth.
        shape: The shape of its features. If they are a list, tuple or dict, the shape of each
            tensor in it.
        output_shape: The shape of the head's output. None if the head rejects the tap, or if its
            output is not a tensor.
        finite: Whether all features are finite.
        problem: Why the head rejects the tap, or how many features are not finite. None: the tap
            is usable.
    """

    depth: int
    shape: tuple[Any, ...]
    output_shape: tuple[int, ...] | None
    finite: bool
    problem: str | None


def resolve_taps(taps: Iterable[int] | None, num_blocks: int) -> tuple[int, ...]:
    """Return the depths that carry a tap in a network, sorted.

    Args:
        taps: Depths from 1 to `num_blocks`, or -1 for the deepest, in any order. None: every depth.
        num_blocks: The number of blocks.

    Returns:
        The depths, the deepest last.

    Raises:
        ValueError: A depth is outside the network or named twice, or the deepest is missing. The
            deepest block needs a tap, because blocks behind the last tap are never used or trained.
        TypeError: `taps` is a single number.
    """
    if taps is None:
        return tuple(range(1, num_blocks + 1))
    _check_several("taps", taps)
    depths = [_resolved_tap(tap, num_blocks) for tap in taps]
    _check_distinct("taps", depths)
    if num_blocks not in depths:
        raise ValueError(
            f"taps {_listed(depths)}: the deepest block, {num_blocks}, needs a tap; "
            "add it, or leave out the blocks behind the last tap"
        )
    return tuple(sorted(depths))


def resolve_depth(depth: int | None, taps: Sequence[int]) -> int:
    """Return the tap that a depth names.

    Args:
        depth: A depth that carries a tap. None and -1: the deepest tap.
        taps: The network's taps, sorted.

    Returns:
        The tap's depth.

    Raises:
        ValueError: The depth carries no tap, or is not an int (True and 1.0 are not).
    """
    if depth is None:
        return taps[-1]
    if is_whole_number(depth) and depth == DEEPEST:
        return taps[-1]
    if not is_whole_number(depth) or depth not in taps:
        raise ValueError(_say_no_tap(depth, taps))
    # Not `depth` itself: torch.compile treats an argument that changes between calls as symbolic.
    return taps[taps.index(depth)]


def resolve_depths(depths: Iterable[int] | None, taps: Sequence[int]) -> tuple[int, ...]:
    """Return several depths, sorted, each checked as `resolve_depth` does.

    Args:
        depths: Taps, or -1 for the deepest, in any order. None: all taps.
        taps: The network's taps, sorted.

    Returns:
        The depths, the deepest of them last.

    Raises:
        ValueError: A depth carries no tap or is named twice, or `depths` is empty.
        TypeError: `depths` is a single number.
    """
    if depths is None:
        return tuple(taps)
    _check_several("depths", depths)
    resolved = [resolve_depth(depth, taps) for depth in depths]
    if not resolved:
        raise ValueError(f"depths is empty: name at least one of {_listed(taps)}")
    _check_distinct("depths", resolved)
    return tuple(sorted(resolved))


def sample_depths(taps: Sequence[int], num_sampled: int, seed: int, step: int) -> tuple[int, ...]:
    """Return the deepest tap and some of the others, drawn without replacement.

    The arguments alone decide the draw: it is the same in every process, on every machine and after
    a run is resumed. Every tap other than the deepest is drawn with the probability
    `inclusion_probability(taps, num_sampled)`.

    Args:
        taps: The network's taps, sorted.
        num_sampled: How many taps to draw besides the deepest, at least 0. If the network has fewer
            taps, all are returned.
        seed: The seed of the run.
        step: The training step.

    Returns:
        The depths, sorted.

    Raises:
        ValueError: `num_sampled` is negative or not an int.
    """
    check_num_sampled(num_sampled, taps)
    *others, deepest = taps
    if num_sampled >= len(others):
        return tuple(taps)
    # random.Random hashes a string seed by SHA-512, so that the draws of neighbouring steps are
    # unrelated.
    generator = random.Random(f"taps:{seed}:{step}")
    drawn = generator.sample(others, num_sampled)
    return (*sorted(drawn), deepest)


def inclusion_probability(taps: Sequence[int], num_sampled: int) -> float:
    """Return the probability that `sample_depths` draws a given tap other than the deepest.

    Args:
        taps: The network's taps.
        num_sampled: How many taps are drawn besides the deepest.
    """
    num_others = max(1, len(taps) - 1)
    return min(1.0, num_sampled / num_others)


def is_whole_number(value: object) -> bool:
    """Return whether a value is an int, of NumPy too, and not a bool, which Python counts as one.

    Args:
        value: Anything.
    """
    return isinstance(value, (int, numbers.Integral)) and not isinstance(value, bool)


def check_num_sampled(num_sampled: int, taps: Sequence[int]) -> None:
    """Raise unless a number of taps can be sampled.

    Args:
        num_sampled: How many taps to draw besides the deepest.
        taps: The network's taps.

    Raises:
        ValueError: `num_sampled` is negative or not an int.
    """
    if not is_whole_number(num_sampled) or num_sampled < 0:
        raise ValueError(
            f"sampled taps {num_sampled!r}: expected a whole number from 0 to {len(taps) - 1}"
        )


def _resolved_tap(tap: int, num_blocks: int) -> int:
    """Return the depth of a tap, which may be given as -1."""
    if is_whole_number(tap) and tap == DEEPEST:
        return num_blocks
    if not is_whole_number(tap) or not 1 <= tap <= num_blocks:
        raise ValueError(
            f"tap {tap!r}: taps are whole numbers from 1 to {num_blocks}, or -1 for the deepest"
        )
    return int(tap)


def _check_several(what: str, depths: object) -> None:
    """Raise if a single number, or a word, is given where depths are listed."""
    if isinstance(depths, str):
        raise TypeError(f"{what} {depths!r}: expected a list of depths, such as [1, 2]")
    if is_whole_number(depths):
        raise TypeError(f"{what} {depths!r}: expected a list of depths, such as [{depths!r}]")


def _say_no_tap(depth: Any, taps: Sequence[int]) -> str:
    """The message about a depth that carries no tap, or about a tensor in its place."""
    if hasattr(depth, "shape"):  # net(x, y): the second input of another network
        return (
            f"depth is a {type(depth).__name__} of shape {tuple(depth.shape)}: this net has taps "
            f"at depths {_listed(taps)}, and other inputs are passed by name, net(x, name=value)"
        )
    return f"depth {depth!r:.50}: this net has taps at depths {_listed(taps)} (-1 is the deepest)"


def _listed(depths: Iterable[int]) -> str:
    return ", ".join(str(depth) for depth in depths)


def _check_distinct(what: str, depths: Sequence[int]) -> None:
    """Raise unless each depth is named once."""
    if len(set(depths)) < len(depths):
        raise ValueError(f"{what} {_listed(depths)}: a depth is named twice")
