"""How far a network sees: known networks, a naive count in two dimensions, networks without a
bounded reach.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elasticnet.sr import asrn, edsr, rcan
from elasticnet.sr.benchmark import evaluate
from elasticnet.sr.data import pairs_from_arrays
from elasticnet.sr.inference.receptive_field import footprint
from elasticnet.sr.inference.scale import scale_of
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
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


class ReplacesNaN(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.nan_to_num()


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


@pytest.mark.parametrize(
    ("kernel_size", "padding"), [((9, 1), (4, 0)), ((1, 9), (0, 4))], ids=["height", "width"]
)
def test_reach_beyond_the_first_strips_along_one_axis_only(
    kernel_size: tuple[int, int], padding: tuple[int, int]
) -> None:
    blocks = [nn.Conv2d(3, 3, kernel_size, padding=padding) for _ in range(30)]
    net = ElasticWrapper(blocks, Twice())
    assert [footprint(net, depth).reach for depth in (1, 8, 30)] == [4, 32, 120]
    assert footprint(net).scale == 2


@pytest.mark.parametrize(
    "block", [GlobalMean(), Strided(), Hiding()], ids=lambda block: type(block).__name__
)
def test_no_tiles_can_equal_the_whole(block: nn.Module) -> None:
    net = ElasticWrapper([nn.Identity(), block, nn.Conv2d(3, 3, 3, padding=1)], Twice())
    assert [footprint(net, depth).reach for depth in net.taps] == [0, None, None]


def test_a_net_that_replaces_nan_and_sees_far_alone_has_no_reach() -> None:
    """Only a strip that is longer than the dilation shows that the net sees other pixels at all."""
    dilated = nn.Conv2d(3, 3, 3, padding=100, dilation=100)

    net = ElasticWrapper([nn.Sequential(ReplacesNaN(), dilated)], Twice())

    assert footprint(net).reach is None


def test_a_deeper_block_that_replaces_nan_does_not_hide_what_the_shallowest_depth_sees() -> None:
    faint = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    with torch.no_grad():
        faint.weight.fill_(1e-6)
        faint.weight[:, :, 1, 1] = 1.0  # what it sees of the other pixels is below the tolerance

    net = ElasticWrapper([faint, ReplacesNaN()], Twice())

    assert [footprint(net, depth).reach for depth in net.taps] == [1, 1]


def test_channel_attention_sees_the_whole_image() -> None:
    found = footprint(rcan(2, 2, 8, group_size=1, reduction=4), 1)
    without_attention = footprint(edsr(2, 1, 8))
    assert found == without_attention._replace(reach=None)


def test_memory_is_that_of_the_tensors_held_at_once() -> None:
    head = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    float32 = footprint(ElasticWrapper([nn.Identity()], head)).bytes_per_pixel
    # the input is held throughout, and each layer's input until it is done
    assert float32 == 4 * (3 + 8 + 8)
    assert footprint(ElasticWrapper([nn.Identity()], head.half())).bytes_per_pixel == float32 / 2


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
        ValueError, match=r"makes \(1, 3, 16, 8\) of \(1, 3, 16, 16\): expected one that enlarges"
    ):
        footprint(ElasticWrapper([nn.Identity()], nn.AvgPool2d((1, 2))))
    with pytest.raises(ValueError, match="depth 4"):
        footprint(asrn(2, 1, 8), 4)


class SeesAt(nn.Module):
    """The sum of the pixels at some distances below and above each pixel; 0 beyond the image."""

    def __init__(self, *distances: int) -> None:
        super().__init__()
        self.distances = distances

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        total = torch.zeros_like(x)
        for distance in self.distances:
            if abs(distance) < height:
                padded = nn.functional.pad(x, (0, 0, max(-distance, 0), max(distance, 0)))
                start = max(distance, 0)
                total = total + padded[:, :, start : start + height]
        return total


@pytest.mark.parametrize(
    ("distances", "reach"),
    [
        ((0, 30, -31), 31),  # the shortest strip that shows it has no pixel out of reach of a cut
        ((0, 31, -30), 31),
        ((0, 30, -30), 30),
        ((0, 510, -510), 510),
        ((0, 510), 510),
        ((0, 511), None),
        ((0, -511), None),
    ],
)
def test_reach_of_a_layer_that_skips_pixels(distances: tuple[int, ...], reach: int | None) -> None:
    assert footprint(ElasticWrapper([SeesAt(*distances)], nn.Identity())).reach == reach


def test_a_layer_that_skips_pixels_gives_the_same_image_in_tiles() -> None:
    conv = nn.Conv2d(3, 3, (3, 1), padding=(100, 0), dilation=(100, 1))
    net = ElasticWrapper([conv], nn.Identity()).eval()
    image = np.random.default_rng(0).random((300, 9, 3), dtype=np.float32)
    in_tiles = upscale_array(image, plan_upscale(net, tile=40))
    whole = upscale_array(image, plan_upscale(net, tile=None))
    np.testing.assert_allclose(in_tiles, whole, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_trained_net_of_another_type_with_the_old_weight_norm_is_measured() -> None:
    body = nn.utils.weight_norm(nn.Conv2d(3, 3, 3, padding=1))
    net = ElasticWrapper([body], nn.Identity()).double()
    net(torch.rand(1, 3, 9, 9, dtype=torch.float64)).mean().backward()

    measured = footprint(net)

    assert measured.reach == 1


class Dilated(nn.Module):
    """Sees as far as an attribute says that the text of no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 3, 3, 3))
        self.dilation = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = self.dilation
        return nn.functional.conv2d(x, self.weight, padding=margin, dilation=self.dilation)


def blur_everything(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output + output.mean(dim=(2, 3), keepdim=True)


def test_a_setting_or_a_hook_that_changes_the_reach_is_noticed() -> None:
    net = ElasticWrapper([Dilated()], nn.Identity())
    block: Any = net.blocks[0]
    reaches = [footprint(net).reach]
    block.dilation = 3
    reaches.append(footprint(net).reach)
    block.register_forward_hook(blur_everything)
    reaches.append(footprint(net).reach)

    assert reaches == [1, 3, None]


class Caching(nn.Module):
    """Computes a table when it first runs, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.table: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.table = torch.arange(3.0).cos()[:, None, None]
        return x + self.conv(x) * self.table


def score(net: ElasticWrapper) -> None:
    photos = {"noise": np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)}
    evaluate(net, pairs_from_arrays(photos, scale=1))


def enlarge(net: ElasticWrapper) -> None:
    upscale_array(np.zeros((9, 9, 3), np.uint8), plan_upscale(net))


@pytest.mark.parametrize("use", [score, enlarge, footprint, scale_of])
def test_a_net_that_keeps_a_table_can_be_trained_afterwards(
    use: Callable[[ElasticWrapper], object],
) -> None:
    net = ElasticWrapper([Caching()], nn.Conv2d(3, 3, 1))

    use(net)

    net.train()(torch.rand(1, 3, 9, 9)).sum().backward()


def test_a_network_that_is_changed_is_measured_again() -> None:
    net = asrn(2, num_blocks=2, channels=8).eval()
    before = footprint(net)
    assert before.reach is not None
    net.blocks[0] = nn.Conv2d(8, 8, 3, padding=8, dilation=8)
    assert footprint(net).reach == before.reach + 4  # a MAB sees 4 pixels to each side, this 8
    assert footprint(net.half()).bytes_per_pixel < before.bytes_per_pixel
