"""A hook keeps what a layer returned, and no later code writes into it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract import same
from elasticnet.sr import asrn

X = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))


class Recorder:
    """A hook that keeps the output of a layer, and a copy of it."""

    def __init__(self, layer: nn.Module) -> None:
        self.kept: list[Tensor] = []
        self.copies: list[Tensor] = []
        layer.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.kept.append(output)
        self.copies.append(output.clone())


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("upsampler", ["deconv", "subpixel"])
@pytest.mark.parametrize("name", ["blocks.0.fusion", "blocks.0.groups.1", "head.output"])
def test_what_a_hook_keeps_of_an_asrn_stays_as_the_layer_returned_it(
    name: str, upsampler: str, fold: bool
) -> None:
    net = asrn(2, num_blocks=1, channels=8, upsampler=upsampler, skip="bicubic", fold=fold).eval()
    with torch.no_grad():
        expected = net(X)
        recorder = Recorder(net.get_submodule(name))

        prediction = net(X)

    assert len(recorder.kept) == 1
    same(recorder.kept, recorder.copies, name)
    # With a hook the layers run one by one, so that a folded net differs by rounding.
    torch.testing.assert_close(prediction, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", ["shufflenet", "res2net"])
def test_what_a_hook_keeps_of_the_other_blocks_stays_as_it_was(block: str) -> None:
    net = asrn(2, num_blocks=1, channels=8, block=block).eval()
    recorder = Recorder(net.get_submodule("blocks.0.fusion"))

    with torch.no_grad():
        net(X)

    assert len(recorder.kept) == 1
    same(recorder.kept, recorder.copies, block)
