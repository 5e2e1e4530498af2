"""Elastic depth outside super-resolution: a small vision transformer on handwritten digits.

    python recipes/vit_digits.py                     about two minutes on two CPU cores
    python recipes/vit_digits.py --seeds 1           a fifth of it
    python recipes/vit_digits.py --psd-weight 0.1    with a stronger self-distillation

The images come with scikit-learn, the network with timm. Four ways to a network of every depth are
compared by their accuracy on images that none of them was trained on: the ordinary network, trained
by its deepest tap and then cut short; deep supervision (DSL); deep supervision and progressive
self-distillation (DSL + PSD); and a network of each depth trained alone. All see the same split,
start and batches and take the same number of steps; each seed has a split, a start and batches of
its own. The run folder receives options.json, log.jsonl, the networks of the first seed for
elasticnet.load with build= (elastic.safetensors is DSL + PSD; dsl, ordinary and alone_1 ... are the
others), and after every seed the table (table.md, table.json) and the figure (accuracy.png).
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported

# isort: split
import os
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from tqdm import tqdm

import elasticnet
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet._files import write_atomic, write_json
from elasticnet._tables import table
from elasticnet.distillation import progressive_distillation
from elasticnet.loss_weights import normalised
from elasticnet.memory import keep_freed_memory
from elasticnet.retrofit.timm import split
from elasticnet.training.gradient_shares import distillation_share
from elasticnet.training.learning_rate import cosine
from elasticnet.training.loss_meter import LossMeter
from elasticnet.training.options import (
    Above,
    AtLeast,
    FromTo,
    LossOptions,
    OptionGroup,
    as_json,
    parse_options,
)
from elasticnet.training.program import run_program
from elasticnet.training.run_folder import Run
from elasticnet.training.state import seed_all
from elasticnet.training.stop_signal import StopSignal

NUM_IMAGES = 1797
NUM_CLASSES = 10
SIDE = 8  # of an image, in pixels
NUM_HEADS = 4
WARMUP = 20  # steps

LABELS = {
    "cut": "ordinary, cut short",
    "dsl": "DSL",
    "psd": "DSL + PSD",
    "alone": "each depth alone",
}
# the first of each pair minus the second
COMPARED = (("dsl", "cut"), ("dsl", "alone"), ("psd", "alone"), ("psd", "dsl"))


# --- options: in groups for --help and for the code below; options.json holds them without groups


@dataclass(frozen=True, kw_only=True)
class Experiment(OptionGroup):
    """The experiment: what is repeated, and where it is written."""

    out: Path | None = None
    """Run folder, new or empty. Default: runs/vit-digits-TIME."""
    seeds: Annotated[int, AtLeast(1)] = 5
    """How many times everything is repeated, each with its own split, start and batches."""
    seed: Annotated[int, AtLeast(0)] = 0
    """The first of these seeds."""
    num_test: Annotated[int, FromTo(NUM_CLASSES, NUM_IMAGES - NUM_CLASSES)] = 600
    """Images of the test split, of the 1797; the same share of every digit."""
    log_every: Annotated[int, AtLeast(1)] = 50
    """Steps between lines of the log."""
    only_elastic: bool = False
    """Train DSL and DSL + PSD alone, to compare forms and weights of the self-distillation."""


@dataclass(frozen=True, kw_only=True)
class Network(OptionGroup):
    """The vision transformer."""

    num_blocks: Annotated[int, AtLeast(2)] = 6
    """Blocks of the network; every one carries a prediction."""
    width: Annotated[int, AtLeast(1)] = 32
    """Numbers a token, a multiple of the 4 attention heads."""
    patch_size: Literal[1, 2, 4] = 4
    """Side of a token's patch in pixels, of images of 8x8: 4 makes four tokens, 2 sixteen, which
    take more steps.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % NUM_HEADS != 0:
            raise ValueError(
                f"--width {self.width}: expected a multiple of the {NUM_HEADS} attention heads"
            )


@dataclass(frozen=True, kw_only=True)
class Loss(LossOptions):
    """The loss of the elastic networks."""

    psd_weight: Annotated[float, AtLeast(0)] = 0.03
    """Weight of the self-distillation beside the cross-entropy, whose weights over the taps sum to
    1.
    """


@dataclass(frozen=True, kw_only=True)
class Training(OptionGroup):
    """The training of every network."""

    steps: Annotated[int, AtLeast(1)] = 300
    """Training steps of every network."""
    batch_size: Annotated[int, AtLeast(1)] = 64
    """Images a step."""
    learning_rate: Annotated[float, Above(0)] = 5e-3
    """AdamW's learning rate after 20 steps of warm-up; then a cosine to 0."""


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """All options."""

    experiment: Experiment = Experiment()
    network: Network = Network()
    loss: Loss = Loss()
    training: Training = Training()


def parse(arguments: list[str]) -> Options:
    """Return the options of a command line."""
    return parse_options(Options, arguments, default=Options(), description=__doc__)


# --- the experiment


class Case(NamedTuple):
    """One training: how (a key of LABELS), with how many blocks, and from which seed."""

    variant: str
    depth: int
    seed: int

    def __str__(self) -> str:
        return f"{LABELS[self.variant]}, seed {self.seed}"


def cases_of(options: Options, seed: int) -> list[Case]:
    """Return the trainings of one seed.

    Alone at the deepest tap is the ordinary network, to the bit: it is trained once and counted
    twice.
    """
    num_blocks = options.network.num_blocks
    if options.experiment.only_elastic:
        return [Case(variant, num_blocks, seed) for variant in ("dsl", "psd")]
    cases = [Case(variant, num_blocks, seed) for variant in ("cut", "dsl", "psd")]
    cases += [Case("alone", depth, seed) for depth in range(1, num_blocks)]
    return cases


class Session(NamedTuple):
    """What all trainings share."""

    options: Options
    run: Run
    bar: tqdm
    stop: StopSignal


# variant -> seed -> depth -> accuracy in percent
Accuracies = dict[str, dict[int, dict[int, float]]]


class Results:
    """What was measured so far, by variant and seed."""

    def __init__(self) -> None:
        self.accuracies: Accuracies = {variant: {} for variant in LABELS}
        # the mean distance of neighbouring blocks' attention maps
        self.distances: dict[str, dict[int, float]] = {"cut": {}, "dsl": {}, "psd": {}}

    def variants(self) -> list[str]:
        """Return the variants that were measured, in the order of LABELS."""
        return [variant for variant in LABELS if self.accuracies[variant]]

    def add(self, case: Case, accuracy: dict[int, float], distance: float) -> None:
        """Add what one network came to; `accuracy` by depth, in percent."""
        if case.variant == "alone":
            self._add_alone(case, accuracy)
            return
        self.accuracies[case.variant][case.seed] = accuracy
        self.distances[case.variant][case.seed] = distance
        if case.variant == "cut":
            self._add_alone(case, accuracy)

    def _add_alone(self, case: Case, accuracy: dict[int, float]) -> None:
        """Add the accuracy of the deepest tap alone."""
        of_seed = self.accuracies["alone"].setdefault(case.seed, {})
        of_seed[case.depth] = accuracy[case.depth]


def main(options: Options) -> None:
    """Train and measure everything, once for each seed, and write what came out."""
    experiment = options.experiment
    seeds = range(experiment.seed, experiment.seed + experiment.seeds)
    trainings = len(cases_of(options, experiment.seed))
    total = len(seeds) * trainings * options.training.steps
    folder = experiment.out or Path("runs", time.strftime("vit-digits-%Y%m%d-%H%M%S"))
    results = Results()
    report = ""
    finished = True

    with Run.create(folder, as_json(options)) as run:
        print(
            f"{len(seeds)} x {trainings} trainings of {options.training.steps} steps; "
            f"run folder {run.folder}"
        )
        with StopSignal() as stop, progress_bar(total) as bar:
            session = Session(options, run, bar, stop)
            for seed in seeds:
                finished = compare(session, seed, results)
                if not finished:
                    break
                report = write_report(options, run.folder, results)
    if finished:
        print(f"\n{report}\nwritten to {run.folder}: networks, table and figure")
    else:
        print(
            f"stopped at step {bar.n} of {total}; what was measured so far is in "
            f"{run.folder / 'log.jsonl'}"
        )
        sys.exit(stop.exit_status)


def compare(session: Session, seed: int, results: Results) -> bool:
    """Train and measure all networks of one seed; return False if a signal stopped it before."""
    options = session.options
    run = session.run
    digits = read_digits(options.experiment.num_test, seed)
    for case in cases_of(options, seed):
        session.bar.set_postfix_str(f"seed {seed}, {LABELS[case.variant]}, depth {case.depth}")
        net = train(session, case, digits)
        if net is None:
            return False
        accuracy, distance = evaluate(net, digits)
        measured = {"accuracy": accuracy, "attention_distance": distance}
        run.log({"step": session.bar.n, **names_of(case), **measured})
        results.add(case, accuracy, distance)

        # The networks of the first seed are kept.
        if seed == options.experiment.seed:
            notes = {"seed": seed, "accuracy": accuracy, "options": as_json(options)}
            elasticnet.save(net, run.folder / file_of(case), notes)
    return True


def file_of(case: Case) -> str:
    """Return the name of the file that keeps a network."""
    if case.variant == "alone":
        return f"alone_{case.depth}.safetensors"
    return {"cut": "ordinary", "dsl": "dsl", "psd": "elastic"}[case.variant] + ".safetensors"


def train(session: Session, case: Case, digits: Digits) -> ElasticWrapper | None:
    """Train one network; return it in eval mode, with a tap at each depth, or None if stopped."""
    options = session.options.training
    loss = session.options.loss

    # A network of the first blocks. By its one tap, at the deepest block, it is an ordinary one.
    seed_all(case.seed)
    parts = split(build(session.options))
    parts = parts._replace(blocks=parts.blocks[: case.depth])
    elastic = case.variant in ("dsl", "psd")
    net = parts.wrap(None if elastic else (-1,)).train()

    objective = ElasticObjective(
        net,
        task_loss=F.cross_entropy,
        psd_weight=0.0,  # as its form is an option, it is one of the distillations
        distillations=[loss.self_distillation()] if case.variant == "psd" else [],
        tap_weights=normalised(net.taps),
        sampled_taps=loss.sampled_taps if elastic else None,
        seed=case.seed,
    )
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05, fused=True)
    generator = torch.Generator().manual_seed(case.seed)
    meter = LossMeter()

    for step in range(options.steps):
        if session.stop.requested:
            return None

        # The learning rate is a function of the step: a warm-up, then a cosine to 0.
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * cosine(step, options.steps, warmup=WARMUP)

        # A batch, drawn with the case's own generator, goes through every tap of the network.
        chosen = torch.randint(len(digits.x), (options.batch_size,), generator=generator)
        x, target = digits.x[chosen], digits.y[chosen]
        terms = objective(x, target, step=step)
        if not terms.total.isfinite():
            raise FloatingPointError(
                f"{case}: the loss became {terms.total.item()} at step {step}; try less than "
                f"--learning-rate {options.learning_rate:g}"
            )

        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        optimizer.step()

        meter.add(terms)
        session.bar.update()
        if (step + 1) % session.options.experiment.log_every == 0 or step + 1 == options.steps:
            line = {"step": session.bar.n, **names_of(case), **meter.means()}
            if loss.log_psd_share and case.variant == "psd":
                line["psd_share"] = distillation_share(objective, x, target, step, net.blocks)
            session.run.log(line)
    return net.with_taps(None).eval()


def names_of(case: Case) -> dict[str, Any]:
    """Return what a line of the log calls a training."""
    return {"seed": case.seed, "variant": case.variant, "depth": case.depth}


def progress_bar(total: int) -> tqdm:
    """Return the line of progress, which also counts the steps; it is shown only on a terminal."""
    file = sys.stderr
    if not file.isatty():
        file = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    return tqdm(total=total, unit="it", dynamic_ncols=True, file=file)


# --- data, network and measurements


class Digits(NamedTuple):
    """Images (n, 1, 8, 8) in -1..1 and their digits (n,), of the training and the test split."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def read_digits(num_test: int, seed: int) -> Digits:
    """Return scikit-learn's digits, split at random with the same share of every digit."""
    images, digits = load_digits(return_X_y=True)  # (n, 64) values 0..16; (n,)
    parts: Any = train_test_split(
        images, digits, test_size=num_test, stratify=digits, random_state=seed
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


def build(options: Options) -> VisionTransformer:
    """Return the network as timm makes it, class token and all."""
    return VisionTransformer(
        img_size=SIDE,
        patch_size=options.network.patch_size,
        in_chans=1,
        num_classes=NUM_CLASSES,
        embed_dim=options.network.width,
        depth=options.network.num_blocks,
        num_heads=NUM_HEADS,
        mlp_ratio=2,
        # PyTorch's own: timm's default starts small, and 300 steps are too few for it
        weight_init="reset",
    )


@torch.no_grad()
def evaluate(net: ElasticWrapper, digits: Digits) -> tuple[dict[int, float], float]:
    """Return the test accuracy of every depth in percent, and how far attention maps are apart.

    That is the mean distance between the maps of neighbouring blocks.
    """
    taps = net.forward_taps(digits.test_x)
    accuracy: dict[int, float] = {}
    for depth, prediction in zip(taps.depths, taps.predictions, strict=True):
        right = (prediction.argmax(1) == digits.test_y).sum().item()
        accuracy[depth] = 100 * right / len(digits.test_y)
    distances = progressive_distillation(taps.features, net.layout, net.prefix_tokens)
    num_pairs = max(1, len(taps.features) - 1)
    return accuracy, (distances / num_pairs).item()


# --- the report


class Spread(NamedTuple):
    """One number a seed: the mean, the standard deviation (None of one seed), and the numbers."""

    mean: float
    spread: float | None
    seeds: list[float]


# a column of a table: what is said of each depth
Column = dict[int, Spread]


def spread(values: Iterable[float]) -> Spread:
    """Return the mean and the standard deviation of one number a seed, and the numbers."""
    seeds = list(values)
    deviation = statistics.stdev(seeds) if len(seeds) > 1 else None
    return Spread(statistics.mean(seeds), deviation, seeds)


def write_report(options: Options, folder: Path, results: Results) -> str:
    """Write table.md, table.json and accuracy.png of the seeds so far; return table.md's text."""
    from elasticnet.sr.benchmark.figures import elastic_curve

    depths = range(1, options.network.num_blocks + 1)
    variants = results.variants()
    seeds = list(results.accuracies["psd"])
    accuracy = {variant: accuracy_column(results, variant, depths) for variant in variants}
    differences: dict[str, Column] = {}
    for ours, theirs in COMPARED:
        if ours in variants and theirs in variants:
            label = f"{LABELS[ours]} − {LABELS[theirs]}"
            differences[label] = difference_column(results, ours, theirs, depths)
    distances: dict[str, Spread] = {}
    for variant, by_seed in results.distances.items():
        if variant in variants:
            distances[LABELS[variant]] = spread(by_seed.values())

    text = report_text(options, seeds, accuracy, differences, distances)
    write_atomic(folder / "table.md", text)
    values = {
        "accuracy": {variant: as_numbers(column) for variant, column in accuracy.items()},
        "differences": {label: as_numbers(column) for label, column in differences.items()},
        "attention_distance": {label: each._asdict() for label, each in distances.items()},
        "seeds": seeds,
        "options": as_json(options),
        "threads": torch.get_num_threads(),
    }
    write_json(folder / "table.json", values)

    curves = {
        LABELS[variant]: {depth: each.mean for depth, each in column.items()}
        for variant, column in accuracy.items()
    }
    title = f"ViT on digits, {options.training.steps} steps, seeds {', '.join(map(str, seeds))}"
    elastic_curve(folder / "accuracy.png", curves, title=title, ylabel="test accuracy (%)")
    return text


def accuracy_column(results: Results, variant: str, depths: Iterable[int]) -> Column:
    """Return the accuracy of one variant at every depth."""
    by_seed = results.accuracies[variant].values()
    return {depth: spread(accuracy[depth] for accuracy in by_seed) for depth in depths}


def difference_column(results: Results, ours: str, theirs: str, depths: Iterable[int]) -> Column:
    """Return by how much one variant is better than another, seed by seed, at every depth."""
    column: Column = {}
    for depth in depths:
        gains: list[float] = []
        for seed, accuracy in results.accuracies[ours].items():
            gains.append(accuracy[depth] - results.accuracies[theirs][seed][depth])
        column[depth] = spread(gains)
    return column


def as_numbers(column: Column) -> dict[int, dict[str, Any]]:
    """Return a column for table.json."""
    return {depth: each._asdict() for depth, each in column.items()}


def report_text(
    options: Options,
    seeds: list[int],
    accuracy: dict[str, Column],
    differences: dict[str, Column],
    distances: dict[str, Spread],
) -> str:
    """Return the text of table.md."""
    labelled = {LABELS[variant]: column for variant, column in accuracy.items()}
    maps = ", ".join(f"{label} {each.mean:.3f}" for label, each in distances.items())
    return (
        f"Test accuracy in percent on {options.experiment.num_test} digits, mean ± standard "
        f"deviation over the seeds; seeds {', '.join(map(str, seeds))}, {options.training.steps} "
        f"steps each, PSD weight {options.loss.psd_weight:g} "
        f"({options.loss.psd_distance}, power {options.loss.psd_power:g}, "
        f"teacher {options.loss.psd_teacher})\n\n"
        f"{depth_table(labelled, '.1f')}\n"
        "Differences in points within a seed, mean ± standard deviation; in brackets where the "
        f"mean is not larger than the deviation\n\n{depth_table(differences, '+.1f')}\n"
        f"Distance between neighbouring blocks' attention maps on the test images: {maps}\n"
    )


def depth_table(columns: dict[str, Column], form: str) -> str:
    """Return a Markdown table with a line for each depth; `form` is the format of the means.

    A signed form, which is for differences, puts what is within its spread in brackets.
    """
    depths = list(next(iter(columns.values())))
    lines = [["depth", *columns]]
    for depth in depths:
        cells = [cell_of(column[depth], form) for column in columns.values()]
        lines.append([str(depth), *cells])
    return table(lines)


def cell_of(value: Spread, form: str) -> str:
    """Return one cell of a table."""
    if value.spread is None:
        return f"{value.mean:{form}}"
    cell = f"{value.mean:{form}} ± {value.spread:.1f}"
    is_difference = form.startswith("+")
    if is_difference and abs(value.mean) <= value.spread:
        return f"({cell})"
    return cell


if __name__ == "__main__":
    keep_freed_memory()
    run_program(main, parse)
