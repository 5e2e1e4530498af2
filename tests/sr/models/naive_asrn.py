"""ASRN written a second time, as plainly as can be: what the tests compare the library's with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet import ElasticWrapper
from elasticnet.sr.models.asrn_blocks import (
    ChannelAffine,
    MultiScaleBlock,
    Res2NetBlock,
    ShuffleNetBlock,
)
from elasticnet.sr.models.heads import DeconvHead, SubpixelHead, bicubic_upsample


def naive_asrn(net: ElasticWrapper, image: Tensor, depth: int) -> Tensor:
    """Return the prediction (b, 3, scale h, scale w) of a network that `asrn` built."""
    assert net.stem is not None
    features = net.stem(image)
    for block in net.blocks[:depth]:
        features = naive_block(block, features)
    if str(depth) in net.adapters:
        features = naive_adapter(net.adapters[str(depth)], features)
    return naive_head(net.head, features, image)


def naive_adapter(adapter: nn.Module, features: Tensor) -> Tensor:
    """Return the features (b, channels, h, w) that the shared head takes at one tap."""
    weight = adapter.get_parameter("weight")
    if isinstance(adapter, ChannelAffine):
        return features * weight + adapter.bias
    return pointwise(features, weight)


def naive_head(head: nn.Module, features: Tensor, image: Tensor) -> Tensor:
    """Return the prediction of the shared head, layer by layer."""
    assert isinstance(head, DeconvHead | SubpixelHead)
    if isinstance(head, DeconvHead):
        output = head.output(head.deconvs(head.reduce(features)))
    else:
        output = head.output(F.pixel_shuffle(head.expand(features), head.scale))
    if head.skip is not None:
        output = output + bicubic_upsample(image, head.scale)
    return output


def naive_block(block: nn.Module, x: Tensor) -> Tensor:
    """Return the output (b, channels, h, w) of a block of any kind."""
    if isinstance(block, MultiScaleBlock):
        return naive_mab(block, x)
    if isinstance(block, ShuffleNetBlock):
        return naive_shufflenet(block, x)
    assert isinstance(block, Res2NetBlock)
    return naive_res2net(block, x)


def naive_mab(block: MultiScaleBlock, x: Tensor) -> Tensor:
    """Equation 6 of the paper, and what stands around it."""
    width = x.shape[1] // 4
    expanded = pointwise(x, block.expand.weight)
    y = torch.empty_like(x)
    for index in range(4):
        channels = slice(index * width, (index + 1) * width)
        group = expanded[:, channels]
        if index > 0 and block.residual_links:
            group = group + y[:, (index - 1) * width : index * width]
        weight = block.groups[index].get_parameter("weight")
        y[:, channels] = F.conv2d(group, weight, padding=1).clamp_min(0)
    if block.shuffle:
        y = shuffled(y)
    if block.fusion is not None:
        y = pointwise(y, block.fusion.weight)
    return x + y if block.residual else y


def naive_shufflenet(block: ShuffleNetBlock, x: Tensor) -> Tensor:
    """Fig. 2 (b) of ShuffleNet, channel by channel where it is depthwise."""
    y = grouped_pointwise(x, block.expand.weight).clamp_min(0)
    y = shuffled(y)
    kernels = block.depthwise.weight
    channels = [
        F.conv2d(y[:, index : index + 1], kernels[index : index + 1], padding=1)
        for index in range(y.shape[1])
    ]
    y = torch.cat(channels, dim=1)
    return x + grouped_pointwise(y, block.fusion.weight)


def naive_res2net(block: Res2NetBlock, x: Tensor) -> Tensor:
    """Equation 1 of Res2Net, written out for four groups."""
    x1, x2, x3, x4 = pointwise(x, block.expand.weight).clamp_min(0).chunk(4, 1)
    k2, k3, k4 = (conv.get_parameter("weight") for conv in block.groups)
    y1 = x1
    y2 = F.conv2d(x2, k2, padding=1).clamp_min(0)
    y3 = F.conv2d(x3 + y2, k3, padding=1).clamp_min(0)
    y4 = F.conv2d(x4 + y3, k4, padding=1).clamp_min(0)
    return x + pointwise(torch.cat([y1, y2, y3, y4], dim=1), block.fusion.weight)


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """A conv1x1 as a matrix product."""
    return torch.einsum("bihw,oi->bohw", x, weight[:, :, 0, 0])


def grouped_pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """A conv1x1 of four groups, one matrix product for each."""
    pairs = zip(x.chunk(4, dim=1), weight.chunk(4), strict=True)
    return torch.cat([pointwise(group, of_group) for group, of_group in pairs], dim=1)


def shuffled(x: Tensor, num_groups: int = 4) -> Tensor:
    """Channel `place` of group `group` becomes channel `group` of the `place`-th bunch."""
    width = x.shape[1] // num_groups
    y = torch.empty_like(x)
    for group in range(num_groups):
        for place in range(width):
            y[:, place * num_groups + group] = x[:, group * width + place]
    return y
