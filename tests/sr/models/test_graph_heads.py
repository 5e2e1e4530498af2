"""What stands for heads in exported files is the same function, up to the border."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticnet.sr.models.graph_heads import (
    BicubicConvs,
    GraphFoldedHead,
    GraphSkipHead,
    PlaneOfOnes,
    power_of_two_to_one,
)
from elasticnet.sr.models.heads import DeconvHead, FoldedHead, SubpixelHead, bicubic_upsample

CHANNELS = 6


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60)
@given(
    scale=st.sampled_from([1, 2, 3, 4, 8]),
    batch=st.integers(1, 2),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
)
def test_the_convolutions_are_the_resize_borders_and_tiny_images_included(
    scale, batch, height, width
):
    image = random(batch, 3, height, width, seed=height * 25 + width)
    enlarged = BicubicConvs(scale)(image)
    # in float64, since PyTorch's own float32 coordinates drift at x3, by more than 2e-6 from 40
    # pixels on
    exact = bicubic_upsample(image.double(), scale)
    assert enlarged.shape == exact.shape
    assert (enlarged - exact).abs().max() < 2e-6


def test_the_plane_of_ones_is_one_for_any_values():
    x = torch.tensor([-1e30, 0.0, 255.0, 1e-30]).reshape(1, 2, 1, 2)
    assert torch.equal(PlaneOfOnes(2)(x), torch.ones(1, 1, 1, 2))


def test_the_plane_of_ones_is_nan_at_pixels_that_are_not_finite():
    x = torch.tensor([torch.inf, 0.0, torch.nan, 1.0]).reshape(1, 1, 2, 2)
    assert PlaneOfOnes(1)(x).isnan().flatten().tolist() == [True, False, True, False]


@pytest.mark.parametrize("skip", [None, "bicubic"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (13, 7)])
def test_the_stand_in_of_a_folded_head_is_the_head(scale, skip, size):
    torch.manual_seed(scale)
    head = DeconvHead(CHANNELS, scale, skip=skip).eval()
    stand_in = head.folded().for_export()
    assert isinstance(stand_in, GraphFoldedHead)
    features = random(2, CHANNELS, *size)
    image = random(2, 3, *size, seed=1)
    with torch.no_grad():
        difference = (stand_in(features, image) - head(features, image)).abs().max()
    assert difference < 3e-6


@pytest.mark.parametrize("kind", [DeconvHead, SubpixelHead])
def test_the_stand_in_of_a_head_that_is_not_folded_is_the_head(kind):
    torch.manual_seed(0)
    head = kind(CHANNELS, 2, skip="bicubic").eval()
    stand_in = head.for_export()
    assert isinstance(stand_in, GraphSkipHead)
    features = random(1, CHANNELS, 5, 8)
    image = random(1, 3, 5, 8, seed=1)
    with torch.no_grad():
        (expected,) = head((features,), image)
        (output,) = stand_in((features,), image)
        torch.testing.assert_close(stand_in(features, image), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(output, expected, rtol=0, atol=2e-6)
    assert head.skip == "bicubic"


def test_a_head_without_skip_stands_for_itself():
    head = SubpixelHead(CHANNELS, 2)
    assert head.for_export() is head


@pytest.mark.parametrize("kind", [DeconvHead, SubpixelHead])
def test_a_hooked_head_stands_for_itself(kind):
    head = kind(CHANNELS, 2, skip="bicubic")
    head.register_forward_hook(lambda module, arguments, output: 2 * output)
    assert head.for_export() is head


@pytest.mark.parametrize(
    ("largest", "factor"), [(0.007, 128.0), (0.5, 1.0), (0.9, 1.0), (3.0, 1.0), (0.0, 1.0)]
)
def test_tiny_weights_are_brought_between_a_half_and_one(largest, factor):
    weight = torch.tensor([largest, -largest / 3])
    assert power_of_two_to_one(weight) == factor


def test_weights_of_a_head_are_normal_float16_numbers():
    head = DeconvHead(CHANNELS, 4).eval()
    with torch.no_grad():
        head.output.weight *= 1e-4  # a trained head's are small, too
    folded = head.folded()
    assert isinstance(folded, FoldedHead)
    stand_in = folded.for_export()
    assert isinstance(stand_in, GraphFoldedHead)
    not_zero = folded.conv.weight != 0  # the others lie out of the reach of their sub-pixel
    smallest_normal = torch.finfo(torch.float16).tiny
    assert (folded.conv.weight[not_zero].abs() < smallest_normal).float().mean() > 0.9
    assert (stand_in.conv.weight[not_zero].abs() < smallest_normal).float().mean() < 0.1
