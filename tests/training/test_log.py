"""TrainingLog: its lines, progress, losses that are not finite, TensorBoard, resumes."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import warm_python
from elasticnet import LossTerms
from elasticnet.training.log import TrainingLog, show_messages, tensorboard_installed
from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run
from elasticnet.training.state import pack_state, unpack_state

TOTAL = 20
PSNR: dict[str, Any] = {"score_name": "psnr", "score_unit": "dB"}
needs_tensorboard = pytest.mark.skipif(
    not tensorboard_installed(), reason="needs tensorboard, of the extra train"
)


def terms(step: int, total: float | None = None) -> LossTerms:
    """The losses of a step, all multiples of its number.

    The total is 6 step = 3 step + 2 step + step. Odd steps compute the depths 1 and 3, even ones
    the depths 2 and 3.
    """
    parts = [6.0 * step if total is None else total, 3.0 * step, 2.0 * step, 1.0 * step]
    routine: tuple[Tensor, ...] = tuple(torch.tensor(part) for part in parts)
    depths = (1, 3) if step % 2 else (2, 3)
    return LossTerms(*routine, {depth: torch.tensor(depth * 100.0 + step) for depth in depths})  # pyright: ignore


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.create(tmp_path / "run", {}) as run:
        yield run


def lines(run: Run) -> list[dict[str, Any]]:
    path = run.folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def drawn(text: str) -> list[str]:
    """What a terminal showed one after the other, without blanks at the ends."""
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]


# --- lines


def test_a_line_holds_the_means_since_the_last_one(run: Run) -> None:
    with TrainingLog(run, TOTAL, **PSNR) as log:
        for step in range(1, 6):
            log.add(terms(step))
            if step in (2, 5):
                log.write(step, {1: 30.0, 3: 31.5} if step == 5 else None, learning_rate=1e-3)
    first, second = lines(run)
    assert first["step"] == 2
    assert [first[name] for name in LossTerms._fields[:4]] == [9, 4.5, 3, 1.5]
    assert first["per_depth"] == {"1": 101, "2": 202, "3": 301.5}
    assert first["learning_rate"] == 1e-3
    assert "psnr" not in first
    assert second["total"] == 24
    assert second["per_depth"] == {"1": 104, "2": 204, "3": 304}
    assert second["psnr"] == {"1": 30, "3": 31.5}
    assert list(second)[:3] == ["step", "seconds", "learning_rate"]


def test_lines_with_scores_name_the_machine(run: Run) -> None:
    with TrainingLog(run, TOTAL, machine="a computer") as log:
        log.write(1)
        log.write(2, {1: 30.0})
    with TrainingLog(run, TOTAL, Processes(count=4), machine="a computer") as log:
        log.write(3, {1: 30.0})
    assert [line.get("machine") for line in lines(run)] == [
        None,
        "a computer",
        "4 times a computer",
    ]


def pretend_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let standard error, which pytest captures, be taken for a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_scores_stand_under_their_own_name(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_terminal(monkeypatch)
    with TrainingLog(run, TOTAL, score_name="accuracy") as log:
        log.write(1, {1: 0.5, 3: 0.61234})
    assert lines(run)[0]["accuracy"] == {"1": 0.5, "3": 0.61234}
    assert drawn(capsys.readouterr().err)[-1].endswith("left, accuracy 0.5000 0.6123")


def test_seconds_grow_over_a_resume(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time between two processes does not count, that before the first line does."""
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    with TrainingLog(run, TOTAL) as log:
        log.add(terms(1))
        now = 107.5
        log.write(1)
        log.add(terms(2))
        now = 109.0
        log.write(2, {1: 30.0})
    _, state = unpack_state(bytes(pack_state(2, log.state_dict())))
    now = 5000.0
    with TrainingLog(run, TOTAL).start(2, state) as log:
        assert log.scores == {1: 30.0}
        log.add(terms(3))
        now = 5001.0
        log.write(3)
    assert [line["seconds"] for line in lines(run)] == [7.5, 9, 10]
    assert log.state_dict() == {"scores": {1: 30.0}, "seconds": 10.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bad", [4, 5, 6])
def test_a_loss_that_is_not_finite_names_its_step_and_writes_nothing(
    run: Run, value: float, bad: int
) -> None:
    with TrainingLog(run, TOTAL) as log:
        for step in range(1, 7):
            log.add(terms(step, value if step >= bad else None))
            if step == 3:
                log.write(3)
                run.save(3, log.state_dict())
        before = log.state_dict()
        message = (
            rf"NaN or infinite at step {bad}; .*run holds the last good state\. "
            "Try a smaller learning rate"
        )
        with pytest.raises(FloatingPointError, match=message):
            log.write(6, {1: 30.0})
    assert [line["step"] for line in lines(run)] == [3]
    assert log.state_dict() == before


def test_the_step_is_named_after_a_resume_and_before_any_save(run: Run) -> None:
    with TrainingLog(run, TOTAL).start(10) as log:
        log.add(terms(11))
        log.add(terms(12, math.nan))
        with pytest.raises(FloatingPointError, match=r"at step 12; .*run holds no state yet"):
            log.write(12)


# --- the line of progress


def test_the_line_of_progress(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_terminal(monkeypatch)
    with TrainingLog(run, TOTAL, **PSNR) as log:
        for step in range(1, 6):
            log.add(terms(step))
            if step == 2:
                log.write(2, {1: 30.004, 3: 31.5})
    last = drawn(capsys.readouterr().err)[-1]
    pattern = (
        r"25% 5/20 +[\d.]+it/s, \d\d:\d\d left, "
        r"loss 9 = 4\.5 \+ 3 \+ 1\.5, psnr 30\.00 31\.50 dB"
    )
    assert re.fullmatch(pattern, last), last


def test_a_resumed_line_starts_from_its_step_and_its_scores(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_a_terminal(monkeypatch)
    log = TrainingLog(run, TOTAL, **PSNR)
    with log.start(10, {"scores": {1: 29.0}, "seconds": 3.0}):
        pass
    first = drawn(capsys.readouterr().err)[-1]
    assert first.startswith("50% 10/20")
    assert first.endswith("psnr 29.00 dB")


def test_in_a_pipe_a_message_after_each_validation_takes_the_place_of_the_line(
    run: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="elasticnet")
    with TrainingLog(run, TOTAL, **PSNR) as log:
        log.add(terms(1))
        log.write(1)
        log.add(terms(2))
        log.write(2, {1: 30.004, 3: 31.5})
    assert capsys.readouterr().err == ""
    (message,) = caplog.messages
    assert message.startswith(f"step 2 of {TOTAL}: loss ")
    assert message.endswith(", psnr 30.00 31.50 dB")


@pytest.mark.parametrize(
    ("seconds_of_a_step", "expected"),
    [
        (1.1, "1.1 s a step: 999,889 steps more take 12 d 17 h, until "),
        (0.004, "0.004 s a step: 999,889 steps more take 1 h 7 min, until "),
        (0.0001, "0.0001 s a step: 999,889 steps more take 2 min, until "),
    ],
)
def test_after_a_few_steps_it_is_said_when_the_training_will_end(
    run: Run,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    seconds_of_a_step: float,
    expected: str,
) -> None:
    caplog.set_level("INFO", logger="elasticnet")
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    log = TrainingLog(run, 1_000_000)
    with log.start(100):
        now += 60.0  # the first step is slow and does not count
        log.add(terms(101))
        for step in range(102, 112):
            assert caplog.messages == []
            now += seconds_of_a_step
            log.add(terms(step))
        log.add(terms(112))
    (message,) = caplog.messages
    assert message.startswith(expected)
    assert message.endswith("validations not counted")


def test_steps_that_are_added_together_count_and_are_timed(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", logger="elasticnet")
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    rows = torch.arange(50.0 * 5).reshape(50, 5)  # a total of 0, 5, 10 and so on
    with TrainingLog(run, 1_000_000) as log:
        now += 60.0  # the first steps are slow and do not count
        log.add_rows((2,), rows)
        log.write(50)
        now += 50 * 1.1
        log.add_rows((2,), rows)
    (message,) = caplog.messages
    assert message.startswith("1.1 s a step: 999,900 steps more take 12 d 17 h")
    (line,) = lines(run)
    assert line["total"] == 5 * 24.5
    assert line["per_depth"] == {"2": 5 * 24.5 + 4}


def test_other_processes_draw_nothing_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That their losses enter the means is tested with two real processes, in test_processes."""
    processes = Processes(1, 1)
    run = Run(tmp_path / "run", {}, keep=1, writer=False)
    with TrainingLog(run, TOTAL, processes, tensorboard=True) as log:
        log.add(terms(1))
        log.write(1, {1: 30.0})
        log.pictures(1, {"image": np.zeros((2, 2, 3), np.uint8)})
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "run").exists()


# --- messages


@pytest.fixture
def shown() -> Iterator[logging.Logger]:
    """The library's logger after show_messages; it is put back."""
    library = logging.getLogger("elasticnet")
    handlers = library.handlers
    level = library.level
    library.handlers = []
    show_messages()
    yield library
    library.handlers = handlers
    library.setLevel(level)


def test_messages_are_shown_once_above_the_line_of_progress(
    run: Run, capsys: pytest.CaptureFixture[str], shown: logging.Logger
) -> None:
    show_messages()  # a second call
    with TrainingLog(run, TOTAL):
        Processes().say("from a recipe, 100 %s")
        Processes(1, 2).say("not from another process")
        shown.getChild("training").debug("too small")
    output = capsys.readouterr()
    assert output.out == "from a recipe, 100 %s\n"
    assert "from a recipe" not in output.err


def test_a_program_without_standard_output_goes_on(
    shown: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that was started with `>&-`."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        shown.info("to nobody")
    assert capsys.readouterr() == ("", "")


def test_without_show_messages_the_library_is_silent() -> None:
    code = "from elasticnet.training.processes import Processes; Processes().say('hidden')"
    process = warm_python.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (process.stdout, process.stderr) == (b"", b"")


# --- TensorBoard


def read_board(run: Run) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run.folder / "tensorboard"), {"scalars": 0, "images": 0}).Reload()


def scalars(board: Any, tag: str) -> dict[int, float]:
    """The scalars of a tag by step; a step that stands there twice is an error."""
    events = board.Scalars(tag)
    assert len({event.step for event in events}) == len(events)
    return {event.step: event.value for event in events}


@needs_tensorboard
def test_tensorboard_holds_the_lines_by_depth_and_the_images(run: Run) -> None:
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    with TrainingLog(run, TOTAL, **PSNR, tensorboard=True, machine="a computer") as log:
        for step in (1, 2):
            log.add(terms(step))
            log.write(step, {1: 30.0 + step, 3: 31.0} if step == 2 else None, learning_rate=0.5)
        log.pictures(2, {"chelsea/depth 1": image, "chelsea/HR": image[:2]})
    board = read_board(run)
    assert {"total", "routine", "deep_supervision", "distillation", "learning_rate", "seconds"} <= {
        *board.Tags()["scalars"]
    }
    assert not {"step", "machine"} & {*board.Tags()["scalars"]}
    assert scalars(board, "total") == {1: 6, 2: 12}
    assert scalars(board, "learning_rate") == {1: 0.5, 2: 0.5}
    assert [scalars(board, f"per_depth/{depth}") for depth in (1, 2, 3)] == [
        {1: 101},
        {2: 202},
        {1: 301, 2: 302},
    ]
    assert [scalars(board, f"psnr/{depth}") for depth in (1, 3)] == [{2: 32}, {2: 31}]
    for name, expected in (("chelsea/depth 1", image), ("chelsea/HR", image[:2])):
        (event,) = board.Images(name)
        assert (event.step, event.height, event.width) == (2, *expected.shape[:2])
        path = run.folder / "read.png"
        path.write_bytes(event.encoded_image_string)
        assert np.array_equal(np.asarray(Image.open(path)), expected), "to the pixel"


def log_and_die(folder: Path) -> None:
    """A process that dies between two steps, as by SIGKILL: nothing is closed."""
    with Run.create(folder, {}) as run, TrainingLog(run, TOTAL, **PSNR, tensorboard=True) as log:
        for step in range(1, 8):
            log.add(terms(step))
            log.write(step, {1: 30.0})
            if step == 4:
                run.save(4, log.state_dict())
        os._exit(1)


@needs_tensorboard
def test_a_killed_run_s_board_has_no_missing_and_no_doubled_step(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=log_and_die, args=(tmp_path / "run",))
    process.start()
    process.join(120)
    assert process.exitcode == 1
    time.sleep(1.1)  # the files are ordered by the second in which their process started
    with Run.resume(tmp_path / "run") as run:
        assert scalars(read_board(run), "total") == {step: 6 * step for step in range(1, 8)}, (
            "as log.jsonl has them"
        )
        latest = run.load_latest()
        assert latest is not None
        done, state = latest
        assert done == 4
        with TrainingLog(run, TOTAL, **PSNR, tensorboard=True).start(done, state) as log:
            log.add(terms(5, total=1.0))
            log.write(5, {1: 33.0})
        board = read_board(run)
        assert scalars(board, "total") == {1: 6, 2: 12, 3: 18, 4: 24, 5: 1}
        assert scalars(board, "psnr/1") == {1: 30, 2: 30, 3: 30, 4: 30, 5: 33}
        assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5]


def test_without_tensorboard_the_remedy_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: (name != "tensorboard" and real(name, *more)) or None,
    )
    assert not tensorboard_installed()
    with pytest.raises(
        ModuleNotFoundError,
        match=r'TensorBoard is not installed: pip install "elastic-depth\[train\]"',
    ):
        TrainingLog(run, TOTAL, tensorboard=True)
    with TrainingLog(run, TOTAL) as log:
        log.add(terms(1))
        log.write(1)
        log.pictures(1, {"image": np.zeros((2, 2, 3), np.uint8)})
    assert not (run.folder / "tensorboard").exists()
