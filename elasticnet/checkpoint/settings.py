"""Which plain attributes of two modules of one class differ, such as a switch or a stride."""

from __future__ import annotations

import inspect
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import nn

from elasticnet.wrapper import ElasticWrapper

# Attributes of any module, and of an elastic net, that do not change what it computes in eval mode.
NOT_SETTINGS = ("training",)
NOT_SETTINGS_OF_NETS = ("training", "origin", "default_depth", "checkpoint_blocks")
NUMBERS = (int, float, complex, type(None))
WORDS = (bool, str, bytes, torch.dtype, torch.memory_format)
CODE = (FunctionType, BuiltinFunctionType, type)


class Difference(NamedTuple):
    """A setting that two modules have and that differs.

    Attributes:
        name: The attribute.
        here: Its value in the module.
        there: Its value in the other one.
    """

    name: str
    here: Any
    there: Any


def differing_setting(module: nn.Module, twin: nn.Module) -> Difference | None:
    """Return a setting in which a module differs from another one of its class.

    Private attributes do not count, nor does what cannot be compared. Numbers and lists can be
    counters and caches, which change in use. So they count only if the class names them: as an
    argument of its constructor or in `__constants__`.

    Args:
        module: The module.
        twin: What it is compared with.

    Returns:
        The first setting that differs; None if none does.
    """
    named = _names_of_settings(type(twin))
    attributes = vars(module)
    left_out = _left_out(module)
    for name, there in vars(twin).items():
        if name.startswith("_") or name in left_out or name not in attributes:
            continue
        here = attributes[name]
        if _differ(here, there, may_be_counter=name not in named):
            return Difference(name=name, here=here, there=there)
    return None


def plain_settings(module: nn.Module) -> dict[str, str]:
    """Return the public attributes of a module that are plain: numbers, words, functions, tuples.

    Args:
        module: Any module.

    Returns:
        Each value as a text, the same in every process, by the attribute's name.
    """
    left_out = _left_out(module)
    settings: dict[str, str] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name in left_out:
            continue
        text = _as_text(value)
        if text is not None:
            settings[name] = text
    return settings


def _as_text(value: Any) -> str | None:
    """Return a plain value as a text; None for any other value."""
    if isinstance(value, (*NUMBERS, *WORDS)):
        return repr(value)
    if isinstance(value, CODE):
        return f"{value.__module__}.{value.__qualname__}"
    if not _is_tuple(value):
        return None
    texts: list[str] = []
    for entry in value:
        text = _as_text(entry)
        if text is None:
            return None  # an entry that is not plain
        texts.append(text)
    return f"({', '.join(texts)})"


def _left_out(module: nn.Module) -> tuple[str, ...]:
    """Return the attributes of a module that are no settings."""
    return NOT_SETTINGS_OF_NETS if isinstance(module, ElasticWrapper) else NOT_SETTINGS


def _is_tuple(value: Any) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)


def _names_of_settings(module_class: type[nn.Module]) -> set[str]:
    """Return the constructor's arguments of a class and its bases, and their `__constants__`."""
    names: set[str] = set()
    for each in module_class.__mro__:
        names.update(getattr(each, "__constants__", ()))
        if "__init__" in vars(each) and each is not nn.Module:
            names.update(inspect.signature(each.__init__).parameters)
    return names


def _differ(here: Any, there: Any, may_be_counter: bool) -> bool:
    """Whether two values are known to differ."""
    if here is there:
        return False
    if _are(FunctionType, here, there):
        return _functions_differ(here, there)
    if _are(partial, here, there):
        return _differ(_parts(here), _parts(there), may_be_counter=False)
    if _are(tuple, here, there):
        return _sequences_differ(here, there, may_be_counter)
    if _are(list, here, there):
        return not may_be_counter and _sequences_differ(here, there, may_be_counter)
    if _are((*CODE, CodeType), here, there) or _are(WORDS, here, there):
        return bool(here != there)
    if _are((*NUMBERS, *WORDS), here, there):
        return not may_be_counter and bool(here != there)
    return False


def _are(kinds: type | tuple[type, ...], here: Any, there: Any) -> bool:
    """Whether both values are of some kinds."""
    return isinstance(here, kinds) and isinstance(there, kinds)


def _parts(function: partial[Any]) -> tuple[Any, ...]:
    """Return what a partial function is made of."""
    return (function.func, function.args, tuple(sorted(function.keywords.items())))


def _sequences_differ(first: Any, second: Any, may_be_counter: bool) -> bool:
    """Whether two lists or tuples are known to differ in their length or in an entry."""
    if len(first) != len(second):
        return True
    pairs = zip(first, second, strict=True)
    return any(_differ(one, other, may_be_counter) for one, other in pairs)


def _functions_differ(first: FunctionType, second: FunctionType) -> bool:
    """Whether two functions have other code, default values or enclosed values."""
    if first.__code__ is not second.__code__:
        return True
    first_values = (first.__defaults__ or (), _enclosed(first))
    second_values = (second.__defaults__ or (), _enclosed(second))
    return _differ(first_values, second_values, may_be_counter=False)


def _enclosed(function: FunctionType) -> tuple[Any, ...]:
    """Return the values of a function's closure; of functions, such as itself, only the code."""
    values: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # a variable that was never set
            continue
        if isinstance(value, FunctionType):
            value = value.__code__
        values.append(value)
    return tuple(values)
