"""Elastic depth outside super-resolution: a small vision transformer of timm on scikit-learn's
handwritten digits.

    python recipes/vit_digits.py                  about two minutes on two CPU cores; the images
    come with scikit-learn python recipes/vit_digits.py --seeds 1        a fifth of it python
    recipes/vit_digits.py --psd-weight 0.1 with a stronger self-distillation

Four ways to a network of every depth are compared by their accuracy on images that none of them was
trained on: the ordinary network, trained by its deepest exit and then cut short; deep supervision
(DSL); deep supervision and progressive self-distillation (DSL + PSD); and a network of each depth
trained alone. All see the same split, start and batches and take the same number of steps; each
seed has a split, a start and batches of its own. The run folder receives options.json, log.jsonl,
elastic.safetensors (the DSL + PSD network of the first seed, for elasticnet.load with build=), and
after every seed the table (table.md, table.json) and the figure (accuracy.png).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from elasticnet.loss_weights import normalised
from elasticnet.losses import LossMeter, progressive_distillation
from elasticnet.memory import keep_freed_memory
from elasticnet.retrofit.timm import split
from elasticnet.training.learning_rate import cosine
from elasticnet.training.options import as_json, at_least_one, parse_options
from elasticnet.training.run_folder import Run
from elasticnet.training.state import seed_all
from elasticnet.training.stop_signal import StopSignal

LABELS = {
    "cut": "ordinary, cut short",
    "dsl": "DSL",
    "psd": "DSL + PSD",
    "alone": "each depth alone",
}
COMPARED = (("dsl", "cut"), ("dsl", "alone"), ("psd", "alone"), ("psd", "dsl"))
NUM_IMAGES, SIDE, NUM_CLASSES, NUM_HEADS = 1797, 8, 10, 4

Scores = dict[str, dict[int, dict[int, float]]]  # variant -> seed -> depth -> accuracy in percent


@dataclass(frozen=True)
class Options:
    """Compare four ways to a vision transformer of every depth, on scikit-learn's digits."""

    out: Path | None = None
    """Run folder, new or empty. Default: runs/vit-digits-TIME."""
    seeds: int = 5
    """How many times everything is repeated, each with its own split, start and batches."""
    seed: int = 0
    """The first of these seeds."""
    num_test: int = 600
    """Images of the test split, of the 1797; the same share of every digit."""

    num_blocks: int = 6
    """Blocks of the network; every one carries a prediction."""
    width: int = 32
    """Numbers a token, a multiple of the 4 attention heads."""
    patch_size: Literal[1, 2, 4] = 4
    """Side of a token's patch in pixels, of images of 8x8: 4 makes four tokens, 2 sixteen, which
    take more steps.
    """

    psd_weight: float = 0.03
    """Weight of the self-distillation beside the cross-entropy, whose weights over the exits sum to
    1.
    """
    steps: int = 300
    """Training steps of every network."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 5e-3
    """AdamW's learning rate after 20 steps of warm-up; then a cosine to 0."""
    log_every: int = 50
    """Steps between lines of the log."""

    def __post_init__(self) -> None:
        at_least_one(self, "seeds", "width", "steps", "batch_size", "log_every")
        if self.num_blocks < 2:
            raise ValueError(
                f"--num-blocks {self.num_blocks}: expected at least 2, or there is nothing to cut"
            )
        if self.width % NUM_HEADS:
            raise ValueError(
                f"--width {self.width}: expected a multiple of the {NUM_HEADS} attention heads"
            )
        if not NUM_CLASSES <= self.num_test <= NUM_IMAGES - NUM_CLASSES:
            most = NUM_IMAGES - NUM_CLASSES
            raise ValueError(
                f"--num-test {self.num_test}: "
                f"expected {NUM_CLASSES} to {most} of the {NUM_IMAGES} images"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate {self.learning_rate}: expected a number above 0")
        for name in ("seed", "psd_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number from 0 up"
                )


class Digits(NamedTuple):
    """Images (n, 1, 8, 8) in -1..1 and their digits (n,), of the training and the test split."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def main(options: Options) -> None:
    num_blocks, variants = options.num_blocks, ("cut", "dsl", "psd")
    # Alone at the deepest exit is the ordinary network, to the bit: it is trained once and counted
    # twice.
    trainings = [(variant, num_blocks) for variant in variants] + [
        ("alone", depth) for depth in range(1, num_blocks)
    ]
    total = options.seeds * len(trainings) * options.steps
    scores: Scores = {variant: defaultdict(dict) for variant in LABELS}
    distances: dict[str, dict[int, float]] = {variant: {} for variant in variants}
    net, report = None, ""
    with Run.create(
        options.out or Path("runs", time.strftime("vit-digits-%Y%m%d-%H%M%S")), as_json(options)
    ) as run:
        print(
            f"{options.seeds} x {len(trainings)} trainings of {options.steps} steps; "
            f"run folder {run.folder}"
        )
        with (
            StopSignal() as stop,
            tqdm(
                total=total,
                unit="it",
                dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 30,
            ) as bar,
        ):
            for seed in range(options.seed, options.seed + options.seeds):
                digits = read_digits(options.num_test, seed)
                for variant, depth in trainings:
                    bar.set_postfix_str(f"seed {seed}, {LABELS[variant]}, depth {depth}")
                    net = train(options, variant, depth, seed, digits, run, bar, stop)
                    if net is None:
                        break
                    accuracy, distance = evaluate(net, digits)
                    measured = {"accuracy": accuracy, "attention_distance": distance}
                    run.log(
                        {
                            "step": bar.n,
                            "seed": seed,
                            "variant": variant,
                            "depth": depth,
                            **measured,
                        }
                    )
                    scores[variant][seed] |= (
                        {depth: accuracy[depth]} if variant == "alone" else accuracy
                    )
                    if variant == "cut":
                        scores["alone"][seed][depth] = accuracy[depth]
                    if variant in variants:
                        distances[variant][seed] = distance
                    if variant == "psd" and seed == options.seed:
                        notes = {"seed": seed, "accuracy": accuracy, "options": as_json(options)}
                        elasticnet.save(net, run.folder / "elastic.safetensors", notes)
                if net is None:
                    break
                report = write_report(options, run.folder, scores, distances)
        if net is None:
            print(
                f"stopped at step {bar.n} of {total}; "
                f"what was measured so far is in {run.folder / 'log.jsonl'}"
            )
        else:
            print(f"\n{report}\nwritten to {run.folder}: elastic.safetensors, table and figure")


def read_digits(num_test: int, seed: int) -> Digits:
    """Return scikit-learn's digits, split at random with the same share of every digit."""
    images, digits = load_digits(return_X_y=True)  # values 0..16
    parts: Any = train_test_split(
        images, digits, test_size=num_test, stratify=digits, random_state=seed
    )
    x, test_x = (
        torch.tensor(part / 8 - 1, dtype=torch.float32).view(-1, 1, SIDE, SIDE)
        for part in parts[:2]
    )
    return Digits(x, torch.tensor(parts[2]), test_x, torch.tensor(parts[3]))


def build(options: Options) -> VisionTransformer:
    """Return the network as timm makes it, class token and all."""
    return VisionTransformer(
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


def train(
    options: Options,
    variant: str,
    depth: int,
    seed: int,
    digits: Digits,
    run: Run,
    bar: tqdm,
    stop: StopSignal,
) -> ElasticWrapper | None:
    """Train a network of `depth` blocks and return it with a tap at each, in eval mode; None when
    it was stopped.
    """
    seed_all(seed)
    parts = split(build(options))
    parts = parts._replace(blocks=parts.blocks[:depth])
    # with its one tap, an ordinary network
    net = parts.wrap(None if variant in ("dsl", "psd") else (-1,)).train()
    psd_weight = options.psd_weight if variant == "psd" else 0.0
    objective = ElasticObjective(net, F.cross_entropy, psd_weight, tap_weights=normalised(net.taps))
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05, fused=True)
    generator, meter = torch.Generator().manual_seed(seed), LossMeter()
    for step in range(options.steps):
        if stop.requested:
            return None
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * cosine(step, options.steps, warmup=20)
        chosen = torch.randint(len(digits.x), (options.batch_size,), generator=generator)
        terms = objective(digits.x[chosen], digits.y[chosen])
        if not terms.total.isfinite():
            raise FloatingPointError(
                f"{LABELS[variant]}, seed {seed}: the loss became {terms.total.item()} "
                f"at step {step}; try less than "
                f"--learning-rate {options.learning_rate:g}"
            )
        optimizer.zero_grad(set_to_none=True)
        terms.total.backward()
        optimizer.step()
        meter.add(terms)
        bar.update()
        if (step + 1) % options.log_every == 0 or step + 1 == options.steps:
            run.log(
                {"step": bar.n, "seed": seed, "variant": variant, "depth": depth, **meter.means()}
            )
    return parts.wrap().eval()  # the same modules, trained, now with every tap


@torch.no_grad()
def evaluate(net: ElasticWrapper, digits: Digits) -> tuple[dict[int, float], float]:
    """Return the test accuracy in percent of every depth, and the mean distance of neighbours'
    attention maps.
    """
    taps = net.forward_taps(digits.test_x)
    right = [
        (prediction.argmax(1) == digits.test_y).sum().item() for prediction in taps.predictions
    ]
    distance = progressive_distillation(taps.features, net.layout, net.prefix_tokens) / max(
        1, len(taps.features) - 1
    )
    percent = {
        depth: 100 * each / len(digits.test_y)
        for depth, each in zip(taps.depths, right, strict=True)
    }
    return percent, distance.item()


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Return the mean and the standard deviation (None of a single value) of one number a seed, and
    the numbers.
    """
    seeds = list(values)
    return {
        "mean": statistics.mean(seeds),
        "spread": statistics.stdev(seeds) if seeds[1:] else None,
        "seeds": seeds,
    }


def write_report(
    options: Options, folder: Path, scores: Scores, distances: dict[str, dict[int, float]]
) -> str:
    """Write table.md, table.json and accuracy.png of the seeds so far into `folder`; return
    table.md's text.
    """
    from elasticnet.sr.benchmark.figures import elastic_curve

    seeds, depths = list(scores["alone"]), range(1, options.num_blocks + 1)
    accuracy = {
        variant: {
            depth: spread(each[depth] for each in scores[variant].values()) for depth in depths
        }
        for variant in LABELS
    }
    differences = {
        f"{LABELS[ours]} − {LABELS[theirs]}": {
            depth: spread(scores[ours][seed][depth] - scores[theirs][seed][depth] for seed in seeds)
            for depth in depths
        }
        for ours, theirs in COMPARED
    }
    neighbours = {LABELS[variant]: spread(each.values()) for variant, each in distances.items()}
    maps = ", ".join(f"{label} {each['mean']:.3f}" for label, each in neighbours.items())
    text = (
        f"Test accuracy in percent on {options.num_test} digits, "
        "mean ± standard deviation over the seeds; seeds "
        f"{', '.join(map(str, seeds))}, {options.steps} steps each, "
        f"PSD weight {options.psd_weight:g}\n\n"
        f"{depth_table({LABELS[variant]: accuracy[variant] for variant in LABELS}, '.1f')}\n"
        "Differences in points within a seed, mean ± standard deviation; "
        "in brackets where the mean is not larger than "
        f"the deviation\n\n{depth_table(differences, '+.1f')}\n"
        f"Distance between neighbouring blocks' attention maps on the test images: {maps}\n"
    )
    write_atomic(folder / "table.md", text)
    values = {
        "accuracy": accuracy,
        "differences": differences,
        "attention_distance": neighbours,
        "seeds": seeds,
    }
    write_json(
        folder / "table.json",
        {**values, "options": as_json(options), "threads": torch.get_num_threads()},
    )
    means = {
        variant: {depth: each["mean"] for depth, each in accuracy[variant].items()}
        for variant in LABELS
    }
    title = f"ViT on digits, {options.steps} steps, seeds {', '.join(map(str, seeds))}"
    curves = {LABELS[variant]: means[variant] for variant in LABELS}
    elastic_curve(folder / "accuracy.png", curves, title=title, ylabel="test accuracy (%)")
    return text


def depth_table(columns: dict[str, dict[int, dict[str, Any]]], form: str) -> str:
    """Return a Markdown table, a line for each depth; a signed `form` puts what is within its
    spread in brackets.
    """
    depths = next(iter(columns.values()))
    lines = [["depth", *columns]]
    for depth in depths:
        cells = []
        for column in columns.values():
            mean, deviation = column[depth]["mean"], column[depth]["spread"]
            cell = f"{mean:{form}}" if deviation is None else f"{mean:{form}} ± {deviation:.1f}"
            within = form.startswith("+") and deviation is not None and abs(mean) <= deviation
            cells.append(f"({cell})" if within else cell)
        lines.append([str(depth), *cells])
    return table(lines)


def parse(arguments: list[str]) -> Options:
    return parse_options(Options, arguments, lambda given: Options(), __doc__)


if __name__ == "__main__":
    keep_freed_memory()
    try:
        main(parse(sys.argv[1:]))
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
