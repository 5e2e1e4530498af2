"""Accuracy and time of a classifier that stops where it is sure, beside every fixed depth.

    python recipes/vit_digits.py --seeds 1 --seed S --patch-size 2 --width 96 --steps 600 \
        --out runs/digits-S
    python tests/benchmarks/bench_exits.py runs/digits-0 runs/digits-1 ... [--json FILE]

RUNS are run folders of recipes/vit_digits.py, each of one seed. Of the images that a run did not
train on, one half calibrates, and the other half measures. The rows are the elastic network whole,
at every fixed depth, and with exits by each policy and allowed loss; and the ordinary networks
trained for one depth alone. Times are those of single images, and of batches, on one thread: the
processor's time, which other programs do not lengthen much. All rows take turns.

--earlyon also runs the package earlyon on the same task, if it is installed: its exits at every
block of the same vision transformer, trained jointly with the same steps and optimiser, calibrated
for the same allowed losses.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from harness import machine_name, make_parser, require_at_least, time_in_turn, write_report
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import elasticnet
from elasticnet._tables import table
from elasticnet.exits import (
    POLICIES,
    ExitRunner,
    check_apart,
    choose_rule,
    collect_logits,
    fit_temperatures,
)
from elasticnet.retrofit.timm import split
from elasticnet.training.learning_rate import cosine
from elasticnet.training.options import with_values
from elasticnet.training.state import seed_all
from elasticnet.wrapper import ElasticWrapper

RECIPES = Path(__file__).parents[2] / "recipes"
LOSSES = (0.0, 0.005, 0.02)  # accuracy that may be lost, as a share
BATCH = 64
GROUP = 50  # images that one way classifies before the next one's turn
WARM_UP = 3  # images of a group that are classified once before


class Sets(NamedTuple):
    """The images of a run: those it trained on, those to calibrate on, and those to measure on."""

    train: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class Way(NamedTuple):
    """A way to classify: returns the logits of a batch, and the depths where its images left."""

    classify: Callable[[Tensor], tuple[Tensor, Tensor]]


class Measured(NamedTuple):
    """What a way came to with one run.

    Attributes:
        accuracy: On the test half, in percent.
        mean_depth: Blocks an image.
        single_ms: Milliseconds of an image alone: the median over the images.
        single_ms_95: The 95th percentile.
        batch_ms: Milliseconds an image in batches.
    """

    accuracy: float
    mean_depth: float
    single_ms: float
    single_ms_95: float
    batch_ms: float


# --- the networks of a run


def options_of(recipe: ModuleType, run: Path) -> Any:
    """Return the options of a run."""
    stored = json.loads((run / "options.json").read_text(encoding="utf-8"))
    return with_values(recipe.Options(), stored)


def sets_of(recipe: ModuleType, options: Any) -> Sets:
    """Return the images of a run, those that it did not train on in two halves."""
    digits = recipe.read_digits(options.experiment.num_test, options.experiment.seed)
    half = len(digits.test_x) // 2
    sets = Sets(
        train=(digits.x, digits.y),
        calibration=(digits.test_x[:half], digits.test_y[:half]),
        test=(digits.test_x[half:], digits.test_y[half:]),
    )
    check_apart(training=[sets.train], calibration=[sets.calibration], test=[sets.test])
    return sets


def network(recipe: ModuleType, options: Any, file: Path, depth: int) -> ElasticWrapper:
    """Return the network in a file of a run, of so many blocks."""

    def build() -> ElasticWrapper:
        parts = split(recipe.build(options))
        return parts._replace(blocks=parts.blocks[:depth]).wrap()

    return elasticnet.load(file, build=build).eval()


def fixed(net: ElasticWrapper, depth: int) -> Way:
    """Return the way that takes one depth for all."""

    @torch.no_grad()
    def classify(x: Tensor) -> tuple[Tensor, Tensor]:
        return net(x, depth=depth), torch.full((len(x),), depth)

    return Way(classify)


def with_exits(runner: ExitRunner) -> Way:
    """Return the way of a runner."""

    def classify(x: Tensor) -> tuple[Tensor, Tensor]:
        exits = runner(x)
        return exits.logits, exits.depths

    return Way(classify)


def ways_of(recipe: ModuleType, run: Path, options: Any, sets: Sets) -> dict[str, Way]:
    """Return all ways by their names in the table."""
    num_blocks = options.network.num_blocks
    elastic = network(recipe, options, run / "elastic.safetensors", num_blocks)
    ways: dict[str, Way] = {}
    for depth in elastic.taps:
        ways[f"elastic, depth {depth}"] = fixed(elastic, depth)
    for depth in range(1, num_blocks):
        alone = network(recipe, options, run / f"alone_{depth}.safetensors", depth)
        ways[f"alone, depth {depth}"] = fixed(alone, depth)
    ordinary = network(recipe, options, run / "ordinary.safetensors", num_blocks)
    ways[f"alone, depth {num_blocks}"] = fixed(ordinary, num_blocks)

    collected = collect_logits(elastic, [sets.calibration])
    temperatures = fit_temperatures(collected)
    for policy_name, policy in POLICIES.items():
        for loss in LOSSES:
            rule = choose_rule(
                collected, temperatures=temperatures, policy=policy, max_loss=loss
            ).rule
            name = f"exits, {policy_name}, {100 * loss:g} points may be lost"
            ways[name] = with_exits(ExitRunner(elastic, rule))
    return ways


# --- earlyon


def earlyon_ways(recipe: ModuleType, options: Any, sets: Sets) -> dict[str, Way]:
    """Train earlyon's exits on the same network and task; return its ways."""
    # by name, because the package is installed for this comparison alone
    earlyon = importlib.import_module("earlyon")
    calibrate_thresholds = importlib.import_module("earlyon.core.thresholds").calibrate_thresholds
    custom_ee = importlib.import_module("earlyon.models.custom").custom_ee
    loss_of = importlib.import_module("earlyon.training.losses").weighted_multi_exit_loss

    seed_all(options.experiment.seed)
    num_blocks = options.network.num_blocks
    model = custom_ee(
        recipe.build(options),
        [f"blocks.{index}" for index in range(num_blocks - 1)],
        num_classes=10,
        input_shape=(1, 1, 8, 8),
    )
    train_as_the_recipe(model, loss_of, options, sets)
    model.eval()

    loader = DataLoader(TensorDataset(*sets.calibration), batch_size=BATCH)
    ways: dict[str, Way] = {}
    for loss in LOSSES:
        calibrate_thresholds(model, loader, target_accuracy_drop=loss, fit_temperature=True)
        thresholds = list(model.config.confidence_thresholds)
        enabled = list(model.config.enabled_exits)
        name = f"earlyon {earlyon.__version__}, {100 * loss:g} points may be lost"
        ways[name] = Way(partial(classify_by_earlyon, model, thresholds, enabled, num_blocks))
    return ways


def train_as_the_recipe(
    model: Any, loss_of: Callable[..., Tensor], options: Any, sets: Sets
) -> None:
    """Train a model of earlyon with the recipe's steps, batches, optimiser and learning rate."""
    training = options.training
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, fused=True)
    generator = torch.Generator().manual_seed(options.experiment.seed)
    x, y = sets.train
    model.train()
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * cosine(step, training.steps, warmup=20)
        chosen = torch.randint(len(x), (training.batch_size,), generator=generator)
        outputs = model(x[chosen], mode="training")
        optimizer.zero_grad(set_to_none=True)
        loss_of(outputs, y[chosen], model.config.loss_weights).backward()
        optimizer.step()


def classify_by_earlyon(
    model: Any, thresholds: list[float], enabled: list[bool], num_blocks: int, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return earlyon's logits and depths; its batches leave together."""
    model.config.confidence_thresholds[:] = thresholds
    model.config.enabled_exits[:] = enabled
    if len(x) == 1:
        result = model(x, mode="inference")
        logits, exit_taken = result.prediction, result.exit_taken
    else:
        result = model.forward_inference_batched(x)
        logits, exit_taken = result.predictions, result.exit_taken
    depth = num_blocks if exit_taken == -1 else exit_taken + 1
    return logits, torch.full((len(x),), depth)


# --- measuring


def measure(ways: dict[str, Way], sets: Sets, repeats: int) -> dict[str, Measured]:
    """Return what each way comes to on the test half, image by image, and its times."""
    x, y = sets.test
    batches = x.split(BATCH)
    singles = classify_alone(ways, x)

    def all_batches(way: Way) -> None:
        for batch in batches:
            way.classify(batch)

    cases = {name: partial(all_batches, way) for name, way in ways.items()}
    in_batches = time_in_turn(cases, repeats, clock=time.process_time)
    return {
        name: Measured(
            accuracy=100 * (single.logits.argmax(-1) == y).double().mean().item(),
            mean_depth=single.depths.double().mean().item(),
            single_ms=quantile(single.ms, 0.5),
            single_ms_95=quantile(single.ms, 0.95),
            batch_ms=1000 * statistics.median(in_batches[name]) / len(x),
        )
        for name, single in singles.items()
    }


class Singles(NamedTuple):
    """What a way made of images alone: logits and depths of all, and milliseconds of each."""

    logits: Tensor
    depths: Tensor
    ms: list[float]


def classify_alone(ways: dict[str, Way], x: Tensor) -> dict[str, Singles]:
    """Classify each image alone, and time it.

    All ways take turns, each with a group of images, so that its weights are in the processor's
    caches as where it runs by itself. Every other group goes through the ways backwards.
    """
    logits: dict[str, list[Tensor]] = {name: [] for name in ways}
    depths: dict[str, list[Tensor]] = {name: [] for name in ways}
    ms: dict[str, list[float]] = {name: [] for name in ways}
    for index, group in enumerate(x.split(GROUP)):
        names = list(ways) if index % 2 == 0 else list(reversed(ways))
        for name in names:
            classify = ways[name].classify
            for image in group[:WARM_UP].split(1):
                classify(image)
            for image in group.split(1):
                start = time.process_time()
                result, depth = classify(image)
                ms[name].append(1000 * (time.process_time() - start))
                logits[name].append(result)
                depths[name].append(depth)
    return {
        name: Singles(torch.cat(logits[name]), torch.cat(depths[name]), ms[name]) for name in ways
    }


def quantile(values: Iterable[float], share: float) -> float:
    """Return a quantile."""
    return torch.tensor(list(values)).double().quantile(share).item()


def row_of(name: str, runs: list[Measured]) -> list[str]:
    """Return a row of the table: means over the runs."""
    batch_ms = statistics.mean(run.batch_ms for run in runs)
    return [
        name,
        f"{statistics.mean(run.accuracy for run in runs):.1f}",
        f"{statistics.mean(run.mean_depth for run in runs):.2f}",
        f"{statistics.mean(run.single_ms for run in runs):.2f}",
        f"{statistics.mean(run.single_ms_95 for run in runs):.2f}",
        f"{1000 / batch_ms:,.0f}",
    ]


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of vit_digits.py")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the batches")
    parser.add_argument("--earlyon", action="store_true", help="run that package, too")
    options = parser.parse_args()
    require_at_least(parser, options, 1, "repeats")
    return options


def main() -> None:
    """Print the table."""
    options = parse()
    torch.set_num_threads(1)
    sys.path.append(str(RECIPES))
    recipe = importlib.import_module("vit_digits")
    found: dict[str, list[Measured]] = {}
    for run in options.runs:
        of_run = options_of(recipe, run)
        sets = sets_of(recipe, of_run)
        ways = ways_of(recipe, run, of_run, sets)
        if options.earlyon:
            ways.update(earlyon_ways(recipe, of_run, sets))
        for name, measured in measure(ways, sets, options.repeats).items():
            found.setdefault(name, []).append(measured)

    header = [
        "",
        "accuracy, %",
        "mean depth",
        "ms, median",
        "ms, 95 %",
        "images a second in batches",
    ]
    machine = machine_name()
    print(f"{machine}; {len(options.runs)} runs; single images but in the last column\n")
    print(table([header, *(row_of(name, runs) for name, runs in found.items())]))
    options.runs = [run.name for run in options.runs]  # no paths of this machine
    numbers = {name: [run._asdict() for run in runs] for name, runs in found.items()}
    write_report(options, machine, ways=numbers)


if __name__ == "__main__":
    main()
