"""Gradients of taps, joined: against vectors written out, and against the plain backward pass."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.training.step import TrainingStep
from elasticnet.training.tap_gradients import TapGradients, balanced, projected
from step_cases import LOSS, assert_close, cutter, images, make_net, make_step

TAP_WEIGHTS = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}


def plain_sum(products: Tensor, weights: Tensor, step: int) -> Tensor:
    return torch.ones_like(weights)


def naive_projection(gradients: list[Tensor], seed: int, step: int) -> Tensor:
    """PCGrad on the vectors themselves, in the order that `projected` draws."""
    generator = random.Random(f"projected:{seed}:{step}")
    total = torch.zeros_like(gradients[0])
    for tap, gradient in enumerate(gradients):
        others = [other for other in range(len(gradients)) if other != tap]
        generator.shuffle(others)
        changed = gradient.clone()
        for other in others:
            product = changed @ gradients[other]
            if product < 0:
                changed = (
                    changed - product / (gradients[other] @ gradients[other]) * (gradients[other])
                )
        total = total + changed
    return total


def gradients_by_tap(net: ElasticWrapper, loss: dict[str, Any]) -> list[Tensor]:
    """The gradient of each tap's weighted loss in the blocks, from a backward pass of its own."""
    flat_by_tap: list[Tensor] = []
    for depth in net.taps:
        objective = ElasticObjective(net, nn.MSELoss(), **{**loss, "by_term": True})
        terms = objective(*images(0), step=0)
        assert terms.by_tap is not None
        net.zero_grad(set_to_none=True)
        terms.by_tap[depth].backward()
        flat: list[Tensor] = []
        for parameter in net.blocks.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            flat.append(gradient.flatten())
        flat_by_tap.append(torch.cat(flat))
    net.zero_grad(set_to_none=True)
    return flat_by_tap


def step_with(net: ElasticWrapper, method: Any, loss: dict[str, Any]) -> TrainingStep:
    blocks = set(net.blocks.parameters())
    others = [each for each in net.parameters() if each not in blocks]
    tap_gradients = TapGradients(net.blocks.parameters(), others, method)
    return make_step(net, {**loss, "by_term": True}, tap_gradients=tap_gradients)


def flat_gradient(module: nn.Module) -> Tensor:
    flat: list[Tensor] = []
    for parameter in module.parameters():
        assert parameter.grad is not None
        flat.append(parameter.grad.flatten())
    return torch.cat(flat)


# --- the methods


def test_balanced_gradients_have_norms_in_proportion_to_the_weights() -> None:
    """Norms of 3 and 1 with weights of 1 and 3: norms of 1 and 3, by 1/3 and 3."""
    products = torch.tensor([[9.0, 2.0], [2.0, 1.0]])
    coefficients = balanced(products, torch.tensor([0.25, 0.75]), step=0)
    torch.testing.assert_close(coefficients, torch.tensor([1 / 3, 3.0]))


def test_a_gradient_of_0_stays_0_in_a_balance() -> None:
    products = torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    coefficients = balanced(products, torch.tensor([0.5, 0.5]), step=0)
    assert coefficients.tolist() == [0.5, 0.0]


def test_a_projection_by_hand() -> None:
    """(1, 0) and (-1, 1) have the product -1: they become (1/2, 1/2) and (0, 1)."""
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    coefficients = projected(gradients @ gradients.T, torch.ones(2), step=0)
    torch.testing.assert_close(coefficients @ gradients, torch.tensor([0.5, 1.5]))


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 99), st.integers(0, 9))
def test_a_projection_is_that_of_the_vectors_themselves(
    num_taps: int, size: int, step: int, seed: int
) -> None:
    gradients = torch.randn(num_taps, size, dtype=torch.float64)
    products = gradients @ gradients.T
    coefficients = projected(products, torch.ones(num_taps), step, seed=seed)
    expected = naive_projection(list(gradients.unbind()), seed, step)
    torch.testing.assert_close(coefficients @ gradients, expected)


def test_gradients_without_a_conflict_are_summed() -> None:
    products = torch.tensor([[1.0, 0.5], [0.5, 2.0]])
    assert projected(products, torch.ones(2), step=0).tolist() == [1.0, 1.0]


# --- in a training step


@pytest.mark.parametrize("psd_weight", [0.0, 0.1])
@pytest.mark.parametrize("sampled_taps", [None, 1])
def test_the_plain_sum_gives_the_gradients_of_the_plain_backward_pass(
    psd_weight: float, sampled_taps: int | None
) -> None:
    loss: dict[str, Any] = {
        "psd_weight": psd_weight,
        "tap_weights": TAP_WEIGHTS,
        "sampled_taps": sampled_taps,
    }
    net = make_net()
    step_with(net, plain_sum, loss)(cutter(*images(0)), 0)
    plain = make_net()
    make_step(plain, loss)(cutter(*images(0)), 0)
    for joined, expected in zip(net.parameters(), plain.parameters(), strict=True):
        assert_close(joined.grad, expected.grad)


@pytest.mark.parametrize("method", [balanced, projected])
def test_a_method_joins_the_gradients_in_the_blocks_alone(method: Any) -> None:
    loss: dict[str, Any] = {"psd_weight": 0.0, "tap_weights": TAP_WEIGHTS}
    by_tap = gradients_by_tap(make_net(), loss)
    matrix = torch.stack(by_tap)
    weights = torch.tensor(list(TAP_WEIGHTS.values()), dtype=torch.float64)
    coefficients = method(matrix @ matrix.T, weights, 5)
    expected = torch.zeros_like(by_tap[0])
    for coefficient, gradient in zip(coefficients, by_tap, strict=True):
        expected += coefficient * gradient

    net = make_net()
    step_with(net, method, loss)(cutter(*images(0)), 5)
    plain = make_net()
    make_step(plain, loss)(cutter(*images(0)), 5)

    assert_close(flat_gradient(net.blocks), expected)
    if method is balanced:  # there is no conflict between the taps of this net
        assert not torch.allclose(flat_gradient(net.blocks), flat_gradient(plain.blocks))
    assert_close(flat_gradient(net.head), flat_gradient(plain.head))


def test_the_distillation_is_added_as_it_is() -> None:
    loss: dict[str, Any] = {"psd_weight": 0.0, "tap_weights": TAP_WEIGHTS}
    without = make_net()
    step_with(without, balanced, loss)(cutter(*images(0)), 0)
    net = make_net()
    step_with(net, balanced, {**loss, "psd_weight": 0.1})(cutter(*images(0)), 0)
    probe = make_net()
    terms = ElasticObjective(probe, nn.MSELoss(), psd_weight=0.1)(*images(0))
    terms.distillation.backward()
    for parameter, other, expected in zip(
        net.parameters(), without.parameters(), probe.parameters(), strict=True
    ):
        assert parameter.grad is not None
        assert other.grad is not None
        distillation = torch.zeros_like(parameter) if expected.grad is None else expected.grad
        assert_close(parameter.grad - other.grad, distillation)


def test_an_adapter_of_a_tap_that_is_not_computed_gets_no_gradient() -> None:
    torch.manual_seed(0)
    blocks = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)]
    net = ElasticWrapper(blocks, nn.Conv2d(4, 2, 1), adapters={1: nn.Conv2d(4, 4, 1)}).double()
    others = [*net.head.parameters(), *net.adapters.parameters()]
    tap_gradients = TapGradients(net.blocks.parameters(), others, balanced)
    loss: dict[str, Any] = {"psd_weight": 0.0, "sampled_taps": 0, "by_term": True}
    make_step(net, loss, tap_gradients=tap_gradients)(cutter(*images(0)), 0)
    assert all(parameter.grad is None for parameter in net.adapters.parameters())
    assert all(parameter.grad is not None for parameter in net.head.parameters())


def test_frozen_parameters_get_no_gradient() -> None:
    net = make_net()
    net.blocks[0].requires_grad_(False)
    step_with(net, balanced, {"psd_weight": 0.0})(cutter(*images(0)), 0)
    assert all(parameter.grad is None for parameter in net.blocks[0].parameters())


def test_shared_parameters_of_which_none_is_trained_are_refused() -> None:
    net = make_net()
    net.blocks.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that taps share requires a gradient"):
        TapGradients(net.blocks.parameters(), net.head.parameters(), balanced)


def test_the_gradients_of_parts_are_joined_part_by_part_and_averaged() -> None:
    loss: dict[str, Any] = {"psd_weight": 0.1, "tap_weights": TAP_WEIGHTS}
    x, y = images(0)
    net = make_net()
    step = step_with(net, balanced, loss)
    step.parts = 2
    step(cutter(x, y), 0)

    halves: list[Tensor] = []
    for part in range(2):
        half = make_net()
        step_with(half, balanced, loss)(cutter(*cutter(x, y)(part, 2)), 0)
        halves.append(flat_gradient(half.blocks))
    assert_close(flat_gradient(net.blocks), (halves[0] + halves[1]) / 2)


def test_an_objective_that_sums_the_losses_of_taps_is_refused() -> None:
    net = make_net()
    tap_gradients = TapGradients(net.blocks.parameters(), net.head.parameters(), balanced)
    step = make_step(net, LOSS, tap_gradients=tap_gradients)
    message = r"the loss of each tap: ElasticObjective\(\.\.\., by_term=True\)"
    with pytest.raises(ValueError, match=message):
        step(cutter(*images(0)), 0)


# --- what the objective hands out


def test_the_losses_of_taps_add_up_to_the_terms() -> None:
    net = make_net()
    objective = ElasticObjective(
        net, nn.MSELoss(), psd_weight=0.1, tap_weights=TAP_WEIGHTS, by_term=True
    )
    terms = objective(*images(0))
    assert terms.by_tap is not None
    *shallower, deepest = terms.by_tap.values()
    assert torch.equal(deepest, terms.routine)
    assert_close(sum(shallower), terms.deep_supervision)
    assert ElasticObjective(net, nn.MSELoss(), psd_weight=0.1)(*images(0)).by_tap is None
