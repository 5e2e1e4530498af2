"""Eval mode inside a `with` block."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(net: nn.Module) -> Generator[nn.Module, None, None]:
    """Put every module of a net into eval mode inside a `with` block.

    When the `with` block ends, also by an exception, each module gets its own mode back.

    Args:
        net: Any module.

    Yields:
        The net.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield net
    finally:
        for module, training in modes:
            module.training = training
