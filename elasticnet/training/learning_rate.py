"""The learning rate's factor as a function of the step: exact on resume, the same on every rank.

`halving` and `cosine` take a number. `halving_on_device` and `cosine_on_device` take a tensor, as a
CUDA graph has it, and compute the same there, in float64: up to the last bit or two of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def halving(step: int, every: int) -> float:
    """Return the learning rate's factor when the rate is halved every `every` steps.

    Args:
        step: The number of the step, from 0.
        every: Steps between two halvings, from 1. The ASRN paper has 200,000.

    Returns:
        1, then 1/2, 1/4 and so on.
    """
    return 0.5 ** (step // every)


def cosine(step: int, total: int, warmup: int = 0, floor: float = 0.0) -> float:
    """Return the learning rate's factor: a linear warm-up, then half a period of a cosine.

    Args:
        step: The number of the step, from 0.
        total: Steps of the whole training, warm-up included. Later steps have the factor `floor`.
        warmup: Steps over which the factor rises to 1. Default: none.
        floor: The factor at the end, from 0 to 1.

    Returns:
        The factor, from 0 to 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    half_wave = 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))  # from 1 to 0
    return floor + (1 - floor) * half_wave


def halving_on_device(step: Tensor, every: int) -> Tensor:
    """Return `halving` of a step that is on a device.

    Args:
        step: The number of the step, from 0: int64 of shape ().
        every: Steps between two halvings, from 1.

    Returns:
        The factor, float64 of shape ().
    """
    num_halvings = torch.div(step, every, rounding_mode="floor")
    return torch.exp2(-num_halvings.double())


def cosine_on_device(step: Tensor, total: int, warmup: int = 0, floor: float = 0.0) -> Tensor:
    """Return `cosine` of a step that is on a device.

    Args:
        step: The number of the step, from 0: int64 of shape ().
        total: Steps of the whole training, warm-up included.
        warmup: Steps over which the factor rises to 1.
        floor: The factor at the end, from 0 to 1.

    Returns:
        The factor, float64 of shape ().
    """
    in_warmup = (step + 1).double() / max(1, warmup)
    progress = (step - warmup).double() / max(1, total - warmup)
    half_wave = 0.5 + 0.5 * torch.cos(math.pi * progress.clamp(max=1.0))
    behind_warmup = floor + (1 - floor) * half_wave
    return torch.where(step < warmup, in_warmup, behind_warmup)
