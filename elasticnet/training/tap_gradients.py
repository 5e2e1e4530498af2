"""How the gradients of several taps are joined in the blocks that they share.

Each tap wants other features of the shallow blocks, and the sum of their losses lets the tap with
the largest gradient decide. The methods here join the gradients in another way. With the gradient
g_n of tap n in the shared parameters, the joined one is the sum of a_n g_n, and a method says what
the a_n are: all 1 for the plain sum. It needs the inner products of the gradients alone, g_n g_m.

- `balanced`: every tap pulls as hard as its weight says, whatever its loss and its depth are. It is
  the balance that GradNorm (Chen et al. 2018) learns to approach, set exactly in each step, without
  its term for taps that learn slowly. The gradient equilibrium of Li et al., "Improved Techniques
  for Training Adaptive Deep Networks" (2019), divides the gradient of a block by the number of taps
  behind it instead, which changes nothing under Adam: its update does not depend on the gradient's
  scale.
- `projected`: where the gradients of two taps point against each other, that part is taken out of
  both. It is PCGrad (Yu et al., "Gradient Surgery for Multi-Task Learning", 2020).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Method = Callable[[Tensor, Tensor, int], Tensor]
"""`method(products, weights, step)` returns the coefficients a_n (taps,).

The inner products of the gradients are (taps, taps) and the weights (taps,); the step counts from 0
and is for methods that draw. Taps are in order, the deepest last.
"""

Gradients = Sequence[Tensor | None]
"""The gradient of each parameter; None where a loss does not depend on it."""


def balanced(products: Tensor, weights: Tensor, step: int) -> Tensor:
    """Return coefficients that give each tap's gradient a norm in proportion to its weight.

    The sum of the norms stays that of the gradients as they are.

    Args:
        products: The inner products of the taps' gradients, (taps, taps).
        weights: How hard each tap is to pull, (taps,), at least 0.
        step: Of no effect here.

    Returns:
        The coefficients (taps,). A gradient of 0 stays 0.
    """
    norms = products.diagonal().sqrt()
    shares = weights / weights.sum()
    wanted = shares * norms.sum()
    return torch.where(norms > 0, wanted / norms, 0)


def projected(products: Tensor, weights: Tensor, step: int, seed: int = 0) -> Tensor:
    """Return the coefficients of the sum of the gradients without what points against other taps.

    Each tap's gradient g is compared with those of the other taps in random order. Where the inner
    product of g, as it is by then, and another tap's gradient h is negative, g loses its part along
    h: g - (g h / h h) h. The h are always the gradients as they were at first.

    Args:
        products: The inner products of the taps' gradients, (taps, taps).
        weights: Of no effect here: the gradients are those of weighted losses.
        step: The training step. It decides the order together with `seed`.
        seed: The seed of the run.

    Returns:
        The coefficients (taps,).
    """
    rows: list[list[float]] = products.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    num_taps = len(weights)
    generator = random.Random(f"projected:{seed}:{step}")
    total = [0.0] * num_taps
    for tap in range(num_taps):
        # what the tap's own gradient has become: a sum over the gradients as they were
        coefficients = [0.0] * num_taps
        coefficients[tap] = 1.0
        others = [other for other in range(num_taps) if other != tap]
        generator.shuffle(others)
        for other in others:
            row = rows[other]  # the products of the other tap's gradient with all gradients
            product = sum(a * b for a, b in zip(coefficients, row, strict=True))
            if product < 0:
                coefficients[other] -= product / row[other]
        total = [a + b for a, b in zip(total, coefficients, strict=True)]
    return torch.tensor(total, dtype=products.dtype, device=products.device)


class TapGradients:
    """Computes each tap's gradient by itself, and joins them in the parameters that taps share.

    It takes a backward pass for each tap instead of one for all: with five taps of equal blocks 15
    block-passes instead of 5. Parameters that are not shared, such as the head's, get the sum of
    the taps' gradients, and the distillation is added everywhere, as in a plain backward pass.

    Args:
        shared: The parameters in which gradients are joined, such as those of stem and blocks. A
            tap has a gradient of 0 in blocks behind it.
        others: The other parameters of the net.
        method: `balanced`, `projected` or another one.

    Raises:
        ValueError: No shared parameter is trained, so that there is nothing to join.

    Example:
        `TapGradients(net.blocks.parameters(), net.head.parameters(), method=balanced)`
    """

    def __init__(
        self,
        shared: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        method: Method,
    ) -> None:
        self.shared = [each for each in shared if each.requires_grad]
        self.others = [each for each in others if each.requires_grad]
        self.method = method
        if not self.shared:
            raise ValueError(
                "no parameter that taps share requires a gradient: there is nothing to join; take "
                "a plain backward pass"
            )

    def backward(
        self,
        by_tap: Mapping[int, Tensor],
        distillation: Tensor,
        weights: Mapping[int, Any],
        step: int,
    ) -> None:
        """Add the joined gradients to `grad` of the parameters.

        A parameter that no loss depends on keeps its `grad`, as in a plain backward pass.

        Args:
            by_tap: The weighted loss of each tap, `LossTerms.by_tap`.
            distillation: What is added to them, `LossTerms.distillation`.
            weights: The weight of each tap at this step, `objective.tap_weights_at(step)`.
            step: The training step, from 0.
        """
        shared_by_tap: list[Gradients] = []
        others_by_tap: list[Gradients] = []
        for loss in by_tap.values():
            gradients = _gradients(loss, [*self.shared, *self.others])
            shared_by_tap.append(gradients[: len(self.shared)])
            others_by_tap.append(gradients[len(self.shared) :])

        products = inner_products(shared_by_tap, self.shared)
        tap_weights = products.new_tensor([float(weights[depth]) for depth in by_tap])
        coefficients = self.method(products, tap_weights, step)  # (taps,)
        ones = torch.ones_like(coefficients)

        _add_to_grad(self.shared, shared_by_tap, coefficients)
        _add_to_grad(self.others, others_by_tap, ones)
        both = [*self.shared, *self.others]
        _add_to_grad(both, [_gradients(distillation, both)], ones[:1])


def inner_products(by_tap: Sequence[Gradients], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the inner products of several gradients over all parameters together.

    Args:
        by_tap: The gradients of these parameters, for each tap. None is a gradient of 0.
        parameters: The parameters, at least one.

    Returns:
        The products (taps, taps), in at least float32.
    """
    rows: list[Tensor] = []
    for gradients in by_tap:
        flat: list[Tensor] = []
        for gradient, parameter in zip(gradients, parameters, strict=True):
            filled = torch.zeros_like(parameter) if gradient is None else gradient
            dtype = torch.promote_types(filled.dtype, torch.float32)
            flat.append(filled.detach().flatten().to(dtype))
        rows.append(torch.cat(flat))
    matrix = torch.stack(rows)  # (taps, numbers in the parameters)
    return matrix @ matrix.T


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Gradients:
    """Return the gradient of a loss in each parameter; None where it does not depend on it."""
    if not loss.requires_grad:  # a distillation that is switched off
        return [None for _ in parameters]
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def _add_to_grad(
    parameters: Sequence[nn.Parameter], by_tap: Sequence[Gradients], coefficients: Tensor
) -> None:
    """Add the sum of the taps' gradients times their coefficients to `grad` of each parameter."""
    for index, parameter in enumerate(parameters):
        for gradients, coefficient in zip(by_tap, coefficients.unbind(), strict=True):
            gradient = gradients[index]
            if gradient is None:
                continue
            term = gradient * coefficient.to(gradient.dtype)
            parameter.grad = term if parameter.grad is None else parameter.grad + term
