"""Build a net without memory for its parameters, which a file then fills."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from elasticnet.registry import Architecture
from elasticnet.wrapper import ElasticWrapper

# What builders raise for invalid arguments.
BUILD_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
MAX_UNSAVED_BYTES = 256 * 10**6  # of the tensors that a net has beside those in its file


class _EmptyOnMeta(TorchFunctionMode):
    """A mode in which layers are built without memory, whatever sizes a forged file claims.

    Tensors on the meta device have a shape and a dtype, but no memory and no values; initialising
    them draws no random numbers. Layers of torch.nn allocate their parameters by torch.empty, which
    in this mode puts them on the meta device. torch.device("meta") is not used instead, because it
    would also catch torch.eye, which imports 900 modules on meta.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = dict(kwargs or {})
        if func is torch.empty:
            keywords["device"] = "meta"
        return func(*args, **keywords)


def check_arguments(
    architecture: Architecture, arguments: Mapping[str, Any], num_tensors: int
) -> None:
    """Raise unless arguments are plain values and ask for no more blocks than the file has tensors.

    A forged file could otherwise make the builder use much time and memory.

    Args:
        architecture: The architecture that the file names.
        arguments: The arguments of its builder.
        num_tensors: How many tensors the file has.

    Raises:
        TypeError: An argument is not a plain value.
        ValueError: There would be more blocks than tensors.
    """
    for argument, value in arguments.items():
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise TypeError(f"argument {argument} is a {type(value).__name__}")
    num_blocks = architecture.count_blocks(arguments)
    if num_blocks > num_tensors:
        raise ValueError(f"{num_blocks} blocks cannot lie in {num_tensors} tensors")


def build_without_memory(build: Callable[[], Any]) -> ElasticWrapper:
    """Return the net that a registered builder makes; its parameters have no memory yet.

    Args:
        build: Calls the builder.

    Raises:
        TypeError: The builder returned something else than an ElasticWrapper.
        Exception: Whatever the builder raises; for invalid arguments, one of `BUILD_ERRORS`.
    """
    with _EmptyOnMeta():
        net = build()
    if not isinstance(net, ElasticWrapper):
        raise TypeError(f"its builder returned a {type(net).__name__}: expected an ElasticWrapper")
    return net


def fill_unsaved(net: ElasticWrapper, build: Callable[[], Any]) -> None:
    """Give a net that was built without memory the tensors that no file holds.

    These are buffers outside the state dict and tensors in plain attributes, if the builder made
    them by torch.empty. They are taken from a net that is built a second time, with memory.

    Args:
        net: The net. Its parameters are known to have the sizes of those in the file.
        build: Calls the builder.

    Raises:
        ValueError: The tensors take too much memory.
    """
    unsaved = _unsaved_on_meta(net)
    if not unsaved:
        return
    num_bytes = sum(tensor.nbytes for tensor in unsaved.values())
    if num_bytes > MAX_UNSAVED_BYTES:
        first = next(iter(unsaved))
        raise ValueError(
            f"its tensors that are not in the state dict, such as {first!r}, take "
            f"{num_bytes / 10**6:.0f} MB: expected at most {MAX_UNSAVED_BYTES // 10**6} MB"
        )
    with torch.random.fork_rng(devices=[]):
        with_memory = build()
    for name in unsaved:
        path, _, attribute = name.rpartition(".")
        tensor = getattr(with_memory.get_submodule(path), attribute)
        setattr(net.get_submodule(path), attribute, tensor.detach())


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; the error's type if the message is empty.

    Args:
        error: Any error.
    """
    lines = str(error).splitlines()
    if not lines:
        return type(error).__name__
    return lines[0]


def unsaved_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of a net that are not in its state dict, by name.

    Args:
        net: Any module.
    """
    state = net.state_dict()
    return {name: buffer for name, buffer in net.named_buffers() if name not in state}


def _unsaved_on_meta(net: nn.Module) -> dict[str, Tensor]:
    """Return the tensors on the meta device that are not in the state dict, by name."""
    found = {name: buffer for name, buffer in unsaved_tensors(net).items() if buffer.is_meta}
    for path in _paths_of_modules(net):
        module = net.get_submodule(path)
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                found[f"{path}.{attribute}".removeprefix(".")] = value
    return found


def _paths_of_modules(net: nn.Module) -> list[str]:
    return [path for path, _ in net.named_modules()]  # pyright: ignore[reportUnknownVariableType]
