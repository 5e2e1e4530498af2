"""Samples a second of one, two and four processes of one thread, which train ASRN x4 by gloo.

    python tests/benchmarks/bench_scale_out.py [--processes 1 2 4] [--batch 16] [--patch 24]
    [--steps 10] [--rounds 3] [--latency MS --bandwidth MBIT] [--json FILE]

The step is that of recipes/asrn_div2k.py: ASRN in float32, channels-last, an L1 loss at all taps
and the self-distillation, Adam, the batch shared by all processes. Three ways to average the
gradients take turns:

- buckets: as the recipe does, sent while the backward pass runs;
- at once: all of them behind the backward pass, as with --auto-batch;
- DDP: DistributedDataParallel around the objective, with its own buckets.

Efficiency is samples a second beside as many times those of one process. Processes beyond the cores
of the machine share them: they can show that the results agree, and not that they are fast.

--latency and --bandwidth simulate a slow link: each sum over the processes then ends no earlier
than a ring on such a link would end it (`calculate_scale_out.py`). For DDP a communication hook
does that. The table then also holds what is calculated from the time without that link.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from calculate_scale_out import BYTES_OF_A_GRADIENT, Link, Step, ring_seconds, waiting_seconds
from harness import machine_name, make_parser, require_at_least, write_report
from torch import Tensor
from torch.futures import Future
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from elasticnet import ElasticObjective
from elasticnet.sr import asrn
from elasticnet.training.gradient_buckets import bucket_mb_for
from elasticnet.training.processes import Processes
from elasticnet.training.step import TrainingStep

WAYS = ("buckets", "at once", "DDP")
SCALE = 4
PSD_WEIGHT = 8e-5


class Settings(NamedTuple):
    """What each process is told.

    Attributes:
        num_processes: How many processes there are.
        batch: The images of a step, over all processes.
        patch: The side of an LR patch.
        steps: How many steps are timed together.
        link: The link to simulate. None: as fast as gloo is.
        folder: Where the processes meet, and where the first one writes its times.
    """

    num_processes: int
    batch: int
    patch: int
    steps: int
    link: Link | None
    folder: Path


# --- the simulated link


class SlowLink:
    """A link that does one sum after the other, and holds each until a ring would have ended it.

    Args:
        link: Its latency and bandwidth.
        num_processes: How many processes the ring has.
    """

    def __init__(self, link: Link, num_processes: int) -> None:
        self.link = link
        self.num_processes = num_processes
        self.free_from = 0.0  # when all sums so far have ended

    def hold(self, num_bytes: int) -> float:
        """Return when a sum that begins now ends, on the clock of `time.perf_counter`."""
        begins_at = max(time.perf_counter(), self.free_from)
        self.free_from = begins_at + ring_seconds(num_bytes, self.num_processes, self.link)
        return self.free_from


def sleep_until(moment: float) -> None:
    """Return at a moment on the clock of `time.perf_counter`, or at once if it is over."""
    time.sleep(max(0.0, moment - time.perf_counter()))


class HeldWork:
    """A sum over the processes that ends no earlier than the link says.

    Args:
        work: The sum itself.
        ends_at: When the link has ended it.
    """

    def __init__(self, work: Any, ends_at: float) -> None:
        self.work = work
        self.ends_at = ends_at

    def wait(self) -> None:
        """Wait for both."""
        self.work.wait()
        sleep_until(self.ends_at)


def slow_all_reduce(slow: SlowLink) -> Callable[..., Any]:
    """Return what replaces `dist.all_reduce` on a slow link."""
    fast_all_reduce = dist.all_reduce

    def all_reduce(tensor: Tensor, async_op: bool = False) -> Any:
        ends_at = slow.hold(tensor.nbytes)
        held = HeldWork(fast_all_reduce(tensor, async_op=True), ends_at)
        if async_op:
            return held
        return held.wait()

    return all_reduce


def slow_hook(slow: SlowLink, bucket: Any) -> Future[Tensor]:
    """Average a bucket of DDP on a slow link: a communication hook."""
    total = bucket.buffer().div_(slow.num_processes)
    work: Any = dist.all_reduce(total, async_op=True)
    ends_at = slow.hold(total.nbytes)
    averaged: Future[Tensor] = Future()

    def finish() -> None:
        work.wait()
        sleep_until(ends_at)
        averaged.set_result(total)

    threading.Thread(target=finish).start()
    return averaged


# --- the training


def share_of_batch(settings: Settings, rank: int) -> tuple[Tensor, Tensor]:
    """Return the images of one process: random ones, of the same batch for any number of them."""
    generator = torch.Generator().manual_seed(0)
    side = settings.patch
    x = torch.rand(settings.batch, 3, side, side, generator=generator)
    target = torch.rand(settings.batch, 3, SCALE * side, SCALE * side, generator=generator)
    share = slice(rank, None, settings.num_processes)
    return (
        x[share].contiguous(memory_format=torch.channels_last),
        target[share].contiguous(memory_format=torch.channels_last),
    )


def make_step(settings: Settings, rank: int, way: str) -> Callable[[int], Any]:
    """Return a function that does one training step."""
    torch.manual_seed(0)
    net: Any = asrn(scale=SCALE).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    objective = ElasticObjective(net, F.l1_loss, psd_weight=PSD_WEIGHT)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    images = share_of_batch(settings, rank)

    if way == "DDP" and settings.num_processes > 1:
        parallel = DistributedDataParallel(objective)
        if settings.link is not None:
            # A lambda, because DDP refuses annotations that are strings.
            parallel.register_comm_hook(
                SlowLink(settings.link, settings.num_processes),
                lambda slow, bucket: slow_hook(slow, bucket),
            )

        def ddp_step(step: int) -> Any:
            optimizer.zero_grad(set_to_none=True)
            total = parallel(*images).total
            total.backward()
            optimizer.step()
            return total

        return ddp_step

    processes = Processes(rank, settings.num_processes)
    training_step = TrainingStep(
        objective, net, optimizer, processes=processes, auto_batch=way == "at once"
    )
    return lambda step: training_step(lambda part, num_parts: images, step).total


def run_rank(rank: int, settings: Settings) -> None:
    """Train in one process; the first one writes seconds a step and the last loss of each way."""
    torch.set_num_threads(1)
    if settings.num_processes > 1:
        store = f"file://{settings.folder / 'store'}"
        dist.init_process_group(
            "gloo", store, timedelta(seconds=300), world_size=settings.num_processes, rank=rank
        )
    fast_all_reduce = dist.all_reduce
    results: dict[str, Any] = {}
    for way in WAYS:
        if settings.link is not None and settings.num_processes > 1 and way != "DDP":
            dist.all_reduce = slow_all_reduce(SlowLink(settings.link, settings.num_processes))
        do_step = make_step(settings, rank, way)
        for step in range(2):  # the first learns the order of the buckets
            do_step(step)
        start = time.perf_counter()
        loss = 0.0
        for step in range(2, 2 + settings.steps):
            loss = do_step(step)
        seconds = (time.perf_counter() - start) / settings.steps
        mean = torch.as_tensor(loss).detach().clone()
        dist.all_reduce = fast_all_reduce
        if settings.num_processes > 1:
            dist.all_reduce(mean)
        results[way] = {"seconds": seconds, "loss": float(mean) / settings.num_processes}
    if rank == 0:
        torch.save(results, settings.folder / "results.pt")
    if settings.num_processes > 1:
        dist.destroy_process_group()


def measure(options: argparse.Namespace, count: int, link: Link | None) -> dict[str, Any]:
    """Start so many processes; return seconds a step and the last loss of each way."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(count, options.batch, options.patch, options.steps, link, Path(folder))
        spawn(run_rank, (settings,), nprocs=count)
        return torch.load(settings.folder / "results.pt")


# --- the table


def calculated_seconds(way: str, alone: float, count: int, share: int, link: Link) -> float:
    """Return what a step is to take on a link, from its time without that link."""
    sizes = sizes_sent(way, count)
    if way == "at once":
        return alone + sum(ring_seconds(size, count, link) for size in sizes)
    return alone + waiting_seconds(sizes, count, Step(alone, share), link)


def sizes_sent(way: str, num_processes: int) -> list[int]:
    """Return the bytes of each sum in a step."""
    sizes = [each.numel() * BYTES_OF_A_GRADIENT for each in asrn(scale=SCALE).parameters()]
    if way != "buckets":
        return [sum(sizes)]  # less than the first bucket of DDP, which holds 1 MB
    buckets: list[int] = [0]
    for size in reversed(sizes):
        if buckets[-1] > 0 and buckets[-1] + size > bucket_mb_for(num_processes) * 1e6:
            buckets.append(0)
        buckets[-1] += size
    return buckets


def read_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, default=16, help="images of all processes together")
    parser.add_argument("--patch", type=int, default=24, help="side of an LR patch")
    parser.add_argument("--steps", type=int, default=10, help="steps in one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements that count")
    parser.add_argument("--latency", type=float, help="of a simulated link, milliseconds")
    parser.add_argument("--bandwidth", type=float, help="of a simulated link, Mbit/s")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "batch", "patch", "steps", "rounds")
    for count in options.processes:
        if count < 1 or options.batch % count != 0:
            parser.error(f"--processes {count}: expected a divisor of --batch {options.batch}")
    if (options.latency is None) != (options.bandwidth is None):
        parser.error("a simulated link has both --latency and --bandwidth")
    return options


def main() -> None:
    """Print the table, and write it to --json."""
    options = read_options()
    link = None
    if options.latency is not None:
        link = Link(options.latency / 1e3, options.bandwidth * 1e6 / 8)
    rounds: dict[int, list[dict[str, Any]]] = {count: [] for count in options.processes}
    slow_rounds: dict[int, list[dict[str, Any]]] = {count: [] for count in options.processes}
    for number in range(options.rounds):
        order = options.processes if number % 2 == 0 else options.processes[::-1]
        for count in order:
            rounds[count].append(measure(options, count, link=None))
            if link is not None and count > 1:
                slow_rounds[count].append(measure(options, count, link))

    print(f"{machine_name()} a process; {options.batch} images in all\n")
    print("| processes | gradients | ms a step | efficiency | loss | on the link | calculated |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    first = options.processes[0]
    for count in options.processes:
        for way in WAYS[: 1 if count == 1 else None]:
            print(row(options, link, rounds, slow_rounds, count, first, way))
    write_report(options, machine_name(), rounds=rounds, on_link=slow_rounds)


def row(
    options: argparse.Namespace,
    link: Link | None,
    rounds: dict[int, list[dict[str, Any]]],
    slow_rounds: dict[int, list[dict[str, Any]]],
    count: int,
    first: int,
    way: str,
) -> str:
    """Return a line of the table: medians over the rounds."""
    seconds = statistics.median(each[way]["seconds"] for each in rounds[count])
    efficiency = statistics.median(
        each_first["buckets"]["seconds"] * first / (each[way]["seconds"] * count)
        for each_first, each in zip(rounds[first], rounds[count], strict=True)
    )
    loss = rounds[count][0][way]["loss"]
    cells = [str(count), way, f"{1000 * seconds:.0f}", f"{efficiency:.0%}", f"{loss:.6f}"]
    if link is None or count == 1:
        return f"| {' | '.join([*cells, '', ''])} |"
    slow = statistics.median(each[way]["seconds"] for each in slow_rounds[count])
    expected = calculated_seconds(way, seconds, count, options.batch // count, link)
    return f"| {' | '.join([*cells, f'{1000 * slow:.0f}', f'{1000 * expected:.0f}'])} |"


if __name__ == "__main__":
    main()
