"""What one training step multiplies its losses by, from the weights that the user gives.

A weight is a number, a function of the step, or a parameter, which is learned. A factor is the
weight at one step, divided by the probability that its tap is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet.loss_weights import (
    check_learned,
    check_tap_weights,
    check_weight,
    equal,
    learned,
)
from elasticnet.taps import inclusion_probability, sample_depths

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # in typing since Python 3.13

Weight = float | Callable[[int], float] | nn.Parameter
FixedTapWeights = Mapping[int, float]
ScheduledTapWeights = Callable[[int], FixedTapWeights | Sequence[float]]
CheckedTapWeights = FixedTapWeights | ScheduledTapWeights | nn.Parameter
TapWeights = CheckedTapWeights | Sequence[float]

Factor = float | Tensor
"""A number, or a scalar tensor: of a learned weight, or in a compiled step."""


class StepFactors(NamedTuple):
    """What one step multiplies its losses by.

    Attributes:
        by_depth: The factor of the task loss at each computed depth. Its keys are sorted: the
            deepest comes last.
        psd: The factor of L_PSD: lambda at this step.
    """

    by_depth: Mapping[int, Factor]
    psd: Factor


def step_factors(
    step: int,
    *,
    taps: Sequence[int],
    tap_weights: CheckedTapWeights,
    psd_weight: Weight,
    sampled_taps: int | None,
    seed: int,
) -> StepFactors:
    """Return the factors of the losses that a step computes.

    Args:
        step: The training step.
        taps: The network's taps, the deepest last.
        tap_weights: The weights of the taps, of any kind.
        psd_weight: lambda, of any kind.
        sampled_taps: How many taps are sampled besides the deepest. None: all taps are computed.
        seed: The seed of the sampling.

    Returns:
        The factors at the computed depths, and lambda.
    """
    weights = tap_weights_at(step, taps=taps, tap_weights=tap_weights)
    *shallower, deepest = computed_depths(
        step, tap_weights=weights, sampled_taps=sampled_taps, seed=seed
    )
    # Every step computes the deepest tap. The others are sampled, and the division keeps the
    # expected loss the same.
    probability = 1.0
    if sampled_taps is not None:
        probability = inclusion_probability(taps, sampled_taps)
    tap_factors: dict[int, Factor] = {}
    for depth in shallower:
        tap_factors[depth] = weights[depth] / probability
    tap_factors[deepest] = weights[deepest]
    return StepFactors(by_depth=tap_factors, psd=_psd_weight_at(step, psd_weight))


def tap_weights_at(
    step: int, *, taps: Sequence[int], tap_weights: CheckedTapWeights
) -> dict[int, Factor]:
    """Return the weight of every tap at a step, by depth.

    Args:
        step: The training step.
        taps: The network's taps.
        tap_weights: Their weights, of any kind.
    """
    if is_learned(tap_weights):
        return dict(zip(taps, learned(tap_weights).unbind(), strict=True))
    if _is_mapping(tap_weights):
        return dict(tap_weights)
    return dict(check_tap_weights(tap_weights(step), taps))


def computed_depths(
    step: int, *, tap_weights: Mapping[int, Factor], sampled_taps: int | None, seed: int
) -> tuple[int, ...]:
    """Return the depths whose predictions a step computes, the deepest last.

    Args:
        step: The training step.
        tap_weights: The weight of every tap at this step.
        sampled_taps: As in `step_factors`.
        seed: The seed of the sampling.
    """
    depths = tuple(tap_weights)
    if sampled_taps is not None:
        depths = sample_depths(depths, sampled_taps, seed, step)
    *shallower, deepest = depths
    weighted = [depth for depth in shallower if not is_left_out(tap_weights[depth])]
    return (*weighted, deepest)


def _psd_weight_at(step: int, psd_weight: Weight) -> Factor:
    """Return lambda at a step."""
    if is_learned(psd_weight):
        return learned(psd_weight).reshape(())
    if callable(psd_weight):
        at_step = psd_weight(step)
        return check_weight(at_step, found=f"at step {step} psd_weight is {at_step}")
    return psd_weight


def is_left_out(factor: Factor) -> bool:
    """Return whether a loss with this factor is not computed.

    A tensor is never asked for its value: a learned weight may be on a GPU, and a graph, which gets
    a scheduled lambda as a tensor, cannot look at it.

    Args:
        factor: The factor.
    """
    return not isinstance(factor, Tensor) and factor == 0


def as_tensors(factors: Mapping[Any, Factor], like: Tensor) -> dict[Any, Tensor]:
    """Return numbers as scalar tensors in at least float32.

    Args:
        factors: The numbers, by any key.
        like: A tensor of the network, on the device where the factors are needed.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    # one tensor for all, so that they are copied to the device at once
    together = torch.tensor(list(factors.values()), dtype=dtype, device=like.device)
    return dict(zip(factors, together.unbind(), strict=True))


# --- the kinds of weights


def checked_psd_weight(psd_weight: Weight) -> Weight:
    """Return a checked lambda, or the function that returns it, which is checked in each step.

    Args:
        psd_weight: What the user gave.

    Raises:
        TypeError: It is no number, function or parameter of real numbers.
        ValueError: It is negative or not finite, or a parameter of several numbers.
    """
    if isinstance(psd_weight, nn.Parameter):
        check_learned(psd_weight, name="psd_weight", shape=())
        return psd_weight
    if callable(psd_weight):
        return psd_weight
    alternative = ", or a function of the step"
    return check_weight(psd_weight, found=f"psd_weight {psd_weight}", alternative=alternative)


def checked_output_weight(output_weight: float | nn.Parameter) -> float | nn.Parameter:
    """Return a checked mu.

    Args:
        output_weight: What the user gave.

    Raises:
        TypeError: It is no number or parameter of real numbers.
        ValueError: It is negative or not finite, or a parameter of several numbers.
    """
    if isinstance(output_weight, nn.Parameter):
        check_learned(output_weight, name="output_weight", shape=())
        return output_weight
    return check_weight(output_weight, found=f"output_weight {output_weight}")


def checked_tap_weights(tap_weights: TapWeights | None, taps: Sequence[int]) -> CheckedTapWeights:
    """Return checked weights of the taps: a mapping, a parameter or a function of the step.

    A list becomes a mapping. A function is checked at step 0 here, and in each step.

    Args:
        tap_weights: What the user gave. None: 1 for every tap.
        taps: The network's taps.

    Raises:
        TypeError: They are no mapping by depth, list, function or parameter of real numbers.
        ValueError: Depths are missing or carry no tap, or a weight is negative or not finite.
    """
    if tap_weights is None:
        return equal(taps)
    if isinstance(tap_weights, nn.Parameter):
        check_learned(tap_weights, name="tap_weights", shape=(len(taps),))
        return tap_weights
    if callable(tap_weights):
        check_tap_weights(tap_weights(0), taps)
        return tap_weights
    return check_tap_weights(tap_weights, taps)


def is_learned(weights: Any) -> TypeIs[Tensor]:
    """Return whether weights are a parameter, or what a parametrization made of one.

    Args:
        weights: Weights of any kind.
    """
    return isinstance(weights, Tensor)


def is_scheduled(weights: Any) -> TypeIs[Callable[[int], Any]]:
    """Return whether weights are a function of the step.

    Args:
        weights: Weights of any kind.
    """
    # The mapping is asked for first, because torch 2.6 cannot compile `callable` of one.
    return not _is_mapping(weights) and not is_learned(weights) and callable(weights)


def _is_mapping(tap_weights: Any) -> TypeIs[FixedTapWeights]:
    """Return whether tap weights are the same numbers in each step."""
    return isinstance(tap_weights, Mapping)
