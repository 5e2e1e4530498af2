"""Images in the layout in which convolutions run fastest."""

from __future__ import annotations

from torch import Tensor


def channels_last(image: Tensor) -> Tensor:
    """Return an image with its channels last in memory, as PyTorch's kernels look for it.

    A batch of one that was permuted or indexed may have its channels last, and still count as
    channels first: PyTorch looks at the stride of the batch, too, which means nothing there. So
    `contiguous(memory_format=...)` changes nothing, and convolutions run in the slower layout.

    Args:
        image: (b, c, h, w). It is not changed.
    """
    batch, channels, height, width = image.shape
    expected = (height * width * channels, 1, width * channels, channels)
    if image.stride() == expected:
        return image
    result = image.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)
    return result.copy_(image)
