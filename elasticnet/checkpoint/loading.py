"""Read a net, whole or cut to a depth, from a file that `save` wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from elasticnet.checkpoint.checks import check_is_wrapper, describe_invalid_values
from elasticnet.checkpoint.header import Checkpoint, opened_checkpoint, shallowest_depth
from elasticnet.checkpoint.sources import Source
from elasticnet.checkpoint.tensors import DTYPES, digest, read_tensors
from elasticnet.registry import Architecture, find
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper, Origin

# What builders raise for invalid arguments.
BUILD_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def load(
    source: Source,
    depth: int | None = None,
    *,
    build: Callable[[], ElasticWrapper] | None = None,
    device: torch.device | str = "cpu",
) -> ElasticWrapper:
    """Return the net of a file, cut to a depth, in eval mode; only the tensors it needs are read.

    If the file names a registered architecture, its builder is called for this depth only. A file
    can name nothing else: nothing in it is imported or unpickled. The tensors have the dtypes that
    they have in the file.

    Args:
        source: A path, a seekable file opened in binary mode, an http(s) URL whose server answers
            range requests, or `hf://owner/name[@revision][/file]`.
        depth: A depth that carries a tap; None and -1 mean the deepest.
        build: A function that builds the whole net. It is needed if the file names no registered
            architecture.
        device: The device of the net.

    Raises:
        ValueError: The file is damaged; names, shapes or dtypes do not fit; a weight is NaN or
            infinite; the depth carries no tap; the architecture is not registered.
        TypeError: `build` did not return an ElasticWrapper.
        OSError: The file cannot be reached.

    Example:
        `net = load("x4.safetensors", depth=2)`
    """
    with opened_checkpoint(source) as checkpoint:
        depth = resolve_depth(depth, checkpoint.description["taps"])
        if build is None:
            net = _build_registered(checkpoint, depth)
        else:
            net = _build_whole(build).truncate(depth)
        loaded = _read_state(checkpoint, net, depth)
    _replace_state(net, loaded)
    return net.to(device).eval()


def load_into(net: ElasticWrapper, source: Source) -> None:
    """Copy a file's weights into an existing net of any architecture.

    Parameters stay the same objects, so that an optimizer that updates them stays valid. They keep
    their device, dtype and memory format, and the net stays in training or eval mode.

    Args:
        net: A net of the file's depth or a shallower one.
        source: As in `load`.

    Raises:
        TypeError: `net` is not an ElasticWrapper.
        ValueError: As in `load`, or the net has a tap at a depth where the file has none. The net
            is then as it was.
        OSError: The file cannot be reached.
    """
    check_is_wrapper(net)
    with opened_checkpoint(source) as checkpoint:
        _check_can_be_filled(net, checkpoint)
        loaded = _read_state(checkpoint, net, depth=net.taps[-1])
    with torch.no_grad():
        for name, tensor in net.state_dict(keep_vars=True).items():
            tensor.copy_(loaded[name])


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


def _build_registered(checkpoint: Checkpoint, depth: int) -> ElasticWrapper:
    """Return the net that a file describes, cut to a depth; its parameters have no memory yet."""
    name = checkpoint.description["architecture"]
    if name is None:
        raise ValueError(
            f"{checkpoint.name}: holds a network of no registered architecture: "
            "pass build=, a function that makes the net"
        )
    try:
        architecture = find(name)
    except ValueError as error:
        raise ValueError(
            f"{checkpoint.name}: {error}. Or pass build=, a function that makes the net"
        ) from error
    arguments = architecture.arguments_at(checkpoint.description["arguments"], depth)
    taps = [tap for tap in checkpoint.description["taps"] if tap <= depth]
    try:
        _check_arguments(architecture, arguments, num_tensors=len(checkpoint.table.entries))
        with _EmptyOnMeta():
            net = architecture.build(**arguments, taps=taps)
        _check_built(net)
    except BUILD_ERRORS as error:
        reason = _first_line(error)
        raise ValueError(
            f"{checkpoint.name}: {name} cannot be built as the file describes it: {reason}"
        ) from error
    # Record the arguments for this depth; those in the file are for the whole net.
    net.origin = Origin(name, arguments)
    return net


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message; the error's type if the message is empty."""
    lines = str(error).splitlines()
    if not lines:
        return type(error).__name__
    return lines[0]


def _check_arguments(
    architecture: Architecture, arguments: Mapping[str, Any], num_tensors: int
) -> None:
    """Raise unless arguments are plain values and ask for no more blocks than the file has tensors.

    A forged file could otherwise make the builder use much time and memory.
    """
    for argument, value in arguments.items():
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise TypeError(f"argument {argument} is a {type(value).__name__}")
    num_blocks = architecture.count_blocks(arguments)
    if num_blocks > num_tensors:
        raise ValueError(f"{num_blocks} blocks cannot lie in {num_tensors} tensors")


def _check_built(net: ElasticWrapper) -> None:
    """Raise unless a registered builder returned a net that the tensors of a file can fill."""
    if not isinstance(net, ElasticWrapper):
        raise TypeError(f"its builder returned a {type(net).__name__}: expected an ElasticWrapper")
    state = net.state_dict()
    for name, buffer in net.named_buffers():
        if buffer.is_meta and name not in state:
            raise ValueError(
                f"buffer {name!r} is made by torch.empty and is not in the state dict, "
                "so that no file can fill it"
            )


def _build_whole(build: Callable[[], ElasticWrapper]) -> ElasticWrapper:
    """Return what the user's function builds; raise unless it is an ElasticWrapper."""
    net = build()
    if not isinstance(net, ElasticWrapper):
        raise TypeError(f"build returned {type(net).__name__}: expected an ElasticWrapper")
    return net


def _check_can_be_filled(net: ElasticWrapper, checkpoint: Checkpoint) -> None:
    """Raise unless the file has every tap of the net, and every tensor of the net has memory."""
    taps = checkpoint.description["taps"]
    for tap in net.taps:
        if tap not in taps:
            listed = ", ".join(str(depth) for depth in taps)
            raise ValueError(
                f"{checkpoint.name}: this net has a tap at depth {tap}, "
                f"and the file at depths {listed}"
            )
    for name, tensor in net.state_dict(keep_vars=True).items():
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} of this net is on the meta device: call net.to_empty(device=...) first"
            )


def _read_state(checkpoint: Checkpoint, net: ElasticWrapper, depth: int) -> dict[str, Tensor]:
    """Return the tensors that a net needs from a file, by name, checked to fit and to be valid.

    Names, shapes and dtypes are checked before the first tensor is read.
    """
    state = net.state_dict(keep_vars=True)
    _check_names(checkpoint, state, depth)
    for name, tensor in state.items():
        _check_shape_and_dtype(checkpoint, name, needed=tensor)
    loaded: dict[str, Tensor] = {}
    for name, tensor in read_tensors(checkpoint.file, checkpoint.table, names=state.keys()):
        is_parameter = isinstance(state[name], nn.Parameter)
        _check_content(checkpoint, name, tensor, is_parameter=is_parameter)
        loaded[name] = tensor
    return loaded


def _check_names(checkpoint: Checkpoint, state: Mapping[str, Tensor], depth: int) -> None:
    """Raise unless net and file have the same tensors; the file may have more in deeper blocks."""
    in_file = checkpoint.table.entries.keys()
    for name in sorted(state.keys() - in_file):
        raise ValueError(
            f"{checkpoint.name}: no tensor {name!r}, which depth {depth} of this net needs"
        )
    for name in sorted(in_file - state.keys()):
        if shallowest_depth(name) <= depth:
            raise ValueError(f"{checkpoint.name}: tensor {name!r} has no place in this net")


def _check_shape_and_dtype(checkpoint: Checkpoint, name: str, needed: Tensor) -> None:
    """Raise unless shape and dtype fit; one float dtype may stand in for another."""
    entry = checkpoint.table.entries[name]
    if entry.shape != tuple(needed.shape):
        raise ValueError(
            f"{checkpoint.name}: tensor {name!r} has shape {entry.shape}, "
            f"this net needs {tuple(needed.shape)}"
        )
    dtype = DTYPES[entry.dtype]
    both_floating = dtype.is_floating_point and needed.is_floating_point()
    if dtype != needed.dtype and not both_floating:
        raise ValueError(
            f"{checkpoint.name}: tensor {name!r} is of {dtype}, this net needs {needed.dtype}"
        )


def _check_content(checkpoint: Checkpoint, name: str, tensor: Tensor, is_parameter: bool) -> None:
    """Raise if the bytes of a tensor are not those that were saved, or if a value is invalid."""
    if digest(tensor) != checkpoint.description["sha256"].get(name):
        raise ValueError(
            f"{checkpoint.name}: tensor {name!r} does not have the SHA-256 it was saved with; "
            "the file is damaged"
        )
    invalid = describe_invalid_values(tensor, is_parameter=is_parameter)
    if invalid is not None:
        raise ValueError(f"{checkpoint.name}: tensor {name!r} holds {invalid} and is refused")


def _replace_state(net: ElasticWrapper, loaded: Mapping[str, Tensor]) -> None:
    """Replace a net's parameters and buffers by tensors read from a file, without copying them."""
    new_state: dict[str, Tensor] = {}
    # Tied weights are one tensor under two names: the second name gets the same new tensor.
    new_by_old_id: dict[int, Tensor] = {}  # new tensors, by the id of the tensors that they replace
    for name, old in net.state_dict(keep_vars=True).items():
        if id(old) not in new_by_old_id:
            new = loaded[name]
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            new_by_old_id[id(old)] = new
        new_state[name] = new_by_old_id[id(old)]
    net.load_state_dict(new_state, assign=True)
