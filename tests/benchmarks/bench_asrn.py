"""What ASRN's folded head, its taps and the wrapper cost: milliseconds per training step and per
forward.

    python tests/benchmarks/bench_asrn.py [--precision bfloat16] [--device cuda] [--quick] [--json
    FILE]

All variants of a table are timed in turn, round after round, forwards and backwards through the
list; times are medians over the rounds, ratios medians of the rounds' ratios. A training step is
zero_grad, all losses (L1, and distillation where there is more than one tap), backward and fused
Adam. `prepare()` is the fold itself, paid once a pass. The last table sets the wrapper beside an
nn.Sequential of the very same modules, also at a size where overhead would show.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.sr.models.asrn import asrn
from elasticnet.sr.models.heads import DeconvHead

Cases = dict[str, Callable[[], Any]]
SMALL = (1, 24)  # batch and patch at which a wrapper's overhead would show


def main() -> None:
    """Measure, print the tables, write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.repeats = min(options.batch, 2), min(options.repeats, 3)
    for name in ("blocks", "batch", "patch", "threads", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: expected at least 1")
    if options.cpu_time and options.device.type != "cpu":
        parser.error(f"--cpu-time with --device {options.device}: only for the cpu")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    settings = {
        name: str(value) for name, value in vars(options).items() if name not in ("json", "quick")
    }
    machine = {
        "torch": torch.__version__,
        "processor": processor(),
        "accelerator": accelerator(options.device),
    }
    print(", ".join(f"{name} {value}" for name, value in {**machine, **settings}.items() if value))
    report: dict[str, Any] = {"machine": machine, "settings": settings}
    report["heads"] = compare_heads(options)
    report["wrapper"] = compare_wrapper(options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def compare_heads(options: argparse.Namespace) -> dict[str, Any]:
    """Time steps and forwards with the plain and the folded head, with one and with all taps; and
    prepare().
    """
    lr = batch_of(options, options.batch, options.patch)
    hr = batch_of(options, options.batch, options.patch * options.scale)
    steps: Cases = {}
    forwards: Cases = {}
    nets = {
        (fold, taps): build(options, fold, taps)
        for taps in (None, (options.blocks,))
        for fold in (False, True)
    }
    for (fold, taps), net in nets.items():
        name = f"{'folded' if fold else 'plain'}, {'1 tap' if taps else 'all taps'}"
        steps[name] = training_step(options, net, lr, hr)
        forwards[name] = partial(forward, options, net.forward_taps, lr)
    head = nets[True, None].head
    assert isinstance(head, DeconvHead)
    folds: Cases = {"forward": head.prepare, "with backward": lambda: fold_and_back(head)}

    measured: dict[str, Any] = {}
    print(f"\n{'median ms':26}{'plain':>10}{'folded':>10}{'plain / folded':>17}")
    for title, cases in {"training step": steps, "forward": forwards}.items():
        with torch.inference_mode(title == "forward"):
            times = measured[title] = rounds(options, cases, options.repeats)
        for taps in ("1 tap", "all taps"):
            plain, folded = times[f"plain, {taps}"], times[f"folded, {taps}"]
            row = f"{1000 * statistics.median(plain):10.2f}{1000 * statistics.median(folded):10.2f}"
            print(f"{title + ', ' + taps:26}{row}{ratio(plain, folded):17.2f}")
        several = [
            ratio(times[f"{head}, all taps"], times[f"{head}, 1 tap"])
            for head in ("plain", "folded")
        ]
        print(f"{'  all taps / 1 tap':26}{several[0]:10.2f}{several[1]:10.2f}")
    times = measured["prepare()"] = rounds(options, folds, 5 * options.repeats)
    whole = statistics.median(measured["training step"]["folded, all taps"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"{'prepare(), ' + name:36}{1000 * median:10.2f}   {median / whole:.1%} of the step with all taps"
        )
    return {"seconds": measured}


def compare_wrapper(options: argparse.Namespace) -> dict[str, Any]:
    """Time the wrapper beside an nn.Sequential of the same modules, on the given batch and on a
    very small one.
    """
    net = build(options, fold=True, taps=None)
    bare = nn.Sequential(net.stem, *net.blocks, net.head)
    measured: dict[str, Any] = {}
    columns = f"{'ratio':>8}{'lower':>8}{'upper':>8}{'ms':>9}{'us more':>9}"
    print(f"\n{'wrapper / nn.Sequential':44}{columns}   (lower, upper: quartiles)")
    for batch, patch in (SMALL, (options.batch, options.patch)):
        lr = batch_of(options, batch, patch)
        for title, run in {
            "forward": forward,
            "forward and backward": forward_and_backward,
        }.items():
            cases: Cases = {
                "wrapper": partial(run, options, net, lr),
                "sequential": partial(run, options, bare, lr),
            }
            with torch.inference_mode(title == "forward"):
                # Each measurement runs several times where a single one would be too short for the
                # clock.
                inner = 5 if (batch, patch) == SMALL else 1
                times = rounds(options, cases, options.repeats * (20 if inner > 1 else 3), inner)
            ratios = [a / b for a, b in zip(times["wrapper"], times["sequential"], strict=True)]
            lower, middle, upper = statistics.quantiles(ratios, n=4)
            name = f"batch {batch} of {patch}x{patch}, {title}"
            median = statistics.median(times["sequential"])
            row = f"{middle:8.3f}{lower:8.3f}{upper:8.3f}{1000 * median:9.2f}{1e6 * (middle - 1) * median:9.0f}"
            print(f"{name:44}{row}")
            measured[name] = {"seconds": times, "ratio": middle, "quartiles": [lower, upper]}
    return measured


def rounds(
    options: argparse.Namespace, cases: Cases, repeats: int, inner: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each case, round by round; the order turns round every time, the first
    two warm up.
    """
    clock = time.process_time if options.cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(2 + repeats):
        for name in list(cases)[:: 1 if number % 2 else -1]:
            synchronize(options.device)
            start = clock()
            for _ in range(inner):
                cases[name]()
            synchronize(options.device)
            if number > 1:
                seconds[name].append((clock() - start) / inner)
    return seconds


def build(options: argparse.Namespace, fold: bool, taps: tuple[int, ...] | None) -> ElasticWrapper:
    """Only the head differs: the blocks' folded shuffle stays on."""
    net = asrn(options.scale, options.blocks, taps=taps)
    assert isinstance(net.head, DeconvHead)
    net.head.fold = fold
    return net.to(options.device, memory_format=memory_format(options))  # pyright: ignore[reportCallIssue]


def training_step(
    options: argparse.Namespace, net: ElasticWrapper, lr: Tensor, hr: Tensor
) -> Callable[[], None]:
    objective = ElasticObjective(net, F.l1_loss, psd_weight=0.1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        forward(options, objective, lr, hr).total.backward()
        optimizer.step()

    return step


def forward(options: argparse.Namespace, net: Callable[..., Any], *inputs: Tensor) -> Any:
    """Autocast begins anew each time: it keeps the weights' casts for as long as it lasts."""
    with torch.autocast(
        options.device.type, dtype=torch.bfloat16, enabled=options.precision == "bfloat16"
    ):
        return net(*inputs)


def forward_and_backward(options: argparse.Namespace, net: Callable[..., Any], lr: Tensor) -> None:
    forward(options, net, lr).sum().backward()


def fold_and_back(head: DeconvHead) -> None:
    kernel, bias_kernel = head.folded_kernels()
    (kernel.sum() + bias_kernel.sum()).backward()


def batch_of(options: argparse.Namespace, batch: int, side: int) -> Tensor:
    return torch.rand(batch, 3, side, side, device=options.device).to(
        memory_format=memory_format(options)
    )


def memory_format(options: argparse.Namespace) -> torch.memory_format:
    return torch.channels_last if options.channels_last else torch.contiguous_format


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processor() -> str:
    """The processor's name, by Linux's list or by what Python knows."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def accelerator(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


if __name__ == "__main__":
    main()
