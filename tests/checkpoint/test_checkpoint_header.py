"""Cards and notes are changed without touching a tensor, under a checksum."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import elasticnet
from contract import disturb, same
from elasticnet import ElasticWrapper
from elasticnet.checkpoint import load_into, read_header, write_header
from elasticnet.checkpoint.header import KEY
from elasticnet.checkpoint.safetensors_file import header_bytes, read_table
from elasticnet.sr import asrn
from tiny_nets import conv_net

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)
JSON = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    ),
    max_size=4,
)


def small_asrn() -> ElasticWrapper:
    return asrn(2, num_blocks=2, channels=8).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    elasticnet.save(small_asrn(), path, {"step": 3})
    return path


def tensor_bytes(path: Path) -> bytes:
    return path.read_bytes()[read_table(path).data_start :]


def rewritten(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the description as it stands in the file, checksum and all."""
    table, data = read_table(path), tensor_bytes(path)
    header = json.loads(table.metadata[KEY])
    edit(header)
    path.write_bytes(header_bytes(table.entries, {KEY: json.dumps(header)}) + data)


# --- cards and notes


def test_a_card_is_added_and_the_tensors_stay(path: Path) -> None:
    before, net = tensor_bytes(path), elasticnet.load(path)
    header = read_header(path)
    assert header["cards"] == {}
    header["cards"]["cpu, 2 threads"] = {"latency_ms": [1.5, 2.0]}
    write_header(path, header)
    assert read_header(path) == header
    assert tensor_bytes(path) == before
    same(elasticnet.load(path).state_dict(), dict(net.state_dict()), "state")
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_a_description_that_is_not_changed_gives_the_same_bytes(path: Path) -> None:
    before = path.read_bytes()
    write_header(path, read_header(path))
    assert path.read_bytes() == before


@settings(max_examples=20)  # each writes four files to the disk
@given(JSON, st.dictionaries(st.text(max_size=5), JSON, max_size=2))
def test_notes_and_cards_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    notes: dict[str, Any],
    cards: dict[str, dict[str, Any]],
) -> None:
    """Content saved at once or added later gives the same bytes, which are JSON."""
    one, other = (
        tmp_path_factory.getbasetemp() / f"{name}.safetensors" for name in ("one", "other")
    )
    torch.manual_seed(0)
    net = conv_net(1, 2)
    elasticnet.save(net, one, notes, cards)
    elasticnet.save(net, other)
    write_header(other, {**read_header(other), "notes": notes, "cards": cards})
    assert one.read_bytes() == other.read_bytes()
    header = read_header(one)
    assert (header["notes"], header["cards"]) == (notes, cards)
    with safe_open(one, "pt") as file:
        text = file.metadata()[KEY]
    assert text == json.dumps(json.loads(text), sort_keys=True)


def test_numbers_as_keys_are_written_as_text_and_keep_the_bytes_the_same(path: Path) -> None:
    elasticnet.save(small_asrn(), path, {"psnr": {2: 30.5, 10: 31.5}})
    before = path.read_bytes()
    assert read_header(path)["notes"] == {"psnr": {"2": 30.5, "10": 31.5}}
    write_header(path, read_header(path))
    assert path.read_bytes() == before


def test_a_file_of_the_first_versions_has_no_cards_and_no_checksum(path: Path) -> None:
    rewritten(path, lambda header: [header.pop("cards"), header.pop("checksum")])
    header = read_header(path)
    assert header["cards"] == {}
    elasticnet.load(path)
    header["cards"]["cpu"] = {"ms": 1}
    write_header(path, header)
    assert read_header(path)["cards"] == {"cpu": {"ms": 1}}
    assert elasticnet.load(path, 1).taps == (1,)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda header: header.pop("taps"), r"its description is damaged \(it lacks taps\)"),
        (
            lambda header: header.update(notes=[1]),
            r"its description is damaged \(notes is of type list\)",
        ),
        (
            lambda header: header.update(cards={"cpu": 7}),
            r"its description is damaged \(cards of 'cpu' is of type int\)",
        ),
        (
            lambda header: header.update(cards={"cpu": {"x": {1}}}),
            "must be what JSON can hold: .*set is not JSON",
        ),
        (
            lambda header: header["sha256"].popitem(),
            "the SHA-256 of its tensors differ from the file's",
        ),
        (lambda header: header.update(format=2), "format 2, and this version reads up to 1"),
    ],
)
def test_a_description_that_is_refused_changes_nothing(path: Path, edit: Any, message: str) -> None:
    header, before = read_header(path), path.read_bytes()
    edit(header)
    with pytest.raises(ValueError, match=message):
        write_header(path, header)
    assert path.read_bytes() == before


def test_notes_that_json_cannot_hold_leave_the_old_file(path: Path) -> None:
    before = path.read_bytes()
    for notes in ({"data": Path("x")}, {"mean": torch.ones(1)}, {(1, 2): 3}):
        with pytest.raises(
            ValueError, match="notes, cards and arguments must be what JSON can hold: "
        ):
            elasticnet.save(small_asrn(), path, notes)  # pyright: ignore[reportArgumentType]
    assert path.read_bytes() == before


# --- the checksum and the description's own checks


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header.update(taps=[2]),
        lambda header: header["arguments"].update(residual_links=False),
        lambda header: header["notes"].update(step=4),
        lambda header: header.update(more=1),
    ],
)
def test_a_change_that_fits_is_told_by_the_checksum(path: Path, edit: Any) -> None:
    rewritten(path, edit)
    with pytest.raises(
        ValueError,
        match=r"net\.safetensors: its description is damaged \(it does not have the checksum",
    ):
        elasticnet.load(path)


def test_a_dtype_of_the_same_size_is_told_by_the_checksum(path: Path) -> None:
    elasticnet.save(small_asrn().half(), path)
    whole = path.read_bytes()
    assert whole.count(b'"dtype":"F16"') > 9
    text = whole.replace(b'"dtype":"F16"', b'"dtype":"I16"', 1)
    path.write_bytes(text)
    with pytest.raises(ValueError, match="it does not have the checksum it was saved with"):
        elasticnet.load(path)
    rewritten(path, lambda header: header.pop("checksum"))
    with pytest.raises(
        ValueError, match=r"tensor '.*' is of torch\.int16, this net needs torch\.float32"
    ):
        elasticnet.load(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 0}, r"its description is damaged \(format 0\)"),
        ({"format": True}, r"its description is damaged \(format True\)"),
        ({"format": "1"}, r"its description is damaged \(format is of type str\)"),
        (
            {"format": 10**4000},
            r"format 1000+\.\.\., and this version reads up to 1: update elasticnet",
        ),
        ({"taps": []}, r"its description is damaged \(taps \[\]\)"),
        (
            {"taps": [2, 1]},
            r"its description is damaged \(taps 2, 1: |its description is damaged \(tap 2: ",
        ),
        ({"taps": [1, 1]}, r"its description is damaged \(taps 1, 1: a depth is named twice\)"),
        ({"taps": [-1]}, r"its description is damaged \(taps \[-1\]\)"),
        (
            {"taps": [1]},
            r"its description is damaged \(tensor 'blocks\.1\..*' is of depth 2, and the deepest "
            r"tap is at depth 1\)",
        ),
        ({"taps": [1.0, 2]}, r"its description is damaged \(tap 1\.0: "),
        ({"taps": [1, True]}, r"its description is damaged \(taps \[1, True\]\)"),
        (
            {"architecture": ["asrn"]},
            r"its description is damaged \(architecture is of type list\)",
        ),
        ({"sha256": {"a": 1}}, r"its description is damaged \(sha256 of 'a' is of type int\)"),
    ],
)
def test_descriptions_of_wrong_types(path: Path, changes: dict[str, Any], reason: str) -> None:
    rewritten(path, lambda header: [header.pop("checksum"), header.update(changes)])
    for read in (read_header, elasticnet.load):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {reason}"):
            read(path)


def test_a_description_that_is_no_json_object(path: Path) -> None:
    table, data = read_table(path), tensor_bytes(path)
    for text, reason in (
        ("", "Expecting value"),
        ("[1]", "JSON of type list"),
        ('{"format": 1, "format": 1}', "key 'format' is given twice"),
        ('{"a":' * 10**5, "JSON nested too deeply"),
    ):
        path.write_bytes(header_bytes(table.entries, {KEY: text}) + data)
        with pytest.raises(
            ValueError, match=rf"net\.safetensors: its description is damaged \({reason}"
        ):
            read_header(path)


# --- invalid values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_parameters_are_finite(path: Path, value: float, dtype: torch.dtype) -> None:
    net, before = small_asrn(), path.read_bytes()
    with torch.no_grad():
        net.get_parameter("head.reduce.bias")[3] = value
        net.to(dtype)
    message = r"tensor 'head\.reduce\.bias' holds NaN or infinity in 1 of 64 values and "
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: {message}was not saved"):
        elasticnet.save(net, path)
    assert path.read_bytes() == before, "the good file stays"


def test_a_file_with_nan_is_refused(path: Path) -> None:
    """As another program might have written it."""
    table, content = read_table(path), bytearray(path.read_bytes())
    entry = table.entries["blocks.1.fusion.weight"]
    start, end = table.data_start + entry.start, table.data_start + entry.end
    content[start:end] = b"\xff" * (end - start)  # a NaN in every value
    path.write_bytes(content)
    sha256 = hashlib.sha256(content[start:end]).hexdigest()
    rewritten(
        path,
        lambda header: [
            header.pop("checksum"),
            header["sha256"].update({"blocks.1.fusion.weight": sha256}),
        ],
    )
    message = (
        r"net\.safetensors: tensor 'blocks\.1\.fusion\.weight' "
        "holds NaN or infinity in 64 of 64 values and is refused"
    )
    with pytest.raises(ValueError, match=message):
        elasticnet.load(path)
    with pytest.raises(ValueError, match=message):
        load_into(small_asrn(), path)
    elasticnet.load(path, 1)


def test_buffers_may_hold_infinity_and_whole_numbers_but_no_nan(path: Path) -> None:
    net = ElasticWrapper(
        [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))], nn.Linear(2, 2), layout="b c"
    )
    net.blocks[0].register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    elasticnet.save(net, path)
    same(elasticnet.load(path, build=lambda: net).state_dict(), dict(net.state_dict()), "state")
    net.get_buffer("blocks.0.mask")[0] = float("nan")
    with pytest.raises(
        ValueError, match=r"tensor 'blocks\.0\.mask' holds NaN in 1 of 2 values and was not saved"
    ):
        elasticnet.save(net, path)


def test_state_that_is_no_tensor(path: Path) -> None:
    class Extra(nn.Identity):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 1}

    message = r"state 'blocks\.0\._extra_state' is of type dict: a checkpoint can hold only tensors"
    with pytest.raises(ValueError, match=message):
        elasticnet.save(ElasticWrapper([Extra()], nn.Identity()), path)


def test_a_build_that_is_no_net(path: Path) -> None:
    with pytest.raises(TypeError, match="build returned Linear: expected an ElasticWrapper"):
        elasticnet.load(path, build=lambda: nn.Linear(1, 1))  # pyright: ignore[reportArgumentType]


def test_a_build_that_is_a_net_itself(path: Path) -> None:
    net = ElasticWrapper([nn.Linear(2, 2)], nn.Identity())
    elasticnet.save(net, path)
    with pytest.raises(TypeError, match=r"build is a ElasticWrapper: .*load_into\(net, file\)"):
        elasticnet.load(path, build=net)


def test_bytes_do_not_depend_on_how_tensors_lie_in_memory(path: Path, tmp_path: Path) -> None:
    net, other = small_asrn(), tmp_path / "other.safetensors"
    disturb(net)
    elasticnet.save(net, path)
    elasticnet.save(copy.deepcopy(net).to(memory_format=torch.channels_last), other)
    assert other.read_bytes() == path.read_bytes()
