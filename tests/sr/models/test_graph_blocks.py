"""What stands for a block in exported files is the same function."""

from __future__ import annotations

import itertools

import pytest
import torch

from elasticnet.sr.models.asrn_blocks import MultiScaleBlock
from elasticnet.sr.models.graph_blocks import GraphMultiScaleBlock


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("switches", list(itertools.product([True, False], repeat=4)))
def test_the_stand_in_of_a_block_is_the_block_whatever_is_switched_off(switches, folded):
    fusion, residual_links, shuffle, residual = switches
    torch.manual_seed(0)
    block = MultiScaleBlock(
        8, fusion=fusion, residual_links=residual_links, shuffle=shuffle, residual=residual
    ).eval()
    stand_in = (block.folded() if folded else block).for_export()
    assert isinstance(stand_in, GraphMultiScaleBlock)
    x = torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(stand_in(x), block(x), rtol=0, atol=2e-6)


def doubled(module, arguments, output):
    return 2 * output


def test_a_hook_inside_a_block_goes_along():
    block = MultiScaleBlock(8).eval()
    block.expand.register_forward_hook(doubled)
    x = torch.randn(1, 8, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(block.for_export()(x), block(x))


def test_a_hooked_block_stands_for_itself():
    block = MultiScaleBlock(8)
    block.register_forward_hook(doubled)
    assert block.for_export() is block
