"""What training on 1 to 64 processes costs in communication, by calculation.

    python tests/benchmarks/calculate_scale_out.py --parameters 243907 --step-ms 15.9
    --bandwidth 25 --latency 30 [--batch 16] [--bucket-mb MB] [--json FILE]

The gradients of all processes are added up by a ring: each process cuts its buffer into as many
pieces as there are processes, and in each of 2 (p - 1) rounds sends one piece to its neighbour. A
round takes the latency and the time of a piece on the link.

A step takes --step-ms with --batch samples in each process. The buckets are sent one after the
other while the backward pass runs, and the last one when it has ended. What does not fit into the
backward pass is waited for. The table says so for a batch that grows with the processes ("each
--batch") and, in its last column, how small the batch of each process may become until all
communication takes as long as its step.

Not in the calculation: processes that are slower than others, links that several processes share,
the switch, and the time in which communication slows the computation itself.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

from harness import make_parser, write_report

from elasticnet.training.gradient_buckets import bucket_mb_for

COUNTS = (1, 2, 4, 8, 16, 32, 64)
BYTES_OF_A_GRADIENT = 4  # float32, in autocast, too
BACKWARD_SHARE = 0.6
"""The share of a step in which the backward pass runs and buckets can be sent."""


class Link(NamedTuple):
    """What a process sends its neighbour by.

    Attributes:
        latency: Seconds until the first byte arrives, with all that the libraries do for a message.
        bandwidth: Bytes a second.
    """

    latency: float
    bandwidth: float


class Step(NamedTuple):
    """A step of one process.

    Attributes:
        seconds: How long it takes without communication.
        samples: Its share of the batch.
    """

    seconds: float
    samples: int


def ring_seconds(num_bytes: int, num_processes: int, link: Link) -> float:
    """Return how long a ring takes to add up a buffer over the processes.

    Args:
        num_bytes: The size of the buffer. It is cut into pieces of whole bytes.
        num_processes: How many processes there are, at least 1.
        link: Between each process and the next.
    """
    rounds = 2 * (num_processes - 1)
    largest_piece = math.ceil(num_bytes / num_processes)
    return rounds * (link.latency + largest_piece / link.bandwidth)


def bucket_sizes(num_bytes: int, bucket_bytes: int) -> list[int]:
    """Return the sizes of the buckets that gradients are sent in; the last one may be smaller.

    Args:
        num_bytes: Of all gradients.
        bucket_bytes: Of one bucket, at least 1.
    """
    num_full, rest = divmod(num_bytes, bucket_bytes)
    sizes = [bucket_bytes] * num_full
    if rest > 0:
        sizes.append(rest)
    return sizes


def waiting_seconds(sizes: list[int], num_processes: int, step: Step, link: Link) -> float:
    """Return how long a step waits behind its backward pass until all gradients are averaged.

    The buckets become complete one after the other, at equal distances, the last one at the end.

    Args:
        sizes: Of the buckets, in bytes.
        num_processes: How many processes there are.
        step: Of one process.
        link: Between each process and the next.
    """
    backward = BACKWARD_SHARE * step.seconds
    free_from = 0.0  # when the link has sent all buckets so far; the backward pass begins at 0
    for number, size in enumerate(sizes, start=1):
        complete_at = backward * number / len(sizes)
        begins_at = max(complete_at, free_from)
        free_from = begins_at + ring_seconds(size, num_processes, link)
    return max(0.0, free_from - backward)


def binding_batch(num_bytes: int, num_processes: int, step: Step, link: Link) -> float:
    """Return the samples of a process whose step takes as long as all of its communication.

    The time of a step is taken to grow with its samples, which favours small batches.

    Args:
        num_bytes: Of all gradients.
        num_processes: How many processes there are.
        step: Of one process, for the time of a sample.
        link: Between each process and the next.
    """
    seconds_of_a_sample = step.seconds / step.samples
    return ring_seconds(num_bytes, num_processes, link) / seconds_of_a_sample


class Row(NamedTuple):
    """What is expected of a number of processes.

    Attributes:
        processes: How many.
        ring_ms: How long the link is busy in a step.
        waiting_ms: How long a step waits behind its backward pass.
        efficiency: The samples a second of a process beside those of one process alone.
        efficiency_behind: The same if all gradients are sent at once behind the backward pass.
        binding_batch: See `binding_batch`.
    """

    processes: int
    ring_ms: float
    waiting_ms: float
    efficiency: float
    efficiency_behind: float
    binding_batch: float


def row_of(num_processes: int, num_bytes: int, bucket_bytes: int, step: Step, link: Link) -> Row:
    """Return what is expected of a number of processes."""
    sizes = bucket_sizes(num_bytes, bucket_bytes)
    busy = sum(ring_seconds(size, num_processes, link) for size in sizes)
    waiting = waiting_seconds(sizes, num_processes, step, link)
    behind = ring_seconds(num_bytes, num_processes, link)
    return Row(
        processes=num_processes,
        ring_ms=1000 * busy,
        waiting_ms=1000 * waiting,
        efficiency=step.seconds / (step.seconds + waiting),
        efficiency_behind=step.seconds / (step.seconds + behind),
        binding_batch=binding_batch(num_bytes, num_processes, step, link),
    )


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--parameters", type=int, default=243_907, help="trained, default ASRN x4")
    parser.add_argument("--step-ms", type=float, default=1000 / 63, help="without communication")
    parser.add_argument("--batch", type=int, default=16, help="samples of a process in a step")
    parser.add_argument("--bandwidth", type=float, default=25.0, help="of a link, Gbit/s")
    parser.add_argument("--latency", type=float, default=30.0, help="of a message, microseconds")
    parser.add_argument("--bucket-mb", type=float, help="size of a bucket; default: the library's")
    options = parser.parse_args()
    for name in ("parameters", "step_ms", "batch", "bandwidth", "bucket_mb"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} {value}: expected a number above 0")
    if options.latency < 0:
        parser.error(f"--latency {options.latency}: expected at least 0")
    return options


def main() -> None:
    """Print the table, and write it to --json."""
    options = read_options()
    link = Link(latency=options.latency / 1e6, bandwidth=options.bandwidth * 1e9 / 8)
    step = Step(seconds=options.step_ms / 1000, samples=options.batch)
    num_bytes = options.parameters * BYTES_OF_A_GRADIENT
    rows: list[Row] = []
    for count in COUNTS:
        bucket_mb = options.bucket_mb
        if bucket_mb is None:
            bucket_mb = bucket_mb_for(count)
        rows.append(row_of(count, num_bytes, max(1, round(bucket_mb * 1e6)), step, link))

    print(f"{num_bytes / 1e6:.2f} MB of gradients, a step of {options.step_ms:.1f} ms\n")
    print(
        "| processes | link busy, ms | waiting, ms | efficiency | sent at once behind "
        "| batch at which communication binds |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row.processes} | {row.ring_ms:.2f} | {row.waiting_ms:.2f} | {row.efficiency:.1%} "
            f"| {row.efficiency_behind:.1%} | {row.binding_batch:.1f} |"
        )
    write_report(options, "calculated", rows=[row._asdict() for row in rows])


if __name__ == "__main__":
    main()
