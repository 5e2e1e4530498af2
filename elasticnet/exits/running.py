"""Run a net input by input: each leaves at the first tap where the net is sure enough."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elasticnet.exits.batch_rows import BatchAxes, rows_of_state
from elasticnet.exits.rule import ExitRule
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper


class Exits(NamedTuple):
    """What came out of a batch whose inputs left at depths of their own.

    Attributes:
        logits: The prediction of each input at the depth where it left, (b, ..., classes).
        depths: These depths, (b,) of int64.
        scores: How sure the rule's policy was there, (b,).
    """

    logits: Tensor
    depths: Tensor
    scores: Tensor


class _Left(NamedTuple):
    """The inputs that left at one tap: their indices in the batch, and what `Exits` holds."""

    rows: Tensor
    logits: Tensor
    depths: Tensor
    scores: Tensor


class ExitRunner:
    """Runs a net at a depth that each input chooses by itself.

    No block runs twice, and none runs for an input that has left. At a tap that the rule does not
    name there is no prediction either. One input at a time gives bit for bit what `net(x, depth=d)`
    gives at its depth; in a batch, sums may be taken in another order.

    Args:
        net: An `ElasticWrapper` in eval mode, whose predictions are logits (b, ..., classes).
        rule: When an input leaves.

    Attributes:
        depths: The taps at which inputs may leave, shallowest first.

    Raises:
        ValueError: The rule has a threshold for a depth that carries no tap.

    Example:
        `logits, depths, _ = ExitRunner(net, ExitRule(thresholds={1: 0.9, 2: 0.9}))(x)`
    """

    def __init__(self, net: ElasticWrapper, rule: ExitRule) -> None:
        deepest = net.taps[-1]
        thresholds = {resolve_depth(depth, net.taps): at for depth, at in rule.thresholds.items()}
        thresholds[deepest] = -math.inf  # whoever comes so far leaves there
        self.net = net
        self.rule = rule
        self.depths = tuple(sorted(thresholds))
        self._thresholds = thresholds
        self._batch_axes = BatchAxes(net)

    @torch.no_grad()
    def __call__(self, x: Tensor, **keywords: Any) -> Exits:
        """Return the prediction of each input, and the depth where it left.

        Args:
            x: Inputs (b, ...).
            **keywords: For the net, as in `net(x, **keywords)`. A tensor whose first axis is as
                long as that of `x` has an entry for each input.

        Raises:
            ValueError: The net is in training mode, there is no input, a prediction is not logits
                for each input, or the tensors inside of the net cannot be parted by input.
        """
        if self.net.training:
            raise ValueError("the net is in training mode, where dropout acts: call net.eval()")
        if len(x) == 0:
            raise ValueError(f"x of shape {tuple(x.shape)} has no input")

        rows = torch.arange(len(x), device=x.device)  # the inputs that are still inside
        scaled_so_far: list[Tensor] = []  # their logits at the taps so far, as the policy sees them
        left: list[_Left] = []
        state = self.net.run_to(x, self.depths[0], **keywords)

        for depth in self.depths:
            if depth > state.depth:
                state = self.net.continue_from(state, depth)

            # See who is sure enough.
            logits = _as_logits(self.net.predict(state), num_inputs=len(rows))
            scaled_so_far.append(self.rule.scaled(logits, depth))
            scores = self.rule.scores(scaled_so_far)  # (inputs inside,)
            leaves = scores >= self._thresholds[depth]
            num_leaving = int(leaves.count_nonzero())
            if num_leaving == len(rows):
                left.append(_left_at(depth, rows, logits, scores))
                break

            # Go on with the others alone.
            if num_leaving > 0:
                left.append(_left_at(depth, rows[leaves], logits[leaves], scores[leaves]))
                stays = (~leaves).nonzero().squeeze(1)
                axes = self._batch_axes.learn(x, keywords, state)
                state = rows_of_state(state, axes, stays)
                rows = rows[stays]
                scaled_so_far = [scaled[stays] for scaled in scaled_so_far]
        return _in_order(left)


def _left_at(depth: int, rows: Tensor, logits: Tensor, scores: Tensor) -> _Left:
    """Return what some inputs leave with at a depth."""
    return _Left(rows, logits, torch.full_like(rows, depth), scores)


def _as_logits(prediction: Any, num_inputs: int) -> Tensor:
    """Return a prediction, if it has logits for each input."""
    if not isinstance(prediction, Tensor):
        raise ValueError(
            f"the prediction is a {type(prediction).__name__}: expected logits (b, ..., classes)"
        )
    if prediction.ndim < 2 or len(prediction) != num_inputs:
        raise ValueError(
            f"the prediction has shape {tuple(prediction.shape)} for {num_inputs} inputs: expected "
            "logits (b, ..., classes)"
        )
    return prediction


def _in_order(left: list[_Left]) -> Exits:
    """Return what the inputs left with, in the order of the batch."""
    if len(left) == 1:  # all left at one tap, so that none has changed its place
        return Exits(left[0].logits, left[0].depths, left[0].scores)
    rows = torch.cat([each.rows for each in left])
    order = rows.argsort()
    return Exits(
        logits=torch.cat([each.logits for each in left])[order],
        depths=torch.cat([each.depths for each in left])[order],
        scores=torch.cat([each.scores for each in left])[order],
    )
