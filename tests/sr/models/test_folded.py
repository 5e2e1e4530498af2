"""What `folded()` returns: the same function as plain layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from elasticnet.sr.models.asrn_blocks import MultiScaleBlock
from elasticnet.sr.models.heads import DeconvHead


@settings(max_examples=30)
@given(
    scale=st.sampled_from([1, 2, 3, 4]),
    skip=st.sampled_from([None, "bicubic"]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_a_folded_head_is_the_plain_one_also_at_the_border(scale, skip, height, width, seed):
    torch.manual_seed(seed)
    head = DeconvHead(8, scale, hidden=6, fold=False, skip=skip)
    features, photo = torch.randn(2, 8, height, width), torch.rand(2, 3, height, width)
    with torch.no_grad():
        expected = head(features, photo)
        assert (head.folded()(features, photo) - expected).abs().max() < 1e-6
        wide = head.double()
        expected = wide(features.double(), photo.double())
        assert (wide.folded()(features.double(), photo.double()) - expected).abs().max() < 1e-12


def test_without_inner_biases_the_folded_head_is_one_conv():
    head = DeconvHead(8, 4)
    for bias in (head.reduce.bias, *(deconv.bias for deconv in head.deconv_layers())):
        nn.init.zeros_(bias)  # pyright: ignore[reportArgumentType]
    folded = head.folded()
    assert folded.inner is None
    x = torch.randn(1, 8, 5, 4)
    assert (folded(x) - head(x)).abs().max() < 1e-6


@pytest.mark.parametrize("fusion", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_folded_block_is_the_block(fusion, shuffle):
    block = MultiScaleBlock(16, fusion=fusion, shuffle=shuffle)
    x = torch.randn(2, 16, 5, 7)
    folded = block.folded()
    assert torch.equal(folded(x), block(x))
    assert folded.shuffle is (shuffle and not fusion)
