"""What the wrapper's block loop costs beside the same loop written by hand.

    python tests/benchmarks/bench_wrapper.py [--blocks 40] [--channels 16] [--size 8]
    [--calls 20] [--repeats 41] [--json FILE]

Each block is a small residual convolution, so that what Python does between the blocks shows. The
rows take turns; the table gives medians of the processor's time, which other programs disturb less
than the clock's, and the median of the rounds' differences for each block.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from harness import machine_name, make_parser, require_at_least, time_in_turn, write_report
from torch import Tensor, nn

from elasticnet import ElasticWrapper

BY_HAND = "by hand"


class Residual(nn.Module):
    """One convolution on a branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def main() -> None:
    """Print the table, and write it to --json."""
    parser = make_parser(__doc__)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--size", type=int, default=8, help="height and width of the features")
    parser.add_argument("--calls", type=int, default=20, help="passes in one measurement")
    parser.add_argument("--repeats", type=int, default=41, help="measurements that count")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "blocks", "channels", "size", "calls", "repeats")

    torch.set_num_threads(1)
    torch.manual_seed(0)
    blocks = [Residual(options.channels) for _ in range(options.blocks)]
    head = nn.Conv2d(options.channels, 3, 1)
    net = ElasticWrapper(blocks, head).eval()
    x = torch.rand(1, options.channels, options.size, options.size)

    def by_hand() -> Tensor:
        features = x
        for block in net.blocks:
            features = block(features)
        return net.head(features)

    def taps_by_hand() -> tuple[list[Tensor], list[Tensor]]:
        features = x
        features_of_all: list[Tensor] = []  # kept, as self-distillation needs them
        predictions: list[Tensor] = []
        for block in net.blocks:
            features = block(features)
            features_of_all.append(features)
            predictions.append(net.head(features))
        return features_of_all, predictions

    cases: dict[str, Callable[[], object]] = {
        BY_HAND: by_hand,
        "net(x)": lambda: net(x),
        "all taps, by hand": taps_by_hand,
        "net(x, taps=net.taps)": lambda: net(x, taps=net.taps),
    }
    with torch.no_grad():
        seconds = time_in_turn(
            cases, options.repeats, warm_up=3, calls=options.calls, clock=time.process_time
        )

    print(f"{machine_name()}, {options.blocks} blocks\n")
    print("| pass | ms | µs a block more than by hand | % more |")
    print("| --- | ---: | ---: | ---: |")
    names = list(cases)
    for name, reference in zip(names, [names[0], names[0], names[2], names[2]], strict=True):
        pairs = list(zip(seconds[name], seconds[reference], strict=True))
        difference = statistics.median(own - hand for own, hand in pairs)
        share = statistics.median(own / hand - 1 for own, hand in pairs)
        milliseconds = 1000 * statistics.median(seconds[name])
        microseconds = 1e6 * difference / options.blocks
        print(f"| {name} | {milliseconds:.3f} | {microseconds:.2f} | {100 * share:.1f} |")
    write_report(options, machine_name(), seconds=seconds)


if __name__ == "__main__":
    main()
