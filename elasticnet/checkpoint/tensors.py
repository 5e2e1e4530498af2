"""Tensors to the bytes of a safetensors file, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from elasticnet.checkpoint.safetensors_file import Entry, Table
from elasticnet.checkpoint.sources import Source, opened, read_range

MAX_BYTES_PER_READ = 1 << 24  # neighbouring tensors are read together up to this
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


def layout(tensors: Mapping[str, Tensor], order: Callable[[str], Any]) -> dict[str, Entry]:
    """Return the table of a file that will hold these tensors, in the order of their bytes.

    Args:
        tensors: By name.
        order: Sorts the names. Wide dtypes come first all the same, so that every tensor starts at
            a multiple of its values' size.

    Raises:
        ValueError: The format has no such dtype.
    """

    def place(name: str) -> tuple[int, Any]:
        return -tensors[name].element_size(), order(name)

    entries: dict[str, Entry] = {}
    start = 0
    for name in sorted(tensors, key=place):
        tensor = tensors[name]
        if tensor.dtype not in CODES:
            raise ValueError(
                f"tensor {name!r} is of {tensor.dtype}, which a safetensors file cannot hold"
            )
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = Entry(CODES[tensor.dtype], tuple(tensor.shape), start, end)
        start = end
    return entries


def read_tensors(
    source: Source, table: Table, names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of these names, in the file's order, each in memory of its own.

    Reads exactly their bytes; neighbours are read together.

    Args:
        source: The file.
        table: Its table.
        names: Of the tensors that are wanted.

    Yields:
        Name and tensor, on the CPU.
    """

    def place(name: str) -> tuple[int, int]:
        return table.entries[name].start, table.entries[name].end

    with opened(source) as file:
        neighbours: list[str] = []
        for name in sorted(names, key=place):
            if neighbours and not _one_read(table, neighbours, name):
                yield from _read_neighbours(file, table, neighbours)
                neighbours = []
            neighbours.append(name)
        if neighbours:
            yield from _read_neighbours(file, table, neighbours)


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, in C order.

    Args:
        tensor: On the CPU.
    """
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes, as hexadecimal digits.

    Args:
        tensor: On the CPU.
    """
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


def _one_read(table: Table, neighbours: list[str], name: str) -> bool:
    """Whether a tensor follows its neighbours in the file without a gap and is not too far."""
    first = table.entries[neighbours[0]]
    last = table.entries[neighbours[-1]]
    following = table.entries[name]
    return following.start == last.end and following.end - first.start <= MAX_BYTES_PER_READ


def _read_neighbours(
    file: Source, table: Table, neighbours: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors whose bytes stand one behind the other, by one read."""
    start = table.entries[neighbours[0]].start
    end = table.entries[neighbours[-1]].end
    data = read_range(file, table.data_start + start, table.data_start + end)
    for name in neighbours:
        entry = table.entries[name]
        num_bytes = entry.end - entry.start
        # Torch's own memory, and no view of what was read: a matrix product can differ in the last
        # bit by alignment.
        tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        if num_bytes > 0:  # torch.frombuffer refuses empty buffers
            offset = entry.start - start
            read = torch.frombuffer(data, dtype=torch.uint8, count=num_bytes, offset=offset)
            tensor.view(-1).view(torch.uint8).copy_(read)
        yield name, tensor
