"""Files as other runtimes want them: one size, float16, older operators, the same bytes again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from elasticnet import ElasticWrapper
from elasticnet.export import ExportError, export, runner
from elasticnet.sr import asrn, edsr, rcan

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

# torch 2.6 leaves operators in a file that 2.15 folds; the versions between were not tried.
FOLDS_OPERATORS = tuple(int(number) for number in torch.__version__.split(".")[:2]) >= (2, 15)
# what every runtime has that was tried; see docs/guides/what_runs_where.md
PORTABLE = {"Add", "Concat", "Conv", "DepthToSpace", "Div", "Mul", "Relu", "Split"}
NETS = {
    "asrn x2": lambda: asrn(2, num_blocks=1, channels=16, skip="bicubic"),
    "asrn x3 subpixel": lambda: asrn(
        3, num_blocks=1, channels=16, skip="bicubic", upsampler="subpixel"
    ),
    "edsr x4": lambda: edsr(4, num_blocks=1, channels=8),
    "rcan x2": lambda: rcan(2, num_blocks=1, group_size=1, channels=8, reduction=2),
}


@pytest.fixture(scope="module")
def net() -> ElasticWrapper:
    torch.manual_seed(0)
    return asrn(2, num_blocks=1, channels=16, skip="bicubic").eval()


def image(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.skipif(not FOLDS_OPERATORS, reason="needs the exporter of torch 2.15")
@pytest.mark.parametrize("name", NETS)
def test_files_of_open_size_hold_portable_operators_alone(name, tmp_path):
    result = export(NETS[name](), tmp_path / "net.onnx")
    assert result.axes == {0: "batch", 2: "height", 3: "width"}
    attention = {"GlobalAveragePool", "ReduceMean", "Sigmoid"} if name.startswith("rcan") else set()
    assert operators(result.path) <= PORTABLE | attention


def test_a_file_of_one_size_takes_this_size_alone(net, tmp_path):
    result = export(net, tmp_path / "net.onnx", size=(7, 12))
    assert (result.inputs, result.axes) == ({"input": (1, 3, 7, 12)}, {})
    run = runner(result.path)
    x = image(7, 12)
    with torch.no_grad():
        assert (run(x) - net(x)).abs().max() < 5e-6
    with pytest.raises(Exception, match="Got: 8 Expected: 7"):
        run(image(8, 12))


def test_a_program_of_one_size(net, tmp_path):
    result = export(net, tmp_path / "net.pt2", size=(7, 12))
    assert result.inputs == {"input": (1, 3, 7, 12)}


@pytest.mark.parametrize("size", [(7,), (0, 5), (7, 5.0), (7, 5, 3)])
def test_a_size_is_two_whole_numbers(net, size, tmp_path):
    with pytest.raises(ValueError, match=r"size \(.*\): expected height and width"):
        export(net, tmp_path / "net.onnx", size=size)


def test_a_size_is_that_of_an_image(tmp_path):
    net = ElasticWrapper([nn.Linear(4, 4)], nn.Identity(), layout="b c")
    with pytest.raises(ValueError, match=r"size \(7, 9\): the example has shape \(2, 4\)"):
        export(net, tmp_path / "net.onnx", example=torch.rand(2, 4), size=(7, 9))


def test_a_file_in_float16_is_half_as_large_and_takes_and_gives_float32(net, tmp_path):
    large = export(net, tmp_path / "large.onnx")
    small = export(net, tmp_path / "small.onnx", dtype="float16")
    assert small.size < 0.65 * large.size
    assert 1e-6 < small.difference < 2 / 255
    model = onnx.load(small.path)
    onnx.checker.check_model(model, full_check=True)
    float32 = onnx.TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == float32
    assert {tensor.data_type for tensor in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    x = image(9, 4)
    with torch.no_grad():
        assert (runner(small.path)(x) - net(x)).abs().max() < 2 / 255
    described = {each.key: json.loads(each.value) for each in model.metadata_props}
    assert (described["weights"], described["scale"], described["depth"]) == ("float16", 2, 1)


def net_with_weights(factor: float) -> ElasticWrapper:
    """A linear net of one block; ONNX Runtime on a CPU rounds its weights and nothing else."""
    torch.manual_seed(0)
    block = nn.Linear(5, 5)
    with torch.no_grad():
        block.weight *= factor
    return ElasticWrapper([block], nn.Identity(), layout="b c")


def test_float16_files_are_allowed_two_steps_of_255_over_the_range_of_the_outputs(tmp_path):
    x = torch.rand(3, 5)
    net = net_with_weights(1e4)
    result = export(net, tmp_path / "net.onnx", example=x, dtype="float16")
    assert 2 / 255 < result.difference < 100
    with pytest.raises(ExportError, match=r"differs from the net by up to \d.* 0\.001 is allowed"):
        export(net, tmp_path / "b.onnx", example=x, dtype="float16", tolerance=1e-3)


def test_an_overflow_of_float16_is_refused(tmp_path):
    net = net_with_weights(1e6)
    with pytest.raises(ExportError, match=r"differs from the net by up to (inf|nan)"):
        export(net, tmp_path / "net.onnx", example=torch.ones(1, 5), dtype="float16")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("net.onnx", {"dtype": "float64"}, "dtype 'float64': expected one of float32, float16"),
        ("net.pt2", {"dtype": "float16"}, "dtype 'float16' with format 'torch'"),
        ("net.onnx", {"dtype": "float16", "int8": True}, "dtype 'float16' with int8=True"),
        ("net.pt2", {"opset": 18}, "opset 18 with format 'torch'"),
        ("net.onnx", {"opset": 11}, "opset 11: PyTorch's exporter writes 18 and newer"),
        ("net.onnx", {"size": (7, 9), "axes": {}}, "size with axes"),
        ("net.safetensors", {"size": (7, 9)}, "size with format 'safetensors'"),
    ],
)
def test_options_that_have_no_meaning_together(net, name, options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        export(net, tmp_path / name, **options)
    assert not (tmp_path / name).exists()


def test_an_older_opset_is_what_is_written(net, tmp_path):
    result = export(net, tmp_path / "net.onnx", opset=18)
    versions = {each.domain: each.version for each in onnx.load(result.path).opset_import}
    assert versions[""] == 18


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path):
    script = """
import sys
import torch
from elasticnet.export import export
from elasticnet.sr import asrn
torch.manual_seed(0)
net = asrn(2, num_blocks=1, channels=16, skip="bicubic")
export(net, sys.argv[1])
"""
    sums = []
    for seed in ("1", "2"):
        path = tmp_path / f"net{seed}.onnx"
        command = [sys.executable, "-c", script, str(path)]
        # Python's hashes of strings, and so the order of its sets, differ between the two
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, check=True, env=environment, timeout=200, capture_output=True)
        sums.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert sums[0] == sums[1]
