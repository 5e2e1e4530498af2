"""Where a run of several equal trainings stands, and the processes that it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from elasticnet.training.phases import Standing, where_it_stands
from elasticnet.training.processes import single_process
from elasticnet.training.run_folder import Run

NAMES = ["ordinary", "elastic", "alone"]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.create(tmp_path / "run", {}) as created:
        yield created


def test_a_new_run_stands_at_the_beginning(run: Run, said: list[str]) -> None:
    assert where_it_stands(run, NAMES, 10, said.append) == Standing(phase=0, step=0, state=None)
    assert said == []


@pytest.mark.parametrize(
    ("total", "phase", "number", "step"),
    [(4, "ordinary", 0, 4), (10, "ordinary", 0, 10), (17, "elastic", 1, 7), (30, "alone", 2, 10)],
)
def test_a_run_goes_on_in_the_training_that_it_was_saved_in(
    run: Run, said: list[str], total: int, phase: str, number: int, step: int
) -> None:
    run.save(total, {"phase": phase, "steps": 10})
    standing = where_it_stands(run, NAMES, 10, said.append)
    assert (standing.phase, standing.step) == (number, step)
    assert standing.state is not None
    assert standing.state["phase"] == phase
    assert said == [f"resumed {run.folder} at step {total}, in the training {phase}"]


def test_another_number_of_steps_is_refused(run: Run, said: list[str]) -> None:
    run.save(17, {"phase": "elastic", "steps": 10})
    with pytest.raises(ValueError, match=r"--steps 12: the run in .* was started with 10"):
        where_it_stands(run, NAMES, 12, said.append)


def test_one_process_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = single_process("cpu")
    assert processes.first
    assert processes.device == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="trains in one process, and a launcher started 3"):
        single_process("cpu")
