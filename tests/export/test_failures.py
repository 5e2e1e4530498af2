"""What a user reads where an exporter or a runtime fails: what, at which block, and what to try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elasticnet import ElasticWrapper
from elasticnet.export import ExportError, export
from elasticnet.export.failures import reason_of

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

X = torch.rand(2, 3, 4, 5)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class ByNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class HeadlessAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x[:, 0]  # (b, n, c), without an axis of heads
        return nn.functional.scaled_dot_product_attention(y, y, y)[:, None]


class Outer(nn.Module):
    """A block with a part inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def conv() -> nn.Module:
    return nn.Conv2d(3, 3, 1)


def in_second_block(part: nn.Module) -> ElasticWrapper:
    return ElasticWrapper([conv(), Outer(part)], nn.Identity())


def in_stem(part: nn.Module) -> ElasticWrapper:
    return ElasticWrapper([conv()], nn.Identity(), part)


def in_head(part: nn.Module) -> ElasticWrapper:
    return ElasticWrapper([conv()], part)


def in_adapter(part: nn.Module) -> ElasticWrapper:
    return ElasticWrapper([conv()], nn.Identity(), adapters={1: part})


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (in_second_block, r"at block 2 \(blocks.1.inner, Deciding\)"),
        (in_stem, r"at the stem \(stem, Deciding\)"),
        (in_head, r"at the head \(head, Deciding\)"),
        (in_adapter, r"at the adapter of depth 1 \(adapters.1, Deciding\)"),
    ],
)
def test_the_part_that_cannot_be_traced_is_named(
    place: Callable[[nn.Module], ElasticWrapper], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=rf"torch.export cannot trace this net {message}: "):
        export(place(Deciding()), tmp_path / "net.pt2", example=X)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        (Deciding(), "net.pt2", r"a decision of a tensor's values, .* such as torch.where"),
        (ByNumpy(), "net.pt2", r"without NumPy, .* or let no length vary, axes=\{\}"),
        (Bessel(), "net.onnx", r"No ONNX function found for \S*bessel_j0\. .* format='torch'"),
        (HeadlessAttention(), "net.onnx", r"an axis of heads, \(b, heads, n, c\), or .*'torch'"),
    ],
)
def test_a_failure_says_what_to_try(
    part: nn.Module, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=rf"at block 2 \(blocks.1.inner, .*{message}") as raised:
        export(in_second_block(part), tmp_path / name, example=X)

    assert str(raised.value).endswith(". Nothing was written")
    assert len(str(raised.value).splitlines()) == 1


def test_without_open_axes_they_are_not_named_as_a_cause(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"without NumPy") as raised:
        export(in_head(ByNumpy()), tmp_path / "net.pt2", example=X, axes={})

    assert "axes={}" not in str(raised.value)


def test_nothing_is_printed_beside_the_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError):
        export(in_head(Deciding()), tmp_path / "net.pt2", example=X)

    assert capfd.readouterr() == ("", "")


def test_a_file_that_its_runtime_does_not_open_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_args: Any, **_options: Any) -> Any:
        raise NotImplementedError("no implementation of Inverse")

    monkeypatch.setattr("onnxruntime.InferenceSession", unreadable)
    with pytest.raises(ExportError, match=r"cannot be run: no implementation .* format='torch'"):
        export(in_head(conv()), tmp_path / "net.onnx", example=X)

    assert list(tmp_path.iterdir()) == []


def test_the_reason_is_the_first_line_of_the_first_cause() -> None:
    error = RuntimeError("a whole page")
    error.__cause__ = ValueError("the cause.\nin detail")

    assert reason_of(error) == "the cause"


def test_a_long_reason_is_shortened() -> None:
    assert reason_of(ValueError("x" * 999)) == "x" * 300 + " ..."
