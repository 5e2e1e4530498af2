"""Files appear whole or not at all; a target that cannot be written is refused before any work."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from elasticnet._files import (
    check_target,
    make_writable_folder,
    message_of,
    replacing,
    strict_json,
    write_atomic,
    write_json,
)


def write_half(file: BinaryIO, error: type[BaseException]) -> None:
    file.write(b"half")
    raise error


# --- replacing


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    with replacing(target) as file:
        file.write(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError, OSError])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    with pytest.raises(error), replacing(target, overwrite=True) as file:
        write_half(file, error)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.png"]


def test_a_file_that_exists_is_replaced_only_on_purpose(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    message = r"out\.png exists: use --force \(in Python: overwrite=True\)"
    with pytest.raises(FileExistsError, match=message), replacing(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"old"
    with replacing(target, overwrite=True) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out.png"]


def test_the_file_can_be_sought_and_read(tmp_path: Path) -> None:
    with replacing(tmp_path / "out.bin") as file:
        file.write(b"12345")
        file.seek(1)
        assert file.read(2) == b"23"
        file.write(b"9")
    assert (tmp_path / "out.bin").read_bytes() == b"12395"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")
    with replacing(tmp_path / "link.png", overwrite=True) as file:
        file.write(b"new")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes() == b"new"


def test_permissions_are_kept(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    target.chmod(0o640)
    write_atomic(target, "new")
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_failure_to_write_names_the_target(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "out.png"
    message = rf"could not write {absent} \(No such file or directory\); nothing was changed"
    with pytest.raises(OSError, match=message), replacing(absent):
        pass
    full = OSError(28, os.strerror(28))
    message = rf"could not write {tmp_path}/out\.png \(No space left on device\); nothing"
    with pytest.raises(OSError, match=message) as error, replacing(tmp_path / "out.png"):
        raise full
    assert error.value.errno == 28
    assert os.listdir(tmp_path) == []


def test_a_failure_to_read_another_file_names_that_file(tmp_path: Path) -> None:
    source = tmp_path / "absent.bin"
    message = rf"could not write .*out\.png \({source}: No such file or directory\); nothing"
    with pytest.raises(OSError, match=message), replacing(tmp_path / "out.png") as file:
        file.write(source.read_bytes())
    assert os.listdir(tmp_path) == []


def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path: Path) -> None:
    name = "ä" * 120 + ".png"
    write_atomic(tmp_path / name, b"new")
    assert os.listdir(tmp_path) == [name]


# --- before the work


def test_a_target_that_can_be_written_is_accepted(tmp_path: Path) -> None:
    check_target(tmp_path / "new.onnx", overwrite=False)
    (tmp_path / "there.onnx").write_bytes(b"old")
    check_target(tmp_path / "there.onnx", overwrite=True)
    assert os.listdir(tmp_path) == ["there.onnx"]


def test_a_target_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.onnx").write_bytes(b"old")
    refusals = {
        tmp_path: (ValueError, "a folder; name a file in it"),
        tmp_path / "none/net.onnx": (FileNotFoundError, "there is no folder .*none; make it first"),
        tmp_path / "there.onnx": (FileExistsError, "exists: use --force"),
    }
    for path, (error, message) in refusals.items():
        with pytest.raises(error, match=re.escape(str(path)) + ".*" + message):
            check_target(path, overwrite=False)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError, match=r"new.onnx: the folder .* cannot be written to"):
        check_target(tmp_path / "new.onnx", overwrite=True)


def test_a_broken_link_counts_as_a_file_that_exists(tmp_path: Path) -> None:
    (tmp_path / "link.onnx").symlink_to("nowhere.onnx")
    with pytest.raises(FileExistsError, match=r"link\.onnx exists"):
        check_target(tmp_path / "link.onnx", overwrite=False)


def test_a_link_into_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Before the work whose result it shall take."""
    (tmp_path / "link.png").symlink_to("absent/x.png")
    with pytest.raises(FileNotFoundError, match=r"link\.png: there is no folder .*absent; make"):
        check_target(tmp_path / "link.png", overwrite=True)


def test_a_folder_is_made_with_its_parents_and_may_exist(tmp_path: Path) -> None:
    for _ in range(2):
        folder = make_writable_folder(tmp_path / "a" / "b")
        assert folder == tmp_path / "a" / "b"
        assert folder.is_dir()


def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    message = r"file/out: cannot make this folder \(Not a directory\); choose another"
    with pytest.raises(NotADirectoryError, match=message):
        make_writable_folder(tmp_path / "file" / "out")
    with pytest.raises(FileExistsError, match=r"file: cannot make this folder \(File exists\)"):
        make_writable_folder(tmp_path / "file")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="this folder cannot be written to; choose another"):
        make_writable_folder(tmp_path)


# --- JSON


def test_json_is_strict_and_sorted(tmp_path: Path) -> None:
    value = {
        "b": [1, 2.5, math.nan, math.inf, -math.inf],
        "a": {"path": tmp_path / "x", 3: None, "yes": True},
        "c": (np.float64(0.5), np.arange(2), torch.tensor([1.5])),
    }
    write_json(tmp_path / "out.json", value)
    text = (tmp_path / "out.json").read_text()
    assert text.index('"a"') < text.index('"b"') < text.index('"c"')
    assert strict_json(value, place="value") == {
        "a": {"path": str(tmp_path / "x"), "3": None, "yes": True},
        "b": [1, 2.5, "NaN", "Infinity", "-Infinity"],
        "c": [0.5, [0, 1], [1.5]],
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2}]}, r"value\['a'\]\[1\]: JSON cannot hold the set \{2\}"),
        ({"a": {(1, 2): 3}}, r"value\['a'\]: JSON cannot hold the dict \{\(1, 2\): 3\}"),
        (b"x", "value: JSON cannot hold the bytes b'x'"),
    ],
)
def test_what_json_cannot_hold_is_named_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        strict_json(value, place="value")


def test_text_with_the_bytes_of_a_strange_name_is_written(tmp_path: Path) -> None:
    """Such a name, from an old archive, must not end a benchmark when its table is written."""
    name = os.fsdecode(b"caf\xe9.png")
    write_atomic(tmp_path / "table", name)
    assert (tmp_path / "table").read_text(encoding="utf-8") == r"caf\udce9.png"


def test_messages_of_the_system_are_told_without_its_numbers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as found:
        (tmp_path / "absent").read_bytes()
    assert message_of(found.value) == f"{tmp_path / 'absent'}: No such file or directory"
    assert message_of(OSError(28, "could not write a.png")) == "could not write a.png"
    assert message_of(OSError("only text")) == "only text"
    assert message_of(ValueError("depth 7")) == "depth 7"
    assert message_of(FileNotFoundError()) == "FileNotFoundError"  # it says nothing itself
