"""Make a timm model elastic: train it once, and ship an ordinary timm model of every depth.

    python recipes/elastic_timm.py                   minutes on two CPU cores, on handwritten digits
    python recipes/elastic_timm.py --model resnet18 --data DIR
    python recipes/elastic_timm.py --model vit_small_patch16_224 --pretrained --data DIR
    python recipes/elastic_timm.py --resume RUN      go on exactly where the run in a folder stopped

DIR holds a folder of images for each class, or train/ and val/ with such folders in them. Without
it, scikit-learn's digits are learned, at 32x32 pixels. Three kinds of training with the same start,
batches and number of steps: the ordinary model, by its deepest tap; the elastic one, by all taps;
and, for comparison, a model of each depth alone. BatchNorm in the head or in adapters is measured
anew for each depth at the end. The run folder receives options.json, log.jsonl, the states to
resume from, elastic.safetensors (all depths, for elasticnet.load with build=), timm/ (ordinary
checkpoints of every depth whose tap has no adapter), table.md, table.json and accuracy.png.
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported

# isort: split
import ast
import difflib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import elasticnet
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet._files import write_atomic, write_json
from elasticnet._tables import aligned, table
from elasticnet.card.counting import count_macs
from elasticnet.loss_weights import normalised
from elasticnet.memory import keep_freed_memory
from elasticnet.recalibration import recalibrate, separate_statistics
from elasticnet.retrofit import to_model
from elasticnet.retrofit.parts import Split
from elasticnet.retrofit.timm import split
from elasticnet.sr.benchmark.figures import elastic_curve
from elasticnet.training.learning_rate import cosine
from elasticnet.training.log import TrainingLog, show_messages
from elasticnet.training.options import (
    AtLeast,
    ComputeOptions,
    FromTo,
    LossOptions,
    OptimiserOptions,
    OptionGroup,
    RunOptions,
    as_json,
    check_file,
    check_folder,
    open_run,
    parse_options,
    resume_command,
    with_values,
)
from elasticnet.training.phases import Standing, where_it_stands
from elasticnet.training.precision import resolve_precision
from elasticnet.training.processes import Processes, single_process
from elasticnet.training.program import run_program
from elasticnet.training.run_folder import Run
from elasticnet.training.state import random_state, seed_all, set_random_state
from elasticnet.training.step import TrainingStep
from elasticnet.training.stop_signal import StopSignal

# the labels of the models in tables and figures
LABELS = {"ordinary": "ordinary, cut short", "elastic": "elastic", "alone": "each depth alone"}
# What makes a vision transformer small enough for the digits. weight_init=reset is PyTorch's own
# start, because timm's starts small, and 300 steps are too few for it.
SMALL_VIT = "img_size=32 patch_size=4 embed_dim=96 depth=6 num_heads=3 weight_init=reset"
DIGITS_SIZE = 32  # of an image, in pixels
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CROP_AREA = (0.35, 1.0)  # of the image, which a training crop covers
CROP_RATIO = (3 / 4, 4 / 3)  # of its width and height
WEIGHT_DECAY = 0.05  # of matrices and filters; not of biases and norms
EVALUATION_BATCH = 256
# what torch and timm raise of a file that holds no weights, or another model's
UNREADABLE = (AttributeError, KeyError, RuntimeError, TypeError, ValueError, UnpicklingError)
# what a resumed run cannot change
FIXED = (
    "model",
    "model_options",
    "pretrained",
    "weights",
    "stages",
    "num_taps",
    "data",
    "test_share",
    "alone",
)


# --- options: in groups for --help and for the code below; options.json holds them without groups


@dataclass(frozen=True, kw_only=True)
class Network(OptionGroup):
    """The timm model, and where it gets its taps."""

    model: str = "vit_small_patch16_224"
    """The name of a timm model."""
    model_options: str | None = None
    """Arguments of timm.create_model: "depth=6 embed_dim=96". Default: none; for a vision
    transformer on the digits, those that make it small enough: img_size=32 patch_size=4
    embed_dim=96 depth=6 num_heads=3 weight_init=reset.
    """
    pretrained: bool = False
    """Start from timm's pretrained weights, which are downloaded. Take a smaller --learning-rate
    then, such as 1e-4.
    """
    weights: Path | None = None
    """Start from the weights of the model in this file, as from pretrained ones."""
    stages: Literal["all", "last"] = "all"
    """Where a network of stages has its taps: all spreads them over the net, with adapters; last
    takes the blocks of the last stage, which need none.
    """
    num_taps: Annotated[int, AtLeast(2)] = 6
    """How many depths carry a prediction, evenly spread; all if there are fewer blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained and self.weights is not None:
            raise ValueError(f"--weights {self.weights} and --pretrained: give one of them")


@dataclass(frozen=True, kw_only=True)
class Data(OptionGroup):
    """The images."""

    data: Path | None = None
    """A folder with a folder of images for each class, or with train/ and val/. Default: digits."""
    test_share: Annotated[float, FromTo(0.01, 0.9)] = 0.25
    """Share of the images of each class that is only tested on, if there is no val/."""
    workers: Annotated[int, AtLeast(1)] = min(8, os.cpu_count() or 1)
    """Threads that decode images."""


@dataclass(frozen=True, kw_only=True)
class Optimiser(OptimiserOptions):
    """AdamW and its learning rate, a cosine in each training."""

    steps: Annotated[int, AtLeast(1)] = 300
    """Steps of each training."""
    alone: bool = True
    """Train each depth alone, too, to compare with."""
    recalibration_batches: Annotated[int, AtLeast(1)] = 20
    """Batches from which BatchNorm is measured anew for each depth, if there is any."""


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """All options."""

    network: Network = Network()
    data: Data = Data()
    run: RunOptions = RunOptions(eval_every=100, save_every=100, log_every=20, keep=2)
    loss: LossOptions = LossOptions(psd_weight=0.03)
    optimiser: Optimiser = Optimiser(batch_size=32, learning_rate=1e-3, warmup=60)
    compute: ComputeOptions = ComputeOptions(precision="float32")

    def __post_init__(self) -> None:
        if self.compute.precision == "float64":
            raise ValueError("--precision float64: expected auto, float32, bfloat16 or float16")


def parse(arguments: list[str]) -> Options:
    """Return the options of a command line."""
    return parse_options(Options, arguments, default=Options(), description=__doc__, fixed=FIXED)


# --- the trainings


class Phase(NamedTuple):
    """One of the trainings.

    Attributes:
        name: "ordinary", "elastic" or "alone_" and the depth.
        number: Which training it is, from 0.
        depth: How many blocks the model has.
    """

    name: str
    number: int
    depth: int


class Training(NamedTuple):
    """What all phases share.

    Attributes:
        options: The options.
        run: The run folder.
        images: The images to train and to test on.
        parts: The parts of the model, with the weights that every training starts from.
        taps: The depths that carry a prediction.
        processes: This process alone.
        log: The log of all phases together.
        stop_signal: Asks the training to stop.
        accuracies: By phase and depth, in percent; of the phases that are done.
    """

    options: Options
    run: Run
    images: Images
    parts: Split
    taps: tuple[int, ...]
    processes: Processes
    log: TrainingLog
    stop_signal: StopSignal
    accuracies: dict[str, dict[int, float]]


def main(options: Options) -> None:
    """Train the models, test every depth, and write what came out into the run folder."""
    show_messages()
    processes = single_process(options.compute.device)
    # What auto means is decided here, once: it is stored, and a resumed run keeps it.
    precision = resolve_precision(options.compute.precision, processes)
    options = with_values(options, {"precision": precision})
    images = load_images(options)
    parts = split_model(options, images)
    taps = spread_taps(len(parts.blocks), options.network.num_taps)
    processes.say(
        f"{options.network.model}: {len(parts.blocks)} blocks, taps at depths {listed(taps)}"
    )
    adapters = [depth for depth in taps if depth in parts.adapters]
    if adapters:
        processes.say(f"adapters, which are new, at depths {listed(adapters)}")

    folder = options.run.out or default_folder(options)
    with open_run(options, options.run, folder, processes) as run:
        processes.say(f"training on {images}; run folder {run.folder}")
        net, accuracies = train(options, run, images, parts, taps, processes)
        print(f"\n{write_report(options, run.folder, net, images, accuracies)}")
        written = write_timm_models(net, options, images, run.folder / "timm")
        print(f"written to {run.folder}: elastic.safetensors, table and figure\n{written}")


def train(
    options: Options,
    run: Run,
    images: Images,
    parts: Split,
    taps: tuple[int, ...],
    processes: Processes,
) -> tuple[ElasticWrapper, dict[str, dict[int, float]]]:
    """Go through the phases from where the run stands; return the elastic net and all accuracies.

    A signal ends the process, after saving.
    """
    # Go on behind the newest state that the run has saved; a new run begins with the first phase.
    phases = phases_of(options, taps)
    steps = options.optimiser.steps
    names = [phase.name for phase in phases]
    standing = where_it_stands(run, names, steps, processes.say)
    accuracies: dict[str, dict[int, float]] = {}
    if standing.state is not None:
        accuracies.update(standing.state["accuracies"])
    log = TrainingLog(
        run,
        total=len(phases) * steps,
        processes=processes,
        score_name="accuracy",
        score_unit="%",
        tensorboard=options.run.tensorboard,
    )

    file = run.folder / "elastic.safetensors"
    with StopSignal() as stop_signal:
        training = Training(
            options=options,
            run=run,
            images=images,
            parts=parts,
            taps=taps,
            processes=processes,
            log=log,
            stop_signal=stop_signal,
            accuracies=accuracies,
        )
        for phase in phases[standing.phase :]:
            # Every phase starts from the same weights.
            net = network_of(phase, parts, taps).to(processes.device)
            processes.say(f"phase {phase.number + 1} of {len(phases)}: {phase.name}")
            step = train_phase(training, phase, net, standing)
            if step < steps:
                processes.say(
                    f"stopped and saved at step {phase.number * steps + step}; go on with: "
                    f"{resume_command(run)}"
                )
                sys.exit(stop_signal.exit_status)

            # Measure BatchNorm for each depth, and test every depth that the net has.
            if phase.name == "elastic":
                recalibrate(net, measuring_batches(training))
                notes = {"model": options.network.model, "arguments": model_arguments(options)}
                elasticnet.save(net, file, notes)
            if phase.name == "ordinary":
                net = cut_short(net, parts, taps)
            accuracies[phase.name] = test(net, images)
            standing = Standing(phase=phase.number + 1, step=0, state=None)

    elastic = network_of(phases[1], parts, taps)
    elasticnet.load_into(elastic, file)
    return elastic.eval(), accuracies


def train_phase(training: Training, phase: Phase, net: ElasticWrapper, standing: Standing) -> int:
    """Train one model, to the phase's end or until a signal; return the steps done of it so far."""
    options = training.options
    log = training.log
    steps = options.optimiser.steps
    step = standing.step
    steps_before = phase.number * steps
    stopping = training.stop_signal.requested

    # A resumed phase goes on with its optimiser's moments and with what the log showed last.
    training_step = make_training_step(options, phase, net)
    log_state = begin(training, standing, training_step)

    with log.start(steps_before + step, log_state):
        while step < steps and not stopping:
            # Train on one batch. Images and learning rate are functions of the step.
            net.train()
            factor = cosine(step, steps, min(options.optimiser.warmup, steps // 4))
            learning_rate = options.optimiser.learning_rate * factor
            batch = partial(batch_of, training, step)
            terms = training_step(batch=batch, step=step, learning_rate=learning_rate)
            log.add(terms)
            step += 1

            # Decide what is due, and whether a signal asks to stop. Stopping saves as well.
            stopping = training.stop_signal.requested
            testing = step == steps or step % options.run.eval_every == 0
            saving = testing or stopping or step % options.run.save_every == 0

            # Test the depths that this phase trains.
            scores = test(net, training.images) if testing else None

            # Write the line of the log before the save: a resumed run cuts the log back to the
            # step of the state that it continues from.
            if saving or step % options.run.log_every == 0:
                numbers = {"learning_rate": learning_rate, "phase": phase.number + 1}
                if options.loss.log_psd_share:
                    numbers["psd_share"] = training_step.distillation_share(
                        batch, step - 1, module=net.blocks
                    )
                log.write(steps_before + step, scores, **numbers)
            if saving:
                save(training, phase, step, training_step)
    return step


# --- what the trainings are made of


def listed(depths: Sequence[int]) -> str:
    """Return depths as messages name them."""
    return ", ".join(str(depth) for depth in depths)


def phases_of(options: Options, taps: Sequence[int]) -> list[Phase]:
    """Return the trainings in their order. Alone at the deepest tap is the ordinary model."""
    phases = [
        Phase(name="ordinary", number=0, depth=taps[-1]),
        Phase(name="elastic", number=1, depth=taps[-1]),
    ]
    if options.optimiser.alone:
        for depth in taps[:-1]:
            phases.append(Phase(name=f"alone_{depth}", number=len(phases), depth=depth))
    return phases


def make_training_step(options: Options, phase: Phase, net: ElasticWrapper) -> TrainingStep:
    """Return what does one step of a phase, with its loss and its optimiser."""
    loss = options.loss
    if phase.name != "elastic":  # a single tap: nothing to distil, nothing to choose from
        loss = LossOptions(psd_weight=0.0, sampled_taps=None)
    objective = ElasticObjective(
        net,
        task_loss=F.cross_entropy,
        psd_weight=0.0,  # as its form is an option, it is one of the distillations
        distillations=[loss.self_distillation()],
        tap_weights=normalised(net.taps),
        sampled_taps=loss.sampled_taps,
        seed=options.run.seed,
    )
    matrices = [each for each in net.parameters() if each.ndim > 1]
    vectors = [each for each in net.parameters() if each.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=options.optimiser.learning_rate, fused=True)
    return TrainingStep(objective, net, optimiser, precision=options.compute.precision)


def begin(training: Training, standing: Standing, training_step: TrainingStep) -> Mapping[str, Any]:
    """Bring a phase to where it stands; return what the log showed there."""
    seed_all(training.options.run.seed)
    if standing.state is None:
        return {"scores": {}, "seconds": training.log.seconds}
    training_step.load_state_dict(standing.state["training"])
    set_random_state(standing.state["random"])
    return standing.state["log"]


def save(training: Training, phase: Phase, step: int, training_step: TrainingStep) -> None:
    """Write the state to resume from."""
    steps = training.options.optimiser.steps
    state = {
        "phase": phase.name,
        "steps": steps,
        "training": training_step.state_dict(),
        "random": random_state(),
        "log": training.log.state_dict(),
        "accuracies": training.accuracies,
    }
    training.run.save(phase.number * steps + step, state)


def batch_of(training: Training, step: int, part: int, num_parts: int) -> tuple[Tensor, Tensor]:
    """Return a part of a step's batch: images (b, 3, h, w) and their classes (b,)."""
    options = training.options
    batch_size = options.optimiser.batch_size
    if batch_size % num_parts > 0:
        raise ValueError(f"a batch of {batch_size} cannot be cut into {num_parts} equal parts")
    size = batch_size // num_parts
    first = step * batch_size + part * size
    x, labels = training.images.training_batch(range(first, first + size), options.run.seed)
    device = training.processes.device
    return x.to(device), labels.to(device)


def measuring_batches(training: Training) -> Iterator[Tensor]:
    """Yield batches of training images for the statistics of BatchNorm."""
    for step in range(training.options.optimiser.recalibration_batches):
        x, _ = batch_of(training, step, part=0, num_parts=1)
        yield x


# --- the model


def model_arguments(options: Options) -> dict[str, Any]:
    """Return the arguments of timm.create_model that --model-options or its default gives."""
    text = options.network.model_options
    if text is None:
        is_small_vit = options.data.data is None and options.network.model.startswith("vit_")
        text = SMALL_VIT if is_small_vit else ""
    arguments: dict[str, Any] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--model-options {text!r}: expected NAME=VALUE, got {word!r}")
        arguments[name] = plain_value(value)
    return arguments


def plain_value(text: str) -> Any:
    """Return the number, tuple, bool or None that a text is in Python, or else the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def build_model(options: Options, images: Images) -> nn.Module:
    """Return the timm model with the weights that every training starts from."""
    network = options.network
    arguments = {**model_arguments(options), "num_classes": images.num_classes}
    if network.weights is not None:
        check_file(network.weights, "weights")
        # timm reads a file as it reads its own weights: with another number of classes, the
        # classifier is new; of another image size, the position embedding is resized.
        overlay: dict[str, Any] = {"file": str(network.weights)}
        if network.weights.suffix != ".npz":
            # A model whose first weights came as .npz has a reader for these alone. timm 1.0.25
            # would take it for any file.
            overlay["custom_load"] = False
        arguments["pretrained_cfg_overlay"] = overlay
    seed_all(options.run.seed)
    if network.weights is None:
        try:
            return timm.create_model(network.model, pretrained=network.pretrained, **arguments)
        except TypeError as error:
            if network.model_options is None:
                raise
            raise ValueError(f"--model-options {network.model_options!r}: {error}") from error
    try:
        model = timm.create_model(network.model, pretrained=True, **arguments)
        seed_all(options.run.seed + 1)
        twin = timm.create_model(network.model, pretrained=True, **arguments)
    except UNREADABLE as error:
        raise ValueError(
            f"--weights {network.weights}: timm cannot load this file into {network.model}: {error}"
        ) from error
    check_comes_from_file(model, twin, network)
    return model


def check_comes_from_file(model: nn.Module, twin: nn.Module, network: Network) -> None:
    """Raise if weights of a model, other than its classifier's, are not those of --weights.

    timm passes over what a file has not, and these weights stay random: they differ in `twin`,
    which was made of the same file from another seed.
    """
    untyped: Any = model
    classifiers = untyped.pretrained_cfg.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    prefixes = tuple(f"{name}." for name in classifiers)
    of_twin = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if not name.startswith(prefixes) and not torch.equal(parameter, of_twin[name]):
            raise ValueError(
                f"--weights {network.weights}: timm cannot load this file into {network.model}: "
                f"it has no {name}"
            )


def check_model_name(name: str) -> None:
    """Raise if timm has no model of this name; the message names similar ones."""
    architecture, _, _ = name.partition(".")  # behind the dot stands which weights it has
    if ":" in name or timm.is_model(architecture):  # "hf-hub:..." is looked up by timm itself
        return
    known: list[str] = timm.list_models()
    similar = [each for each in known if each.startswith(architecture)][:3]
    if not similar:
        similar = difflib.get_close_matches(architecture, known, n=3)
    remedy = f"; similar: {', '.join(similar)}" if similar else ""
    raise ValueError(f"--model {name}: timm has no such model{remedy}")


def split_model(options: Options, images: Images) -> Split:
    """Return the parts of a new model."""
    model = build_model(options, images)
    stages = "all" if options.network.stages == "all" else None
    # adapters draw their weights
    seed_all(options.run.seed + 1)
    return split(model, images.example(), stages=stages)


def network_of(phase: Phase, parts: Split, taps: tuple[int, ...]) -> ElasticWrapper:
    """Return a new net for a phase: of its depth, with all taps or the deepest one alone."""
    parts = parts._replace(blocks=parts.blocks[: phase.depth])
    if phase.name != "elastic":
        return parts.wrap((phase.depth,)).truncate(-1)  # an independent copy
    net = parts.wrap(taps).truncate(-1)
    # BatchNorm in the head, if there is any, keeps statistics for each depth from the first step.
    separate_statistics(net)
    return net


def cut_short(net: ElasticWrapper, parts: Split, taps: tuple[int, ...]) -> ElasticWrapper:
    """Return an ordinary net with a tap wherever its head takes the features as they are."""
    return net.with_taps([depth for depth in taps if depth not in parts.adapters])


def spread_taps(num_blocks: int, num_taps: int) -> tuple[int, ...]:
    """Return so many depths, evenly spread, the deepest among them."""
    if num_blocks <= num_taps:
        return tuple(range(1, num_blocks + 1))
    return tuple(round(num_blocks * (index + 1) / num_taps) for index in range(num_taps))


@torch.no_grad()
def test(net: ElasticWrapper, images: Images) -> dict[int, float]:
    """Return the accuracy at every tap on the test images, in percent."""
    net.eval()
    right = dict.fromkeys(net.taps, 0)
    device = next(net.parameters()).device
    for x, labels in images.test_batches():
        taps = net.forward_taps(x.to(device))
        for depth, prediction in zip(taps.depths, taps.predictions, strict=True):
            right[depth] += int((prediction.argmax(1).cpu() == labels).sum())
    return {depth: 100 * count / images.num_test for depth, count in right.items()}


# --- images


class Images(Protocol):
    """Images of some classes to train and to test on."""

    num_classes: int
    num_test: int

    def example(self) -> Tensor:
        """Return an input of the model: two test images (2, 3, h, w)."""
        ...

    def training_batch(self, places: range, seed: int) -> tuple[Tensor, Tensor]:
        """Return the training images at places in the endless order of a seed, and their classes.

        The answer depends on the arguments alone, so that a resumed training has the same images.
        """
        ...

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all test images (b, 3, h, w) and their classes (b,)."""
        ...


class Format(NamedTuple):
    """How the model takes images.

    Attributes:
        size: Height and width in pixels.
        mean: What is subtracted from each channel in 0..1.
        std: What it is then divided by.
        crop: Share of the shorter side that a test image keeps.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float

    def normalised(self, images: Tensor) -> Tensor:
        """Return images (b, 3, h, w) of 0..1 as the model takes them."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return (images - mean) / std


def load_images(options: Options) -> Images:
    """Return the images of --data, or the digits."""
    check_model_name(options.network.model)
    size = model_arguments(options).get("img_size")
    if options.data.data is None:
        half = (0.5, 0.5, 0.5)
        form = Format(size=size or DIGITS_SIZE, mean=half, std=half, crop=1.0)
        return Digits(form, options.data.test_share, options.run.seed)
    check_folder(options.data.data, "data")
    config: Any = timm.get_pretrained_cfg(options.network.model)
    if config is None:
        raise ValueError(
            f"--model {options.network.model}: timm does not say what images it takes; without "
            "--data it learns the digits"
        )
    form = Format(
        size=size or config.input_size[-1], mean=config.mean, std=config.std, crop=config.crop_pct
    )
    return ImageFolder(options.data, form, options.run.seed)


class Digits:
    """Scikit-learn's handwritten digits, enlarged from 8x8 pixels, in three equal channels."""

    num_classes = 10

    def __init__(self, form: Format, test_share: float, seed: int) -> None:
        rows, labels = load_digits(return_X_y=True)  # (n, 64) values 0..16; (n,)
        images = torch.tensor(rows / 16, dtype=torch.float32).view(-1, 1, 8, 8)
        images = F.interpolate(images, size=(form.size, form.size), mode="bilinear")
        images = form.normalised(images.repeat(1, 3, 1, 1))
        training, tested = split_places(labels, test_share, seed)
        self.x = images[training]
        self.labels = torch.tensor(labels[training])
        self.test_x = images[tested]
        self.test_labels = torch.tensor(labels[tested])
        self.num_test = len(tested)

    def __str__(self) -> str:
        return f"{len(self.labels)} digits, tested on {self.num_test} others"

    def example(self) -> Tensor:
        return self.test_x[:2]

    def training_batch(self, places: range, seed: int) -> tuple[Tensor, Tensor]:
        chosen = shuffled(places, len(self.labels), seed)
        return self.x[chosen], self.labels[chosen]

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.test_x.split(EVALUATION_BATCH)
        labels = self.test_labels.split(EVALUATION_BATCH)
        yield from zip(images, labels, strict=True)


class ImageFolder:
    """A folder with a folder of images for each class, or with such folders in train/ and val/."""

    def __init__(self, data: Data, form: Format, seed: int) -> None:
        assert data.data is not None
        root = data.data
        has_both = (root / "train").is_dir() and (root / "val").is_dir()
        files, labels, classes = find_images(root / "train" if has_both else root)
        if has_both:
            test_files, test_labels, test_classes = find_images(root / "val")
            if test_classes != classes:
                raise ValueError(f"--data {root}: train/ and val/ have different classes")
        else:
            training, tested = split_places(labels, data.test_share, seed)
            test_files = [files[place] for place in tested]
            test_labels = labels[tested]
            files = [files[place] for place in training]
            labels = labels[training]
        self.form = form
        self.files = files
        self.labels = torch.from_numpy(labels)
        self.test_files = test_files
        self.test_labels = torch.from_numpy(test_labels)
        self.num_classes = len(classes)
        self.num_test = len(test_files)
        self._threads = ThreadPoolExecutor(data.workers)

    def __str__(self) -> str:
        return (
            f"{len(self.files)} images of {self.num_classes} classes, tested on {self.num_test} "
            "others"
        )

    def example(self) -> Tensor:
        x, _ = next(self.test_batches())
        return x[:1].repeat(2, 1, 1, 1)

    def training_batch(self, places: range, seed: int) -> tuple[Tensor, Tensor]:
        chosen = shuffled(places, len(self.files), seed)

        def read(place: int, index: int) -> Tensor:
            return read_crop(self.files[index], self.form, np.random.default_rng((seed, place)))

        images = list(self._threads.map(read, places, chosen))
        return self.form.normalised(torch.stack(images)), self.labels[chosen]

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        def read(path: Path) -> Tensor:
            return read_middle(path, self.form)

        for first in range(0, self.num_test, EVALUATION_BATCH):
            last = first + EVALUATION_BATCH
            images = list(self._threads.map(read, self.test_files[first:last]))
            yield self.form.normalised(torch.stack(images)), self.test_labels[first:last]


def find_images(root: Path) -> tuple[list[Path], np.ndarray, list[str]]:
    """Return the images below a folder, the number of the class of each, and the classes."""
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    files: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        for path in sorted((root / name).rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                files.append(path)
                labels.append(number)
    if len(classes) < 2 or len(set(labels)) < len(classes):
        raise ValueError(
            f"--data {root}: expected a folder of images for each of two classes or more"
        )
    return files, np.array(labels), classes


def split_places(labels: np.ndarray, test_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the places to train on and those to test on: the same share of every class."""
    random = np.random.default_rng(seed)
    training: list[int] = []
    tested: list[int] = []
    for label in np.unique(labels):
        places = random.permutation(np.flatnonzero(labels == label)).tolist()
        num_test = max(1, round(test_share * len(places)))
        tested += places[:num_test]
        training += places[num_test:]
    return sorted(training), sorted(tested)


def shuffled(places: range, num_images: int, seed: int) -> list[int]:
    """Return the images at places in an endless order: every epoch has each image once."""
    chosen: list[int] = []
    for place in places:
        epoch, index = divmod(place, num_images)
        chosen.append(int(epoch_order(num_images, seed, epoch)[index]))
    return chosen


@lru_cache(maxsize=2)
def epoch_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the images in one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(num_images)


def read_crop(path: Path, form: Format, random: np.random.Generator) -> Tensor:
    """Return a random part of an image (3, h, w) in 0..1, perhaps mirrored."""
    image = open_rgb(path)
    area = image.width * image.height * random.uniform(*CROP_AREA)
    ratio = np.exp(random.uniform(*np.log(CROP_RATIO)))
    width = min(image.width, np.sqrt(area * ratio))
    height = min(image.height, np.sqrt(area / ratio))
    left = random.uniform(0, image.width - width)
    top = random.uniform(0, image.height - height)
    pixels = resized(image, (left, top, left + width, top + height), form.size)
    is_mirrored = random.uniform() < 0.5
    return pixels.flip(2) if is_mirrored else pixels


def read_middle(path: Path, form: Format) -> Tensor:
    """Return the middle of an image (3, h, w) in 0..1."""
    image = open_rgb(path)
    side = form.crop * min(image.width, image.height)
    left = (image.width - side) / 2
    top = (image.height - side) / 2
    return resized(image, (left, top, left + side, top + side), form.size)


def open_rgb(path: Path) -> Image.Image:
    """Return an image in RGB; the error of one that cannot be read names it."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error


def resized(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Tensor:
    """Return a part of an image (3, size, size) in 0..1."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255


# --- the report, and the files of every depth


def write_report(
    options: Options,
    folder: Path,
    net: ElasticWrapper,
    images: Images,
    accuracies: Mapping[str, Mapping[int, float]],
) -> str:
    """Write table.md, table.json and accuracy.png; return the table for the terminal."""
    columns = columns_of(options, net.taps, accuracies)
    cost = cost_of(net, images)
    labels = [LABELS[name] for name in columns]
    rows: list[list[str]] = [["depth", "cost", *labels]]
    for depth in net.taps:
        cells = [f"{column[depth]:.1f}" if depth in column else "" for column in columns.values()]
        rows.append([str(depth), f"{cost[depth]:.0f} %", *cells])
    heading = (
        f"Test accuracy in percent, of {options.network.model} on {images}; "
        f"{options.optimiser.steps} steps of each training, seed {options.run.seed}. Cost: "
        "multiply-accumulates, of those of the whole net.\n\n"
    )
    text = table(rows)
    write_atomic(folder / "table.md", heading + text)
    values = {
        "accuracy": columns,
        "cost": cost,
        "options": as_json(options),
        "threads": torch.get_num_threads(),
    }
    write_json(folder / "table.json", values)
    curves = {LABELS[name]: column for name, column in columns.items()}
    title = f"{options.network.model}, {options.optimiser.steps} steps"
    if options.run.figures:
        elastic_curve(folder / "accuracy.png", curves, title=title, ylabel="test accuracy (%)")
    return heading + aligned(text)


def columns_of(
    options: Options, taps: Sequence[int], accuracies: Mapping[str, Mapping[int, float]]
) -> dict[str, dict[int, float]]:
    """Return the columns of the table: accuracies by depth of each way to a net of every depth."""
    columns: dict[str, dict[int, float]] = {
        "ordinary": dict(accuracies["ordinary"]),
        "elastic": dict(accuracies["elastic"]),
    }
    if options.optimiser.alone:
        *shallower, deepest = taps
        columns["alone"] = {depth: accuracies[f"alone_{depth}"][depth] for depth in shallower}
        # alone at the deepest tap is the ordinary model
        columns["alone"][deepest] = accuracies["ordinary"][deepest]
    return columns


def cost_of(net: ElasticWrapper, images: Images) -> dict[int, float]:
    """Return what each depth computes, in percent of the whole net."""
    macs = {depth: count_macs(net, images.example(), depth) for depth in net.taps}
    return {depth: 100 * each / macs[net.taps[-1]] for depth, each in macs.items()}


def write_timm_models(net: ElasticWrapper, options: Options, images: Images, folder: Path) -> str:
    """Write an ordinary timm checkpoint of every depth that has one; return what was written.

    models.json says with which arguments `timm.create_model` takes each of them. That is proved
    here: the model of the file gives what the elastic net gives at this depth.
    """
    folder.mkdir(exist_ok=True)
    models: dict[str, dict[str, Any]] = {}
    said: list[str] = []
    for depth in net.taps:
        file = folder / f"depth_{depth}.safetensors"
        try:
            model = to_model(net, depth)
            write_atomic(file, safetensors.torch.save(tensors_of(model)))
            arguments = proved_arguments(net, depth, options, images, file)
        except ValueError as error:
            file.unlink(missing_ok=True)
            said.append(f"no timm checkpoint of depth {depth}: {error}")
            continue
        models[file.name] = {"model": options.network.model, "arguments": arguments}
    write_json(folder / "models.json", models)
    names = ", ".join(models) or "nothing"
    return "\n".join([f"timm checkpoints, in {folder}: {names}", *said])


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model, each tensor in memory of its own."""
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


def proved_arguments(
    net: ElasticWrapper, depth: int, options: Options, images: Images, file: Path
) -> dict[str, Any]:
    """Return the arguments by which `timm.create_model` makes the model of a file."""
    arguments = {**model_arguments(options), "num_classes": images.num_classes}
    if depth < net.taps[-1]:
        arguments["depth"] = depth
    try:
        model = timm.create_model(options.network.model, checkpoint_path=str(file), **arguments)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"timm.create_model does not make it ({first_line(error)})") from error
    x = images.example()
    with torch.no_grad():
        if not torch.equal(model.eval()(x), net(x, depth=depth)):
            raise ValueError("the model that timm.create_model makes gives another output")
    return arguments


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0]


def default_folder(options: Options) -> Path:
    """Return the folder of a new run."""
    return Path("runs", f"elastic-{options.network.model}-{time.strftime('%Y%m%d-%H%M%S')}")


if __name__ == "__main__":
    keep_freed_memory()
    run_program(main, parse)
