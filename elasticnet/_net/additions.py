"""What sits on a net itself beside its parts: hooks, a class, buffers. Named, and carried over."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

from torch import nn

from elasticnet._net.hooks import NetHook, backward_hooks, forward_hooks, name_of

PARTS = ("stem", "blocks", "head", "adapters", "head_statistics")
"""The modules of a net, as its state dict names them."""

Net = TypeVar("Net", bound=nn.Module)


def has_replaced_forward(net: nn.Module) -> bool:
    """Return whether `net.forward` was set to something else than the method of the class.

    Args:
        net: Any module.
    """
    forward = vars(net).get("forward")
    return forward is not None and forward != types.MethodType(type(net).forward, net)


def around_forward(net: nn.Module, plain_forward: Callable[..., Any]) -> list[str]:
    """Return what happens in a call of a net besides its plain forward.

    Args:
        net: An elastic net.
        plain_forward: The forward of the class that it is built on.

    Returns:
        Descriptions of a replaced forward, another class's forward, and hooks of all kinds.
    """
    found: list[str] = []
    if has_replaced_forward(net):
        found.append("a replaced forward")
    if type(net).forward is not plain_forward:
        found.append(f"the forward of the class {type(net).__name__}")
    hooks = forward_hooks(net) + backward_hooks(net)
    found += [f"the hook {name_of(hook)}" for hook in hooks]
    return found


def additions_to(net: nn.Module) -> list[str]:
    """Return what sits on a net itself, beside its parts and its class.

    Args:
        net: An elastic net.

    Returns:
        Descriptions of a replaced forward, forward hooks, parameters, buffers and further modules.
    """
    found: list[str] = []
    if has_replaced_forward(net):
        found.append("a replaced forward")
    found += [f"the hook {name_of(hook)}" for hook in forward_hooks(net)]
    tables = vars(net)
    found += [f"the parameter {name!r}" for name in tables["_parameters"]]
    found += [f"the buffer {name!r}" for name in tables["_buffers"]]
    found += [f"the module {name!r}" for name in tables["_modules"] if name not in PARTS]
    return found


def shallow_copy(net: Net) -> Net:
    """Return a net of the same class with the same modules, settings, buffers and hooks.

    Each table (of modules, parameters, buffers, hooks) is copied, so that assigning to the new net
    leaves the old one alone. A method of the old net, such as a subclass's call_block or hook,
    becomes the new net's.

    Args:
        net: An elastic net.

    Raises:
        ValueError: Its forward was replaced.
    """
    if has_replaced_forward(net):
        raise ValueError(
            "net.forward was replaced, and the replacement may call the whole net: put "
            "ElasticWrapper's own forward back first (del net.forward)"
        )
    new = copy.copy(net)
    for name, value in vars(net).items():
        if _is_table(value):
            table = value.copy()
            for key, entry in table.items():
                table[key] = _rebound(entry, net, new)
            vars(new)[name] = table
        else:
            vars(new)[name] = _rebound(value, net, new)
    # A forward that was set back by hand is the class's own: the new net has it anyway.
    vars(new).pop("forward", None)
    return new


def _is_table(value: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict)


def _rebound(value: Any, old: nn.Module, new: nn.Module) -> Any:
    """Return the new net's method if a value is a method of the old one; else the value itself."""
    if isinstance(value, types.MethodType) and value.__self__ is old:
        return types.MethodType(value.__func__, new)
    if isinstance(value, NetHook):
        return NetHook(_rebound(value.hook, old, new))
    return value
