"""The gradients of single terms of a loss: how large a share of the whole one has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet._modules.copies import detached_copy


def gradient_share(term: Tensor, total: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of a term's gradient divided by the norm of the whole loss's gradient.

    A weight says little about how hard a term pulls: that depends on the scale of the losses, on
    the form of the term and on how far the training is. This number says it. It is no part of 1:
    two terms that pull in opposite directions can have a share above 1 each.

    Nothing changes: no `grad` of a parameter is written, and `total.backward()` works afterwards.

    Args:
        term: A term of the loss, already weighted, such as `terms.distillation`. One without a
            history, such as a term that is switched off, has the share 0.
        total: The whole loss, `terms.total`.
        parameters: Whose gradients are compared, such as `net.blocks.parameters()`. Those that do
            not require a gradient are left out.

    Returns:
        The share, a scalar of at least 0. It is infinite if only the whole gradient is 0.

    Example:
        ```python
        terms = objective(x, target)
        share = gradient_share(terms.distillation, terms.total, net.blocks.parameters())
        terms.total.backward()
        ```
    """
    trainable = [each for each in parameters if each.requires_grad]
    norm_of_term = _gradient_norm(term, trainable)
    if norm_of_term == 0:
        return torch.zeros_like(total.detach())
    return norm_of_term / _gradient_norm(total, trainable)


def distillation_share(
    objective: Any,
    x: Any,
    target: Any,
    step: int,
    module: nn.Module,
    **keywords: Any,
) -> float:
    """Return the share of the distillation in the gradient of a module, such as `net.blocks`.

    It takes a forward and two backward passes of a copy of the objective. The network, its buffers,
    the objective's count of steps and torch's random generators stay as they are, so that a
    training goes on to the same bits.

    Args:
        objective: An `ElasticObjective`, not compiled, nor wrapped by DistributedDataParallel.
        x: The input of the network.
        target: The target of every prediction.
        step: The training step, from 0.
        module: A part of the objective's network. The gradient is that of its parameters.
        **keywords: As in a step: for the network, and `mask`.

    Returns:
        `gradient_share` of `terms.distillation`. That is lambda L_PSD, and mu times the output
        distillation if the objective has one. It is 0 if both are switched off.

    Raises:
        ValueError: The module has a parameter that is not the objective's.

    Example:
        `distillation_share(objective, x, target, step, module=net.blocks)`
    """
    own = {id(each) for each in objective.parameters()}
    for name, parameter in module.named_parameters():
        if id(parameter) not in own:
            raise ValueError(f"{name} is not a parameter of the objective: pass a part of its net")
    copies: dict[int, Any] = {}  # by the id of the original
    probe = detached_copy(objective, copies)
    devices = {each.device for each in objective.parameters() if each.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        terms = probe(x, target, step=step, **keywords)
        parameters = [copies[id(each)] for each in module.parameters()]
        return gradient_share(terms.distillation, terms.total, parameters).item()


def _gradient_norm(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the L2 norm of the gradient over all parameters together, and keep the graph."""
    if not loss.requires_grad or not parameters:
        return torch.zeros_like(loss.detach())
    # zeros for a parameter on which the loss does not depend
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    squares = torch.zeros((), device=loss.device)
    for gradient in gradients:
        squares = squares + gradient.square().sum()
    return squares.sqrt()
