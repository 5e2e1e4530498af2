"""What the tests of TrainingStep share: a net in float64, batches to cut, and the naive loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper, LossTerms
from elasticnet.training.step import Batch, TrainingStep
from tiny_nets import conv_net

NUM_BLOCKS = 4
LOSS: dict[str, Any] = {"psd_weight": 0.1, "tap_weights": {1: 0.25, 2: 0.25, 3: 0.25, 4: 0.25}}


def make_net(
    taps: tuple[int, ...] | None = None, seed: int = 0, channels: int = 4
) -> ElasticWrapper:
    torch.manual_seed(seed)
    return conv_net(NUM_BLOCKS, channels, taps=taps).double()


def make_step(
    net: ElasticWrapper, loss: dict[str, Any] | None = None, **options: Any
) -> TrainingStep:
    """A step with momentum, in which a wrong gradient is still seen when later ones are right."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return TrainingStep(
        ElasticObjective(net, nn.MSELoss(), **(loss or LOSS)), net, optimizer, **options
    )


def images(step: int, size: int = 4, channels: int = 4, side: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, channels, side, side + 1, dtype=torch.float64, generator=generator)
    return x, torch.randn(size, 2, side, side + 1, dtype=torch.float64, generator=generator)


def cutter(x: Tensor, y: Tensor) -> Batch:
    """The function that a step takes: equal parts, or a ValueError."""

    def batch(part: int, parts: int) -> tuple[Tensor, Tensor]:
        if len(x) % parts:
            raise ValueError(f"{len(x)} images cannot be shared by {parts}")
        share = len(x) // parts
        return x[part * share : (part + 1) * share], y[part * share : (part + 1) * share]

    return batch


def naive_training(
    net: ElasticWrapper,
    steps: int,
    loss: dict[str, Any],
    change: Callable[[ElasticWrapper], Any] = lambda net: None,
) -> tuple[list[LossTerms], list[dict[str, Tensor]]]:
    """The plain loop on whole batches; returns every step's terms and the weights after it."""
    objective = ElasticObjective(net, nn.MSELoss(), **loss)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    all_terms: list[LossTerms] = []
    weights: list[dict[str, Tensor]] = []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        terms = objective(*images(step), step=step)
        terms.total.backward()
        change(net)
        optimizer.step()
        all_terms.append(LossTerms(*(term.detach() for term in terms[:4]), terms.per_depth))  # pyright: ignore
        weights.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
    return all_terms, weights


def assert_close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def limit_memory(net: ElasticWrapper, place: str, most: int) -> None:
    """The stand-in for a small GPU: more than `most` images at this place do not fit."""

    def allocate(size: int) -> None:
        if size > most:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} GiB.\nSee the documentation"
            )

    def in_backward(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: allocate(len(gradient)))

    if place == "backward":
        net.blocks[1].register_forward_hook(in_backward)
    else:
        module = net.head if place == "head" else net.blocks[2]
        module.register_forward_pre_hook(lambda module, inputs: allocate(len(inputs[0])))
