"""The tensors of a net by the names that they have in a file, and how they are replaced."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from elasticnet._modules.unwrapping import plain_name
from elasticnet.wrapper import ElasticWrapper


def state_of(net: ElasticWrapper) -> dict[str, Tensor]:
    """Return the parameters and buffers of a net by the names that they have in a file.

    Args:
        net: The net. Blocks that are compiled, or wrapped for parallel training or activation
            checkpointing, have the names that they would have without that.

    Returns:
        The very tensors of the net; one that stands under two names is the same object twice.

    Raises:
        ValueError: The net has state that is not a tensor.
    """
    state: dict[str, Tensor] = {}
    for key, tensor in net.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"state {key!r} is of type {type(tensor).__name__}: "
                "a checkpoint can hold only tensors"
            )
        state[plain_name(net, key)] = tensor
    return state


def replace_state(net: ElasticWrapper, new_state: Mapping[str, Tensor]) -> None:
    """Give a net's parameters and buffers the memory of other tensors, without copying them.

    A parameter stays the same object if it can, so that whatever else holds it sees its new values:
    a list in a module, an optimizer.

    Args:
        net: The net.
        new_state: The new tensors, by their names in a file.
    """
    by_key: dict[str, Tensor] = {}
    # Tied weights are one tensor under two names: both names get the same tensor.
    filled_by_old_id: dict[int, Tensor] = {}
    for key, old in net.state_dict(keep_vars=True).items():
        if id(old) not in filled_by_old_id:
            filled_by_old_id[id(old)] = _filled(old, new=new_state[plain_name(net, key)])
        by_key[key] = filled_by_old_id[id(old)]
    net.load_state_dict(by_key, assign=True)


def _filled(old: Tensor, new: Tensor) -> Tensor:
    """Return the old tensor with the memory of the new one, or a tensor to take its place."""
    if _can_take_memory(old, new):
        old.data = new
        return old
    if isinstance(old, nn.Parameter):
        fresh = nn.Parameter(new, requires_grad=old.requires_grad)
    else:
        fresh = new.detach()
    if old.is_meta and has_shape(old):
        try:
            torch.utils.swap_tensors(old, fresh)  # whoever holds the one now holds the other
            return old
        except RuntimeError:  # a view of it is held somewhere
            return fresh
    return fresh


def _can_take_memory(old: Tensor, new: Tensor) -> bool:
    """Return whether `old.data = new` is possible: between ordinary tensors on one device."""
    is_ordinary = type(old) in (Tensor, nn.Parameter) and old.layout is torch.strided
    return is_ordinary and old.device == new.device and not old.is_inference()


def find_untied(
    state: Mapping[str, Tensor], is_same: Callable[[str, str], bool]
) -> tuple[str, str] | None:
    """Return two names of one tensor under which a file holds different values.

    Args:
        state: The tensors of a net, by name.
        is_same: Whether the file holds the same values under two names.

    Returns:
        The names; None if the file has the same values under all names of each tensor.
    """
    first_names: dict[int, str] = {}
    for name, tensor in state.items():
        first = first_names.setdefault(id(tensor), name)
        if first != name and not is_same(first, name):
            return first, name
    return None


def has_shape(tensor: Tensor) -> bool:
    """Return whether a tensor has a shape; one of a lazy layer that has not run yet has none.

    Args:
        tensor: A parameter or a buffer.
    """
    return not is_lazy(tensor)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is spread over several processes, as a DTensor is.

    Args:
        tensor: Any tensor.
    """
    # Nothing is imported for this, because the import takes long: a process that has not imported
    # the module has no such tensor.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_made_of_others(tensor: Tensor) -> bool:
    """Return whether a tensor keeps its values in other tensors, as one of torchao's does.

    A sharded tensor does so, too, and does not count: its values can be put together.

    Args:
        tensor: Any tensor.
    """
    return is_traceable_wrapper_subclass(tensor) and not is_sharded(tensor)
