"""Modules that other libraries wrap around a module: what is inside, and the names without them.

`torch.compile`, parallel training and activation checkpointing put a module of their own around a
network or around single blocks. The function stays, but the keys of the state dict get a piece such
as `_orig_mod.` or `module.` more. Files hold the plain names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

# The attribute in which a wrapping class keeps its module. The classes are given by their names,
# because importing some of them takes seconds.
INNER_ATTRIBUTES = {
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
    "lightning.fabric.wrappers._FabricModule": "_original_module",
    "lightning_fabric.wrappers._FabricModule": "_original_module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": (
        "_checkpoint_wrapped_module"
    ),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "_fsdp_wrapped_module"
    ),
}
# The attribute in which a layer of peft keeps the module that it adapts. The function of the two
# differs, but they take the same arguments.
ADAPTED_ATTRIBUTES = {
    "peft.tuners.tuners_utils.BaseTunerLayer": "base_layer",
    "peft.utils.other.ModulesToSaveWrapper": "original_module",
}
# FSDP2 makes a class of a module's own class and of this one.
FSDP2_CLASS = "torch.distributed.fsdp.FSDPModule"
# What users call the classes that average the gradients of several processes.
PARALLEL_CLASSES = {
    "torch.nn.parallel.distributed.DistributedDataParallel": "DistributedDataParallel",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "FullyShardedDataParallel"
    ),
    FSDP2_CLASS: "fully_shard",
}
# What wrapped modules add to keys. "module" comes last, because it is also an ordinary name.
KEY_PIECES = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")


def unwrapped(module: Any) -> Any:
    """Return what is inside of all wrappers around a module, or the module if there are none.

    Args:
        module: Any module; anything else is returned as it is.
    """
    while _inner_attribute(module) is not None:
        module = _unwrapped_once(module)
    return module


def network_inside(module: Any) -> Any:
    """Return what is inside of all wrappers and of a model of peft, which puts matrices into it.

    Args:
        module: Any module; anything else is returned as it is.
    """
    inside = unwrapped(module)
    if hasattr(inside, "get_base_model"):  # a PeftModel
        inside = unwrapped(inside.get_base_model())
    return inside


def original_module(module: Any) -> Any:
    """Return the module whose forward says which arguments a wrapped or adapted module takes.

    The forward of a wrapper ends in `**kwargs`, and so do those of peft's layers.

    Args:
        module: Any module; anything else is returned as it is.
    """
    inside = unwrapped(module)
    attribute = _attribute_by_class(inside, ADAPTED_ATTRIBUTES)
    while attribute is not None:
        inside = unwrapped(getattr(inside, attribute))
        attribute = _attribute_by_class(inside, ADAPTED_ATTRIBUTES)
    return inside


def check_gathers_taps(module: nn.Module) -> None:
    """Raise if a module is a `DataParallel` of several devices, which cannot gather a `Taps`.

    Args:
        module: A network, wrapped or not.

    Raises:
        TypeError: It is one.
    """
    device_ids: Any = getattr(module, "device_ids", None)
    if isinstance(module, nn.DataParallel) and len(device_ids) > 1:
        raise TypeError(
            f"the net is in a DataParallel of the devices {device_ids}, which gathers tensors and "
            "no Taps: put the objective into it, DataParallel(ElasticObjective(net, ...)), whose "
            "terms have one value for each device, or use DistributedDataParallel"
        )


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module, or one inside it, is compiled by `torch.compile`.

    Args:
        module: Any module.
    """
    for part in module.modules():
        if _inner_attribute(part) == "_orig_mod":
            return True
        if getattr(part, "_compiled_call_impl", None) is not None:  # module.compile()
            return True
    return False


def is_in_flat_shards(module: nn.Module) -> bool:
    """Return whether a module, or one inside it, is sharded by FSDP1, into flat pieces.

    The parameters have their shapes only inside `FullyShardedDataParallel.summon_full_params`.

    Args:
        module: Any module.
    """
    for part in module.modules():
        if _inner_attribute(part) != "_fsdp_wrapped_module":
            continue
        fsdp: Any = part
        is_summoned = fsdp.training_state.name == "SUMMON_FULL_PARAMS"
        if fsdp.world_size > 1 and not is_summoned:
            return True
    return False


def parallel_wrapper(module: nn.Module) -> str | None:
    """Return by what a module, as a whole, trains on several processes; None if by nothing.

    Args:
        module: Any module, which may be compiled or wrapped.

    Returns:
        Such as "DistributedDataParallel".
    """
    inside: Any = module
    while True:
        # Fabric's wrapper keeps two modules: the one that it was given, and that one wrapped.
        for each in (inside, children(inside).get("_forward_module")):
            for each_class in type(each).__mro__:
                name = PARALLEL_CLASSES.get(_full_name(each_class))
                if name is not None:
                    return name
        if _inner_attribute(inside) is None:
            return None
        inside = _unwrapped_once(inside)


def check_not_sharded(net: nn.Module) -> None:
    """Raise if a net, or a module inside it, is sharded by FSDP2, or a module inside it by FSDP1.

    Args:
        net: A net that is to be copied.

    Raises:
        ValueError: `fully_shard` was called on the net or on a module inside it, or a module inside
            it is in a `FullyShardedDataParallel`.
    """
    sharded_by = name_of_sharding(net)
    if sharded_by == "FullyShardedDataParallel":
        raise ValueError(
            "the net is sharded by FullyShardedDataParallel, and a shard is no network of its "
            "own: call elasticnet.save(net, path) inside `with "
            "FullyShardedDataParallel.summon_full_params(net)`, and get a whole network from "
            "elasticnet.load(path)"
        )
    if sharded_by == "fully_shard":
        raise ValueError(
            "the net is sharded by fully_shard, and a shard is no network of its own: let all "
            "processes call elasticnet.save(net, path), each with its own path, and get a "
            "whole network from elasticnet.load(path)"
        )


def name_of_sharding(net: nn.Module) -> str | None:
    """Return by what a net, or a module inside it, is sharded; None if it is whole.

    Args:
        net: Any module.

    Returns:
        "FullyShardedDataParallel" (FSDP1) or "fully_shard" (FSDP2).
    """
    for part in net.modules():
        if _inner_attribute(part) == "_fsdp_wrapped_module":
            return "FullyShardedDataParallel"
        if any(_full_name(each) == FSDP2_CLASS for each in type(part).__mro__):
            return "fully_shard"
    return None


def class_name(module: nn.Module) -> str:
    """Return the full name of the class that a module was made of.

    FSDP2 replaces the class by one of its own, and a lazy layer changes its class when it first
    runs. Some modules, such as traced ones, have a class of their own for each object, so that only
    the names of their classes can be compared.

    Args:
        module: A module that is not wrapped.
    """
    lazy: Any = module
    if isinstance(module, LazyModuleMixin) and lazy.cls_to_become is not None:
        return _full_name(lazy.cls_to_become)
    first, *others = type(module).__mro__
    if others and _full_name(others[0]) == FSDP2_CLASS:
        return _full_name(others[1])
    return _full_name(first)


def plain_name(root: nn.Module, key: str) -> str:
    """Return a key of a network's state dict without the pieces that wrapped modules add.

    Args:
        root: The network.
        key: A key of its state dict, such as "blocks.0._orig_mod.weight".

    Returns:
        Such as "blocks.0.weight".
    """
    module: Any = root
    kept: list[str] = []
    for piece in key.split("."):
        # Some wrappers leave their piece out of the keys themselves.
        while _inner_attribute(module) not in (None, piece):
            module = _unwrapped_once(module)
        if _inner_attribute(module) == piece:
            module = _unwrapped_once(module)
        else:
            kept.append(piece)
            module = _child(module, piece)
    return ".".join(kept)


def match_names(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return a known name for every name that has one, with or without pieces of wrapped modules.

    Args:
        names: Such as the keys of a file, which may have been written with wrapped modules.
        known: Plain names.

    Returns:
        The known name, by name. What has none, or would share one with another name, is left out.
    """
    wanted = set(known)
    found = {name: name for name in names if name in wanted}
    taken = set(found)
    for name in names:
        if name in found:
            continue
        plain = _without_pieces(name, wanted)
        if plain is not None and plain not in taken:
            found[name] = plain
            taken.add(plain)
    return found


def children(module: nn.Module) -> dict[str, nn.Module]:
    """Return the submodules of a module by name; one that has two names is there twice.

    Args:
        module: Any module.
    """
    named: dict[str, nn.Module | None] = vars(module)["_modules"]
    return {name: child for name, child in named.items() if child is not None}


def _unwrapped_once(module: Any) -> Any:
    """Return the module inside of a wrapper."""
    attribute = _inner_attribute(module)
    assert attribute is not None
    return getattr(module, attribute)


def _without_pieces(name: str, wanted: set[str]) -> str | None:
    """Return the wanted name that is left when pieces of wrapped modules are taken out; or None."""
    # First only the piece that nobody uses as a name of their own, then more of them.
    for count in range(1, len(KEY_PIECES) + 1):
        removed = KEY_PIECES[:count]
        plain = ".".join(piece for piece in name.split(".") if piece not in removed)
        if plain in wanted:
            return plain
    return None


def _inner_attribute(module: Any) -> str | None:
    """Return the attribute in which a module keeps the one that it wraps; None if it wraps none."""
    return _attribute_by_class(module, INNER_ATTRIBUTES)


def _attribute_by_class(module: Any, attributes: Mapping[str, str]) -> str | None:
    """Return the attribute that stands for the class of a module, or for one above it; or None."""
    for each in type(module).__mro__:
        attribute = attributes.get(_full_name(each))
        if attribute is not None:
            return attribute
    return None


def _full_name(each: type) -> str:
    return f"{each.__module__}.{each.__qualname__}"


def _child(module: Any, name: str) -> Any:
    """Return a submodule by its name; None for a parameter or a buffer."""
    if isinstance(module, nn.Module):
        return children(module).get(name)
    return None
