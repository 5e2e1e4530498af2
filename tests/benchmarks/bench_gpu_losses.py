"""The losses of a short training on a GPU beside those on the CPU, in float32.

    python tests/benchmarks/bench_gpu_losses.py [--data DIR] [--steps 50] [--json FILE] [--quick]

The same training (the recipe's preset best at x4) runs on the CPU, on the GPU step by step and as
one CUDA graph. Convolutions and products may not round to TF32 in these; one more graph may, to
show by how much that changes the losses. Each loss must be within 1e-3 of the CPU's, as a part of
it, or else the exit status is 1. --reference takes the CPU's losses from a report of this script.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from gpu_training import (
    FULL,
    QUICK,
    Features,
    Sizes,
    add_data_options,
    make_gpu_parser,
    make_training,
    some_pairs,
    write_checked,
)

from elasticnet.sr.data import PairSet

TOLERANCE = 1e-3
QUICK_STEPS = 4
CPU = torch.device("cpu")
PLAIN = Features(channels_last=True)
GRAPH = Features(channels_last=True, graph=True)


def main() -> None:
    """Train, compare, print, write JSON."""
    parser = make_gpu_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--reference", type=Path, help="a report of this script: the CPU's losses")
    options = parser.parse_args()
    sizes = QUICK if options.quick else FULL
    steps = QUICK_STEPS if options.quick else options.steps
    pairs = some_pairs(options)

    def losses_on(device: torch.device, features: Features, tf32: bool = False) -> list[float]:
        allow_tf32(tf32)
        return trained_losses(pairs, steps, device, features, sizes)

    if options.reference is None:
        reference = losses_on(CPU, PLAIN)
    else:
        reference = json.loads(options.reference.read_text(encoding="utf-8"))["cpu"][:steps]
    runs = {
        "step by step": losses_on(options.device, PLAIN),
        "graph": losses_on(options.device, GRAPH),
    }
    with_tf32 = losses_on(options.device, GRAPH, tf32=True)

    print(f"largest difference from the CPU's losses over {steps} steps, as a part of them:")
    differences = {name: largest_difference(run, reference) for name, run in runs.items()}
    for name, difference in differences.items():
        print(f"  {name}: {difference:.2g}")
    tf32_difference = largest_difference(with_tf32, reference)
    print(f"  graph, with TF32: {tf32_difference:.2g} (not checked)")
    write_checked(
        options,
        ok=max(differences.values()) <= TOLERANCE,
        differences=differences,
        tf32_difference=tf32_difference,
        cpu=reference,
        runs=runs,
    )


def allow_tf32(allowed: bool) -> None:
    """Let CUDA round the factors of products and convolutions in float32 to TF32, or forbid it."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def trained_losses(
    pairs: PairSet, steps: int, device: torch.device, features: Features, sizes: Sizes
) -> list[float]:
    """Return the loss of each step of a new training."""
    training = make_training(pairs, sizes, device, features, max_unread=steps)
    for step in range(steps):
        training.steps.do(step)
    return training.read_losses()


def largest_difference(losses: list[float], reference: list[float]) -> float:
    """Return the largest difference of two losses of a step, as a part of the second."""
    pairs = zip(losses, reference, strict=True)
    return max(abs(loss - expected) / abs(expected) for loss, expected in pairs)


if __name__ == "__main__":
    main()
