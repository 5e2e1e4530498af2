"""The safetensors format: the table of a file's tensors, checked whole, and single tensors read by
their byte ranges.

A file is a header length (8 bytes, little endian), a JSON header and the tensors' bytes. The header
maps each name to dtype, shape and offsets behind the header, and "__metadata__" to strings. Nothing
is mapped and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elasticnet.checkpoint.sources import Source, name_of, opened, read_range, size_of

PREFIX = 8  # bytes of the header's length
MOST_HEADER = 100_000_000  # bytes, the format's own limit
MOST_AXES = 64
MOST_IN_ONE_READ = 1 << 24  # bytes; neighbouring tensors are read together up to this
ALIGNMENT = 8  # the tensors start at a multiple of it
METADATA = "__metadata__"
PICKLED = "it begins as PyTorch's own files do: load_official in elasticnet.sr.models.convert reads those of EDSR and RCAN"
DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """One tensor of a file: dtype as the format writes it, shape, and the bytes [start, end) behind
    the header.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


class Table(NamedTuple):
    """A file's header: its strings, its tensors by name, and where their bytes begin."""

    metadata: dict[str, str]
    entries: dict[str, Entry]
    data_start: int


def read_table(source: Source) -> Table:
    """Return the table of a safetensors file; reads the header and nothing else.

    Raises ValueError, naming the file, unless the header is sound JSON without a key given twice,
    every dtype is known and takes shape times dtype bytes, and the tensors fill the rest of the
    file without a gap or an overlap.
    """
    with opened(source) as file:
        try:
            prefix = bytes(read_range(file, 0, PREFIX))
            if prefix.startswith((b"PK\3\4", b"\x80\2")):
                raise ValueError(PICKLED)
            length = int.from_bytes(prefix, "little")
            room = size_of(file) - PREFIX
            if length > min(room, MOST_HEADER):
                raise ValueError(
                    f"a header of {length} bytes, with {room} in the file and {MOST_HEADER} allowed"
                )
            text = bytes(read_range(file, PREFIX, PREFIX + length)).decode("utf-8")
            header = parse_json(text)
            metadata = header.pop(METADATA, {})
            if not isinstance(metadata, dict) or not all(
                isinstance(value, str) for value in metadata.values()
            ):
                raise ValueError(f"{METADATA} is not a table of strings")
            entries = {name: _entry(name, value) for name, value in header.items()}
            _check_cover(entries, room - length)
        except ValueError as error:
            raise ValueError(
                f"{name_of(file)}: not a whole safetensors file ({_plain(error, file)})"
            ) from error
    return Table(metadata, entries, PREFIX + length)


def parse_json(text: str) -> dict[str, Any]:
    """Return the object that a JSON text holds; ValueError for anything else, and for a key that is
    given twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"key {key!r} is given twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"JSON of type {type(value).__name__} where an object is expected")
    return value


def read_tensors(
    source: Source, table: Table, names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of these names, in the file's order, each in memory of its own as torch
    allocates it.

    Reads exactly their bytes; neighbours are read together.
    """
    wanted = sorted(
        ((table.entries[name], name) for name in names),
        key=lambda each: (each[0].start, each[0].end),
    )
    with opened(source) as file:
        group: list[tuple[Entry, str]] = []
        for entry, name in wanted:
            if group and (
                entry.start != group[-1][0].end or entry.end - group[0][0].start > MOST_IN_ONE_READ
            ):
                yield from _read_group(file, table, group)
                group = []
            group.append((entry, name))
        if group:
            yield from _read_group(file, table, group)


def layout(tensors: Mapping[str, Tensor], order: Callable[[str], Any]) -> dict[str, Entry]:
    """Return the table of a file of these tensors: wide dtypes first, as alignment needs it, then
    as `order` sorts.
    """
    entries, start = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), order(name))):
        tensor = tensors[name]
        if tensor.dtype not in CODES:
            raise ValueError(
                f"tensor {name!r} is of {tensor.dtype}, which a safetensors file cannot hold"
            )
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = Entry(CODES[tensor.dtype], tuple(tensor.shape), start, end)
        start = end
    return entries


def header_bytes(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """Return everything that stands before the tensors' bytes."""
    header: dict[str, Any] = {METADATA: dict(metadata)}
    for name, entry in entries.items():
        header[name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": (entry.start, entry.end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(PREFIX, "little") + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU, in C order."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes, as hexadecimal digits."""
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


def _entry(name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} has the unknown dtype {short(dtype)}")
    if not _are_sizes(shape) or len(shape) > MOST_AXES:
        raise ValueError(f"tensor {name!r} has the shape {short(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name!r} has the offsets {short(offsets)}")
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if needed != offsets[1] - offsets[0]:
        raise ValueError(f"tensor {name!r} needs {needed} bytes and has {offsets[1] - offsets[0]}")
    return Entry(dtype, tuple(shape), *offsets)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 1 << 63 for value in values
    )


def _check_cover(entries: Mapping[str, Entry], size: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            kind = (
                "overlaps the tensor before it"
                if entry.start < position
                else "leaves a gap before it"
            )
            raise ValueError(
                f"tensor {name!r} at byte {entry.start} {kind}, which ends at byte {position}"
            )
        position = entry.end
    if position != size:
        raise ValueError(f"the tensors take {position} bytes, and {size} follow the header")


def _read_group(
    file: Source, table: Table, group: list[tuple[Entry, str]]
) -> Iterator[tuple[str, Tensor]]:
    start = group[0][0].start
    data = read_range(file, table.data_start + start, table.data_start + group[-1][0].end)
    for entry, name in group:
        # Torch's own memory, and no view of what was read: a matrix product can differ in the last
        # bit by alignment.
        tensor = torch.empty(entry.shape, dtype=entry.torch_dtype)
        if entry.end > entry.start:
            read = torch.frombuffer(
                data, dtype=torch.uint8, count=entry.end - entry.start, offset=entry.start - start
            )
            tensor.view(-1).view(torch.uint8).copy_(read)
        yield name, tensor


def short(value: Any) -> str:
    """Return a value as a message shows it, however long it is."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(error: ValueError, file: Source) -> str:
    """The reason alone: without the file's name, which stands before it already."""
    return str(error).removeprefix(f"{name_of(file)}: ").splitlines()[0]
