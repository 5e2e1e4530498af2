"""Moving averages of the weights, of timm and of torch, around the net and around the objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.utils.model_ema import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import elasticnet
from elasticnet import ElasticWrapper
from plain_loop import (
    assert_equal,
    batches,
    make_net,
    make_objective,
    make_optimizer,
)

DECAY = 0.9
Average = Callable[[nn.Module], Any]
AVERAGES: dict[str, Average] = {
    "ModelEmaV2": lambda model: ModelEmaV2(model, decay=DECAY),
    "ModelEmaV3": lambda model: ModelEmaV3(model, decay=DECAY),
    "AveragedModel": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY)),
}


def update(average: Any, model: nn.Module) -> None:
    if isinstance(average, AveragedModel):
        average.update_parameters(model)
    else:
        average.update(model)


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("what", ["the net", "the objective"])
def test_an_average_is_that_of_the_weights_written_out(name: str, what: str) -> None:
    net = make_net(torch.float64)
    objective = make_objective(net)
    averaged: nn.Module = net if what == "the net" else objective
    average = AVERAGES[name](averaged)
    optimizer = make_optimizer(net.parameters())
    expected = {key: value.detach().clone() for key, value in net.named_parameters()}
    is_first = True
    for x, target in batches(torch.float64):
        optimizer.zero_grad()
        objective(x, target).total.backward()
        optimizer.step()
        update(average, averaged)
        for key, value in net.named_parameters():
            if is_first and name == "AveragedModel":  # it begins with a copy
                expected[key] = value.detach().clone()
            else:
                expected[key] = DECAY * expected[key] + (1 - DECAY) * value.detach()
        is_first = False

    inside = average.module if what == "the net" else average.module.net
    assert isinstance(inside, ElasticWrapper)
    torch.testing.assert_close(dict(inside.named_parameters()), expected)


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_runs_at_every_depth_and_is_saved(name: str, tmp_path: Any) -> None:
    net = make_net()
    average = AVERAGES[name](net)
    update(average, net)
    x, _ = batches()[0]
    assert_equal({"y": average.module.truncate(2)(x)}, {"y": average(x, depth=2)})
    elasticnet.save(average, tmp_path / "average.safetensors")
    loaded = elasticnet.load(tmp_path / "average.safetensors", depth=2, build=make_net)
    assert_equal({"y": loaded(x)}, {"y": average(x, depth=2)})
