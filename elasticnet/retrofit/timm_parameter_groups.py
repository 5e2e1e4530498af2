"""What a timm model says of its parameters to optimisers, by their names in the net."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from torch import nn

from elasticnet.parameter_groups import ParameterGroups
from elasticnet.retrofit.parts import Split


def timm_parameter_groups(model: nn.Module, parts: Split) -> ParameterGroups:
    """Return the model's `group_matcher` and `no_weight_decay` for the net of its parts.

    Args:
        model: A timm model.
        parts: Its parts, which hold the model's own parameters.
    """
    layers_in_model = _layers(model)
    patterns = _patterns_without_decay(model)
    layers: dict[str, int] = {}
    without_decay: set[str] = set()
    names_in_net = dict(_names_in_net(parts))
    for name, parameter in model.named_parameters():
        name_in_net = names_in_net.get(id(parameter))
        if name_in_net is None:
            continue
        if name in layers_in_model:
            layers[name_in_net] = layers_in_model[name]
        if any(fnmatch(name, pattern) for pattern in patterns):
            without_decay.add(name_in_net)
    return ParameterGroups(layers=layers, no_weight_decay=frozenset(without_decay))


def _layers(model: Any) -> dict[str, int]:
    """Return the layer of each parameter as timm counts layers; nothing if the model cannot say."""
    import timm.models

    if not hasattr(model, "group_matcher"):
        return {}
    untyped: Any = timm.models  # timm does not annotate the function
    return untyped.group_parameters(model, model.group_matcher(coarse=False), reverse=True)


def _patterns_without_decay(model: Any) -> list[str]:
    """Return the names, or patterns of names, of the parameters that do not decay."""
    if not hasattr(model, "no_weight_decay"):
        return []
    return list(model.no_weight_decay())


def _names_in_net(parts: Split) -> Iterator[tuple[int, str]]:
    """Yield the id of each parameter of the parts, and its name in the net."""
    modules = {"stem": parts.stem, "head": parts.head}
    for index, block in enumerate(parts.blocks):
        modules[f"blocks.{index}"] = block
    for path, module in modules.items():
        for name, parameter in module.named_parameters():
            yield id(parameter), f"{path}.{name}"
