"""Truncation and the rest of the contract, over random networks and over one of each kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from contract import NetworkContract, check_contract, same
from elasticnet import ElasticWrapper
from tiny_nets import (
    KINDS,
    LAYOUTS,
    Case,
    TinyBlock,
    TinyHead,
    TogetherHead,
    conv_blocks,
    conv_net,
    tiny_cases,
)


@given(tiny_cases())
def test_random_networks_keep_the_contract(case: Case) -> None:
    check_contract(case.net, case.x, **case.keywords)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_block_in_every_layout(kind: str, layout: str) -> None:
    """Hypothesis draws; this makes sure that no combination is left out."""
    net = ElasticWrapper(
        [TinyBlock(kind, layout, 3) for _ in range(3)], TogetherHead(layout, 3), layout=layout
    )
    shape = [{"b": 2, "c": 3}.get(axis, 4) for axis in layout.split()]
    check_contract(net, torch.randn(shape))


class TestConvNet(NetworkContract):
    """The class form of the contract, as other test files use it."""

    def net(self) -> ElasticWrapper:
        return conv_net(3)

    def example(self) -> Tensor:
        return torch.randn(2, 4, 5, 6)


class TestNetWithBatchNorm(NetworkContract):
    """Buffers are cut, saved and compared like parameters."""

    def net(self) -> ElasticWrapper:
        blocks = [torch.nn.Sequential(block, torch.nn.BatchNorm2d(4)) for block in conv_blocks(3)]
        net = ElasticWrapper(blocks, TinyHead("b c h w", 4))
        with torch.no_grad():
            net.forward_taps(torch.randn(4, 4, 5, 5))  # moves the running statistics
        return net

    def example(self) -> Tensor:
        return torch.randn(2, 4, 5, 5)


@given(tiny_cases(), st.data())
def test_truncating_twice_is_truncating_once(case: Case, data: st.DataObject) -> None:
    deeper = data.draw(st.sampled_from(case.net.taps))
    depth = data.draw(st.sampled_from([tap for tap in case.net.taps if tap <= deeper]))
    twice, once = case.net.truncate(deeper).truncate(depth), case.net.truncate(depth)
    same(twice.state_dict(), dict(once.state_dict()), "state dict")
    with torch.no_grad():
        same(twice(case.x, **case.keywords), once(case.x, **case.keywords), "prediction")


@given(tiny_cases())
def test_truncation_keeps_the_settings(case: Case) -> None:
    small = case.net.truncate(case.net.taps[0])
    for name in (
        "head_skip",
        "layout",
        "prefix_tokens",
        "call_block",
        "checkpoint_blocks",
        "training",
    ):
        assert getattr(small, name) == getattr(case.net, name), name
    assert small.default_depth == case.net.taps[0]
    assert {p.dtype for p in small.parameters()} == {case.x.dtype}


def test_truncated_net_holds_only_what_its_depth_uses() -> None:
    """By hand: a block is 2 conv3x3 4 -> 4 with bias (296), the head is 4 -> 2 (10)."""
    net = conv_net(5)
    assert [sum(p.numel() for p in net.truncate(d).parameters()) for d in net.taps] == [
        296 * d + 10 for d in range(1, 6)
    ]


def test_truncation_keeps_the_mode_of_every_module() -> None:
    net = conv_net(3)
    net.blocks[0].eval()  # frozen, inside a net that trains
    small = net.truncate(2)
    assert small.training
    assert [block.training for block in small.blocks] == [False, True]
    net.eval()
    assert not any(module.training for module in net.truncate(2).modules())


def test_truncation_keeps_frozen_parameters_frozen() -> None:
    net = conv_net(2)
    net.blocks[0].requires_grad_(False)
    assert [p.requires_grad for p in net.truncate(1).parameters()] == [False] * 4 + [True] * 2


def test_one_block_at_several_depths_stays_one_block() -> None:
    """A recurrent net, one block run three times, has its parameters once, truncated too."""
    block = TinyBlock("residual", "b c h w", 4)
    net = ElasticWrapper([block, block, block], TinyHead("b c h w", 4)).eval()
    small = net.truncate(2)
    assert small.blocks[0] is small.blocks[1]
    assert len(list(small.parameters())) == len(list(net.parameters())) == 6
    x = torch.randn(1, 4, 5, 5)
    same(small(x), net(x, depth=2), "prediction")


def test_the_net_inside_at_depth_is_truncated_by_what_is_asked() -> None:
    net = conv_net(3)
    with net.at_depth(1):
        assert net.truncate(-1).taps == (1, 2, 3)
        assert net.truncate(2).default_depth == 2


def test_half_precision_copies_agree_too() -> None:
    net, x = conv_net(3).to(torch.bfloat16).eval(), torch.randn(2, 4, 5, 5, dtype=torch.bfloat16)
    check_contract(net, x)


def test_a_net_with_blocks_in_shards_says_what_to_do(one_process: None) -> None:
    """FSDP1; FSDP2 needs several processes to be tested."""
    net = conv_net(2)
    net.blocks[0] = FullyShardedDataParallel(net.blocks[0], device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"sharded by FullyShardedDataParallel.*summon_full"):
        net.truncate(1)
