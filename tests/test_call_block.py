"""Blocks with run-time context: a mask, and a rotary embedding for each block."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from contract import NetworkContract, same
from elasticnet import ElasticWrapper
from tiny_nets import BASES, MASK, TOKENS, conv_net, rotary_embedding, rotary_net


class TestRotaryNet(NetworkContract):
    keywords: ClassVar = {"mask": MASK}

    def net(self) -> ElasticWrapper:
        return rotary_net()

    def example(self) -> Tensor:
        return TOKENS


def test_mask_and_rotary_embedding_reach_each_block() -> None:
    """Against the loop one would write by hand, without stem context or call_block."""
    net = rotary_net().eval()
    x = net.get_submodule("stem.embedding")(TOKENS)
    for index, (block, base) in enumerate(zip(net.blocks, BASES, strict=True)):
        x = block(x, MASK, rotary_embedding(4, 6, base))
        same(net(TOKENS, depth=index + 1, mask=MASK), net.head(x), f"depth {index + 1}")
    changed = TOKENS.clone()
    changed[0, 3] = 8  # masked out
    same(
        net(changed, mask=MASK)[0, :3], net(TOKENS, mask=MASK)[0, :3], "what a masked token changes"
    )
    assert not torch.equal(net(TOKENS), net(TOKENS, mask=MASK))


def test_call_block_hands_its_context_on() -> None:
    """The first call gets what the stem gave, each next one what the one before returned."""
    seen: list[tuple[nn.Module, list[Any], int]] = []

    def call_block(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
        seen.append((block, context, index))
        return block(x), [*context, index]

    class Stem(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, list[Any]]:
            return x, ["stem"]

    net = conv_net(3, stem=Stem(), call_block=call_block)
    net(torch.randn(1, 4, 3, 3))
    first, second, third = net.blocks
    assert seen == [
        (first, ["stem"], 0),
        (second, ["stem", 0], 1),
        (third, ["stem", 0, 1], 2),
    ]


def test_call_block_returns_a_pair() -> None:
    """A tensor with a batch of two must not be unpacked into features and context."""

    def only_features(block: nn.Module, x: Tensor, context: Any, index: int) -> Any:
        return block(x)

    def three_values(block: nn.Module, x: Tensor, context: Any, index: int) -> Any:
        return block(x), context, index

    x = torch.randn(2, 4, 3, 3)
    for call_block, found in ((only_features, "a Tensor"), (three_values, "a tuple of 3")):
        net = conv_net(2, call_block=call_block)
        message = rf"call_block returned {found}: expected a tuple \(features, context\)"
        for call in (net, net.forward_taps, net.check):
            with pytest.raises(TypeError, match=message):
                call(x)


def test_a_stem_that_returns_three_values_is_named() -> None:
    class Stem(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
            return x, 1, 2

    net = conv_net(2, stem=Stem(), call_block=lambda block, x, context, index: (block(x), context))
    with pytest.raises(TypeError, match="the stem returned a tuple of 3: expected a tuple"):
        net(torch.randn(1, 4, 3, 3))


def test_keyword_arguments_reach_call_block_where_the_stem_gives_no_context() -> None:
    seen = []

    def call_block(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Tensor, Any]:
        seen.append(context)
        return block(x), context

    net = conv_net(2, stem=nn.Conv2d(4, 4, 1), call_block=call_block)
    x = torch.randn(1, 4, 3, 3)
    net(x, size=7)
    net.forward_taps(x)
    assert seen == [{"size": 7}, {"size": 7}, {}, {}]
