from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from elasticnet import ElasticWrapper
from elasticnet.export.int8 import quantize, quantized_copy


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    axis=st.integers(0, 1),
    bits=st.sampled_from([8, 16]),
    seed=st.integers(0, 99),
)
def test_quantize_is_the_nearest_multiple_of_each_channels_scale(shape, axis, bits, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    integers, scale = quantize(weight, axis, bits)
    assert integers.dtype is {8: torch.int8, 16: torch.int16}[bits]
    for index in range(shape[axis]):
        channel = weight.select(axis, index)
        step = max(abs(value) for value in channel.flatten().tolist()) / (2 ** (bits - 1) - 1)
        assert scale.flatten()[index].item() == pytest.approx(step)
        expected = [round(value / step) for value in channel.flatten().tolist()]
        assert integers.select(axis, index).flatten().tolist() == expected
    assert (integers * scale - weight).abs().max() <= scale.max() / 2 * (1 + 1e-9)


def test_a_channel_of_zeros_stays_zero_and_rounding_twice_changes_nothing():
    weight = torch.randn(3, 40)
    weight[1] = 0
    integers, scale = quantize(weight, 0, 8)
    assert scale[1].item() == 1
    assert not integers[1].any()
    again, _ = quantize(integers * scale, 0, 8)
    assert torch.equal(again, integers)


def net_of_layers() -> ElasticWrapper:
    blocks = [
        nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ConvTranspose2d(16, 16, 3, groups=2))
        for _ in range(2)
    ]
    blocks[0][1] = nn.Conv2d(16, 16, 1)  # 256 weights: too few
    return ElasticWrapper(blocks, nn.Conv2d(16, 16, 3), nn.Conv2d(12, 16, 3)).eval()


def test_blocks_take_8_bits_the_ends_16_and_small_layers_stay():
    net = net_of_layers()
    rounded = quantized_copy(net, keep_integers=False)
    kept = quantized_copy(net, keep_integers=True)
    names = ("stem", "blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1", "head")
    before, after = (each.state_dict() for each in (net, rounded))
    axes, widths = (0, 0, 0, 0, 1, 0), (16, 8, 0, 8, 8, 16)
    for name, axis, bits in zip(names, axes, widths, strict=True):
        weight = before[f"{name}.weight"]
        expected = torch.mul(*quantize(weight, axis, bits)) if bits else weight
        assert torch.equal(after[f"{name}.weight"], expected), name
        assert torch.equal(after[f"{name}.bias"], before[f"{name}.bias"])
    assert torch.equal(after["blocks.0.1.weight"], before["blocks.0.1.weight"])
    kinds = {tensor.dtype for tensor in kept.state_dict().values()}
    assert kinds == {torch.float32, torch.int8, torch.int16}
    x = torch.randn(1, 12, 9, 8)
    assert torch.equal(kept(x), rounded(x))
    assert not torch.equal(kept(x), net(x))


def test_both_layers_that_share_a_weight_are_rounded():
    first, second = nn.Linear(40, 40), nn.Linear(40, 40)
    second.weight = first.weight
    net = ElasticWrapper([first, second], nn.Identity())
    expected = torch.mul(*quantize(first.weight.detach(), 0, 8))
    rounded = quantized_copy(net, keep_integers=False)
    for block in rounded.blocks:
        assert torch.equal(block.weight, expected)  # pyright: ignore[reportArgumentType]
