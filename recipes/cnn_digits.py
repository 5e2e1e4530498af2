"""What elastic depth costs a small convolutional network on handwritten digits, and why.

    python recipes/cnn_digits.py                          under a minute on a processor core
    python recipes/cnn_digits.py --steps 400              four times as long a training
    python recipes/cnn_digits.py --positions              the head sees positions, not their mean

Six residual blocks on the digits that scikit-learn carries. For each seed three networks are
trained on the same split and batches: the elastic one, supervised at every depth; the ordinary one,
supervised at its last block alone; and one of a single block. The options change one thing each
that may be the cause of what the elastic network loses. The run folder receives options.json,
log.jsonl, and the table (table.md, table.json).
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported # noqa: F401

# isort: split
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet._files import write_atomic, write_json
from elasticnet._tables import table
from elasticnet.loss_weights import deepest_share, equal, normalised
from elasticnet.recalibration import recalibrate
from elasticnet.training.learning_rate import cosine
from elasticnet.training.options import Above, AtLeast, OptionGroup, as_json, parse_options
from elasticnet.training.program import run_program
from elasticnet.training.run_folder import Run
from elasticnet.training.state import seed_all

NUM_CLASSES = 10
SIDE = 8  # of an image, in pixels
NUM_TEST = 600  # images of the test split, of the 1797; the same share of every digit
WARMUP = 10  # steps
NUM_GROUPS = 4  # of GroupNorm

LABELS = {
    "elastic": "elastic",
    "ordinary": "ordinary, supervised at the last block",
    "single": "one block, trained alone",
}


# --- options: in groups for --help and for the code below; options.json holds them without groups


@dataclass(frozen=True, kw_only=True)
class Experiment(OptionGroup):
    """The experiment: what is repeated, and where it is written."""

    out: Path | None = None
    """Run folder, new or empty. Default: runs/cnn-digits-TIME."""
    seeds: Annotated[int, AtLeast(1)] = 3
    """How many times everything is repeated, each with its own split, start and batches."""
    seed: Annotated[int, AtLeast(0)] = 0
    """The first of these seeds."""


@dataclass(frozen=True, kw_only=True)
class Network(OptionGroup):
    """The convolutional network."""

    num_blocks: Annotated[int, AtLeast(2)] = 6
    """Residual blocks, each of two convolutions; every one carries a prediction."""
    width: Annotated[int, AtLeast(4)] = 32
    """Channels; with --norm group a multiple of 4."""
    norm: Literal["batch", "group", "none"] = "batch"
    """The normalisation in the blocks. A block's is its own, whatever the depth."""
    positions: bool = False
    """The head sees every position of the features. Default: their mean over all positions."""
    head_norm: Literal["none", "shared", "recalibrated"] = "none"
    """BatchNorm in the shared head: with the same statistics for all depths, or with statistics
    that are measured for each depth after the training.
    """
    adapters: bool = False
    """Give each depth a 1x1 convolution of its own in front of the shared head."""


@dataclass(frozen=True, kw_only=True)
class Training(OptionGroup):
    """The training of every network."""

    steps: Annotated[int, AtLeast(1)] = 100
    """Training steps of every network."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Images a step."""
    learning_rate: Annotated[float, Above(0)] = 1e-3
    """AdamW's learning rate after 10 steps of warm-up; then a cosine to 0."""
    tap_weights: Literal["normalised", "equal", "deepest-half", "deepest-most"] = "normalised"
    """Weights of the depths' losses in the elastic network: the same for all, with a sum of 1 or
    with 1 each; or 1/2 or 9/10 for the deepest, and the rest for the others.
    """


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """All options."""

    experiment: Experiment = Experiment()
    network: Network = Network()
    training: Training = Training()


def parse(arguments: list[str]) -> Options:
    """Return the options of a command line."""
    return parse_options(Options, arguments, default=Options(), description=__doc__)


# --- the network


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, options: Network) -> None:
        super().__init__()
        width = options.width
        self.body = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            norm_of(options),
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            norm_of(options),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the features behind the block.

        Args:
            x: Features (b, width, 8, 8).
        """
        return F.relu(x + self.body(x))


def norm_of(options: Network) -> nn.Module:
    """Return one normalisation of a block."""
    if options.norm == "batch":
        return nn.BatchNorm2d(options.width)
    if options.norm == "group":
        return nn.GroupNorm(NUM_GROUPS, options.width)
    return nn.Identity()


def head_of(options: Network) -> nn.Sequential:
    """Return the classifier that all depths share."""
    head = nn.Sequential()
    if options.head_norm != "none":
        head.append(nn.BatchNorm2d(options.width))
    features = options.width * SIDE * SIDE
    if not options.positions:
        head.append(nn.AdaptiveAvgPool2d(1))
        features = options.width
    head.append(nn.Flatten())
    head.append(nn.Linear(features, NUM_CLASSES))
    return head


def build(options: Network, variant: str) -> ElasticWrapper:
    """Return a network to train, with a tap at each depth that the variant supervises."""
    num_blocks = 1 if variant == "single" else options.num_blocks
    is_elastic = variant == "elastic"
    taps = range(1, num_blocks + 1) if is_elastic else [num_blocks]
    adapters: dict[int, nn.Module] = {}
    if options.adapters:
        adapters = {depth: nn.Conv2d(options.width, options.width, 1) for depth in taps}
    return ElasticWrapper(
        [Block(options) for _ in range(num_blocks)],
        head_of(options),
        stem=nn.Conv2d(1, options.width, kernel_size=3, padding=1),
        taps=taps,
        adapters=adapters,
    )


# --- training


class Digits(NamedTuple):
    """Images (n, 1, 8, 8) in -1..1 and their digits (n,), of the training and the test split."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def read_digits(seed: int) -> Digits:
    """Return scikit-learn's digits, split at random with the same share of every digit."""
    images, digits = load_digits(return_X_y=True)  # (n, 64) values 0..16; (n,)
    parts: Any = train_test_split(
        images, digits, test_size=NUM_TEST, stratify=digits, random_state=seed
    )
    images, test_images, digits, test_digits = parts
    return Digits(
        x=as_images(images),
        y=torch.tensor(digits),
        test_x=as_images(test_images),
        test_y=torch.tensor(test_digits),
    )


def as_images(rows: Any) -> Tensor:
    """Return images (n, 1, 8, 8) in -1..1 of rows (n, 64) in 0..16."""
    return torch.tensor(rows / 8 - 1, dtype=torch.float32).view(-1, 1, SIDE, SIDE)


def weights_of(options: Training, taps: tuple[int, ...]) -> dict[int, float]:
    """Return the weight of each tap's loss."""
    if options.tap_weights == "equal":
        return equal(taps)
    if options.tap_weights == "deepest-half":
        return deepest_share(taps, share=0.5)
    if options.tap_weights == "deepest-most":
        return deepest_share(taps, share=0.9)
    return normalised(taps)


def train(options: Options, variant: str, seed: int, digits: Digits) -> ElasticWrapper:
    """Train one network and return it in eval mode."""
    seed_all(seed)
    net = build(options.network, variant).train()
    training = options.training
    objective = ElasticObjective(
        net,
        task_loss=F.cross_entropy,
        psd_weight=0.0,
        tap_weights=weights_of(training, net.taps),
    )
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05, fused=True)
    generator = torch.Generator().manual_seed(seed)

    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * cosine(step, training.steps, warmup=WARMUP)
        chosen = torch.randint(len(digits.x), (training.batch_size,), generator=generator)
        terms = objective(digits.x[chosen], digits.y[chosen])
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        optimizer.step()

    net.eval()
    if options.network.head_norm == "recalibrated":
        recalibrate(net, [digits.x])
    return net


@torch.no_grad()
def accuracies(net: ElasticWrapper, digits: Digits) -> dict[int, float]:
    """Return the test accuracy at each tap, in percent."""
    taps = net.forward_taps(digits.test_x)
    found: dict[int, float] = {}
    for depth, prediction in zip(taps.depths, taps.predictions, strict=True):
        right = (prediction.argmax(1) == digits.test_y).sum().item()
        found[depth] = 100 * right / len(digits.test_y)
    return found


def main(options: Options) -> None:
    """Train and measure everything, once for each seed, and write what came out."""
    experiment = options.experiment
    seeds = range(experiment.seed, experiment.seed + experiment.seeds)
    folder = experiment.out or Path("runs", time.strftime("cnn-digits-%Y%m%d-%H%M%S"))
    # variant -> one entry a seed: the accuracy by depth
    found: dict[str, list[dict[int, float]]] = {variant: [] for variant in LABELS}
    with Run.create(folder, as_json(options)) as run:
        print(f"{len(seeds)} x {len(LABELS)} trainings; run folder {run.folder}")
        for seed in seeds:
            digits = read_digits(seed)
            for variant in LABELS:
                net = train(options, variant, seed, digits)
                accuracy = accuracies(net, digits)
                step = options.training.steps
                run.log({"step": step, "seed": seed, "variant": variant, "accuracy": accuracy})
                found[variant].append(accuracy)
        text = write_report(options, run.folder, list(seeds), found)
    print(f"\n{text}\nwritten to {run.folder}")


# --- the report


class Spread(NamedTuple):
    """One number a seed: the mean, the standard deviation (None of one seed), and the numbers."""

    mean: float
    spread: float | None
    seeds: list[float]

    def __str__(self) -> str:
        if self.spread is None:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} ± {self.spread:.1f}"


def spread(values: Iterable[float]) -> Spread:
    """Return the mean and the standard deviation of one number a seed, and the numbers."""
    seeds = list(values)
    deviation = statistics.stdev(seeds) if len(seeds) > 1 else None
    return Spread(statistics.mean(seeds), deviation, seeds)


def difference(ours: list[dict[int, float]], theirs: list[dict[int, float]], depth: int) -> Spread:
    """Return by how many points one variant is better than another at a depth, seed by seed."""
    pairs = zip(ours, theirs, strict=True)
    return spread(one[depth] - other[depth] for one, other in pairs)


def write_report(
    options: Options, folder: Path, seeds: list[int], found: dict[str, list[dict[int, float]]]
) -> str:
    """Write table.md and table.json; return table.md's text."""
    accuracy: dict[str, dict[int, Spread]] = {}
    for variant, by_seed in found.items():
        depths = by_seed[0]
        accuracy[variant] = {depth: spread(each[depth] for each in by_seed) for depth in depths}
    deepest = options.network.num_blocks
    differences = {
        "full depth": difference(found["elastic"], found["ordinary"], depth=deepest),
        "depth 1": difference(found["elastic"], found["single"], depth=1),
    }

    lines = [["depth", *LABELS.values()]]
    for depth in accuracy["elastic"]:
        cells = [str(column.get(depth, "")) for column in accuracy.values()]
        lines.append([str(depth), *cells])
    text = (
        f"Test accuracy in percent on {NUM_TEST} digits, mean ± standard deviation over "
        f"{len(seeds)} seeds; {options.training.steps} steps\n\n{table(lines)}\n"
        f"The elastic network against the ordinary one at full depth: "
        f"{differences['full depth']} points; against one block trained alone at depth 1: "
        f"{differences['depth 1']} points\n"
    )
    write_atomic(folder / "table.md", text)
    values = {
        "accuracy": {variant: as_numbers(column) for variant, column in accuracy.items()},
        "differences": {name: each._asdict() for name, each in differences.items()},
        "seeds": seeds,
        "options": as_json(options),
        "threads": torch.get_num_threads(),
    }
    write_json(folder / "table.json", values)
    return text


def as_numbers(column: dict[int, Spread]) -> dict[int, dict[str, Any]]:
    """Return a column for table.json."""
    return {depth: each._asdict() for depth, each in column.items()}


if __name__ == "__main__":
    run_program(main, parse)
