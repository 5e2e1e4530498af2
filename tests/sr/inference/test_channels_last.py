"""Networks get images with their channels last in memory, as convolutions are fastest."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from elasticnet.sr.benchmark.scores import predict_depths
from elasticnet.sr.inference.channels_last import channels_last
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale
from elasticnet.wrapper import ElasticWrapper

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


class Recorder(nn.Module):
    """Repeats pixels, and keeps the strides of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.strides: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.strides.append(x.stride())
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def recording_net() -> tuple[ElasticWrapper, Recorder]:
    recorder = Recorder()
    return ElasticWrapper([nn.Identity()], recorder).eval(), recorder


def test_a_permuted_image_counts_as_channels_last_afterwards() -> None:
    permuted = torch.rand(20, 30, 3).permute(2, 0, 1)[None]  # (1, 3, 20, 30)
    image = channels_last(permuted)
    assert image.stride() == (20 * 30 * 3, 1, 30 * 3, 3)
    assert torch.equal(image, permuted)
    conv = nn.Conv2d(3, 8, 3)
    assert conv(image).is_contiguous(memory_format=torch.channels_last)
    assert not conv(permuted).is_contiguous(memory_format=torch.channels_last)


def test_an_image_in_this_layout_is_not_copied() -> None:
    image = torch.rand(2, 20, 30, 3).permute(0, 3, 1, 2)
    assert channels_last(image) is image


def test_upscaling_and_scoring_give_the_network_this_layout() -> None:
    net, recorder = recording_net()
    plans = [plan_upscale(net), plan_upscale(net, self_ensemble=True)]
    recorder.strides.clear()  # of the measurement of how far the network sees
    for plan in plans:
        upscale_array(IMAGE, plan)
    predict_depths(net, IMAGE)
    predict_depths(net, IMAGE, self_ensemble=True)
    assert len(recorder.strides) == 1 + 8 + 1 + 8
    whole = IMAGE.size
    for strides in recorder.strides:
        assert strides in [(whole, 1, 30 * 3, 3), (whole, 1, 20 * 3, 3)]  # upright or turned
