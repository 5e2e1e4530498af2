"""Somebody who passes another thing than an elastic network reads what to pass instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import elasticnet
from elasticnet import ElasticObjective
from elasticnet.recalibration import recalibrate
from elasticnet.retrofit import split, to_model
from tiny_nets import conv_net


def save(net: Any) -> None:
    elasticnet.save(net, Path("never_written.safetensors"))


def make_objective(net: Any) -> None:
    ElasticObjective(net, nn.L1Loss(), psd_weight=0.0)


def recalibrated(net: Any) -> None:
    recalibrate(net, [])


def ordinary_model(net: Any) -> None:
    to_model(net, depth=1)


DOORS = pytest.mark.parametrize("door", [save, make_objective, recalibrated, ordinary_model])
Door = Callable[[Any], None]


@DOORS
def test_a_model_is_to_be_wrapped_or_split(door: Door) -> None:
    wanted = r"net is a Linear: expected an ElasticWrapper, such as .*split\(model, \.\.\.\)\.wrap"
    with pytest.raises((TypeError, ValueError), match=wanted):
        door(nn.Linear(2, 2))


@DOORS
def test_the_parts_of_a_model_are_to_be_wrapped(door: Door) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    parts = split(model, "1", torch.rand(2, 3, 2), layout="b n c")
    wanted = r"net is a Split: expected an ElasticWrapper: make one of these parts by \.wrap\(\)"
    with pytest.raises((TypeError, ValueError), match=wanted):
        door(parts)


@DOORS
def test_the_net_of_an_objective_is_to_be_passed(door: Door) -> None:
    objective = ElasticObjective(conv_net(2), nn.L1Loss(), psd_weight=0.0)
    wanted = (
        "net is a ElasticObjective: expected an ElasticWrapper, which stands in its attribute net"
    )
    with pytest.raises((TypeError, ValueError), match=wanted):
        door(objective)


@DOORS
def test_a_name_is_no_net(door: Door) -> None:
    with pytest.raises((TypeError, ValueError), match="net is a str: expected an ElasticWrapper"):
        door("resnet18")
