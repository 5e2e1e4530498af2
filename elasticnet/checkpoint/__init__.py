"""One safetensors file, every depth in it: save a net, load it whole or cut to a depth, change its
description.

The file's metadata has one key, "elasticnet", holding sorted JSON: format version, architecture and
arguments (for nets of a built-in builder), taps, a SHA-256 for each tensor, depth cards by machine,
free `notes`, and a checksum over all this and the tensors' dtypes and shapes. The same net gives
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from elasticnet._files import write_atomic
from elasticnet.checkpoint.safetensors_file import (
    Table,
    digest,
    header_bytes,
    layout,
    parse_json,
    raw_bytes,
    read_table,
    read_tensors,
    short,
)
from elasticnet.checkpoint.sources import Source, name_of, opened, read_range, size_of
from elasticnet.registry import find, recorded
from elasticnet.taps import resolve_depth, resolve_taps
from elasticnet.wrapper import ElasticWrapper

FORMAT = 1
KEY = "elasticnet"
CONTENT: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "architecture": (str, type(None)),
    "arguments": dict,
    "taps": list,
    "sha256": dict,
    "notes": dict,
    "cards": dict,
}
DEEPER = re.compile(r"(blocks|adapters)\.([0-9]{1,9})\.")


def save(
    net: ElasticWrapper,
    path: str | os.PathLike[str],
    notes: Mapping[str, Any] | None = None,
    cards: Mapping[str, Any] | None = None,
) -> None:
    """Write the net's weights, and what is needed to build it, to one safetensors file; atomic and
    deterministic.

    `notes`: anything JSON can hold (data, options, scores); `read_header` gives it back. cards:
    {machine key: depth card as a JSON object}. Raises ValueError, and leaves the old file, where
    `load` would refuse the new one: NaN anywhere, or infinity in a parameter.
    """
    _check_net(net)
    tensors = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"state {name!r} is of type {type(tensor).__name__}: a checkpoint holds tensors alone"
            )
        _check_finite(
            f"{path}: tensor {name!r}", tensor, "was not saved", isinstance(tensor, nn.Parameter)
        )
        tensors[name] = tensor.detach().cpu().contiguous()
    architecture, arguments = recorded(net) or (None, {})
    # so that a depth is one piece of the file
    entries = layout(tensors, lambda name: (_depth_of(name), name))
    header = {
        "format": FORMAT,
        "architecture": architecture,
        "arguments": arguments,
        "taps": list(net.taps),
        "sha256": {name: digest(tensor) for name, tensor in tensors.items()},
        "notes": dict(notes or {}),
        "cards": dict(cards or {}),
    }
    start = header_bytes(entries, {KEY: _described(header, Table({}, entries, 0))})
    write_atomic(path, b"".join([start, *(raw_bytes(tensors[name]) for name in entries)]))


def read_header(source: Source) -> dict[str, Any]:
    """Return the description that `save` put into the file's metadata, without reading a tensor.

    source: as in `load`. Keys: format, architecture, arguments, taps, sha256, notes, cards.
    """
    with opened(source) as file:
        return _description(read_table(file), name_of(file))


def write_header(path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
    """Replace the description of a file, atomically; the tensors' bytes stay as they are.

    header: what `read_header` gives, with notes or cards changed. Raises ValueError, and changes
    nothing, where a key is missing or of a wrong type and where a tensor's SHA-256 is not the
    file's.
    """
    with opened(path) as file:
        table = read_table(file)
        before = _description(table, name_of(file))
        text = _described(header, table)
        after = _description(table._replace(metadata={KEY: text}), f"header for {name_of(file)}")
        if after["sha256"] != before["sha256"]:
            raise ValueError(
                f"header for {name_of(file)}: the SHA-256 of its tensors differ from the file's"
            )
        data = read_range(file, table.data_start, size_of(file))
    write_atomic(path, header_bytes(table.entries, {**table.metadata, KEY: text}) + data)


def read_sizes(source: Source) -> dict[int, tuple[int, int]]:
    """Return, for each depth that carries a tap, how many values its net has and how many bytes of
    the file they take.

    Parameters and buffers count; reads the header alone.
    """
    with opened(source) as file:
        table = read_table(file)
        taps = _description(table, name_of(file))["taps"]
    sizes = {}
    for depth in taps:
        used = [entry for name, entry in table.entries.items() if _depth_of(name) <= depth]
        sizes[depth] = (
            sum(math.prod(entry.shape) for entry in used),
            sum(entry.end - entry.start for entry in used),
        )
    return sizes


def load(
    source: Source,
    depth: int | None = None,
    *,
    build: Callable[[], ElasticWrapper] | None = None,
    device: torch.device | str = "cpu",
) -> ElasticWrapper:
    """Return the net of a file that `save` wrote, in eval mode, whole or cut to `depth`; only its
    tensors are read.

    source: a path, a seekable file opened in binary mode, an http(s) URL whose server answers range
    requests, or hf://owner/name[@revision][/file]. A net of a built-in architecture (asrn, edsr,
    rcan) is built by name, at this depth alone; for any other, `build` is a function that builds
    the whole net. Nothing named in a file is ever imported, and nothing is unpickled. Dtypes are
    the file's. Raises ValueError for a damaged file, for names, shapes or kinds of numbers that do
    not fit, for NaN and for a depth that carries no tap; OSError for a file that cannot be reached.
    """
    with opened(source) as file:
        name = name_of(file)
        table = read_table(file)
        header = _description(table, name)
        depth = resolve_depth(depth, header["taps"])
        if build is None:
            net = _build(name, header, table, depth)
        else:
            net = build()
            if not isinstance(net, ElasticWrapper):
                raise TypeError(f"build returned {type(net).__name__}: expected an ElasticWrapper")
            net = net.truncate(depth)
        state = net.state_dict(keep_vars=True)
        loaded = dict(_read_state(file, table, header["sha256"], state, depth))
    tied: dict[int, Tensor] = {}  # a parameter that stands under two names stays one
    for key, tensor in state.items():
        if isinstance(tensor, nn.Parameter):
            loaded[key] = nn.Parameter(loaded[key], requires_grad=tensor.requires_grad)
        loaded[key] = tied.setdefault(id(tensor), loaded[key])
    net.load_state_dict(loaded, assign=True)
    return net.to(device).eval()


def load_into(net: ElasticWrapper, source: Source) -> None:
    """Load a file's weights into a net that exists: of the file's depth or a shallower one, of any
    architecture.

    Parameters stay the same objects, on their device, in their dtype and memory format, so that an
    optimizer keeps them; the mode stays, too. Nothing is changed unless everything fits. source and
    errors: as in `load`.
    """
    _check_net(net)
    with opened(source) as file:
        name = name_of(file)
        table = read_table(file)
        header = _description(table, name)
        for tap in net.taps:
            if tap not in header["taps"]:
                listed = ", ".join(map(str, header["taps"]))
                raise ValueError(
                    f"{name}: this net has a tap at depth {tap}, and the file at depths {listed}"
                )
        state = net.state_dict(keep_vars=True)
        for key, tensor in state.items():
            if tensor.is_meta:
                raise ValueError(
                    f"{key!r} of this net is on the meta device: call net.to_empty(device=...) first"
                )
        loaded = dict(_read_state(file, table, header["sha256"], state, net.taps[-1]))
    with torch.no_grad():
        for key, tensor in state.items():
            tensor.copy_(loaded[key])


class _EmptyOnMeta(TorchFunctionMode):
    """Parameters that are made inside it take no memory and draw no random numbers, however large a
    file claims them.

    torch.device("meta") would take torch.eye along, which imports 900 modules there.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(
            *args, **{**(kwargs or {}), "device": "meta"} if func is torch.empty else kwargs or {}
        )


def _build(name: str, header: dict[str, Any], table: Table, depth: int) -> ElasticWrapper:
    """The built-in net that a file describes, without weights: on the meta device."""
    architecture = header["architecture"]
    if architecture is None:
        raise ValueError(
            f"{name}: holds a network of no registered architecture: "
            "pass build=, a function that makes the net"
        )
    try:
        registered = find(architecture)
    except ValueError as error:
        raise ValueError(
            f"{name}: {error}. Or pass build=, a function that makes the net"
        ) from error
    arguments = registered.arguments_at(header["arguments"], depth)
    try:
        for argument, value in arguments.items():
            if not isinstance(value, (bool, int, float, str, type(None))):
                raise TypeError(f"argument {argument} is a {type(value).__name__}")
        modules = math.prod(
            arguments[count]
            for count in registered.count_arguments
            if isinstance(arguments.get(count), int)
        )
        if modules > len(table.entries):
            raise ValueError(f"{modules} blocks cannot lie in {len(table.entries)} tensors")
        with _EmptyOnMeta():
            taps = [tap for tap in header["taps"] if tap <= depth]
            net = registered.build(**arguments, taps=taps)
            net.origin = (architecture, arguments)
            return net
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{name}: {architecture} cannot be built as the file describes it: {reason}"
        ) from error


def _read_state(
    file: Source, table: Table, sha256: Mapping[str, str], state: Mapping[str, Tensor], depth: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that `state` wants, read and checked; the table is compared with it before
    anything is read.
    """
    place = name_of(file)
    for name in sorted(state.keys() ^ table.entries.keys()):
        if name in state:
            raise ValueError(f"{place}: no tensor {name!r}, which depth {depth} of this net needs")
        if _depth_of(name) <= depth:
            raise ValueError(f"{place}: tensor {name!r} has no place in this net")
    for name, tensor in state.items():
        entry = table.entries[name]
        if entry.shape != tuple(tensor.shape):
            raise ValueError(
                f"{place}: tensor {name!r} has shape {entry.shape}, this net needs {tuple(tensor.shape)}"
            )
        if entry.torch_dtype != tensor.dtype and not (
            entry.torch_dtype.is_floating_point and tensor.is_floating_point()
        ):
            raise ValueError(
                f"{place}: tensor {name!r} is of {entry.torch_dtype}, this net needs {tensor.dtype}"
            )
    for name, loaded in read_tensors(file, table, state):
        if digest(loaded) != sha256.get(name):
            raise ValueError(
                f"{place}: tensor {name!r} does not have the SHA-256 it was saved with; the file is damaged"
            )
        _check_finite(
            f"{place}: tensor {name!r}", loaded, "is refused", isinstance(state[name], nn.Parameter)
        )
        yield name, loaded


def _check_finite(name: str, tensor: Tensor, outcome: str, learned: bool) -> None:
    """Refuse NaN, and infinity in parameters; a buffer may hold it, as masks do."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    # float8 has no isnan
    values = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
    if learned:
        wrong, kind = ~torch.isfinite(values), "NaN or infinity"
    else:
        wrong, kind = torch.isnan(values), "NaN"
    if wrong.any():
        raise ValueError(
            f"{name} holds {kind} in {int(wrong.sum())} of {wrong.numel()} values and {outcome}"
        )


def _depth_of(name: str) -> int:
    """The shallowest depth that uses a tensor of this name; 0 for stem and head, which all use."""
    found = DEEPER.match(name)
    if found is None:
        return 0
    # blocks are counted from 0 in keys, depths from 1
    return int(found[2]) + (found[1] == "blocks")


def _check_net(net: Any) -> None:
    if not isinstance(net, ElasticWrapper):
        raise TypeError(
            f"net is a {type(net).__name__}: expected an ElasticWrapper, such as ElasticWrapper(blocks, head)"
        )


def _described(header: Mapping[str, Any], table: Table) -> str:
    """The description as the file's metadata holds it: sorted JSON with its checksum."""
    try:
        # keys that are numbers become text before they are sorted
        plain = json.loads(json.dumps({**header}))
        plain.pop("checksum", None)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"notes, cards and arguments must be what JSON can hold: {error}"
        ) from error
    return json.dumps({**plain, "checksum": _checksum(plain, table)}, sort_keys=True)


def _checksum(header: dict[str, Any], table: Table) -> str:
    tensors = {name: [entry.dtype, entry.shape] for name, entry in table.entries.items()}
    return hashlib.sha256(json.dumps([header, tensors], sort_keys=True).encode()).hexdigest()


def _description(table: Table, name: str) -> dict[str, Any]:
    """The checked description in a file's metadata."""
    if KEY not in table.metadata:
        raise ValueError(f"{name}: a safetensors file, but not one that elasticnet.save wrote")
    try:
        header = parse_json(table.metadata[KEY])
        number = header.get("format")
        newer = type(number) is int and number > FORMAT
        if not newer:
            _check_description(header, table)
    except ValueError as error:
        raise ValueError(f"{name}: its description is damaged ({error})") from error
    if newer:
        raise ValueError(
            f"{name}: format {short(number)}, and this version reads up to {FORMAT}: update elasticnet"
        )
    return header


def _check_description(header: dict[str, Any], table: Table) -> None:
    checksum = header.pop("checksum", None)  # files of the first versions have none, and no cards
    if checksum is not None and checksum != _checksum(header, table):
        raise ValueError("it does not have the checksum it was saved with")
    header.setdefault("cards", {})
    missing = sorted(CONTENT.keys() - header.keys())
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for key, kind in CONTENT.items():
        if not isinstance(header[key], kind):
            raise ValueError(f"{key} is of type {type(header[key]).__name__}")
    if type(header["format"]) is not int or header["format"] < 1:
        raise ValueError(f"format {header['format']}")
    taps = header["taps"]
    if (
        not taps
        or type(taps[-1]) is not int
        or taps[-1] < 1
        or list(resolve_taps(taps, taps[-1])) != taps
    ):
        raise ValueError(f"taps {short(taps)}")
    for key, kind in (("sha256", str), ("cards", dict)):
        for part, value in header[key].items():
            if not isinstance(value, kind):
                raise ValueError(f"{key} of {short(part)} is of type {type(value).__name__}")
