"""A file is compared with the network that the user holds, and says no more than what is true."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import elasticnet
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import read_header
from elasticnet.export import ExportError, export, runner
from elasticnet.sr import asrn

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WIDTH = 32  # so wide that int8 rounds the weights


def conv_block() -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1)


def make_net(
    block: Callable[[], nn.Module] = conv_block, kind: type[ElasticWrapper] = ElasticWrapper
) -> ElasticWrapper:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, WIDTH, 1)
    return kind([block() for _ in range(2)], nn.Conv2d(WIDTH, 2, 1), stem).eval()


# --- what sits on the net itself


def scaled(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] * 2 - 1, *inputs[1:])


def doubled(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output * 2


def seen(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Change nothing."""


class Normalising(ElasticWrapper):
    def forward(self, x: Tensor, depth: int | None = None, **keywords: Any) -> Any:
        return super().forward(x - 0.5, depth, **keywords)


def with_pre_hook() -> ElasticWrapper:
    net = make_net()
    net.register_forward_pre_hook(scaled)
    return net


def with_hook() -> ElasticWrapper:
    net = make_net()
    net.register_forward_hook(doubled)
    return net


def with_buffer() -> ElasticWrapper:
    net = make_net()
    net.register_forward_hook(seen)
    net.register_buffer("mean", torch.zeros(1))
    return net


CHANGED: dict[str, Callable[[], ElasticWrapper]] = {
    "pre-hook": with_pre_hook,
    "hook": with_hook,
    "class": lambda: make_net(kind=Normalising),
    "buffer and a hook that only looks": with_buffer,
    "pre-hook, bfloat16": lambda: with_pre_hook().bfloat16(),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_sits_on_the_net_is_in_the_file(name: str, tmp_path: Path) -> None:
    net = CHANGED[name]()

    written = export(net, tmp_path / "net.pt2", depth=1, example=X)

    with torch.no_grad():
        expected = net.float()(X, depth=1)
    assert torch.allclose(runner(written.path)(X), expected, atol=1e-5)


def counting(module: ElasticWrapper, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] * len(module.blocks), *inputs[1:])


class Counting(ElasticWrapper):
    def forward(self, x: Tensor, depth: int | None = None, **keywords: Any) -> Any:
        return super().forward(x * len(self.blocks), depth, **keywords)


def with_counting_hook(net: ElasticWrapper) -> ElasticWrapper:
    net.register_forward_pre_hook(counting)
    return net


def test_a_hook_that_does_something_else_in_a_cut_net_is_named(tmp_path: Path) -> None:
    net = with_counting_hook(make_net())

    with pytest.raises(ExportError, match=r"itself differs by up to .*the hook counting"):
        export(net, tmp_path / "net.pt2", depth=1, example=X)

    assert list(tmp_path.iterdir()) == []


def test_a_class_that_does_something_else_in_a_cut_net_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"itself differs by up to .*the class Counting"):
        export(make_net(kind=Counting), tmp_path / "net.pt2", depth=1, example=X)


def test_a_checkpoint_of_such_a_net_is_refused_where_an_example_shows_it(tmp_path: Path) -> None:
    net = with_counting_hook(asrn(2, num_blocks=2, channels=16))

    with pytest.raises(ExportError, match="the hook counting"):
        export(net, tmp_path / "net.safetensors", depth=1)


def test_a_forward_that_was_replaced_on_the_net_is_refused(tmp_path: Path) -> None:
    net = make_net()
    vars(net)["forward"] = lambda x, **keywords: x

    with pytest.raises(ValueError, match=r"net\.forward was replaced"):
        export(net, tmp_path / "net.pt2", depth=1, example=X)


def test_a_checkpoint_of_a_hooked_net_names_no_architecture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = asrn(2, num_blocks=2, channels=16)
    net.register_forward_pre_hook(scaled)

    written = export(net, tmp_path / "net.safetensors", depth=1)

    assert read_header(written.path)["architecture"] is None
    assert "hook" in caplog.text


@pytest.mark.parametrize("wrapping", ["net", "blocks", "DataParallel"])
def test_what_others_put_around_a_net_is_left_out(wrapping: str, tmp_path: Path) -> None:
    net = make_net()
    given: Any = net
    if wrapping == "net":
        given = torch.compile(net, backend="eager")
    elif wrapping == "DataParallel":
        given = nn.DataParallel(net)
    else:
        for index in range(2):
            compiled: Any = torch.compile(net.blocks[index], backend="eager")
            net.blocks[index] = compiled

    written = export(given, tmp_path / "net.pt2", example=X)

    with torch.no_grad():
        assert torch.allclose(runner(written.path)(X), net(X), atol=1e-5)


def test_what_is_no_net_is_refused(tmp_path: Path) -> None:
    anything: Any = nn.Conv2d(3, 3, 1)

    with pytest.raises(TypeError, match="net is a Conv2d: expected an ElasticWrapper"):
        export(anything, tmp_path / "net.pt2", example=X)


# --- what a file says of its net


def switched() -> ElasticWrapper:
    net = asrn(2, num_blocks=2, channels=16)
    vars(net.blocks[1])["shuffle"] = False
    return net


def test_a_switched_block_has_no_architecture_in_its_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = switched()

    written = export(net, tmp_path / "net.safetensors")

    assert read_header(written.path)["architecture"] is None
    assert f"{written.path}: the file names no architecture: asrn builds another net" in caplog.text
    loaded = elasticnet.load(written.path, build=switched)
    example = torch.rand(1, 3, 9, 9)
    assert torch.equal(loaded(example), net(example))


def described_by(path: Path) -> dict[str, Any]:
    """Return what an ONNX file says about itself."""
    import onnx

    model: Any = onnx.load(path)
    return {entry.key: json.loads(entry.value) for entry in model.metadata_props}


def test_a_file_says_nothing_of_an_architecture_that_builds_another_net(tmp_path: Path) -> None:
    net = asrn(2, num_blocks=1, channels=16)
    net.head = asrn(4, num_blocks=1, channels=16).head  # the architecture would say scale 2

    written = export(net.eval(), tmp_path / "net.onnx")

    assert sorted(described_by(written.path)) == ["depth", "weights"]


def test_a_switched_block_has_no_architecture_in_its_onnx_file(tmp_path: Path) -> None:
    written = export(switched(), tmp_path / "net.onnx")

    described = described_by(written.path)
    assert "architecture" not in described
    assert "arguments" not in described
    assert described["depth"] == 2


def test_a_switch_behind_the_depth_is_no_change(tmp_path: Path) -> None:
    written = export(switched(), tmp_path / "net.safetensors", depth=1)

    assert read_header(written.path)["architecture"] == "asrn"


# --- what autograd computed


def weight_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old weight_norm is deprecated
        return nn.utils.weight_norm(conv_block())


class Caching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_block()

    def forward(self, x: Tensor) -> Tensor:
        self.last_map = self.conv(x).sigmoid()
        return x * self.last_map


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "old weight norm": weight_normed,
    "old spectral norm": lambda: nn.utils.spectral_norm(conv_block()),
    "pruned": lambda: prune.random_unstructured(conv_block(), "weight", amount=0.5),
    "weight norm": lambda: parametrizations.weight_norm(conv_block()),
    "spectral norm": lambda: parametrizations.spectral_norm(conv_block()),
    "kept activation": Caching,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_trained_net_is_exported_and_stays_as_it_was(name: str, tmp_path: Path) -> None:
    net = make_net(COMPUTED[name])
    net(X).mean().backward()
    with torch.no_grad():
        expected = net(X, depth=1)

    whole = export(net, tmp_path / "net.pt2", depth=1, example=X)
    rounded = export(net, tmp_path / "int8.pt2", depth=1, example=X, int8=True)

    assert torch.allclose(runner(whole.path)(X), expected, atol=1e-5)
    assert rounded.int8_snr is not None
    assert rounded.int8_snr > 30
    assert rounded.size < 0.8 * whole.size
    with torch.no_grad():
        assert torch.equal(net(X, depth=1), expected)


# --- modules that mean something else by the names of folding


class Paper(nn.Module):
    """Folds its features, which is its function, as its switch says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv_block()
        self.fold = True

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).abs() if self.fold else self.conv(x)

    def folded(self, x: Tensor) -> Tensor:
        return x.abs()


class Origami(Paper):
    """Offers `folded()` for something else."""

    def folded(self) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride]
        return nn.Identity()


@pytest.mark.parametrize("kind", [Paper, Origami])
def test_a_users_own_fold_is_left_alone(
    kind: type[nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = make_net(kind)

    written = export(net, tmp_path / "net.pt2", example=X)

    with torch.no_grad():
        assert torch.allclose(runner(written.path)(X), net(X), atol=1e-5)
    assert "nothing is folded in the file" in caplog.text
