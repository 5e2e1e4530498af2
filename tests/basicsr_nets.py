"""EDSR and RCAN with the names, the constant mean and the range 0..1 that they have in BasicSR."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEAN = (0.4488, 0.4371, 0.4040)
RANGE = 255.0


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, 1, 1)


class BasicEdsrBlock(nn.Module):
    def __init__(self, channels: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu()) * self.res_scale


class BasicAttention(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class BasicRcanBlock(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.rcab = nn.Sequential(
            conv3x3(channels, channels),
            nn.ReLU(),
            conv3x3(channels, channels),
            BasicAttention(channels, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.rcab(x) + x


class BasicGroup(nn.Module):
    def __init__(self, channels: int, group_size: int, reduction: int) -> None:
        super().__init__()
        blocks = [BasicRcanBlock(channels, reduction) for _ in range(group_size)]
        self.residual_group = nn.Sequential(*blocks)
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.residual_group(x)) + x


class BasicFrame(nn.Module):
    """What both networks have around their blocks."""

    def __init__(self, blocks: list[nn.Module], channels: int, scale: int) -> None:
        super().__init__()
        self.mean = torch.tensor(MEAN).view(1, 3, 1, 1)  # no buffer: it is not in the state dict
        self.conv_first = conv3x3(3, channels)
        self.body = nn.Sequential(*blocks)
        self.conv_after_body = conv3x3(channels, channels)
        steps = {2: (2,), 3: (3,), 4: (2, 2)}[scale]
        layers: list[nn.Module] = []
        for step in steps:
            layers += [conv3x3(channels, channels * step**2), nn.PixelShuffle(step)]
        self.upsample = nn.Sequential(*layers)
        self.conv_last = conv3x3(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) * RANGE
        x = self.conv_first(x)
        x = self.conv_after_body(self.body(x)) + x
        return self.conv_last(self.upsample(x)) / RANGE + self.mean


def basic_edsr(scale: int, num_blocks: int, channels: int, res_scale: float = 1.0) -> BasicFrame:
    blocks: list[nn.Module] = [BasicEdsrBlock(channels, res_scale) for _ in range(num_blocks)]
    return BasicFrame(blocks, channels, scale).eval()


def basic_rcan(
    scale: int, num_groups: int, channels: int, group_size: int, reduction: int
) -> BasicFrame:
    groups: list[nn.Module] = [
        BasicGroup(channels, group_size, reduction) for _ in range(num_groups)
    ]
    return BasicFrame(groups, channels, scale).eval()
