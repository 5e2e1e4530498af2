"""We and the reference library read what the other writes, and no damage passes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from torch import Tensor

from contract import same
from elasticnet.checkpoint.safetensors_file import (
    BYTES_PER_VALUE,
    Entry,
    header_bytes,
    parse_json,
    read_table,
)
from elasticnet.checkpoint.tensors import (
    CODES,
    DTYPES,
    MAX_BYTES_PER_READ,
    digest,
    place_tensors,
    raw_bytes,
    read_tensors,
)

# versions of the library before 0.6 do not know torch.uint16
LIBRARY_DTYPES = set(safetensors.torch._TYPES.values())
SHAPES = st.lists(st.integers(0, 4), max_size=3)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)


@st.composite
def tensor_tables(draw: st.DrawFn) -> dict[str, Tensor]:
    """Tensors of every dtype that the format and the installed library hold, with any bytes."""
    tensors = {}
    for name in draw(st.sets(NAMES, min_size=1, max_size=5)):
        dtype = draw(st.sampled_from(sorted(CODES.keys() & LIBRARY_DTYPES, key=str)))
        shape = draw(SHAPES)
        tensor = torch.empty(shape, dtype=dtype)
        count = tensor.numel() * tensor.element_size()
        filling = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8)
        tensor.view(-1).view(torch.uint8).copy_(filling)
        tensors[name] = tensor
    return tensors


def written(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    entries = place_tensors(tensors, order=str)
    return b"".join(
        [header_bytes(entries, metadata), *(raw_bytes(tensors[name]) for name in entries)]
    )


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor.dtype, tensor.shape) == (right[name].dtype, right[name].shape)
        assert bytes(raw_bytes(tensor)) == bytes(raw_bytes(right[name])), name


@given(tensor_tables(), st.dictionaries(NAMES, st.text(st.characters(codec="utf-8"))))
def test_the_reference_library_reads_what_we_write(
    tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    equal(safetensors.torch.load(written(tensors, metadata)), tensors)


@given(tensor_tables(), st.data())
def test_we_read_what_the_reference_library_writes(
    tensors: dict[str, Tensor], data: st.DataObject
) -> None:
    file = io.BytesIO(safetensors.torch.save(tensors, {"key": "value"}))
    table = read_table(file)
    assert table.metadata == {"key": "value"}
    wanted = data.draw(st.sets(st.sampled_from(sorted(tensors))))
    equal(dict(read_tensors(file, table, wanted)), {name: tensors[name] for name in wanted})
    assert not wanted or all(digest(tensors[name]) for name in wanted)


def test_metadata_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(written({"a": torch.ones(2)}, {"kéy": '{"ü": "\u2028"}'}))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"kéy": '{"ü": "\u2028"}'}
    assert read_table(path).metadata == {"kéy": '{"ü": "\u2028"}'}


def test_tensors_have_memory_of_their_own() -> None:
    tensors = {"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(5), "c": torch.ones(0, 2)}
    file = io.BytesIO(written(tensors, {}))
    read = dict(read_tensors(file, read_table(file), tensors))
    same(read, tensors, "tensors")
    read["b"].zero_()
    assert read["a"].tolist() == [1, 1, 1]
    assert {tensor.untyped_storage().nbytes() for tensor in read.values()} == {0, 3, 20}


class Counted(io.BytesIO):
    """A file that remembers what was read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        part = super().read(size)
        self.reads.append((start, start + len(part)))
        return part


def test_neighbours_are_read_together_and_nothing_between_them() -> None:
    tensors = {name: torch.full((4,), float(ord(name))) for name in "abcde"}
    data = written(tensors, {})
    file = Counted(data)
    table = read_table(file)
    start = table.data_start
    assert file.reads == [(0, 8), (8, start)]
    file.reads.clear()
    assert [name for name, _ in read_tensors(file, table, ["e", "b", "a", "d"])] == [
        "a",
        "b",
        "d",
        "e",
    ]
    assert file.reads == [(start, start + 32), (start + 48, start + 80)]


def test_large_neighbours_are_read_one_by_one() -> None:
    tensors = {name: torch.zeros(MAX_BYTES_PER_READ // 2, dtype=torch.uint8) for name in "abc"}
    file = Counted(written(tensors, {}))
    table = read_table(file)
    file.reads.clear()
    same(dict(read_tensors(file, table, tensors)), tensors, "tensors")
    assert [end - start for start, end in file.reads] == [
        MAX_BYTES_PER_READ,
        MAX_BYTES_PER_READ // 2,
    ]


def test_dtypes_that_the_format_lacks() -> None:
    with pytest.raises(
        ValueError,
        match=r"tensor 'x' is of torch\.complex128, which a safetensors file cannot hold",
    ):
        place_tensors({"x": torch.zeros(1, dtype=torch.complex128)}, order=str)


def test_the_table_knows_the_size_of_every_dtype() -> None:
    assert {code: dtype.itemsize for code, dtype in DTYPES.items()} == BYTES_PER_VALUE


# --- damage


def file_of(header: Any, data: bytes = bytes(8)) -> io.BytesIO:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return io.BytesIO(len(text).to_bytes(8, "little") + text + data)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def test_the_helper_makes_a_sound_file() -> None:
    assert read_table(file_of({"a": entry()})).entries == {"a": Entry("F32", (2,), 0, 8)}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"[]", "JSON of type list where an object is expected"),
        (b"{", "Expecting property name"),
        (b"{\xff}", "can't decode byte 0xff"),
        (b'{"a":1' + b"[" * 100_000, "Expecting|nested"),
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"a":' + b"9" * 5000 + b"}", "4300"),
        (b'{"a":{"x":1,"y":2,"x":3}}', "key 'x' is given twice"),
        ({"__metadata__": {"a": 1}, "a": entry()}, "__metadata__ is not a table of strings"),
        ({"__metadata__": [], "a": entry()}, "__metadata__ is not a table of strings"),
        ({"a": 5}, "tensor 'a' is not described by dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "tensor 'a' is not described by"),
        ({"a": entry(dtype="F33")}, "tensor 'a' has the unknown dtype 'F33'"),
        ({"a": entry(dtype=["F32"])}, r"tensor 'a' has the unknown dtype \['F32'\]"),
        ({"a": entry(shape=2)}, "tensor 'a' has the shape 2"),
        ({"a": entry(shape=[-2])}, r"tensor 'a' has the shape \[-2\]"),
        ({"a": entry(shape=[2.0])}, r"tensor 'a' has the shape \[2\.0\]"),
        ({"a": entry(shape=[True, 2])}, r"tensor 'a' has the shape \[True, 2\]"),
        ({"a": entry(shape=[1 << 63])}, r"tensor 'a' has the shape \[9223372036854775808\]"),
        (
            {"a": entry(shape=[1 << 62, 1 << 62])},
            "tensor 'a' needs 85070591730234615865843651857942052864 bytes",
        ),
        ({"a": entry(data_offsets=[0])}, r"tensor 'a' has the offsets \[0\]"),
        ({"a": entry(data_offsets=[8, 0])}, r"tensor 'a' has the offsets \[8, 0\]"),
        ({"a": entry(data_offsets=["0", 8])}, r"tensor 'a' has the offsets \['0', 8\]"),
        ({"a": entry(data_offsets=[0, 12])}, "tensor 'a' needs 8 bytes and has 12"),
        (
            {"a": entry(data_offsets=[4, 12])},
            "tensor 'a' at byte 4 leaves a gap before it, which ends at byte 0",
        ),
        (
            {"a": entry(), "b": entry(shape=[1], data_offsets=[4, 8])},
            "tensor 'b' at byte 4 overlaps the tensor before it, which ends at byte 8",
        ),
        (
            {"a": entry(shape=[1], data_offsets=[0, 4])},
            "the tensors take 4 bytes, and 8 follow the header",
        ),
        (
            {"a": entry(), "b": entry(data_offsets=[8, 16])},
            "the tensors take 16 bytes, and 8 follow the header",
        ),
    ],
)
def test_damaged_tables(header: Any, reason: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^<BytesIO>: not a whole safetensors file \(.*({reason})"
    ) as caught:
        read_table(file_of(header))
    assert "\n" not in str(caught.value)
    with pytest.raises((SafetensorError, TypeError)):  # the reference library agrees
        safetensors.torch.load(file_of(header).getvalue())


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry(more=1)}, "tensor 'a' is not described by dtype, shape and data_offsets"),
        ({"a": entry(shape=[2, *[1] * 64])}, r"tensor 'a' has the shape \[2, 1"),
        (b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), "key 'a' is given twice"),
    ],
)
def test_what_we_refuse_and_the_reference_library_takes(header: Any, reason: str) -> None:
    assert safetensors.torch.load(file_of(header).getvalue())["a"].numel() == 2
    with pytest.raises(ValueError, match=rf"^<BytesIO>: not a whole safetensors file \({reason}"):
        read_table(file_of(header))


@pytest.mark.parametrize("length", [9, 1 << 20, 1 << 62, (1 << 64) - 1])
def test_a_header_longer_than_the_file(length: int) -> None:
    file = io.BytesIO(length.to_bytes(8, "little") + b"{}" + bytes(6))
    with pytest.raises(ValueError, match=f"a header of {length} bytes, with 8 in the file"):
        read_table(file)


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with open(path, "wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # a file with a hole in it takes no room
    with pytest.raises(
        ValueError,
        match="a header of 100000001 bytes, with 199999992 in the file and 100000000 allowed",
    ):
        read_table(path)


def test_keys_given_twice_are_found_at_any_depth() -> None:
    assert parse_json('{"a": {"b": 1}, "b": 2}') == {"a": {"b": 1}, "b": 2}
    for text in ('{"a": 1, "a": 1}', '{"x": [{"a": 1, "b": 2, "a": 3}]}'):
        with pytest.raises(ValueError, match=re.escape("key 'a' is given twice")):
            parse_json(text)
