"""Read a net, whole or cut to a depth, from a file that `save` wrote."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

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
from elasticnet.registry import Architecture, find
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
        source: A path, the name of a packaged net such as "asrn-x4", a seekable file opened in
            binary mode, an http(s) URL whose server answers range requests, or
            `hf://owner/name[@revision][/file]`.
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
        resolved_depth = resolve_depth(depth, checkpoint.description["taps"])
        if build is None:
            net = _load_registered(checkpoint, resolved_depth)
        else:
            net = _load_built(checkpoint, build, resolved_depth)
    return net.to(device).eval()


def _load_registered(checkpoint: Checkpoint, depth: int) -> ElasticWrapper:
    """Return the net that a file describes, cut to a depth."""
    architecture_name, architecture = _find_architecture(checkpoint)
    arguments = architecture.arguments_at(checkpoint.description["arguments"], depth)
    taps = [tap for tap in checkpoint.description["taps"] if tap <= depth]

    def build_at_depth() -> Any:
        return architecture.build(**arguments, taps=taps)

    # 1. Build the net without memory: a forged file can claim any sizes. Step 3 builds it again.
    with _named_build_errors(checkpoint):
        check_arguments(architecture, arguments, num_tensors=len(checkpoint.table.entries))
        net = build_without_memory(build_at_depth)
        _add_statistics(net, checkpoint)

    # 2. Fill it from the file. This raises unless all shapes are those of the file's tensors.
    new_state = _read_state(checkpoint, state_of(net), depth)
    replace_state(net, new_state)

    # 3. No file holds buffers that are not in the state dict. If the net has some, they are taken
    # from a second net, built with memory. That is safe now: its sizes are those of the file.
    with _named_build_errors(checkpoint):
        fill_unsaved(net, build_at_depth)

    # 4. Record the arguments for this depth; those in the file are for the whole net.
    net.origin = Origin(architecture_name, arguments)
    return net


def _find_architecture(checkpoint: Checkpoint) -> tuple[str, Architecture]:
    """Return the name in a file and the architecture that is registered under it."""
    name = checkpoint.description["architecture"]
    if name is None:
        raise ValueError(
            f"{checkpoint.file_name}: holds a network of no registered architecture: "
            "pass build=, a function that makes the net. The command line loads networks of "
            "registered architectures alone"
        )
    try:
        return name, find(name)
    except ValueError as error:
        raise ValueError(
            f"{checkpoint.file_name}: {error}. Or pass build=, a function that makes the net"
        ) from error


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
    if isinstance(build, nn.Module):
        raise TypeError(
            f"build is a {type(build).__name__}: expected a function that makes the net; "
            "load_into(net, file) fills a net that exists"
        )
    built = build()
    if not isinstance(built, ElasticWrapper):
        raise TypeError(f"build returned {type(built).__name__}: expected an ElasticWrapper")
    check_number_of_blocks(len(built.blocks), deepest_tap=built.taps[-1])

    # At full depth the very net that was built is filled. `truncate` returns a copy, and raises if
    # the net has no tap at the depth.
    if depth == built.taps[-1]:
        net = built
    else:
        net = built.truncate(depth)
    _check_taps(net, checkpoint)
    _add_statistics(net, checkpoint)
    new_state = _read_state(checkpoint, state_of(net), depth)
    replace_state(net, new_state)
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


# --- the tensors of a file, for a net


class _Match(NamedTuple):
    """A tensor of a net, and the tensor of a file whose values it gets.

    Attributes:
        name: The name in the net.
        stored_name: The name in the file. It is another one in files of earlier versions, which may
            have names of compiled blocks, such as "blocks.0._orig_mod.weight".
        target: The net's tensor.
    """

    name: str
    stored_name: str
    target: Tensor


def _read_state(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], depth: int
) -> dict[str, Tensor]:
    """Return a file's tensors by the names that they have in a net, checked to fit and to be valid.

    Names, shapes, dtypes and ties are checked before the first tensor is read.
    """
    _check_holds_plain_values(state)
    matches = _match_tensors(checkpoint, state, depth)
    for match in matches:
        _check_shape_and_dtype(checkpoint, match)
    _check_ties(checkpoint, state, matches)

    new_state: dict[str, Tensor] = {}
    match_of = {match.stored_name: match for match in matches}
    stored_names = list(match_of)
    for stored_name, tensor in read_tensors(checkpoint.file, checkpoint.table, stored_names):
        match = match_of[stored_name]
        _check_content(checkpoint, match, tensor)
        new_state[match.name] = tensor
    return new_state


def _check_holds_plain_values(state: Mapping[str, Tensor]) -> None:
    """Raise if a tensor of a net is quantised: a file's values are not of its kind."""
    for name, tensor in state.items():
        if is_made_of_others(tensor):
            raise ValueError(
                f"{name!r} of this net is a {type(tensor).__name__}, which no file can fill: load "
                "into the net before it is quantised, and quantise it then"
            )


def _match_tensors(checkpoint: Checkpoint, state: Mapping[str, Tensor], depth: int) -> list[_Match]:
    """Match every tensor of the net with one of the file, in the net's order.

    Raise if the file lacks a tensor of the net, or the net one of the file. Only tensors of blocks
    that are deeper than the net may be in the file alone.
    """
    stored_names = checkpoint.table.entries.keys()
    # No two stored names get the same name, and names without a partner are left out.
    pairs = match_names(stored_names, known=state).items()
    stored_name_of = {name: stored_name for stored_name, name in pairs}

    missing_in_file = state.keys() - stored_name_of.keys()
    if missing_in_file:
        raise ValueError(
            f"{checkpoint.file_name}: no tensor {min(missing_in_file)!r}, "
            f"which depth {depth} of this net needs"
        )
    missing_in_net = stored_names - set(stored_name_of.values())
    for stored_name in sorted(missing_in_net):
        is_of_deeper_block = first_depth_that_needs(stored_name) > depth
        if not is_of_deeper_block:
            raise _no_place_error(checkpoint, stored_name)

    return [_Match(name, stored_name_of[name], target) for name, target in state.items()]


def _no_place_error(checkpoint: Checkpoint, stored_name: str) -> ValueError:
    """Return the error to raise if a net has no tensor for one of a file."""
    remedy = ""
    if depths_of_statistics([stored_name]):
        remedy = ": call elasticnet.recalibration.separate_statistics(net) first"
    return ValueError(
        f"{checkpoint.file_name}: tensor {stored_name!r} has no place in this net{remedy}"
    )


def _check_shape_and_dtype(checkpoint: Checkpoint, match: _Match) -> None:
    """Raise unless shape and dtype fit; one float dtype may stand in for another."""
    target = match.target
    entry = checkpoint.table.entries[match.stored_name]
    if has_shape(target) and entry.shape != tuple(target.shape):
        raise ValueError(
            f"{checkpoint.file_name}: tensor {match.stored_name!r} has shape {entry.shape}, "
            f"this net needs {tuple(target.shape)}"
        )
    dtype = DTYPES[entry.dtype]
    both_floating = dtype.is_floating_point and target.is_floating_point()
    if dtype != target.dtype and not both_floating:
        raise ValueError(
            f"{checkpoint.file_name}: tensor {match.stored_name!r} is of {dtype}, "
            f"this net needs {target.dtype}"
        )


def _check_content(checkpoint: Checkpoint, match: _Match, tensor: Tensor) -> None:
    """Raise if the bytes of a tensor are not those that were saved, or if a value is invalid."""
    stored_name = match.stored_name
    if digest(tensor) != checkpoint.description["sha256"].get(stored_name):
        raise ValueError(
            f"{checkpoint.file_name}: tensor {stored_name!r} does not have the SHA-256 it was "
            "saved with; the file is damaged"
        )
    is_parameter = isinstance(match.target, nn.Parameter)
    invalid = describe_invalid_values(tensor, is_parameter=is_parameter)
    if invalid is not None:
        raise ValueError(
            f"{checkpoint.file_name}: tensor {stored_name!r} holds {invalid} and is refused"
        )


# --- ties: several names of one tensor


def _check_ties(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], matches: Sequence[_Match]
) -> None:
    """Raise if one tensor of the net has two names, and the file has different values for them.

    Loading would keep the last of these values and say nothing.
    """
    digests = checkpoint.description["sha256"]
    digest_of = {match.name: digests.get(match.stored_name) for match in matches}

    def is_same(first: str, second: str) -> bool:
        return digest_of[first] == digest_of[second]

    untied = find_untied(state, is_same)
    if untied is not None:
        first, second = untied
        raise _untied_error(checkpoint, first, second)


def _untied_error(checkpoint: Checkpoint, first: str, second: str) -> ValueError:
    """Return the error to raise if a file has different values for tensors that a net shares."""
    return ValueError(
        f"{checkpoint.file_name}: {first!r} and {second!r} are shared in this net, and differ in "
        "the file: build a net in which they are separate"
    )


# --- the same for a net that exists


def load_into(net: nn.Module, source: Source) -> None:
    """Copy a file's weights into an existing net of any architecture.

    Parameters stay the same objects, so that an optimizer that updates them stays valid. They keep
    their device, dtype and memory format, and the net stays in training or eval mode. Lazy layers
    get the shapes of the file.

    Unlike `load`, it adds no modules: a file with head statistics for each depth needs a net that
    has them, see `elasticnet.recalibration.separate_statistics`.

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
        _check_taps(elastic, checkpoint)
        _check_can_be_filled(state)
        new_state = _read_state(checkpoint, state, depth=elastic.taps[-1])
        _check_shared_memory(checkpoint, state, new_state)
    # Everything is checked; from here on the net changes.
    with torch.no_grad():
        for name, tensor in state.items():
            if not has_shape(tensor):
                _give_shape(tensor, new_state[name].shape)
            _copy(new_state[name], tensor)


def _check_can_be_filled(state: Mapping[str, Tensor]) -> None:
    """Raise unless values can be copied into every tensor of a net."""
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


def _check_shared_memory(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], new_state: Mapping[str, Tensor]
) -> None:
    """Raise if two tensors of the net lie in one memory, and the file has different values for it.

    Ties are one tensor under two names; this finds two tensors that overlap in memory, which only
    `load_into` writes to.
    """
    targets: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if has_shape(tensor) and not is_sharded(tensor):  # others have no memory that can be shared
            targets[name] = tensor
    conflict = find_conflict(targets, values=new_state)
    if conflict is not None:
        first, second = conflict
        raise _untied_error(checkpoint, first, second)


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
