"""How optimisers group a net's parameters: the layer of each, and those that do not decay.

timm's optimisers ask a model for both: `model.group_matcher()`, for learning rates by layer, and
`model.no_weight_decay()`. A net that was split from a timm model gives that model's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from elasticnet._modules.unwrapping import plain_name

Layer = tuple[int, ...]
"""A layer's place in the order of layers, from the input to the head."""
LayerMatcher = Callable[[str], Layer]


class ParameterGroups(NamedTuple):
    """What a model that was split says of its parameters, by their names in the net.

    Attributes:
        layers: The layer of each parameter, from 0 at the input.
        no_weight_decay: The parameters that weight decay leaves out.
    """

    layers: Mapping[str, int]
    no_weight_decay: frozenset[str]


def layer_by_position(name: str, num_blocks: int) -> int:
    """Return the layer of a parameter: 0 for the stem, i + 1 for block i, and last the head.

    Args:
        name: A parameter's name in an elastic net. Adapters belong to the head.
        num_blocks: How many blocks the net has.
    """
    part, *rest = name.split(".")
    if part == "stem":
        return 0
    if part == "blocks":
        return int(rest[0]) + 1
    return num_blocks + 1


def layer_matcher(net: nn.Module, num_blocks: int, groups: ParameterGroups | None) -> LayerMatcher:
    """Return the function from the names of a net's parameters to their layers.

    Args:
        net: An elastic net.
        num_blocks: How many blocks it has.
        groups: What the model says that the net was split from. None: layers by position.
    """

    def match_by_position(name: str) -> Layer:
        return (layer_by_position(plain_name(net, name), num_blocks),)

    if groups is None or not groups.layers:
        return match_by_position

    layers = groups.layers
    block_layers = _layers_of_blocks(layers)
    head_layer = max(layers.values())

    def match(name: str) -> Layer:
        name = plain_name(net, name)
        if name in layers:
            return (layers[name],)
        # What the model does not know: adapters, blocks that the net grew, or what was put into a
        # block since the split.
        if not name.startswith("blocks."):
            return (0,) if name.startswith("stem.") else (head_layer,)
        index = int(name.split(".")[1])
        if index in block_layers:
            return (block_layers[index],)
        # Layers are sorted: (12,), the last block of the model, comes before (12, 1) and (13,).
        return (max(block_layers.values(), default=0), index + 1)

    return match


def _layers_of_blocks(layers: Mapping[str, int]) -> dict[int, int]:
    """Return the layer of each block, by the block's index."""
    found: dict[int, int] = {}
    for name, layer in layers.items():
        part, *rest = name.split(".")
        if part == "blocks":
            index = int(rest[0])
            found[index] = max(layer, found.get(index, 0))
    return found


def no_weight_decay(net: nn.Module, groups: ParameterGroups | None) -> set[str]:
    """Return the names of the parameters that weight decay leaves out.

    Args:
        net: An elastic net. What modules inside it say by a method `no_weight_decay` counts, too.
        groups: What the model says that the net was split from. None: nothing.
    """
    plain: set[str] = set() if groups is None else set(groups.no_weight_decay)
    untyped: Any = net  # PyTorch does not annotate named_modules
    modules: Iterable[tuple[str, Any]] = untyped.named_modules()
    for path, module in modules:
        answer = getattr(module, "no_weight_decay", None)
        if module is not net and callable(answer):
            names: Any = answer()
            plain.update(plain_name(net, f"{path}.{name}") for name in names)
    return {name for name, _ in net.named_parameters() if plain_name(net, name) in plain}


def names_inside(outer: nn.Module, inner: Any) -> dict[str, str | None]:
    """Return the name in an inner module of each parameter of an outer one, by its outer name.

    Args:
        outer: A module.
        inner: A module inside it.

    Returns:
        None for the parameters that the inner module does not have.
    """
    parameters: Iterable[tuple[str, nn.Parameter]] = inner.named_parameters()
    in_inner = {id(parameter): name for name, parameter in parameters}
    return {name: in_inner.get(id(each)) for name, each in outer.named_parameters()}
