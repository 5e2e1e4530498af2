"""Passes that compute in a narrower dtype, and parts of them that do not, on any device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off.

    The meta device has no autocast, and torch.autocast fails there, even to switch it off.

    Args:
        device: Where the tensors of the pass are.
    """
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def computing_in(
    dtype: torch.dtype | None, device: torch.device | str
) -> AbstractContextManager[Any]:
    """Return a context in which convolutions and matrix products are computed in a dtype.

    Weights and inputs stay in float32, and so do sums that a narrow dtype would spoil: of a head
    that adds an enlarged input, all but the last step is narrow.

    Args:
        dtype: float16 or bfloat16; anything else changes nothing.
        device: Where the tensors of the pass are.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype)
