"""The tensors of a net by the names that they have in a file, and how they are replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from elasticnet._wrapped import plain_name
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
    """Replace a net's parameters and buffers by other tensors, without copying them.

    Args:
        net: The net.
        new_state: The new tensors, by their names in a file.
    """
    by_key: dict[str, Tensor] = {}
    # Tied weights are one tensor under two names: the second name gets the same new tensor.
    new_by_old_id: dict[int, Tensor] = {}  # new tensors, by the id of the tensors that they replace
    for key, old in net.state_dict(keep_vars=True).items():
        if id(old) not in new_by_old_id:
            new = new_state[plain_name(net, key)]
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            new_by_old_id[id(old)] = new
        by_key[key] = new_by_old_id[id(old)]
    net.load_state_dict(by_key, assign=True)


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
    return hasattr(tensor, "full_tensor")  # not isinstance: the import of DTensor takes long
