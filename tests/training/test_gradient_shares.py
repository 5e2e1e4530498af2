"""The share of a term in a gradient, against separate backward passes; nothing else may change."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from elasticnet import Distillation, ElasticObjective, ElasticWrapper
from elasticnet.distillation_losses import (
    Comparison,
    cosine_distance,
    squared_unit_distance,
    unit_distance,
)
from elasticnet.training.gradient_shares import (
    distillation_share,
    distillation_shares,
    gradient_share,
    weight_for_share,
)
from elasticnet.training.step import TrainingStep
from step_cases import LOSS, cutter, images, make_net, make_step


def naive_norm(net: ElasticWrapper, objective: ElasticObjective, term: str) -> float:
    """The norm of a term's gradient over the blocks, one number at a time."""
    net.zero_grad(set_to_none=True)
    getattr(objective(*images(0), step=0), term).backward()
    squares = 0.0
    for parameter in net.blocks.parameters():
        if parameter.grad is None:
            continue
        for number in parameter.grad.flatten().tolist():
            squares += number**2
    net.zero_grad(set_to_none=True)
    return squares**0.5


def noisy_net() -> ElasticWrapper:
    """A net with all that an additional pass could change: statistics and random numbers."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    for _ in range(3):
        layers = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.ReLU()]
        blocks.append(nn.Sequential(*layers))
    return ElasticWrapper(blocks, nn.Conv2d(4, 2, 1)).double()


def everything(net: nn.Module, step: TrainingStep) -> dict[str, Tensor]:
    """What a training goes on from, with the next random number."""
    values = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    values["steps"] = step.objective.step_counter.steps.clone()  # pyright: ignore[reportFunctionMemberAccess]
    values["random"] = torch.get_rng_state()
    return values


# --- the share of a term


@given(st.floats(1e-3, 10), st.sampled_from([unit_distance, squared_unit_distance]))
def test_a_share_is_that_of_two_separate_backward_passes(
    weight: float, compare: Comparison
) -> None:
    net = make_net()
    distillation = Distillation(of="maps", compare=compare, weight=weight)
    objective = ElasticObjective(net, nn.MSELoss(), psd_weight=0, distillations=[distillation])
    expected = naive_norm(net, objective, "distillation") / naive_norm(net, objective, "total")

    terms = objective(*images(0), step=0)
    share = gradient_share(terms.distillation, terms.total, net.blocks.parameters())

    assert share.item() == pytest.approx(expected, rel=1e-9)


def test_after_a_share_the_backward_pass_gives_the_same_gradients() -> None:
    net = make_net()
    objective = ElasticObjective(net, nn.MSELoss(), **LOSS)
    objective(*images(0)).total.backward()
    expected = [parameter.grad for parameter in net.parameters()]
    net.zero_grad(set_to_none=True)

    terms = objective(*images(0))
    gradient_share(terms.distillation, terms.total, net.blocks.parameters())

    assert all(parameter.grad is None for parameter in net.parameters())
    terms.total.backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient)  # pyright: ignore[reportArgumentType]


def test_frozen_parameters_have_no_share() -> None:
    net = make_net()
    net.blocks[0].requires_grad_(False)
    terms = ElasticObjective(net, nn.MSELoss(), **LOSS)(*images(0))
    all_blocks = gradient_share(terms.distillation, terms.total, net.blocks.parameters())
    later_blocks = gradient_share(terms.distillation, terms.total, net.blocks[1:].parameters())  # pyright: ignore
    assert all_blocks == later_blocks
    frozen = gradient_share(terms.distillation, terms.total, net.blocks[0].parameters())
    assert frozen == 0


def test_a_term_that_is_switched_off_has_the_share_0() -> None:
    net = make_net()
    objective = ElasticObjective(net, nn.MSELoss(), psd_weight=0)
    terms = objective(*images(0))
    assert gradient_share(terms.distillation, terms.total, net.blocks.parameters()) == 0
    assert distillation_share(objective, *images(0), step=0, module=net.blocks) == 0


# --- the share in a training


def test_the_share_of_a_step_is_that_of_its_first_part() -> None:
    net = make_net()
    step = make_step(net, parts=2)
    objective = ElasticObjective(net, nn.MSELoss(), **LOSS)
    x, y = images(0)
    expected = distillation_share(objective, x[:2], y[:2], step=0, module=net.blocks)
    assert step.distillation_share(cutter(x, y), 0, net.blocks) == expected
    assert 0 < expected < 1


@pytest.mark.parametrize("sampled_taps", [None, 1])
def test_a_training_goes_on_to_the_same_bits(sampled_taps: int | None) -> None:
    def train(measures: bool) -> dict[str, Tensor]:
        net = noisy_net()
        loss: dict[str, Any] = {"psd_weight": 0.1, "sampled_taps": sampled_taps}
        step = make_step(net, loss, ema=0.9)
        torch.manual_seed(1)
        for number in range(4):
            batch = cutter(*images(number))
            step(batch, number)
            if measures and number % 2 == 1:
                assert step.distillation_share(batch, number, net.blocks) > 0
        return everything(net, step)

    plain = train(measures=False)
    measured = train(measures=True)
    assert plain.keys() == measured.keys()
    for name, value in plain.items():
        assert torch.equal(measured[name], value), name


def test_a_share_is_measured_without_gradients_being_enabled_around_it() -> None:
    net = make_net()
    objective = ElasticObjective(net, nn.MSELoss(), **LOSS)
    with torch.no_grad():
        share = distillation_share(objective, *images(0), step=0, module=net.blocks)
    assert share > 0


def test_a_module_that_is_not_the_objective_s_is_refused() -> None:
    net = make_net()
    objective = ElasticObjective(net, nn.MSELoss(), **LOSS)
    other = copy.deepcopy(net)
    message = r"0\.first\.weight is not a parameter of the objective: pass a part of its net"
    with pytest.raises(ValueError, match=message):
        distillation_share(objective, *images(0), step=0, module=other.blocks)


# --- the share of each distillation


def two_distillations(weight: float = 0.3) -> list[Distillation]:
    return [
        Distillation(of="features", compare=cosine_distance, teacher="deepest", weight=weight),
        Distillation(of="predictions", compare=nn.MSELoss(), teacher="deepest", weight=0.7),
    ]


def test_each_distillation_has_the_share_that_it_has_alone() -> None:
    net = make_net()
    loss: dict[str, Any] = {**LOSS, "distillations": two_distillations()}
    objective = ElasticObjective(net, nn.MSELoss(), **loss)
    total = naive_norm(net, objective, "total")

    shares = distillation_shares(objective, *images(0), step=0, module=net.blocks)

    alone: dict[str, dict[str, Any]] = {
        "psd_weight": {"psd_weight": LOSS["psd_weight"]},
        "distillations[0].weight": {"psd_weight": 0, "distillations": two_distillations()[:1]},
        "distillations[1].weight": {"psd_weight": 0, "distillations": two_distillations()[1:]},
    }
    assert list(shares) == list(alone)
    for name, options in alone.items():
        of_one = ElasticObjective(net, nn.MSELoss(), **{**LOSS, "distillations": [], **options})
        expected = naive_norm(net, of_one, "distillation") / total
        assert shares[name] == pytest.approx(expected, rel=1e-9)


def test_distillations_that_are_switched_off_have_no_share() -> None:
    net = make_net()
    objective = ElasticObjective(
        net, nn.MSELoss(), psd_weight=0, distillations=two_distillations(weight=0.0)
    )
    shares = distillation_shares(objective, *images(0), step=0, module=net.blocks)
    assert list(shares) == ["distillations[1].weight"]


def test_the_terms_by_distillation_add_up() -> None:
    net = make_net()
    loss: dict[str, Any] = {**LOSS, "distillations": two_distillations()}
    terms = ElasticObjective(net, nn.MSELoss(), **loss, by_term=True)(*images(0))
    assert terms.by_distillation is not None
    together = sum(terms.by_distillation.values())
    torch.testing.assert_close(together, terms.distillation)
    plain = ElasticObjective(net, nn.MSELoss(), **loss)(*images(0))
    assert plain.by_distillation is None
    assert torch.equal(plain.total, terms.total)


# --- the weight for a share


@given(st.floats(1e-3, 0.9), st.sampled_from([0.0, 0.1]), st.sampled_from([None, 0, 1]))
def test_the_measured_weight_has_the_share(
    share: float, psd_weight: float, distillation: int | None
) -> None:
    net = make_net()
    learned = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    first, second = two_distillations()
    distillations = [first, dataclasses.replace(second, weight=learned)]
    objective = ElasticObjective(net, nn.MSELoss(), psd_weight, distillations=distillations)
    batch = images(0)

    weight = weight_for_share(
        objective, [batch], net.blocks, share, distillation=distillation, step=0
    )

    name = "psd_weight"
    if distillation is None:
        psd_weight = weight
    else:
        name = f"distillations[{distillation}].weight"
        distillations[distillation] = dataclasses.replace(
            distillations[distillation], weight=weight
        )
    weighted = ElasticObjective(net, nn.MSELoss(), psd_weight, distillations=distillations)
    shares = distillation_shares(weighted, *batch, step=0, module=net.blocks)
    assert shares[name] == pytest.approx(share, rel=1e-9)
    assert learned.grad is None


def test_of_several_batches_it_is_the_median() -> None:
    net = make_net()
    objective = ElasticObjective(net, nn.MSELoss(), psd_weight=0)
    batches = [images(number) for number in range(3)]
    apart = [weight_for_share(objective, [each], net.blocks, share=0.05) for each in batches]
    together = weight_for_share(objective, batches, net.blocks, share=0.05)
    assert together == sorted(apart)[1]
    assert len(set(apart)) == 3


def test_measuring_a_weight_changes_nothing() -> None:
    net = noisy_net()
    objective = ElasticObjective(net, nn.MSELoss(), psd_weight=0.1, sampled_taps=1)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    weight_for_share(objective, [images(0)], net.blocks)
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.psd_weight == 0.1
    assert not objective.by_term
    for name, value in objective.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_gives_no_weight_is_named() -> None:
    net = make_net()
    objective = ElasticObjective(net, nn.MSELoss(), psd_weight=0.1)
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=f"share {share}: expected a number above 0"):
            weight_for_share(objective, [images(0)], net.blocks, share)
    with pytest.raises(ValueError, match="no batches given, expected at least one"):
        weight_for_share(objective, [], net.blocks)
    with pytest.raises(ValueError, match="psd_weight: the term has no gradient in this module"):
        weight_for_share(objective, [images(0)], net.head)
