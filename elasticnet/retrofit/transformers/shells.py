"""Shells: new objects around the very parameters and modules of a model, with some replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def shell_of(module: nn.Module, replaced: Mapping[str, nn.Module | None]) -> nn.Module:
    """Return a new object of a module's class around its very parameters and modules.

    Args:
        module: The module; it stays as it is.
        replaced: What stands in the place of its submodules, by path; None leaves a place empty.
    """
    children: dict[str, nn.Module | None] = dict(module.__dict__["_modules"])
    # what lies deeper, by the name of the submodule that holds it
    inner: dict[str, dict[str, nn.Module | None]] = {}
    for path, other in replaced.items():
        name, _, rest = path.partition(".")
        if rest:
            inner.setdefault(name, {})[rest] = other
        else:
            children[name] = other
    for name, others in inner.items():
        children[name] = shell_of(module.get_submodule(name), others)
    return with_attributes(module, _modules=children)


def with_attributes(module: nn.Module, **attributes: Any) -> nn.Module:
    """Return a new object of a module's class around its attributes, some of which are others.

    Args:
        module: The module; it stays as it is.
        **attributes: The others.
    """
    copied = module.__class__.__new__(module.__class__)
    copied.__dict__ = {**module.__dict__, **attributes}
    return copied
