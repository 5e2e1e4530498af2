"""Weights of layers as integers with one scale for each output channel: 8 bits in the blocks, 16 in
stem and head.

Symmetric, rounded to the nearest: weight = scale * integer, the integers in -127..127 or
-32767..32767. Activations stay float, so that nothing has to be calibrated. A block adds to what it
gets, and its rounding is a small part of a small part; stem and head carry the whole signal, and at
8 bits theirs is seen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from elasticnet.wrapper import ElasticWrapper

INTEGERS = {8: torch.int8, 16: torch.int16}
SMALLEST = 1024  # values; layers below stay float: there is little to save
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def quantize(weight: Tensor, axis: int, bits: int) -> tuple[Tensor, Tensor]:
    """Return `weight` as integers, and the float scale along `axis`, with length 1 along the
    others; zeros get scale 1.

    bits: 8 or 16.
    """
    others = [other for other in range(weight.ndim) if other != axis]
    largest = weight.abs().amax(others, keepdim=True)
    scale = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    return (weight / scale).round().to(INTEGERS[bits]), scale


class _Dequantized(nn.Module):
    """The parametrization of a weight that is kept as integers and scale."""

    def __init__(self, axis: int, bits: int) -> None:
        super().__init__()
        self.axis = axis
        self.bits = bits

    def forward(self, integers: Tensor, scale: Tensor) -> Tensor:
        return integers.to(scale.dtype) * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return quantize(weight, self.axis, self.bits)


def quantize_weights(net: ElasticWrapper, keep_integers: bool) -> None:
    """Round the weights of the large linear and convolution layers of `net`, in place; they learn
    no further.

    keep_integers: hold them as integers and scale, and make the float weight in every pass; False
    holds the rounded floats.
    """
    for name, layer in list(net.named_modules()):
        if isinstance(layer, LAYERS) and layer.weight.numel() >= SMALLEST:
            axis, bits = int(isinstance(layer, TRANSPOSED)), 8 if name.startswith("blocks.") else 16
            layer.requires_grad_(False)
            parametrize.register_parametrization(
                layer, "weight", _Dequantized(axis, bits), unsafe=True
            )
            if not keep_integers:
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
