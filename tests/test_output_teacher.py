"""The distillation of predictions with a teacher of its own, by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.distillation import Teacher
from tiny_nets import MASK, TOKENS, conv_net, of_outputs, rotary_net

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
TARGET = torch.zeros(2, 2, 5, 5)
WEIGHTS = {1: 0.25, 2: 0.25, 3: 0.5}


def objective_with(
    teacher: Teacher, weight: float = 0.1, net: ElasticWrapper | None = None
) -> ElasticObjective:
    if net is None:
        net = seeded_net()
    return ElasticObjective(
        net,
        nn.MSELoss(),
        psd_weight=0,
        tap_weights=WEIGHTS,
        distillations=[of_outputs(weight, teacher=teacher)],
    )


def seeded_net() -> ElasticWrapper:
    torch.manual_seed(0)
    return conv_net(3, 4)


def test_shallower_predictions_are_compared_with_what_the_teacher_returns() -> None:
    taught = torch.randn(2, 2, 5, 5)
    objective = objective_with(lambda x: taught)
    first, second, _ = objective.net(X, taps=(1, 2, 3)).predictions
    expected = 0.1 * 0.25 * (first - taught).abs().mean()
    expected = expected + 0.1 * 0.25 * (second - taught).abs().mean()
    torch.testing.assert_close(objective(X, TARGET).distillation, expected)


def test_a_teacher_gets_the_keyword_arguments_of_the_net() -> None:
    got: list[dict[str, Any]] = []
    net = rotary_net()

    def teacher(x: Tensor, **keywords: Any) -> Tensor:
        got.append(keywords)
        return net(x, **keywords)

    distillations = [of_outputs(0.1, teacher=teacher)]
    objective = ElasticObjective(net, mean_logit, psd_weight=0, distillations=distillations)
    objective(TOKENS, None, mask=MASK)
    (keywords,) = got
    assert keywords.keys() == {"mask"}
    assert torch.equal(keywords["mask"], MASK)


def mean_logit(prediction: Tensor, target: None) -> Tensor:
    return prediction.mean()


def test_a_teacher_that_is_the_deepest_prediction_changes_nothing() -> None:
    plain = objective_with("deepest")
    net = seeded_net()
    objective = objective_with(teacher=lambda x: net(x), net=net)
    torch.testing.assert_close(objective(X, TARGET).total, plain(X, TARGET).total)


def test_no_gradient_reaches_the_net_through_the_teacher() -> None:
    graphs: list[bool] = []
    net = seeded_net()

    def teacher(x: Tensor) -> Tensor:
        taught = net(x)
        graphs.append(taught.requires_grad)
        return taught

    objective = objective_with(teacher, net=net)
    objective(X, TARGET).distillation.backward()
    assert graphs == [False]
    deepest_block = objective.net.get_submodule("blocks.2")
    assert all(parameter.grad is None for parameter in deepest_block.parameters())


def test_a_teacher_is_not_asked_where_its_weight_is_0() -> None:
    asked: list[Tensor] = []
    objective_with(asked.append, weight=0.0)(X, TARGET)
    assert asked == []
