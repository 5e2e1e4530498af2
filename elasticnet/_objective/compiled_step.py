"""The factors of a step that torch.compile has compiled: tensors, so that it compiles once.

A number in a graph is a constant: if it changed, torch.compile would compile the step again, or
record its CUDA graph again. Therefore what depends on the step is computed outside the graph, and
enters it as tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from elasticnet._objective.given_weights import is_learned, is_scheduled
from elasticnet._objective.step_factors import Factor, StepFactors, Weighting

# A decorator: torch.compile leaves the calls of the function out of its graphs.
_outside_graphs: Any = torch.compiler.disable  # pyright: ignore[reportUnknownVariableType]


@_outside_graphs
def factors_outside_graph(
    weighting: Weighting, count_step: Callable[[], int], net: Any
) -> StepFactors:
    """Return the factors of a step; those that change from step to step are scalar tensors.

    Args:
        weighting: What the factors depend on beside the step.
        count_step: Returns the step, and may count it. It is called once, outside the graph,
            because counting changes state.
        net: The network. The tensors are on its device.
    """
    factors = weighting.factors_at(count_step())
    parameter = next(net.parameters(), torch.zeros(()))  # a net may have no parameters
    if not is_learned(weighting.tap_weights):  # Learned ones are tensors, with a gradient.
        factors = factors._replace(by_depth=_as_tensors(factors.by_depth, like=parameter))
    distillations = dict(factors.distillations)
    for name, weight in weighting.distillation_weights.items():
        # A constant weight stays a number: if it is 0, the graph leaves out the distillation.
        if is_scheduled(weight):
            distillations.update(_as_tensors({name: distillations[name]}, like=parameter))
    return factors._replace(distillations=distillations)


def _as_tensors(factors: Mapping[Any, Factor], like: Tensor) -> dict[Any, Tensor]:
    """Return numbers as scalar tensors in at least float32, on the device of another tensor."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    # one tensor for all, so that they are copied to the device at once
    together = torch.tensor(list(factors.values()), dtype=dtype, device=like.device)
    return dict(zip(factors, together.unbind(), strict=True))
