"""The gradients of single terms of a loss: how large a share of the whole one has."""

from __future__ import annotations

import math
import statistics
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
    """Return the share of all distillations in the gradient of a module, such as `net.blocks`.

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
        `gradient_share` of `terms.distillation`: of L_PSD and all others together. It is 0 if all
        are switched off.

    Raises:
        ValueError: The module has a parameter that is not the objective's.

    Example:
        `distillation_share(objective, x, target, step, module=net.blocks)`
    """
    probe = _Probe(objective, module)
    terms = probe.terms(x, target, step, keywords)
    return gradient_share(terms.distillation, terms.total, probe.parameters).item()


def distillation_shares(
    objective: Any,
    x: Any,
    target: Any,
    step: int,
    module: nn.Module,
    **keywords: Any,
) -> dict[str, float]:
    """Return the share of each distillation in the gradient of a module, such as `net.blocks`.

    As `distillation_share`, it changes nothing. It takes a backward pass more for each of them.

    Args:
        objective: An `ElasticObjective`, not compiled, nor wrapped by DistributedDataParallel.
        x: The input of the network.
        target: The target of every prediction.
        step: The training step, from 0.
        module: A part of the objective's network. The gradient is that of its parameters.
        **keywords: As in a step: for the network, and `mask`.

    Returns:
        The share by the name of the distillation's weight: "psd_weight" for L_PSD, and
        "distillations[0].weight" and so on. Those that are switched off are left out. The shares
        are no parts of a whole: two that pull the same way have a larger share together, and two
        that pull against each other a smaller one.

    Raises:
        ValueError: The module has a parameter that is not the objective's.

    Example:
        `distillation_shares(objective, x, target, step=0, module=net.blocks)["psd_weight"]`
    """
    probe = _Probe(objective, module)
    terms = probe.terms(x, target, step, keywords)
    shares: dict[str, float] = {}
    for name, term in terms.by_distillation.items():
        shares[name] = gradient_share(term, terms.total, probe.parameters).item()
    return shares


def weight_for_share(
    objective: Any,
    batches: Iterable[tuple[Any, Any]],
    module: nn.Module,
    share: float = 0.02,
    *,
    distillation: int | None = None,
    step: int = 0,
    **keywords: Any,
) -> float:
    """Return the weight with which a distillation has a share of a module's gradient.

    A weight means nothing by itself: it depends on the task loss, on the scale of the target and on
    the form of the term. The share means the same everywhere, so choose the share, and let this
    function measure the weight. Measure it on a network that has trained for a while without the
    term: the gradient of the task loss is far larger at the start than later.

    Nothing of the objective changes, as in `distillation_share`. Its own weight of the term is of
    no effect, and may be 0.

    Args:
        objective: An `ElasticObjective`, not compiled, nor wrapped by DistributedDataParallel.
        batches: A few batches, each as (input, target), such as five.
        module: A part of the objective's network, such as `net.blocks`.
        share: The share, above 0 and below 1. We measured small gains at 0.01 to 0.07, and at 0.1
            and more a classifier lost 2 to 5 points.
        distillation: Which one: the index in `distillations`. None: L_PSD, whose weight is
            `psd_weight`.
        step: The training step whose weights the other terms have.
        **keywords: As in a step: for the network, and `mask`.

    Returns:
        The median of the weights that the batches ask for.

    Raises:
        ValueError: The share is out of range, there is no batch, or the term has no gradient.

    Example:
        ```python
        weight = weight_for_share(objective, batches, module=net.blocks, share=0.02)
        objective.psd_weight = weight
        ```
    """
    if not 0 < share < 1:
        raise ValueError(f"share {share}: expected a number above 0 and below 1, such as 0.02")
    name = "psd_weight" if distillation is None else f"distillations[{distillation}].weight"
    probe = _Probe(objective, module)
    probe.set_weight(distillation, weight=1.0)
    weights: list[float] = []
    for x, target in batches:
        terms = probe.terms(x, target, step, keywords)
        term = terms.by_distillation[name]
        of_term = _flat_gradient(term, probe.parameters)
        of_others = _flat_gradient(terms.total, probe.parameters) - of_term
        if not of_term.any():
            raise ValueError(f"{name}: the term has no gradient in this module on this batch")
        weights.append(_weight_of_share(of_term, of_others, share))
    if not weights:
        raise ValueError("weight_for_share: no batches given, expected at least one")
    return statistics.median(weights)


def _weight_of_share(of_term: Tensor, of_others: Tensor, share: float) -> float:
    """Return the w for which |w d| = share |g + w d|, with d of the term and g of the others.

    Squared, it is the quadratic equation (1 - s^2) |d|^2 w^2 - 2 s^2 (g d) w - s^2 |g|^2 = 0, and
    of its two solutions one is not negative.
    """
    square = share**2
    a = (1 - square) * float(of_term @ of_term)
    half_b = square * float(of_others @ of_term)
    c = square * float(of_others @ of_others)
    return (half_b + math.sqrt(half_b**2 + a * c)) / a


class _Probe:
    """A copy of an objective, whose passes change nothing outside."""

    def __init__(self, objective: Any, module: nn.Module) -> None:
        own = {id(each) for each in objective.parameters()}
        for name, parameter in module.named_parameters():
            if id(parameter) not in own:
                raise ValueError(
                    f"{name} is not a parameter of the objective: pass a part of its net"
                )
        copies: dict[int, Any] = {}  # by the id of the original
        self.objective = detached_copy(objective, copies)
        self.objective.by_term = True
        self.devices = {each.device for each in objective.parameters() if each.is_cuda}
        copied = [copies[id(each)] for each in module.parameters()]
        self.parameters = [each for each in copied if each.requires_grad]

    def terms(self, x: Any, target: Any, step: int, keywords: dict[str, Any]) -> Any:
        """Return the terms of a step, with their history."""
        with torch.random.fork_rng(devices=list(self.devices)), torch.enable_grad():
            return self.objective(x, target, step=step, **keywords)

    def set_weight(self, distillation: int | None, weight: float) -> None:
        """Give one distillation a number as its weight; None: L_PSD."""
        holder = self.objective
        name = "psd_weight"
        if distillation is not None:
            holder = self.objective.distillations[distillation]
            name = "weight"
        delattr(holder, name)  # A parameter cannot be replaced by a number.
        setattr(holder, name, weight)


def _flat_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient in all parameters as one vector in float64, and keep the graph."""
    if not loss.requires_grad:
        return torch.zeros(sum(each.numel() for each in parameters), dtype=torch.float64)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([each.flatten().double().cpu() for each in gradients])


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
