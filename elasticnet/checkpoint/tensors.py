"""Convert tensors to the bytes of a safetensors file, and read them back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from elasticnet.checkpoint.safetensors_file import Entry, Table
from elasticnet.checkpoint.sources import Source, opened, read_range

MAX_BYTES_PER_READ = 1 << 24  # neighbouring tensors are read together up to this many bytes
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


def place_tensors(tensors: Mapping[str, Tensor], order: Callable[[str], Any]) -> dict[str, Entry]:
    """Give each tensor its place in a new file.

    Wide dtypes come first, so that every tensor starts at a multiple of its values' size.

    Args:
        tensors: The tensors, by name.
        order: A sort key of names, for the tensors whose dtypes are equally wide.

    Returns:
        The entries of the file's table, in the order of their bytes.

    Raises:
        ValueError: The format has no code for a tensor's dtype.
    """

    def widest_first(name: str) -> tuple[int, Any]:
        return -tensors[name].element_size(), order(name)

    entries: dict[str, Entry] = {}
    start = 0
    for name in sorted(tensors, key=widest_first):
        tensor = tensors[name]
        if tensor.dtype not in CODES:
            raise ValueError(
                f"tensor {name!r} is of {tensor.dtype}, which a safetensors file cannot hold"
            )
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = Entry(
            dtype=CODES[tensor.dtype], shape=tuple(tensor.shape), start=start, end=end
        )
        start = end
    return entries


def read_tensors(
    source: Source, table: Table, names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield some tensors of a file, in the file's order, each in memory of its own.

    No other bytes of the file are read. Tensors that are neighbours in the file are read together.

    Args:
        source: The file, which may be open.
        table: The table of the file.
        names: The names of the wanted tensors.

    Yields:
        Name and tensor, on the CPU.
    """

    def place_in_file(name: str) -> tuple[int, int]:
        return table.entries[name].start, table.entries[name].end

    with opened(source) as file:  # an open file is passed through and stays open
        neighbours: list[str] = []  # the tensors that the next read will cover
        for name in sorted(names, key=place_in_file):
            if neighbours and not _can_read_together(table, neighbours, name):
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


def _can_read_together(table: Table, neighbours: list[str], name: str) -> bool:
    """Whether a tensor follows its neighbours without a gap, and all fit into one read."""
    first = table.entries[neighbours[0]]
    last = table.entries[neighbours[-1]]
    following = table.entries[name]
    follows_directly = following.start == last.end
    num_bytes = following.end - first.start
    return follows_directly and num_bytes <= MAX_BYTES_PER_READ


def _read_neighbours(
    file: Source, table: Table, neighbours: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """Read tensors whose bytes stand one behind the other, by one read, and yield each of them."""
    start = table.entries[neighbours[0]].start
    end = table.entries[neighbours[-1]].end
    data = read_range(file, start=table.data_start + start, end=table.data_start + end)
    for name in neighbours:
        entry = table.entries[name]
        num_bytes = entry.end - entry.start
        # A copy in memory that torch aligns, not a view into `data`: the alignment can change the
        # last bit of a matrix product.
        tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        if num_bytes > 0:  # torch.frombuffer refuses empty buffers
            offset = entry.start - start
            values = torch.frombuffer(data, dtype=torch.uint8, count=num_bytes, offset=offset)
            tensor.view(-1).view(torch.uint8).copy_(values)  # byte by byte, whatever the dtype is
        yield name, tensor
