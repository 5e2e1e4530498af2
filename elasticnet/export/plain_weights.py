"""Weights that modules compute in every pass, turned into ordinary ones of the same value."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def make_weights_plain(net: nn.Module) -> None:
    """Replace computed weights of a network in eval mode by what they are, in place.

    These are the weights of parametrizations, of the old `weight_norm` and `spectral_norm`, and of
    pruning. What other hooks compute stays as it is.

    Args:
        net: Any module; its function in eval mode stays.
    """
    for module in list(net.modules()):  # a list, since the loop removes parametrizations
        if parametrize.is_parametrized(module):
            _give_own_class(module)
            parametrizations: Any = module.parametrizations
            for name in list(parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        hooks = list(vars(module)["_forward_pre_hooks"].values())
        for hook in hooks:
            _make_plain(module, hook)


def _give_own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own.

    PyTorch makes a class for such a module and keeps the weight as a property of the class. Copies
    of the module have the same class, and lose the property when it is removed from one of them.
    """
    module.__class__ = _copy_of_class(type(module))


def _copy_of_class(original: type[Any]) -> Any:
    """Return a class with the same name, bases and attributes."""
    attributes = dict(vars(original))
    for key in ("__dict__", "__weakref__"):  # every class makes its own
        attributes.pop(key, None)
    return type(original.__name__, original.__bases__, attributes)


def _make_plain(module: nn.Module, hook: Any) -> None:
    """Replace the weight that a hook computes before each pass, if it is one of PyTorch's."""
    if isinstance(hook, WeightNorm):
        remove_weight_norm(module, hook.name)
    elif isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, hook.name)
    elif isinstance(hook, prune.BasePruningMethod):
        prune.remove(module, hook._tensor_name)  # pyright: ignore[reportPrivateUsage]
