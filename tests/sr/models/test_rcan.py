"""RCAN: counts and keys, its parts against naive ones, the elastic network against the plain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import elasticnet
from contract import NetworkContract
from elasticnet import ElasticWrapper
from elasticnet.sr.models.edsr import tap_macs, wrap
from elasticnet.sr.models.rcan import RCAN, AttentionBlock, ChannelAttention, ResidualGroup, rcan


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The published counts and keys.


def test_parameters() -> None:
    """Published: 16M."""
    counts = {2: 15_444_667, 3: 15_629_307, 4: 15_592_379}
    with torch.device("meta"):
        assert {scale: count(RCAN(scale)) for scale in counts} == counts
        assert {scale: count(rcan(scale)) for scale in counts} == counts


@pytest.mark.parametrize(("scale", "convs"), [(2, [0]), (3, [0]), (4, [0, 2])])
def test_state_dict_has_the_authors_keys(scale: int, convs: list[int]) -> None:
    parts = [
        "sub_mean",
        "add_mean",
        "head.0",
        "body.10",
        "tail.1",
        *(f"tail.0.{index}" for index in convs),
    ]
    for group in range(10):
        parts.append(f"body.{group}.body.20")
        for block in range(20):
            layers = ("0", "2", "3.conv_du.0", "3.conv_du.2")
            parts += [f"body.{group}.body.{block}.body.{layer}" for layer in layers]
    with torch.device("meta"):
        state = RCAN(scale).state_dict()
    assert sorted(state) == sorted(
        f"{part}.{kind}" for part in parts for kind in ("weight", "bias")
    )
    assert state["body.0.body.0.body.3.conv_du.0.weight"].shape == (4, 64, 1, 1)


def test_the_mean_shifts_learn() -> None:
    """They stand in the authors' checkpoints with trained values."""
    net = rcan(2, 1, 8, group_size=1, reduction=4)
    net(torch.rand(1, 3, 6, 6)).square().sum().backward()
    for name in ("stem.sub_mean", "head.add_mean"):
        for kind in ("weight", "bias"):
            gradient = net.get_parameter(f"{name}.{kind}").grad
            assert gradient is not None
            assert gradient.any(), name


# Against naive ones.


def naive_attention(attention: ChannelAttention, x: Tensor) -> Tensor:
    squeeze, _, excite, _ = attention.conv_du
    y = torch.empty_like(x)
    for sample in range(len(x)):
        means = x[sample].mean(dim=(1, 2))
        hidden = (squeeze.weight[:, :, 0, 0] @ means + squeeze.bias).clamp_min(0)  # pyright: ignore
        weights = 1 / (1 + torch.exp(-(excite.weight[:, :, 0, 0] @ hidden + excite.bias)))  # pyright: ignore
        for channel in range(x.shape[1]):
            y[sample, channel] = x[sample, channel] * weights[channel]
    return y


@settings(max_examples=15)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
@torch.no_grad()
def test_channel_attention_equals_the_naive_one(
    channels: int, reduction: int, height: int, width: int
) -> None:
    attention = ChannelAttention(channels, min(reduction, channels)).double()
    x = 4 * torch.randn(2, channels, height, width, dtype=torch.float64)
    torch.testing.assert_close(attention(x), naive_attention(attention, x), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_group_equals_the_naive_one() -> None:
    group = ResidualGroup(8, 2, 4).double()
    x = y = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    *blocks, last = group.body
    for block in blocks:
        assert isinstance(block, AttentionBlock)
        first, _, second, attention = block.body
        hidden = F.conv2d(y, first.weight, first.bias, padding=1).clamp_min(0)  # pyright: ignore
        hidden = F.conv2d(hidden, second.weight, second.bias, padding=1)  # pyright: ignore
        assert isinstance(attention, ChannelAttention)
        y = y + naive_attention(attention, hidden)
    expected = x + F.conv2d(y, last.weight, last.bias, padding=1)  # pyright: ignore
    torch.testing.assert_close(group(x), expected, rtol=1e-12, atol=1e-12)


def cut(plain: RCAN, x: Tensor, depth: int) -> Tensor:
    """The plain network's output where its body is cut to `depth` groups and the last conv."""
    start = plain.head(plain.sub_mean(x))
    body = nn.Sequential(*plain.body[:depth], plain.body[-1])
    return plain.add_mean(plain.tail(body(start) + start))


@settings(max_examples=15)
@given(st.data())
@torch.no_grad()
def test_every_depth_is_the_plain_network_cut(data: st.DataObject) -> None:
    """Bit for bit with fold=False: net(x) is plain(x * 255) / 255; with the fold up to rounding."""
    scale, num_blocks = (
        data.draw(st.sampled_from([2, 3, 4]), "scale"),
        data.draw(st.integers(1, 3), "num_blocks"),
    )
    channels, group_size = (
        data.draw(st.integers(2, 9), "channels"),
        data.draw(st.integers(1, 3), "group_size"),
    )
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]), "dtype")
    plain = RCAN(
        scale, num_blocks, channels, group_size, data.draw(st.integers(1, channels), "reduction")
    ).to(dtype)
    for shift in (plain.sub_mean, plain.add_mean):
        for parameter in shift.parameters():
            parameter += torch.randn_like(parameter)
    net, folded = wrap(plain, "rcan", fold=False), wrap(plain, "rcan")
    x = torch.rand(1, 3, data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), dtype=dtype)
    assert torch.equal(net(x), plain(x * 255) / 255)
    for depth in net.taps:
        expected = cut(plain, x * 255, depth) / 255
        assert torch.equal(net(x, depth=depth), expected)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(folded(x, depth=depth), expected, rtol=tolerance, atol=tolerance)


# Saving, growing, the cost of the taps.


@torch.no_grad()
def test_saved_and_loaded_by_name_at_every_depth(tmp_path: Path) -> None:
    net = rcan(2, 3, 8, group_size=2, reduction=4).eval()
    sizes = {
        "scale": 2,
        "num_blocks": 3,
        "channels": 8,
        "group_size": 2,
        "reduction": 4,
        "fold": True,
    }
    assert net.origin == ("rcan", sizes)
    x = torch.rand(1, 3, 14, 15)
    elasticnet.save(net, tmp_path / "whole.safetensors")
    elasticnet.save(net.truncate(2), tmp_path / "cut.safetensors")
    for name, depth in (("whole", 3), ("whole", 1), ("cut", 2), ("cut", 1)):
        loaded = elasticnet.load(tmp_path / f"{name}.safetensors", depth)
        assert len(loaded.blocks) == depth
        assert torch.equal(loaded(x), net(x, depth=depth))


def test_grown_network_is_the_same_function_and_learns() -> None:
    net = rcan(2, 1, 8, group_size=2, reduction=4).eval()
    x = torch.rand(1, 3, 14, 15)
    grown = net.grow([ResidualGroup(8, 2, 4), ResidualGroup(8, 1, 2)], x)
    assert torch.equal(grown(x), net(x))
    grown(x).square().sum().backward()
    for group in grown.blocks[1:]:
        gradient = group.get_submodule("body")[-1].weight.grad  # pyright: ignore
        assert gradient.any()  # pyright: ignore


def test_a_block_can_be_the_identity_too() -> None:
    block = AttentionBlock(8, 4)
    x = torch.randn(1, 8, 5, 5)
    assert not torch.equal(block(x), x)
    block.init_identity()
    assert torch.equal(block(x), x)


def test_the_trunk_costs_more_than_all_taps() -> None:
    with torch.device("meta"):
        costs = tap_macs(rcan(4, fold=False), torch.empty(1, 3, 48, 48))
    assert costs.ratio == pytest.approx(0.53, abs=0.01)


# Wrong arguments.


def test_wrong_arguments_are_refused() -> None:
    for reduction in (0, 9):
        with pytest.raises(
            ValueError, match=f"reduction {reduction}: expected 1 to 8, the number of channels"
        ):
            rcan(2, 1, 8, reduction=reduction)
    with pytest.raises(ValueError, match="scale 6: expected one of 2, 3, 4, 8"):
        rcan(6, 1, 8, group_size=1, reduction=2)
    with pytest.raises(TypeError, match="res_scale"):
        rcan(2, res_scale=0.1)  # pyright: ignore[reportCallIssue]


# What every elastic network must satisfy.


class TestFolded(NetworkContract):
    def net(self) -> ElasticWrapper:
        return rcan(2, 3, 8, group_size=2, reduction=4)

    def example(self) -> Tensor:
        return torch.rand(1, 3, 13, 14)


class TestPlain(NetworkContract):
    def net(self) -> ElasticWrapper:
        return rcan(3, 2, 8, group_size=1, reduction=2, fold=False)

    def example(self) -> Tensor:
        return torch.rand(2, 3, 5, 6)
