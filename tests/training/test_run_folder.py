"""A run's folder: options, log, checkpoints and what replaces a corrupt one, atomic files."""

from __future__ import annotations

import json
import math
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elasticnet._files import replacing, write_atomic, write_json
from elasticnet.training.run_folder import Run, differing_options
from elasticnet.training.state import pack_state
from full_disk import file_size_limit


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def fill(folder: Path, steps: int, keep: int = 3) -> None:
    with Run.create(folder, {}, keep=keep) as run:
        for step in range(1, steps + 1):
            run.log({"step": step})
            run.save(step, {"weight": torch.full((4,), float(step))})


def logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_corrupt_checkpoints_are_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    newest, middle = (tmp_path / f"checkpoints/step_0000000{step}.safetensors" for step in (5, 4))
    flip(newest)
    os.truncate(middle, middle.stat().st_size // 2)
    with Run.resume(tmp_path, keep=1) as run:
        with pytest.warns(UserWarning, match="is corrupt") as caught:
            found = run.load_latest()
        assert [str(warning.message).split(" is corrupt")[0] for warning in caught] == [
            str(newest),
            str(middle),
        ]
        assert found is not None
        assert found[0] == 3
        assert found[1]["weight"].tolist() == [3, 3, 3, 3]
        assert logged(tmp_path) == [1, 2, 3]
        run.log({"step": 4})
        run.save(4, {"weight": torch.zeros(4)})
        # the corrupt later one does not push out the good one
        assert list(run.checkpoints()) == [4]
    with Run.resume(tmp_path) as run, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (run.load_latest() or [None])[0] == 4


def test_only_corrupt_checkpoints_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    for path in (tmp_path / "checkpoints").iterdir():
        flip(path)
    message = rf"all checkpoints in {tmp_path} are corrupt \(2\): choose another --out"
    with Run.resume(tmp_path) as run, warnings.catch_warnings(record=True) as caught:
        with pytest.raises(ValueError, match=message):
            run.load_latest()
        assert len(caught) == 2
    assert logged(tmp_path) == [1, 2]


# --- the folder


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    fill(tmp_path, 12, keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000011.safetensors", "step_00000012.safetensors"]


def test_steps_beyond_eight_digits_are_ordered_as_numbers(tmp_path: Path) -> None:
    with Run.create(tmp_path, {}) as run:
        run.save(99_999_999, "old")
        run.save(100_000_000, "new")
        assert run.load_latest() == (100_000_000, "new")


def test_a_used_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("mine")
    (tmp_path / "lock").write_text("mine too")
    with pytest.raises(
        FileExistsError, match=rf"{tmp_path} is not empty \(holiday.jpg\): use --resume or"
    ):
        Run.create(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["holiday.jpg", "lock"]
    assert (tmp_path / "lock").read_text() == "mine too"
    with pytest.raises(FileExistsError, match=r"holiday.jpg is a file: choose another --out"):
        Run.create(tmp_path / "holiday.jpg", {})
    fill(tmp_path / "run", 1)
    with pytest.raises(
        FileExistsError, match=r"is not empty \(checkpoints, log.jsonl, options.json\)"
    ):
        Run.create(tmp_path / "run", {})
    Run.resume(tmp_path / "run").close()  # the refusal has left no lock behind


def test_a_start_killed_before_its_options_were_written_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("123 on host")
    (tmp_path / ".options.json.123.tmp").write_text("{")
    with pytest.raises(
        FileNotFoundError, match=rf"{tmp_path} holds no run \(no options.json\): start it"
    ):
        Run.resume(tmp_path)
    with Run.create(tmp_path, {"a": 1}) as run:
        assert run.load_latest() is None
    with Run.resume(tmp_path) as run:
        assert run.options == {"a": 1}


def test_options_come_back_and_differences_are_reported(tmp_path: Path) -> None:
    options = {
        "out": tmp_path,
        "depths": (1, 2),
        "clip": math.inf,
        "name": "ä",
        "batch": np.int64(16),
        "init": None,
    }
    with Run.create(tmp_path / "run", options) as run:
        created = run.options
    with Run.resume(tmp_path / "run") as run:
        assert run.options == created
        assert created["depths"] == [1, 2]
        assert created["clip"] == "Infinity"
        assert differing_options(run.options, options) == {}
        later = {**options, "batch": 32, "depths": (1, 2, 3), "new": 1}
        del later["init"]
        assert differing_options(run.options, later) == {
            "batch": (16, 32),
            "depths": ([1, 2], [1, 2, 3]),
            "init": (None, "(absent)"),
            "new": ("(absent)", 1),
        }
    with pytest.raises(TypeError, match=r"options\['loss'\]: JSON cannot hold the set"):
        Run.create(tmp_path / "other", {"loss": {1}})
    assert not (tmp_path / "other").exists()


def test_changed_options_are_stored_with_the_next_save(tmp_path: Path) -> None:
    with Run.create(tmp_path, {"rate": 1.0}):
        pass
    with Run.resume(tmp_path) as run:
        run.load_latest()
        run.change_options({"rate": 2.0})
        assert run.options == {"rate": 2.0}
    assert Run.resume(tmp_path, writer=False).options == {"rate": 1.0}, "nothing was saved"
    with Run.resume(tmp_path) as run:
        run.load_latest()
        run.change_options({"rate": 2.0})
        run.options["rate"] = 3.0  # the change is stored as it was given
        run.save(1, {})
    assert Run.resume(tmp_path, writer=False).options == {"rate": 2.0}


def test_a_file_is_no_run_folder_and_the_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=rf"best.safetensors is a file: .* {tmp_path}$"):
        Run.resume(path)


def test_damaged_options_are_named(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (tmp_path / "options.json").write_text('{"a": ')
    with pytest.raises(
        ValueError,
        match=rf"{tmp_path}/options.json is not JSON .*: repair it or choose another --out",
    ):
        Run.resume(tmp_path)


@pytest.mark.parametrize("keep", [0, -1, 2.0, True])
def test_keep_is_checked(tmp_path: Path, keep: Any) -> None:
    with pytest.raises(ValueError, match=f"keep={keep!r}: expected the number of checkpoints"):
        Run.create(tmp_path / "run", {}, keep=keep)


def test_reading_ranks_see_the_state_and_change_nothing(tmp_path: Path) -> None:
    with Run.create(tmp_path / "absent", {"a": 1}, writer=False) as other:
        other.log({"step": 1})
        other.save(1, [])
        assert other.load_latest() is None
    assert not (tmp_path / "absent").exists()
    fill(tmp_path, 3)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 4}\n{"st')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with Run.resume(tmp_path) as run, Run.resume(tmp_path, writer=False) as other:
        before[tmp_path / "lock"] = (tmp_path / "lock").read_bytes()
        found = other.load_latest()
        other.log({"step": 9})
        other.save(9, [])
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        latest = run.load_latest()
        assert found is not None
        assert latest is not None
        assert pack_state(*found) == pack_state(*latest)


def test_a_second_rival_start_never_wins_twice(tmp_path: Path) -> None:
    winners: list[Run] = []
    losers: list[Exception] = []

    def start() -> None:
        try:
            winners.append(Run.create(tmp_path / "run", {}))
        except (RuntimeError, FileExistsError) as error:
            losers.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 7)
    winners[0].close()


def test_a_state_of_a_later_version_is_no_corrupt_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill(tmp_path, 1)
    with Run.resume(tmp_path) as run:
        run.load_latest()
        monkeypatch.setattr("elasticnet.training.state.FORMAT", 3)
        run.save(2, [])
        monkeypatch.undo()
        with pytest.raises(RuntimeError, match=r"a state of format 3: .*update elasticnet"):
            run.load_latest()


# --- the log


def test_log_lines_are_strict_json_and_step_comes_first(tmp_path: Path) -> None:
    with Run.create(tmp_path, {}) as run:
        run.log(
            {
                "loss": math.nan,
                "step": 1,
                "psnr": {1: -math.inf, 2: np.float32(0.5)},
                "rates": (math.inf, 1e-4),
            }
        )
        run.log(
            {
                "step": 2,
                "loss": torch.tensor(0.25),
                "map": np.eye(2),
                "path": Path("a/b"),
                "text": "ä\n\r",
            }
        )

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    first, second = (tmp_path / "log.jsonl").read_text().splitlines()
    assert first == (
        '{"step": 1, "loss": "NaN", "psnr": {"1": "-Infinity", "2": 0.5}, '
        '"rates": ["Infinity", 0.0001]}'
    )
    assert json.loads(second, parse_constant=refuse) == {
        "step": 2, "loss": 0.25, "map": [[1, 0], [0, 1]], "path": "a/b", "text": "ä\n\r"
    }  # fmt: skip


@given(
    st.dictionaries(
        st.text(), st.recursive(st.floats() | st.text() | st.none(), st.lists), max_size=3
    )
)
def test_any_json_written_is_strict(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    found = json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert list(found) == sorted(value)


def test_json_refusals_name_the_place(tmp_path: Path) -> None:
    with Run.create(tmp_path, {}) as run:
        with pytest.raises(TypeError, match=r"record\['a'\]\[1\]: JSON cannot hold the complex 1j"):
            run.log({"step": 1, "a": [0, 1j]})
        with pytest.raises(TypeError, match=r"record\['a'\]: JSON cannot hold the dict \{2.5: 1\}"):
            run.log({"step": 1, "a": {2.5: 1}})
        for step in (None, -1, 1.0, True, "3"):
            with pytest.raises(ValueError, match=f"step {step!r}: expected an integer from 0 up"):
                run.log({"step": step})
            with pytest.raises(ValueError, match=f"step {step!r}: expected an integer from 0 up"):
                run.save(step, [])  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "log.jsonl").exists()


def test_the_log_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    with Run.create(tmp_path, {}) as run:
        for step in range(1, 6):
            run.log({"step": step})
            run.log({"step": step, "nested": {"step": 1}})
            if step == 3:
                run.save(step, [])
    with open(tmp_path / "log.jsonl", "ab") as log:
        log.write(b'{"step": 2\n\0\0\0\n[1]\n{"step": 3, "half": ')
    with Run.resume(tmp_path) as run:
        for attempt in (lambda: run.log({"step": 4}), lambda: run.save(4, [])):
            with pytest.raises(
                RuntimeError,
                match=rf"the run in {tmp_path} was resumed: call load_latest\(\) first",
            ):
                attempt()
        assert run.load_latest() == (3, [])
        assert logged(tmp_path) == [1, 1, 2, 2, 3, 3]
        with pytest.raises(
            ValueError, match="step 3: step 3 is already saved; log a step before saving it"
        ):
            run.log({"step": 3})
        with pytest.raises(ValueError, match="step 2: this run has already saved step 3"):
            run.save(2, [])
        run.log({"step": 4})
    with pytest.raises(RuntimeError, match=f"the run in {tmp_path} is closed: resume it to go on"):
        run.log({"step": 5})
    (tmp_path / "checkpoints/step_00000003.safetensors").unlink()
    with Run.resume(tmp_path) as run:
        assert run.load_latest() is None
        assert logged(tmp_path) == []
        run.log({"step": 0})


# --- atomic files and full disks


def test_a_failed_save_leaves_the_one_before(tmp_path: Path) -> None:
    fill(tmp_path, 2, keep=1)
    with Run.resume(tmp_path, keep=1) as run:
        run.load_latest()
        message = (
            r"could not write .*step_00000003.safetensors \(File too large\); nothing was changed"
        )
        with file_size_limit(5000), pytest.raises(OSError, match=message):
            run.save(3, torch.zeros(10_000))
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
            "step_00000002.safetensors"
        ]
        assert (run.load_latest() or [None])[0] == 2
        size = (tmp_path / "log.jsonl").stat().st_size
        with (
            file_size_limit(size + 9),
            pytest.raises(OSError, match=r"could not write .*log.jsonl \(File too large\)"),
        ):
            run.log({"step": 3})
        run.log({"step": 4})
        assert logged(tmp_path) == [1, 2, 4]


def test_write_atomic_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_atomic(str(path), b"\0\1")
    assert path.read_bytes() == b"\0\1"
    with pytest.raises(TypeError):
        write_atomic(path, 5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        OSError, match=r"could not write .*missing/b.txt \(No such file or directory\)"
    ):
        write_atomic(tmp_path / "missing/b.txt", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_bytes() == b"\0\1"


def test_a_new_process_clears_what_a_kill_left(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    for name in (
        "checkpoints/.step_00000002.safetensors.4242.tmp",
        ".log.jsonl.1.tmp",
        ".options.json.77.tmp",
    ):
        (tmp_path / name).write_bytes(b"half")
    Run.resume(tmp_path).close()
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == ["lock", "log.jsonl", "options.json", "step_00000001.safetensors"]


def test_what_another_command_writes_into_the_folder_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with replacing(tmp_path / "table.md") as file:
        file.write(b"a table")
        Run.resume(tmp_path).close()
    assert (tmp_path / "table.md").read_bytes() == b"a table"


@pytest.mark.skipif(os.name == "nt", reason="permissions of folders")
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=rf"{tmp_path}/file/run: {tmp_path}/file is a file"):
        Run.create(tmp_path / "file/run", {})
