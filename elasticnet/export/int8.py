"""Weights as integers with one scale for each output channel: 8 bits in the blocks, 16 elsewhere.

Symmetric, rounded to the nearest: weight = scale * integer, the integers in -127..127 or
-32767..32767. Activations stay float, so that nothing has to be calibrated. A block adds to what it
gets, and its rounding is a small part of a small part; stem and head carry the whole signal, and at
8 bits theirs is seen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from elasticnet._modules.copies import detached_copy
from elasticnet.wrapper import ElasticWrapper

INTEGER_TYPES = {8: torch.int8, 16: torch.int16}
MIN_WEIGHTS = 1024  # layers with fewer stay float: there is little to save
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


def quantize(weight: Tensor, axis: int, bits: int) -> tuple[Tensor, Tensor]:
    """Return a weight as integers and their scale: weight = scale * integers, nearly.

    Args:
        weight: Floats of any shape.
        axis: The one that counts output channels; each has a scale of its own.
        bits: 8 or 16.

    Returns:
        The integers, of the weight's shape, and the float scale, of length 1 along the other axes.
        A channel of zeros has scale 1.
    """
    other_axes = [other for other in range(weight.ndim) if other != axis]
    largest = weight.abs().amax(other_axes, keepdim=True)
    largest_integer = 2 ** (bits - 1) - 1
    scale = torch.where(largest > 0, largest / largest_integer, 1.0)
    integers = (weight / scale).round().to(INTEGER_TYPES[bits])
    return integers, scale


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


def quantized_copy(net: ElasticWrapper, keep_integers: bool) -> ElasticWrapper:
    """Return a copy of a network whose large linear and convolution layers have rounded weights.

    Args:
        net: Any network; it stays as it is. The copy's layers learn no further.
        keep_integers: Hold the weights as integers and scale, and make floats of them in every
            pass; False holds the rounded floats. Both compute the same.
    """
    rounded = detached_copy(net)
    untyped: Any = rounded  # PyTorch does not annotate named_modules
    for name, layer in list(untyped.named_modules()):  # a list, since the loop adds modules
        if not isinstance(layer, LAYERS) or not _holds_weight(layer):
            continue
        if layer.weight.numel() < MIN_WEIGHTS:
            continue
        # PyTorch's transposed convolutions have the input channels first
        axis = 1 if isinstance(layer, TRANSPOSED) else 0
        bits = 8 if name.startswith("blocks.") else 16
        layer.requires_grad_(False)
        # unsafe: the parametrization changes the weight, which the checks would not allow
        parametrize.register_parametrization(layer, "weight", _Dequantized(axis, bits), unsafe=True)
        if not keep_integers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return rounded


def _holds_weight(layer: nn.Module) -> bool:
    """Whether the weight is a parameter or a buffer, and not what a hook computes in a pass."""
    held = (*layer.named_parameters(), *layer.named_buffers())
    return any(name == "weight" for name, _ in held)
