"""What a network remembers of the transformers model that it was split from: class and config."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
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
from elasticnet.retrofit.transformers.layer_list import RUN_ERRORS, without_cache
from elasticnet.wrapper import evaluating

logger = logging.getLogger(__name__)

NUM_LAYERS = "num_hidden_layers"  # every config has it, if not under this name in attribute_map
NUM_BLOCKS = "num_blocks"  # xLSTM's second name for the same number, an entry of its own
# Where a config speaks of an encoder and a decoder, that is the number of the encoder's layers.
NUM_DECODER_LAYERS = "decoder_layers"
# Backbones name their stages in the config, one for each layer; without these entries the config
# takes the last one.
STAGE_ENTRIES = ("stage_names", "out_features", "out_indices")
# A list of this length is one entry for each layer, if its name says so: not the ids of tokens.
LAYER_WORDS = ("layer", "block", "types")
LENGTH_OF_CACHE = "get_seq_length"  # in the error of a cache that does not know its length
# What a config keeps beside its entries: which code runs attention and experts. It decides about
# the last bits.
IMPLEMENTATIONS = ("_attn_implementation", "_experts_implementation")


@dataclass(frozen=True)
class TransformersSource(ModelSource):
    """The source of a transformers model.

    Attributes:
        config: A copy of its config.
        layers_config: The names that lead from there to the part of the config that its layers were
            made of, such as ("text_config",); none if that is the whole config.
        generation_config: A copy of how it generates; None if it does not.
    """

    config: Any
    layers_config: tuple[str, ...]
    generation_config: Any

    def build(self, depth: int, values: Mapping[str, Tensor]) -> nn.Module:
        """Return a model of the class with these tensors and so many layers.

        Args:
            depth: How many layers it has.
            values: Its tensors by key; they are copied.

        Raises:
            ValueError: The config does not say how many layers there are, the class makes no model
                of it, or that model has other tensors, or tensors of other shapes.
        """
        config = config_of_depth(
            self.config,
            num_layers=len(self.names.blocks),
            depth=depth,
            of_decoder="decoder" in self.names.block_paths[0].split("."),
            layers_config=self.layers_config,
        )
        model = self._model_of(config, depth)
        if self.generation_config is not None:
            holder: Any = model
            holder.generation_config = deepcopy(self.generation_config)
        _fill(model, {**values, **self._first_parts(model, values)})
        if self.generation_config is not None and _lacks_length_of_cache(model, self.example):
            _switch_off_cache(model)
        return model

    def _first_parts(self, model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the tensors whose shape depends on the number of layers, what the first ones need.

        ESM's head that predicts contacts has such a weight, and so have Gemma 4's embeddings for
        each layer. The proof shows whether the first part is what the class takes.
        """
        smaller: dict[str, torch.Size] = {}
        for key, tensor in tensors_of(model).items():
            if key in values and values[key].shape != tensor.shape:
                smaller[key] = tensor.shape
        if not smaller:
            return {}
        build: Any = self.model_class
        try:
            with torch.device("meta"):
                whole = tensors_of(build(deepcopy(self.config)))
        except Exception:  # whatever a class raises that needs numbers to be built
            return {}
        parts: dict[str, Tensor] = {}
        for key, shape in smaller.items():
            is_of_class = key in whole and whole[key].shape == values[key].shape
            if is_of_class and len(shape) == values[key].ndim:
                parts[key] = _first_part(values[key], shape)
        return parts

    def _model_of(self, config: Any, depth: int) -> nn.Module:
        """A model of a config, with weights that the class draws."""
        build: Any = self.model_class
        try:
            # The weights are replaced. The caller's generator stays as it is.
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                return build(config)
        except Exception as error:  # whatever the class raises: RWKV divides by layers less one
            raise ValueError(
                f"{self.model_class.__name__} cannot be built of a config of {depth} layers: "
                f"{type(error).__name__}: {error}. net.truncate(depth) makes a network of one depth"
            ) from error

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
    block_paths = [path_of[id(layer)] for layer in layers]
    names = part_names(model, stem=stem, head=head, blocks=layers, block_paths=block_paths)
    return TransformersSource(
        model_class=type(model),
        names=names,
        rest=tensors_of_no_part(model, names),
        example=first_samples(example),
        inputs={name: first_samples(value) for name, value in inputs.items()},
        config=deepcopy(model.config),
        layers_config=_names_of_layers_config(model, block_paths[0]),
        generation_config=deepcopy(getattr(model, "generation_config", None)),
    )


def _first_part(value: Tensor, shape: Sequence[int]) -> Tensor:
    """The first entries of a parameter or buffer along each axis, as a parameter or buffer."""
    first = value.detach()[tuple(slice(length) for length in shape)]
    if isinstance(value, nn.Parameter):
        return nn.Parameter(first, requires_grad=value.requires_grad)
    return first


def _fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give a model its tensors; those that are tied stay tied."""
    kind = type(model).__name__
    for key, tensor in tensors_of(model).items():
        if key not in values:
            raise ValueError(
                f"{kind} has {key} where the net has no such tensor: its class makes another model "
                "of its config than the one that was split, or another last layer. Merge adapters "
                "before the split, as by peft's merge_and_unload; net.truncate(depth) makes a "
                "network of one depth in any case"
            )
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


def _lacks_length_of_cache(model: Any, example: Tensor) -> bool:
    """Whether a model cannot go on with a cache, because the cache does not know its length.

    That is so where all layers are linear attention or convolutions, as the first ones of
    Qwen3-Next and Jamba: transformers reads the length off a layer of attention, or raises.
    Mamba's own forward does without the length.
    """
    if not without_cache(model):  # it has no switch for a cache
        return False
    device = next(model.parameters()).device  # the net's
    try:
        with evaluating(model), torch.no_grad():
            model(example[:1].to(device), use_cache=True)
    except ValueError as error:
        return LENGTH_OF_CACHE in str(error)
    except RUN_ERRORS:  # the proof of the output says what is wrong
        return False
    return False


def _switch_off_cache(model: Any) -> None:
    """Let a model run and generate without a cache."""
    for config in (model.generation_config, model.config, model.config.get_text_config()):
        config.use_cache = False
    logger.warning(
        "%s of this depth runs and generates without a cache (use_cache=False in its configs): "
        "transformers reads the length of a cache off a layer of attention, and it has none",
        type(model).__name__,
    )


# --- the config


def config_of_depth(
    config: Any,
    num_layers: int,
    depth: int,
    of_decoder: bool = False,
    layers_config: Sequence[str] | None = None,
) -> Any:
    """Return a copy of a config for a model of another number of layers.

    It is made of the entries that `save_pretrained` writes, as `from_pretrained` makes it. Lists
    with one entry for each layer are cut, and lists and mappings of the numbers of layers, too; in
    a net that has grown the lists repeat their last entry.

    Args:
        config: The config, or one that holds the config of the layers (its text_config, say).
        num_layers: How many layers it speaks of.
        depth: How many layers the copy speaks of.
        of_decoder: Whether they are a decoder's, which the config may count under another name.
        layers_config: The names that lead to the part that speaks of the layers; None looks for
            one with this number.

    Returns:
        The new config.

    Raises:
        ValueError: It does not say how many layers there are, or its class refuses the number or
            changes what the config says of the layers.
    """
    entries = config.to_dict()
    number = NUM_LAYERS
    if of_decoder and NUM_DECODER_LAYERS in entries:
        number = NUM_DECODER_LAYERS
    path = _path_to_number(config, layers_config, number, num_layers)
    holder = _part_of_config(config, path)
    of_holder = entries
    for name in path:
        of_holder = of_holder[name]
    for name in STAGE_ENTRIES:
        if name in of_holder:
            del of_holder[name]
    _cut_entries(of_holder, num_layers, depth)
    # GPT-Neo's form of the same list: kinds of attention, and how often they repeat
    if "attention_types" in of_holder:
        of_holder["attention_types"] = [[of_holder["attention_layers"], 1]]
    if of_holder.get(NUM_BLOCKS) == num_layers:
        of_holder[NUM_BLOCKS] = depth
    of_holder[holder.attribute_map.get(number, number)] = depth

    config_class: Any = config.__class__
    kind = config_class.__name__
    try:
        made = config_class.from_dict(deepcopy(entries))
    except Exception as error:  # whatever the checks of the config's class raise
        raise ValueError(f"{kind} takes no {number}={depth}: {error}") from error
    made_entries = _part_of_config(made, path).to_dict()
    _check_kept(of_holder, made_entries, refusal=f"{kind} takes no {number}={depth}")
    _copy_implementations(config, made)
    return made


def _cut_entries(entries: dict[str, Any], num_layers: int, depth: int) -> None:
    """Change those entries of a config that say something of each layer."""
    for name, value in list(entries.items()):
        if not _speaks_of_layers(name):
            continue
        if _is_list(value):
            entries[name] = _cut_list(value, num_layers, depth)
        elif _is_mapping(value) and _are_numbers_of_layers(list(value), num_layers):
            # such as Gemma 4's per_layer_config, whose keys are strings in a file
            entries[name] = {key: each for key, each in value.items() if int(key) < depth}


def _cut_list(values: list[Any], num_layers: int, depth: int) -> list[Any]:
    """A list for another number of layers: of one entry for each, or of the numbers of some."""
    is_for_each = len(values) == num_layers
    are_switches = is_for_each and all(value in (0, 1) for value in values)
    if _are_numbers_of_layers(values, num_layers) and not are_switches:
        return [number for number in values if number < depth]
    return _of_length(values, depth) if is_for_each else values


def _are_numbers_of_layers(values: Sequence[Any], num_layers: int) -> bool:
    """Whether these are different numbers of layers, from 0, as in Qwen's mlp_only_layers."""
    are_numbers = all(str(value).isdecimal() for value in values)
    if not are_numbers or len(values) == 0:
        return False
    numbers = {int(value) for value in values}
    return len(numbers) == len(values) and max(numbers) < num_layers


def _check_kept(wanted: Mapping[str, Any], made: Mapping[str, Any], refusal: str) -> None:
    """Refuse a config whose class changes what it is told.

    Gemma 4, for example, makes the last layer one of full attention, whatever it was.
    """
    for name, value in wanted.items():
        is_plain = isinstance(value, (bool, int, float, str))
        if (is_plain or _is_list(value)) and made.get(name, value) != value:
            raise ValueError(f"{refusal}: it makes {name} {made[name]} of {value}")


def _copy_implementations(config: Any, made: Any) -> None:
    """Let a config and its parts name the same code for attention and experts as another one."""
    for name in IMPLEMENTATIONS:
        if hasattr(config, name):
            setattr(made, name, getattr(config, name))
    # behind the whole, which hands its own choice on to the parts
    for part in config.sub_configs:
        own_part = getattr(config, part, None)
        made_part = getattr(made, part, None)
        if own_part is not None and made_part is not None:
            _copy_implementations(own_part, made_part)


# --- where a config speaks of the layers


def _path_to_number(
    config: Any, layers_config: Sequence[str] | None, number: str, num_layers: int
) -> tuple[str, ...]:
    """The names that lead to the part of a config with this number of layers."""
    if layers_config is not None:
        part = _part_of_config(config, layers_config)
        if getattr(part, number, None) == num_layers:
            return tuple(layers_config)
    for path, part in _parts_of_config(config):
        if getattr(part, number, None) == num_layers:
            return path
    raise ValueError(
        f"{type(config).__name__} is not cut: its {number} is not {num_layers}, the number of "
        "blocks"
    )


def _names_of_layers_config(model: nn.Module, block_path: str) -> tuple[str, ...]:
    """The names that lead from a model's config to the one that its layers were made of.

    It is the config of the innermost module around them. A model of images and text has two
    stacks of layers, which may be equally deep.
    """
    untyped: Any = model
    innermost: Any = untyped.config
    parents = block_path.split(".")[:-1]
    for end in range(1, len(parents) + 1):
        module: Any = model.get_submodule(".".join(parents[:end]))
        innermost = getattr(module, "config", innermost)
    found: tuple[str, ...] = ()
    for path, part in _parts_of_config(untyped.config):
        if part is innermost:
            return path
        if type(part) is type(innermost):
            found = path
    return found


def _parts_of_config(config: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a config and the configs in it, with the names that lead to each."""
    yield (), config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is None:
            continue
        for path, inner in _parts_of_config(part):
            yield (name, *path), inner


def _part_of_config(config: Any, path: Sequence[str]) -> Any:
    """The part of a config to which these names lead."""
    for name in path:
        config = getattr(config, name)
    return config


def _of_length(entries: list[Any], length: int) -> list[Any]:
    """The first entries of a list; where it is too short, its last one again and again."""
    missing = max(0, length - len(entries))
    return entries[:length] + [entries[-1]] * missing


def _speaks_of_layers(name: str) -> bool:
    return any(word in name for word in LAYER_WORDS)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, dict)
