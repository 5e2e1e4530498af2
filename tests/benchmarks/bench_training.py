"""Training iterations per second of ASRN with all taps, one feature switched on after the other
from the plain loop.

    python tests/benchmarks/bench_training.py [--device cuda] [--threads 2] [--data DIR] [--quick]
    [--json FILE]

The plain loop decodes PNG files for every patch in a DataLoader, runs every layer as written in
float32, contiguous, with Adam as it comes, and reads the loss at every step. Each row below adds
one feature; those "on top" are single options beside the last of them. All train on the same
samples from the same weights, so that the loss of the deepest tap at the last step agrees (with
sampled taps the training is another). Every row has a process of its own, as a training has: in a
shared one it would inherit the heap that the rows before left. They are timed in turn, round after
round, forwards and backwards through the list, `--group` steps between synchronisations. Times are
medians over the rounds, ratios medians of the rounds' ratios.

In doubt the plain loop is favoured: scikit-image's photographs have a seventh of the pixels of
DIV2K's, and on a CPU the loader's workers fill their queue while other rows run (on a GPU untimed
steps empty it first).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bench_asrn import accelerator, processor, ratio, synchronize
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from elasticnet import ElasticObjective
from elasticnet.loss_weights import normalised
from elasticnet.losses import LossMeter
from elasticnet.memory import keep_freed_memory
from elasticnet.sr.data import PairSet, find_pairs, pairs_from_arrays, scikit_image_photos
from elasticnet.sr.data.images import read_rgb
from elasticnet.sr.data.patches import PatchDataset, PatchSampler
from elasticnet.sr.models.asrn import asrn

IMAGES = 40
PREFETCH = 2  # batches per worker


@dataclass(frozen=True)
class Features:
    """What a row has switched on; nothing: the plain loop."""

    on_device: bool = False
    fold: bool = False
    channels_last: bool = False
    fused: bool = False
    bfloat16: bool = False
    sampled_taps: int | None = None
    compiled: bool = False
    ema: bool = False
    malloc: bool = False


STEPS: dict[str, dict[str, Any]] = {
    "plain loop": {},
    "+ patches cut on the device": {"on_device": True},
    "+ folded head": {"fold": True},
    "+ channels-last": {"channels_last": True},
    "+ fused Adam, LossMeter": {"fused": True},
    "+ bfloat16 autocast": {"bfloat16": True},
}
ON_TOP: dict[str, dict[str, Any]] = {
    "2 sampled taps": {"sampled_taps": 2},
    "1 sampled tap": {"sampled_taps": 1},
    "EMA": {"ema": True},
    "torch.compile": {"compiled": True},
    "glibc malloc": {"malloc": True},
}
PLAIN, *_, LAST = STEPS


def main() -> None:
    """Measure, print the table, write JSON where asked."""
    options = parse()
    pairs = some_pairs(options)
    if options.serve:
        serve(options, table()[options.serve], pairs)
        return

    settings = {
        name: str(value)
        for name, value in vars(options).items()
        if name not in ("json", "quick", "serve")
    }
    machine = {
        "torch": torch.__version__,
        "processor": processor(),
        "accelerator": accelerator(options.device),
    }
    print(", ".join(f"{name} {value}" for name, value in {**machine, **settings}.items() if value))
    print(
        f"{pairs}, on average "
        f"{pairs.lr_sizes.prod(1).mean() * pairs.scale**2 / 1e6:.2f} HR megapixels"
    )
    skipped = missing(options)
    servers = {
        name: start_server(name, features)
        for name, features in table().items()
        if name not in skipped
    }
    try:
        seconds, losses = rounds(servers, options.repeats)
    finally:
        for server in servers.values():
            server.communicate()  # closing its input ends it

    print_table(seconds, losses)
    for name, reason in skipped.items():
        print(f"{name}: left out, {reason}")
    if options.json:
        rates = {name: 1 / statistics.median(times) for name, times in seconds.items()}
        report = {
            "machine": machine,
            "settings": settings,
            "iterations_per_second": rates,
            "seconds": seconds,
        }
        report |= {"loss": losses, "skipped": skipped}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        help=f"take {IMAGES} images of this folder; default: scikit-image's photographs",
    )
    parser.add_argument("--scale", type=int, default=4, choices=(2, 3, 4))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=48, help="side of the LR patches")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="of the plain loop's DataLoader"
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="of torch in the training process",
    )
    parser.add_argument(
        "--group", type=int, help="steps between synchronisations; default 1 on a CPU, 50 on a GPU"
    )
    parser.add_argument("--repeats", type=int, default=15, help="rounds; two more warm up")
    parser.add_argument(
        "--cudnn-benchmark", action="store_true", help="let cuDNN try its kernels, for all rows"
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="with CUDA graphs where there is CUDA",
    )
    parser.add_argument(
        "--malloc",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a row in which glibc keeps freed memory",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short run: batch 2 of 24x24, 3 rounds, not compiled"
    )
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    # be the process of this row
    parser.add_argument("--serve", choices=table(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: no CUDA device is available")
    if options.group is None:
        options.group = 1 if options.device.type == "cpu" else 50
    if options.quick:
        options.batch, options.patch, options.repeats, options.compile = 2, 24, 3, False
    for name in ("blocks", "batch", "patch", "workers", "threads", "group", "repeats"):
        if getattr(options, name) < (least := int(name != "workers")):
            parser.error(f"--{name} {getattr(options, name)}: expected at least {least}")
    return options


def missing(options: argparse.Namespace) -> dict[str, str]:
    """The rows that cannot be measured here, and why."""
    cuda = options.device.type == "cuda"
    compilers = [
        name
        for name in (os.environ.get("CXX"), "c++", "g++", "clang++")
        if name and shutil.which(name)
    ]
    reasons = {
        "EMA": {"timm is not installed": importlib.util.find_spec("timm") is None},
        "torch.compile": {
            "not asked for": not options.compile,
            "no C++ compiler was found (CXX, c++, g++, clang++)": not compilers,
            "triton is not installed": cuda and importlib.util.find_spec("triton") is None,
        },
        "glibc malloc": {
            "not asked for": not options.malloc,
            f"it concerns the memory of a CPU, not of {options.device}": options.device.type
            != "cpu",
            "this Python does not run on glibc": platform.libc_ver()[0] != "glibc",
        },
    }
    found = {
        row: [reason for reason, holds in each.items() if holds] for row, each in reasons.items()
    }
    return {row: each[0] for row, each in found.items() if each}


# --- the training


def table() -> dict[str, Features]:
    """The features of every row: those of STEPS add up, each of ON_TOP is switched on beside all of
    them.
    """
    rows: dict[str, Features] = {}
    for name, switched in STEPS.items():
        rows[name] = replace(rows[list(rows)[-1]] if rows else Features(), **switched)
    return rows | {name: replace(rows[LAST], **switched) for name, switched in ON_TOP.items()}


def training(
    options: argparse.Namespace, features: Features, pairs: PairSet, folder: Path
) -> Callable[[int], float]:
    """Return what trains so many steps on, and returns the deepest tap's loss; all rows start
    alike.
    """
    torch.manual_seed(0)
    device, cuda = options.device, options.device.type == "cuda"
    memory_format = torch.channels_last if features.channels_last else torch.contiguous_format
    net = asrn(options.scale, options.blocks, fold=features.fold)
    net.to(device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    objective = ElasticObjective(
        net,
        F.l1_loss,
        psd_weight=4e-4,
        tap_weights=normalised(net.taps),
        sampled_taps=features.sampled_taps,
    )
    call: Callable[..., Any] = objective
    if features.compiled:
        call = torch.compile(objective, mode="reduce-overhead" if cuda else None)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True if features.fused else None)
    average = None
    if features.ema:
        from timm.utils.model_ema import ModelEmaV3

        average = ModelEmaV3(net, decay=0.999, use_warmup=True)
    batches = (
        cut_batches(options, pairs, memory_format)
        if features.on_device
        else loaded_batches(options, PngPairs(pairs, folder))
    )
    meter = LossMeter()

    def steps(count: int) -> float:
        loss = torch.zeros(())
        for _ in range(count):
            step, lr, hr = next(batches)
            optimizer.zero_grad(set_to_none=True)
            # what the graphs left for the step before is given up here
            if features.compiled and cuda:
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(device.type, torch.bfloat16, enabled=features.bfloat16):
                terms = call(lr, hr, step=step)
            terms.total.backward()
            optimizer.step()
            if average is not None:
                average.update(net, step + 1)
            if features.fused:
                meter.add(terms)  # copies: a CUDA graph's next replay writes over its outputs
            else:
                terms.total.item()
            loss = terms.per_depth[options.blocks]
        if features.fused:  # a line of the log for each group
            if (bad := meter.first_not_finite()) is not None:
                raise FloatingPointError(f"the loss is not finite at step {step - count + 1 + bad}")
            meter.means()
        synchronize(device)
        return loss.item()

    return steps


def cut_batches(
    options: argparse.Namespace, pairs: PairSet, memory_format: torch.memory_format
) -> Iterator[tuple[int, Tensor, Tensor]]:
    sampler = PatchSampler(
        pairs, options.patch, options.batch, device=options.device, memory_format=memory_format
    )
    step = 0
    while True:
        yield step, *sampler.batch(step)
        step += 1


def loaded_batches(
    options: argparse.Namespace, files: PngPairs
) -> Iterator[tuple[int, Tensor, Tensor]]:
    loader = DataLoader(
        PatchDataset(files, options.patch),
        options.batch,
        num_workers=options.workers,
        pin_memory=options.device.type == "cuda",
        prefetch_factor=PREFETCH if options.workers else None,
    )
    for step, (lr, hr) in enumerate(loader):
        yield (
            step,
            lr.to(options.device, non_blocking=True),
            hr.to(options.device, non_blocking=True),
        )


class PngPairs(PairSet):
    """The same pairs as a plain loader has them: the file is decoded for every patch."""

    def __init__(self, pairs: PairSet, folder: Path) -> None:
        super().__init__(
            pairs.names, pairs.scale, pairs.lr_sizes, pairs.lr_pixels[:0], pairs.hr_pixels[:0]
        )
        self.folder = folder
        for index in range(len(pairs)):
            Image.fromarray(pairs.lr(index)).save(folder / f"{index}_lr.png")
            Image.fromarray(pairs.hr(index)).save(folder / f"{index}_hr.png")

    def lr(self, index: int) -> np.ndarray:
        return np.asarray(Image.open(self.folder / f"{index}_lr.png"))

    def hr(self, index: int) -> np.ndarray:
        return np.asarray(Image.open(self.folder / f"{index}_hr.png"))


def some_pairs(options: argparse.Namespace) -> PairSet:
    if options.data is None:
        images = scikit_image_photos()
    else:
        found = find_pairs(options.data, options.scale)
        chosen = found[:: max(1, len(found) // IMAGES)][:IMAGES]
        images = {pair.name: read_rgb(pair.hr) for pair in chosen}
    least = options.patch * options.scale
    large = {name: image for name, image in images.items() if min(image.shape[:2]) >= least}
    return pairs_from_arrays(large, options.scale)


# --- a process for each row


def start_server(name: str, features: Features) -> subprocess.Popen[str]:
    """Start this script again for one row; it trains and times a group of steps for every line that
    it reads.
    """
    command = [sys.executable, __file__, *sys.argv[1:], "--serve", name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve(options: argparse.Namespace, features: Features, pairs: PairSet) -> None:
    if features.malloc:
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    with tempfile.TemporaryDirectory() as folder:
        steps = training(options, features, pairs, Path(folder))
        for _ in sys.stdin:
            if options.device.type == "cuda":  # empties the queue of the loader's workers
                steps(max(1, PREFETCH * options.workers))
            synchronize(options.device)
            start = time.perf_counter()
            loss = steps(options.group)
            print(json.dumps([(time.perf_counter() - start) / options.group, loss]), flush=True)


def rounds(
    servers: dict[str, subprocess.Popen[str]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return each row's seconds a step, round by round, and its last loss; the first two rounds
    warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    losses: dict[str, float] = {}
    for number in range(2 + repeats):
        for name, server in list(servers.items())[:: 1 if number % 2 else -1]:
            assert server.stdin is not None
            assert server.stdout is not None
            print(file=server.stdin, flush=True)
            answer = server.stdout.readline()
            if not answer:
                raise RuntimeError(
                    f"the process of the row {name!r} ended with exit code {server.wait()}"
                )
            taken, losses[name] = json.loads(answer)
            if number > 1:
                seconds[name].append(taken)
    return seconds, losses


def print_table(seconds: dict[str, list[float]], losses: dict[str, float]) -> None:
    print(f"\n{'':30}{'it/s':>8}{'ms':>9}{'x plain':>9}{'x before':>10}{'loss':>9}")
    before = PLAIN
    for name, times in seconds.items():
        median = statistics.median(times)
        label = name if name in STEPS else f"  on top: {name}"
        row = f"{label:30}{1 / median:8.2f}{1000 * median:9.1f}"
        print(
            f"{row}{ratio(seconds[PLAIN], times):9.2f}{ratio(seconds[before], times):10.2f}"
            f"{losses[name]:9.4f}"
        )
        before = name if name in STEPS else LAST


if __name__ == "__main__":
    main()
