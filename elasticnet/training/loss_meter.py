"""LossMeter: what the losses were between two lines of a log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elasticnet.losses import LossTerms

TERMS = ("total", "routine", "deep_supervision", "distillation")


class _Step(NamedTuple):
    """One step's losses: `values` are the four terms, then the loss of each of `depths`."""

    depths: tuple[int, ...]
    values: Tensor  # (4 + number of depths,)


class LossMeter:
    """Gathers LossTerms on their device, so that training waits for it only at a line of the log.

    Args:
        average: Returns the mean over several processes of a one-dimensional tensor
            (`Processes.average`). None: there is one process.
    """

    def __init__(self, average: Callable[[Tensor], Tensor] | None = None) -> None:
        self._average = average
        self._steps: list[_Step] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, terms: LossTerms) -> None:
        """Take one step's terms.

        They are copied, because a CUDA graph writes the next step's terms into the same memory.

        Args:
            terms: What the objective returned.
        """
        values = [getattr(terms, name) for name in TERMS] + list(terms.per_depth.values())
        self._steps.append(_Step(tuple(terms.per_depth), torch.stack(values).detach()))

    def add_rows(self, depths: tuple[int, ...], rows: Tensor) -> None:
        """Take the losses of several steps, which must not change any more.

        Args:
            depths: The depths whose losses the steps computed.
            rows: A row for each step, (steps, 4 + number of depths): the four terms, and the loss
                of each depth.
        """
        for row in rows.unbind():
            self._steps.append(_Step(depths, row.detach()))

    def first_not_finite(self) -> int | None:
        """Return the index of the first step whose total is NaN or infinite; None if there is none.

        It counts from 0, since the last call of `means`.
        """
        for index, step in enumerate(self._averaged_steps()):
            total = step.values[0]
            if not total.isfinite():
                return index
        return None

    def means(self) -> dict[str, Any]:
        """Return the mean of everything since the last call, and begin anew.

        Returns:
            The mean of each term by its name, and under "per_depth" the mean loss of each depth,
            over the steps that computed it.

        Raises:
            ValueError: No step was added.
        """
        if not self._steps:
            raise ValueError("LossMeter.means: no step was added since the last call")
        steps = self._averaged_steps()
        self._steps.clear()

        terms = torch.stack([step.values[: len(TERMS)] for step in steps])  # (steps, 4)
        term_means = terms.mean(dim=0).unbind()
        means: dict[str, Any] = {
            name: mean.item() for name, mean in zip(TERMS, term_means, strict=True)
        }

        losses: dict[int, list[Tensor]] = {}
        for step in steps:
            for depth, loss in zip(step.depths, step.values[len(TERMS) :], strict=True):
                losses.setdefault(depth, []).append(loss)
        means["per_depth"] = {
            depth: torch.stack(losses[depth]).mean().item() for depth in sorted(losses)
        }
        return means

    def _averaged_steps(self) -> list[_Step]:
        """Return the steps on the CPU, as means over the processes, by one exchange for all."""
        if not self._steps:
            return []
        values = torch.cat([step.values for step in self._steps])
        if self._average is not None:
            values = self._average(values)
        lengths = [len(step.values) for step in self._steps]
        parts = torch.split(values.cpu(), lengths)
        return [step._replace(values=part) for step, part in zip(self._steps, parts, strict=True)]
