"""A pass that rests at a depth and goes on: exact, no block twice, nothing left out unseen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from contract import a_pass_goes_on_where_it_rested, recording, same
from elasticnet import ElasticWrapper
from elasticnet._net.in_place_writes import OverwrittenError
from tiny_nets import Case, conv_blocks, conv_net, tiny_cases

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


@given(tiny_cases())
def test_any_net_goes_on_where_it_rested(case: Case) -> None:
    a_pass_goes_on_where_it_rested(case.net, case.x, **case.keywords)


def test_a_state_says_where_the_pass_stands() -> None:
    net = conv_net(5).eval()
    taps = net(X, taps=net.taps)
    state = net.run_to(X, 3)
    assert state.depth == 3
    same(state.features, taps.features[2], "features")
    assert net.run_to(X, -1).depth == 5


def test_early_exit_runs_no_block_twice_and_asks_the_head_once_a_look() -> None:
    net = conv_net(5, taps=[1, 3, 5]).eval()
    with recording(net) as calls:
        state = net.run_to(X, 1)
        looks = [net.predict(state)]
        for depth in (3, 5):
            state = net.continue_from(state, depth)
            looks.append(net.predict(state))
    assert calls.blocks == list(net.blocks)
    assert calls.head == 3
    same(looks, [net(X, depth=depth) for depth in (1, 3, 5)], "predictions")


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_one_pass(recompute: bool) -> None:
    net = conv_net(3, checkpoint_blocks=recompute)
    parameters = list(net.parameters())
    expected = torch.autograd.grad(net(X).sum(), parameters)
    state = net.continue_from(net.run_to(X, 1), 3)
    actual = torch.autograd.grad(net.predict(state).sum(), parameters)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_depth_that_is_not_deeper_is_refused(depth: int) -> None:
    net = conv_net(3)
    state = net.run_to(X, 2)
    with pytest.raises(ValueError, match=f"depth {depth}: the state is at depth 2 already"):
        net.continue_from(state, depth)


def test_a_depth_without_a_tap_is_refused() -> None:
    net = conv_net(3, taps=[1, 3])
    for call in (lambda: net.run_to(X, 2), lambda: net.continue_from(net.run_to(X, 1), 2)):
        with pytest.raises(ValueError, match="depth 2: this net has taps at depths 1, 3"):
            call()


# --- context


def counted(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
    """Change the context in place, as a cache does, and depend on it."""
    context["calls"].append(index)
    return block(x) * len(context["calls"]), context


def test_the_context_of_a_state_is_its_own() -> None:
    net = conv_net(4, call_block=counted).eval()
    expected = [net(X, depth=depth, calls=[]) for depth in net.taps]
    state = net.run_to(X, 2, calls=[])
    for _ in range(2):
        same(net.predict(net.continue_from(state, 4)), expected[3], "the same, again")
    assert state.context["calls"] == [0, 1]


def test_a_stem_prepares_for_the_whole_net() -> None:
    class Stem(nn.Module):
        takes_last_depth = True

        def forward(self, x: Tensor, last_depth: int) -> tuple[Tensor, list[float]]:
            return x, [2.0] * last_depth

    def scaled(block: nn.Module, x: Tensor, gains: Any, index: int) -> tuple[Tensor, Any]:
        return block(x) * gains[index], gains

    net = conv_net(3, stem=Stem(), call_block=scaled).eval()
    same(net.predict(net.continue_from(net.run_to(X, 1), 3)), net(X), "depth 3")


# --- in place


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mul_(2))


def net_that_overwrites(**options: Any) -> ElasticWrapper:
    torch.manual_seed(0)
    blocks = [nn.Conv2d(4, 4, 1), Overwriting(), nn.Conv2d(4, 4, 1)]
    return ElasticWrapper(blocks, nn.Conv2d(4, 2, 1), **options).eval()


def test_a_block_that_overwrites_the_state_is_named() -> None:
    net = net_that_overwrites()
    message = r"block 2 \(Overwriting\) writes in place into the features of the state at depth 1"
    with torch.no_grad():
        state = net.run_to(X, 1)
        with pytest.raises(OverwrittenError, match=message):
            net.continue_from(state, 3)


def test_copies_keep_the_state() -> None:
    net = net_that_overwrites(copy_features=True)
    with torch.no_grad():
        state = net.run_to(X, 1)
        for _ in range(2):
            same(net.predict(net.continue_from(state, 3)), net(X), "depth 3")


def test_a_block_that_overwrites_the_context_is_named() -> None:
    def overwriting(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
        return block(x) * context["gain"].mul_(2), context

    with torch.no_grad():
        net = conv_net(2, call_block=overwriting).eval()
        state = net.run_to(X, 1, gain=torch.ones(1))
        with pytest.raises(OverwrittenError, match="into the context of the state at depth 1"):
            net.continue_from(state, 2)
        net.copy_features = True
        expected = net(X, gain=torch.ones(1))
        state = net.run_to(X, 1, gain=torch.ones(1))
        for _ in range(2):
            same(net.predict(net.continue_from(state, 2)), expected, "depth 2")


def test_a_state_that_somebody_overwrote_is_refused() -> None:
    net = conv_net(2).eval()
    with torch.no_grad():
        state = net.run_to(X, 1)
        state.features.mul_(2)
        for call in (lambda: net.continue_from(state, 2), lambda: net.predict(state)):
            with pytest.raises(ValueError, match="a tensor of the state at depth 1 was written to"):
                call()


def test_a_copied_state_goes_on() -> None:
    net = conv_net(2).eval()
    with torch.no_grad():
        state = copy.deepcopy(net.run_to(X, 1))
        same(net.predict(net.continue_from(state, 2)), net(X), "depth 2")


# --- what sits around net.forward


class Normalising(ElasticWrapper):
    def forward(self, x: Tensor, *arguments: Any, **keywords: Any) -> Any:
        return super().forward(x - 0.5, *arguments, **keywords)


def with_hook() -> ElasticWrapper:
    net = conv_net(2)
    net.register_forward_hook(print)
    return net


def with_pre_hook() -> ElasticWrapper:
    net = conv_net(2)
    net.register_forward_pre_hook(print)
    return net


def with_replaced_forward() -> ElasticWrapper:
    net = conv_net(2)
    net.forward = print  # pyright: ignore[reportAttributeAccessIssue]
    return net


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (with_hook, "the hook print"),
        (with_pre_hook, "the hook print"),
        (with_replaced_forward, "a replaced forward"),
        (
            lambda: Normalising(conv_blocks(2), nn.Conv2d(4, 2, 1)),
            "the forward of the class Normalising",
        ),
    ],
)
def test_what_would_be_left_out_is_named(make: Callable[[], ElasticWrapper], what: str) -> None:
    net = make()
    state = conv_net(2).run_to(X, 1)
    calls: list[Callable[[], Any]] = [
        lambda: net.run_to(X, 1),
        lambda: net.continue_from(state, 2),
        lambda: net.predict(state),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"do not call net.forward, so that {what} would be"):
            call()
