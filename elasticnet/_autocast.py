"""Parts of a pass that run outside autocast, on any device."""

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
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
