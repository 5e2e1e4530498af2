"""Ctrl-C, SIGTERM and SIGHUP as a request that a training loop sees between two steps."""

from __future__ import annotations

import signal
import time
from typing import Any

MIN_SECONDS_BETWEEN_REQUESTS = 1.0
"""Signals that follow more closely are one request."""

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""By name, because Windows has no SIGHUP: what a process gets when its terminal goes away."""


class StopSignal:
    """Turns signals that end a process into a request; a second one raises KeyboardInterrupt.

    These are Ctrl-C, SIGTERM and SIGHUP. One that is ignored stays so, as SIGHUP under nohup.

    What follows within a second belongs to the first request, because a launcher of several
    processes passes on a signal that they have already received themselves. As signals are, it is
    for the main thread only.

    Example:
        >>> with StopSignal() as stop:
        ...     for step in range(3):
        ...         if stop.requested:
        ...             break  # after saving
    """

    def __init__(self) -> None:
        self.requested = False
        self._number = signal.SIGINT  # what several processes stop for may come to another one
        self._requested_at = 0.0  # seconds of the monotonic clock
        self._handlers_before: dict[signal.Signals, Any] = {}

    @property
    def exit_status(self) -> int:
        """The status of a process that stopped as it was asked: 130 by Ctrl-C, 143 by SIGTERM.

        It is 128 plus the signal's number, as shells have it, and not 0, which would tell a job
        queue that the training is finished.
        """
        return 128 + self._number

    def __enter__(self) -> StopSignal:
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers_before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if not self.requested:
            self.requested = True
            self._number = signal.Signals(number)
            self._requested_at = now
        elif now - self._requested_at > MIN_SECONDS_BETWEEN_REQUESTS:
            raise KeyboardInterrupt
