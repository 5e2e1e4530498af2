"""Copies of modules that hold tensors which autograd computed, which `copy.deepcopy` refuses.

Such tensors lie in many modules: the old `weight_norm` and `spectral_norm`, and `prune`, keep the
weight that they computed as an attribute; other modules keep their last attention map; the object
behind a hook keeps the features that it saw.
"""

from __future__ import annotations

import copy
import gc
import types
import weakref
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer

Value = TypeVar("Value")

# What `copy.deepcopy` shares instead of copying it, so that nothing behind it can be in its way.
SHARED_TYPES = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CodeType,
    weakref.ref,
    str,
    bytes,
)


def detached_copy(value: Value, memo: dict[int, Any] | None = None) -> Value:
    """Return a deep copy, in which tensors that autograd computed are detached.

    Parameters and all other tensors are copied as `copy.deepcopy` does it.

    Args:
        value: A module, or anything that `copy.deepcopy` takes.
        memo: What the copy holds in the place of an object, by the object's `id`, as for
            `copy.deepcopy`. What is copied is added to it. None: nothing is replaced.

    Returns:
        The copy.

    Raises:
        TypeError: A module holds an attribute that cannot be copied, such as a lock or an open
            file; the message names it.
    """
    if memo is None:
        memo = {}
    replaced = dict(memo)  # before the first try adds what it copied
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # whatever the classes of the user's objects raise
        memo.clear()
        memo.update(replaced)
    # Only now, because looking at every object takes 10 to 40 % as long as copying them.
    for tensor in _computed_tensors(value, memo):
        memo[id(tensor)] = _detached(tensor)
    try:
        return copy.deepcopy(value, memo)
    except Exception as error:
        name = _name_of_what_fails(value) if isinstance(value, nn.Module) else None
        if name is None:
            raise
        raise TypeError(
            f"{name} cannot be copied ({type(error).__name__}: {error}); "
            "remove it, or give its class a __deepcopy__"
        ) from error


def _computed_tensors(value: Any, memo: dict[int, Any]) -> list[Tensor]:
    """Return the tensors inside a value that `copy.deepcopy` refuses.

    The garbage collector knows what any object refers to: in attributes, slots, lists, dicts, bound
    methods and partial functions alike. It may find more than `copy.deepcopy` would come to, which
    costs nothing but a copy.
    """
    found: list[Tensor] = []
    seen: set[int] = set(memo)
    waiting: list[Any] = [value]
    while waiting:
        each = waiting.pop()
        # By type(), because isinstance() asks the object, which a dead weak proxy does not survive.
        if id(each) in seen or issubclass(type(each), SHARED_TYPES):
            continue
        seen.add(id(each))
        if issubclass(type(each), Tensor) and _is_computed(each):
            found.append(each)
        else:
            waiting.extend(gc.get_referents(each))
    return found


def _is_computed(tensor: Tensor) -> bool:
    """Return whether `copy.deepcopy` refuses a tensor.

    Autograd computed it, or its gradient; or it is a buffer of a lazy layer that has not run.
    """
    if isinstance(tensor, UninitializedBuffer) or not tensor.is_leaf:
        return True
    # Copies of parameters have no gradient, those of other tensors have.
    if isinstance(tensor, nn.Parameter) or tensor.grad is None:
        return False
    return not tensor.grad.is_leaf


def _detached(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor without its history, a leaf that requires a gradient if it did."""
    if isinstance(tensor, UninitializedBuffer):
        new: Any = UninitializedBuffer  # whose __new__ has arguments that its annotation lacks
        return new(device=tensor.device, dtype=tensor.dtype)
    copied = tensor.detach().clone()
    if tensor.is_leaf:
        copied.requires_grad_(tensor.requires_grad)
    return copied


def _name_of_what_fails(module: Any) -> str | None:
    """Return the path of the first attribute that cannot be copied; None: each of them can.

    Modules, parameters and buffers are looked at one by one, as attributes of their own module.
    """
    parts: list[tuple[str, nn.Module]] = list(module.named_modules())
    for path, part in parts:
        inner = {id(child): child for child in part.children()}
        for name, attribute in vars(part).items():
            if name == "_modules":
                continue
            try:
                detached_copy(attribute, memo=dict(inner))
            except Exception:
                return f"{path}.{name}" if path else name
    return None
