"""Other ways to run ASRN's block on an image, beside the present one.

    python tests/benchmarks/bench_block.py [--size 320x180] [--dtypes float32 bfloat16]
    [--rounds 15] [--json FILE]

One block at 96 channels, channels last, without gradient, in one thread. Time is the processor
time of the thread, so that other work on the machine hardly counts; all ways take turns. Times are
medians over the rounds, ratios medians of the rounds' ratios to the block as it is. Every way is
compared with the block first.

- whole rows given to oneDNN or not: what `conv1x1` of elasticnet.sr.models.pointwise is for
- strips: the block on a few rows at a time, whose features fit the processor's cache, with four
  rows of their neighbours to each side
- groups of 32 channels, of which 8 are zero: whole vectors for the narrow convolutions
- four narrow expansions in the place of a wide one that is then cut
- ReLU inside the convolution, by an operator that torch.compile uses
- all groups copied at once
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from harness import (
    machine_name,
    make_parser,
    median_ratio,
    medians_ms,
    require_at_least,
    time_in_turn,
    write_report,
)
from torch import Tensor, nn

from elasticnet._tables import table
from elasticnet.memory import keep_freed_memory
from elasticnet.sr.models.asrn_blocks import NUM_GROUPS, MultiScaleBlock
from elasticnet.sr.models.pointwise import conv1x1

CHANNELS, WIDE = 96, 32
NARROW = CHANNELS // NUM_GROUPS
REACH = 4  # rows to each side that four 3x3 convolutions in a row see
NOW = "as it is"
STRIPS = (8, 20, 45, 90)
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}

Conv = Callable[[Tensor, Tensor], Tensor]


class Weights:
    """The weights of a block, in the forms that the other ways take.

    Args:
        block: The block, in eval mode.
    """

    def __init__(self, block: MultiScaleBlock) -> None:
        plain = block.folded()  # its last convolution holds the shuffle
        assert isinstance(plain.fusion, nn.Conv2d)
        self.expand = plain.expand.weight
        self.narrow = [conv.get_parameter("weight") for conv in plain.groups]
        self.fusion = plain.fusion.weight
        self.expand_wide = torch.cat([padded(each, 0) for each in self.expand.chunk(NUM_GROUPS)])
        self.narrow_wide = [padded(padded(each, 0), 1) for each in self.narrow]
        by_group = self.fusion.chunk(NUM_GROUPS, dim=1)
        self.fusion_wide = torch.cat([padded(each, 1) for each in by_group], dim=1)


def padded(weight: Tensor, dim: int) -> Tensor:
    """Return a kernel with zeros up to `WIDE` inputs (dim 1) or outputs (dim 0)."""
    missing = WIDE - weight.shape[dim]
    margins = [0, 0] * (weight.ndim - 1 - dim) + [0, missing]
    return F.pad(weight, margins)


def chain(x: Tensor, groups: Sequence[Tensor], narrow: Sequence[Tensor], fusion: Tensor) -> Tensor:
    """Return what follows the expansion; the groups are changed in place."""
    outputs: list[Tensor] = []
    for group, weight in zip(groups, narrow, strict=True):
        if outputs:
            group.add_(outputs[-1])
        outputs.append(F.relu_(F.conv2d(group, weight, padding=1)))
    return conv1x1(torch.cat(outputs, dim=1), fusion).add_(x)


def in_strips(block: MultiScaleBlock, rows: int, x: Tensor) -> Tensor:
    """Run a block on strips of so many rows."""
    height = x.shape[2]
    result = torch.empty_like(x)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        outer_top, outer_bottom = max(top - REACH, 0), min(bottom + REACH, height)
        strip = block(x[:, :, outer_top:outer_bottom])
        result[:, :, top:bottom] = strip[:, :, top - outer_top : bottom - outer_top]
    return result


def with_wide_groups(weights: Weights, x: Tensor) -> Tensor:
    """Run a block whose groups have 32 channels."""
    groups = conv1x1(x, weights.expand_wide).chunk(NUM_GROUPS, dim=1)
    copies = [group.clone() for group in groups]
    return chain(x, copies, weights.narrow_wide, weights.fusion_wide)


def with_narrow_expansions(weights: Weights, x: Tensor) -> Tensor:
    """Run a block that makes each group by a convolution of its own."""
    groups = [conv1x1(x, weight) for weight in weights.expand.chunk(NUM_GROUPS)]
    return chain(x, groups, weights.narrow, weights.fusion)


def with_one_copy(weights: Weights, x: Tensor) -> Tensor:
    """Run a block that copies all groups at once."""
    expanded = conv1x1(x, weights.expand).permute(0, 2, 3, 1)  # (b, h, w, channels)
    groups = expanded.unflatten(-1, (NUM_GROUPS, NARROW)).movedim(-2, 0).contiguous()
    return chain(x, list(groups.movedim(-1, 2)), weights.narrow, weights.fusion)


def with_relu_inside(weights: Weights, x: Tensor) -> Tensor:
    """Run a block whose narrow convolutions end in the ReLU."""
    outputs: list[Tensor] = []
    groups = conv1x1(x, weights.expand).chunk(NUM_GROUPS, dim=1)
    for part, weight in zip(groups, weights.narrow, strict=True):
        group = part.clone()
        if outputs:
            group.add_(outputs[-1])
        one, relu = [1, 1], "relu"
        outputs.append(
            torch.ops.mkldnn._convolution_pointwise(
                group, weight, None, one, one, one, 1, relu, [], ""
            )
        )
    return conv1x1(torch.cat(outputs, dim=1), weights.fusion).add_(x)


def without_rows(weights: Weights, x: Tensor) -> Tensor:
    """Run a block whose 1x1 convolutions are left to PyTorch's choice of library."""
    groups = F.conv2d(x, weights.expand).chunk(NUM_GROUPS, dim=1)
    outputs: list[Tensor] = []
    for part, weight in zip(groups, weights.narrow, strict=True):
        group = part.clone()
        if outputs:
            group.add_(outputs[-1])
        outputs.append(F.relu_(F.conv2d(group, weight, padding=1)))
    return F.conv2d(torch.cat(outputs, dim=1), weights.fusion).add_(x)


def ways_of(block: MultiScaleBlock) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return all ways to run a block, by name."""
    weights = Weights(block)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        NOW: block,
        "rows not given to oneDNN": partial(without_rows, weights),
        "groups of 32 channels": partial(with_wide_groups, weights),
        "four narrow expansions": partial(with_narrow_expansions, weights),
        "ReLU inside the convolution": partial(with_relu_inside, weights),
        "all groups copied at once": partial(with_one_copy, weights),
    }
    for rows in STRIPS:
        ways[f"strips of {rows} rows"] = partial(in_strips, block, rows)
    return ways


def main() -> None:
    """Measure, print the tables, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", default="320x180", help="of the features, WIDTHxHEIGHT")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    require_at_least(parser, options, 1, "rounds")
    torch.set_num_threads(1)
    keep_freed_memory()
    measure(options)


@torch.inference_mode()
def measure(options: argparse.Namespace) -> None:
    """Time all ways in turn, after comparing them with the block."""
    width, height = (int(side) for side in options.size.split("x"))
    machine = machine_name()
    lines = [["way", "dtype", "ms", "times the block as it is"]]
    rows: list[dict[str, object]] = []
    for name in options.dtypes:
        dtype = getattr(torch, name)
        torch.manual_seed(0)
        block = MultiScaleBlock(CHANNELS).eval()
        block = block.to(dtype)
        block.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        x = torch.randn(1, CHANNELS, height, width, dtype=dtype)
        x = x.to(memory_format=torch.channels_last)
        ways = ways_of(block)
        expected = block(x)
        for way, run in ways.items():
            difference = (run(x) - expected).abs().max().item()
            if difference > TOLERANCE[name]:
                raise RuntimeError(f"{way} in {name} differs by {difference}")
        runs = {way: partial(run, x) for way, run in ways.items()}
        seconds = time_in_turn(runs, options.rounds, clock=time.thread_time)
        for way, ms in medians_ms(seconds).items():
            ratio = median_ratio(seconds[way], seconds[NOW])
            rows.append({"way": way, "dtype": name, "ms": ms, "of_now": ratio})
            lines.append([way, name, f"{ms:.1f}", f"{ratio:.2f}"])
    print(f"{machine}; {options.size}; {options.rounds} rounds\n\n{table(lines)}")
    write_report(options, machine, rows=rows)


if __name__ == "__main__":
    main()
