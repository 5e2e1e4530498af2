"""Modules that have a stand-in for graphs: the same function, of operators that runtimes have.

A network's own forward uses whatever PyTorch computes fastest. A graph is read by other programs,
which may lack such an operator or compute it in another way. So a module may offer `for_export()`,
which returns what stands for it in a graph. Nothing here knows what such a module computes: the
network with its stand-ins is compared with the network as it is.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any, Protocol, TypeGuard, runtime_checkable

from torch import nn


@runtime_checkable
class OffersStandIn(Protocol):
    """A module that names what stands for it in exported files.

    Example:
        >>> class Normalised(nn.Module):
        ...     def forward(self, x):
        ...         return torch.nn.functional.normalize(x)  # has a norm, which a runtime may lack
        ...     def for_export(self):
        ...         return NormalisedByHand()  # squares, sum, square root and division
    """

    def for_export(self) -> nn.Module:
        """Return a module that is called as this one is, and computes the same up to rounding.

        It is called on a copy of the network in eval mode, on the CPU and in float32. A module that
        has nothing to offer, as it is now, returns itself.
        """
        ...


def offers_stand_in(module: nn.Module) -> TypeGuard[OffersStandIn]:
    """Return whether a module has a method `for_export` that needs no argument.

    Args:
        module: Any module. A method of this name that needs arguments is something else.
    """
    return has_plain_method(module, "for_export")


def has_plain_method(module: nn.Module, name: str) -> bool:
    """Return whether a module has a method of this name that can be called without arguments.

    Args:
        module: Any module.
        name: Of the method.
    """
    method = getattr(module, name, None)
    if not isinstance(method, MethodType):
        return False
    parameters = inspect.signature(method).parameters.values()
    return all(parameter.default is not parameter.empty for parameter in parameters)


def put_stand_ins(net: nn.Module) -> list[str]:
    """Replace, in place, every part of a network that offers a stand-in by what it returns.

    What stands inside a replaced part goes with it. The network itself is not replaced.

    Args:
        net: A copy that belongs to the export.

    Returns:
        The parts that were replaced, as in "head (DeconvHead)"; each part once, even if the network
        holds it at several places.

    Raises:
        TypeError: A `for_export()` returned something else than a module.
    """
    replaced: list[str] = []
    # each part that was seen and what stands for it, so that a part held twice has one stand-in
    known: dict[nn.Module, nn.Module] = {}
    _visit(net, "", known, replaced)
    return replaced


def _visit(
    parent: nn.Module, prefix: str, known: dict[nn.Module, nn.Module], replaced: list[str]
) -> None:
    """Replace the parts of one module, and those of the parts that stay."""
    # not named_children(), which leaves out a part that was seen before
    children: dict[str, Any] = vars(parent)["_modules"]
    for name, child in list(children.items()):
        if child is None:
            continue
        path = f"{prefix}{name}"
        if child not in known:
            known[child] = _stand_in_or_itself(child, path, replaced)
            if known[child] is child:
                _visit(child, f"{path}.", known, replaced)
        children[name] = known[child]


def _stand_in_or_itself(module: nn.Module, path: str, replaced: list[str]) -> nn.Module:
    """What stands for a module, which is noted in `replaced`; the module itself if nothing does."""
    if not offers_stand_in(module):
        return module
    described = f"{path} ({type(module).__name__})"
    stand_in: Any = module.for_export()  # what a user's own class returns may be anything
    if not isinstance(stand_in, nn.Module):
        raise TypeError(
            f"{described}: for_export() returned {type(stand_in).__name__}; expected a module that "
            "is called as this one is"
        )
    returned_itself = id(stand_in) == id(module)
    if not returned_itself:
        replaced.append(described)
    return stand_in
