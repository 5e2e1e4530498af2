"""What a training tells while it runs: log.jsonl, one line of progress, TensorBoard; no loop."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from tqdm import tqdm

from elasticnet.losses import LossMeter, LossTerms
from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run


def tensorboard_installed() -> bool:
    """Return whether TensorBoard can be written: it comes with the extra `train`."""
    return importlib.util.find_spec("tensorboard") is not None


class TrainingLog:
    """The log of one training, as a context manager: `add` every step's losses, `write` a line now
    and then.

    A line goes to the run's log.jsonl, to the line of progress (steps a second, time left, loss
    terms, the last scores), and with `tensorboard` to the run's tensorboard folder. Of several
    processes the first one writes, means over all of them. total: steps of the whole training.
    machine: what trains, as `machine_key` says it; lines with scores name it, as a resumed training
    may go on elsewhere.
    """

    def __init__(
        self,
        run: Run,
        total: int,
        processes: Processes | None = None,
        *,
        tensorboard: bool = False,
        machine: str | None = None,
    ) -> None:
        self.run, self.total, self.processes, self.machine = (
            run,
            total,
            processes or Processes(),
            machine,
        )
        self.scores: dict[int, float] = {}
        self.seconds = 0.0
        self._tensorboard = tensorboard and self.processes.first
        self._meter = LossMeter(self.processes.average)
        if self._tensorboard and not tensorboard_installed():
            raise ModuleNotFoundError(
                'TensorBoard is not installed: pip install "elastic-depth[train]", or log without it'
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training shows from the first step on: the last scores, and the seconds
        spent so far.
        """
        return {"scores": self.scores, "seconds": self.seconds}

    def start(self, done: int = 0, state: Mapping[str, Any] | None = None) -> TrainingLog:
        """Begin, or go on after step `done` with an earlier `state_dict`; to be used in a `with`
        statement.
        """
        if state is not None:
            self.scores, self.seconds = dict(state["scores"]), state["seconds"]
        self._first = done + 1  # the step of the meter's oldest entry
        self._clock = time.perf_counter()
        with ExitStack() as stack:
            self._board = None
            if self._tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                # What a killed process logged beyond `done` is hidden, as log.jsonl is cut back to
                # it.
                self._board = SummaryWriter(
                    str(self.run.folder / "tensorboard"), purge_step=done + 1
                )
                stack.callback(self._board.close)
            self._bar = stack.enter_context(
                tqdm(
                    total=self.total,
                    initial=done,
                    unit="it",
                    dynamic_ncols=True,
                    # seconds; in a file every refresh is a line
                    mininterval=0.1 if sys.stderr.isatty() else 30,
                    bar_format="{percentage:3.0f}% {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left{postfix}",
                    disable=not self.processes.first,
                )
            )
            self._stack = stack.pop_all()
        self._show("")
        return self

    def __enter__(self) -> TrainingLog:
        return self if hasattr(self, "_stack") else self.start()

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def add(self, terms: LossTerms) -> None:
        """Take the losses of one step; they stay on their device until the next line."""
        self._meter.add(terms)
        self._bar.update()

    def write(self, step: int, scores: Mapping[int, float] | None = None, **numbers: float) -> None:
        """Write the line of `step`: mean losses since the last one (where a step was added),
        `numbers`, the `scores` (PSNR per depth, in dB).

        Raises FloatingPointError that names the step when a loss since the last line was NaN or
        infinite, before anything is written.
        """
        if (bad := self._meter.first_not_finite()) is not None:
            held = "holds the last good state" if self.run.checkpoints() else "holds no state yet"
            raise FloatingPointError(
                f"the loss became NaN or infinite at step {self._first + bad}; nothing was saved since, and "
                f"{self.run.folder} {held}. Try a smaller learning rate, or clipped gradients"
            )
        now = time.perf_counter()
        self.seconds, self._clock, self._first = self.seconds + now - self._clock, now, step + 1
        means = self._meter.means() if len(self._meter) else {}
        record = {"step": step, "seconds": round(self.seconds, 1), **numbers, **means}
        if scores is not None:
            self.scores = record["psnr"] = dict(scores)
            if self.machine is not None:
                count = self.processes.count
                record["machine"] = self.machine if count == 1 else f"{count} times {self.machine}"
        self.run.log(record)
        if self._board is not None:
            for tag, value in _flat(record):
                self._board.add_scalar(tag, value, step)
            self._board.flush()  # or a kill would take lines that log.jsonl has
        terms = [
            means[name] for name in ("routine", "deep_supervision", "distillation") if name in means
        ]
        self._show(
            f"loss {means['total']:.4g} = {' + '.join(f'{term:.3g}' for term in terms)}"
            if terms
            else ""
        )

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Show uint8 images (height, width, 3) in TensorBoard, by their names."""
        if self._board is not None:
            for name, image in images.items():
                self._board.add_image(name, image, step, dataformats="HWC")
            self._board.flush()

    def _show(self, losses: str) -> None:
        scores = (
            f"PSNR {' '.join(f'{score:.2f}' for score in self.scores.values())}"
            if self.scores
            else ""
        )
        self._bar.set_postfix_str(", ".join(filter(None, (losses, scores))), refresh=False)


def _flat(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The numbers of a record by their tags: {"psnr": {1: 30.1}} is psnr/1."""
    found = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            found += [(f"{name}/{key}", entry) for key, entry in value.items()]
        elif name not in ("step", "machine"):
            found.append((name, value))
    return found
