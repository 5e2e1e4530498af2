"""The one other runtime in `make test`: a file of open size, up to the border, in OpenVINO."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from elasticnet import ElasticWrapper
from elasticnet.export import export
from elasticnet.sr import asrn

pytest.importorskip("onnxscript")
openvino: Any = pytest.importorskip("openvino", reason="the extra openvino is not installed")


@pytest.fixture(scope="module")
def net() -> ElasticWrapper:
    return asrn(4, pretrained=True).eval()


@pytest.fixture(scope="module")
def compiled(net, tmp_path_factory) -> Any:
    path = tmp_path_factory.mktemp("openvino") / "net.onnx"
    export(net, path, depth=1)
    return openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.mark.parametrize("size", [(3, 7), (24, 33)])
def test_openvino_computes_what_pytorch_does_up_to_the_border(net, compiled, size):
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(x, depth=1)
    output = torch.from_numpy(compiled(x.numpy())[0])
    assert (output - expected).abs().max() < 1e-5
