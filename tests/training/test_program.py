"""How a recipe ends: its status and its one line."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from elasticnet.training.program import SECONDS_FOR_THE_FIRST_PROCESS, run_program


def fail_with(error: BaseException) -> SystemExit:
    """Run a recipe that fails with an error, and return how its process would end."""

    def main(options: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_program(main, lambda arguments: arguments)
    return ended.value


def test_ctrl_c_ends_with_a_line_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_with(KeyboardInterrupt()).code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, FloatingPointError])
def test_an_error_is_its_message(kind: type[Exception]) -> None:
    assert fail_with(kind("--steps 0")).code == "error: --steps 0"


def test_a_reader_that_is_gone_is_no_error() -> None:
    code = (
        "from elasticnet.training.program import run_program; "
        "run_program(lambda words: print('x' * 1_000_000), list)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == b""


def test_a_stopped_training_keeps_its_status() -> None:
    assert fail_with(SystemExit(143)).code == 143


def test_another_process_than_the_first_waits_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv("RANK", "2")
    assert fail_with(ValueError("--steps 0")).code == "error in process 2: --steps 0"
    assert slept == [SECONDS_FOR_THE_FIRST_PROCESS]
    monkeypatch.setenv("RANK", "0")
    assert fail_with(ValueError("--steps 0")).code == "error: --steps 0"
    assert len(slept) == 1
