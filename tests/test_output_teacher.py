"""The output distillation with a teacher of its own, by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elasticnet import ElasticObjective
from tiny_nets import MASK, TOKENS, conv_net, rotary_net

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
TARGET = torch.zeros(2, 2, 5, 5)
WEIGHTS = {1: 0.25, 2: 0.25, 3: 0.5}


def objective_with(output_teacher: Any, output_weight: float = 0.1) -> ElasticObjective:
    torch.manual_seed(0)
    return ElasticObjective(
        conv_net(3, 4),
        nn.MSELoss(),
        psd_weight=0,
        tap_weights=WEIGHTS,
        output_weight=output_weight,
        output_teacher=output_teacher,
    )


def test_shallower_predictions_are_compared_with_what_the_teacher_returns() -> None:
    taught = torch.randn(2, 2, 5, 5)
    objective = objective_with(lambda x: taught)
    first, second, _ = objective.net(X, taps=(1, 2, 3)).predictions
    expected = 0.1 * 0.25 * (first - taught).abs().mean()
    expected = expected + 0.1 * 0.25 * (second - taught).abs().mean()
    torch.testing.assert_close(objective(X, TARGET).distillation, expected)


def test_a_teacher_gets_the_keyword_arguments_of_the_net() -> None:
    got: list[dict[str, Any]] = []
    objective = ElasticObjective(rotary_net(), mean_logit, psd_weight=0, output_weight=0.1)

    def teacher(x: Tensor, **keywords: Any) -> Tensor:
        got.append(keywords)
        return objective.net(x, **keywords)

    objective.output_teacher = teacher
    objective(TOKENS, None, mask=MASK)
    (keywords,) = got
    assert keywords.keys() == {"mask"}
    assert torch.equal(keywords["mask"], MASK)


def mean_logit(prediction: Tensor, target: None) -> Tensor:
    return prediction.mean()


def test_a_teacher_that_is_the_deepest_prediction_changes_nothing() -> None:
    plain = objective_with(None)
    objective = objective_with(None)
    objective.output_teacher = lambda x: objective.net(x)
    torch.testing.assert_close(objective(X, TARGET).total, plain(X, TARGET).total)


def test_no_gradient_reaches_the_net_through_the_teacher() -> None:
    graphs: list[bool] = []
    objective = objective_with(None)

    def teacher(x: Tensor) -> Tensor:
        taught = objective.net(x)
        graphs.append(taught.requires_grad)
        return taught

    objective.output_teacher = teacher
    objective(X, TARGET).distillation.backward()
    assert graphs == [False]
    deepest_block = objective.net.get_submodule("blocks.2")
    assert all(parameter.grad is None for parameter in deepest_block.parameters())


def test_a_teacher_is_not_asked_where_its_weight_is_0() -> None:
    asked: list[Tensor] = []
    objective_with(asked.append, output_weight=0.0)(X, TARGET)
    assert asked == []
