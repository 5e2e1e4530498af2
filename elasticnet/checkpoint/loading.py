"""Read a net, whole or cut to a depth, from a file that `save` wrote."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from elasticnet._modules.ties import find_conflict, is_expanded
from elasticnet._modules.unwrapping import match_names
from elasticnet._net.checks import check_number_of_blocks
from elasticnet.checkpoint.building import (
    BUILD_ERRORS,
    build_without_memory,
    check_arguments,
    fill_unsaved,
    first_line,
)
from elasticnet.checkpoint.checks import describe_invalid_values, elastic_net
from elasticnet.checkpoint.header import (
    Checkpoint,
    depths_of_statistics,
    first_depth_that_needs,
    opened_checkpoint,
)
from elasticnet.checkpoint.sources import Source
from elasticnet.checkpoint.state import (
    find_untied,
    has_shape,
    is_made_of_others,
    is_sharded,
    replace_state,
    state_of,
)
from elasticnet.checkpoint.tensors import DTYPES, digest, read_tensors
from elasticnet.recalibration import separate_statistics
from elasticnet.registry import find
from elasticnet.taps import resolve_depth
from elasticnet.wrapper import ElasticWrapper, Origin


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
            architecture. At the deepest depth the net that it returns gets the tensors of the file
            in the place of its own, and is returned; at another depth, a copy that is cut to it.
        device: The device of the net.

    Raises:
        ValueError: The file is damaged; names, shapes or dtypes do not fit; the file has different
            values for tensors that the net shares; a weight is NaN or infinite; the depth carries
            no tap; what `build` returned has a tap where the file has none; the architecture is
            not registered.
        TypeError: `build` did not return an ElasticWrapper.
        OSError: The file cannot be reached.

    Example:
        `net = load("x4.safetensors", depth=2)`
    """
    with opened_checkpoint(source) as checkpoint:
        depth = resolve_depth(depth, checkpoint.description["taps"])
        if build is None:
            net = _load_registered(checkpoint, depth)
        else:
            net = _load_built(checkpoint, build, depth)
    return net.to(device).eval()


def load_into(net: nn.Module, source: Source) -> None:
    """Copy a file's weights into an existing net of any architecture.

    Parameters stay the same objects, so that an optimizer that updates them stays valid. They keep
    their device, dtype and memory format, and the net stays in training or eval mode. Lazy layers
    get the shapes of the file.

    Args:
        net: An `ElasticWrapper` of the file's depth or a shallower one; it may be compiled or
            wrapped for parallel training.
        source: As in `load`.

    Raises:
        TypeError: `net` is not an ElasticWrapper.
        ValueError: As in `load`. The net is then as it was.
        OSError: The file cannot be reached.
    """
    elastic = elastic_net(net)
    state = state_of(elastic)
    with opened_checkpoint(source) as checkpoint:
        _check_can_be_filled(elastic, state, checkpoint)
        loaded = _read_state(checkpoint, state, depth=elastic.taps[-1])
        _check_shared_memory(checkpoint, state, loaded)
    # Everything is checked; from here on the net changes.
    with torch.no_grad():
        for name, tensor in state.items():
            if not has_shape(tensor):
                _give_shape(tensor, loaded[name].shape)
            _copy(loaded[name], tensor)


def _load_registered(checkpoint: Checkpoint, depth: int) -> ElasticWrapper:
    """Return the net that a file describes, cut to a depth."""
    architecture_name = checkpoint.description["architecture"]
    if architecture_name is None:
        raise ValueError(
            f"{checkpoint.file_name}: holds a network of no registered architecture: "
            "pass build=, a function that makes the net"
        )
    try:
        architecture = find(architecture_name)
    except ValueError as error:
        raise ValueError(
            f"{checkpoint.file_name}: {error}. Or pass build=, a function that makes the net"
        ) from error
    arguments = architecture.arguments_at(checkpoint.description["arguments"], depth)
    taps = [tap for tap in checkpoint.description["taps"] if tap <= depth]
    build = partial(architecture.build, **arguments, taps=taps)

    # 1. Build the net without memory: a forged file can claim any sizes.
    with _named_build_errors(checkpoint):
        check_arguments(architecture, arguments, num_tensors=len(checkpoint.table.entries))
        net = build_without_memory(build)
        _add_statistics(net, checkpoint)

    # 2. Fill it from the file. This raises unless all shapes are those of the file's tensors.
    replace_state(net, _read_state(checkpoint, state_of(net), depth))

    # 3. No file holds buffers that are not in the state dict. If the net has some, they are taken
    # from a second net, built with memory. That is safe now: its sizes are those of the file.
    with _named_build_errors(checkpoint):
        fill_unsaved(net, build)

    # Record the arguments for this depth; those in the file are for the whole net.
    net.origin = Origin(architecture_name, arguments)
    return net


@contextmanager
def _named_build_errors(checkpoint: Checkpoint) -> Generator[None, None, None]:
    """Raise what a registered builder raises as a ValueError that names the file."""
    try:
        yield
    except BUILD_ERRORS as error:
        architecture_name = checkpoint.description["architecture"]
        raise ValueError(
            f"{checkpoint.file_name}: {architecture_name} cannot be built as the file describes "
            f"it: {first_line(error)}"
        ) from error


def _load_built(
    checkpoint: Checkpoint, build: Callable[[], ElasticWrapper], depth: int
) -> ElasticWrapper:
    """Return what the user's function builds, cut to a depth and filled from a file."""
    net = build()
    if not isinstance(net, ElasticWrapper):
        raise TypeError(f"build returned {type(net).__name__}: expected an ElasticWrapper")
    check_number_of_blocks(len(net.blocks), deepest_tap=net.taps[-1])
    depth = resolve_depth(depth, net.taps)  # raises if the net that was built has no tap there
    is_full_depth = depth == net.taps[-1]
    if not is_full_depth:
        net = net.truncate(depth)  # a copy; at full depth the very net that was built is filled
    _check_taps(net, checkpoint)
    _add_statistics(net, checkpoint)
    replace_state(net, _read_state(checkpoint, state_of(net), depth))
    return net


def _add_statistics(net: ElasticWrapper, checkpoint: Checkpoint) -> None:
    """Give the head statistics for each depth if the file has them and the net was built without.

    Builders make nets that were never recalibrated.
    """
    stored = set(depths_of_statistics(checkpoint.table.entries))
    depths = [depth for depth in net.taps if depth in stored]
    if depths:
        separate_statistics(net, depths)


def _check_taps(net: ElasticWrapper, checkpoint: Checkpoint) -> None:
    """Raise if the net has a tap where the file has none: nothing was trained to predict there."""
    taps = checkpoint.description["taps"]
    for tap in net.taps:
        if tap not in taps:
            listed = ", ".join(str(depth) for depth in taps)
            raise ValueError(
                f"{checkpoint.file_name}: this net has a tap at depth {tap}, "
                f"and the file at depths {listed}"
            )


def _check_can_be_filled(
    net: ElasticWrapper, state: Mapping[str, Tensor], checkpoint: Checkpoint
) -> None:
    """Raise unless the file has every tap of the net, and every tensor of the net can be filled."""
    _check_taps(net, checkpoint)
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} of this net is on the meta device: call net.to_empty(device=...) first"
            )
        if has_shape(tensor) and is_expanded(tensor):
            raise ValueError(
                f"{name!r} of this net is an expanded tensor, whose values share memory: "
                "clone it first"
            )


def _read_state(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], depth: int
) -> dict[str, Tensor]:
    """Return a file's tensors for the state of a net, by name, checked to fit and to be valid.

    Names, shapes, dtypes and ties are checked before the first tensor is read.
    """
    _check_holds_plain_values(state)
    net_name_of = _match_stored_names(checkpoint, state, depth)  # by stored name
    stored_name_of = {name: stored_name for stored_name, name in net_name_of.items()}
    for name, tensor in state.items():
        _check_shape_and_dtype(checkpoint, stored_name_of[name], needed=tensor)
    _check_ties(checkpoint, state, stored_name_of)

    loaded: dict[str, Tensor] = {}
    for stored_name, tensor in read_tensors(checkpoint.file, checkpoint.table, names=net_name_of):
        name = net_name_of[stored_name]
        is_parameter = isinstance(state[name], nn.Parameter)
        _check_content(checkpoint, stored_name, tensor, is_parameter=is_parameter)
        loaded[name] = tensor
    return loaded


def _check_holds_plain_values(state: Mapping[str, Tensor]) -> None:
    """Raise if a tensor of a net is quantised: a file's values are not of its kind."""
    for name, tensor in state.items():
        if is_made_of_others(tensor):
            raise ValueError(
                f"{name!r} of this net is a {type(tensor).__name__}, which no file can fill: load "
                "into the net before it is quantised, and quantise it then"
            )


def _match_stored_names(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], depth: int
) -> dict[str, str]:
    """Return {name in the file: name in the net}; names with no match are absent.

    The two differ in files of earlier versions, which may have names of compiled blocks, such as
    "blocks.0._orig_mod.weight". Raise if a tensor of the net is not in the file, or one of the file
    not in the net. Only tensors of deeper blocks may be in the file alone.
    """
    stored_names = checkpoint.table.entries.keys()
    net_name_of = match_names(stored_names, known=state)
    found = set(net_name_of.values())
    for name in sorted(state):
        if name not in found:
            raise ValueError(
                f"{checkpoint.file_name}: no tensor {name!r}, which depth {depth} of this net needs"
            )
    for stored_name in sorted(stored_names):
        is_of_deeper_block = first_depth_that_needs(stored_name) > depth
        if stored_name not in net_name_of and not is_of_deeper_block:
            raise _no_place_error(checkpoint, stored_name)
    return net_name_of


def _no_place_error(checkpoint: Checkpoint, stored_name: str) -> ValueError:
    """Return the error to raise if a net has no tensor for one of a file."""
    remedy = ""
    if depths_of_statistics([stored_name]):
        remedy = ": call elasticnet.recalibration.separate_statistics(net) first"
    return ValueError(
        f"{checkpoint.file_name}: tensor {stored_name!r} has no place in this net{remedy}"
    )


def _check_shape_and_dtype(checkpoint: Checkpoint, stored_name: str, needed: Tensor) -> None:
    """Raise unless shape and dtype fit; one float dtype may stand in for another."""
    entry = checkpoint.table.entries[stored_name]
    if has_shape(needed) and entry.shape != tuple(needed.shape):
        raise ValueError(
            f"{checkpoint.file_name}: tensor {stored_name!r} has shape {entry.shape}, "
            f"this net needs {tuple(needed.shape)}"
        )
    dtype = DTYPES[entry.dtype]
    both_floating = dtype.is_floating_point and needed.is_floating_point()
    if dtype != needed.dtype and not both_floating:
        raise ValueError(
            f"{checkpoint.file_name}: tensor {stored_name!r} is of {dtype}, "
            f"this net needs {needed.dtype}"
        )


def _check_content(
    checkpoint: Checkpoint, stored_name: str, tensor: Tensor, is_parameter: bool
) -> None:
    """Raise if the bytes of a tensor are not those that were saved, or if a value is invalid."""
    if digest(tensor) != checkpoint.description["sha256"].get(stored_name):
        raise ValueError(
            f"{checkpoint.file_name}: tensor {stored_name!r} does not have the SHA-256 it was "
            "saved with; the file is damaged"
        )
    invalid = describe_invalid_values(tensor, is_parameter=is_parameter)
    if invalid is not None:
        raise ValueError(
            f"{checkpoint.file_name}: tensor {stored_name!r} holds {invalid} and is refused"
        )


# --- values that a net shares and a file does not
#
# Two names of a net can share values in two ways. `_check_ties`: both name the same tensor object,
# as tied weights do; whether the file agrees is known from its digests, before anything is read.
# `_check_shared_memory`: they name two tensors that are views into one memory; it needs the values,
# because the views may overlap only in part. In both cases loading would keep the value that comes
# last, without a word.


def _check_ties(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], stored_name_of: Mapping[str, str]
) -> None:
    """Raise if one tensor of the net has two names under which the file has different values."""
    hashes = checkpoint.description["sha256"]

    def is_same(first: str, second: str) -> bool:
        return hashes.get(stored_name_of[first]) == hashes.get(stored_name_of[second])

    untied = find_untied(state, is_same)
    if untied is not None:
        raise _untied_error(checkpoint, *untied)


def _check_shared_memory(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], loaded: Mapping[str, Tensor]
) -> None:
    """Raise if copying into one tensor of the net would overwrite what another one is to hold.

    This can happen only in `load_into`, which copies in place: two tensors of the net may be views
    into one memory. `load` replaces the tensors of its net and copies into none.
    """
    targets: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if has_shape(tensor) and not is_sharded(tensor):  # others have no memory that can be shared
            targets[name] = tensor
    conflict = find_conflict(targets, values=loaded)
    if conflict is not None:
        raise _untied_error(checkpoint, *conflict)


def _untied_error(checkpoint: Checkpoint, first: str, second: str) -> ValueError:
    """Return the error to raise if a file has different values for tensors that a net shares."""
    return ValueError(
        f"{checkpoint.file_name}: {first!r} and {second!r} are shared in this net, and differ in "
        "the file: build a net in which they are separate"
    )


# --- tensors of a net, as they are filled


def _give_shape(tensor: Any, shape: Sequence[int]) -> None:
    """Give a tensor of a lazy layer its shape and memory; it stays the same object."""
    tensor.materialize(shape)


def _copy(value: Tensor, target: Any) -> None:
    """Copy a tensor of a file into one of a net; of a sharded one, each process gets its shard."""
    if is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        value = value.to(target.device)
        value = distribute_tensor(value, target.device_mesh, target.placements)
    target.copy_(value)
