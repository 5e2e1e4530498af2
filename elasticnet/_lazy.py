"""Public names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, module_of: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose names come from its modules.

    Importing the package then imports none of these modules, and so no torch.

    Args:
        package: The package's `__name__`.
        module_of: For each public name, the dotted name of the module that defines it.

    Returns:
        The two functions, to be bound to `__getattr__` and `__dir__` in the package.

    Raises:
        AttributeError: By `__getattr__`, for a name that the package does not have.

    Example:
        `__getattr__, __dir__ = lazy_names(__name__, {"save": "elasticnet.checkpoint.saving"})`
    """

    def get_attribute(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module_of[name]), name)
        setattr(sys.modules[package], name, value)  # so that the next use does not come here
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return get_attribute, list_names
