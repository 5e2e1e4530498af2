"""A program that was forked ends, reads and writes as one that Python starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import warm_python

PROGRAMS = {
    "ends": "print('done')",
    "status": "import sys; sys.exit(3)",
    "words": "import sys; sys.exit('it failed')",
    "error": "raise ValueError('no such thing')",
    "interrupted": "raise KeyboardInterrupt",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "arguments": "import sys; print(sys.argv[1:], __name__, __file__)",
    "place": "import os, sys; print(os.getcwd(), os.environ['WORD'], sys.path[0])",
    "at exit": "import atexit; atexit.register(print, 'last'); print('first')",
    "thread": "import threading; threading.Timer(0.5, print, ['later']).start(); print('now')",
    "unflushed": "import sys; sys.stdout.write('half a line')",
    "input": "print(input()[::-1])",
    "writes both": "import sys; print('out'); print('err', file=sys.stderr)",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_forked_program_is_as_one_that_python_starts(name: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[name])
    (tmp_path / "input").write_text("a line\n")
    command = [sys.executable, str(script), "--word", "1"]
    done: list[Any] = []
    for run in (subprocess.run, warm_python.run):
        with (tmp_path / "input").open() as given:
            options: dict[str, Any] = {"env": {**os.environ, "WORD": name}, "cwd": tmp_path}
            ended = run(command, stdin=given, capture_output=True, text=True, **options)
        last_words = ended.stderr.splitlines()[-1:]
        done.append((ended.returncode, ended.stdout, last_words))
    cold, warm = done
    if name == "interrupted":  # which Python says by a signal, and a program of ours by a status
        assert cold[0] == -signal.SIGINT
        assert warm[0] == 1
        cold, warm = cold[1:], warm[1:]
    assert warm == cold


@pytest.mark.parametrize(
    "code", ["print(sys.argv, __name__, sys.path[0])", "sys.exit('no')", "1 / 0"]
)
def test_code_is_run_as_python_runs_it(code: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"import sys; {code}", "--word", "1"]
    done: list[Any] = []
    for run in (subprocess.run, warm_python.run):
        ended = run(command, cwd=tmp_path, capture_output=True, text=True)
        done.append((ended.returncode, ended.stdout, ended.stderr.splitlines()[-1:]))
    cold, warm = done
    # Python writes "" for the folder that it is in.
    assert (warm[0], warm[1].replace(str(tmp_path), ""), warm[2]) == cold


def test_it_is_a_process_of_its_own_that_takes_signals(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("import time; print('here', flush=True); time.sleep(60)")
    process = warm_python.Popen(
        [sys.executable, script], stdout=warm_python.PIPE, stderr=warm_python.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM


def test_modules_are_run_too() -> None:
    done = warm_python.run(
        [sys.executable, "-m", "elasticnet.cli", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("elasticnet ")
