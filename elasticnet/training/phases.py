"""Where a run stands that trains several networks, one after the other, each for as many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from elasticnet.training.run_folder import Run


class Standing(NamedTuple):
    """Where a run of several trainings stands.

    Attributes:
        phase: The number of the training that comes next or goes on, from 0.
        step: The steps of it that are done.
        state: What was saved within it. None at its beginning.
    """

    phase: int
    step: int
    state: Mapping[str, Any] | None


def where_it_stands(
    run: Run, names: Sequence[str], steps: int, say: Callable[[str], None]
) -> Standing:
    """Return where the newest state of a run stands, or the beginning.

    Args:
        run: The run. Its states were saved under the step of all trainings together, and each holds
            `phase`, the name of its training, and `steps`, how many steps each training has.
        names: The trainings, in their order.
        steps: How many steps each of them shall have.
        say: Is told what is resumed.

    Raises:
        ValueError: The run was started with another number of steps.
    """
    latest = run.load_latest()
    if latest is None:
        return Standing(phase=0, step=0, state=None)
    total, state = latest
    if state["steps"] != steps:
        raise ValueError(
            f"--steps {steps}: the run in {run.folder} was started with {state['steps']} for each "
            "training"
        )
    say(f"resumed {run.folder} at step {total}, in the training {state['phase']}")
    phase = names.index(state["phase"])
    return Standing(phase=phase, step=total - phase * steps, state=state)
