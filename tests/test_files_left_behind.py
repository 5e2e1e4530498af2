"""What a killed process leaves is removed by the next one, and never what is still written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from elasticnet import _files
from elasticnet._files import replacing, write_atomic

ROOT = Path(__file__).parents[1]
WRITER = """
import sys
from elasticnet._files import replacing

with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def forget_cleaned_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is a process of its own in this respect."""
    monkeypatch.setattr(_files, "_cleaned_folders", set[Path]())


def start_writer(target: Path) -> subprocess.Popen[bytes]:
    """A process that is in the middle of writing a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    return process


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_the_next_run_removes_what_a_kill_left_and_nothing_that_is_written(tmp_path: Path) -> None:
    killed = start_writer(tmp_path / "killed.png")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left_behind = hidden(tmp_path)
    writing = start_writer(tmp_path / "writing.png")
    # The writer has cleaned up when it began: put the file back, as if it were left since.
    for name in left_behind:
        (tmp_path / name).write_bytes(b"half")

    write_atomic(tmp_path / "other.png", b"whole")

    assert len(left_behind) == 1
    remaining = hidden(tmp_path)
    assert len(remaining) == 1
    assert remaining[0].startswith(".writing.png.")
    writing.communicate(b"\n")
    assert writing.returncode == 0
    assert (tmp_path / "writing.png").read_bytes() == b"half"
    assert hidden(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_a_writer_removes_what_a_kill_left(tmp_path: Path) -> None:
    killed = start_writer(tmp_path / "killed.png")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(hidden(tmp_path)) == 1
    write_atomic(tmp_path / "killed.png", b"whole")
    assert hidden(tmp_path) == []


def test_a_process_id_that_came_again_does_not_protect_a_file(tmp_path: Path) -> None:
    left_behind = tmp_path / f".out.png.{os.getpid()}-0123abcd.tmp"
    left_behind.write_bytes(b"half")
    write_atomic(tmp_path / "out.png", b"whole")
    assert not left_behind.exists()


@pytest.mark.parametrize(
    "name", [".hidden.tmp", "x.1-0123abcd.tmp", ".x.1-0123abc.tmp", ".x.pid-0123abcd.tmp"]
)
def test_files_of_others_are_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    write_atomic(tmp_path / "out.png", b"whole")
    assert (tmp_path / name).read_bytes() == b"mine"


@pytest.mark.skipif(os.name == "nt", reason="no such locks")
def test_a_file_is_locked_until_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def clean_and_rename(source: Path, target: Path) -> None:
        _files._cleaned_folders.clear()
        if target.name != "other":
            write_atomic(tmp_path / "other", b"other")
        rename(source, target)

    monkeypatch.setattr(os, "replace", clean_and_rename)
    write_atomic(tmp_path / "out.png", b"whole")
    assert (tmp_path / "out.png").read_bytes() == b"whole"


def test_two_files_of_one_process_at_once(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first:
        first.write(b"a")
        _files._cleaned_folders.clear()
        write_atomic(tmp_path / "b", b"b")
    assert (tmp_path / "a").read_bytes() == b"a"
