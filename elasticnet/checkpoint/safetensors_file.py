"""The header of a safetensors file: read it, check it, and write it.

A file has three parts: the length of the header (8 bytes, little endian), the header as JSON, and
the bytes of the tensors. The header maps the name of each tensor to its dtype, its shape, and its
first and last byte, counted from the end of the header. It maps "__metadata__" to strings by name.
Nothing is mapped into memory or unpickled, and no torch is imported:
`elasticnet.checkpoint.tensors` reads the tensors themselves.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard, cast

from elasticnet.checkpoint.other_files import START_BYTES, describe_other_file
from elasticnet.checkpoint.sources import Source, name_of, opened, read_range, size_of

LENGTH_BYTES = 8  # the bytes that hold the header's length
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_AXES = 64
MAX_SIZE = (1 << 63) - 1  # of an axis or an offset; torch counts them as int64
MAX_SHOWN = 60  # characters of a value in a message
ALIGNMENT = 8  # the tensors start at a multiple of this many bytes
METADATA = "__metadata__"
BYTES_PER_VALUE = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "C64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


class Entry(NamedTuple):
    """One tensor of a file.

    Attributes:
        dtype: The format's code of the dtype, such as "F32".
        shape: The tensor's shape.
        start: The tensor's first byte, counted from the end of the header.
        end: The byte behind the tensor's last one.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Table(NamedTuple):
    """The contents of a file's header.

    Attributes:
        metadata: The strings under "__metadata__".
        entries: The tensors, by name.
        data_start: The byte of the file at which the tensors begin.
    """

    metadata: dict[str, str]
    entries: dict[str, Entry]
    data_start: int


def read_table(source: Source) -> Table:
    """Return the table of a safetensors file; only the header is read.

    Args:
        source: As in `elasticnet.load`.

    Raises:
        ValueError: The header is not valid JSON or has a key twice, a dtype is unknown, a tensor
            takes other bytes than its shape and dtype need, or the tensors do not fill the rest of
            the file without gap or overlap. The message names the file.
        OSError: The file cannot be reached.
    """
    with opened(source) as file:
        name = name_of(file)
        try:
            return _checked_table(file)
        except ValueError as error:
            other_file = _described_as_other_file(file)
            if other_file is not None:
                raise ValueError(f"{name}: not a safetensors file: {other_file}") from error
            # Errors of `sources` begin with the file's name, and so does the new message.
            message = str(error).removeprefix(f"{name}: ")
            reason = message.splitlines()[0]
            raise ValueError(f"{name}: not a whole safetensors file ({reason})") from error


def parse_json(text: str) -> dict[str, Any]:
    """Return the object that a JSON text holds.

    Args:
        text: The JSON.

    Raises:
        ValueError: The text is not valid JSON, is not an object, is nested too deeply, or has a key
            twice.
    """
    try:
        value: Any = json.loads(text, object_pairs_hook=_dict_without_double_keys)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if not is_object(value):
        raise ValueError(f"JSON of type {type(value).__name__} where an object is expected")
    return value


def is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a value that was read from JSON is an object.

    Args:
        value: Any value.
    """
    return isinstance(value, dict)


def header_bytes(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """Return the first two parts of a file: the length of the header, and the header.

    Args:
        entries: The tensors, by name, in the order in which the header lists them.
        metadata: The strings under "__metadata__".
    """
    header: dict[str, Any] = {METADATA: dict(metadata)}
    for name, entry in entries.items():
        header[name] = {
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": (entry.start, entry.end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    padding = b" " * (-len(text) % ALIGNMENT)
    length = len(text) + len(padding)
    return length.to_bytes(LENGTH_BYTES, "little") + text + padding


def short(value: Any) -> str:
    """Return the repr of a value, shortened to 60 characters, for a message.

    Args:
        value: Any value.
    """
    text = repr(value)
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[: MAX_SHOWN - 3]}..."


def _checked_table(file: Source) -> Table:
    """Return the table of an open file; raise unless all of it is valid."""
    first_bytes = bytes(read_range(file, 0, LENGTH_BYTES))
    length = int.from_bytes(first_bytes, "little")
    bytes_after = size_of(file) - LENGTH_BYTES
    if length > min(bytes_after, MAX_HEADER_BYTES):
        raise ValueError(
            f"a header of {length} bytes, with {bytes_after} in the file "
            f"and {MAX_HEADER_BYTES} allowed: it is cut off, damaged, or a file of another kind"
        )
    data_start = LENGTH_BYTES + length
    header = parse_json(bytes(read_range(file, LENGTH_BYTES, data_start)).decode("utf-8"))
    metadata = _checked_metadata(header.pop(METADATA, {}))
    entries = {name: _checked_entry(name, value) for name, value in header.items()}
    _check_tensors_fill(entries, num_bytes=bytes_after - length)
    return Table(metadata=metadata, entries=entries, data_start=data_start)


def _described_as_other_file(file: Source) -> str | None:
    """What a file without a valid header is; None for a damaged one, and where nobody knows.

    It is asked last: the length of a valid header may be any bytes, those of a pickle among them.
    """
    try:
        start = bytes(read_range(file, 0, min(size_of(file), START_BYTES)))
    except (OSError, ValueError):  # of a server: the first error says what is wrong with it
        return None
    has_header = start[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"
    return None if has_header else describe_other_file(start)


def _dict_without_double_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict; raise if a key is given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        most_frequent = counts.most_common(1)[0][0]
        raise ValueError(f"key {most_frequent!r} is given twice")
    return found


def _checked_metadata(value: Any) -> dict[str, str]:
    """Return a header's metadata; raise unless they are strings by name."""
    if not is_object(value):
        raise ValueError(f"{METADATA} is not a table of strings")
    for text in value.values():
        if not isinstance(text, str):
            raise ValueError(f"{METADATA} is not a table of strings")
    return value


def _checked_entry(name: str, value: Any) -> Entry:
    """Return the entry of one tensor; raise unless all of it is valid."""
    if not is_object(value) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype = value["dtype"]
    shape = value["shape"]
    offsets = value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES_PER_VALUE:
        raise ValueError(f"tensor {name!r} has the unknown dtype {short(dtype)}")
    if not _are_sizes(shape) or len(shape) > MAX_AXES:
        raise ValueError(f"tensor {name!r} has the shape {short(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name!r} has the offsets {short(offsets)}")
    start, end = offsets
    needed = math.prod(shape) * BYTES_PER_VALUE[dtype]
    if needed != end - start:
        raise ValueError(f"tensor {name!r} needs {needed} bytes and has {end - start}")
    return Entry(dtype=dtype, shape=tuple(shape), start=start, end=end)


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    """Return whether a JSON value is a list of whole numbers from 0 to MAX_SIZE."""
    if not isinstance(values, list):
        return False
    sizes = cast(list[Any], values)
    return all(type(size) is int and 0 <= size <= MAX_SIZE for size in sizes)


def _check_tensors_fill(entries: Mapping[str, Entry], num_bytes: int) -> None:
    """Raise unless the tensors fill a number of bytes, one behind the other."""
    position = 0
    for name, entry in sorted(entries.items(), key=_place_in_file):
        if entry.start != position:
            if entry.start < position:
                problem = "overlaps the tensor before it"
            else:
                problem = "leaves a gap before it"
            raise ValueError(
                f"tensor {name!r} at byte {entry.start} {problem}, which ends at byte {position}"
            )
        position = entry.end
    if position != num_bytes:
        raise ValueError(f"the tensors take {position} bytes, and {num_bytes} follow the header")


def _place_in_file(item: tuple[str, Entry]) -> tuple[int, int]:
    """Sort key: the place of a tensor in the file.

    It includes the end because an empty tensor starts where the tensor behind it does.
    """
    _, entry = item
    return entry.start, entry.end
