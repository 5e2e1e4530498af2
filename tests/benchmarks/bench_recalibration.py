"""What one set of BatchNorm statistics for all depths costs, and what recalibration gives back.

    python tests/benchmarks/bench_recalibration.py

A small residual network with BatchNorm at the beginning of its shared head learns scikit-learn's
digits with deep supervision. Its test accuracy at every depth is printed as it is after the
training, after `torch.optim.swa_utils.update_bn`, and after `recalibrate`.
"""

from __future__ import annotations

import copy
import statistics

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet._tables import table
from elasticnet.loss_weights import normalised
from elasticnet.recalibration import recalibrate

NUM_BLOCKS = 4
CHANNELS = 24
NUM_TEST = 600
NUM_STEPS = 300
BATCH_SIZE = 64
SEEDS = (0, 1, 2)
COLUMNS = ("one set for all depths", "update_bn", "recalibrate")


class Residual(nn.Module):
    """Adds what two convolutions make of the features, so that they grow from block to block."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Digits:
    """The images (n, 1, 8, 8) in 0..1 and their digits (n,), in another order for each seed."""

    def __init__(self, seed: int) -> None:
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        x = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)[order]
        y = torch.tensor(labels)[order]
        self.x, self.y = x[NUM_TEST:], y[NUM_TEST:]
        self.test_x, self.test_y = x[:NUM_TEST], y[:NUM_TEST]


def train(digits: Digits, seed: int) -> ElasticWrapper:
    """Return a network after the training, in eval mode."""
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, 10),
    )
    blocks = [Residual() for _ in range(NUM_BLOCKS)]
    net = ElasticWrapper(blocks, head, nn.Conv2d(1, CHANNELS, 3, padding=1)).train()
    objective = ElasticObjective(
        net, F.cross_entropy, psd_weight=0, tap_weights=normalised(net.taps)
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(NUM_STEPS):
        chosen = torch.randint(len(digits.x), (BATCH_SIZE,))
        loss = objective(digits.x[chosen], digits.y[chosen]).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return net.eval()


@torch.no_grad()
def accuracies(net: ElasticWrapper, digits: Digits) -> list[float]:
    """Return the test accuracy of every depth, in percent."""
    predictions = net.eval().forward_taps(digits.test_x).predictions
    hits = [(each.argmax(1) == digits.test_y).float().mean().item() for each in predictions]
    return [100 * hit for hit in hits]


def measure(seed: int) -> dict[str, list[float]]:
    """Return the accuracies of every depth by column."""
    digits = Digits(seed)
    net = train(digits, seed)
    batches = digits.x.split(256)
    updated = copy.deepcopy(net)
    torch.optim.swa_utils.update_bn(batches, updated)
    recalibrated = copy.deepcopy(net)
    recalibrate(recalibrated, batches)
    nets = (net, updated, recalibrated)
    return {name: accuracies(each, digits) for name, each in zip(COLUMNS, nets, strict=True)}


def main() -> None:
    """Print the table: the mean over the seeds, with the lowest and the highest."""
    measured = [measure(seed) for seed in SEEDS]
    rows: list[list[str]] = []
    for index in range(NUM_BLOCKS):
        row = [str(index + 1)]
        for name in COLUMNS:
            values = [each[name][index] for each in measured]
            row.append(f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        rows.append(row)
    print(table([["depth", *COLUMNS], *rows]))


if __name__ == "__main__":
    main()
