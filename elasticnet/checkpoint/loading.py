"""Read a net from a file that `save` wrote, whole or cut to a depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from elasticnet.checkpoint.checks import check_is_wrapper, count_wrong_values
from elasticnet.checkpoint.header import Checkpoint, opened_checkpoint, shallowest_depth
from elasticnet.checkpoint.sources import Source
from elasticnet.checkpoint.tensors import DTYPES, digest, read_tensors
from elasticnet.registry import Architecture, find
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper, Origin

# what builders raise for arguments that make no sense
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
    """Return the net of a file that `save` wrote, in eval mode; only its tensors are read.

    A net of a registered architecture is built by the name in the file, at this depth alone. A file
    can name nothing else: nothing in it is imported or unpickled. Dtypes are the file's.

    Args:
        source: A path, a seekable file opened in binary mode, an http(s) URL whose server answers
            range requests, or `hf://owner/name[@revision][/file]`.
        depth: A depth that carries a tap; None and -1 mean the deepest.
        build: For a net of no registered architecture: a function that builds the whole net.
        device: Where the net shall be.

    Raises:
        ValueError: The file is damaged; names, shapes or kinds of numbers do not fit; a weight is
            NaN or infinite; the depth carries no tap; the architecture is not registered.
        TypeError: `build` returned something else than an ElasticWrapper.
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
    _assign(net, loaded)
    return net.to(device).eval()


def load_into(net: ElasticWrapper, source: Source) -> None:
    """Load a file's weights into a net that exists, of any architecture.

    Parameters stay the same objects, on their device, in their dtype and memory format, so that an
    optimizer keeps them; the mode stays, too.

    Args:
        net: A net of the file's depth or a shallower one.
        source: As in `load`.

    Raises:
        TypeError: `net` is no ElasticWrapper.
        ValueError: As in `load`, and where a tap of the net is not one of the file's. Nothing is
            changed unless everything fits.
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
    """Parameters that are made inside it take no memory and draw no random numbers.

    However large a file claims them to be. torch.device("meta") would catch torch.eye, too, which
    imports 900 modules there.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = dict(kwargs or {})
        if func is torch.empty:
            keywords["device"] = "meta"
        return func(*args, **keywords)


def _build_registered(checkpoint: Checkpoint, depth: int) -> ElasticWrapper:
    """Return the net that a file describes, cut to a depth, without weights: on the meta device."""
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
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(
            f"{checkpoint.name}: {name} cannot be built as the file describes it: {lines[0]}"
        ) from error
    net.origin = Origin(name, arguments)
    return net


def _check_arguments(
    architecture: Architecture, arguments: Mapping[str, Any], num_tensors: int
) -> None:
    """Refuse arguments that a forged file may hold: other kinds, or more modules than tensors."""
    for argument, value in arguments.items():
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise TypeError(f"argument {argument} is a {type(value).__name__}")
    num_blocks = architecture.count_blocks(arguments)
    if num_blocks > num_tensors:
        raise ValueError(f"{num_blocks} blocks cannot lie in {num_tensors} tensors")


def _check_built(net: ElasticWrapper) -> None:
    """Refuse what a registered builder returned where a file's tensors cannot complete it."""
    if not isinstance(net, ElasticWrapper):
        raise TypeError(f"its builder returned a {type(net).__name__}, and no ElasticWrapper")
    state = net.state_dict()
    for name, buffer in net.named_buffers():
        if buffer.is_meta and name not in state:
            raise ValueError(
                f"buffer {name!r} is made by torch.empty and is not in the state dict, "
                "so that no file can fill it"
            )


def _build_whole(build: Callable[[], ElasticWrapper]) -> ElasticWrapper:
    """Return what the user's function builds, checked to be an elastic net."""
    net = build()
    if not isinstance(net, ElasticWrapper):
        raise TypeError(f"build returned {type(net).__name__}: expected an ElasticWrapper")
    return net


def _check_can_be_filled(net: ElasticWrapper, checkpoint: Checkpoint) -> None:
    """Refuse a net whose taps are not the file's, or whose parameters hold no values."""
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
    """Return a net's tensors from a file, by name: all that it needs, undamaged, without NaN.

    The file's table is compared with the net before anything is read.
    """
    state = net.state_dict(keep_vars=True)
    _check_names(checkpoint, state, depth)
    for name, tensor in state.items():
        _check_kind(checkpoint, name, tensor)
    loaded: dict[str, Tensor] = {}
    for name, tensor in read_tensors(checkpoint.file, checkpoint.table, state):
        _check_values(checkpoint, name, tensor, isinstance(state[name], nn.Parameter))
        loaded[name] = tensor
    return loaded


def _check_names(checkpoint: Checkpoint, state: Mapping[str, Tensor], depth: int) -> None:
    """Refuse a file that lacks a tensor of the net, or has one too many up to the net's depth."""
    on_one_side_alone = state.keys() ^ checkpoint.table.entries.keys()
    for name in sorted(on_one_side_alone):
        if name in state:
            raise ValueError(
                f"{checkpoint.name}: no tensor {name!r}, which depth {depth} of this net needs"
            )
        if shallowest_depth(name) <= depth:
            raise ValueError(f"{checkpoint.name}: tensor {name!r} has no place in this net")


def _check_kind(checkpoint: Checkpoint, name: str, needed: Tensor) -> None:
    """Refuse a tensor of another shape, and whole numbers where others are needed."""
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


def _check_values(checkpoint: Checkpoint, name: str, tensor: Tensor, is_parameter: bool) -> None:
    """Refuse a tensor that was damaged, or that holds NaN."""
    if digest(tensor) != checkpoint.description["sha256"].get(name):
        raise ValueError(
            f"{checkpoint.name}: tensor {name!r} does not have the SHA-256 it was saved with; "
            "the file is damaged"
        )
    wrong, kind = count_wrong_values(tensor, is_parameter=is_parameter)
    if wrong:
        raise ValueError(
            f"{checkpoint.name}: tensor {name!r} holds {kind} in {wrong} of {tensor.numel()} "
            "values and is refused"
        )


def _assign(net: ElasticWrapper, loaded: Mapping[str, Tensor]) -> None:
    """Make tensors read from a file the net's own, without a copy."""
    assigned: dict[str, Tensor] = {}
    # By the identity of what they replace: a parameter that stands under two names stays one.
    replaced: dict[int, Tensor] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if id(tensor) not in replaced:
            value = loaded[name]
            if isinstance(tensor, nn.Parameter):
                value = nn.Parameter(value, requires_grad=tensor.requires_grad)
            replaced[id(tensor)] = value
        assigned[name] = replaced[id(tensor)]
    net.load_state_dict(assigned, assign=True)
