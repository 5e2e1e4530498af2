"""ASRN's starting point: near an interpolator of its input, from the first step on.

Stem and head are linear and the blocks residual, so that a few channels can be carried unchanged
from one end to the other. The stem's eight inner channels are R, G, B and five derivatives of the
luma, taken by central differences; each deconvolution evaluates their second-order Taylor
polynomial

    f(x + dx, y + dy) = f + dx f_x + dy f_y + dx^2/2 f_xx + dy^2/2 f_yy + dx dy f_xy

at the centres of its sub-pixels. It shifts the derivatives, too (f_x by dx f_xx + dy f_xy), so that
two deconvolutions in a row compose exactly. Every other path starts small, or at PyTorch's default.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from elasticnet.sr.models.heads import DeconvHead, SubpixelHead

# The stem's inner channels: what they carry in this start.
R, G, B, X, Y, XX, YY, XY = range(8)
COLORS = (R, G, B)
STEM_CHANNELS = 8
CARRIED = slice(0, STEM_CHANNELS)
CENTER = 1  # of a 3x3 kernel, along both axes
SMALL = 0.1  # what the paths that the start does not use are scaled by


class ResidualBlock(Protocol):
    """A block whose residual path can be made small."""

    def init_small(self) -> None:
        """Make the residual path start small beside the input."""


@torch.no_grad()
def init_interpolating(
    stem: nn.Sequential,
    blocks: Iterable[ResidualBlock],
    head: DeconvHead | SubpixelHead,
) -> None:
    """Make a network start near an interpolator of its input.

    With a bicubic skip the output takes nothing of the carried channels at first; that they are
    there spares the training a plateau.

    Args:
        stem: Two 3x3 convolutions, 3 -> 8 -> channels.
        blocks: The residual blocks.
        head: ASRN's head; it may have a skip.
    """
    for block in blocks:
        block.init_small()
    _init_stem(stem)
    if isinstance(head, DeconvHead):
        _init_deconvolutions(head)
    else:
        _init_subpixel_conv(head)
    _init_output(head)


@torch.no_grad()
def make_small(weight: Tensor) -> None:
    """Scale a weight so that its path starts small beside the carried channels.

    Args:
        weight: Changed in place, times `SMALL`.
    """
    weight.mul_(SMALL)


def _init_stem(stem: nn.Sequential) -> None:
    """The first conv computes what is carried, the second passes it on."""
    first, second = (layer for layer in stem if isinstance(layer, nn.Conv2d))
    first.weight.copy_(_taylor_filters())
    _zero_bias(first)
    second.weight[CARRIED] = 0
    for channel in range(STEM_CHANNELS):
        second.weight[channel, channel, CENTER, CENTER] = 1
    _zero_bias(second)


def _init_deconvolutions(head: DeconvHead) -> None:
    head.reduce.weight[CARRIED] = 0
    for channel in range(STEM_CHANNELS):
        head.reduce.weight[channel, channel] = 1
    _zero_bias(head.reduce)
    pixel_side = 1.0  # of what the next deconvolution takes, in LR pixels
    for deconv in head.deconv_layers():
        step = deconv.kernel_size[0]
        shifts = _taylor_shifts(step, pixel_side)  # (row, column, out, in)
        deconv.weight[:, CARRIED] = 0
        # a deconvolution's weight is (in, out, row, column)
        deconv.weight[CARRIED, CARRIED] = shifts.permute(3, 2, 0, 1)
        _zero_bias(deconv)
        pixel_side /= step


def _init_subpixel_conv(head: SubpixelHead) -> None:
    shifts = _taylor_shifts(head.scale, 1.0)  # (row, column, out, in)
    # the pixel shuffle takes its channels as (out, row, column)
    weight = head.expand.weight
    expand = weight.view(-1, head.scale, head.scale, *weight.shape[1:])
    expand[CARRIED] = 0  # (out, row, column, in, 3, 3)
    expand[CARRIED, :, :, CARRIED, CENTER, CENTER] = shifts.permute(2, 0, 1, 3)
    _zero_bias(head.expand)


def _init_output(head: DeconvHead | SubpixelHead) -> None:
    """The last conv takes the three colours, or with a skip nothing of what is carried."""
    weight = head.output.weight
    make_small(weight)
    weight[:, CARRIED] = 0
    if head.skip is None:
        for color in COLORS:
            weight[color, color, CENTER, CENTER] = 1
    _zero_bias(head.output)


def _taylor_filters() -> Tensor:
    """The stem's first kernels (8, 3, 3, 3): colours and derivatives; the unit is one LR pixel."""
    value = torch.tensor([0, 1.0, 0])
    difference = torch.tensor([-0.5, 0, 0.5])
    second_difference = torch.tensor([1.0, -2.0, 1.0])
    of_the_luma = {  # the kernel along the column (vertical), and along the row
        X: (value, difference),
        Y: (difference, value),
        XX: (value, second_difference),
        YY: (second_difference, value),
        XY: (difference, difference),
    }
    luma = torch.tensor([65.481, 128.553, 24.966]) / 219
    filters = torch.zeros(STEM_CHANNELS, 3, 3, 3)
    for color in COLORS:
        filters[color, color] = torch.outer(value, value)
    for channel, (vertical, horizontal) in of_the_luma.items():
        filters[channel] = luma[:, None, None] * torch.outer(vertical, horizontal)
    return filters


def _taylor_shifts(step: int, pixel_side: float) -> Tensor:
    """The matrices (step, step, 8, 8) that move what is carried to each sub-pixel's centre.

    `pixel_side` is that of the pixel which is divided, in LR pixels. A matrix is (out, in).
    """
    shifts = torch.eye(STEM_CHANNELS).repeat(step, step, 1, 1)
    offsets = [pixel_side * ((index + 0.5) / step - 0.5) for index in range(step)]
    for row, dy in enumerate(offsets):
        for column, dx in enumerate(offsets):
            matrix = shifts[row, column]
            for color in COLORS:
                matrix[color, X] = dx
                matrix[color, Y] = dy
                matrix[color, XX] = dx * dx / 2
                matrix[color, YY] = dy * dy / 2
                matrix[color, XY] = dx * dy
            matrix[X, XX] = dx
            matrix[X, XY] = dy
            matrix[Y, YY] = dy
            matrix[Y, XY] = dx
    return shifts


def _zero_bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    if layer.bias is not None:
        layer.bias.zero_()
