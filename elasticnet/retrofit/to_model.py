"""Back to the library's own model: an ordinary transformers or timm model of one depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet._modules.compare import largest_difference, same_bits
from elasticnet._modules.not_elastic import say_not_elastic
from elasticnet._modules.unwrapping import plain_name, unwrapped
from elasticnet.retrofit.split_from import ModelSource, Names, tensors_of
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper, evaluating

# what is in the names of settings that matter in training alone
TRAINING_WORDS = ("training", "drop", "momentum", "checkpointing")


def to_model(net: nn.Module, depth: int) -> Any:
    """Return an ordinary model of a net's first blocks, of the class that the net was split from.

    A net that `elasticnet.retrofit.transformers.split` made gives a transformers model, whose
    config has that many layers: it has `save_pretrained`, and `generate` with a cache. A net that
    `elasticnet.retrofit.timm.split` made gives a timm model without the blocks behind `depth`. The
    model holds copies of the weights, and nothing of this library. Its output on the example that
    the net was split with is proved to be the net's, bit for bit.

    Args:
        net: The net, in any state of its training; also truncated, grown, loaded or compiled.
        depth: A tap of the net; -1 means the deepest.

    Returns:
        The model, in eval mode, on the net's device. Its class is that of the model that was split.

    Raises:
        ValueError: The net was not split from a model, `depth` carries no tap or has an adapter,
            stem, blocks or head are no longer the model's, or the outputs differ; the message says
            which.

    Example:
        `to_model(net, depth=2).save_pretrained("two_layers")`
    """
    elastic: Any = unwrapped(net)
    if not isinstance(elastic, ElasticWrapper):
        raise ValueError(say_not_elastic(elastic))
    source = elastic.split_from
    if not isinstance(source, ModelSource):
        raise ValueError(
            "this net does not know a model that it was split from (by elasticnet.retrofit, of a "
            "model that can be copied): net.truncate(depth) or elasticnet.export make a network of "
            "one depth"
        )
    depth = resolve_depth(depth, elastic.taps)
    kind = source.model_class.__name__
    if str(depth) in elastic.adapters:
        raise ValueError(
            f"depth {depth}: its tap has an adapter, for which {kind} has no place; "
            "net.truncate(depth) is a network with it, and elasticnet.export a file of that"
        )

    values = _values_by_key(elastic, source, depth)
    model = source.build(depth, values).to(next(iter(values.values())).device).eval()
    _check_values(model, values)
    _check_settings(elastic, model, source, depth)
    _check_outputs(elastic, model, source, depth)
    return model


def _values_by_key(net: ElasticWrapper, source: ModelSource, depth: int) -> dict[str, Tensor]:
    """The model's tensors up to a depth, as the net holds them, by their keys in the model."""
    names = source.names
    kind = source.model_class.__name__
    parts: list[dict[str, Tensor]] = []
    if net.stem is not None:
        parts.append(_values_of(net.stem, names.stem, f"the stem is not {kind}'s"))
    for index, block in enumerate(net.blocks[:depth]):
        said = f"block {index + 1} is not {kind}'s"
        parts.append(_values_of(block, source.block_names(index), said))
    parts.append(_values_of(net.head, names.head, f"the head is not {kind}'s"))
    if str(depth) in net.head_statistics:  # of a net that was recalibrated
        _replace_statistics(parts[-1], names.head, net.head_statistics[str(depth)])

    values = dict(source.rest)
    for part in parts:
        for key, value in part.items():
            # two parts may share a tensor, as the embeddings and the head of a language model do
            if key in values and not same_bits(values[key], value):
                raise ValueError(
                    f"{kind} has one {key}, and two parts of the net hold different ones"
                )
            values[key] = value
    for key, first_key in names.ties.items():
        if first_key in values:
            values[key] = values[first_key]
    return values


def _values_of(part: nn.Module, names: Names, said: str) -> dict[str, Tensor]:
    """The tensors of one part by their keys in the model; `said` begins the error's message."""
    tensors = {plain_name(part, key): tensor for key, tensor in tensors_of(part).items()}
    for key in tensors:
        if key not in names:
            raise ValueError(f"{said}: {key} was added to it")
    values: dict[str, Tensor] = {}
    for key, key_in_model in names.items():
        if key not in tensors:
            raise ValueError(f"{said}: {key} is missing")
        if key_in_model is not None:
            values[key_in_model] = tensors[key]
    return values


def _replace_statistics(values: dict[str, Tensor], names: Names, statistics: nn.Module) -> None:
    """Put the statistics that the head's BatchNorm has at a depth in the place of its own."""
    for key, tensor in tensors_of(statistics).items():
        key_in_model = names[key]
        if key_in_model is not None:
            values[key_in_model] = tensor


# --- the proof


def _check_values(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Refuse a model that does not hold every tensor of the net."""
    held = tensors_of(model)
    kind = type(model).__name__
    for key, value in values.items():
        if key in held and held[key].shape != value.shape:
            continue  # it depends on the number of layers: the model has the first part
        if key not in held and not isinstance(value, nn.Parameter):
            continue  # such as the rotary frequencies of a kind of layer that only deeper ones are
        if key not in held:
            raise ValueError(f"{kind} of this depth has no {key}, which the net holds")
        if not same_bits(held[key], value):
            raise ValueError(f"{kind} has another {key} than the net: it ties it to another tensor")


def _check_settings(net: ElasticWrapper, model: nn.Module, source: ModelSource, depth: int) -> None:
    """Refuse a model whose blocks have other settings than the net's.

    The example may be too short to show it: a window of attention that is longer, for one.
    """
    num_blocks = len(source.names.blocks)
    kind = type(model).__name__
    # a net that has grown has more blocks than the model that was split
    paths = source.names.block_paths[:depth]
    for number, path in enumerate(paths, start=1):
        settings = _settings_of(net.blocks[number - 1])
        for name, value in _settings_of(model.get_submodule(path)).items():
            expected = settings.get(name, value)
            # Some modules note how many blocks there are, and which one they belong to. A block by
            # which a net has grown may be a copy of another one.
            is_number_of_blocks = (expected, value) == (num_blocks, depth)
            is_own_number = value == number - 1
            if expected != value and not is_number_of_blocks and not is_own_number:
                raise ValueError(
                    f"block {number}: its {name} is {value} in {kind} of depth {depth}, and "
                    f"{expected} in the net. Change it in the net, or in the model's config before "
                    "the split"
                )


def _settings_of(block: nn.Module) -> dict[str, Any]:
    """The plain values that the modules of a block hold, but those of the training alone."""
    untyped: Any = block  # PyTorch does not annotate named_modules
    modules: dict[str, nn.Module] = dict(untyped.named_modules())
    settings: dict[str, Any] = {}
    for path, module in modules.items():
        if "dropout" in type(module).__name__.lower():
            continue
        for name, value in vars(module).items():
            is_left_out = name.startswith("_") or any(word in name for word in TRAINING_WORDS)
            if isinstance(value, (bool, int, float, str)) and not is_left_out:
                settings[plain_name(block, f"{path}.{name}".removeprefix("."))] = value
    return settings


def _check_outputs(net: ElasticWrapper, model: nn.Module, source: ModelSource, depth: int) -> None:
    """Prove that the model gives the net's output on the example, with and without its inputs."""
    tensor = next(net.parameters())
    example = _like(source.example, tensor)
    cases: list[dict[str, Any]] = [{}]
    if source.inputs:
        cases.append({name: _like(value, tensor) for name, value in source.inputs.items()})
    for inputs in cases:
        with evaluating(net), torch.no_grad():
            expected = net(example, depth=depth, **inputs)
            actual = source.outputs(model, net.head, example, inputs)
        if not same_bits(actual, expected):
            raise ValueError(
                f"depth {depth}: the {type(model).__name__} does not give the net's output, "
                f"{_said_of_difference(actual, expected)}{_said_of_additions(net)}"
            )


def _like(value: Any, tensor: Tensor) -> Any:
    """A value on the device of a tensor, floats in its type."""
    if not isinstance(value, Tensor):
        return value
    return value.to(tensor) if value.is_floating_point() else value.to(tensor.device)


def _said_of_difference(actual: Any, expected: Any) -> str:
    """How far two outputs are apart, in words."""
    try:
        return f"which differs by up to {largest_difference(actual, expected):.3g}"
    except ValueError as error:
        return str(error)


def _said_of_additions(net: ElasticWrapper) -> str:
    """The end of a message that names what sits on the net itself; "" if nothing does."""
    found = net.additions()
    return f" (the model does not have {', '.join(found)})" if found else ""
