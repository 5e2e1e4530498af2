"""Read, check and change the description in a checkpoint's header; no torch is imported.

The file's metadata has one key, "elasticnet", whose value is sorted JSON: the keys of `Description`
and a checksum. The checksum covers the description and the dtypes and shapes of the tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, TypedDict, cast

from elasticnet._files import write_atomic
from elasticnet.checkpoint.safetensors_file import (
    Entry,
    Table,
    header_bytes,
    parse_json,
    read_table,
    short,
)
from elasticnet.checkpoint.sources import (
    Remote,
    Source,
    name_of,
    opened,
    read_range,
    size_of,
)
from elasticnet.taps import resolve_taps

FORMAT = 1
KEY = "elasticnet"
CHECKSUM = "checksum"
BLOCK_NAME = re.compile(r"blocks\.([0-9]{1,9})\.")
ADAPTER_NAME = re.compile(r"adapters\.([0-9]{1,9})\.")
STATISTICS_NAME = re.compile(r"head_statistics\.([0-9]{1,9})\.")  # of the head's BatchNorm


class Description(TypedDict):
    """What a checkpoint says about its net.

    Attributes:
        format: The number of the file format, 1.
        architecture: The name of a registered architecture; None for a net that a user's own
            function builds.
        arguments: The arguments of the architecture's builder.
        taps: The depths that carry a tap, ascending.
        sha256: The SHA-256 of each tensor's bytes, by the tensor's name.
        notes: Anything that the writer wanted to record: data, options, scores.
        cards: Depth cards as JSON objects, by machine.
    """

    format: int
    architecture: str | None
    arguments: dict[str, Any]
    taps: list[int]
    sha256: dict[str, str]
    notes: dict[str, Any]
    cards: dict[str, Any]


class Checkpoint(NamedTuple):
    """An open checkpoint and the contents of its header.

    Attributes:
        file: The open file; a `Remote` for a file on a server.
        file_name: The file's name in messages.
        table: Which tensors the file holds, and where.
        description: What the file says about its net.
    """

    file: BinaryIO | Remote
    file_name: str
    table: Table
    description: Description


class DepthSize(NamedTuple):
    """What the net of one depth takes.

    Attributes:
        num_values: The number of values in its parameters and buffers.
        num_bytes: The bytes of the file that these take.
    """

    num_values: int
    num_bytes: int


TYPE_OF_KEY: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "architecture": (str, type(None)),
    "arguments": dict,
    "taps": list,
    "sha256": dict,
    "notes": dict,
    "cards": dict,
}


@contextmanager
def opened_checkpoint(source: Source) -> Generator[Checkpoint, None, None]:
    """Open a checkpoint and read its header.

    Args:
        source: As in `elasticnet.load`.

    Yields:
        The open checkpoint, of which no tensor has been read yet.

    Raises:
        ValueError: The file is damaged, or `save` did not write it.
        OSError: The file cannot be reached.
    """
    with opened(source) as file:
        name = name_of(file)
        table = read_table(file)
        description = decode_description(table, name)
        yield Checkpoint(file=file, file_name=name, table=table, description=description)


def read_header(source: Source) -> Description:
    """Return the description that `save` put into a file, without reading a tensor.

    Args:
        source: As in `elasticnet.load`.

    Returns:
        A dict with the keys format, architecture, arguments, taps, sha256, notes and cards.

    Raises:
        ValueError: The file is damaged, or `save` did not write it.
        OSError: The file cannot be reached.
    """
    with opened_checkpoint(source) as checkpoint:
        return checkpoint.description


def write_header(path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
    """Replace the description of a file, atomically; the tensors' bytes stay as they are.

    Args:
        path: A file that `save` wrote.
        header: The result of `read_header`, with notes or cards changed.

    Raises:
        ValueError: A key is missing or of a wrong type, or a tensor's SHA-256 differs from that in
            the file. The file is then as it was.
        OSError: The file cannot be read or written.
    """
    with opened_checkpoint(path) as checkpoint:
        table = checkpoint.table
        text = encode_description(header, table.entries)
        new_table = table._replace(metadata={**table.metadata, KEY: text})
        # Decoding makes the checks that a reader of the new file will make.
        description = decode_description(new_table, f"header for {checkpoint.file_name}")
        if description["sha256"] != checkpoint.description["sha256"]:
            raise ValueError(
                f"header for {checkpoint.file_name}: the SHA-256 of its tensors differ from "
                "the file's"
            )
        file_size = size_of(checkpoint.file)
        tensor_bytes = read_range(checkpoint.file, start=table.data_start, end=file_size)
    write_atomic(path, header_bytes(new_table.entries, new_table.metadata) + tensor_bytes)


def read_sizes(source: Source) -> dict[int, DepthSize]:
    """Return how large the net of each depth is; only the header of the file is read.

    Args:
        source: As in `elasticnet.load`.

    Returns:
        For each depth that carries a tap: the number of values and the number of bytes.

    Raises:
        ValueError: The file is damaged, or `save` did not write it.
        OSError: The file cannot be reached.
    """
    with opened_checkpoint(source) as checkpoint:
        entries = checkpoint.table.entries
        taps = checkpoint.description["taps"]
    sizes: dict[int, DepthSize] = {}
    for depth in taps:
        num_values = 0
        num_bytes = 0
        for name, entry in entries.items():
            if first_depth_that_needs(name) <= depth:
                num_values += math.prod(entry.shape)
                num_bytes += entry.end - entry.start
        sizes[depth] = DepthSize(num_values=num_values, num_bytes=num_bytes)
    return sizes


def first_depth_that_needs(tensor_name: str) -> int:
    """Return the shallowest depth whose net has a tensor; 0 for stem and head, which every net has.

    Args:
        tensor_name: A key of an `ElasticWrapper`'s state dict.
    """
    block = BLOCK_NAME.match(tensor_name)
    if block:
        return int(block[1]) + 1  # keys count blocks from 0, depths from 1
    adapter = ADAPTER_NAME.match(tensor_name)
    if adapter:
        return int(adapter[1])
    statistics = STATISTICS_NAME.match(tensor_name)
    if statistics:
        return int(statistics[1])
    return 0


def depths_of_statistics(tensor_names: Iterable[str]) -> list[int]:
    """Return the depths for which a file has running statistics of the head's BatchNorm.

    Args:
        tensor_names: Keys of an `ElasticWrapper`'s state dict.

    Returns:
        The depth of each name of such a tensor, in their order.
    """
    matches = [STATISTICS_NAME.match(name) for name in tensor_names]
    return [int(match[1]) for match in matches if match]


def encode_description(description: Mapping[str, Any], entries: Mapping[str, Entry]) -> str:
    """Return a description as the file's metadata holds it: sorted JSON with its checksum.

    Args:
        description: A mapping with the keys of `Description`.
        entries: The tensors of the file, whose dtypes and shapes the checksum covers.

    Raises:
        ValueError: JSON cannot hold a value of the description.
    """
    try:
        # To JSON and back, so that keys that are numbers become text before they are sorted.
        plain = json.loads(json.dumps(dict(description)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"notes, cards and arguments must be what JSON can hold: {error}"
        ) from error
    plain.pop(CHECKSUM, None)
    plain[CHECKSUM] = _checksum(plain, entries)
    return json.dumps(plain, sort_keys=True)


def decode_description(table: Table, file_name: str) -> Description:
    """Return the checked description in a file's metadata.

    Args:
        table: The file's table.
        file_name: The file's name in messages.

    Raises:
        ValueError: The file has no description, it is damaged, or its format is newer than this
            version reads.
    """
    if KEY not in table.metadata:
        raise ValueError(
            f"{file_name}: a safetensors file, but not one that elasticnet.save wrote: "
            "safetensors.torch.load_file reads it; load that into what it was saved from, and "
            "save the net"
        )
    try:
        description = parse_json(table.metadata[KEY])
    except ValueError as error:
        raise _damaged(file_name, error) from error
    # Before the other checks, because a newer format may have other keys and another checksum.
    _check_format_is_not_newer(description, file_name)
    try:
        # Files of the first versions have no checksum and no cards.
        checksum = description.pop(CHECKSUM, None)
        if checksum is not None and checksum != _checksum(description, table.entries):
            raise ValueError("it does not have the checksum it was saved with")
        description.setdefault("cards", {})
        _check_description(description)
        _check_depths_of_tensors(table.entries, deepest_tap=description["taps"][-1])
    except ValueError as error:
        raise _damaged(file_name, error) from error
    return cast(Description, description)  # _check_description looked at every key


def _damaged(file_name: str, error: ValueError) -> ValueError:
    """Return the error to raise for a file whose description is damaged."""
    return ValueError(f"{file_name}: its description is damaged ({error})")


def _checksum(description: Mapping[str, Any], entries: Mapping[str, Entry]) -> str:
    """Return the SHA-256 of a description (without its checksum), and of all dtypes and shapes."""
    tensors = {name: [entry.dtype, entry.shape] for name, entry in entries.items()}
    text = json.dumps([description, tensors], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_format_is_not_newer(description: Mapping[str, Any], file_name: str) -> None:
    """Raise if the format is one of a later version of the library."""
    number = description.get("format")
    if type(number) is int and number > FORMAT:
        raise ValueError(
            f"{file_name}: format {short(number)}, and this version reads up to {FORMAT}: "
            "update elasticnet"
        )


def _check_description(description: Mapping[str, Any]) -> None:
    """Raise unless a description has every key of `Description`, with a value of the right type."""
    missing = sorted(TYPE_OF_KEY.keys() - description.keys())
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for key, expected_type in TYPE_OF_KEY.items():
        if not isinstance(description[key], expected_type):
            raise ValueError(f"{key} is of type {type(description[key]).__name__}")
    # type(), because a bool is an int for isinstance
    if type(description["format"]) is not int or description["format"] < 1:
        raise ValueError(f"format {description['format']}")
    _check_taps(description["taps"])
    _check_value_types("sha256", description["sha256"], str)
    _check_value_types("cards", description["cards"], dict)


def _check_taps(taps: list[Any]) -> None:
    """Raise unless taps are ascending depths from 1; the last one is the number of blocks."""
    if not taps or type(taps[-1]) is not int or taps[-1] < 1:
        raise ValueError(f"taps {short(taps)}")
    sorted_taps = list(resolve_taps(taps, num_blocks=taps[-1]))  # raises if one is no depth
    if taps != sorted_taps:
        raise ValueError(f"taps {short(taps)}")


def _check_depths_of_tensors(entries: Mapping[str, Entry], deepest_tap: int) -> None:
    """Raise if the file has a tensor that is deeper than the deepest tap, which is the last block.

    Earlier versions wrote such files of nets to which blocks had been added.
    """
    for name in entries:
        depth = first_depth_that_needs(name)
        if depth > deepest_tap:
            raise ValueError(
                f"tensor {short(name)} is of depth {depth}, and the deepest tap is at depth "
                f"{deepest_tap}"
            )


def _check_value_types(key: str, values: Mapping[str, Any], expected_type: type) -> None:
    """Raise unless all values of one of the description's mappings are of a type."""
    for name, value in values.items():
        if not isinstance(value, expected_type):
            raise ValueError(f"{key} of {short(name)} is of type {type(value).__name__}")
