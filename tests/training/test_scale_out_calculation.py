"""The calculation of the page on many processes, beside a ring that is simulated by loops."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _scripts_are_found() -> Any:
    """Scripts import their harness by its name."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def script(_scripts_are_found: None) -> Any:
    return importlib.import_module("calculate_scale_out")


def simulated_ring(buffers: list[list[int]], latency: float, bandwidth: float) -> float:
    """Add up buffers in place, byte by byte, as a ring does; return when the last process is done.

    Each process has a clock. In a round each sends one piece to the next one, and goes on when its
    own message is sent and that of the one before has come.
    """
    count = len(buffers)
    size = len(buffers[0])
    piece_size = -(-size // count)
    pieces = [range(k * piece_size, min((k + 1) * piece_size, size)) for k in range(count)]
    clocks = [0.0] * count
    for round_number in range(2 * (count - 1)):
        adds_up = round_number < count - 1  # the other half hands the sums on
        messages: list[list[int]] = []
        arrivals: list[float] = []
        for sender in range(count):
            # In the second half each begins with the piece whose sum it has.
            piece = pieces[(sender - round_number) % count]
            messages.append([buffers[sender][position] for position in piece])
            # The link is held for a whole piece, as pieces differ by a rest at most.
            arrivals.append(clocks[sender] + latency + piece_size / bandwidth)
        for receiver in range(count):
            sender = (receiver - 1) % count
            piece = pieces[(sender - round_number) % count]
            for position, value in zip(piece, messages[sender], strict=True):
                old = buffers[receiver][position] if adds_up else 0
                buffers[receiver][position] = old + value
            clocks[receiver] = max(arrivals[sender], arrivals[receiver])
    return max(clocks)


@given(
    count=st.integers(1, 7),
    size=st.integers(1, 40),
    latency=st.floats(0, 1),
    bandwidth=st.floats(0.1, 100),
)
def test_a_ring_takes_as_long_as_one_that_is_simulated(
    script: Any, count: int, size: int, latency: float, bandwidth: float
) -> None:
    buffers = [[count * position + rank for position in range(size)] for rank in range(count)]
    sums = [sum(values) for values in zip(*buffers, strict=True)]
    simulated = simulated_ring(buffers, latency, bandwidth)
    assert buffers == [sums] * count  # what was simulated is a sum over all processes
    link = script.Link(latency=latency, bandwidth=bandwidth)
    assert script.ring_seconds(size, count, link) == pytest.approx(simulated)


@given(num_bytes=st.integers(1, 1000), bucket_bytes=st.integers(1, 300))
def test_buckets_hold_all_bytes(script: Any, num_bytes: int, bucket_bytes: int) -> None:
    sizes = script.bucket_sizes(num_bytes, bucket_bytes)
    assert sum(sizes) == num_bytes
    assert all(0 < size <= bucket_bytes for size in sizes)


def test_a_slow_link_is_waited_for_and_a_fast_one_for_its_last_bucket_alone(script: Any) -> None:
    step = script.Step(seconds=10.0, samples=4)  # its backward pass takes 6 s
    slow = script.Link(latency=0.0, bandwidth=1.0)  # two processes: a bucket takes 6 s
    assert script.waiting_seconds([6, 6, 6], 2, step, slow) == pytest.approx(2 + 18 - 6)
    fast = script.Link(latency=0.0, bandwidth=60.0)  # 0.1 s
    assert script.waiting_seconds([6, 6, 6], 2, step, fast) == pytest.approx(0.1)
    assert script.waiting_seconds([6, 6, 6], 1, step, slow) == 0


def test_communication_binds_where_it_takes_as_long_as_the_samples(script: Any) -> None:
    step = script.Step(seconds=8.0, samples=4)  # 2 s a sample
    link = script.Link(latency=1.0, bandwidth=1.0)  # two rounds of 1 s and 3 bytes
    assert script.binding_batch(6, 2, step, link) == pytest.approx((2 * (1 + 3)) / 2)


def test_the_script_refuses_what_no_link_has(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["calculate_scale_out.py", "--bandwidth", "0"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--bandwidth 0.0: expected a number above 0" in capsys.readouterr().err


def test_the_script_prints_a_row_for_each_number_of_processes(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["calculate_scale_out.py", "--parameters", "1000000"])
    script.main()
    printed = capsys.readouterr().out
    assert "4.00 MB of gradients" in printed
    assert [line.split()[1] for line in printed.splitlines()[4:]] == [
        "1", "2", "4", "8", "16", "32", "64",
    ]  # fmt: skip
