"""Weights of the loss terms: how to weigh the taps, and how a weight changes during training.

All functions are pure, so that every process of a run, and a resumed run, uses the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def equal(taps: Sequence[int]) -> dict[int, float]:
    """Weigh every tap's loss by 1, as the paper does.

    Args:
        taps: The network's taps, shallowest first.

    Returns:
        The weight of each depth's loss. They sum to the number of taps.

    Example:
        `equal((1, 3)) == {1: 1.0, 3: 1.0}`
    """
    return dict.fromkeys(taps, 1.0)


def normalised(taps: Sequence[int]) -> dict[int, float]:
    """Weigh every tap's loss by 1 / number of taps.

    The weights sum to 1, so that the learning rate of a network with one tap fits this one too.

    Args:
        taps: The network's taps, shallowest first.

    Returns:
        The weight of each depth's loss: 1 / number of taps.

    Example:
        `normalised((1, 3)) == {1: 0.5, 3: 0.5}`
    """
    return dict.fromkeys(taps, 1 / len(taps))


def deepest_share(taps: Sequence[int], share: float) -> dict[int, float]:
    """Give the deepest tap a share of the weight, and the others equal parts of the rest.

    Args:
        taps: The network's taps, shallowest first.
        share: The deepest tap's weight, from 0 to 1. If it is the only tap, its weight is 1.

    Returns:
        The weight of each depth's loss, with a sum of 1.

    Raises:
        ValueError: The share is not between 0 and 1.

    Example:
        `deepest_share((1, 3, 5), share=0.5) == {1: 0.25, 3: 0.25, 5: 0.5}`
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share}: expected the deepest tap's weight, from 0 to 1")
    *others, deepest = taps
    if not others:
        return {deepest: 1.0}
    weights = {depth: (1 - share) / len(others) for depth in others}
    weights[deepest] = share
    return weights


def rising_deepest_share(
    taps: Sequence[int], step: int, total: int, start: float, end: float = 1.0
) -> dict[int, float]:
    """Let the deepest tap's share of the weight change linearly during training.

    Args:
        taps: The network's taps, shallowest first.
        step: The training step, from 0.
        total: The number of steps after which the share is `end`, at least 1.
        start: The deepest tap's share at step 0, from 0 to 1.
        end: The deepest tap's share from step `total` on, from 0 to 1.

    Returns:
        The weight of each depth's loss at this step, with a sum of 1.

    Raises:
        ValueError: A share is not between 0 and 1, or `total` is below 1.

    Example:
        `ElasticObjective(..., tap_weights=lambda step: rising_deepest_share(net.taps, step,
        total=1000, start=0.2))`
    """
    return deepest_share(taps, share=ramp(step, total=total, start=start, end=end))


def ramp(
    step: int,
    total: int,
    start: float,
    end: float,
    begin: float = 0.0,
    finish: float = 1.0,
    shape: str = "linear",
) -> float:
    """Return a value that changes from `start` to `end` during training.

    Args:
        step: The training step, from 0.
        total: The number of steps of the training, at least 1.
        start: The value up to step / total = `begin`.
        end: The value from step / total = `finish` on.
        begin: When the change begins, as a fraction of the training from 0 to 1.
        finish: When the change ends, as a fraction of the training from `begin` to 1.
        shape: "linear", or "cosine": half a cosine wave, which is flat at both ends.

    Returns:
        The value at this step.

    Raises:
        ValueError: `total`, `begin` or `finish` is out of range, or `shape` is unknown.

    Example:
        `ElasticObjective(..., psd_weight=lambda step: ramp(step, 100_000, 0.0, 0.1, finish=0.2))`
    """
    # Written so that NaN is refused, too: no comparison with it holds.
    if not total >= 1 or not 0 <= begin <= finish <= 1:
        raise ValueError(
            f"total={total}, begin={begin}, finish={finish}: "
            "expected total >= 1, 0 <= begin <= finish <= 1"
        )
    if shape not in ("linear", "cosine"):
        raise ValueError(f"shape {shape!r}: expected linear or cosine")
    progress = step / total
    if progress >= finish:
        return end
    if progress <= begin:
        return start
    fraction = (progress - begin) / (finish - begin)
    if shape == "cosine":
        fraction = 0.5 - 0.5 * math.cos(math.pi * fraction)
    return start + (end - start) * fraction


def check_tap_weights(
    weights: Mapping[int, float] | Sequence[float], taps: Sequence[int]
) -> dict[int, float]:
    """Return the weights of the taps; raise unless every tap, and no other depth, has a valid one.

    Args:
        weights: The weight of each depth's loss, by depth, or one for each tap, shallowest first.
        taps: The network's taps.

    Returns:
        The weights as floats, in the order of the taps.

    Raises:
        TypeError: The weights are neither a mapping by depth nor a list or tuple of numbers.
        ValueError: Depths are missing or carry no tap, or a weight is negative or not finite.
    """
    if isinstance(weights, (list, tuple)):
        weights = _weights_by_depth(weights, taps)
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"tap weights {weights!r}: expected a mapping by depth, or a list with a number for "
            "each tap; elasticnet.loss_weights has functions that make one, such as "
            "normalised(net.taps)"
        )
    if set(weights) != set(taps):
        raise ValueError(
            f"tap weights name depths {sorted(weights)}: this net has taps at {list(taps)}"
        )
    for depth, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"tap weight {weight} at depth {depth}: expected a finite number, at least 0"
            )
    return {depth: float(weights[depth]) for depth in taps}


def _weights_by_depth(weights: Sequence[float], taps: Sequence[int]) -> dict[int, float]:
    """Return weights that are given in the order of the taps as a mapping by depth."""
    if len(weights) != len(taps):
        raise ValueError(
            f"{len(weights)} tap weights {list(weights)}: this net has taps at {list(taps)}"
        )
    return dict(zip(taps, weights, strict=True))
