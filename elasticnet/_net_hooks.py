"""Hooks on the net itself, which PyTorch calls with whatever the net returns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from elasticnet.taps import Taps

HOOK_REMEDY = (
    "It must return a Taps, or None to change nothing. "
    "A hook that changes each prediction belongs on the head"
)


class NetHook:
    """A forward hook on an elastic net; an error names the hook if it takes no `Taps`.

    Args:
        hook: The hook that was registered.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        functools.update_wrapper(self, hook)  # keeps its name and module
        self.hook = hook

    def __call__(self, *arguments: Any) -> Any:
        """Return what the hook returns.

        Args:
            *arguments: Net, inputs, keyword arguments if the hook takes them, output.

        Raises:
            TypeError: The output is a `Taps`, and the hook does not leave it one.
        """
        output = arguments[-1]  # the last one in each signature that PyTorch calls hooks by
        if not isinstance(output, Taps):
            return self.hook(*arguments)
        try:
            result = self.hook(*arguments)
        except (AttributeError, TypeError) as error:
            raise TypeError(f"{self._description()} raised: {error}. {HOOK_REMEDY}") from error
        if result is not None and not isinstance(result, Taps):
            returned = type(result).__name__
            raise TypeError(f"{self._description()} returned a {returned}. {HOOK_REMEDY}")
        return result

    def _description(self) -> str:
        return f"the forward hook {name_of(self.hook)} got a Taps, from net(x, taps=...), and"


def check_backward_hooks(net: nn.Module) -> None:
    """Raise if the backward pass of a `Taps` would leave out a hook on a net.

    PyTorch runs backward hooks only of modules that return a tensor or a tuple of tensors.

    Args:
        net: The net that is about to return a `Taps`.

    Raises:
        TypeError: It has a backward hook, and gradients are on.
    """
    if not torch.is_grad_enabled():
        return
    for hook in backward_hooks(net):
        raise TypeError(
            f"the backward hook {name_of(hook)} of this net would not run for a Taps, "
            "from net(x, taps=...): register it on the head, or on the stem or a block"
        )


def forward_hooks(net: nn.Module) -> list[Any]:
    """Return the hooks on a net that run before and after its forward.

    Args:
        net: Any module.
    """
    return _hooks_in(net, "_forward_pre_hooks") + _hooks_in(net, "_forward_hooks")


def backward_hooks(net: nn.Module) -> list[Any]:
    """Return the hooks on a net that run before and after its backward pass.

    Args:
        net: Any module.
    """
    return _hooks_in(net, "_backward_pre_hooks") + _hooks_in(net, "_backward_hooks")


def name_of(hook: Any) -> str:
    """Return what messages call a hook.

    Args:
        hook: A function, or an object that can be called.
    """
    return getattr(hook, "__qualname__", type(hook).__qualname__)


def _hooks_in(net: nn.Module, table: str) -> list[Any]:
    """Return the hooks in one of the tables in which PyTorch keeps them, in order."""
    return list(vars(net)[table].values())
