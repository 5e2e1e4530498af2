"""What a network computes, its weights apart, as a text that changes when that changes."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from elasticnet.checkpoint.settings import plain_settings

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of a function in a module's repr: each run another
HOOK_TABLES = ("_forward_pre_hooks", "_forward_hooks")


def structure_of(net: nn.Module) -> str:
    """Return a text of a network's modules: their classes, settings, hooks and replaced forwards.

    Two networks of one text and equal weights compute the same, unless a module depends on what no
    text shows: a private attribute, a list, an object of another class.

    Args:
        net: Any module.

    Returns:
        The text, the same in every process.
    """
    untyped: Any = net  # torch leaves the types of named_modules open
    lines = [ADDRESS.sub("", repr(net))]
    modules: list[tuple[str, nn.Module]] = list(untyped.named_modules(remove_duplicate=False))
    for name, module in modules:
        parts = [f"{setting}={value}" for setting, value in plain_settings(module).items()]
        parts += [f"hook {_name_of(hook)}" for hook in _hooks_of(module)]
        if "forward" in vars(module):
            parts.append(f"forward {_name_of(vars(module)['forward'])}")
        lines.append(f"{name}: {', '.join(parts)}")
    return "\n".join(lines)


def _hooks_of(module: nn.Module) -> list[Any]:
    """Return the hooks that may change what a module takes or returns."""
    return [hook for table in HOOK_TABLES for hook in vars(module)[table].values()]


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))
