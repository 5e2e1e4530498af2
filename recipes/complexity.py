"""Measure what networks cost here: parameters, multiply-accumulates (MACs), time and memory.

    python recipes/complexity.py passes    docs/results/complexity.json: one pass of ASRN at every
                                           depth, of 25 blocks, and of other networks; and MACs at
                                           the sizes that explain the FLOPs which the paper prints
    python recipes/complexity.py steps     docs/results/training-steps.json: one training step of 5,
                                           25 and 45 blocks, each with all activations kept and with
                                           those of the blocks computed again

Times are processor time of one thread, which other work on the machine disturbs least: each pass
takes so long on one idle core. Weights do not matter, and are random. recipes/results.py makes the
tables.
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported # noqa: F401

# isort: split
import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet._files import write_json
from elasticnet._modules.evaluating import evaluating
from elasticnet.card.counting import count_macs, count_parameters
from elasticnet.card.machine import machine_key
from elasticnet.loss_weights import normalised
from elasticnet.sr import asrn, edsr, rcan
from elasticnet.training.program import run_program

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAPER_SIDE = 1024  # Table 7 of the paper says that its FLOPs are at 1024 * 1024
FITTING_SIDE = 64  # of the LR image at which they come out
BLOCKS_OF_TABLE_7 = (5, 25)
# the training steps that are measured
BLOCKS_OF_STEPS = (5, 25, 45)
SCALE_OF_STEPS = 4
BATCH_SIZE = 16
PATCH_SIZE = 48  # LR pixels a side


# --- networks of the field that the library does not have


def srcnn() -> nn.Module:
    """Return SRCNN 9-5-5, on the luma of an image that is enlarged already.

    Source: Dong et al., "Image super-resolution using deep convolutional networks", TPAMI 2016,
    whose 57,184 weights are the 57K of the paper's Table 1.
    """
    return nn.Sequential(
        nn.Conv2d(1, 64, kernel_size=9, padding=4),
        nn.ReLU(),
        nn.Conv2d(64, 32, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.Conv2d(32, 1, kernel_size=5, padding=2),
    )


def fsrcnn(scale: int) -> nn.Module:
    """Return FSRCNN (d = 56, s = 12, m = 4), on the luma of the LR image.

    Source: Dong et al., "Accelerating the super-resolution convolutional neural network", ECCV
    2016: feature extraction, shrinking, four mapping layers, expanding, and a deconvolution of 9x9;
    12,464 weights without biases and the slopes of the PReLU.

    Args:
        scale: How many times as long each side becomes.
    """
    layers: list[nn.Module] = [nn.Conv2d(1, 56, kernel_size=5, padding=2), nn.PReLU(56)]
    layers += [nn.Conv2d(56, 12, kernel_size=1), nn.PReLU(12)]
    for _ in range(4):
        layers += [nn.Conv2d(12, 12, kernel_size=3, padding=1), nn.PReLU(12)]
    layers += [nn.Conv2d(12, 56, kernel_size=1), nn.PReLU(56)]
    enlarge = nn.ConvTranspose2d(
        56, 1, kernel_size=9, stride=scale, padding=4, output_padding=scale - 1
    )
    return nn.Sequential(*layers, enlarge)


def vdsr() -> nn.Module:
    """Return VDSR without the sum with its input: 20 convolutions on an enlarged luma.

    Source: Kim et al., "Accurate image super-resolution using very deep convolutional networks",
    CVPR 2016.
    """
    layers: list[nn.Module] = [nn.Conv2d(1, 64, kernel_size=3, padding=1, bias=False), nn.ReLU()]
    for _ in range(18):
        layers += [nn.Conv2d(64, 64, kernel_size=3, padding=1, bias=False), nn.ReLU()]
    layers.append(nn.Conv2d(64, 1, kernel_size=3, padding=1, bias=False))
    return nn.Sequential(*layers)


# --- one pass


class Measured(NamedTuple):
    """A network at one depth, and what it is run on.

    Attributes:
        label: In the table.
        net: The network.
        depth: How many of its blocks run.
        example: Its input, (1, c, h, w).
    """

    label: str
    net: ElasticWrapper
    depth: int
    example: Tensor


def contenders(scale: int, side: int) -> list[Measured]:
    """Return the networks of the table, with random weights.

    Args:
        scale: How many times as long each side becomes.
        side: Of the square output, in pixels.
    """
    lr_side = side // scale
    lr = torch.rand(1, 3, lr_side, lr_side)
    ours = asrn(scale)
    found: list[Measured] = []
    for depth in ours.taps:
        label = "ASRN, 1 block" if depth == 1 else f"ASRN, {depth} blocks"
        found.append(Measured(label, ours, depth, lr))
    plain = asrn(scale, fold=False)
    found.append(Measured("ASRN, 5 blocks, plain head", plain, 5, lr))
    found.append(Measured("ASRN, 25 blocks", asrn(scale, num_blocks=25), 25, lr))
    baseline = edsr(scale, num_blocks=16, channels=64)
    found.append(Measured("EDSR-baseline", baseline, 16, lr))
    large = rcan(scale)
    found.append(Measured("RCAN", large, large.taps[-1], lr))
    luma = lr[:, :1]
    enlarged_luma = torch.rand(1, 1, lr_side * scale, lr_side * scale)
    found.append(Measured("FSRCNN", as_elastic(fsrcnn(scale)), 1, luma))
    found.append(Measured("SRCNN", as_elastic(srcnn()), 1, enlarged_luma))
    found.append(Measured("VDSR", as_elastic(vdsr()), 1, enlarged_luma))
    return found


def as_elastic(net: nn.Module) -> ElasticWrapper:
    """Return a net as the only block of an elastic one."""
    return ElasticWrapper([net], nn.Identity())


def cost_rows(networks: Sequence[Measured], repeats: int) -> list[dict[str, Any]]:
    """Return parameters, MACs and milliseconds of each network.

    Args:
        networks: At their depths.
        repeats: Passes timed, after the one that counts and warms up.
    """
    rows: list[dict[str, Any]] = []
    for network in networks:
        show(f"counting {network.label}")
        rows.append(
            {
                "network": network.label,
                "parameters": count_parameters(network.net, network.depth),
                "macs": count_macs(network.net, network.example, network.depth),
            }
        )
    # The networks take turns, so that a busy moment of the machine does not fall on one alone.
    times_by_network: list[list[float]] = [[] for _ in networks]  # in milliseconds
    for round_number in range(repeats):
        show(f"timing, round {round_number + 1} of {repeats}")
        for times, network in zip(times_by_network, networks, strict=True):
            times.append(milliseconds_of_pass(network))
    for row, times in zip(rows, times_by_network, strict=True):
        row["ms"] = statistics.median(times)
        row["ms_range"] = [min(times), max(times)]
    return rows


def milliseconds_of_pass(network: Measured) -> float:
    """Return the processor time of one pass."""
    with evaluating(network.net), torch.no_grad():
        return milliseconds(lambda: network.net(network.example, depth=network.depth))


def milliseconds(function: Callable[[], object]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    function()
    return 1000 * (time.process_time() - start)


def explaining_counts() -> list[dict[str, Any]]:
    """Return the MACs of ASRN at the size that Table 7 names, and at the one that explains it.

    Each with the plain head, as the paper has it, and with the folded one.
    """
    rows: list[dict[str, Any]] = []
    for scale in (2, 3, 4):
        for blocks in BLOCKS_OF_TABLE_7:
            for lr_side in (PAPER_SIDE // scale, FITTING_SIDE):
                # On the meta device nothing is computed, and the counts are the same.
                example = torch.empty(1, 3, lr_side, lr_side, device="meta")
                for fold in (False, True):
                    net = asrn(scale, num_blocks=blocks, fold=fold).to("meta")
                    rows.append(
                        {
                            "scale": scale,
                            "blocks": blocks,
                            "lr_side": lr_side,
                            "fold": fold,
                            "macs": count_macs(net, example, blocks),
                        }
                    )
    return rows


def measure_passes(options: argparse.Namespace) -> None:
    """Write docs/results/complexity.json, or the file of --out."""
    torch.set_num_threads(1)
    networks = contenders(options.scale, options.side)
    record = {
        "machine": machine_key("cpu", torch.float32, threads=1),
        "settings": {
            "scale": options.scale,
            "output_side": options.side,
            "repeats": options.repeats,
        },
        "rows": cost_rows(networks, options.repeats),
        "explaining": explaining_counts(),
    }
    out = options.out or RESULTS / "complexity.json"
    write_json(out, record)
    show(f"written: {out}")


# --- one training step


def training_step(blocks: int, checkpoint_blocks: bool, repeats: int) -> dict[str, Any]:
    """Return the time and the memory of one training step of ASRN x4, with all its taps.

    It has to run in a process of its own, whose largest size is what the system remembers.

    Args:
        blocks: Of the network.
        checkpoint_blocks: Whether activations of blocks are computed again in the backward pass.
        repeats: Steps timed, after one to warm up.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scale = SCALE_OF_STEPS
    net = asrn(scale, num_blocks=blocks, checkpoint_blocks=checkpoint_blocks)
    objective = ElasticObjective(
        net, task_loss=nn.L1Loss(), psd_weight=8e-5, tap_weights=normalised(net.taps)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    lr = torch.rand(BATCH_SIZE, 3, PATCH_SIZE, PATCH_SIZE)
    hr = torch.rand(BATCH_SIZE, 3, scale * PATCH_SIZE, scale * PATCH_SIZE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective(lr, hr).total.backward()
        optimizer.step()

    before = largest_size()
    step()
    times = [milliseconds(step) for _ in range(repeats)]
    return {
        "blocks": blocks,
        "checkpoint_blocks": checkpoint_blocks,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "ms": statistics.median(times),
        "bytes": largest_size() - before,
    }


def largest_size() -> int:
    """Return the largest size in bytes that this process has had."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return largest  # macOS counts bytes
    return 1024 * largest  # Linux counts units of 1024 bytes


def measure_steps(options: argparse.Namespace) -> None:
    """Write docs/results/training-steps.json, or the file of --out."""
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    for blocks in options.blocks:
        for checkpoint_blocks in (False, True):
            activations = "computed again" if checkpoint_blocks else "kept"
            show(f"{blocks} blocks, activations {activations}")
            with context.Pool(1) as process:
                arguments = (blocks, checkpoint_blocks, options.repeats)
                rows.append(process.apply(training_step, arguments))
    record = {
        "machine": machine_key("cpu", torch.float32, threads=1),
        "settings": {
            "scale": SCALE_OF_STEPS,
            "batch_size": BATCH_SIZE,
            "patch_size": PATCH_SIZE,
            "repeats": options.repeats,
        },
        "rows": rows,
    }
    out = options.out or RESULTS / "training-steps.json"
    write_json(out, record)
    show(f"written: {out}")


# --- the command


def show(line: str) -> None:
    """Say what is done."""
    print(line, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="passes|steps")
    passes = commands.add_parser("passes", help="one pass of each network")
    passes.add_argument("--scale", type=int, choices=(2, 3, 4), default=4)
    passes.add_argument(
        "--side", type=int, default=PAPER_SIDE, help="of the square output, in pixels"
    )
    passes.set_defaults(measure=measure_passes)
    steps = commands.add_parser("steps", help="one training step of deep networks")
    steps.add_argument("--blocks", type=int, nargs="+", default=BLOCKS_OF_STEPS, metavar="N")
    steps.set_defaults(measure=measure_steps)
    for command in (passes, steps):
        command.add_argument("--repeats", type=int, default=3, help="times of each; default: 3")
        command.add_argument("--out", type=Path, metavar="FILE", help="default: docs/results/")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: expected at least 1")
    return options


def main(options: argparse.Namespace) -> None:
    """Measure what the command line asks for.

    Args:
        options: Of the command line; `measure` is the function of the command.
    """
    options.measure(options)


if __name__ == "__main__":
    run_program(main, parse)
