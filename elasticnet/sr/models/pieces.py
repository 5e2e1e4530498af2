"""The folded head as pieces of the image that overlap: a quarter of its multiplications.

The folded head is one conv3x3 on the LR grid (see `heads`), but most of its kernel is zero: each
LR pixel reaches the scale * scale HR pixels in its own place and, by the head's last conv3x3, one
more on each side. These (scale + 2)^2 HR pixels are its piece. Here a 1x1 convolution makes all
pieces, and where they overlap they are added. At x4 a pixel then takes 36 products a channel and
colour in place of 144. The additions and the copies of the borders pay in training on a CPU, where
the gradients take the same way back.

Pieces are (b, 3, side, side, h, w) with side = scale + 2, the place in the piece before the place
in the image: so each addition is one of whole rows. Subpixels are (b, 3, scale, scale, h, w); as
(b, 3 scale^2, h, w) they are what `torch.nn.functional.pixel_unshuffle` makes of an image.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from elasticnet._autocast import without_autocast

COLOURS = 3


def subpixels_of_pieces(features: Tensor, kernel: Tensor, base: Tensor) -> Tensor:
    """Return what a linear head makes of features, on the LR grid.

    The products are in the dtype of the features, or in that of autocast. The sums of pieces that
    overlap are in at least float32.

    Args:
        features: (b, channels, h, w).
        kernel: The piece of each channel's impulse (3 side^2, channels), where side = scale + 2.
        base: What is added, such as the biases: subpixels (b or 1, 3, scale, scale, h, w), in at
            least float32.

    Returns:
        The subpixels (b, 3, scale, scale, h, w), in at least float32.
    """
    dtype = features.dtype
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    with without_autocast(features.device):
        return _Subpixels.apply(features.to(dtype), kernel.to(dtype), base)  # pyright: ignore[reportReturnType]


def subpixels_of_image(image: Tensor, scale: int) -> Tensor:
    """Return what `F.pixel_unshuffle` does, contiguous; faster than it for channels-last images.

    Args:
        image: (b, c, scale h, scale w).
        scale: How many pixels a side go into one position.

    Returns:
        (b, c scale^2, h, w).
    """
    return rearrange(image, "b c (h sh) (w sw) -> b (c sh sw) h w", sh=scale, sw=scale).contiguous()


class _Subpixels(torch.autograd.Function):
    """The pieces of all pixels, added up, plus `base`; linear in each of the three."""

    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor, kernel: Tensor, base: Tensor) -> Tensor:
        return _pieces_added_up(features, kernel) + base

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        features, kernel, base = inputs
        ctx.save_for_backward(features, kernel)
        ctx.save_for_forward(features, kernel)
        ctx.shape_of_base = base.shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, kernel = ctx.saved_tensors
        batch, _, height, width = features.shape
        with without_autocast(gradient.device):
            pieces = _cut_into_pieces(gradient.to(features.dtype))
            pieces = pieces.view(batch, -1, height * width)  # (b, 3 side^2, h w)
            kernels = kernel.expand(batch, -1, -1)
            # in the memory format of the features, as what follows is slow across formats
            if features.is_contiguous():
                of_features = torch.bmm(kernels.mT, pieces)  # (b, channels, h w)
            else:
                of_features = torch.bmm(pieces.mT, kernels).mT
            positions_first = features.flatten(2).mT  # (b, h w, channels)
            of_kernel = torch.bmm(pieces, positions_first).sum(dim=0)  # (3 side^2, channels)
        of_features = of_features.reshape(features.shape)
        of_base = gradient.sum_to_size(ctx.shape_of_base)
        return of_features, of_kernel, of_base

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        features, kernel = ctx.saved_tensors
        of_features, of_kernel, of_base = tangents
        by_features = _pieces_added_up(of_features, kernel)
        by_kernel = _pieces_added_up(features, of_kernel)
        return by_features + by_kernel + of_base


def _pieces_added_up(features: Tensor, kernel: Tensor) -> Tensor:
    """Make the pieces of all pixels (b, 3, side, side, h, w), and return their subpixels."""
    batch, _, height, width = features.shape
    side = math.isqrt(kernel.shape[0] // COLOURS)
    # A sample at a time, so that each row of `pieces` is a plane of the image.
    kernels = kernel.expand(batch, -1, -1)  # (b, 3 side^2, channels)
    pieces = torch.bmm(kernels, features.flatten(2))  # (b, 3 side^2, h w)
    wide = torch.promote_types(pieces.dtype, torch.float32)
    pieces = pieces.to(wide).view(batch, COLOURS, side, side, height, width)
    return _added_up(pieces)


def _added_up(pieces: Tensor) -> Tensor:
    """Add each piece's border to the pieces beside it, in place; return the subpixels, a view."""
    # rows: those above a pixel's own are added to the last ones of the pixel above it
    rows = pieces[:, :, 1:-1]  # (b, 3, scale, side, h, w)
    rows[:, :, -1, :, :-1] += pieces[:, :, 0, :, 1:]
    rows[:, :, 0, :, 1:] += pieces[:, :, -1, :, :-1]
    # columns, of which the rows are complete now, so that the corners come along
    subpixels = rows[:, :, :, 1:-1]  # (b, 3, scale, scale, h, w)
    subpixels[:, :, :, -1, :, :-1] += rows[:, :, :, 0, :, 1:]
    subpixels[:, :, :, 0, :, 1:] += rows[:, :, :, -1, :, :-1]
    return subpixels


def _cut_into_pieces(subpixels: Tensor) -> Tensor:
    """Return the piece of every pixel, 0 beyond the image: the transpose of `_added_up`."""
    batch, colours, scale, _, height, width = subpixels.shape
    side = scale + 2
    pieces = subpixels.new_zeros(batch, colours, side, side, height, width)
    rows = pieces[:, :, 1:-1]  # (b, 3, scale, side, h, w)
    rows[:, :, :, 1:-1] = subpixels
    rows[:, :, :, 0, :, 1:] = subpixels[:, :, :, -1, :, :-1]
    rows[:, :, :, -1, :, :-1] = subpixels[:, :, :, 0, :, 1:]
    pieces[:, :, 0, :, 1:] = rows[:, :, -1, :, :-1]
    pieces[:, :, -1, :, :-1] = rows[:, :, 0, :, 1:]
    return pieces
