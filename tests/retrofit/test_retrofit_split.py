"""The generic split of stem -> blocks -> head, and what it refuses.

The oracle is the model's own loop, cut short.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from contract import check_contract
from elasticnet.retrofit import TapAdapter, split
from tiny_nets import TinyBlock

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Chain(nn.Module):
    """Stem, blocks, head in one forward, cut short at `depth` by its own loop: the oracle."""

    def __init__(
        self, num_blocks: int = 3, widths: tuple[int, ...] = (), dropout: float = 0.0
    ) -> None:
        super().__init__()
        sizes = [4, *(widths or (4,) * num_blocks)]
        self.conv_in = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 0.5))
        self.body = nn.ModuleList(
            TinyBlock("residual", "b c h w", *pair) for pair in pairwise(sizes)
        )
        self.norm = nn.BatchNorm2d(sizes[-1])
        self.fc = nn.Linear(sizes[-1], 5)
        self.dropout = dropout

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        x = self.conv_in(x) * self.scale
        for block in self.body[:depth]:
            x = block(x)
        x = F.dropout(self.norm(x), self.dropout, self.training)
        return self.fc(x.mean((2, 3)))


class Sized(Chain):
    """Its blocks are told their sizes, with a step between two; its head reshapes likewise."""

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        x = self.conv_in(x)
        batch, channels, height, width = x.shape
        tokens = x.flatten(2)
        for number, block in enumerate(self.body[:depth]):
            if number == 1:
                tokens = tokens * 2
            tokens = block(tokens.reshape(batch, channels, height, width)).flatten(2)
        return self.norm(tokens.reshape(batch, channels, height, width))


class Told(nn.Module):
    """A block that takes more than x, by position and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, gain: Tensor, power: int = 1) -> Tensor:
        return x + torch.tanh(self.conv(x)) * gain**power


class Pair(Told):
    """Returns the next block's gain beside x."""

    def forward(self, x: Tensor, gain: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x, gain), gain * 0.5


class Telling(nn.Module):
    """Hands its blocks a gain made from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 4, 1)
        self.body = nn.Sequential(Told(), Told(), Told())

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        gain = x.mean()
        x = self.conv_in(x)
        for block in list(self.body)[:depth]:
            x = block(x, gain, power=2)
        return x


class Carrying(nn.Module):
    """Each block makes the next one's gain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 4, 1)
        self.body = nn.Sequential(Pair(), Pair(), Pair())

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        gain = x.mean()
        x = self.conv_in(x)
        for block in list(self.body)[:depth]:
            x, gain = block(x, gain)
        return x


class Doubling(nn.Module):
    """Gives each block its x twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 4, 1)
        self.body = nn.Sequential(Told(), Told())

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        x = self.conv_in(x)
        for block in list(self.body)[:depth]:
            x = block(x, x)
        return x


class Skipping(Chain):
    """The head adds the input and has its own sizes from it."""

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        y = self.conv_in(x)
        for block in self.body[:depth]:
            y = block(y)
        return self.norm(y)[:, :3] + x


class StemSkipping(Chain):
    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        start = y = self.conv_in(x)
        for block in self.body[:depth]:
            y = block(y)
        return self.norm(y) + start


def prepared(model: nn.Module) -> Any:
    """Return the model in eval mode with running statistics that are not the default ones."""
    model.train()(X)
    return model.eval()


@pytest.mark.parametrize(
    ("make", "head_skip"),
    [
        (Chain, None),
        (Sized, "stem"),
        (Skipping, "input"),
        (StemSkipping, "stem"),
        (Telling, None),
        (Carrying, None),
        (Doubling, None),
    ],
)
def test_every_depth_is_the_models_own_loop_cut_short(
    make: Callable[[], nn.Module], head_skip: str | None
) -> None:
    model = prepared(make())
    parts = split(model, "body", X)
    assert parts.head_skip == head_skip
    assert parts.layout == "b c h w"
    net = parts.wrap().eval()
    with torch.no_grad():
        for depth in net.taps:
            for x in (X, X[:1], torch.rand(2, 3, 6, 10)):
                assert torch.equal(net(x, depth=depth), model(x, depth=depth)), depth
    check_contract(net, X)


@given(widths=st.lists(st.integers(2, 5), min_size=1, max_size=4), side=st.integers(2, 6))
def test_channels_that_change_need_adapters(widths: list[int], side: int) -> None:
    torch.manual_seed(0)
    model = prepared(Chain(widths=tuple(widths)))
    x = torch.randn(2, 3, side, side)
    odd = [depth for depth, width in enumerate(widths, start=1) if width != widths[-1]]
    if odd:
        with pytest.raises(
            ValueError, match=rf"taps at depths {', '.join(map(str, odd))}, .*pass adapters=True"
        ):
            split(model, "body", x)
    parts = split(model, "body", x, adapters=True)
    assert sorted(parts.adapters) == odd
    net = parts.wrap().eval()
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
        for depth in net.taps:
            assert net(x, depth=depth).shape == model(x).shape
            if depth not in odd:
                assert torch.equal(net(x, depth=depth), model(x, depth=depth))
    assert [tap.problem for tap in net.check(x)] == [None] * len(widths)


@pytest.mark.parametrize("layout", ["b c h w", "b h w c"])
def test_an_adapter_takes_means_over_windows_and_maps_channels(layout: str) -> None:
    adapter = TapAdapter(3, 5, layout, (2, 3))
    axes = layout.split()
    x = torch.randn([{"b": 2, "c": 3, "h": 5, "w": 6}[axis] for axis in axes])
    y = adapter(x).movedim(axes.index("c"), -1)
    x = x.movedim(axes.index("c"), -1)
    assert y.shape == (2, 3, 2, 5)
    for row in range(3):
        for column in range(2):
            window = x[:, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].mean((1, 2))
            torch.testing.assert_close(y[:, row, column], adapter.linear(window))


def test_an_adapter_leaves_prefix_tokens_alone() -> None:
    adapter = TapAdapter(3, 4, "b n c", (2,), prefix_tokens=1)
    x = torch.randn(2, 7, 3)
    y = adapter(x)
    torch.testing.assert_close(y[:, 0], adapter.linear(x[:, 0]))
    torch.testing.assert_close(y[:, 1:], adapter.linear(x[:, 1:].unflatten(1, (3, 2)).mean(2)))


def test_adapters_of_your_own_and_taps() -> None:
    model = prepared(Chain(widths=(3, 4, 4)))
    own = nn.Conv2d(3, 4, 1)
    parts = split(model, "body", X, adapters={1: own})
    assert parts.wrap().adapters["1"] is own
    assert parts.wrap(taps=(2, 3)).taps == (2, 3)
    assert len(parts.wrap(taps=(2, -1)).adapters) == 0
    assert parts.wrap(checkpoint_blocks=True).checkpoint_blocks


def test_the_parts_are_the_models_own_and_the_model_stays_as_it_was() -> None:
    model = prepared(Chain())
    model.norm.train()
    names, state = [name for name, _ in model.named_modules()], dict(model.state_dict())
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    net = split(model, "body", X).wrap()
    assert [name for name, _ in model.named_modules()] == names
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert [module.training for module in model.modules()] == [name == "norm" for name in names]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    own = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in net.parameters()} == own
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert list(net.blocks) == list(model.body)
    assert {"stem.conv_in.weight", "stem.scale", "head.norm.running_mean", "head.fc.bias"} <= set(
        net.state_dict()
    )


def test_functional_dropout_follows_the_mode() -> None:
    model = prepared(Chain(dropout=0.5))
    net = split(model, "body", X).wrap()
    for training in (True, False):
        model.train(training)
        net.train(training)
        torch.manual_seed(3)
        expected = model(X)
        torch.manual_seed(3)
        assert torch.equal(net(X), expected)


FUNCTIONAL_DROPOUTS: list[Callable[..., Tensor]] = [
    F.dropout2d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
]


@pytest.mark.parametrize("function", FUNCTIONAL_DROPOUTS)
def test_every_functional_dropout_follows_the_mode(function: Callable[..., Tensor]) -> None:
    class Dropping(Chain):
        def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            x = self.conv_in(x)
            for block in self.body:
                x = function(block(x), 0.5, training=self.training)
            return x

    model = Dropping()
    net = split(model.eval(), "body", X).wrap()
    for training in (True, False):
        model.train(training)
        net.train(training)
        torch.manual_seed(3)
        expected = model(X)
        torch.manual_seed(3)
        assert torch.equal(net(X), expected)


def test_compiled_parts_give_the_same() -> None:
    model = prepared(Chain())
    net = split(model, "body", X).wrap().eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(X, depth=2), net(X, depth=2))


# --- refusals


class Dense(Chain):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = self.body[0](self.conv_in(x))
        return self.body[2](self.body[1](first) + first) + first


class Branching(Chain):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.conv_in(x)
        for block in self.body:
            x = block(x) if x.mean() > 0 else x
        return x


class InPlace(Chain):
    """Its head works in place, so that a block behind a tap would get other features."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.conv_in(x)
        for block in self.body:
            x = block(x)
        return x.mul_(2)


class Shared(Chain):
    """Adds the first block's output once more behind the third block's input."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        first = self.body[0](self.conv_in(x))
        return self.body[2](self.body[1](first) + first)


class Rootless(Chain):
    """Its first block takes a parameter, so that there is no stem."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        y = self.body[0](self.scale)
        return self.body[2](self.body[1](y)) + self.conv_in(x)


class Parallel(Chain):
    """Its second block starts again from what the first one took."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.conv_in(x)
        self.body[0](x)
        return self.body[2](self.body[1](x))


class Gated(Telling):
    """Makes the gain of all blocks from what the first one takes, by a module."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.conv_in(x)
        gain = self.gate(x)
        for block in self.body:
            x = block(x, gain)
        return x


class TwoFaced(Chain):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.conv_in(x)
        for block in self.body:
            x = block(x)
        return x.sum() if self.training else x


class Twice(Chain):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.conv_in(x)
        for block in self.body:
            x = block(block(x))
        return x


class OtherArguments(Chain):
    """Takes the same steps in training mode, with other arguments."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.conv_in(x)
        for block in self.body:
            x = F.rrelu(block(x), training=self.training)
        return x


class LeftOutAtRandom(Chain):
    """Leaves out blocks at random in training mode, by a number that no trace can hold."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.conv_in(x)
        for block in self.body:
            if self.training and torch.rand(()) > 2:
                continue
            x = block(x)
        return x


class FrozenStem(Chain):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.no_grad():
            x = self.conv_in(x)
        for block in self.body:
            x = block(x)
        return x


class Hidden(Chain):
    """Makes a random number while it runs, which a trace freezes."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.conv_in(x)
        for block in self.body:
            x = block(x)
        return x + torch.randn(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Dense, r"behind the blocks takes more than the output of the last one"),
        (
            Branching,
            r"torch\.fx cannot trace the forward around body\.2: symbolically traced variables",
        ),
        (Shared, r"body\.2 takes more than the output of the block before it: model\.body\.0"),
        (Rootless, r"body\.0: its first argument is not made from the input"),
        (Parallel, r"body\.1: its first argument is not made from the block before it"),
        (Gated, r"more than one part needs what gate returns"),
        (TwoFaced, r"other steps in training mode"),
        (OtherArguments, r"other steps in training mode"),
        (LeftOutAtRandom, r"it draws random numbers outside of its modules"),
        (FrozenStem, r"it switches gradients off around model\.conv_in"),
        (Twice, r"body\.0: the forward calls this block 2 times, expected once"),
        (Hidden, r"it draws random numbers outside of its modules"),
    ],
)
def test_what_is_no_chain_is_refused_with_the_reason(
    make: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split(make().eval(), "body", X)


def test_wrong_paths_and_layouts_are_refused() -> None:
    model = prepared(Chain())
    with pytest.raises(ValueError, match=r"blocks 'boddy': Chain has no such module"):
        split(model, "boddy", X)
    with pytest.raises(ValueError, match=r"blocks 'fc': this Linear holds no modules"):
        split(model, "fc", X)
    with pytest.raises(
        ValueError, match="behind the blocks takes more than the output of the last one"
    ):
        split(model, ["body.1", "body.0"], X)
    with pytest.raises(ValueError, match=r"layout 'b n c': the features have shape \(3, 4, 8, 8\)"):
        split(model, "body", X, layout="b n c")


def test_a_model_of_one_batch_size_is_proved_at_that_size() -> None:
    class Frozen(Chain):
        def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(x).reshape(3, 5, 1)

    model = prepared(Frozen())
    with torch.no_grad():
        assert torch.equal(split(model, "body", X).wrap().eval()(X), model(X))


def test_a_path_for_each_block_leaves_the_rest_to_stem_and_head() -> None:
    model = prepared(Chain(4))
    net = split(model, ["body.1", "body.2"], X).wrap().eval()
    assert list(net.blocks) == [model.body[1], model.body[2]]
    with torch.no_grad():
        assert torch.equal(net(X), model(X))


def test_a_head_that_works_in_place_gets_copies(caplog: pytest.LogCaptureFixture) -> None:
    model = InPlace().eval()
    parts = split(model, "body", X)
    assert "the head at depth 1 writes in place into the features at depth 1" in caplog.text
    assert parts.copy_features
    net = parts.wrap()
    with torch.no_grad():
        taps = net(X, taps=net.taps)
        for depth, prediction in zip(*taps[:2], strict=True):
            assert torch.equal(net(X, depth=depth), prediction)
        assert torch.equal(taps.predictions[-1], model(X))
