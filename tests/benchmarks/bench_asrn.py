"""What ASRN's folded head, its taps and the wrapper cost: ms per training step and per forward.

    python tests/benchmarks/bench_asrn.py [--precision bfloat16] [--device cuda] [--quick]
    [--json FILE]

All variants of a table are timed in turn, round after round, forwards and backwards through the
list. Times are medians over the rounds, ratios medians of the rounds' ratios. A training step is
zero_grad, all losses (L1, and distillation where there is more than one tap), backward and fused
Adam. `folded_kernels()` is the fold itself, paid once a pass. The last table sets the wrapper
beside an nn.Sequential of the very same modules, also at a size where overhead would show.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import (
    machine_name,
    make_parser,
    median_ratio,
    require_at_least,
    settings_of,
    time_in_turn,
    write_report,
)
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.sr.models.asrn import asrn
from elasticnet.sr.models.heads import DeconvHead

Cases = dict[str, Callable[[], Any]]
Times = dict[str, list[float]]

HEADS = ("plain", "folded")
TAPS = ("1 tap", "all taps")
SMALL_BATCH, SMALL_PATCH = 1, 24  # at this size a wrapper's overhead would show
SMALL_CALLS = 5  # for one measurement, as a single call is too short for the clock


def main() -> None:
    """Measure, print the tables, write JSON if asked."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    machine = machine_name(options.device)
    print(machine)
    print(", ".join(f"{name} {value}" for name, value in settings_of(options).items()))

    seconds = time_heads(options)
    print_heads(seconds)
    fold_seconds = time_fold(options)
    print_fold(fold_seconds, statistics.median(seconds["training step"]["folded, all taps"]))
    wrapper = compare_wrapper(options)
    heads = {"seconds": {**seconds, "folded_kernels()": fold_seconds}}
    write_report(options, machine, heads=heads, wrapper=wrapper)


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = make_parser(__doc__)
    parser.add_argument("--scale", type=int, default=4, choices=(1, 2, 3, 4))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=48, help="side of the LR patches")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument(
        "--repeats",
        type=int,
        default=15,
        help="rounds of the head's tables; the wrapper's has more",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16: by autocast",
    )
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="this process's processor time: steadier where other work runs",
    )
    parser.add_argument("--quick", action="store_true", help="a short run: batch 2, 3 rounds")
    options = parser.parse_args()
    if options.quick:
        options.batch = min(options.batch, 2)
        options.repeats = min(options.repeats, 3)
    require_at_least(parser, options, 1, "blocks", "batch", "patch", "threads", "repeats")
    if options.cpu_time and options.device.type != "cpu":
        parser.error(f"--cpu-time with --device {options.device}: only for the cpu")
    return options


def timed(options: argparse.Namespace, cases: Cases, repeats: int, calls: int = 1) -> Times:
    """Return the seconds of each case, round by round."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    return time_in_turn(cases, repeats, warm_up=2, calls=calls, clock=clock, device=options.device)


# --- the head


def time_heads(options: argparse.Namespace) -> dict[str, Times]:
    """Time steps and forwards with the plain and the folded head, with one and with all taps."""
    lr = random_batch(options, options.batch, options.patch)
    hr = random_batch(options, options.batch, options.patch * options.scale)
    steps: Cases = {}
    forwards: Cases = {}
    for taps in TAPS:
        for head in HEADS:
            net = build(options, fold=head == "folded", all_taps=taps == "all taps")
            steps[f"{head}, {taps}"] = training_step(options, net, lr, hr)
            forwards[f"{head}, {taps}"] = partial(forward, options, net.forward_taps, lr)
    step_times = timed(options, steps, options.repeats)
    with torch.inference_mode():
        forward_times = timed(options, forwards, options.repeats)
    return {"training step": step_times, "forward": forward_times}


def print_heads(seconds: dict[str, Times]) -> None:
    """Print the plain head beside the folded one, and all taps beside one."""
    print(f"\n{'median ms':26}{'plain':>10}{'folded':>10}{'plain / folded':>17}")
    for title, times in seconds.items():
        for taps in TAPS:
            plain = times[f"plain, {taps}"]
            folded = times[f"folded, {taps}"]
            print(
                f"{title + ', ' + taps:26}"
                f"{1000 * statistics.median(plain):10.2f}{1000 * statistics.median(folded):10.2f}"
                f"{median_ratio(plain, folded):17.2f}"
            )
        plain_ratio = median_ratio(times["plain, all taps"], times["plain, 1 tap"])
        folded_ratio = median_ratio(times["folded, all taps"], times["folded, 1 tap"])
        print(f"{'  all taps / 1 tap':26}{plain_ratio:10.2f}{folded_ratio:10.2f}")


def time_fold(options: argparse.Namespace) -> Times:
    """Time the fold of the head alone, with and without the way back."""
    head = head_of(build(options, fold=True, all_taps=True))
    cases: Cases = {"forward": head.folded_kernels, "with backward": partial(fold_and_back, head)}
    return timed(options, cases, 5 * options.repeats)


def print_fold(times: Times, step_seconds: float) -> None:
    """Print the fold's time, and its share of a training step with all taps."""
    for name, seconds in times.items():
        median = statistics.median(seconds)
        share = f"{median / step_seconds:.1%} of the step with all taps"
        print(f"{'folded_kernels(), ' + name:36}{1000 * median:10.2f}   {share}")


def fold_and_back(head: DeconvHead) -> None:
    """Fold the head, and follow the gradient back to its parameters."""
    kernel, bias_kernel = head.folded_kernels()
    (kernel.sum() + bias_kernel.sum()).backward()


def training_step(
    options: argparse.Namespace, net: ElasticWrapper, lr: Tensor, hr: Tensor
) -> Callable[[], None]:
    """Return what does one training step of a network."""
    objective = ElasticObjective(net, F.l1_loss, psd_weight=0.1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward(options, objective, lr, hr).total.backward()
        optimizer.step()

    return step


# --- the wrapper


def compare_wrapper(options: argparse.Namespace) -> dict[str, Any]:
    """Time the wrapper beside an nn.Sequential of the same modules, and print the table."""
    net = build(options, fold=True, all_taps=True)
    assert net.stem is not None
    bare = nn.Sequential(net.stem, *net.blocks, net.head)
    columns = f"{'ratio':>8}{'lower':>8}{'upper':>8}{'ms':>9}{'us more':>9}"
    print(f"\n{'wrapper / nn.Sequential':44}{columns}   (lower, upper: quartiles)")
    measured: dict[str, Any] = {}
    for batch, patch in ((SMALL_BATCH, SMALL_PATCH), (options.batch, options.patch)):
        lr = random_batch(options, batch, patch)
        is_small = (batch, patch) == (SMALL_BATCH, SMALL_PATCH)
        repeats = options.repeats * (20 if is_small else 3)
        calls = SMALL_CALLS if is_small else 1
        size = f"batch {batch} of {patch}x{patch}"

        forwards: Cases = {
            "wrapper": partial(forward, options, net, lr),
            "sequential": partial(forward, options, bare, lr),
        }
        with torch.inference_mode():
            times = timed(options, forwards, repeats, calls)
        measured[f"{size}, forward"] = wrapper_row(f"{size}, forward", times)

        both_ways: Cases = {
            "wrapper": partial(forward_and_backward, options, net, lr),
            "sequential": partial(forward_and_backward, options, bare, lr),
        }
        times = timed(options, both_ways, repeats, calls)
        name = f"{size}, forward and backward"
        measured[name] = wrapper_row(name, times)
    return measured


def wrapper_row(name: str, times: Times) -> dict[str, Any]:
    """Print one line of the wrapper's table, and return its numbers."""
    ratios = [a / b for a, b in zip(times["wrapper"], times["sequential"], strict=True)]
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    median = statistics.median(times["sequential"])
    microseconds_more = 1e6 * (middle - 1) * median
    print(
        f"{name:44}{middle:8.3f}{lower:8.3f}{upper:8.3f}"
        f"{1000 * median:9.2f}{microseconds_more:9.0f}"
    )
    return {"seconds": times, "ratio": middle, "quartiles": [lower, upper]}


# --- networks and batches


def build(options: argparse.Namespace, *, fold: bool, all_taps: bool) -> ElasticWrapper:
    """Return a network; only the head differs, as the blocks' folded shuffle stays on."""
    taps = None if all_taps else (options.blocks,)
    net = asrn(options.scale, options.blocks, taps=taps)
    head_of(net).fold = fold
    return net.to(options.device, memory_format=memory_format(options))  # pyright: ignore[reportCallIssue]


def head_of(net: ElasticWrapper) -> DeconvHead:
    """Return ASRN's head."""
    assert isinstance(net.head, DeconvHead)
    return net.head


def forward(options: argparse.Namespace, net: Callable[..., Any], *inputs: Tensor) -> Any:
    """Run a network or an objective."""
    # Autocast begins anew each time: it keeps the weights' casts as long as it lasts.
    is_bfloat16 = options.precision == "bfloat16"
    with torch.autocast(options.device.type, dtype=torch.bfloat16, enabled=is_bfloat16):
        return net(*inputs)


def forward_and_backward(options: argparse.Namespace, net: Callable[..., Any], lr: Tensor) -> None:
    """Run a network and follow the gradient back."""
    forward(options, net, lr).sum().backward()


def random_batch(options: argparse.Namespace, batch: int, side: int) -> Tensor:
    """Return images of shape (batch, 3, side, side)."""
    images = torch.rand(batch, 3, side, side, device=options.device)
    return images.to(memory_format=memory_format(options))


def memory_format(options: argparse.Namespace) -> torch.memory_format:
    """Return the layout of images and weights."""
    return torch.channels_last if options.channels_last else torch.contiguous_format


if __name__ == "__main__":
    main()
