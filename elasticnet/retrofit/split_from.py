"""What a network remembers of the model that it was split from, without a copy of its weights.

`elasticnet.retrofit.to_model` makes an ordinary model of it again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet._modules.copies import detached_copy

EXAMPLE_SAMPLES = 2  # how many samples of the example are kept for the proof

# Keys of a part's tensors, each with the key of the same tensor in the model; None for a tensor
# that the model does not have (a constant of a traced forward).
Names = dict[str, str | None]


@dataclass(frozen=True)
class PartNames:
    """Where the tensors of the parts stand in the model.

    Attributes:
        stem: The names in the stem.
        head: The names in the head.
        blocks: The names in each block.
        block_paths: The path of each block in the model.
        ties: Of a tensor that has several keys in the model: the further keys, each with the first
            one, which is the one in the names.
    """

    stem: Names
    head: Names
    blocks: tuple[Names, ...]
    block_paths: tuple[str, ...]
    ties: Mapping[str, str]


@dataclass(frozen=True)
class ModelSource(ABC):
    """The model that a network was split from.

    Attributes:
        model_class: Its class.
        names: Where the tensors of the parts stand in it.
        rest: Its tensors that no part holds, by key. Its forward does not use them.
        example: An input of it, on the CPU.
        inputs: Further inputs that belong to the example.
    """

    model_class: type[nn.Module]
    names: PartNames
    rest: Mapping[str, Tensor]
    example: Any
    inputs: Mapping[str, Any]

    @abstractmethod
    def build(self, depth: int, values: Mapping[str, Tensor]) -> nn.Module:
        """Return an ordinary model of the first blocks.

        Args:
            depth: How many blocks it has.
            values: Its tensors by key; they are copied.

        Raises:
            ValueError: There is no such model; the message says why.
        """

    @abstractmethod
    def outputs(self, model: nn.Module, head: nn.Module, x: Any, inputs: Mapping[str, Any]) -> Any:
        """Return what a model gives, in the form in which the network gives it.

        Args:
            model: A model that `build` returned.
            head: The head of the network.
            x: The model's input.
            inputs: Its further inputs.
        """

    def block_names(self, index: int) -> Names:
        """Return the names of a block's tensors.

        Args:
            index: The block's place, from 0.

        Raises:
            ValueError: The model had no such block.
        """
        known = len(self.names.blocks)
        if index >= known:
            raise ValueError(
                f"block {index + 1}: the {self.model_class.__name__} that this net was split from "
                f"had {known} blocks"
            )
        return self.names.blocks[index]


@dataclass(frozen=True)
class SkeletonSource(ModelSource):
    """The source of a model whose class does not say how it was built: the model without weights.

    Attributes:
        skeleton: A copy of the model. Its tensors that the parts hold are on the meta device.
    """

    skeleton: nn.Module

    def build(self, depth: int, values: Mapping[str, Tensor]) -> nn.Module:
        """Return a copy of the model with these tensors, cut behind the first blocks.

        Args:
            depth: How many blocks it has.
            values: Its tensors by key; they are copied.

        Raises:
            ValueError: The blocks behind `depth` cannot be taken out, or a tensor is missing.
        """
        # The copy holds the values wherever the skeleton holds a tensor without content.
        in_place_of: dict[int, Any] = {}
        for key, stand_in in tensors_of(self.skeleton).items():
            if stand_in.is_meta and key in values and id(stand_in) not in in_place_of:
                in_place_of[id(stand_in)] = copied_tensor(values[key])
        model = detached_copy(self.skeleton, in_place_of)
        for path in reversed(self.names.block_paths[depth:]):
            remove_block(model, path)
        _forget_features(model, self.names.block_paths[depth:])
        for key, tensor in tensors_of(model).items():
            if tensor.is_meta:
                raise ValueError(f"the net does not hold {key} of {self.model_class.__name__}")
        return model

    def outputs(self, model: nn.Module, head: nn.Module, x: Any, inputs: Mapping[str, Any]) -> Any:
        """Return what the model returns.

        Args:
            model: A model that `build` returned.
            head: The head of the network; not needed here.
            x: The model's input.
            inputs: Its further inputs.
        """
        return model(x, **inputs)


def skeleton_source(
    model: nn.Module,
    *,
    stem: nn.Module,
    head: nn.Module,
    blocks: Sequence[nn.Module],
    block_paths: Sequence[str],
    example: Any,
) -> SkeletonSource | None:
    """Return what is to be remembered of a model; None if the model cannot be copied.

    Args:
        model: The model.
        stem: The stem made of it.
        head: The head made of it.
        blocks: The blocks made of it.
        block_paths: The path of each block in the model.
        example: An input of the model.
    """
    names = part_names(model, stem=stem, head=head, blocks=blocks, block_paths=block_paths)
    rest = tensors_of_no_part(model, names)
    stand_ins: dict[int, Any] = {}
    for key, tensor in tensors_of(model).items():
        if key not in rest:
            stand_ins[id(tensor)] = _without_content(tensor)
    try:
        skeleton = detached_copy(model, stand_ins)
        kept_example = first_samples(example)
    except TypeError:  # a lock or an open file in it, which no copy can hold
        return None
    return SkeletonSource(
        model_class=type(model),
        names=names,
        rest=rest,
        example=kept_example,
        inputs={},
        skeleton=skeleton,
    )


# --- names and tensors


def part_names(
    model: nn.Module,
    *,
    stem: nn.Module,
    head: nn.Module,
    blocks: Sequence[nn.Module],
    block_paths: Sequence[str],
) -> PartNames:
    """Return where the tensors of the parts stand in the model that they were taken from.

    Args:
        model: The model.
        stem: The stem.
        head: The head.
        blocks: The blocks.
        block_paths: The path of each block in the model.
    """
    key_of: dict[int, str] = {}
    ties: dict[str, str] = {}
    for key, tensor in tensors_of(model).items():
        first_key = key_of.setdefault(id(tensor), key)
        if first_key != key:
            ties[key] = first_key

    def names_of(part: nn.Module) -> Names:
        return {key: key_of.get(id(tensor)) for key, tensor in tensors_of(part).items()}

    return PartNames(
        stem=names_of(stem),
        head=names_of(head),
        blocks=tuple(names_of(block) for block in blocks),
        block_paths=tuple(block_paths),
        ties=ties,
    )


def tensors_of_no_part(model: nn.Module, names: PartNames) -> dict[str, Tensor]:
    """Return copies of a model's tensors that none of its parts holds, by key.

    Args:
        model: The model.
        names: Where the tensors of the parts stand in it.
    """
    tensors = tensors_of(model)
    held: set[int] = set()
    for part in (names.stem, names.head, *names.blocks):
        held.update(id(tensors[key]) for key in part.values() if key is not None)
    return {key: copied_tensor(tensor) for key, tensor in tensors.items() if id(tensor) not in held}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by key; one that has two names is there twice.

    Buffers that no state dict holds, such as the frequencies of rotary embeddings, count too.

    Args:
        module: Any module.
    """
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    return tensors


def copied_tensor(tensor: Tensor) -> Tensor:
    """Return a copy of a parameter or buffer, as a parameter or buffer.

    Args:
        tensor: The tensor.
    """
    copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied


def _without_content(tensor: Tensor) -> Tensor:
    """A tensor of the same kind, shape and type on the meta device, which holds no numbers."""
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def first_samples(example: Any) -> Any:
    """Return a copy of the first samples of an example, on the CPU.

    Args:
        example: An input; what is no tensor is copied whole.
    """
    if isinstance(example, Tensor):
        return example[:EXAMPLE_SAMPLES].detach().to("cpu", copy=True)
    return detached_copy(example)


# --- cutting


def remove_block(model: nn.Module, path: str) -> None:
    """Take a block out of the container that holds it; the others keep their names.

    Args:
        model: The model.
        path: The path of the block.

    Raises:
        ValueError: The block is in no list, or in one whose numbers would have a gap without it.
    """
    container_path, _, name = path.rpartition(".")
    container: Any = model.get_submodule(container_path)
    names = [each for each, _ in container.named_children()]
    # An nn.Sequential runs what it holds in its order, whatever the names.
    is_chain = isinstance(container, nn.Sequential)
    is_last_of_list = isinstance(container, nn.ModuleList) and names[-1] == name
    if not is_chain and not is_last_of_list:
        raise ValueError(
            f"{type(model).__name__} cannot be cut: its block {path} is not the last one of a list"
        )
    # not `del container[-1]`, which gives all others new names where they have names of their own
    delattr(container, name)


def _forget_features(model: Any, removed: Sequence[str]) -> None:
    """Drop what timm's `feature_info` says of blocks that were removed."""
    feature_info: Any = getattr(model, "feature_info", None)
    if isinstance(feature_info, list):
        kept: list[Any] = []
        for info in feature_info:  # pyright: ignore[reportUnknownVariableType] - of timm
            if not isinstance(info, dict) or info.get("module") not in removed:  # pyright: ignore[reportUnknownMemberType]
                kept.append(info)
        model.feature_info = kept
