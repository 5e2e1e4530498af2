"""The terms of a loss: what a loss function may return, and how a term is weighted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from elasticnet._objective.step_factors import Factor

LOSS_REMEDY = "compute it without in-place operations"


def scaled(loss: Tensor, factor: Factor) -> Tensor:
    """Return factor * loss in the loss's dtype; a factor of 0 gives 0, even for infinity or NaN.

    Args:
        loss: A scalar.
        factor: What it is multiplied by. 0 comes from the deepest tap, from a learned weight, or in
            a graph from lambda.
    """
    if isinstance(factor, Tensor):
        factor = factor.to(loss.dtype)  # A wider dtype would change the loss's.
    elif factor != 0:
        return factor * loss
    is_void = ~loss.isfinite() & (factor == 0)
    # The value of a void term is 0. Its gradient is 0 too, except where the loss has an infinite
    # derivative: there it is 0 times infinity, NaN.
    loss = torch.where(is_void, 0, loss)
    # A void term stays in the sum, because DistributedDataParallel waits for all gradients.
    return factor * loss


def detached(losses: Mapping[int, Tensor], total: Tensor) -> dict[int, Tensor]:
    """Return copies of the losses without their history.

    Args:
        losses: Scalars, by depth.
        total: Their weighted sum.
    """
    # Plain loss.detach() loses the gradient under torch.compile when the weight is 1.0, because the
    # compiler makes one tensor of 1.0 * loss and loss.detach(). Stacked with `total` they stay two.
    stacked = torch.stack([total, *losses.values()])  # (1 + number of losses,)
    _, *copies = stacked.detach().unbind()
    return dict(zip(losses, copies, strict=True))


def is_empty(prediction: Any) -> bool:
    """Return whether a prediction, or a nest of them, is of an empty batch: it has no distance.

    Args:
        prediction: A tensor, or a nest of tensors.
    """
    tensors = [leaf for leaf in tree_leaves(prediction) if isinstance(leaf, Tensor)]
    return len(tensors) > 0 and all(tensor.numel() == 0 for tensor in tensors)
