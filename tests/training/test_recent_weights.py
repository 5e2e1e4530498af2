"""The mean of recent weights, against a loop over the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from elasticnet.training.recent_weights import RecentWeights


def net_with(value: float) -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    for parameter in net.parameters():
        nn.init.constant_(parameter, value)
    net[1].get_buffer("running_mean").fill_(10 * value)
    net[1].get_buffer("num_batches_tracked").fill_(int(value))
    return net


@given(st.integers(1, 4), st.lists(st.floats(-5, 5), min_size=1, max_size=7))
def test_the_mean_is_that_of_the_last_networks(max_count: int, values: list[float]) -> None:
    recent = RecentWeights(max_count)
    for value in values:
        recent.add(net_with(value))
    mean = recent.mean_net(net_with(0.0))

    last = values[-max_count:]
    expected = sum(last) / len(last)
    for parameter in mean.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))
    torch.testing.assert_close(
        mean.get_buffer("1.running_mean"), torch.tensor([10 * expected], dtype=torch.float32)
    )
    assert mean.get_buffer("1.num_batches_tracked") == int(values[-1])


def test_weights_are_kept_as_they_were() -> None:
    net = net_with(1.0)
    recent = RecentWeights(2)
    recent.add(net)
    nn.init.constant_(net.get_parameter("0.weight"), 3.0)
    recent.add(net)
    mean = recent.mean_net(net)
    assert mean.get_parameter("0.weight").tolist() == [[2.0, 2.0]]
    assert net.get_parameter("0.weight").tolist() == [[3.0, 3.0]]


def test_a_resumed_training_goes_on_from_the_kept_weights() -> None:
    recent = RecentWeights(2)
    for value in (1.0, 2.0, 4.0):
        recent.add(net_with(value))
    resumed = RecentWeights(3)
    resumed.load(recent.states)
    resumed.add(net_with(6.0))
    weight: Tensor = resumed.mean_net(net_with(0.0)).get_parameter("0.weight")
    assert weight.tolist() == [[4.0, 4.0]]


def test_without_kept_weights_the_network_is_returned() -> None:
    net = net_with(1.0)
    nothing = RecentWeights(0)
    nothing.add(net)
    assert nothing.states == []
    assert nothing.mean_net(net) is net


def test_a_negative_max_count_is_named() -> None:
    with pytest.raises(ValueError, match="max_count -1: expected a whole number, at least 0"):
        RecentWeights(-1)
