"""Training iterations per second of ASRN with all taps, one feature after the other switched on.

    python tests/benchmarks/bench_training.py [--device cuda] [--threads 2] [--data DIR] [--quick]
    [--json FILE]

The plain loop decodes PNG files for every patch in a DataLoader, runs every layer as written in
float32, contiguous, with Adam as it comes, and reads the loss at every step. Each row below adds
one feature; those "on top" are single options beside the last of them. All train on the same
samples from the same weights, so that the loss of the deepest tap at the last step agrees (with
sampled taps the training is another).

Every row has a process of its own, as a training has: in a shared one it would inherit the heap
that the rows before left. They are timed in turn, round after round, forwards and backwards through
the list, `--group` steps between synchronisations. Times are medians over the rounds, ratios
medians of the rounds' ratios.

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
from harness import (
    machine_name,
    make_parser,
    median_ratio,
    require_at_least,
    settings_of,
    synchronize,
    write_report,
)
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.loss_weights import normalised
from elasticnet.memory import keep_freed_memory
from elasticnet.sr.data import PairSet, find_pairs, pairs_from_arrays, scikit_image_photos
from elasticnet.sr.data.patches import PatchDataset, PatchSampler
from elasticnet.sr.data.read_rgb import read_rgb
from elasticnet.sr.models.asrn import asrn
from elasticnet.sr.models.heads import DeconvHead
from elasticnet.sr.models.pieces import subpixels_of_image
from elasticnet.training.loss_meter import LossMeter

NUM_IMAGES = 40
PREFETCHED_BATCHES = 2  # per worker of the plain loop
WARM_UP_ROUNDS = 2


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
    on_grid: bool = False


PLAIN = "plain loop"
LAST = "+ bfloat16 autocast"
# Each of these is added to those above it.
STEPS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "+ patches cut on the device": {"on_device": True},
    "+ folded head": {"fold": True},
    "+ channels-last": {"channels_last": True},
    "+ fused Adam, LossMeter": {"fused": True},
    LAST: {"bfloat16": True},
}
# Each of these is switched on alone, beside all of STEPS.
ON_TOP: dict[str, dict[str, Any]] = {
    "2 sampled taps": {"sampled_taps": 2},
    "1 sampled tap": {"sampled_taps": 1},
    "EMA": {"ema": True},
    "torch.compile": {"compiled": True},
    "glibc malloc": {"malloc": True},
    "predictions on the LR grid": {"on_grid": True},
}


def main() -> None:
    """Measure, print the table, write JSON if asked."""
    options = parse()
    pairs = some_pairs(options)
    if options.serve:
        serve(options, rows()[options.serve], pairs)
        return

    machine = machine_name(options.device)
    megapixels = pairs.lr_sizes.prod(axis=1).mean() * pairs.scale**2 / 1e6
    print(machine)
    print(", ".join(f"{name} {value}" for name, value in settings_of(options).items()))
    print(f"{pairs}, on average {megapixels:.2f} HR megapixels")
    skipped = left_out(options)
    servers = {row: start_server(row) for row in rows() if row not in skipped}
    try:
        seconds, losses = rounds(servers, options.repeats)
    finally:
        for server in servers.values():
            server.communicate()  # closing its input ends it

    print_table(seconds, losses)
    for name, reason in skipped.items():
        print(f"{name}: left out, {reason}")
    rates = {name: 1 / statistics.median(times) for name, times in seconds.items()}
    write_report(
        options,
        machine,
        iterations_per_second=rates,
        seconds=seconds,
        loss=losses,
        skipped=skipped,
    )


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        help=f"take {NUM_IMAGES} images of this folder; default: scikit-image's photographs",
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
    # be the process of this row
    parser.add_argument("--serve", choices=rows(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: no CUDA device is available")
    if options.group is None:
        options.group = 1 if options.device.type == "cpu" else 50
    if options.quick:
        options.batch = 2
        options.patch = 24
        options.repeats = 3
        options.compile = False
    require_at_least(parser, options, 0, "workers")
    require_at_least(parser, options, 1, "blocks", "batch", "patch", "threads", "group", "repeats")
    return options


def rows() -> dict[str, Features]:
    """Return the features of every row: those of STEPS add up, ON_TOP stands beside all of them."""
    found: dict[str, Features] = {}
    features = Features()
    for name, switched_on in STEPS.items():
        features = replace(features, **switched_on)
        found[name] = features
    for name, switched_on in ON_TOP.items():
        found[name] = replace(features, **switched_on)
    return found


def left_out(options: argparse.Namespace) -> dict[str, str]:
    """Return the rows that cannot be measured here, and why."""
    reasons = {
        "EMA": why_no_ema(),
        "torch.compile": why_not_compiled(options),
        "glibc malloc": why_no_malloc(options),
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def why_no_ema() -> str | None:
    """Return why there is no row with a moving average of the weights, or None."""
    if importlib.util.find_spec("timm") is None:
        return "timm is not installed"
    return None


def why_not_compiled(options: argparse.Namespace) -> str | None:
    """Return why there is no compiled row, or None."""
    if not options.compile:
        return "not asked for"
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    if not any(name and shutil.which(name) for name in compilers):
        return "no C++ compiler was found (CXX, c++, g++, clang++)"
    if options.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def why_no_malloc(options: argparse.Namespace) -> str | None:
    """Return why there is no row in which glibc keeps freed memory, or None."""
    if not options.malloc:
        return "not asked for"
    if options.device.type != "cpu":
        return f"it concerns the memory of a CPU, not of {options.device}"
    if platform.libc_ver()[0] != "glibc":
        return "this Python does not run on glibc"
    return None


# --- the training


class Training:
    """One row's network, optimiser and batches; all rows start alike."""

    def __init__(
        self, options: argparse.Namespace, features: Features, pairs: PairSet, folder: Path
    ) -> None:
        torch.manual_seed(0)
        self.options = options
        self.features = features
        layout = torch.channels_last if features.channels_last else torch.contiguous_format
        self.net = asrn(options.scale, options.blocks, fold=features.fold)
        self.net.to(options.device, memory_format=layout)  # pyright: ignore[reportCallIssue]
        assert isinstance(self.net.head, DeconvHead)
        self.net.head.subpixels_in_training = features.on_grid
        objective = ElasticObjective(
            self.net,
            F.l1_loss,
            psd_weight=4e-4,
            tap_weights=normalised(self.net.taps),
            sampled_taps=features.sampled_taps,
        )
        self.uses_cuda_graphs = features.compiled and options.device.type == "cuda"
        self.objective: Callable[..., Any] = objective
        if features.compiled:
            mode = "reduce-overhead" if self.uses_cuda_graphs else None
            self.objective = torch.compile(objective, mode=mode)
        fused = True if features.fused else None  # None: as Adam comes
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-4, fused=fused)
        self.average = moving_average(self.net) if features.ema else None
        self.meter = LossMeter()
        if features.on_device:
            self.batches = cut_batches(options, pairs, layout)
        else:
            self.batches = loaded_batches(options, PngPairs(pairs, folder))

    def steps(self, count: int) -> float:
        """Train so many steps on, and return the deepest tap's loss at the last of them."""
        loss = torch.zeros(())
        step = 0
        for _ in range(count):
            step, lr, hr = next(self.batches)
            loss = self._step(step, lr, hr)
        if self.features.fused:  # a line of the log for each group
            bad = self.meter.first_not_finite()
            if bad is not None:
                raise FloatingPointError(f"the loss is not finite at step {step - count + 1 + bad}")
            self.meter.means()
        synchronize(self.options.device)
        return loss.item()

    def _step(self, step: int, lr: Tensor, hr: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        if self.uses_cuda_graphs:
            # What the graphs left for the step before is given up here.
            torch.compiler.cudagraph_mark_step_begin()
        if self.features.on_grid:
            hr = subpixels_of_image(hr, self.options.scale)
        device_type = self.options.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.features.bfloat16):
            terms = self.objective(lr, hr, step=step)
        terms.total.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.net, step + 1)
        if self.features.fused:
            self.meter.add(terms)  # copies: a CUDA graph's next replay writes over its outputs
        else:
            terms.total.item()
        return terms.per_depth[self.options.blocks]


def moving_average(net: ElasticWrapper) -> Any:
    """Return timm's moving average of a network's weights."""
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(net, decay=0.999, use_warmup=True)


def cut_batches(
    options: argparse.Namespace, pairs: PairSet, memory_format: torch.memory_format
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield step, LR and HR, cut on the device."""
    sampler = PatchSampler(
        pairs, options.patch, options.batch, device=options.device, memory_format=memory_format
    )
    step = 0
    while True:
        lr, hr = sampler.batch(step)
        yield step, lr, hr
        step += 1


def loaded_batches(
    options: argparse.Namespace, files: PngPairs
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield step, LR and HR, decoded by the workers of a DataLoader."""
    loader = DataLoader(
        PatchDataset(files, options.patch),
        options.batch,
        num_workers=options.workers,
        pin_memory=options.device.type == "cuda",
        prefetch_factor=PREFETCHED_BATCHES if options.workers else None,
    )
    for step, (lr, hr) in enumerate(loader):
        lr = lr.to(options.device, non_blocking=True)
        hr = hr.to(options.device, non_blocking=True)
        yield step, lr, hr


class PngPairs(PairSet):
    """The same pairs as a plain loader has them: the file is decoded for every patch."""

    def __init__(self, pairs: PairSet, folder: Path) -> None:
        no_pixels = pairs.lr_pixels[:0]
        super().__init__(pairs.names, pairs.scale, pairs.lr_sizes, no_pixels, no_pixels)
        self.folder = folder
        for index in range(len(pairs)):
            Image.fromarray(pairs.lr(index)).save(folder / f"{index}_lr.png")
            Image.fromarray(pairs.hr(index)).save(folder / f"{index}_hr.png")

    def lr(self, index: int) -> np.ndarray:
        """Decode an LR image."""
        return np.asarray(Image.open(self.folder / f"{index}_lr.png"))

    def hr(self, index: int) -> np.ndarray:
        """Decode an HR image."""
        return np.asarray(Image.open(self.folder / f"{index}_hr.png"))


def some_pairs(options: argparse.Namespace) -> PairSet:
    """Return the pairs to train on, without images that are smaller than a patch."""
    if options.data is None:
        images = scikit_image_photos()
    else:
        found = find_pairs(options.data, options.scale)
        step = max(1, len(found) // NUM_IMAGES)
        images = {pair.name: read_rgb(pair.hr) for pair in found[::step][:NUM_IMAGES]}
    smallest_side = options.patch * options.scale
    large = {name: image for name, image in images.items() if min(image.shape[:2]) >= smallest_side}
    return pairs_from_arrays(large, options.scale)


# --- a process for each row


def start_server(row: str) -> subprocess.Popen[str]:
    """Start this script again for one row: for every line it reads, it times a group of steps."""
    command = [sys.executable, __file__, *sys.argv[1:], "--serve", row]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve(options: argparse.Namespace, features: Features, pairs: PairSet) -> None:
    """Be the process of one row; answer each line with [seconds of a step, loss] as JSON."""
    if features.malloc:
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    with tempfile.TemporaryDirectory() as folder:
        training = Training(options, features, pairs, Path(folder))
        for _ in sys.stdin:
            if options.device.type == "cuda":  # empties the queue of the loader's workers
                training.steps(max(1, PREFETCHED_BATCHES * options.workers))
            synchronize(options.device)
            start = time.perf_counter()
            loss = training.steps(options.group)
            seconds = (time.perf_counter() - start) / options.group
            print(json.dumps([seconds, loss]), flush=True)


def ask(row: str, server: subprocess.Popen[str]) -> tuple[float, float]:
    """Let a row's process train a group of steps; return the seconds of a step and the loss."""
    assert server.stdin is not None
    assert server.stdout is not None
    print(file=server.stdin, flush=True)
    answer = server.stdout.readline()
    if not answer:
        raise RuntimeError(f"the process of the row {row!r} ended with exit code {server.wait()}")
    seconds, loss = json.loads(answer)
    return seconds, loss


def rounds(
    servers: dict[str, subprocess.Popen[str]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return each row's seconds a step, round by round, and its last loss."""
    seconds: dict[str, list[float]] = {row: [] for row in servers}
    losses: dict[str, float] = {}
    for number in range(WARM_UP_ROUNDS + repeats):
        order = list(servers) if number % 2 else list(reversed(list(servers)))
        for row in order:
            taken, losses[row] = ask(row, servers[row])
            if number >= WARM_UP_ROUNDS:
                seconds[row].append(taken)
    return seconds, losses


def print_table(seconds: dict[str, list[float]], losses: dict[str, float]) -> None:
    """Print every row beside the plain loop and beside the row that it adds to."""
    print(f"\n{'':30}{'it/s':>8}{'ms':>9}{'x plain':>9}{'x before':>10}{'loss':>9}")
    before = PLAIN
    for row, times in seconds.items():
        median = statistics.median(times)
        label = row if row in STEPS else f"  on top: {row}"
        print(
            f"{label:30}{1 / median:8.2f}{1000 * median:9.1f}"
            f"{median_ratio(seconds[PLAIN], times):9.2f}"
            f"{median_ratio(seconds[before], times):10.2f}{losses[row]:9.4f}"
        )
        before = row if row in STEPS else LAST


if __name__ == "__main__":
    main()
