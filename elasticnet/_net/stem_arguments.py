"""Which keyword arguments a stem takes, read from the signature of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from elasticnet._modules.unwrapping import original_module

RESERVED_WORDS = ("depth", "taps")
"""The keyword arguments of `net(x, ...)` that are never part of the context."""
LAST_DEPTH = "last_depth"
"""The keyword argument of a stem that has the attribute `takes_last_depth = True`."""

KEYWORD_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class StemArguments(NamedTuple):
    """What one stem takes beside its input.

    Attributes:
        stem_class: The class of the stem, by which a net notices that its stem was replaced.
        inner_class: The class of the module inside, if the stem is compiled, wrapped for parallel
            training or adapted by peft; else the same.
        names: The keyword arguments that its forward lists.
        takes_any: Whether its forward ends in `**keywords`.
        takes_last_depth: Whether the net tells it the deepest block of the pass, as `last_depth`.
    """

    stem_class: type
    inner_class: type
    names: frozenset[str]
    takes_any: bool
    takes_last_depth: bool

    def belong_to(self, stem: nn.Module | None) -> bool:
        """Return whether these are the arguments of a stem, as far as its class shows it.

        Args:
            stem: The stem that a net has now.
        """
        if type(stem) is not self.stem_class:
            return False
        is_wrapped = self.inner_class is not self.stem_class
        return not is_wrapped or type(original_module(stem)) is self.inner_class

    def of_stem(self, keywords: Mapping[str, Any], last_depth: int) -> dict[str, Any]:
        """Return the keyword arguments that the stem gets in `net(x, **keywords)`.

        Args:
            keywords: Those of the net.
            last_depth: The deepest block that the pass can run.

        Raises:
            TypeError: The user gives the last depth to a stem that the net tells it.
        """
        # A comprehension, because torch 2.6 cannot compile set arithmetic on the keys of a dict.
        given = {name: value for name, value in keywords.items() if self._takes(name)}
        if not self.takes_last_depth:
            return given
        if LAST_DEPTH in keywords:
            raise TypeError(
                f"{LAST_DEPTH}={keywords[LAST_DEPTH]!r}: the net itself tells this stem how "
                "deep the pass goes; pass depth= or taps= instead"
            )
        return {**given, LAST_DEPTH: last_depth}

    def of_others(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of `net(x, **keywords)` that the stem does not get.

        Args:
            keywords: Those of the net.
        """
        return {name: value for name, value in keywords.items() if not self._takes(name)}

    def _takes(self, name: str) -> bool:
        return self.takes_any or name in self.names


def read_stem_arguments(stem: nn.Module | None) -> StemArguments:
    """Return what a stem takes beside its input.

    Args:
        stem: The stem, which may be compiled or wrapped for parallel training. None: a net without
            one.

    Raises:
        ValueError: It has an argument that `net(x, ...)` keeps for itself, or it asks for the last
            depth and has no argument for it.
    """
    if stem is None:
        return StemArguments(
            stem_class=type(None),
            inner_class=type(None),
            names=frozenset(),
            takes_any=False,
            takes_last_depth=False,
        )
    inner = original_module(stem)  # the forward of a compiled module names none
    parameters = _parameters_of(inner)[1:]  # 0 is the input
    names = frozenset(each.name for each in parameters if each.kind in KEYWORD_KINDS)
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    takes_last_depth = getattr(inner, "takes_last_depth", False) is True

    for name in RESERVED_WORDS:
        if name in names:
            raise ValueError(
                f"the stem's forward has an argument {name!r}, which it can never get: "
                f"net(x, {name}=...) says where to predict. Give the stem's argument another name"
            )
    if takes_last_depth and LAST_DEPTH not in names and not takes_any:
        raise ValueError(
            f"the stem has takes_last_depth, and its forward has no argument {LAST_DEPTH!r}"
        )
    return StemArguments(
        stem_class=type(stem),
        inner_class=type(inner),
        names=names,
        takes_any=takes_any,
        takes_last_depth=takes_last_depth,
    )


def _parameters_of(stem: Any) -> list[inspect.Parameter]:
    """Return the parameters of a stem's forward."""
    try:
        signature = inspect.signature(stem.forward)
    except ValueError:  # of a module that torch.jit.trace made, which takes tensors by position
        return []
    return list(signature.parameters.values())
