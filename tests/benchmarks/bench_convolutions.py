"""Other ways to compute the convolutions of a training step, beside the present ones.

    python tests/benchmarks/bench_convolutions.py [--rounds 31] [--json FILE]

The sizes are those of ASRN at batch 16 and patches of 48x48: 96 channels, four groups of 24. One
thread, bfloat16, channels-last. Time is that of the thread, so that other work on the machine
hardly counts; all ways take turns, and the lower quartile is shown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import machine_name, make_parser, require_at_least, time_in_turn, write_report
from torch import Tensor

from elasticnet._tables import table

BATCH, SIDE, CHANNELS, NARROW = 16, 48, 96, 24
PIXELS = BATCH * SIDE * SIDE
ONLY_INPUT = [True, False, False]  # which gradients convolution_backward returns
ONLY_WEIGHT = [False, True, False]
Way = Callable[[], object]


def random_images(channels: int, channels_last: bool = True) -> Tensor:
    """Return features (b, channels, h, w) in bfloat16."""
    features = torch.randn(BATCH, channels, SIDE, SIDE).bfloat16()
    return features.to(memory_format=torch.channels_last) if channels_last else features


def random_kernel(channels_out: int, channels_in: int, size: int) -> Tensor:
    """Return a kernel (out, in, size, size) in bfloat16, channels-last."""
    kernel = torch.randn(channels_out, channels_in, size, size).bfloat16()
    return kernel.to(memory_format=torch.channels_last)


def gradient_of(gradient: Tensor, x: Tensor, kernel: Tensor, which: list[bool]) -> Tensor:
    """Return the gradient of a convolution by its input or by its kernel."""
    padding = kernel.shape[-1] // 2
    groups = x.shape[1] // kernel.shape[1]
    returned = torch.ops.aten.convolution_backward(
        gradient, x, kernel, None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], groups, which
    )
    return returned[which.index(True)]


def narrow_ways() -> dict[str, Way]:
    """Return ways to compute the 3x3 convolutions of 24 channels."""
    x, gradient, kernel = random_images(NARROW), random_images(NARROW), random_kernel(24, 24, 3)
    wide, wide_gradient = random_images(CHANNELS), random_images(CHANNELS)
    grouped = random_kernel(CHANNELS, NARROW, 3)
    padded, padded_kernel = random_images(32), random_kernel(32, 32, 3)
    plain, plain_kernel = random_images(NARROW, channels_last=False), kernel.contiguous()
    twice, twice_kernel = random_images(48), random_kernel(48, 48, 3)
    columns = F.unfold(x.float(), 3, padding=1).bfloat16()  # (b, 216, h w)
    rows = columns.transpose(1, 2).reshape(PIXELS, 216).contiguous()
    flat_gradient = gradient.permute(0, 2, 3, 1).reshape(PIXELS, NARROW)
    return {
        "conv3x3 of 24 channels": lambda: F.conv2d(x, kernel, padding=1),
        "  padded to 32 channels": lambda: F.conv2d(padded, padded_kernel, padding=1),
        "  in contiguous memory": lambda: F.conv2d(plain, plain_kernel, padding=1),
        "  of 48 channels": lambda: F.conv2d(twice, twice_kernel, padding=1),
        "  four in one grouped conv": lambda: F.conv2d(wide, grouped, padding=1, groups=4),
        "its weight gradient": lambda: gradient_of(gradient, x, kernel, ONLY_WEIGHT),
        "  four in one grouped conv ": lambda: gradient_of(
            wide_gradient, wide, grouped, ONLY_WEIGHT
        ),
        "  as a product, columns made before": lambda: flat_gradient.t() @ rows,
    }


def pointwise_ways() -> dict[str, Way]:
    """Return ways to compute the 1x1 convolutions of 96 channels."""
    x, gradient = random_images(CHANNELS), random_images(CHANNELS)
    kernel = random_kernel(CHANNELS, CHANNELS, 1)
    matrix = kernel.view(CHANNELS, CHANNELS)
    flat = x.permute(0, 2, 3, 1).reshape(PIXELS, CHANNELS)
    flat_gradient = gradient.permute(0, 2, 3, 1).reshape(PIXELS, CHANNELS)
    return {
        "conv1x1 of 96 channels": lambda: F.conv2d(x, kernel),
        "  as a product": lambda: flat @ matrix.t(),
        "its input gradient": lambda: gradient_of(gradient, x, kernel, ONLY_INPUT),
        "  as a product ": lambda: flat_gradient @ matrix,
        "its weight gradient ": lambda: gradient_of(gradient, x, kernel, ONLY_WEIGHT),
        "  as a product  ": lambda: flat_gradient.t() @ flat,
    }


def seam_ways() -> dict[str, Way]:
    """Return ways to do what stands between the convolutions."""
    wide, narrow = random_images(CHANNELS), random_images(NARROW)
    taps = [random_images(CHANNELS) for _ in range(5)]
    return {
        "a group copied, a link added to it": lambda: wide[:, :NARROW].clone().add_(narrow),
        "  added to the slice": lambda: wide[:, :NARROW] + narrow,
        "the features of five taps joined": lambda: torch.cat(taps),
    }


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    require_at_least(parser, options, 4, "rounds")
    return options


def main() -> None:
    """Print the table."""
    options = parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [["computed", "ms"]]
    milliseconds: dict[str, float] = {}
    for ways in (narrow_ways(), pointwise_ways(), seam_ways()):
        for name, seconds in time_in_turn(ways, options.rounds, clock=time.thread_time).items():
            quartile = sorted(seconds)[len(seconds) // 4]
            milliseconds[name] = 1000 * quartile
            rows.append([name, f"{1000 * quartile:.2f}"])
    machine = machine_name()
    print(f"{machine}; computed in bfloat16\n")
    print(table(rows))
    write_report(options, machine, milliseconds=milliseconds)


if __name__ == "__main__":
    main()
