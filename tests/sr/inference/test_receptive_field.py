"""How far a network sees: known networks, a naive count in two dimensions, networks without a
bounded reach.
"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from elasticnet.sr import asrn, edsr, rcan
from elasticnet.sr.inference.receptive_field import footprint
from elasticnet.wrapper import ElasticWrapper


class Twice(nn.Module):
    """Enlarges by 2, by repeating pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


class Strided(nn.Module):
    """A mean over 2x2 blocks, repeated: what a pixel sees depends on where it lies."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(nn.functional.avg_pool2d(x, 2), scale_factor=2.0)


class Hiding(nn.Module):
    """A convolution behind which a NaN is no longer seen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).nan_to_num()


class GlobalMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean((2, 3), keepdim=True)


def counted_in_two_dimensions(net: ElasticWrapper, depth: int, side: int = 61) -> int:
    """How far one NaN in the middle of a square image spreads."""
    x = torch.rand(1, 3, side, side)
    x[..., side // 2, side // 2] = torch.nan
    with torch.inference_mode():
        y = net.eval()(x, depth=depth)
    scale = y.shape[-1] // side
    places = y.isnan().any(1)[0].nonzero() // scale - side // 2
    return int(places.abs().max())


@pytest.mark.parametrize(
    ("net", "reaches"),
    [
        (asrn(2, 3, 8), (7, 11, 15)),  # two convs of the stem, four a block, one of the head
        (asrn(3, 2, 8, skip="bicubic", fold=False), (7, 11)),
        (asrn(4, 1, 8, skip="bicubic"), (7,)),
        (asrn(4, 1, 8, upsampler="subpixel"), (8,)),
        # one of the stem, two a block, one behind them, two of the folded tail
        (edsr(2, 3, 8), (6, 8, 10)),
        (edsr(4, 1, 8, fold=False), (6,)),
    ],
)
def test_reach_of_the_built_in_networks(net: ElasticWrapper, reaches: tuple[int, ...]) -> None:
    assert tuple(footprint(net, depth).reach for depth in net.taps) == reaches
    assert counted_in_two_dimensions(net, net.taps[-1]) == reaches[-1]


def test_reach_beyond_the_first_strips() -> None:
    blocks = [nn.Conv2d(3, 3, (9, 1), padding=(4, 0)) for _ in range(30)]
    net = ElasticWrapper(blocks, Twice())
    # along one axis only
    assert [footprint(net, depth).reach for depth in (1, 8, 30)] == [4, 32, 120]
    assert footprint(net).scale == 2


@pytest.mark.parametrize(
    "block", [GlobalMean(), Strided(), Hiding()], ids=lambda block: type(block).__name__
)
def test_no_tiles_can_equal_the_whole(block: nn.Module) -> None:
    net = ElasticWrapper([nn.Identity(), block, nn.Conv2d(3, 3, 3, padding=1)], Twice())
    assert [footprint(net, depth).reach for depth in net.taps] == [0, None, None]


def test_channel_attention_sees_the_whole_image() -> None:
    found = footprint(rcan(2, 2, 8, group_size=1, reduction=4), 1)
    without_attention = footprint(edsr(2, 1, 8))
    assert found == without_attention._replace(reach=None)


def test_memory_is_that_of_the_tensors_held_at_once() -> None:
    head = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    float32 = footprint(ElasticWrapper([nn.Identity()], head)).memory
    # the input is held throughout, and each layer's input until it is done
    assert float32 == 4 * (3 + 8 + 8)
    assert footprint(ElasticWrapper([nn.Identity()], head.half())).memory == float32 / 2


def test_a_network_is_measured_once_and_left_as_it_was() -> None:
    net = ElasticWrapper([nn.Dropout(0.5), nn.Conv2d(3, 3, 3, padding=1)], Twice()).train()
    calls: list[int] = []
    net.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    first = footprint(net)
    assert first.reach == 1
    assert net.training
    assert net.blocks[0].training
    count = len(calls)
    assert count > 0
    assert footprint(net) == footprint(net, -1) == first
    assert len(calls) == count


def test_a_forgotten_network_is_freed() -> None:
    net = asrn(2, 1, 8)
    footprint(net)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_networks_that_do_not_enlarge_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"makes \(1, 3, 16, 8\) of \(1, 3, 16, 16\): expected an image a whole"
    ):
        footprint(ElasticWrapper([nn.Identity()], nn.AvgPool2d((1, 2))))
    with pytest.raises(ValueError, match="depth 4"):
        footprint(asrn(2, 1, 8), 4)
