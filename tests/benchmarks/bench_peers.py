"""ASRN beside other small networks for super-resolution: ms an image, on a CPU or a GPU.

    python tests/benchmarks/bench_peers.py [--size 320x180] [--dtypes float32 bfloat16]
    [--threads 2] [--rounds 15] [--device cuda] [--json FILE]

All enlarge one image four times, with random weights, by eager PyTorch, channels last (and in NCHW
with --layouts). In bfloat16 all of a network is in it (`net.bfloat16()`). The cases take turns,
round after round; times are medians over the rounds, ratios medians of the rounds' ratios to ASRN
at full depth. `IMDN` (Hui et al., "Lightweight image super-resolution with information
multi-distillation network", ACM MM 2019) and `Compact` (SRVGGNetCompact, 64 channels and 16
convolutions, of Wang et al., "Real-ESRGAN", ICCV workshops 2021) are written down below by their
papers; `SPAN` (Wan et al., "Swift parameter-free attention network", CVPR workshops 2024; 48
channels) comes from spandrel and is left out where that is not installed; EDSR-baseline is ours.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from functools import partial
from typing import NamedTuple

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
from elasticnet.sr import asrn, edsr

SCALE = 4
OURS = "ASRN, depth 5"
LAYOUTS = {"channels-last": torch.channels_last, "NCHW": torch.contiguous_format}


class Case(NamedTuple):
    """What is timed.

    Attributes:
        network: Its name.
        dtype: Of weights and image.
        layout: Of weights and image.
    """

    network: str
    dtype: str
    layout: str


class DistillationBlock(nn.Module):
    """IMDN's block: four convolutions in a row, each keeping a quarter of its channels."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.kept = channels // 4
        rest = channels - self.kept
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(rest, channels, 3, padding=1)
        self.third = nn.Conv2d(rest, channels, 3, padding=1)
        self.fourth = nn.Conv2d(rest, self.kept, 3, padding=1)
        self.squeeze = nn.Conv2d(channels, channels // 16, 1)
        self.excite = nn.Conv2d(channels // 16, channels, 1)
        self.fusion = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        kept: list[Tensor] = []
        rest = x
        for conv in (self.first, self.second, self.third):
            refined = F.leaky_relu(conv(rest), 0.05, inplace=True)
            kept.append(refined[:, : self.kept])
            rest = refined[:, self.kept :]
        joined = torch.cat([*kept, self.fourth(rest)], dim=1)
        deviation, mean = torch.std_mean(joined, dim=(2, 3), keepdim=True)
        weights = self.excite(F.relu(self.squeeze(deviation + mean))).sigmoid()
        return self.fusion(joined * weights) + x


class Imdn(nn.Module):
    """IMDN at x4: 715,176 parameters."""

    def __init__(self, channels: int = 64, num_blocks: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.ModuleList(DistillationBlock(channels) for _ in range(num_blocks))
        self.join = nn.Conv2d(channels * num_blocks, channels, 1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Conv2d(channels, 3 * SCALE**2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the image, four times as large."""
        first = self.stem(image)
        x = first
        outputs: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        joined = F.leaky_relu(self.join(torch.cat(outputs, dim=1)), 0.05, inplace=True)
        return F.pixel_shuffle(self.upsampler(self.last(joined) + first), SCALE)


class Compact(nn.Module):
    """SRVGGNetCompact: a row of convolutions and PReLUs, beside the image enlarged by nearest."""

    def __init__(self, channels: int = 64, num_convs: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.PReLU(channels)]
        for _ in range(num_convs):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.PReLU(channels)]
        layers.append(nn.Conv2d(channels, 3 * SCALE**2, 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """Return the image, four times as large."""
        enlarged = F.interpolate(image, scale_factor=SCALE, mode="nearest")
        return F.pixel_shuffle(self.body(image), SCALE) + enlarged


def networks() -> dict[str, nn.Module]:
    """Return what is timed, by name."""
    elastic = asrn(SCALE, skip="bicubic")
    found: dict[str, nn.Module] = {
        "ASRN, depth 1": elastic.truncate(1),
        OURS: elastic,
        "IMDN": Imdn(),
        "Compact": Compact(),
        "EDSR-baseline": edsr(SCALE),
    }
    try:
        from spandrel.architectures.SPAN import SPAN
    except ImportError:
        print("SPAN is left out: spandrel is not installed")
    else:
        found["SPAN"] = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=48, upscale=SCALE)
    return found


def number_of_parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def ready(network: nn.Module, case: Case, device: torch.device) -> nn.Module:
    """Return a copy of a network, in the layout and dtype of a case."""
    copied: nn.Module = deepcopy(network).eval()
    copied = copied.to(device=device, dtype=getattr(torch, case.dtype))
    return copied.to(memory_format=LAYOUTS[case.layout])  # pyright: ignore[reportCallIssue]


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--size", default="320x180", help="of the input, WIDTHxHEIGHT")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--layouts", nargs="+", choices=[*LAYOUTS], default=["channels-last"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "threads", "rounds")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    measure(options)


@torch.inference_mode()
def measure(options: argparse.Namespace) -> None:
    """Time all cases in turn."""
    device = torch.device(options.device)
    width, height = (int(side) for side in options.size.split("x"))
    found = networks()
    cases = [
        Case(name, dtype, layout)
        for name in found
        for dtype in options.dtypes
        for layout in options.layouts
    ]
    runs: dict[Case, partial[Tensor]] = {}
    for case in cases:
        network = ready(found[case.network], case, device)
        image = torch.rand(1, 3, height, width, device=device, dtype=getattr(torch, case.dtype))
        runs[case] = partial(network, image.to(memory_format=LAYOUTS[case.layout]))
    seconds = time_in_turn(runs, options.rounds, warm_up=2, device=device)

    medians = medians_ms(seconds)
    machine = machine_name(device)
    print(f"{machine}; {options.size} x{SCALE}; {options.rounds} rounds\n")
    lines = [["network", "parameters", "dtype", "layout", "ms", "times ASRN at depth 5"]]
    rows: list[dict[str, object]] = []
    for case in cases:
        ours = seconds[Case(OURS, case.dtype, case.layout)]
        row: dict[str, object] = {
            **case._asdict(),
            "parameters": number_of_parameters(found[case.network]),
            "ms": medians[case],
            "times_ours": median_ratio(seconds[case], ours),
        }
        rows.append(row)
        lines.append(
            [
                case.network,
                f"{row['parameters']:,}",
                case.dtype,
                case.layout,
                f"{row['ms']:.0f}",
                f"{row['times_ours']:.2f}",
            ]
        )
    print(table(lines))
    write_report(options, machine, rows=rows)


if __name__ == "__main__":
    main()
