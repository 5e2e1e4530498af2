"""EDSR's geometric self-ensemble: the mean over the eight symmetries of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def self_ensembled(predict: Callable[[Tensor], Sequence[Tensor]], image: Tensor) -> list[Tensor]:
    """Return the mean of `predict` over the eight symmetries of an image, each output turned back.

    Nothing is clipped or rounded before the mean.

    Args:
        predict: From an image to any number of images, the same number each time.
        image: (..., h, w).

    Returns:
        One mean for each image that `predict` returns.
    """
    totals: list[Tensor] = []
    for is_flipped in (False, True):
        for quarter_turns in range(4):
            turned = _turned(image, is_flipped, quarter_turns)
            outputs = [
                _turned_back(output, is_flipped, quarter_turns) for output in predict(turned)
            ]
            if totals:
                totals = [total + output for total, output in zip(totals, outputs, strict=True)]
            else:
                totals = outputs
    return [total / 8 for total in totals]


def _turned(image: Tensor, is_flipped: bool, quarter_turns: int) -> Tensor:
    """An image flipped left to right, if asked for, and then rotated."""
    if is_flipped:
        image = image.flip(-1)
    return torch.rot90(image, quarter_turns, dims=(-2, -1))


def _turned_back(image: Tensor, is_flipped: bool, quarter_turns: int) -> Tensor:
    """The inverse of `_turned`."""
    image = torch.rot90(image, -quarter_turns, dims=(-2, -1))
    if is_flipped:
        image = image.flip(-1)
    return image
