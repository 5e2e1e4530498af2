"""Ctrl-C and SIGTERM as a request that a training loop sees between two steps."""

from __future__ import annotations

import signal
import time


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a request that a loop sees between two steps; a second one
    interrupts at once.

    `with StopSignal() as stop: ... if stop.requested: save and leave`. In the main thread only, as
    signals are. What follows within a second belongs to the first: a launcher of several processes
    passes on what they have seen already.
    """

    requested = False

    def __enter__(self) -> StopSignal:
        self._before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if not self.requested:
            self.requested, self._asked = True, time.monotonic()
        elif time.monotonic() - self._asked > 1:
            raise KeyboardInterrupt
