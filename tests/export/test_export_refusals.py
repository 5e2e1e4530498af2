from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from elasticnet import ElasticWrapper, registry
from elasticnet.export import (
    ExportError,
    export,
    require,
    resolve_format,
    runner,
)
from elasticnet.export.tracing import trace
from elasticnet.registry import Architecture
from elasticnet.sr import asrn
from elasticnet.wrapper import Origin, evaluating


@pytest.fixture(scope="module")
def net() -> ElasticWrapper:
    return asrn(2, num_blocks=2, channels=16)


# --- nets that nothing is known about


class Branch(nn.Module):
    """A head that does one thing for small images and another for large ones."""

    def forward(self, x):
        return x * 2 if x.shape[-1] > 30 else x + 1


class Untraceable(nn.Module):
    def forward(self, x):
        return x * float(x.sum())


def test_a_net_of_one_size_is_exported_at_this_size(tmp_path):
    import timm

    from elasticnet.retrofit.timm import split

    options: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 5,
    }
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    x = torch.randn(2, 3, 32, 32)
    net = split(model, x).wrap()
    result = export(net, tmp_path / "vit.pt2", depth=1, example=x)
    assert result.axes == {0: "batch"}
    assert "height and width fixed: the net does not take shape (2, 3, 64, 96)" in str(result.note)
    assert {shape[1:] for shape in result.shapes} == {(3, 32, 32)}
    run = runner(result.path)
    for batch in (1, 5):
        y = torch.randn(batch, 3, 32, 32)
        with evaluating(net), torch.no_grad():
            assert (run(y) - net(y, depth=1)).abs().max() < 1e-5
    with pytest.raises(
        ValueError, match=r"axes \{2: 'height'\}: height fixed: the net does not take shape"
    ):
        export(net, tmp_path / "open.pt2", example=x, axes={2: "height"})


def test_code_that_branches_on_the_size_is_found_by_the_check(tmp_path):
    net = ElasticWrapper([nn.Conv2d(3, 3, 1)], Branch())
    with pytest.raises(
        ExportError, match=r"axis 3 \(width\): the net's code has a limit or a branch at 30; write"
    ):
        export(net, tmp_path / "net.pt2", example=torch.rand(1, 3, 10, 18))
    assert list(tmp_path.iterdir()) == []
    result = export(net, tmp_path / "net.pt2", example=torch.rand(1, 3, 10, 18), axes={0: "batch"})
    assert result.axes == {0: "batch"}


class SpecialSize(nn.Module):
    """Resizes its weight, except for the size that it has, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, 3, 8, 8))

    def forward(self, x):
        if x.shape[-1] == 8 and x.shape[-2] == 8:
            return x + self.weight
        return x + nn.functional.interpolate(self.weight, size=x.shape[-2:], mode="bilinear")


resizes_in_onnx = pytest.mark.skipif(
    not callable(torch.export.Dim.AUTO), reason="torch 2.6 writes another resizing to ONNX"
)


@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=resizes_in_onnx)])
def test_a_special_case_for_the_examples_size_is_no_hindrance(suffix, tmp_path):
    net = ElasticWrapper([nn.Conv2d(3, 3, 1)], nn.Identity(), SpecialSize()).eval()

    result = export(net, tmp_path / f"net{suffix}", example=torch.rand(1, 3, 8, 8))

    assert result.axes == {0: "batch", 2: "height", 3: "width"}
    assert result.shapes[0] == (1, 3, 8, 8)
    run = runner(result.path)
    for shape in ((1, 3, 8, 8), (2, 3, 8, 9), (1, 3, 20, 5)):
        x = torch.rand(shape)
        with torch.no_grad():
            assert (run(x) - net(x)).abs().max() < 1e-5


def test_a_net_that_cannot_be_traced_is_refused(tmp_path):
    net = ElasticWrapper([nn.Conv2d(3, 3, 1)], Untraceable())
    with pytest.raises(
        ExportError,
        match=r"cannot trace this net at the head \(head, Untraceable\): .* Nothing",
    ):
        export(net, tmp_path / "net.onnx", example=torch.rand(1, 3, 4, 4))
    assert list(tmp_path.iterdir()) == []


# --- what goes wrong


def spoiled_trace(amount):
    """Return `trace` for a net in which a number was added to one weight."""

    def spoiled(net, plan, *dtype):
        weights = [each for each in net.blocks.parameters() if each.is_floating_point()]
        with torch.no_grad():
            weights[0].view(-1)[0] += amount
        return trace(net, plan, *dtype)

    return spoiled


@pytest.mark.parametrize("amount", [0.5, float("nan")])
@pytest.mark.parametrize("int8", [True, False])
def test_a_wrong_weight_is_found_and_nothing_is_written(net, amount, int8, tmp_path, monkeypatch):
    target = tmp_path / "net.pt2"
    target.write_bytes(b"before")
    monkeypatch.setattr("elasticnet.export.program_file.trace", spoiled_trace(amount))
    with pytest.raises(
        ExportError, match=r"net.pt2: depth 2 as torch.* differs from the net by up to (0\.\d+|nan)"
    ):
        export(net, target, int8=int8, overwrite=True)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_wrong_weight_in_the_onnx_file_is_found(net, tmp_path, monkeypatch):
    monkeypatch.setattr("elasticnet.export.onnx_file.trace", spoiled_trace(0.5))
    with pytest.raises(
        ExportError, match=r"net.onnx: depth 1 as onnx differs .* 0.0001 is allowed; nothing was"
    ):
        export(net, tmp_path / "net.onnx", depth=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("net.onnx", {"depth": 3}, ValueError, "depth 3: this net has taps at depths 1, 2"),
        ("net.onnx", {"depth": 0}, ValueError, "depth 0"),
        (
            "net.onnx",
            {"format": "tflite"},
            ValueError,
            "format 'tflite': expected one of onnx, torch, safetensors",
        ),
        (
            "net.onnx",
            {"format": "torch"},
            ValueError,
            "net.onnx: the suffix of format 'torch' is .pt2",
        ),
        (
            "net.bin",
            {},
            ValueError,
            r"net.bin: a suffix among .onnx, .pt2, .safetensors, or a format",
        ),
        ("net.safetensors", {"int8": True}, ValueError, "int8=True with format 'safetensors'"),
        ("folder", {"format": "onnx"}, ValueError, "folder: a folder; name a file in it"),
        ("none/net.onnx", {}, FileNotFoundError, "there is no folder .*none; make it first"),
        (
            "there.onnx",
            {},
            FileExistsError,
            r"there.onnx exists: use --force \(in Python: overwrite=True\)",
        ),
    ],
)
def test_bad_arguments_are_refused_before_any_work(net, name, options, error, message, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "there.onnx").write_bytes(b"")
    with pytest.raises(error, match=message):
        export(net, tmp_path / name, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "there.onnx"]


def test_more_weights_than_an_onnx_file_holds_are_refused(net, tmp_path, monkeypatch):
    monkeypatch.setattr("elasticnet.export.plan.MAX_ONNX_BYTES", 10_000)
    with pytest.raises(
        ExportError, match=r"depth 2 has 0 MB of weights, .* a smaller depth, int8=True .* 'torch'"
    ):
        export(net, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_net_without_an_example_of_its_own_needs_one(tmp_path, monkeypatch):
    own = ElasticWrapper([nn.Identity()], nn.Identity())
    with pytest.raises(ValueError, match="example=None: no registered architecture built this net"):
        export(own, tmp_path / "net.pt2")
    monkeypatch.setattr(registry, "_registered", {"bare": Architecture(build=lambda **_: own)})
    own.origin = Origin("bare", {})
    with pytest.raises(ValueError, match="example=None: architecture 'bare' brings no example"):
        export(own, tmp_path / "net.pt2")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_command_that_helps(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ImportError,
        match=rf"format 'onnx' needs {missing}: pip install \"elastic-depth\[export\]\"",
    ):
        require("onnx")
    require("torch")


def test_formats_follow_from_suffixes():
    assert resolve_format("a/b.ONNX", None) == "onnx"
    assert resolve_format("b.pt2", None) == "torch"
    assert resolve_format("b.bin", "safetensors") == "safetensors"
