"""What stands for a head in exported files: convolutions, a pixel shuffle and a division.

The heads enlarge the input image with PyTorch's antialiased bicubic resize and take a plane of ones
of the image's size. Some runtimes have no such resize, compute another one at the border, or cannot
read the size of an image that may have any. Here both are made of operators that all of them have.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet._modules.copies import detached_copy

NUM_COLOURS = 3
REACH = 2  # the cubic kernel takes pixels up to two away: 5 in each direction
A = -0.5  # the parameter of the cubic kernel, as in `heads.bicubic_upsample`


class PlaneOfOnes(nn.Module):
    """Ones of an image's size, without a look at its shape: a convolution with weights of zero.

    Where a pixel is infinite or NaN, the plane holds NaN, and so do the pixels that a convolution
    takes from it. An ASRN's own 3x3 convolutions spread NaN further than that.

    Args:
        channels: Of the image or of the features.
    """

    zeros: Tensor
    one: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(1, channels, 1, 1))
        self.register_buffer("one", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the ones, (b, 1, h, w).

        Args:
            x: (b, channels, h, w).
        """
        return F.conv2d(x, self.zeros, self.one)


class BicubicConvs(nn.Module):
    """`heads.bicubic_upsample` as convolutions: equal to it within 2e-6, borders included.

    Each sub-pixel of an LR pixel is a weighted sum of the 5x5 pixels around it. At the border the
    resize leaves out what lies outside of the image and divides by the sum of the weights that are
    left. A zero-padded convolution leaves it out, too, and the same convolution of a plane of ones
    gives the sum of the weights.

    Args:
        scale: How many times as long each side becomes, from 1.
    """

    kernel: Tensor
    weight_sums: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        of_one_colour = bicubic_kernel(scale)[:, None]  # (scale^2, 1, 5, 5)
        # each colour takes from itself alone; a dense kernel, since not all runtimes have groups
        kernel = torch.zeros(NUM_COLOURS, scale**2, NUM_COLOURS, 5, 5, dtype=torch.float64)
        for colour in range(NUM_COLOURS):
            kernel[colour, :, colour] = of_one_colour[:, 0]
        self.register_buffer("kernel", kernel.flatten(0, 1).float())
        self.register_buffer("weight_sums", of_one_colour.repeat(NUM_COLOURS, 1, 1, 1).float())
        self.ones = PlaneOfOnes(NUM_COLOURS)

    def forward(self, image: Tensor) -> Tensor:
        """Return the enlarged image (b, 3, scale h, scale w).

        Args:
            image: (b, 3, h, w), of any range.
        """
        return F.pixel_shuffle(self.on_lr_grid(image), self.scale)

    def on_lr_grid(self, image: Tensor) -> Tensor:
        """Return the enlarged image before its pixel shuffle, (b, 3 scale^2, h, w).

        Args:
            image: (b, 3, h, w).
        """
        sums = F.conv2d(image, self.kernel, padding=REACH)
        weights = F.conv2d(self.ones(image), self.weight_sums, padding=REACH)
        return sums / weights


def bicubic_kernel(scale: int) -> Tensor:
    """Return what each sub-pixel takes from the 5x5 LR pixels around its own, (scale^2, 5, 5).

    The weights of each sub-pixel sum to 1; float64.

    Args:
        scale: The number of sub-pixels along each side of an LR pixel.
    """
    # where the middle of each sub-pixel lies, in LR pixels from the middle of its own
    offsets = (torch.arange(scale, dtype=torch.float64) + 0.5) / scale - 0.5  # (scale,)
    neighbours = torch.arange(-REACH, REACH + 1, dtype=torch.float64)  # (5,)
    along_one_axis = _cubic(neighbours - offsets[:, None])  # (scale, 5)
    kernel = torch.einsum("ih,jw->ijhw", along_one_axis, along_one_axis)
    return kernel.flatten(0, 1)


def _cubic(distance: Tensor) -> Tensor:
    """Keys's cubic kernel at these distances, of pieces on 0..1 and 1..2."""
    d = distance.abs()
    near = (A + 2) * d**3 - (A + 3) * d**2 + 1
    far = A * (d**3 - 5 * d**2 + 8 * d - 4)
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))


class GraphFoldedHead(nn.Module):
    """What stands for a `FoldedHead`: everything on the LR grid, and one pixel shuffle.

    Args:
        conv: The convolution of the features, channels -> 3 scale^2.
        inner: The one of the plane of ones that carries the inner biases; None where there are
            none.
        scale: How many times as long each side becomes.
        has_skip: Whether the enlarged input image is added.
    """

    def __init__(
        self, conv: nn.Conv2d, inner: nn.Conv2d | None, scale: int, has_skip: bool
    ) -> None:
        super().__init__()
        self.scale = scale
        # A trained head's weights are tiny, 0.007 at most at x4, since its features are large. As
        # float16, one in seven would be below the normal numbers, and pnnx takes those for zero:
        # the image was wrong by up to 6 of 255. So they are multiplied by a power of two, which
        # loses no bit, and the output is divided by it.
        self.factor = power_of_two_to_one(conv.weight)
        self.conv = _multiplied(conv, self.factor)
        self.inner = None if inner is None else _multiplied(inner, self.factor)
        self.ones = PlaneOfOnes(conv.in_channels)
        self.bicubic = BicubicConvs(scale) if has_skip else None

    def forward(self, features: Tensor, image: Tensor | None = None) -> Tensor:
        """Return the prediction (b, 3, scale h, scale w).

        Args:
            features: (b, channels, h, w).
            image: The network's input (b, 3, h, w); needed with a skip.
        """
        output = self.conv(features)  # (b, 3 scale^2, h, w)
        if self.inner is not None:
            output = output + self.inner(self.ones(features))
        output = output * (1 / self.factor)
        if self.bicubic is not None:
            assert image is not None  # the wrapper calls a head with a skip so
            output = output + self.bicubic.on_lr_grid(image)
        return F.pixel_shuffle(output, self.scale)


def power_of_two_to_one(weight: Tensor) -> float:
    """Return the power of two, 1 or more, that brings the largest weight between a half and 1.

    Args:
        weight: Of any shape. The factor is 1 for weights that are larger already, or all zero.
    """
    largest = weight.abs().max().item()
    if largest == 0:
        return 1.0
    _, exponent = math.frexp(largest)  # largest = mantissa * 2^exponent, the mantissa in 0.5..1
    return 2.0 ** max(0, -exponent)


def _multiplied(conv: nn.Conv2d, factor: float) -> nn.Conv2d:
    """A copy of a convolution whose output is `factor` times as large."""
    copy = detached_copy(conv)
    with torch.no_grad():
        copy.weight *= factor
        if copy.bias is not None:
            copy.bias *= factor
    return copy


class GraphSkipHead(nn.Module):
    """What stands for a head with a bicubic skip that is not folded.

    Args:
        head: The head without its skip; called with the features alone.
        scale: How many times as long each side becomes.
    """

    takes_all_taps = True  # as the heads that it stands for

    def __init__(self, head: nn.Module, scale: int) -> None:
        super().__init__()
        self.head = head
        self.bicubic = BicubicConvs(scale)

    def forward(
        self, features: Tensor | tuple[Tensor, ...], image: Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the prediction (b, 3, scale h, scale w), or a tuple with one for each tap.

        Args:
            features: (b, channels, h, w), or a tuple of those of several taps.
            image: The network's input (b, 3, h, w).
        """
        skip = self.bicubic(image)  # (b, 3, scale h, scale w)
        output: Tensor | tuple[Tensor, ...] = self.head(features)
        if isinstance(output, tuple):
            return tuple(each + skip for each in output)
        return output + skip
