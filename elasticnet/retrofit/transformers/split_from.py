"""What a network remembers of the transformers model that it was split from: class and config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from elasticnet.retrofit.split_from import (
    ModelSource,
    Names,
    copied_tensor,
    first_samples,
    part_names,
    tensors_of,
    tensors_of_no_part,
)
from elasticnet.retrofit.transformers.layer_list import without_cache

NUM_LAYERS = "num_hidden_layers"  # every config has it, if not under this name in attribute_map
# Where a config speaks of an encoder and a decoder, that is the number of the encoder's layers.
NUM_DECODER_LAYERS = "decoder_layers"
# Backbones name their stages in the config, one for each layer; without these entries the config
# takes the last one.
STAGE_ENTRIES = ("stage_names", "out_features", "out_indices")
# A list of this length is one entry for each layer, if its name says so: not the ids of tokens.
LAYER_WORDS = ("layer", "block", "types")


@dataclass(frozen=True)
class TransformersSource(ModelSource):
    """The source of a transformers model.

    Attributes:
        config: A copy of its config.
        generation_config: A copy of how it generates; None if it does not.
    """

    config: Any
    generation_config: Any

    def build(self, depth: int, values: Mapping[str, Tensor]) -> nn.Module:
        """Return a model of the class with these tensors and so many layers.

        Args:
            depth: How many layers it has.
            values: Its tensors by key; they are copied.

        Raises:
            ValueError: The config does not say how many layers there are, or the class has no
                tensor of this key or shape.
        """
        config = config_of_depth(
            self.config,
            num_layers=len(self.names.blocks),
            depth=depth,
            of_decoder="decoder" in self.names.block_paths[0].split("."),
        )
        build: Any = self.model_class
        # The class draws random weights, which are replaced. The caller's generator stays as it is.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model: nn.Module = build(config)
        if self.generation_config is not None:
            holder: Any = model
            holder.generation_config = deepcopy(self.generation_config)
        _fill(model, values)
        return model

    def outputs(self, model: nn.Module, head: Any, x: Any, inputs: Mapping[str, Any]) -> Any:
        """Return the one tensor of a model's result that the network returns.

        Args:
            model: A model that `build` returned.
            head: The head of the network, which chooses the tensor.
            x: The model's input.
            inputs: Its further inputs.
        """
        keywords = {**inputs, **without_cache(model)}
        if not self.config.return_dict:
            keywords["return_dict"] = True
        return head.chosen(model(x, **keywords))

    def block_names(self, index: int) -> Names:
        """Return the names of a layer's tensors; a layer by which the net has grown has them, too.

        Args:
            index: The layer's place, from 0.
        """
        last = len(self.names.blocks) - 1
        if index <= last:
            return self.names.blocks[index]
        layers, _, _ = self.names.block_paths[last].rpartition(".")
        names: Names = {}
        for key in self.names.blocks[last]:
            names[key] = f"{layers}.{index}.{key}"
        return names


def transformers_source(
    model: nn.Module,
    *,
    stem: nn.Module,
    head: nn.Module,
    layers: Sequence[nn.Module],
    example: Tensor,
    inputs: Mapping[str, Any],
) -> TransformersSource:
    """Return what is to be remembered of a transformers model.

    Args:
        model: The model.
        stem: The stem made of it.
        head: The head made of it.
        layers: Its layers.
        example: An input of it.
        inputs: Further inputs that belong to the example.
    """
    untyped: Any = model  # PyTorch does not annotate named_modules
    path_of = {id(module): path for path, module in untyped.named_modules()}
    names = part_names(
        model,
        stem=stem,
        head=head,
        blocks=layers,
        block_paths=[path_of[id(layer)] for layer in layers],
    )
    return TransformersSource(
        model_class=type(model),
        names=names,
        rest=tensors_of_no_part(model, names),
        example=first_samples(example),
        inputs={name: first_samples(value) for name, value in inputs.items()},
        config=deepcopy(model.config),
        generation_config=deepcopy(getattr(model, "generation_config", None)),
    )


def _fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give a model its tensors; those that are tied stay tied."""
    kind = type(model).__name__
    for key, tensor in tensors_of(model).items():
        if key not in values:
            raise ValueError(f"the net does not hold {key} of {kind}")
        if values[key].shape != tensor.shape:
            raise ValueError(
                f"{key} has shape {tuple(values[key].shape)} in the net, and "
                f"{tuple(tensor.shape)} in {kind} with its config: the net was changed"
            )
    for key, parameter in model.named_parameters():
        value = copied_tensor(values[key])
        parameter.data = value.data
        parameter.requires_grad_(value.requires_grad)
    for key, _ in list(model.named_buffers()):
        path, _, name = key.rpartition(".")
        setattr(model.get_submodule(path), name, copied_tensor(values[key]))


# --- the config


def config_of_depth(config: Any, num_layers: int, depth: int, of_decoder: bool = False) -> Any:
    """Return a copy of a config for a model of another number of layers.

    It is made of the entries that `save_pretrained` writes, as `from_pretrained` makes it. Lists
    with one entry for each layer are cut; in a net that has grown they repeat their last entry.

    Args:
        config: The config, or one that holds the config of the layers (its text_config, say).
        num_layers: How many layers it speaks of.
        depth: How many layers the copy speaks of.
        of_decoder: Whether they are a decoder's, which the config may count under another name.

    Returns:
        The new config.

    Raises:
        ValueError: It does not say how many layers there are, or its class refuses the number.
    """
    entries = config.to_dict()
    number = NUM_LAYERS
    if of_decoder and NUM_DECODER_LAYERS in entries:
        number = NUM_DECODER_LAYERS
    holder, of_holder = _which_holds_layers(config, entries, number, num_layers)
    for name in STAGE_ENTRIES:
        if name in of_holder:
            del of_holder[name]
    for name, value in of_holder.items():
        if _is_list(value) and len(value) == num_layers and _speaks_of_layers(name):
            of_holder[name] = _of_length(value, depth)
    # GPT-Neo's form of the same list: kinds of attention, and how often they repeat
    if "attention_types" in of_holder:
        of_holder["attention_types"] = [[of_holder["attention_layers"], 1]]
    of_holder[holder.attribute_map.get(number, number)] = depth

    config_class: Any = config.__class__
    kind = config_class.__name__
    try:
        made = config_class.from_dict(entries)
    except Exception as error:  # whatever the checks of the config's class raise
        raise ValueError(f"{kind} takes no {number}={depth}: {error}") from error
    # Which attention runs is no entry of a config, and it decides about the last bits.
    made._attn_implementation = config._attn_implementation
    return made


def _which_holds_layers(
    config: Any, entries: dict[str, Any], number: str, num_layers: int
) -> tuple[Any, dict[str, Any]]:
    """The config with this number of layers, the whole one or a part, and its entries."""
    if getattr(config, number, None) == num_layers:
        return config, entries
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if getattr(part, number, None) == num_layers:
            return part, entries[name]
    raise ValueError(
        f"{type(config).__name__} is not cut: its {number} is not {num_layers}, the number of "
        "blocks"
    )


def _of_length(entries: list[Any], length: int) -> list[Any]:
    """The first entries of a list; where it is too short, its last one again and again."""
    missing = max(0, length - len(entries))
    return entries[:length] + [entries[-1]] * missing


def _speaks_of_layers(name: str) -> bool:
    return any(word in name for word in LAYER_WORDS)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)
