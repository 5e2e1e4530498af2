"""The description in a checkpoint's header: read, changed and checked; no torch is imported.

The file's metadata has one key, "elasticnet", which holds sorted JSON: what `Description` lists and
a checksum over all of it and the tensors' dtypes and shapes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Generator, Mapping
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


class Description(TypedDict):
    """What a checkpoint says about its net.

    Attributes:
        format: The number of the file format, 1.
        architecture: The name of a registered architecture; None for a net that a user's own
            function builds.
        arguments: Of the architecture's builder.
        taps: The depths that carry a prediction, rising.
        sha256: Of each tensor's bytes, by the tensor's name.
        notes: What the writer wanted to say: data, options, scores.
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
    """An open checkpoint, with what its header says.

    Attributes:
        file: The open file, or what is needed to read a remote one.
        name: As messages show it.
        table: Which tensors it holds, and where.
        description: What `save` wrote about the net.
    """

    file: BinaryIO | Remote
    name: str
    table: Table
    description: Description


KINDS: dict[str, type | tuple[type, ...]] = {
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
        The open checkpoint; no tensor of it was read.

    Raises:
        ValueError: The file is damaged, or `save` did not write it.
        OSError: The file cannot be reached.
    """
    with opened(source) as file:
        name = name_of(file)
        table = read_table(file)
        yield Checkpoint(file, name, table, decode_description(table, name))


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
        header: What `read_header` gives, with notes or cards changed.

    Raises:
        ValueError: A key is missing or of a wrong type, or a tensor's SHA-256 is not the file's.
            The file is then as it was.
        OSError: The file cannot be read or written.
    """
    with opened_checkpoint(path) as checkpoint:
        table = checkpoint.table
        text = encode_description(header, table.entries)
        changed = table._replace(metadata={**table.metadata, KEY: text})
        # read as a reader of the new file will
        description = decode_description(changed, f"header for {checkpoint.name}")
        if description["sha256"] != checkpoint.description["sha256"]:
            raise ValueError(
                f"header for {checkpoint.name}: the SHA-256 of its tensors differ from the file's"
            )
        data = read_range(checkpoint.file, table.data_start, size_of(checkpoint.file))
    write_atomic(path, header_bytes(changed.entries, changed.metadata) + data)


def read_sizes(source: Source) -> dict[int, tuple[int, int]]:
    """Return what each depth of a file takes; reads the header alone.

    Args:
        source: As in `elasticnet.load`.

    Returns:
        For each depth that carries a tap: how many values its net has, parameters and buffers, and
        how many bytes of the file they take.

    Raises:
        ValueError: The file is damaged, or `save` did not write it.
        OSError: The file cannot be reached.
    """
    with opened_checkpoint(source) as checkpoint:
        entries = checkpoint.table.entries
        taps = checkpoint.description["taps"]
    sizes: dict[int, tuple[int, int]] = {}
    for depth in taps:
        num_values = 0
        num_bytes = 0
        for name, entry in entries.items():
            if shallowest_depth(name) <= depth:
                num_values += math.prod(entry.shape)
                num_bytes += entry.end - entry.start
        sizes[depth] = (num_values, num_bytes)
    return sizes


def shallowest_depth(tensor_name: str) -> int:
    """Return the shallowest depth whose net holds a tensor; 0 for stem and head, which all hold.

    Args:
        tensor_name: A key of an `ElasticWrapper`'s state dict.
    """
    block = BLOCK_NAME.match(tensor_name)
    if block:
        return int(block[1]) + 1  # keys count blocks from 0, depths from 1
    adapter = ADAPTER_NAME.match(tensor_name)
    if adapter:
        return int(adapter[1])
    return 0


def encode_description(description: Mapping[str, Any], entries: Mapping[str, Entry]) -> str:
    """Return a description as the file's metadata holds it: sorted JSON with its checksum.

    Args:
        description: With the keys of `Description`.
        entries: The tensors of the file, which the checksum covers.

    Raises:
        ValueError: JSON cannot hold a value in it.
    """
    try:
        # There and back: keys that are numbers become text before they are sorted.
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
        file_name: As errors name the file.

    Raises:
        ValueError: There is none, it is damaged, or its format is newer than this version reads.
    """
    if KEY not in table.metadata:
        raise ValueError(f"{file_name}: a safetensors file, but not one that elasticnet.save wrote")
    try:
        description = parse_json(table.metadata[KEY])
        number = description.get("format")
        is_newer = type(number) is int and number > FORMAT
        if not is_newer:
            _check_description(description, table.entries)
    except ValueError as error:
        raise ValueError(f"{file_name}: its description is damaged ({error})") from error
    if is_newer:
        raise ValueError(
            f"{file_name}: format {short(number)}, and this version reads up to {FORMAT}: "
            "update elasticnet"
        )
    return cast(Description, description)  # _check_description looked at every key


def _checksum(description: Mapping[str, Any], entries: Mapping[str, Entry]) -> str:
    """Return the SHA-256 of a description (without its checksum), and of all dtypes and shapes."""
    tensors = {name: [entry.dtype, entry.shape] for name, entry in entries.items()}
    text = json.dumps([description, tensors], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_description(description: dict[str, Any], entries: Mapping[str, Entry]) -> None:
    """Refuse what `save` does not write; take the checksum away, and add cards where none are."""
    checksum = description.pop(CHECKSUM, None)
    # Files of the first versions have no checksum and no cards.
    if checksum is not None and checksum != _checksum(description, entries):
        raise ValueError("it does not have the checksum it was saved with")
    description.setdefault("cards", {})
    missing = sorted(KINDS.keys() - description.keys())
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for key, kind in KINDS.items():
        if not isinstance(description[key], kind):
            raise ValueError(f"{key} is of type {type(description[key]).__name__}")
    # type(), because a bool is an int for isinstance
    if type(description["format"]) is not int or description["format"] < 1:
        raise ValueError(f"format {description['format']}")
    _check_taps(description["taps"])
    _check_values("sha256", description["sha256"], str)
    _check_values("cards", description["cards"], dict)


def _check_taps(taps: list[Any]) -> None:
    """Refuse anything but depths from 1 that rise."""
    if not taps or type(taps[-1]) is not int or taps[-1] < 1:
        raise ValueError(f"taps {short(taps)}")
    if list(resolve_taps(taps, taps[-1])) != taps:
        raise ValueError(f"taps {short(taps)}")


def _check_values(key: str, table: dict[str, Any], kind: type) -> None:
    """Refuse a value of another kind in one of the description's tables."""
    for part, value in table.items():
        if not isinstance(value, kind):
            raise ValueError(f"{key} of {short(part)} is of type {type(value).__name__}")
