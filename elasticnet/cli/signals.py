"""How signals end the command: through every `finally`, so that nothing is left half-written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGTERM", "SIGHUP")  # by name: Windows has no SIGHUP
EXIT_STATUS_BASE = 128  # a shell reports this plus the signal's number


@contextmanager
def ended_by_signals() -> Generator[None, None, None]:
    """Turn SIGTERM and SIGHUP into SystemExit while the block runs.

    A signal that is ignored, or that has a handler, stays so. Outside the main thread, where Python
    sets no handlers, nothing changes.

    Yields:
        Nothing; the signals' default handlers are put back afterwards.
    """
    replaced: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _exit)
                replaced.append(number)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, _frame: FrameType | None) -> None:
    """Leave as the signal would have, but by an exception."""
    raise SystemExit(EXIT_STATUS_BASE + number)
