"""Ctrl-C, SIGTERM and SIGHUP ask first and interrupt later."""

from __future__ import annotations

import signal
import time

import pytest

from elasticnet.training.stop_signal import StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_stop_signal_asks_and_a_later_one_interrupts(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert stop.exit_status == 128 + number
        now = 100.9
        # what a launcher passes on at once is no second request
        signal.raise_signal(signal.SIGTERM)
        now = 101.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before
    assert not StopSignal().requested


def test_a_process_whose_neighbour_got_the_signal_ends_as_after_ctrl_c() -> None:
    assert StopSignal().exit_status == 130


def test_an_ignored_signal_stays_ignored() -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
