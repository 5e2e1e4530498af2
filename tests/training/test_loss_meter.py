"""LossMeter: means over steps and processes, and the first step that is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from elasticnet import ElasticObjective, LossTerms
from elasticnet.training.loss_meter import LossMeter
from tiny_nets import conv_net

X = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(2))


def test_loss_meter_averages_each_depth_over_the_steps_that_computed_it() -> None:
    objective = ElasticObjective(conv_net(3), nn.L1Loss(), 0.1, sampled_taps=1)
    meter, steps = LossMeter(), [objective(X, Y, step=step) for step in range(6)]
    for terms in steps:
        meter.add(terms)
    assert len(meter) == 6
    assert meter.first_not_finite() is None
    means = meter.means()
    assert means["total"] == pytest.approx(sum(terms.total.item() for terms in steps) / 6)
    for depth in (1, 2, 3):
        losses = [float(terms.per_depth[depth]) for terms in steps if depth in terms.per_depth]
        assert means["per_depth"][depth] == pytest.approx(sum(losses) / len(losses))
    assert len(meter) == 0
    assert meter.first_not_finite() is None


def test_loss_meter_finds_the_first_step_that_is_not_finite() -> None:
    meter, good = LossMeter(), ElasticObjective(conv_net(2), nn.L1Loss(), 0.1)(X, Y)
    for terms in (
        good,
        good,
        good._replace(total=good.total * math.inf),
        good._replace(total=good.total * math.nan),
    ):
        meter.add(terms)
    assert meter.first_not_finite() == 2


def test_loss_meter_copies_what_a_later_step_overwrites() -> None:
    meter, shared = LossMeter(), torch.zeros(5)
    for value in (1.0, 2.0):
        shared.fill_(value)
        meter.add(LossTerms(*shared[:4].unbind(), {3: shared[4]}))  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert meter.means() == {**dict.fromkeys(LossTerms._fields[:4], 1.5), "per_depth": {3: 1.5}}
    with pytest.raises(ValueError, match="no step was added since the last call"):
        meter.means()


def test_loss_meter_hands_all_steps_at_once_to_the_average_of_several_processes() -> None:
    seen = []
    meter = LossMeter(lambda values: seen.append(len(values)) or values + math.inf)
    for depths in ({1: X.mean(), 2: X.mean()}, {2: X.mean()}):
        meter.add(LossTerms(*X[0, 0, 0, :4].unbind(), depths))  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert meter.first_not_finite() == 0
    assert seen == [6 + 5]


def test_rows_of_several_steps_count_as_their_steps() -> None:
    objective = ElasticObjective(conv_net(3), nn.L1Loss(), 0.1)
    one_by_one = LossMeter()
    together = LossMeter()
    rows: list[torch.Tensor] = []
    for factor in (1.0, 2.0, math.nan):
        terms = objective(factor * X, Y)
        one_by_one.add(terms)
        values = [terms.total, terms.routine, terms.deep_supervision, terms.distillation]
        rows.append(torch.stack([*values, *terms.per_depth.values()]))
    together.add_rows((1, 2, 3), torch.stack(rows[:2]))
    together.add_rows((1, 2, 3), torch.stack(rows[2:]))
    assert len(together) == 3
    assert together.first_not_finite() == 2
    assert str(together.means()) == str(one_by_one.means())  # as text, since NaN is not itself
