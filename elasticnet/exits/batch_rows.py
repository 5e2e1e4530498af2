"""A pass for fewer inputs than it began with: rows taken out of the tensors that it has computed.

Which axis of a tensor counts the inputs cannot be seen from its shape: a table of 8 positions looks
like an entry for each of 8 inputs. So it is found by running the same input once and twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from elasticnet._net.nests import mapped, numbers_in, tensors_in
from elasticnet.wrapper import ElasticWrapper, PassState


class BatchAxes:
    """Finds the axes of a net's intermediate tensors that count the inputs, and takes rows of them.

    Args:
        net: In eval mode.
    """

    def __init__(self, net: ElasticWrapper) -> None:
        self.net = net
        self._axes_by_kind: dict[tuple[int, ...], list[int | None]] = {}

    def learn(self, x: Tensor, keywords: Mapping[str, Any], state: PassState) -> list[int | None]:
        """Return the axis of each tensor of a state that counts the inputs; None: it has none.

        Args:
            x: The inputs of the pass; one of them is run once and twice, to the depth of `state`.
            keywords: The keyword arguments of the pass.
            state: Where the pass stands.

        Raises:
            ValueError: A tensor has several axes that grow with the number of inputs, or a number
                beside the tensors depends on it.
        """
        kind = tuple(tensor.ndim for tensor in tensors_of_state(state))
        if kind not in self._axes_by_kind:
            once = self._run_copies(x, keywords, copies=1, depth=state.depth)
            twice = self._run_copies(x, keywords, copies=2, depth=state.depth)
            if _numbers_of(once) != _numbers_of(twice):
                raise ValueError(
                    "what the blocks get beside the features holds a number that depends on the "
                    "number of inputs: pass batches of one input"
                )
            pairs = zip(tensors_of_state(once), tensors_of_state(twice), strict=True)
            self._axes_by_kind[kind] = [_axis_that_doubles(one, two) for one, two in pairs]
        return self._axes_by_kind[kind]

    def _run_copies(
        self, x: Tensor, keywords: Mapping[str, Any], copies: int, depth: int
    ) -> PassState:
        """Return the state of the first input, `copies` times in one batch, at a depth."""
        first = torch.zeros(copies, dtype=torch.int64, device=x.device)
        rows = rows_of_arguments(x, keywords, first)
        return self.net.run_to(rows[0], depth, **rows[1])


def rows_of_arguments(
    x: Tensor, keywords: Mapping[str, Any], rows: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """Return some of the inputs of a net, and its keyword arguments for them.

    Args:
        x: Inputs (b, ...).
        keywords: Tensors whose first axis is as long as that of `x` hold an entry for each input;
            everything else is shared by all inputs.
        rows: Indices of inputs, (k,) of int64.
    """
    num_inputs = len(x)
    chosen: dict[str, Any] = {}
    for name, value in keywords.items():
        per_input = isinstance(value, Tensor) and value.ndim > 0 and len(value) == num_inputs
        chosen[name] = value.index_select(0, rows) if per_input else value
    return x.index_select(0, rows), chosen


def rows_of_state(state: PassState, axes: list[int | None], rows: Tensor) -> PassState:
    """Return a state for some of its inputs alone.

    Args:
        state: From `run_to` or `continue_from`.
        axes: The axis of each of its tensors that counts the inputs, from `BatchAxes.learn`.
        rows: Which inputs, as indices (k,) of int64.
    """
    remaining = iter(axes)

    def take(tensor: Tensor) -> Tensor:
        axis = next(remaining)
        return tensor if axis is None else tensor.index_select(axis, rows)

    fewer = PassState(
        depth=state.depth,
        features=mapped(state.features, take),
        context=mapped(state.context, take),
        skip=mapped(state.skip, take),
        guarded=state.guarded,
    )
    return fewer.protected()  # Its own tensors are guarded from now on.


def tensors_of_state(state: PassState) -> list[Tensor]:
    """Return the tensors of a state: of its features, its context and its skip, in this order.

    Args:
        state: From `run_to` or `continue_from`.
    """
    return [
        *tensors_in(state.features),
        *tensors_in(state.context),
        *tensors_in(state.skip),
    ]


def _numbers_of(state: PassState) -> list[int | float]:
    """Return the numbers that a state holds beside tensors."""
    return [*numbers_in(state.features), *numbers_in(state.context), *numbers_in(state.skip)]


def _axis_that_doubles(one: Tensor, two: Tensor) -> int | None:
    """Return the axis along which a tensor of two inputs is twice as long as that of one."""
    differing = [
        axis
        for axis, (length, other) in enumerate(zip(one.shape, two.shape, strict=True))
        if length != other
    ]
    if not differing:
        return None
    axis = differing[0]
    if len(differing) > 1 or two.shape[axis] != 2 * one.shape[axis]:
        raise ValueError(
            f"a tensor of shape {tuple(one.shape)} for one input has shape {tuple(two.shape)} for "
            "two: expected a single axis that is twice as long; pass batches of one input"
        )
    return axis
