"""The weights of the losses as the user gives them, of any kind, and what is refused.

A weight is a number, a function of the step (a schedule), or a parameter (learned).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn

from elasticnet._modules.unwrapping import parallel_wrapper
from elasticnet.loss_weights import (
    Weight,
    check_learned,
    check_no_container,
    check_tap_weights,
    equal,
)

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # in typing since Python 3.13

FixedTapWeights = Mapping[int, float]
ScheduledTapWeights = Callable[[int], FixedTapWeights | Sequence[float]]
CheckedTapWeights = FixedTapWeights | ScheduledTapWeights | nn.Parameter
TapWeights = CheckedTapWeights | Sequence[float]


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
    check_no_container(tap_weights, name="tap_weights")
    if isinstance(tap_weights, nn.Parameter):
        check_learned(tap_weights, name="tap_weights", shape=(len(taps),))
        return tap_weights
    if callable(tap_weights):
        check_tap_weights(tap_weights(0), taps)
        return tap_weights
    return check_tap_weights(tap_weights, taps)


def check_learned_with_net(net: nn.Module, learned: Iterable[str]) -> None:
    """Raise if the loss learns something, and the net alone is wrapped for several processes.

    Each process would learn its own, and the processes would drift apart.

    Args:
        net: The net that the objective was given.
        learned: The names of what the loss learns: weights, and comparisons with parameters.

    Raises:
        ValueError: There are several processes, the net is wrapped, and something is learned.
    """
    wrapper = parallel_wrapper(net)
    if wrapper is None or not _has_several_processes():
        return
    for name in learned:
        raise ValueError(
            f"{name} is learned, and the net alone is in {wrapper}: each process would learn its "
            "own. Put the objective with the net into it instead, "
            f"{wrapper}(ElasticObjective(net, ...)), or let your trainer prepare the objective"
        )


def _has_several_processes() -> bool:
    is_distributed = dist.is_available() and dist.is_initialized()
    return is_distributed and dist.get_world_size() > 1


def may_be_used(weight: Weight) -> bool:
    """Return whether a step may compute the term that a weight belongs to: all but 0 say so.

    Args:
        weight: A number, a function of the step, or a parameter.
    """
    if isinstance(weight, nn.Parameter):
        return True  # It may learn any value.
    return weight != 0  # True for a function, too.


def is_learned(weights: Any) -> TypeIs[Tensor]:
    """Return whether weights are a parameter, or what a parametrization made of one.

    Args:
        weights: Weights of any kind.
    """
    return isinstance(weights, Tensor)


def trains(weights: Any) -> bool:
    """Return whether weights are learned and not frozen.

    Args:
        weights: Weights of any kind.
    """
    return is_learned(weights) and weights.requires_grad


def is_scheduled(weights: Any) -> TypeIs[Callable[[int], Any]]:
    """Return whether weights are a function of the step.

    Args:
        weights: Weights of any kind.
    """
    # The mapping is asked for first, because torch 2.6 cannot compile `callable` of one.
    return not is_mapping(weights) and not is_learned(weights) and callable(weights)


def is_mapping(weights: Any) -> TypeIs[FixedTapWeights]:
    """Return whether tap weights are the same numbers in each step.

    Args:
        weights: Weights of any kind.
    """
    return isinstance(weights, Mapping)
