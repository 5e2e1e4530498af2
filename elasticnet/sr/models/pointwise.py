"""1x1 convolutions on a CPU, by the faster of PyTorch's two libraries for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet.sr.models.folding import is_plain_conv

# of as many images PyTorch takes oneDNN, whatever the number of threads
BATCH_FOR_ONEDNN = 16


def run_conv1x1(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return `conv(x)` for a conv1x1 without bias; see `conv1x1`.

    Args:
        conv: The layer. It is called as it is, if that may do anything else than its weight says.
        x: (b, channels, h, w).
    """
    if is_plain_conv(conv, side=1, has_bias=False):
        return conv1x1(x, conv.weight)
    return conv(x)


def conv1x1(x: Tensor, weight: Tensor) -> Tensor:
    """Return `F.conv2d(x, weight)`, up to rounding, for a kernel of one pixel.

    With one thread and fewer than 16 images PyTorch leaves such a convolution to a plain matrix
    product, which takes up to three times as long as oneDNN's convolution on an AMD processor.
    Since no pixel sees another, each row can count as an image of its own.

    Args:
        x: (b, channels, h, w).
        weight: (outputs, channels, 1, 1).
    """
    if not _goes_to_plain_product(x):
        return F.conv2d(x, weight)
    b, _, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).view(b * h, 1, w, -1)
    rows = F.conv2d(rows.permute(0, 3, 1, 2), weight)  # (b h, outputs, 1, w)
    return rows.permute(0, 2, 3, 1).reshape(b, h, w, -1).permute(0, 3, 1, 2)


def _goes_to_plain_product(x: Tensor) -> bool:
    """Whether PyTorch would not take oneDNN for x, and would for its rows."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.get_num_threads() > 1:
        return False
    num_images, _, num_rows, _ = x.shape
    if not num_images < BATCH_FOR_ONEDNN <= num_images * num_rows:
        return False
    return x.permute(0, 2, 3, 1).is_contiguous()  # torch.vmap cannot be asked for channels_last
