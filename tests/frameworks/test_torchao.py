"""torchao: a quantised net runs and is cut at every depth; save says what no file can hold."""

from __future__ import annotations

from pathlib import Path

import pytest

import elasticnet
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


def test_what_save_cannot_write_is_named(tmp_path: Path) -> None:
    net = make_net()
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    message = r"tensor 'stem\.weight' is a\w* \w+, which no file can hold.*before it is quantised"
    with pytest.raises(ValueError, match=message):
        elasticnet.save(net, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []
