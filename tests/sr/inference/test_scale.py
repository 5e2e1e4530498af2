"""By how much a network enlarges: recorded by its architecture, or measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elasticnet import ElasticWrapper, registry
from elasticnet.registry import Architecture
from elasticnet.sr import asrn, edsr, rcan
from elasticnet.sr.inference.receptive_field import footprint
from elasticnet.sr.inference.scale import scale_of


class Refusing(nn.Module):
    """Fails when it runs."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the network ran")


def factor_net(factor: int, num_blocks: int = 2) -> ElasticWrapper:
    """A network whose architecture calls its scale `factor`."""
    return ElasticWrapper([nn.Identity()] * num_blocks, nn.Upsample(scale_factor=factor))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Architecture]:
    """An empty place for architectures, gone after the test."""
    architectures: dict[str, Architecture] = {}
    monkeypatch.setattr(registry, "_registered", architectures)
    return architectures


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_built_in_networks(scale: int) -> None:
    for net in (asrn(scale, 2, 8), edsr(scale, 1, 8), rcan(scale, 1, 8, group_size=1, reduction=4)):
        assert scale_of(net) == scale
        assert scale_of(net.truncate(1)) == scale


def test_a_recorded_scale_needs_no_pass(registered: dict[str, Architecture]) -> None:
    registered["factors"] = Architecture(factor_net, extras={"scale_argument": "factor"})
    net = registry.build("factors", factor=3)
    net.head = Refusing()
    assert scale_of(net) == 3


@pytest.mark.parametrize("extras", [{}, {"scale_argument": "absent"}])
def test_an_architecture_that_records_no_scale_is_measured(
    registered: dict[str, Architecture], extras: dict[str, Any]
) -> None:
    registered["factors"] = Architecture(factor_net, extras=extras)
    assert scale_of(registry.build("factors", factor=3)) == 3


def test_a_wrong_record_is_an_error_where_the_network_is_measured(
    registered: dict[str, Architecture],
) -> None:
    registered["factors"] = Architecture(factor_net, extras={"scale_argument": "num_blocks"})
    net = registry.build("factors", factor=4)
    with pytest.raises(
        ValueError, match=r"makes \(1, 3, 192, 192\) of .* expected an image 2 times"
    ):
        footprint(net)


def test_any_module_that_maps_images_to_images() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 27, 3, padding=1), nn.PixelShuffle(3))
    assert scale_of(module.double()) == 3
    assert module.training
    assert scale_of(nn.Identity()) == 1


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.AvgPool2d((1, 2)), r"makes \(1, 3, 16, 8\) of \(1, 3, 16, 16\)"),
        (nn.AvgPool2d(32, ceil_mode=True), r"makes \(1, 3, 1, 1\) of"),
        (nn.Conv2d(3, 4, 1), r"makes \(1, 4, 16, 16\) of"),
        (nn.Linear(4, 4), r"takes no image of shape \(1, 3, 16, 16\) \(.*4x4.*: expected one"),
        (nn.Flatten(), r"makes \(1, 768\) of"),
        (nn.LSTM(16, 4), "makes a tuple of an image: expected a tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_makes_no_larger_image_is_refused(module: nn.Module, message: str) -> None:
    if isinstance(module, nn.LSTM):
        module.register_forward_pre_hook(lambda _, inputs: (inputs[0][0],))
    with pytest.raises(ValueError, match=message), torch.no_grad():
        scale_of(module)
