"""Task losses without the predictions: the head runs tap by tap, and again in the backward pass.

Otherwise a step holds the predictions of all taps until its backward pass, and with a head over a
large vocabulary they take more memory than all else. Here each tap's prediction lives only while
its loss is computed, once in the forward and once in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from elasticnet._net.in_place_writes import GuardedTensors
from elasticnet._objective.tap_net import TapNet
from elasticnet._objective.terms import LOSS_REMEDY
from elasticnet.distillation import Distillation
from elasticnet.distillation_losses import checked_loss
from elasticnet.recompute import recomputed


class TapByTap(NamedTuple):
    """What a pass without predictions leaves.

    Attributes:
        features: The features at all taps, shallowest first.
        losses: The task loss at each computed depth, the deepest last.
    """

    features: tuple[Any, ...]
    losses: dict[int, Tensor]


def losses_tap_by_tap(
    net: TapNet,
    depths: tuple[int, ...],
    x: Any,
    target: Any,
    task_loss: Callable[[Any, Any], Tensor],
    keywords: Mapping[str, Any],
) -> TapByTap:
    """Run all blocks once, and at each of some depths the head and the task loss.

    Args:
        net: The network.
        depths: Where the loss is computed.
        x: The input of the network.
        target: The target of every prediction.
        task_loss: `task_loss(prediction, target)` returns a scalar.
        keywords: The keyword arguments of the network.

    Returns:
        The features at all taps, and the losses.

    Raises:
        TypeError: The task loss did not return a tensor of real numbers.
        ValueError: The task loss did not return a scalar.
        RuntimeError: The task loss changes the target in place.
    """
    guarded = GuardedTensors(remedy=LOSS_REMEDY)
    guarded.guard(target, name="the target")
    features: list[Any] = []
    losses: dict[int, Tensor] = {}
    state: Any = None
    for depth in net.taps:
        if state is None:
            state = net.run_to(x, depth, **keywords)
        else:
            state = net.continue_from(state, depth)
        features.append(state.features)
        if depth in depths:
            losses[depth] = _loss_at(net, state, target, task_loss)
    guarded.check_everything(writer="the task loss")
    return TapByTap(tuple(features), losses)


def _loss_at(
    net: TapNet, state: Any, target: Any, task_loss: Callable[[Any, Any], Tensor]
) -> Tensor:
    """Return the task loss at the depth of a state; the backward pass computes it again."""

    def predict_and_compare() -> Tensor:
        returned = task_loss(net.predict(state), target)
        return checked_loss(returned, name="task loss")

    modules = _modules_behind(net, state, task_loss)
    return recomputed(predict_and_compare, module=modules, option="checkpoint_head")()


def _modules_behind(net: TapNet, state: Any, task_loss: Any) -> nn.ModuleDict:
    """Return the modules that run at the depth of a state, behind the blocks, by their names."""
    modules = {"head": net.head}
    depth = str(state.depth)
    if depth in net.adapters:
        modules["adapter"] = net.adapters[depth]
    if depth in net.head_statistics:
        modules["head_statistics"] = net.head_statistics[depth]
    if isinstance(task_loss, nn.Module):
        modules["task_loss"] = task_loss
    return nn.ModuleDict(modules)


def check_can_run_tap_by_tap(
    net: nn.Module, elastic: Any, distillations: Iterable[Distillation]
) -> None:
    """Raise unless the losses of a net can be computed tap by tap.

    Args:
        net: The net that the objective was given.
        elastic: The elastic net inside it.
        distillations: Those that a step may compute.

    Raises:
        ValueError: The net alone is wrapped or compiled, or predictions are distilled.
    """
    if net is not elastic:
        raise ValueError(
            f"checkpoint_head runs the net in pieces, which {type(net).__name__} around it would "
            "not see: wrap or compile the objective instead of the net"
        )
    for distillation in distillations:
        if distillation.of == "predictions":
            raise ValueError(
                "checkpoint_head keeps no predictions, and a distillation compares them: leave "
                "one of the two out, or distil maps or features"
            )
