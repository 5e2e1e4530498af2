"""torchao: a quantised net runs and is cut at every depth; save says what no file can hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import elasticnet
from elasticnet import ElasticWrapper
from plain_loop import assert_equal, batches, make_net

quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
pytestmark = pytest.mark.slow


def test_a_quantised_net_runs_and_is_cut_at_every_depth() -> None:
    net = make_net().eval()
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    x, _ = batches()[0]
    taps = net(x, taps=net.taps)
    for depth, prediction in zip(taps.depths, taps.predictions, strict=True):
        assert_equal({"y": net(x, depth=depth)}, {"y": prediction})
        assert_equal({"y": net.truncate(depth)(x)}, {"y": prediction})


CONFIGS = [
    "Float8WeightOnlyConfig",
    "Int8DynamicActivationInt8WeightConfig",
    "Int8WeightOnlyConfig",
    "IntxWeightOnlyConfig",
]


def quantised(config: str) -> ElasticWrapper:
    net = make_net().eval()
    quantization.quantize_(net, getattr(quantization, config)())
    return net


@pytest.mark.parametrize("config", CONFIGS)
def test_the_state_of_a_quantised_net_fits_another_one(config: str) -> None:
    net = quantised(config)
    other = quantised(config)
    with torch.no_grad():
        other.get_parameter("head.bias").add_(1)
    x, _ = batches()[0]

    small = other.truncate(1)

    other.load_state_dict(net.state_dict())
    small.load_state_dict(net.truncate(1).state_dict())

    assert_equal({"y": other(x)}, {"y": net(x)})
    assert_equal({"y": small(x)}, {"y": net(x, depth=1)})


@pytest.mark.parametrize("config", CONFIGS)
def test_a_quantised_net_is_not_filled_from_a_file(config: str, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    elasticnet.save(make_net(), path)
    net = quantised(config)
    x, _ = batches()[0]
    before = net(x)

    message = (
        r"'stem\.weight' of this net is a\w* \w+, which no file can fill: load into the net be"
    )
    with pytest.raises(ValueError, match=message):
        elasticnet.load_into(net, path)
    with pytest.raises(ValueError, match=message):
        elasticnet.load(path, build=lambda: net)
    assert_equal({"y": net(x)}, {"y": before})


def test_what_save_cannot_write_is_named(tmp_path: Path) -> None:
    net = make_net()
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    message = r"tensor 'stem\.weight' is a\w* \w+, which no file can hold.*before it is quantised"
    with pytest.raises(ValueError, match=message):
        elasticnet.save(net, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []
