"""A stem that asks for it is told how deep the pass goes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract import check_contract, same
from elasticnet import ElasticObjective, ElasticWrapper
from tiny_nets import conv_blocks, conv_net

X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))


class PreparingStem(nn.Module):
    """Prepares one gain for each block that the pass runs."""

    takes_last_depth = True

    def __init__(self) -> None:
        super().__init__()
        self.last_depths: list[int] = []

    def forward(
        self, x: Tensor, last_depth: int, offset: float = 0.0
    ) -> tuple[Tensor, list[float]]:
        self.last_depths.append(last_depth)
        return x + offset, [1.0 + index / 2 for index in range(last_depth)]


def call_with_gain(
    block: nn.Module, x: Tensor, gains: list[float], index: int
) -> tuple[Tensor, list[float]]:
    return block(x) * gains[index], gains


def prepared_net(stem: nn.Module | None = None) -> ElasticWrapper:
    stem = stem or PreparingStem()
    return ElasticWrapper(
        conv_blocks(4), nn.Conv2d(4, 2, 1), stem, taps=(2, 4), call_block=call_with_gain
    ).eval()


def last_depths(net: ElasticWrapper) -> list[int]:
    stem: Any = net.stem
    return stem.last_depths


def test_the_contract_holds() -> None:
    check_contract(prepared_net(), X, offset=0.5)


def test_the_stem_prepares_what_the_depth_needs_and_no_more() -> None:
    net = prepared_net()
    net(X, depth=2)
    net(X)
    net(X, taps=(2,))  # features come for all taps
    with net.at_depth(2):
        net(X)
    assert last_depths(net) == [2, 4, 4, 2]
    small = net.truncate(2)
    small(X)
    assert last_depths(small)[-1] == 2


def test_the_objective_trains_such_a_net() -> None:
    net = prepared_net()
    objective = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)
    objective(X, torch.zeros(2, 2, 5, 5)).total.backward()
    assert last_depths(net) == [4]


def test_a_stem_that_is_wrapped_or_put_in_later_is_told_too() -> None:
    net = prepared_net()
    expected = net(X, depth=2)
    net.stem = nn.DataParallel(PreparingStem())
    same(net(X, depth=2), expected, "DataParallel around the stem")


def test_a_compiled_stem_is_told_too() -> None:
    net = prepared_net()
    expected = net(X, depth=2, offset=0.5)
    net.stem = torch.compile(PreparingStem(), backend="eager")  # pyright: ignore[reportAttributeAccessIssue]
    same(net(X, depth=2, offset=0.5), expected, "a compiled stem")


def test_an_argument_of_that_name_is_the_users_without_the_attribute() -> None:
    class Stem(nn.Module):
        def forward(self, x: Tensor, last_depth: float = 1.0) -> Tensor:
            return x * last_depth

    net = conv_net(2, stem=Stem()).eval()
    same(net(X, last_depth=3.0), net(X * 3.0), "the user's argument")
    same(net(X), net(X, last_depth=1.0), "its default")


def test_the_user_may_not_say_what_the_net_says() -> None:
    with pytest.raises(TypeError, match="last_depth=3: the net itself tells this stem"):
        prepared_net()(X, last_depth=3)


def test_a_stem_that_asks_needs_an_argument_for_it() -> None:
    class Deaf(nn.Module):
        takes_last_depth = True

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match="has takes_last_depth, and its forward has no argument"):
        conv_net(2, stem=Deaf())


def test_a_sequence_could_not_tell_it() -> None:
    class Stem(nn.Module):
        takes_last_depth = True

        def forward(self, x: Tensor, last_depth: int) -> Tensor:
            return x * last_depth

    net = conv_net(2, stem=Stem())
    with pytest.raises(ValueError, match="a net with a stem that takes last_depth is not a plain"):
        net.to_sequential()
