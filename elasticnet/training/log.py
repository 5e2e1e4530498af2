"""What a training tells while it runs: log.jsonl, one line of progress, TensorBoard."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from elasticnet.losses import LossTerms
from elasticnet.training.loss_meter import LossMeter
from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SECONDS_BETWEEN_REFRESHES = 0.1
"""Of the line of progress."""
STEPS_BEFORE_THE_FORECAST = 10
"""How many steps are timed before it is said when the training will end."""

_PROGRESS_FORMAT = "{percentage:3.0f}% {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left{postfix}"


def tensorboard_installed() -> bool:
    """Return whether TensorBoard can be written: it comes with the extra `train`."""
    return importlib.util.find_spec("tensorboard") is not None


def show_messages() -> None:
    """Show the library's messages, from the level INFO up, on standard output.

    This is for recipes and scripts. The library itself only logs, and leaves it to whoever runs it
    what is shown. Messages appear above the line of progress and do not break it. A second call
    changes nothing.
    """
    library = logging.getLogger("elasticnet")
    library.setLevel(logging.INFO)
    if not any(isinstance(handler, _AboveProgress) for handler in library.handlers):
        library.addHandler(_AboveProgress())


class _AboveProgress(logging.Handler):
    """Writes messages to standard output, above tqdm's line of progress where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        # A program that is started with its output closed has none: print() passes over that, and
        # so does tqdm, but not its version 4.66.
        if sys.stdout is not None:
            tqdm.write(self.format(record))


class _Moment(NamedTuple):
    """When a step was done: how many this process had done, and the clock."""

    steps: int
    seconds: float


class TrainingLog:
    """The log of one training, to be used in a `with` statement.

    `add` takes the losses of every step, and `write` writes a line now and then: to the run's
    log.jsonl, to the line of progress (steps a second, time left, loss terms, the last scores),
    and to TensorBoard. The line of progress is for terminals; where standard error is a file or a
    pipe, a message after each validation takes its place. After a few steps a message says when the
    training will end. Of several processes only the first one writes, the means over all of them.

    Args:
        run: The run whose folder holds the log.
        total: Steps of the whole training.
        processes: The processes of the training. Default: this one alone.
        score_name: What the scores are, such as `"accuracy"`: their name in log.jsonl, in
            TensorBoard and in the line of progress.
        score_unit: Their unit, for the line of progress. Default: none.
        tensorboard: Whether to write TensorBoard's files, into the folder `tensorboard` of the
            run.
        machine: What trains, as `machine_key` of `elasticnet.card.machine` says it. Lines with
            scores name it, since a resumed training may go on elsewhere.

    Raises:
        ModuleNotFoundError: TensorBoard is asked for and is not installed.

    Example:
        >>> with TrainingLog(run, total=1000, score_name="accuracy") as log:
        ...     log.add(terms)
        ...     log.write(1, {1: 0.52, 2: 0.61}, learning_rate=1e-3)
    """

    def __init__(
        self,
        run: Run,
        total: int,
        processes: Processes | None = None,
        *,
        score_name: str = "score",
        score_unit: str = "",
        tensorboard: bool = False,
        machine: str | None = None,
    ) -> None:
        self.run = run
        self.total = total
        self.processes = processes or Processes()
        self.score_name = score_name
        self.score_unit = score_unit
        self.machine = machine
        self.scores: dict[int, float] = {}  # the last ones, by depth
        self.seconds = 0.0  # of training, up to the last line
        if tensorboard and self.processes.first and not tensorboard_installed():
            raise ModuleNotFoundError(
                'TensorBoard is not installed: pip install "elastic-depth[train]", '
                "or log without it"
            )
        self._tensorboard = tensorboard and self.processes.first
        self._board: SummaryWriter | None = None
        self._meter = LossMeter(self.processes.average)
        self._progress: tqdm[Any] | None = None
        self._done = 0  # steps of the whole training
        self._steps_here = 0  # that this process has done
        self._timed_from: _Moment | None = None  # when the first of them were done
        self._forecast_is_said = False
        self._first_step = 1  # of those that the next line is about
        self._clock = time.perf_counter()  # when the last line was written

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training goes on from: the last scores, and the seconds so far."""
        return {"scores": self.scores, "seconds": self.seconds}

    def start(self, done: int = 0, state: Mapping[str, Any] | None = None) -> TrainingLog:
        """Say where the training begins, before the `with` block; not needed at step 0.

        Args:
            done: How many steps are done already.
            state: What `state_dict` returned after that step.

        Returns:
            The log itself, so that `with log.start(done, state):` can be written.
        """
        self._done = done
        self._first_step = done + 1
        if state is not None:
            self.scores = dict(state["scores"])
            self.seconds = state["seconds"]
        return self

    def __enter__(self) -> TrainingLog:
        done = self._first_step - 1
        if self._tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # log.jsonl is cut back to the step `done`, and so is what a killed process wrote here
            self._board = SummaryWriter(
                str(self.run.folder / "tensorboard"), purge_step=self._first_step
            )
        self._progress = tqdm(
            total=self.total,
            initial=done,
            unit="it",
            dynamic_ncols=True,
            mininterval=SECONDS_BETWEEN_REFRESHES,
            bar_format=_PROGRESS_FORMAT,
            disable=not self._draws,
        )
        self._show({})
        self._clock = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def add(self, terms: LossTerms) -> None:
        """Take the losses of one step. They stay on their device until the next line.

        Args:
            terms: What the step returned.
        """
        self._meter.add(terms)
        self._count(1, terms.total)

    def add_rows(self, depths: tuple[int, ...], rows: Tensor) -> None:
        """Take the losses of several steps at once, before the line that is about them.

        Args:
            depths: The depths whose losses the steps computed.
            rows: A row for each step, as `LossMeter.add_rows` takes them.
        """
        self._meter.add_rows(depths, rows)
        self._count(len(rows), rows[-1])

    def _count(self, num_steps: int, losses: Tensor) -> None:
        """Count steps that are done; after some say when the training will end.

        Args:
            num_steps: How many.
            losses: Of the last of them: a GPU that has them has done the steps.
        """
        if self._progress is not None:
            self._progress.update(num_steps)
        self._done += num_steps
        self._steps_here += num_steps
        if self._forecast_is_said:
            return
        if self._timed_from is None:
            # The first step is left out, as it is slower: it allocates, and perhaps compiles.
            losses.cpu()  # waits for a GPU
            self._timed_from = _Moment(self._steps_here, time.perf_counter())
            return
        timed_steps = self._steps_here - self._timed_from.steps
        if timed_steps >= STEPS_BEFORE_THE_FORECAST:
            losses.cpu()
            self._forecast_is_said = True
            self._say_when_it_ends((time.perf_counter() - self._timed_from.seconds) / timed_steps)

    def write(
        self,
        step: int,
        scores: Mapping[int, float] | None = None,
        **numbers: float | Mapping[int, float],
    ) -> None:
        """Write a line, with the mean losses since the last line if a step has been added.

        Args:
            step: How many steps are done.
            scores: The scores by depth, where they have just been measured.
            **numbers: Further entries of the line, such as the learning rate; each is a number,
                or a number for each depth.

        Raises:
            FloatingPointError: A loss since the last line was NaN or infinite; the message names
                its step. Nothing has been written then.
        """
        self._refuse_not_finite()
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now
        self._first_step = step + 1

        means: dict[str, Any] = self._meter.means() if len(self._meter) else {}
        record = {"step": step, "seconds": round(self.seconds, 1), **numbers, **means}
        if scores is not None:
            self.scores = dict(scores)
            record[self.score_name] = self.scores
            if self.machine is not None:
                record["machine"] = self._machines(self.machine)
        self.run.log(record)
        self._write_board(step, record)
        self._show(means)
        if scores is not None and not self._draws:
            self.processes.say(f"step {step:,} of {self.total:,}: {self._summary(means)}")

    def pictures(self, step: int, pictures: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Show pictures in TensorBoard; without it, do nothing.

        Args:
            step: How many steps are done.
            pictures: By their names, uint8 of shape (height, width, 3).
        """
        if self._board is not None:
            for name, picture in pictures.items():
                self._board.add_image(name, picture, step, dataformats="HWC")
            self._board.flush()

    def _refuse_not_finite(self) -> None:
        index = self._meter.first_not_finite()
        if index is None:
            return
        holds = "holds the last good state" if self.run.checkpoints() else "holds no state yet"
        raise FloatingPointError(
            f"the loss became NaN or infinite at step {self._first_step + index}; nothing was "
            f"saved since, and {self.run.folder} {holds}. Try a smaller learning rate, or clipped "
            "gradients"
        )

    def _machines(self, machine: str) -> str:
        if self.processes.count == 1:
            return machine
        return f"{self.processes.count} times {machine}"

    def _write_board(self, step: int, record: Mapping[str, Any]) -> None:
        if self._board is None:
            return
        for tag, number in _numbers_by_tag(record).items():
            self._board.add_scalar(tag, number, step)
        self._board.flush()  # or a kill would lose lines that log.jsonl has

    @property
    def _draws(self) -> bool:
        """Whether there is a line of progress: in the first process, on a terminal."""
        return self.processes.first and sys.stderr.isatty()

    def _say_when_it_ends(self, step_seconds: float) -> None:
        """Say how long a step takes, and when the last one will be done."""
        steps_left = self.total - self._done
        seconds_left = step_seconds * steps_left
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds_left))
        self.processes.say(
            f"{step_seconds:.2g} s a step: {steps_left:,} steps more take "
            f"{_duration(seconds_left)}, until {end}, validations not counted"
        )

    def _show(self, means: Mapping[str, Any]) -> None:
        """Put the losses of the last line, and the last scores, into the line of progress."""
        if self._progress is not None:
            self._progress.set_postfix_str(self._summary(means), refresh=False)

    def _summary(self, means: Mapping[str, Any]) -> str:
        """Return the losses of the last line, and the last scores, in a few words."""
        shown: list[str] = []
        if means:
            terms = (means["routine"], means["deep_supervision"], means["distillation"])
            summands = " + ".join(f"{term:.3g}" for term in terms)
            shown.append(f"loss {means['total']:.4g} = {summands}")
        if self.scores:
            scores = " ".join(f"{score:#.4g}" for score in self.scores.values())
            shown.append(f"{self.score_name} {scores} {self.score_unit}".rstrip())
        return ", ".join(shown)


def _duration(seconds: float) -> str:
    """Return a time in its two largest units, such as "2 d 3 h"."""
    minutes = round(seconds / 60)
    days, minutes_of_day = divmod(minutes, 24 * 60)
    hours, minutes = divmod(minutes_of_day, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min"
    return f"{round(seconds)} s"


def _numbers_by_tag(record: Mapping[str, Any]) -> dict[str, float]:
    """Return a line's numbers by TensorBoard's tags: {"per_depth": {1: 0.5}} is per_depth/1."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        if name in ("step", "machine"):
            continue
        if isinstance(value, int | float):
            numbers[name] = value
        else:  # a number for each depth
            for depth, number in value.items():
                numbers[f"{name}/{depth}"] = number
    return numbers
