"""A fold is used only where it is the function of the layers, whatever was done to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.sr import asrn, edsr
from elasticnet.sr.models.asrn_blocks import MultiScaleBlock
from elasticnet.sr.models.heads import DeconvHead, FoldedHead

X = torch.rand(1, 3, 26, 26, generator=torch.Generator().manual_seed(1))

# --- what people do to a convolution: each takes the layer and returns the one to put in its place


def double(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def masked(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(double)
    return layer


def hooked_before(layer: nn.Module) -> nn.Module:
    def double_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (2 * inputs[0],)

    layer.register_forward_pre_hook(double_input)
    return layer


def spectrally_normed(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(layer).eval()


def weight_normed(layer: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(layer)


def with_another_forward(layer: nn.Module) -> nn.Module:
    forward = layer.forward

    def doubled(x: Tensor) -> Tensor:
        return 2 * forward(x)

    layer.forward = doubled
    return layer


class Doubled(nn.Module):
    """As adapters of low rank do it: the layer, and something beside it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


def wrapped(layer: nn.Module) -> nn.Module:
    return Doubled(layer)


def of_a_subclass(layer: nn.Module) -> nn.Module:
    base = type(layer)

    class Negated(base):
        def forward(self, *inputs: Any) -> Tensor:
            return -super().forward(*inputs)

    layer.__class__ = Negated
    return layer


CHANGES = pytest.mark.parametrize(
    "change",
    [
        masked,
        hooked,
        hooked_before,
        spectrally_normed,
        weight_normed,
        with_another_forward,
        wrapped,
        of_a_subclass,
    ],
    ids=lambda change: change.__name__,
)


def nets(kind: str) -> tuple[ElasticWrapper, ElasticWrapper]:
    """Return a folding net and a plain one with the same weights."""
    builder: Callable[..., ElasticWrapper] = asrn if kind == "asrn" else edsr
    torch.manual_seed(0)
    folding = builder(4, 2, 16).eval()
    plain = builder(4, 2, 16, fold=False).eval()
    plain.load_state_dict(folding.state_dict())
    return folding, plain


def change_layer(net: ElasticWrapper, name: str, change: Callable[[nn.Module], nn.Module]) -> None:
    parent, _, last = name.rpartition(".")
    setattr(net.get_submodule(parent), last, change(net.get_submodule(name)))


@CHANGES
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    ("kind", "layer", "folding_part"),
    [
        ("asrn", "head.reduce", "head"),
        ("asrn", "head.deconvs.1", "head"),
        ("asrn", "head.output", "head"),
        ("asrn", "blocks.1.fusion", "blocks.1"),
        ("edsr", "head.tail.0.2", "head"),
        ("edsr", "head.tail.1", "head"),
    ],
)
def test_a_changed_layer_runs_as_in_the_plain_net(
    change: Callable[[nn.Module], nn.Module], kind: str, layer: str, folding_part: str
) -> None:
    folding, plain = nets(kind)
    assert folding.get_submodule(folding_part).fold
    for net in (folding, plain):
        torch.manual_seed(2)
        change_layer(net, layer, change)
    with torch.no_grad():
        for parameter, other in zip(folding.parameters(), plain.parameters(), strict=True):
            parameter.add_(0.01)  # as an optimiser does
            other.add_(0.01)
        torch.testing.assert_close(folding(X), plain(X), rtol=1e-4, atol=1e-4)
    assert not folding.get_submodule(folding_part).fold


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        ("head.output", "padding_mode", "reflect"),
        ("head.output", "dilation", (2, 2)),
        ("head.output", "padding", (0, 0)),
        ("head.output", "bias", None),
        ("head.reduce", "stride", (2, 2)),
        ("head.reduce", "bias", None),
        ("head.deconvs.0", "output_padding", (1, 1)),
        ("head.deconvs.0", "bias", None),
        ("blocks.0.fusion", "bias", nn.Parameter(torch.ones(16))),
    ],
)
def test_other_settings_of_a_layer_are_not_folded(layer: str, name: str, value: Any) -> None:
    folding, plain = nets("asrn")
    for net in (folding, plain):
        module = net.get_submodule(layer)
        setattr(module, name, value)
        if name == "padding_mode":
            module._reversed_padding_repeated_twice = [1, 1, 1, 1]  # pyright: ignore
    part = folding.get_submodule(layer.rpartition(".")[0].removesuffix(".deconvs"))
    assert not part.fold
    with torch.no_grad():
        if name in ("padding", "dilation", "stride", "output_padding"):
            assert folding(X).shape == plain(X).shape
        torch.testing.assert_close(folding(X), plain(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "container"), [("asrn", "head.deconvs"), ("edsr", "head.tail")])
def test_an_activation_between_the_layers_is_not_folded_away(kind: str, container: str) -> None:
    folding, plain = nets(kind)
    for net in (folding, plain):
        sequence = net.get_submodule(container)
        assert isinstance(sequence, nn.Sequential)
        sequence.append(nn.Tanh())
    assert not folding.get_submodule("head").fold
    with torch.no_grad():
        torch.testing.assert_close(folding(X), plain(X), rtol=1e-5, atol=1e-5)


def test_the_fold_returns_when_the_hook_is_gone() -> None:
    net, _ = nets("asrn")
    handle = net.get_submodule("head.output").register_forward_hook(lambda *_: None)
    assert not net.get_submodule("head").fold
    handle.remove()
    assert net.get_submodule("head").fold


def test_hooks_on_the_head_fire_while_it_folds() -> None:
    net, _ = nets("asrn")
    calls: list[int] = []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    net(X, taps=net.taps)
    net(X, depth=1)
    assert net.head.fold
    assert len(calls) == 2


@pytest.mark.parametrize("layer", ["head.reduce", "head.deconvs.0", "head.output"])
def test_pruned_layers_train(layer: str) -> None:
    folding, plain = nets("asrn")
    small, target = X[:, :, :8, :8], torch.rand(1, 3, 32, 32)
    gradients: list[list[Tensor | None]] = []
    for net in (folding, plain):
        change_layer(net, layer, masked)
        objective = ElasticObjective(net.train(), nn.L1Loss(), psd_weight=1e-3)
        for _ in range(2):
            net.zero_grad()
            objective(small, target).total.backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


# --- `folded()`, which export takes


@pytest.mark.parametrize("where", ["output", ""])
def test_a_hooked_head_is_not_replaced_by_its_folded_layers(where: str) -> None:
    head = DeconvHead(8, 2).eval()
    features = torch.rand(1, 8, 5, 6)
    assert isinstance(head.folded(), FoldedHead)
    head.get_submodule(where).register_forward_hook(double)
    folded = head.folded()
    assert isinstance(folded, DeconvHead)
    assert not folded.fold
    torch.testing.assert_close(folded(features), head(features))


def test_a_subclass_of_the_head_is_not_replaced_by_its_folded_layers() -> None:
    class Negated(DeconvHead):
        def forward(self, features: Any, image: Tensor | None = None) -> Any:
            prediction = super().forward(features, image)
            assert isinstance(prediction, Tensor)
            return -prediction

    head = Negated(8, 2)
    features = torch.rand(1, 8, 5, 6)
    torch.testing.assert_close(head.folded()(features), head(features))


def test_a_folded_head_of_other_layers_is_refused() -> None:
    head = DeconvHead(8, 2)
    masked(head.output)
    with pytest.raises(ValueError, match="a layer of the head is hooked, parametrized or replaced"):
        FoldedHead(head)


def test_a_hooked_block_is_not_replaced_by_its_folded_layers() -> None:
    block = MultiScaleBlock(16)
    assert not block.folded().shuffle
    assert block.fusion is not None
    block.fusion.register_forward_hook(double)
    x = torch.rand(1, 16, 5, 6)
    folded = block.folded()
    assert folded.shuffle
    torch.testing.assert_close(folded(x), block(x))


def test_a_copy_folds_as_its_original() -> None:
    net, plain = nets("asrn")
    assert copy.deepcopy(net).head.fold
    assert net.truncate(1).head.fold
    assert not plain.truncate(1).head.fold
