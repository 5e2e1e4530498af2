"""ASRN's speed on a CPU at each depth: PyTorch eager and compiled, and ONNX Runtime.

    python tests/benchmarks/bench_cpu.py [--size 320x180] [--threads 2] [--repeats 9] [--json FILE]

One image of this size is enlarged, in float32 and bfloat16. Every way runs the same folded network
(head and channel shuffle as single convolutions), and its multiply-accumulates are counted as
folded, so that folding does not flatter the rates.

The rates are set beside the fastest matrix product that PyTorch does here in that precision: by
torch.mm, or by a 1x1 convolution, which another library computes (on AMD processors it is twice as
fast in float32). All cases take turns, round after round. Times are medians over the rounds,
fractions and shares medians of the rounds' ratios. The last column is the largest difference from
the float32 network.

Below stand variations of eager: the layers as written, images in NCHW, tiles whose features fit the
cache. ONNX Runtime needs elastic-depth[export].
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from harness import (
    machine_name,
    make_parser,
    median_ratio,
    require_at_least,
    time_in_turn,
    write_report,
)
from torch import Tensor
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor
from tqdm import tqdm

from elasticnet import ElasticWrapper
from elasticnet.card.counting import count_macs
from elasticnet.export import export, plain_copy, require, runner
from elasticnet.memory import keep_freed_memory
from elasticnet.sr import asrn
from elasticnet.sr.inference.tiling import upscale_array
from elasticnet.sr.inference.upscale_plan import plan_upscale

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WAYS = ("eager", "compiled", "onnx")
# Of eager, at the deepest depth; a tile's side in pixels stands at the end.
VARIATIONS = ("plain head, shuffle kept", "NCHW", "tiles of 64", "tiles of 128")
PRODUCTS = ("torch.mm", "1x1 convolution")  # ways to multiply matrices
PRODUCT_SIDES = (256, 512, 1024)  # of the square matrix
PRODUCT_ROWS = 4096  # of the other matrix
HEADINGS = ("", "depth", "ms", "GMAC/s", "of peak", "of deepest", "difference")


class Run(NamedTuple):
    """The network at one depth, run in one way."""

    way: str
    precision: str
    depth: int


class Product(NamedTuple):
    """A matrix product of one size, computed in one way."""

    way: str
    precision: str
    side: int


Case = Run | Product


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", default="320x180", help="of the input, WIDTHxHEIGHT")
    parser.add_argument("--scale", type=int, default=4, choices=(2, 3, 4))
    parser.add_argument("--skip", choices=("bicubic",), help="the network with this skip")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9, help="rounds; two more warm up")
    parser.add_argument(
        "--keep-memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="call keep_freed_memory() first, as the command does",
    )
    options = parser.parse_args()
    require_at_least(parser, options, 1, "threads", "repeats")
    width, height = (int(side) for side in options.size.split("x"))
    require("onnx")
    if options.keep_memory:
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    inductor.freezing = True  # weights as constants of the compiled code
    # All networks share one forward. After eight versions of it PyTorch would compile no more, and
    # the deepest networks in bfloat16 would be timed as eager.
    dynamo.cache_size_limit = 64
    net = asrn(options.scale, skip=options.skip).eval()
    lr = torch.rand(1, 3, height, width)

    machine = machine_name()
    print(f"{machine}; {options.size} enlarged {options.scale} times, {options.repeats} rounds")
    with torch.inference_mode():
        products = product_cases()
        runs, differences = network_cases(net, lr)
        cases: dict[Case, Callable[[], Any]] = {**products, **runs}
        seconds = time_in_turn(cases, options.repeats, warm_up=2)

    rates = {
        (precision, way): product_rates(seconds, way, precision)
        for precision in PRECISIONS
        for way in PRODUCTS
    }
    product_gmacs: dict[str, float] = {}
    for (precision, way), each in rates.items():
        product_gmacs[f"{precision}, {way}"] = statistics.median(each) / 1e9
        print(f"{precision} matrix product by {way}: {statistics.median(each) / 1e9:.0f} GMAC/s")
    peaks = {precision: best_of_each_round(rates, precision) for precision in PRECISIONS}
    macs = {depth: count_macs(plain_copy(net, fold=True), lr, depth) for depth in net.taps}
    rows = [row_of(run, seconds, macs, peaks, differences[run]) for run in runs]
    print_table(rows)
    write_report(options, machine, macs=macs, product_gmacs_per_second=product_gmacs, rows=rows)


def row_of(
    run: Run,
    seconds: dict[Case, list[float]],
    macs: dict[int, int],
    peaks: dict[str, list[float]],
    difference: float,
) -> dict[str, Any]:
    """Return one line of the table; docs/speed.md is made of these."""
    times = seconds[run]
    deepest = seconds[run._replace(depth=max(macs))]
    rates = [macs[run.depth] / each for each in times]
    return {
        "way": run.way,
        "precision": run.precision,
        "depth": run.depth,
        "ms": 1e3 * statistics.median(times),
        "gmacs_per_second": statistics.median(rates) / 1e9,
        "of_peak": median_ratio(rates, peaks[run.precision]),
        "of_deepest": median_ratio(times, deepest),
        "difference": difference,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the lines under their headings."""
    print("\n{:36}{:>6}{:>9}{:>9}{:>9}{:>12}{:>12}".format(*HEADINGS))
    for row in rows:
        print(
            f"{row['way'] + ', ' + row['precision']:36}{row['depth']:6}{row['ms']:9.1f}"
            f"{row['gmacs_per_second']:9.0f}{row['of_peak']:9.1%}"
            f"{row['of_deepest']:12.1%}{row['difference']:12.1e}"
        )


# --- matrix products


def product_cases() -> dict[Product, Callable[[], Any]]:
    """Return every matrix product that is timed."""
    cases: dict[Product, Callable[[], Any]] = {}
    for precision, dtype in PRECISIONS.items():
        for side in PRODUCT_SIDES:
            tall = torch.randn(PRODUCT_ROWS, side, dtype=dtype)
            square = torch.randn(side, side, dtype=dtype)
            # The same numbers as an image of `side` channels, 64 pixels high, channels last.
            image = tall.view(1, 64, -1, side).permute(0, 3, 1, 2)
            kernel = square.view(side, side, 1, 1)
            cases[Product("torch.mm", precision, side)] = partial(torch.mm, tall, square)
            cases[Product("1x1 convolution", precision, side)] = partial(F.conv2d, image, kernel)
    return cases


def product_rates(seconds: dict[Case, list[float]], way: str, precision: str) -> list[float]:
    """Return the multiply-accumulates a second of the best size, round by round."""
    rates_by_side = [
        [PRODUCT_ROWS * side**2 / each for each in seconds[Product(way, precision, side)]]
        for side in PRODUCT_SIDES
    ]
    return [max(rates) for rates in zip(*rates_by_side, strict=True)]


def best_of_each_round(rates: dict[tuple[str, str], list[float]], precision: str) -> list[float]:
    """Return the rates of the best way to multiply matrices, round by round."""
    rates_by_way = [rates[precision, way] for way in PRODUCTS]
    return [max(of_one_round) for of_one_round in zip(*rates_by_way, strict=True)]


# --- the network


def network_cases(
    net: ElasticWrapper, lr: Tensor
) -> tuple[dict[Run, Callable[[], Any]], dict[Run, float]]:
    """Return every way to run the network, and its largest difference from the float32 network."""
    deepest = net.taps[-1]
    runs: list[Run] = []
    for precision in PRECISIONS:
        for way in WAYS:
            if way == "onnx" and precision == "bfloat16":
                continue  # ONNX Runtime has no such kernels for CPUs
            runs += [Run(way, precision, depth) for depth in net.taps]
    for precision in PRECISIONS:
        runs += [Run(variation, precision, deepest) for variation in VARIATIONS]

    cases: dict[Run, Callable[[], Any]] = {}
    differences: dict[Run, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in tqdm(runs, desc="preparing", leave=False, disable=None):
            cases[run] = network_case(run, net, lr, Path(folder))
            output = torch.as_tensor(cases[run]())
            if run.way.startswith("tiles"):
                output = output.permute(2, 0, 1).unsqueeze(0)  # (h, w, 3) to (1, 3, h, w)
            difference = output.float() - net(lr, depth=run.depth)
            differences[run] = difference.abs().max().item()
    return cases, differences


def network_case(run: Run, net: ElasticWrapper, lr: Tensor, folder: Path) -> Callable[[], Any]:
    """Return what runs the network once in this way."""
    if run.way == "onnx":
        file = export(net, folder / f"{run.depth}.onnx", depth=run.depth)
        return partial(runner(file.path), lr)
    dtype = PRECISIONS[run.precision]
    cut = net.truncate(run.depth).to(dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if run.way.startswith("tiles"):
        tile = int(run.way.split()[-1])
        image = lr[0].permute(1, 2, 0).numpy()
        return partial(upscale_array, image, plan_upscale(cut, depth=run.depth, tile=tile))
    image = lr.to(dtype)
    if run.way == "NCHW":
        # weights, too: PyTorch goes by either of them
        cut = cut.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        return partial(plain_copy(cut, fold=True), image)
    image = image.to(memory_format=torch.channels_last)
    if run.way == "plain head, shuffle kept":
        return partial(plain_copy(cut, fold=False), image)
    plain = plain_copy(cut, fold=True)
    if run.way == "compiled":
        return partial(torch.compile(plain), image)
    return partial(plain, image)


if __name__ == "__main__":
    main()
