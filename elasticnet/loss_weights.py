"""Weights of the loss terms: how to weigh the taps, and how a weight changes during training.

All functions are pure, so that every process of a run, and a resumed run, uses the same weights.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Weight = float | Callable[[int], float] | nn.Parameter
"""A number, a function of the step, or a parameter, which is learned."""


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


# --- which taps a step trains: a function of the step makes its weights of the usual ones. A tap
# --- of weight 0 is not computed, except for the deepest, whose loss then has no gradient.


def deepest_first(weights: Mapping[int, float], step: int, until: int) -> dict[int, float]:
    """Train the deepest tap alone at first, and all taps from a step on.

    Source: the progressive shrinking of Once-for-All (Cai et al. 2020) trains the largest network
    before the smaller ones inside it.

    Args:
        weights: The weight of each depth's loss once all are trained, the deepest last.
        step: The training step, from 0.
        until: The first step that trains all taps.

    Returns:
        The weight of each depth's loss at this step. Their sum is always that of `weights`.

    Example:
        `deepest_first({1: 0.5, 3: 0.5}, step=0, until=100) == {1: 0.0, 3: 1.0}`
    """
    if step >= until:
        return dict(weights)
    return _deepest_alone(weights)


def gradual(weights: Mapping[int, float], step: int, until: int) -> dict[int, float]:
    """Train the deepest tap alone at first, then one shallower tap more after the other.

    Source: the gradual curriculum of LayerSkip (Elhoushi et al. 2024), from the last layer up.

    Args:
        weights: The weight of each depth's loss once all are trained, the deepest last.
        step: The training step, from 0.
        until: The first step that trains all taps, at least 1.

    Returns:
        The weight of each depth's loss at this step. The deepest tap has the weight of those that
        are not trained yet, so that their sum is always that of `weights`.

    Raises:
        ValueError: `until` is below 1.

    Example:
        `gradual({1: 0.25, 2: 0.25, 3: 0.5}, step=50, until=100) == {1: 0.0, 2: 0.25, 3: 0.75}`
    """
    if until < 1:
        raise ValueError(f"until {until}: expected at least 1")
    if step >= until:
        return dict(weights)
    depths = list(weights)
    num_trained = 1 + (len(depths) - 1) * step // until
    at_step = dict(weights)
    for depth in depths[:-num_trained]:
        at_step[depths[-1]] += at_step[depth]
        at_step[depth] = 0.0
    return at_step


def alternating(weights: Mapping[int, float], step: int) -> dict[int, float]:
    """Train the deepest tap alone in every second step, beginning with the first.

    Source: the alternating fine-tuning of BERxiT (Xin et al. 2021).

    Args:
        weights: The weight of each depth's loss in the other steps, the deepest last.
        step: The training step, from 0.

    Returns:
        The weight of each depth's loss at this step. Their sum is always that of `weights`.

    Example:
        `alternating({1: 0.5, 3: 0.5}, step=0) == {1: 0.0, 3: 1.0}`
    """
    if step % 2 == 1:
        return dict(weights)
    return _deepest_alone(weights)


def rotating(weights: Mapping[int, float], step: int) -> dict[int, float]:
    """Train one tap a step, in turn, beginning with the deepest and going up.

    Args:
        weights: The weight of each depth's loss in the mean over a round, the deepest last.
        step: The training step, from 0.

    Returns:
        The weight of each depth's loss at this step: that of one tap, times the number of taps,
        and 0 for the others.

    Example:
        `rotating({1: 0.5, 3: 0.5}, step=1) == {1: 1.0, 3: 0.0}`
    """
    depths = list(weights)
    turn = depths[-1 - step % len(depths)]
    at_step = dict.fromkeys(depths, 0.0)
    at_step[turn] = weights[turn] * len(depths)
    return at_step


def sandwich(
    weights: Mapping[int, float], step: int, num_sampled: int, seed: int
) -> dict[int, float]:
    """Train the shallowest and the deepest tap in every step, and some of those between.

    It is the sandwich rule of Yu and Huang, "Universally Slimmable Networks" (2019), whose smallest
    and largest networks bound all others. `sampled_taps` of the objective keeps the deepest tap
    alone in every step.

    Args:
        weights: The weight of each depth's loss, the deepest last.
        step: The training step, from 0. It decides the draw together with `seed`.
        num_sampled: How many taps between the two are drawn, at least 0.
        seed: The seed of the run.

    Returns:
        The weight of each depth's loss at this step. The weight of a drawn tap is divided by the
        probability that it is drawn, so that the expected loss is that of `weights`.

    Raises:
        ValueError: `num_sampled` is negative.

    Example:
        `sandwich({1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0}, step=0, num_sampled=1, seed=0)` is 1 at depths 1
        and 4, 2 at one of the others and 0 at the last.
    """
    if num_sampled < 0:
        raise ValueError(f"num_sampled {num_sampled}: expected a whole number, at least 0")
    between = list(weights)[1:-1]
    if num_sampled >= len(between):
        return dict(weights)
    # As in `elasticnet.taps.sample_depths`: a string seed makes draws of other steps unrelated.
    drawn = random.Random(f"sandwich:{seed}:{step}").sample(between, num_sampled)
    at_step = dict(weights)
    for depth in between:
        at_step[depth] = 0.0
        if depth in drawn:
            at_step[depth] = weights[depth] * len(between) / num_sampled
    return at_step


def _deepest_alone(weights: Mapping[int, float]) -> dict[int, float]:
    """Return the sum of all weights at the deepest depth, which is the last."""
    at_step = dict.fromkeys(weights, 0.0)
    deepest = list(weights)[-1]
    at_step[deepest] = sum(weights.values())
    return at_step


# --- what the objective takes


def checked_weight(weight: Weight, name: str) -> Weight:
    """Return a checked weight, or the function that returns it, which is checked in each step.

    Args:
        weight: What the user gave.
        name: What messages call it.

    Raises:
        TypeError: It is no number, function or parameter of real numbers.
        ValueError: It is negative or not finite, or a parameter of several numbers.
    """
    check_no_container(weight, name)
    if isinstance(weight, nn.Parameter):
        check_learned(weight, name=name, shape=())
        return weight
    if callable(weight):
        return weight
    alternative = ", or a function of the step"
    return check_weight(weight, found=f"{name} {weight}", alternative=alternative)


def check_no_container(weights: Any, name: str) -> None:
    """Raise if weights are a module of parameters, which PyTorch counts among the functions.

    Args:
        weights: What the user gave.
        name: What messages call it.

    Raises:
        TypeError: They are such a module.
    """
    if isinstance(weights, (nn.ParameterList, nn.ParameterDict)):
        raise TypeError(
            f"{name} is a {type(weights).__name__}: expected one nn.Parameter (tap_weights: with a "
            "number for each tap, shallowest first)"
        )


def check_weight(weight: Any, found: str, alternative: str = "") -> float:
    """Return a weight as a float; raise unless a loss can be multiplied by it.

    Args:
        weight: A number, or a tensor of one number.
        found: How the message begins, with the name and the weight.
        alternative: What the weight may be beside a number, as the end of the message.

    Returns:
        The number.

    Raises:
        TypeError: It is no number, or a tensor that a training could change, but no parameter.
        ValueError: It is negative or not finite.
    """
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise TypeError(
            f"{found}, a tensor that requires a gradient: expected a number, or for a learned "
            "weight an nn.Parameter that is given to the objective itself"
        )
    try:
        number = float(weight)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{found}: expected a number{alternative}") from None
    if not 0 <= number < math.inf:  # NaN is refused, too
        raise ValueError(f"{found}: expected a finite number, at least 0{alternative}")
    return number


def check_tap_weights(
    weights: Mapping[int, float] | Sequence[float], taps: Sequence[int]
) -> dict[int, float]:
    """Return the weights of the taps; raise unless every tap, and no other depth, has a valid one.

    Args:
        weights: The weight of each depth's loss, by depth, or in a list with one for each tap,
            shallowest first.
        taps: The network's taps.

    Returns:
        The weights as floats, in the order of the taps.

    Raises:
        TypeError: The weights are neither a mapping by depth nor a list, or a weight is no number.
        ValueError: Depths are missing or carry no tap, or a weight is negative or not finite.
    """
    if isinstance(weights, (list, tuple)):
        weights = _weights_by_depth(weights, taps)
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"tap weights {weights!r}: expected a mapping by depth, such as normalised(net.taps) "
            "of elasticnet.loss_weights, or a list with a number for each tap"
        )
    if set(weights) != set(taps):
        raise ValueError(
            f"tap weights name depths {sorted(weights)}: this net has taps at {list(taps)}"
        )
    checked: dict[int, float] = {}
    for depth in taps:
        weight = weights[depth]
        checked[depth] = check_weight(weight, found=f"tap weight {weight} at depth {depth}")
    return checked


def _weights_by_depth(weights: Sequence[float], taps: Sequence[int]) -> dict[int, float]:
    """Return weights that are given in the order of the taps as a mapping by depth."""
    if len(weights) != len(taps):
        raise ValueError(
            f"{len(weights)} tap weights {list(weights)}: this net has taps at {list(taps)}"
        )
    return dict(zip(taps, weights, strict=True))


def check_learned(weights: nn.Parameter, name: str, shape: tuple[int, ...]) -> None:
    """Raise unless a parameter can be learned as the weights of losses.

    Args:
        weights: The parameter.
        name: What messages call it.
        shape: The shape that it must have; `()` is a single weight, for which (1,) does too.

    Raises:
        TypeError: It holds no real numbers.
        ValueError: It has another shape, or a value is negative or not finite.
    """
    if not weights.is_floating_point():
        raise TypeError(f"{name} is a parameter of {weights.dtype}: expected real numbers")
    is_single = shape == () and weights.numel() == 1
    if weights.shape != shape and not is_single:
        expected = f"{shape}, a weight for each tap, shallowest first" if shape else "one number"
        raise ValueError(
            f"{name} is a parameter of shape {tuple(weights.shape)}: expected {expected}"
        )
    if weights.is_meta:
        return  # It has no values yet.
    values: list[float] = weights.detach().flatten().tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    for value in values:
        check_weight(value, found=f"{name} is a parameter that holds {value}")


def learned(weights: Tensor) -> Tensor:
    """Return what losses are multiplied by for learned weights: 0 for those below 0.

    A weight falls as long as only its loss drives it: the gradient of w L by w is L. If a negative
    weight were used as it is, the training would begin to make its loss larger.

    Args:
        weights: The learned weights, in any shape.

    Returns:
        The factors, in the same shape. Where a weight is below 0, its gradient is 0.
    """
    # Not `clamp_min`, whose gradient is 0 at 0: a weight that begins there would stay.
    return torch.where(weights < 0, 0, weights)
