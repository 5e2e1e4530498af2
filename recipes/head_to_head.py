"""Ways to train one network for every depth, side by side on handwritten digits.

    python recipes/head_to_head.py                   about five minutes on a processor core
    python recipes/head_to_head.py --methods dsl psd

A small vision transformer of timm on the digits that scikit-learn carries. What other libraries and
papers do is written with this library's pieces, one function each, below "the methods": torchtune's
early-exit loss with its two curricula, the adaptive-layer loss of sentence-transformers, and the
self-distillation of "Be Your Own Teacher". Beside them stand deep supervision (DSL), deep
supervision with progressive self-distillation (DSL + PSD), the ordinary network cut short, and a
network of each depth trained alone. All see the same split, start and batches, take the same number
of steps, and share one head for all depths. The run folder receives options.json, log.jsonl, and
the table (table.md, table.json).
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported # noqa: F401

# isort: split
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from elasticnet import Distillation, ElasticObjective, ElasticWrapper
from elasticnet._files import write_atomic, write_json
from elasticnet._tables import table
from elasticnet.distillation_losses import mean_squared, soft_targets
from elasticnet.loss_weights import normalised
from elasticnet.retrofit.timm import split
from elasticnet.training.learning_rate import cosine
from elasticnet.training.options import Above, AtLeast, OptionGroup, as_json, parse_options
from elasticnet.training.program import run_program
from elasticnet.training.run_folder import Run
from elasticnet.training.state import seed_all

NUM_CLASSES = 10
SIDE = 8  # of an image, in pixels
NUM_TEST = 600  # images of the test split, of the 1797; the same share of every digit
NUM_HEADS = 4
WARMUP = 20  # steps
PSD_WEIGHT = 0.03  # for cross-entropy, as in vit_digits.py

# of "Be Your Own Teacher": the share of the teacher in a shallow exit's loss, the temperature, and
# the weight of the features, here of their mean squared difference
TEACHER_SHARE = 0.1
OWN_TEACHER_TEMPERATURE = 3.0
FEATURE_WEIGHT = 0.03
# the default of sentence-transformers
ADAPTIVE_TEMPERATURE = 0.3


# --- the methods: each returns the objective of one network

Build = Callable[[ElasticWrapper, int, int], ElasticObjective]
"""`build(net, steps, seed)`: the network to train, for how many steps, and the seed."""


def deepest_alone(net: ElasticWrapper, steps: int, seed: int) -> ElasticObjective:
    """The ordinary loss: the network has a single tap, at its last block."""
    return ElasticObjective(net, F.cross_entropy, psd_weight=0.0)


def deep_supervision(net: ElasticWrapper, steps: int, seed: int) -> ElasticObjective:
    """DSL: every depth's loss, with weights that sum to 1."""
    return ElasticObjective(net, F.cross_entropy, psd_weight=0.0, tap_weights=normalised(net.taps))


def progressive(net: ElasticWrapper, steps: int, seed: int) -> ElasticObjective:
    """DSL + PSD: each block's attention map learns from the next one's, too."""
    return ElasticObjective(
        net, F.cross_entropy, psd_weight=PSD_WEIGHT, tap_weights=normalised(net.taps)
    )


def rotating_exits(net: ElasticWrapper, steps: int, seed: int) -> ElasticObjective:
    """torchtune's rotational curriculum: the last layer and one other, which changes every step.

    Those that a step trains have equal weights with a sum of 1, as in its `uniform_loss_scale`.
    """
    *shallower, deepest = net.taps

    def weights(step: int) -> dict[int, float]:
        turn = shallower[step % len(shallower)]
        return among(net.taps, [turn, deepest])

    return ElasticObjective(net, F.cross_entropy, psd_weight=0.0, tap_weights=weights)


def gradual_exits(net: ElasticWrapper, steps: int, seed: int) -> ElasticObjective:
    """torchtune's gradual curriculum: from the last layer up, until half of the steps are taken.

    Depth d joins when the share of the steps that were taken reaches (N - d + 1) / 2 N.
    """
    num_taps = len(net.taps)

    def weights(step: int) -> dict[int, float]:
        trained = [net.taps[-1]]
        for index, depth in enumerate(net.taps[:-1]):
            if step / steps >= 0.5 * (num_taps - index) / num_taps:
                trained.append(depth)
        return among(net.taps, trained)

    return ElasticObjective(net, F.cross_entropy, psd_weight=0.0, tap_weights=weights)


def adaptive_layers(net: ElasticWrapper, steps: int, seed: int) -> ElasticObjective:
    """sentence-transformers' AdaptiveLayerLoss: the last layer, and a random one of the others.

    The loss of the other, at depth d, has weight 1/d; the divergence of its softened outputs from
    those of the last layer is multiplied by the temperature, and does not depend on d.
    """
    *shallower, deepest = net.taps

    def weights(step: int) -> dict[int, float]:
        drawn = random.Random(f"{seed}:{step}").choice(shallower)
        at_step = dict.fromkeys(net.taps, 0.0)
        at_step[drawn] = 1 / drawn
        at_step[deepest] = 1.0
        return at_step

    # A term of predictions is multiplied by its tap's weight, which depth d makes up for; and
    # `soft_targets` multiplies by the temperature twice.
    compare = partial(soft_targets, temperature=ADAPTIVE_TEMPERATURE)
    terms: list[Distillation] = []
    for depth in shallower:
        terms.append(
            Distillation(
                of="predictions",
                compare=compare,
                teacher="deepest",
                students=[depth],
                weight=depth / ADAPTIVE_TEMPERATURE,
            )
        )
    return ElasticObjective(
        net, F.cross_entropy, psd_weight=0.0, tap_weights=weights, distillations=terms
    )


def own_teacher(
    net: ElasticWrapper, steps: int, seed: int, *, with_features: bool
) -> ElasticObjective:
    """ "Be Your Own Teacher": the deepest classifier teaches all others, by outputs and features.

    A shallow exit's loss is (1 - a) cross-entropy + a divergence. The paper gives each exit layers
    and a classifier of its own; here all depths share the head, as in the other methods.
    """
    *shallower, deepest = net.taps
    weights = dict.fromkeys(shallower, 1 - TEACHER_SHARE)
    weights[deepest] = 1.0
    terms = [
        Distillation(
            of="predictions",
            compare=partial(soft_targets, temperature=OWN_TEACHER_TEMPERATURE),
            teacher="deepest",
            # The tap's weight 1 - a multiplies this, too.
            weight=TEACHER_SHARE / (1 - TEACHER_SHARE),
        )
    ]
    if with_features:
        terms.append(
            Distillation(
                of="features", compare=mean_squared, teacher="deepest", weight=FEATURE_WEIGHT
            )
        )
    return ElasticObjective(
        net, F.cross_entropy, psd_weight=0.0, tap_weights=weights, distillations=terms
    )


def among(taps: Sequence[int], trained: Sequence[int]) -> dict[int, float]:
    """Return equal weights with a sum of 1 for some taps, and 0 for the others."""
    weights = dict.fromkeys(taps, 0.0)
    for depth in trained:
        weights[depth] = 1 / len(trained)
    return weights


class Method(NamedTuple):
    """A way to train.

    Attributes:
        label: The name in the table.
        build: Makes the objective.
        is_elastic: Whether one network with a tap at every depth is trained.
    """

    label: str
    build: Build
    is_elastic: bool = True


METHODS = {
    "alone": Method("each depth alone", deepest_alone, is_elastic=False),
    "cut": Method("ordinary, cut short", deepest_alone, is_elastic=False),
    "dsl": Method("DSL", deep_supervision),
    "psd": Method("DSL + PSD", progressive),
    "rotating": Method("torchtune, rotating", rotating_exits),
    "gradual": Method("torchtune, gradual", gradual_exits),
    "adaptive": Method("sentence-transformers, adaptive layers", adaptive_layers),
    "own-output": Method("own teacher, outputs", partial(own_teacher, with_features=False)),
    "own-feature": Method(
        "own teacher, outputs and features", partial(own_teacher, with_features=True)
    ),
}


# --- options: in groups for --help and for the code below; options.json holds them without groups


@dataclass(frozen=True, kw_only=True)
class Experiment(OptionGroup):
    """The experiment: what is repeated, and where it is written."""

    out: Path | None = None
    """Run folder, new or empty. Default: runs/head-to-head-TIME."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which methods are compared."""
    seeds: Annotated[int, AtLeast(1)] = 3
    """How many times everything is repeated, each with its own split, start and batches."""
    seed: Annotated[int, AtLeast(0)] = 0
    """The first of these seeds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"--methods {name}: expected some of {', '.join(METHODS)}")


@dataclass(frozen=True, kw_only=True)
class Network(OptionGroup):
    """The vision transformer."""

    num_blocks: Annotated[int, AtLeast(2)] = 6
    """Blocks of the network; every one carries a prediction."""
    width: Annotated[int, AtLeast(4)] = 32
    """Numbers a token, a multiple of the 4 attention heads."""
    patch_size: Annotated[int, AtLeast(1)] = 4
    """Side of a token's patch in pixels, of images of 8x8."""


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
    training: Training = Training()


def parse(arguments: list[str]) -> Options:
    """Return the options of a command line."""
    return parse_options(Options, arguments, default=Options(), description=__doc__)


# --- the experiment


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


def build_network(options: Network, depth: int, is_elastic: bool) -> ElasticWrapper:
    """Return a network of the first blocks, with a tap at each depth or at the last alone."""
    model = VisionTransformer(
        img_size=SIDE,
        patch_size=options.patch_size,
        in_chans=1,
        num_classes=NUM_CLASSES,
        embed_dim=options.width,
        depth=options.num_blocks,
        num_heads=NUM_HEADS,
        mlp_ratio=2,
        # PyTorch's own: timm's default starts small, and 300 steps are too few for it
        weight_init="reset",
    )
    parts = split(model)
    parts = parts._replace(blocks=parts.blocks[:depth])
    return parts.wrap(None if is_elastic else (-1,))


def train(
    options: Options, method: Method, depth: int, seed: int, digits: Digits
) -> ElasticWrapper:
    """Train one network; return it in eval mode, with a tap at each depth."""
    seed_all(seed)
    net = build_network(options.network, depth, method.is_elastic).train()
    training = options.training
    objective = method.build(net, training.steps, seed)
    optimizer = torch.optim.AdamW(objective.parameters(), weight_decay=0.05, fused=True)
    generator = torch.Generator().manual_seed(seed)

    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * cosine(step, training.steps, warmup=WARMUP)
        chosen = torch.randint(len(digits.x), (training.batch_size,), generator=generator)
        terms = objective(digits.x[chosen], digits.y[chosen], step=step)
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        optimizer.step()
    return net.with_taps(None).eval()


@torch.no_grad()
def accuracies(net: ElasticWrapper, digits: Digits) -> dict[int, float]:
    """Return the test accuracy at each depth, in percent."""
    taps = net.forward_taps(digits.test_x)
    found: dict[int, float] = {}
    for depth, prediction in zip(taps.depths, taps.predictions, strict=True):
        right = (prediction.argmax(1) == digits.test_y).sum().item()
        found[depth] = 100 * right / len(digits.test_y)
    return found


def measure(options: Options, name: str, seed: int, digits: Digits) -> dict[int, float]:
    """Train by one method, and return the accuracy at each depth."""
    method = METHODS[name]
    deepest = options.network.num_blocks
    if name != "alone":
        return accuracies(train(options, method, deepest, seed, digits), digits)
    found: dict[int, float] = {}
    for depth in range(1, deepest + 1):
        net = train(options, method, depth, seed, digits)
        found[depth] = accuracies(net, digits)[depth]
    return found


def main(options: Options) -> None:
    """Train and measure everything, once for each seed, and write what came out."""
    experiment = options.experiment
    seeds = range(experiment.seed, experiment.seed + experiment.seeds)
    folder = experiment.out or Path("runs", time.strftime("head-to-head-%Y%m%d-%H%M%S"))
    # method -> one entry a seed: the accuracy by depth
    found: dict[str, list[dict[int, float]]] = {name: [] for name in experiment.methods}
    with Run.create(folder, as_json(options)) as run:
        print(f"{len(seeds)} seeds of {len(found)} methods; run folder {run.folder}")
        for seed in seeds:
            digits = read_digits(seed)
            for name in found:
                accuracy = measure(options, name, seed, digits)
                step = options.training.steps
                run.log({"step": step, "seed": seed, "method": name, "accuracy": accuracy})
                found[name].append(accuracy)
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


def write_report(
    options: Options, folder: Path, seeds: list[int], found: dict[str, list[dict[int, float]]]
) -> str:
    """Write table.md and table.json; return table.md's text."""
    depths = range(1, options.network.num_blocks + 1)
    accuracy: dict[str, dict[int, Spread]] = {}
    for name, by_seed in found.items():
        accuracy[name] = {depth: spread(each[depth] for each in by_seed) for depth in depths}

    lines = [["", *(f"depth {depth}" for depth in depths)]]
    for name, column in accuracy.items():
        lines.append([METHODS[name].label, *(str(column[depth]) for depth in depths)])
    text = (
        f"Test accuracy in percent on {NUM_TEST} digits, mean ± standard deviation over "
        f"{len(seeds)} seeds; {options.training.steps} steps\n\n{table(lines)}\n"
    )
    write_atomic(folder / "table.md", text)
    numbers: dict[str, Any] = {}
    for name, column in accuracy.items():
        by_depth = {depth: each._asdict() for depth, each in column.items()}
        numbers[name] = {"label": METHODS[name].label, "accuracy": by_depth}
    values = {
        "methods": numbers,
        "seeds": seeds,
        "options": as_json(options),
        "threads": torch.get_num_threads(),
    }
    write_json(folder / "table.json", values)
    return text


if __name__ == "__main__":
    run_program(main, parse)
