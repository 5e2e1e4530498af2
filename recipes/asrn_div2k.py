"""Train ASRN, the elastic super-resolution network: one training, every depth a good network.

    python recipes/asrn_div2k.py                    demo: five minutes on scikit-image's photographs
    python recipes/asrn_div2k.py --download         DIV2K into datasets/, then the paper's training
    python recipes/asrn_div2k.py --data DIR         the same on DIV2K or any flat folder of images,
                                                    or on several folders together: --data A B
    python recipes/asrn_div2k.py --task denoise     at equal size; or --task deblur, dehaze, restore
    python recipes/asrn_div2k.py --resume RUN       go on exactly where the run in a folder stopped
    torchrun --nproc-per-node 4 recipes/asrn_div2k.py --data DIR    four processes share the batch

--preset and --resume choose the defaults, and every other option below changes one of them. The run
folder receives options.json, log.jsonl, states to resume from, last and best.safetensors (for
elasticnet.load), tables and figures.
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported

# isort: split
import faulthandler
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import elasticnet
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.card.machine import machine_key
from elasticnet.checkpoint import read_header
from elasticnet.distillation import Distillation, Teacher
from elasticnet.loss_weights import (
    alternating,
    deepest_first,
    deepest_share,
    equal,
    normalised,
    ramp,
    rising_deepest_share,
    rotating,
    sandwich,
)
from elasticnet.losses import charbonnier
from elasticnet.memory import keep_freed_memory
from elasticnet.sr import asrn
from elasticnet.sr.benchmark import evaluate, lr_line, scorable
from elasticnet.sr.benchmark.report import write_report
from elasticnet.sr.benchmark.validation_crops import validation_crops
from elasticnet.sr.data import PairSet
from elasticnet.sr.data.compression import with_compressed_lr
from elasticnet.sr.data.download import download_div2k
from elasticnet.sr.data.image_record import keep_image_record
from elasticnet.sr.data.licences import note_licences
from elasticnet.sr.data.patches import PatchSampler
from elasticnet.sr.data.splits import HELD_OUT_PHOTOS, training_pairs
from elasticnet.sr.inference.self_ensemble import self_ensembled
from elasticnet.sr.jpeg import JpegSetting
from elasticnet.sr.models.heads import DeconvHead
from elasticnet.sr.models.pieces import subpixels_of_image
from elasticnet.sr.options import (
    DataOptions,
    DegradationOptions,
    refuse_track_as_degradation,
    with_several_folders,
)
from elasticnet.training.graph_step import BatchOnDevice, GraphStep
from elasticnet.training.learning_rate import (
    cosine,
    cosine_on_device,
    halving,
    halving_on_device,
)
from elasticnet.training.log import TrainingLog, show_messages
from elasticnet.training.options import (
    NOT_STORED,
    Above,
    AtLeast,
    ComputeOptions,
    FromTo,
    LossOptions,
    OptimiserOptions,
    OptionGroup,
    RunOptions,
    flag,
    flat_values,
    given_options,
    old_runs,
    open_run,
    parse_options,
    resume_command,
    with_values,
)
from elasticnet.training.precision import resolve_precision
from elasticnet.training.processes import Processes, join_processes
from elasticnet.training.program import run_program
from elasticnet.training.recent_weights import RecentWeights
from elasticnet.training.run_folder import Run
from elasticnet.training.state import random_state, seed_all, set_random_state
from elasticnet.training.step import Batch, TrainingStep
from elasticnet.training.stop_signal import StopSignal
from elasticnet.training.tap_gradients import Method, TapGradients, balanced, projected
from elasticnet.training.warm_start import warm_start

DOWNLOADS = Path("datasets/DIV2K")
# arguments in which two networks may differ in a warm start: their heads are alike all the same
WARM_START_DIFFERENCES = ("num_blocks", "fold", "tap_affine", "tap_fusion")
# the best PSNR as long as no network has been kept; any other one is better
NO_BEST_PSNR = -math.inf
TapWeights = Mapping[int, float] | Callable[[int], Mapping[int, float]]

# JPEG qualities at which --degradation photo is validated, beside the images as they are
VALIDATED_QUALITIES = (30, 50, 75, 90)
CLEAN = "clean"  # what the images as they are are called beside the compressed ones

# what a resumed run cannot change: its weights belong to this network, trained for this task
FIXED = (
    "preset",
    "task",
    "scale",
    "num_blocks",
    "channels",
    "upsampler",
    "block",
    "fusion",
    "residual_links",
    "shuffle",
    "residual",
    "skip",
    "tap_affine",
    "tap_fusion",
    "variant",
)

# what a task fixes; at scale 1 DN is the noisy photograph, BD the blurred and HAZE the hazy one;
# BI is the photograph itself, as --task restore reads degraded images from files
TASKS: dict[str, dict[str, Any]] = {
    "sr": {},
    "denoise": {"scale": 1, "degradation": "DN", "noise_sigma": 25.0},
    "deblur": {"scale": 1, "degradation": "BD", "blur_sigma": 1.6},
    "dehaze": {"scale": 1, "degradation": "HAZE"},
    "restore": {"scale": 1, "degradation": "BI"},
}


class ImageLoss(NamedTuple):
    """A loss between images.

    Attributes:
        function: (prediction, target) -> the mean loss.
        power: The power of the image scale that it grows with.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    power: int


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return what F.l1_loss does; its gradient takes a pass over the images less."""
    return (prediction - target).abs().sum() / target.numel()


LOSSES = {
    "l1": ImageLoss(l1_loss, power=1),
    "mse": ImageLoss(F.mse_loss, power=2),
    "charbonnier": ImageLoss(charbonnier, power=1),
}


# --- options: in groups for --help and for the code below; options.json holds them without groups


@dataclass(frozen=True, kw_only=True)
class Setup(OptionGroup):
    """What is trained, and what it starts from."""

    preset: Literal["demo", "paper", "best"] = "paper"
    """Set of defaults: demo (five minutes), paper (the published training; the total of steps, the
    patch and the image scale are our assumptions) or best (ours). Without it, paper where there is
    a data set, and otherwise demo.
    """
    task: Literal["sr", "denoise", "deblur", "dehaze", "restore"] = "sr"
    """Super-resolution, or restoration at equal size (scale 1): of noise (sigma 25), of blur (sigma
    1.6), of haze, or of what the degraded images beside those of --data and --valid suffer from.
    """
    init: Path | None = None
    """Start from the weights of this file (best.safetensors of a run): of another scale or depth,
    too.
    """
    freeze: list[str] | None = None
    """Parts of the network that keep the weights of --init: stem, blocks, adapters (the
    convolutions of --tap-fusion) and head, or one of several, such as blocks.0 (the first) or
    adapters.1 (that of depth 1).
    """
    download: bool = field(default=False, metadata=NOT_STORED)
    """Download DIV2K (7 GB with one scale of LR images) into datasets/ and train on it."""


@dataclass(frozen=True, kw_only=True)
class ReportedRun(RunOptions):
    """The run: its folder, how often something is written there, and its report."""

    costs: bool = True
    """Measure what each depth costs for the report: multiply-accumulates and milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Images(DataOptions):
    """The images, of which patches are cut."""

    valid: Path | None = None
    """Images for validation and the final table, in any known layout. Default: held out of the
    training images.
    """
    scale: Literal[1, 2, 3, 4] = 2
    """Enlargement; 1 for the tasks that keep the size."""
    late_patch_size: Annotated[int | None, AtLeast(1)] = None
    """Another side of an LR patch, from --late-from on."""
    augment: Literal["flips", "flips+rotations", "none"] = "flips"
    """Random symmetries of the patches."""


@dataclass(frozen=True, kw_only=True)
class Network(OptionGroup):
    """The network."""

    num_blocks: Annotated[int, AtLeast(1)] = 5
    """Blocks of the network; every one carries a prediction."""
    channels: int = 96
    """Width of the body."""
    upsampler: Literal["deconv", "subpixel"] = "deconv"
    """Shared head: the published one, or the paper's module A."""
    block: Literal["mab", "shufflenet", "res2net"] = "mab"
    """The published block (MAB), or a ShuffleNet or Res2Net unit of like size."""
    fusion: bool = True
    """The last conv 1x1 of the MAB."""
    residual_links: bool = True
    """The links between the channel groups of the MAB."""
    shuffle: bool = True
    """The channel shuffle of the MAB."""
    residual: bool = True
    """The skip around the MAB."""
    start: Literal["interpolate", "default"] = "interpolate"
    """Start near an interpolator of the input, or at PyTorch's own initialisation."""
    skip: Literal["none", "bicubic"] = "none"
    """Add the enlarged input to the output; not in the paper."""
    tap_affine: bool = False
    """A scale and a bias per channel and tap in front of the shared head; not in the paper."""
    tap_fusion: bool = False
    """A 1x1 convolution of each tap's own in front of the shared head; not in the paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tap_affine and self.tap_fusion:
            raise ValueError(
                "--tap-affine with --tap-fusion: a tap has one of the two in front of the head; "
                "leave --tap-affine out, or give --no-tap-fusion (the preset best has a tap fusion)"
            )


@dataclass(frozen=True, kw_only=True)
class Loss(LossOptions):
    """The loss. A weight of the self-distillation belongs to a loss and an image scale."""

    variant: Literal["full", "dsl", "ss"] = "full"
    """full: deep supervision and self-distillation; dsl: deep supervision only; ss: the deepest
    tap alone.
    """
    loss: Literal["l1", "mse", "charbonnier"] = "mse"
    """Task loss of every tap."""
    image_scale: float = 255.0
    """Largest image value in the loss. The paper does not give its own; 255 is our assumption."""
    tap_weights: Annotated[
        Literal["paper", "normalised", "deepest", "rising"] | float | list[float], FromTo(0, 1)
    ] = "paper"
    """Each tap's weight: 1, 1/taps, or for the deepest 1/2, a rising one or a number (the others
    share the rest), or as many numbers as there are taps, the shallowest one's first.
    """
    rising_from: Annotated[float, FromTo(0, 1)] = 0.2
    """The deepest tap's weight at the start, with --tap-weights rising; in the end it is 1."""
    curriculum: Literal["all", "deepest-first", "alternating", "rotating", "sandwich"] = "all"
    """Which taps a step trains: all; the deepest alone before --curriculum-until; the deepest alone
    in every second step; one in turn; or the shallowest, the deepest and --sandwich-taps others.
    """
    curriculum_until: Annotated[float, FromTo(0, 1)] = 0.5
    """Fraction of the steps in which the deepest tap is alone, with --curriculum deepest-first."""
    sandwich_taps: Annotated[int, AtLeast(0)] = 1
    """How many taps between the shallowest and the deepest a step draws, with --curriculum
    sandwich.
    """
    tap_gradients: Literal["sum", "balanced", "projected"] = "sum"
    """How the taps' gradients are joined in stem and blocks: by their sum; each with a norm in
    proportion to its weight; or without what points against other taps (PCGrad). The last two take
    a backward pass for each tap.
    """
    psd_warmup: Annotated[float, FromTo(0, 1)] = 0.0
    """Fraction of the steps over which the weight of the self-distillation rises from 0."""
    output_weight: Annotated[float, AtLeast(0)] = 0.0
    """Weight of distilling the deepest prediction into the shallower ones, beside --loss; not in
    the paper.
    """
    output_loss: Literal["l1", "mse"] = "mse"
    """How --output-weight compares predictions. L1 pulls as hard near equality as far from it, so
    that the easiest way to equality, blocks that do nothing, is taken soon.
    """
    output_teacher: Literal["deepest", "self-ensemble"] = "deepest"
    """What --output-weight distils: the deepest prediction, or its mean over the eight symmetries
    of the patch, which takes eight more passes a step.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curriculum != "all" and self.sampled_taps is not None:
            raise ValueError(
                f"--sampled-taps {self.sampled_taps} with --curriculum {self.curriculum}: both say "
                "which taps a step trains; leave one of them out"
            )
        if self.curriculum != "all" and self.variant == "ss":
            raise ValueError(
                f"--curriculum {self.curriculum} with --variant ss: that trains the deepest tap "
                "alone, so there are no taps to choose from; leave one of them out"
            )
        if self.output_teacher != "deepest" and self.output_weight == 0:
            raise ValueError(
                f"--output-teacher {self.output_teacher} with --output-weight 0: nothing learns "
                "from it; give an --output-weight, or leave --output-teacher out"
            )


@dataclass(frozen=True, kw_only=True)
class Optimiser(OptimiserOptions):
    """Adam, its learning rate, and what happens to gradients and weights."""

    steps: Annotated[int, AtLeast(1)] = 1_000_000
    """Training steps. The paper prints no total: the million of the preset paper is our assumption.
    """
    schedule: Literal["halving", "cosine"] = "halving"
    """Learning rate over the steps."""
    halve_every: Annotated[int, AtLeast(1)] = 200_000
    """Steps between halvings."""
    ema: Annotated[float, FromTo(0, 1, below_high=True)] = 0.0
    """Decay of a moving average of the weights, such as 0.999; it is then what is validated and
    shipped. 0 for none.
    """
    mean_last: Annotated[int, AtLeast(0)] = 0
    """In the end, ship the mean of the weights at this many last validations. 0 for the last."""
    late_batch_size: Annotated[int | None, AtLeast(1)] = None
    """Another batch size, from --late-from on."""
    late_from: Annotated[float, FromTo(0, 1)] = 2 / 3
    """Fraction of the steps after which --late-patch-size and --late-batch-size begin."""
    clip_norm: Annotated[float | None, Above(0, finite=False)] = None
    """Largest norm of all gradients together."""
    clip_value: Annotated[float | None, Above(0, finite=False)] = None
    """Largest absolute value of each gradient."""


@dataclass(frozen=True, kw_only=True)
class Compute(ComputeOptions):
    """The device, and how it computes."""

    compile: bool = False
    """Compile the step, on CUDA into a graph; on a CPU it does not pay."""
    checkpoint_blocks: bool = False
    """Compute the blocks again in the backward pass instead of keeping their insides: less memory,
    more time, the same numbers.
    """
    accumulate: Annotated[int, AtLeast(1)] = 1
    """Compute each process's share of the batch in this many parts, one after the other."""
    auto_batch: bool = False
    """When the GPU's memory runs out, double --accumulate and go on."""
    cuda_graph: Literal["off", "auto", "on"] = field(default="auto", metadata=old_runs("off"))
    """Record the whole step as one CUDA graph, which a GPU runs without waiting for Python: auto
    does it on a GPU where the other options allow it. On a CPU auto changes nothing, and on calls
    the same function without a graph.
    """


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """All options. These defaults are the preset paper: the published training, as far as it is
    printed. Its total of steps, its patch and its image scale are our assumptions.
    """

    setup: Setup = Setup()
    run: ReportedRun = ReportedRun()
    images: Images = Images()
    degradation: DegradationOptions = DegradationOptions()
    network: Network = Network()
    loss: Loss = Loss(psd_weight=0.1)
    optimiser: Optimiser = Optimiser()
    compute: Compute = Compute()

    def __post_init__(self) -> None:
        accumulate = self.compute.accumulate
        for name in ("batch_size", "late_batch_size"):
            batch_size = getattr(self.optimiser, name)
            if batch_size is not None and batch_size % accumulate != 0:
                raise ValueError(
                    f"--accumulate {accumulate}: expected a divisor of {flag(name)} {batch_size}"
                )
        task = self.setup.task
        if self.compute.compile and self.loss.tap_gradients != "sum":
            raise ValueError(
                f"--compile with --tap-gradients {self.loss.tap_gradients}: a compiled step has "
                "one backward pass, and this takes one for each tap; leave one of them out"
            )
        if self.compute.cuda_graph == "on":
            refuse_options_of_host(self)
        self._check_freeze()
        self._check_tap_weights()
        if task == "sr" and self.images.scale == 1:
            raise ValueError(
                "--scale 1: expected 2, 3 or 4, or a --task that keeps the image's size: denoise, "
                "deblur, dehaze or restore"
            )
        values = flat_values(self)
        for name in ("scale", "degradation"):
            needed = TASKS[task].get(name, values[name])
            if values[name] != needed:
                raise ValueError(
                    f"{flag(name)} {values[name]}: --task {task} has {name} {needed}; leave it out"
                )

    def _check_freeze(self) -> None:
        frozen = self.setup.freeze or ()
        if frozen and self.setup.init is None:
            raise ValueError(
                f"--freeze {' '.join(frozen)}: it keeps the weights of --init, and there is none; "
                "give one, or leave --freeze out"
            )
        how = self.loss.tap_gradients
        if how != "sum" and {"stem", "blocks"} <= set(frozen):
            raise ValueError(
                f"--tap-gradients {how} with --freeze {' '.join(frozen)}: gradients are joined in "
                "stem and blocks, which are not trained; leave one of the two out"
            )

    def _check_tap_weights(self) -> None:
        weights = self.loss.tap_weights
        num_taps = 1 if self.loss.variant == "ss" else self.network.num_blocks
        if isinstance(weights, list) and not (len(weights) == num_taps and min(weights) > 0):
            raise ValueError(
                f"--tap-weights {' '.join(str(weight) for weight in weights)}: expected one "
                f"positive number for each of the {num_taps} taps, the shallowest one's first"
            )

    @classmethod
    def with_new_names(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Return the options of an older run as they are written today."""
        stored.setdefault("output_loss", "l1")  # the only one then
        return with_several_folders(stored)


def options_of_host(options: Options) -> list[str]:
    """Return the options, as they were given, that need the host in each step: no graph has them.

    A graph repeats the same work on the same memory, whatever the number of the step is.
    """
    needs_host = {
        # which taps a step trains, or how much they weigh
        "curriculum": options.loss.curriculum != "all",
        "tap_weights": options.loss.tap_weights == "rising",
        "sampled_taps": options.loss.sampled_taps is not None,
        "psd_warmup": options.loss.psd_warmup != 0,
        # gradients that are joined, scaled or computed again
        "tap_gradients": options.loss.tap_gradients != "sum",
        "precision": options.compute.precision == "float16",
        "checkpoint_blocks": options.compute.checkpoint_blocks,
        "auto_batch": options.compute.auto_batch,
        # patches that Pillow compresses
        "degradation": is_photo(options),
    }
    values = flat_values(options)
    found: list[str] = []
    for name, is_needed in needs_host.items():
        if is_needed:
            value = values[name]
            found.append(flag(name) if value is True else f"{flag(name)} {value}")
    return found


def refuse_options_of_host(options: Options) -> None:
    """Raise if a graph is asked for beside options that need the host in each step."""
    others = options_of_host(options)
    if others:
        raise ValueError(
            f"--cuda-graph on with {', '.join(others)}: the host decides that anew in each step, "
            "which a graph cannot; leave one of them out, or take --cuda-graph auto"
        )


FOR_SEVERAL_TAPS = ("tap_fusion", "output_weight")

# what a preset changes of the published training
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "preset": "demo",
        "skip": "bicubic",
        "loss": "l1",
        "image_scale": 1.0,
        "psd_weight": 8e-5,
        "tap_weights": "normalised",
        "patch_size": 32,
        "augment": "flips+rotations",
        "steps": 600,
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "warmup": 50,
        "eval_every": 150,
        "save_every": 150,
        "log_every": 10,
        "precision": "auto",
    },
    "paper": {},
    "best": {
        "preset": "best",
        "skip": "bicubic",
        "loss": "l1",
        "image_scale": 1.0,
        "variant": "dsl",
        "output_weight": 5.0,
        "tap_fusion": True,
        "psd_weight": 8e-5,
        "tap_weights": "deepest",
        "augment": "flips+rotations",
        "steps": 60_000,
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "warmup": 200,
        "ema": 0.999,
        "clip_norm": 0.02,
        "eval_every": 2_000,
        "precision": "auto",
    },
}


@dataclass(frozen=True)
class Choice:
    """The options that are read before all others.

    They choose the defaults of the others, or get a message of their own, as the degradation does.
    Otherwise their values are not checked here but with all the others.
    """

    preset: str | None = None
    task: str = "sr"
    variant: str | None = None
    data: list[str] | None = None
    download: bool = False
    degradation: str = "BI"


def parse(arguments: list[str]) -> Options:
    """Return the options of a command line."""
    choice = given_options(Choice, arguments)
    refuse_track_as_degradation(choice.degradation)
    description = f"{__doc__}\n{table_of_presets()}"
    return parse_options(
        Options, arguments, default=defaults(choice), description=description, fixed=FIXED
    )


def table_of_presets() -> str:
    """Return a line for each option that the presets set: its value in each of them."""
    values = {name: flat_values(with_values(Options(), PRESETS[name])) for name in PRESETS}
    lines = [f"    {'preset:':16}" + "".join(f"{name:>18}" for name in PRESETS)]
    changed = {option for changes in PRESETS.values() for option in changes}
    for option in values["paper"]:
        if option in changed and option != "preset":
            cells = "".join(f"{values[name][option]!s:>18}" for name in PRESETS)
            lines.append(f"    {flag(option):16}{cells}")
    return "\n".join(lines)


def defaults(choice: Choice) -> Options:
    """Return the options where nothing else is given: those of the preset and of the task."""
    data = choice.data
    if data is None and (choice.download or DOWNLOADS.is_dir()):
        data = [os.fspath(DOWNLOADS)]
    preset = choice.preset
    if preset not in PRESETS:
        preset = "demo" if data is None else "paper"
    changes = dict(PRESETS[preset])
    if choice.variant == "ss":
        changes = without_what_taps_share(changes)
    if choice.task in TASKS:
        changes.update(TASKS[choice.task], task=choice.task)
    return with_values(Options(), {**changes, "data": data})


def without_what_taps_share(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes of a preset but for those that only serve a network of several taps."""
    return {name: value for name, value in changes.items() if name not in FOR_SEVERAL_TAPS}


# --- the training


def main(options: Options) -> None:
    """Train a network, and write what came out into the run folder."""
    show_messages()
    with join_processes(options.compute.device) as processes:
        # What auto means is decided here, once: it is stored, and a resumed run keeps it.
        precision = resolve_precision(options.compute.precision, processes)
        options = with_values(options, {"precision": precision})
        processes.say(plan_of(options))
        training_images, validation_images = load_images(options, processes)

        # All processes make the same weights; what they draw later is each one's own.
        seed_all(options.run.seed)
        net = build(options, processes)
        seed_all(options.run.seed, rank=processes.rank)

        folder = options.run.out or default_folder(options)
        with open_run(options, options.run, folder, processes) as run:
            keep_image_record(
                run,
                {"training": training_images, "validation": validation_images},
                changes_allowed=options.images.changed_images,
                say=processes.say,
            )
            keep_licences(options, run, training_images, processes)
            processes.say(
                f"training on {training_images}, validating on {validation_images}; "
                f"run folder {run.folder}"
            )
            validation = make_validation(options, validation_images)
            finished = train(options, run, net, training_images, validation, processes)
            if finished is not None:
                report(options, run, finished, validation_images, processes)


def train(
    options: Options,
    run: Run,
    net: ElasticWrapper,
    training_images: PairSet,
    validation: Validation,
    processes: Processes,
) -> ElasticWrapper | None:
    """Train to the last step; return the network to ship. A signal saves and ends the process.

    Of several processes only the first validates and returns a network; the others return None.
    """
    set_order_of_pixels(options, net, processes.device)
    objective = make_objective(options, net)
    with_graph = uses_graph(options, processes)
    training_step = make_training_step(options, net, objective, processes, with_graph)
    samplers = make_samplers(options, training_images, processes)
    log = make_log(options, run, processes)

    # One module for the whole run: the moving average of the weights, or else the network itself.
    net_to_ship = training_step.averaged_net

    steps_done, best, recent, log_state = resume(options, run, training_step, processes)
    steps = Steps(options, training_step, samplers, net, log, with_graph)

    with StopSignal() as stop_signal, log.start(steps_done, log_state):
        if steps_done == 0:
            log_initial_weights(options, log, net_to_ship, validation, processes)

        for step in range(steps_done, options.optimiser.steps):
            # Train on one batch.
            steps.do(step)
            steps_done = step + 1

            # See what is due. All processes run what follows.
            due = due_after(steps_done, options, stop_signal, processes)

            # Score every depth; only the first process has scores.
            scores = None
            if due.validation and processes.first:
                scores = validate(net_to_ship, validation, processes.device)

            # Log first: `log.write` stops at NaN, so that no bad state is saved. A resumed run then
            # finds the line of its own step.
            if due.log_line:
                steps.log_losses()
                learning_rate = learning_rate_at(step, options.optimiser)
                batch = batch_of(step, samplers.at(step), net)
                shares = psd_share(options, training_step, net, batch, step)
                write_log_line(log, steps_done, scores, learning_rate=learning_rate, **shares)
            if scores is not None:
                recent.add(net_to_ship)
                best.keep_if_better(net_to_ship, steps_done, scores.mean)
                crops = validation_crops(net_to_ship, validation.images, processes.device)
                log.pictures(steps_done, crops)
            if due.save:
                save_state(run, steps_done, training_step, log, best, recent, processes)
            if due.stop:
                break

    # A run that was asked to stop in its last step is finished all the same.
    if steps_done < options.optimiser.steps:
        processes.say(f"stopped and saved at step {steps_done}; go on with: {resume_command(run)}")
        sys.exit(stop_signal.exit_status)
    if not processes.first:
        return None
    return finished_net(options, run, net_to_ship, best, recent, validation, processes)


def finished_net(
    options: Options,
    run: Run,
    net: ElasticWrapper,
    best: Best,
    recent: RecentWeights,
    validation: Validation,
    processes: Processes,
) -> ElasticWrapper:
    """Return the network that the training ends with: the last one, or the mean of --mean-last.

    The mean is saved, and is kept as the best if it is better.
    """
    if options.optimiser.mean_last == 0:
        return net
    mean = recent.mean_net(net)
    scores = validate(mean, validation, processes.device).mean
    step = options.optimiser.steps
    elasticnet.save(mean, run.folder / "mean.safetensors", {"step": step, "psnr": scores})
    best.keep_if_better(mean, step, scores)
    shown = " ".join(f"{psnr:.2f}" for psnr in scores.values())
    processes.say(f"mean of the last {len(recent.states)} validations: {shown} dB")
    return mean


def report(
    options: Options,
    run: Run,
    net: ElasticWrapper,
    validation_images: PairSet,
    processes: Processes,
) -> None:
    """Print the table of the finished network, and write it and the figures."""
    title = f"ASRN {kind_of(options)}, {options.optimiser.steps} steps"
    text = write_report(
        run.folder,
        net.float(),
        validation_images,
        title=title,
        device=processes.device,
        jpeg_qualities=validated_qualities(options),
        costs=options.run.costs,
        figures=options.run.figures,
    )
    print(f"\n{text}")
    parts = "table and figures" if options.run.figures else "table"
    print(f"written to {run.folder}: best.safetensors, last.safetensors, {parts}")


# --- what the training is made of


def load_images(options: Options, processes: Processes) -> tuple[PairSet, PairSet]:
    """Return the training and the validation images, downloaded if --download says so."""
    images = options.images
    degradation = options.degradation
    # Of a photo the patches are compressed, each anew; the images themselves are bicubic.
    kind = "BI" if is_photo(options) else degradation.degradation
    if options.setup.download:
        # DIV2K has LR images of bicubic degradation alone; others are made of the HR images.
        lr_scale = images.scale if kind == "BI" else None
        download_div2k(DOWNLOADS, scale=lr_scale)
    if images.data is None:
        processes.say(
            f"DIV2K was not found in {DOWNLOADS}. To train on it, pass --download, which fetches "
            "it there, or --data DIR for a copy of it or for any other folder of HR images.\n"
            "Training on the photographs that scikit-image carries instead; held out: "
            f"{', '.join(HELD_OUT_PHOTOS)}."
        )
    training_images, validation_images = training_pairs(
        data=images.data,
        valid=images.valid,
        scale=images.scale,
        degradation=kind,
        seed=options.run.seed,
        num_valid=images.num_valid,
        held_out=images.held_out,
        published_split=images.published_split,
        licences=images.licences,
        min_size=max(images.patch_size, late_patch_size(images)),
        blur_sigma=degradation.blur_sigma,
        noise_sigma=degradation.noise_sigma,
        track=images.track,
        lr_root=images.data_lr,
        cache_dir=images.cache_dir,
        cache=images.cache,
        say=processes.say,
    )
    processes.say(lr_line(training_images, validation_images))
    jpeg = options.degradation.patch_jpeg()
    if jpeg is not None:
        processes.say(
            f"LR patches: JPEG of quality {jpeg.lowest_quality} to {jpeg.highest_quality} or none "
            f"({jpeg.uncompressed_share:.0%}), drawn anew for each patch"
        )
    if options.setup.task == "restore":
        refuse_made_images({"--data": training_images, "--valid": validation_images})
    return training_images, scorable(validation_images)


def is_photo(options: Options) -> bool:
    """Return whether LR patches are compressed as JPEG, each anew."""
    return options.degradation.degradation == "photo"


def keep_licences(
    options: Options, run: Run, training_images: PairSet, processes: Processes
) -> None:
    """Write by which terms the training photographs may be used, where a LICENSES.md says it."""
    if options.images.data is None or not run.writer:
        return
    line = note_licences(run.folder, options.images.data, training_images.names)
    if line is not None:
        processes.say(line)


def refuse_made_images(pairs_by_option: Mapping[str, PairSet]) -> None:
    """Raise if there are no degraded images to restore: they would be copies of the clear ones."""
    for option, pairs in pairs_by_option.items():
        if pairs.lr_is_made:
            raise ValueError(
                f"--task restore: no degraded images were found beside those of {option}; give "
                f"{option} a folder with GT/ and LQ/, or the degraded images of --data by --data-lr"
            )


def build(options: Options, processes: Processes) -> ElasticWrapper:
    """Return the network on its device, from the weights of --init if it is given."""
    # The variant ss (single supervision) is the ordinary network: one tap, at the deepest block.
    taps = (-1,) if options.loss.variant == "ss" else None
    skip = None if options.network.skip == "none" else options.network.skip
    net = asrn(
        scale=options.images.scale,
        num_blocks=options.network.num_blocks,
        channels=options.network.channels,
        upsampler=options.network.upsampler,
        block=options.network.block,
        fusion=options.network.fusion,
        residual_links=options.network.residual_links,
        shuffle=options.network.shuffle,
        residual=options.network.residual,
        init=options.network.start,
        skip=skip,
        tap_affine=options.network.tap_affine,
        tap_fusion=options.network.tap_fusion,
        taps=taps,
        checkpoint_blocks=options.compute.checkpoint_blocks,
    )
    if options.setup.init is not None and options.run.resume is None:
        source = elasticnet.load(options.setup.init)
        taken = warm_start(net, source, may_differ=WARM_START_DIFFERENCES)
        processes.say(f"warm start from {options.setup.init}: {'; '.join(taken)}")
    freeze(net, options.setup.freeze or ())
    net = net.to(processes.device, weight_dtype(options))
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def freeze(net: ElasticWrapper, parts: Sequence[str]) -> None:
    """Keep the weights of parts of the network, by the names of modules in it."""
    trained = {name: part for name, part in net.named_modules() if [*part.parameters()]}
    for part in parts:
        if part not in trained:
            names = ", ".join(name for name, _ in net.named_children() if name in trained)
            raise ValueError(
                f"--freeze {part}: the network has no such part; it has {names}, and "
                f"{len(net.blocks)} blocks from blocks.0 on"
            )
        trained[part].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError(f"--freeze {' '.join(parts)}: nothing is left to train")


def set_order_of_pixels(options: Options, net: ElasticWrapper, device: torch.device) -> None:
    """On a CPU, let the network predict in training as `pixel_unshuffle` orders an image: faster.

    The losses are means over pixels, the same in any order. A compiled step fuses the shuffle
    itself, and a self-ensemble mirrors images.
    """
    if device.type != "cpu" or options.compute.compile:
        return
    if isinstance(net.head, DeconvHead) and options.loss.output_teacher == "deepest":
        net.head.subpixels_in_training = True


def make_objective(options: Options, net: ElasticWrapper) -> ElasticObjective:
    """Return the network and its loss in one: deep supervision and self-distillation."""
    image_loss = LOSSES[options.loss.loss]
    # An L1 loss of images in 0..255 is 255 times that of images in 0..1, an MSE loss 255**2 times.
    task_factor = options.loss.image_scale**image_loss.power

    def task_loss(prediction: Tensor, target: Tensor) -> Tensor:
        return task_factor * image_loss.function(prediction, target)

    sampled_taps = None if options.loss.variant == "ss" else options.loss.sampled_taps
    return ElasticObjective(
        net,
        task_loss=task_loss,
        psd_weight=0.0,  # as its form is an option, it is one of the distillations
        distillations=make_distillations(options, net),
        tap_weights=make_tap_weights(options, net.taps),
        sampled_taps=sampled_taps,
        seed=options.run.seed,
        by_term=options.loss.tap_gradients != "sum",
    )


def make_distillations(options: Options, net: ElasticWrapper) -> list[Distillation]:
    """Return the self-distillation, and the output distillation."""
    compare = {"l1": F.l1_loss, "mse": F.mse_loss}[options.loss.output_loss]
    power = LOSSES[options.loss.output_loss].power
    output_factor = options.loss.image_scale**power
    of_outputs = Distillation(
        of="predictions",
        compare=compare,
        teacher=make_output_teacher(options, net),
        weight=output_factor * options.loss.output_weight,
    )
    return [options.loss.self_distillation(make_psd_weight(options)), of_outputs]


def make_output_teacher(options: Options, net: ElasticWrapper) -> Teacher:
    """Return what the predictions learn from: the deepest one, or a function of the patch."""
    if options.loss.output_teacher == "deepest":
        return "deepest"

    def mean_of_symmetries(lr: Tensor) -> Tensor:
        (mean,) = self_ensembled(lambda turned: [net(turned)], lr)
        return mean

    return mean_of_symmetries


def make_psd_weight(options: Options) -> float | Callable[[int], float]:
    """Return the weight of the self-distillation, or the function of the step that returns it."""
    if options.loss.variant != "full":
        return 0.0
    if options.loss.psd_warmup == 0:
        return options.loss.psd_weight
    return partial(
        ramp,
        total=options.optimiser.steps,
        start=0.0,
        end=options.loss.psd_weight,
        finish=options.loss.psd_warmup,
    )


def make_tap_weights(options: Options, taps: Sequence[int]) -> TapWeights:
    """Return the weight of every tap's loss by depth, or a function of the step that returns it."""
    usual = usual_tap_weights(options, taps)
    if options.loss.curriculum == "all":
        return usual

    def weights_at(step: int) -> Mapping[int, float]:
        weights = usual(step) if callable(usual) else usual
        return curriculum_at(step, options, weights)

    return weights_at


def curriculum_at(step: int, options: Options, weights: Mapping[int, float]) -> Mapping[int, float]:
    """Return the weights of a step where --curriculum leaves taps out."""
    curriculum = options.loss.curriculum
    if curriculum == "deepest-first":
        until = round(options.loss.curriculum_until * options.optimiser.steps)
        return deepest_first(weights, step, until=until)
    if curriculum == "alternating":
        return alternating(weights, step)
    if curriculum == "rotating":
        return rotating(weights, step)
    if curriculum == "sandwich":
        return sandwich(
            weights, step, num_sampled=options.loss.sandwich_taps, seed=options.run.seed
        )
    raise ValueError(f"--curriculum {curriculum}: expected one that leaves taps out")


def usual_tap_weights(options: Options, taps: Sequence[int]) -> TapWeights:
    """Return the weights of --tap-weights: of a step that trains all taps."""
    chosen = options.loss.tap_weights
    if chosen == "paper":
        return equal(taps)
    if chosen == "normalised":
        return normalised(taps)
    if chosen == "deepest":
        return deepest_share(taps, share=0.5)
    if chosen == "rising":
        return partial(
            rising_deepest_share,
            taps,
            total=options.optimiser.steps,
            start=options.loss.rising_from,
            end=1.0,
        )
    if isinstance(chosen, list):
        return dict(zip(taps, chosen, strict=True))
    return deepest_share(taps, share=chosen)


def uses_graph(options: Options, processes: Processes) -> bool:
    """Return whether the steps run by `GraphStep`; say why not where --cuda-graph asks for it."""
    wanted = options.compute.cuda_graph
    has_cuda = processes.device.type == "cuda"
    if wanted == "off" or (wanted == "auto" and not has_cuda):
        return False
    reasons = options_of_host(options)
    if processes.count > 1:
        reasons.append(f"{processes.count} processes")
    if not reasons:
        if not has_cuda:
            processes.say(
                f"--cuda-graph on: no graph on {processes.device}, its function is called"
            )
        return True
    if wanted == "on":
        raise ValueError(f"--cuda-graph on with {', '.join(reasons)}: one GPU alone runs a graph")
    processes.say(
        f"--cuda-graph auto: steps run without a graph, because of {', '.join(reasons)}, which "
        "needs the host in each step"
    )
    return False


def make_training_step(
    options: Options,
    net: ElasticWrapper,
    objective: ElasticObjective,
    processes: Processes,
    with_graph: bool = False,
) -> TrainingStep:
    """Return what does one step of training, with its optimiser."""
    objective_to_run: Any = objective
    if options.compute.compile:
        # The mode makes CUDA graphs, which cannot be parts of another one; a run on the CPU does
        # not take it, even beside a GPU.
        has_own_graphs = processes.device.type == "cuda" and not with_graph
        mode = "reduce-overhead" if has_own_graphs else None
        objective_to_run = torch.compile(objective, mode=mode)
    optimiser = torch.optim.Adam(net.parameters(), lr=options.optimiser.learning_rate, fused=True)
    return TrainingStep(
        objective_to_run,
        net,
        optimiser,
        processes=processes,
        precision=options.compute.precision,
        ema=options.optimiser.ema,
        clip_norm=options.optimiser.clip_norm,
        clip_value=options.optimiser.clip_value,
        parts=options.compute.accumulate,
        tap_gradients=make_tap_gradients(options, net),
        auto_batch=options.compute.auto_batch,
    )


def make_tap_gradients(options: Options, net: ElasticWrapper) -> TapGradients | None:
    """Return what joins the gradients of the taps in stem and blocks; None for their sum."""
    if options.loss.tap_gradients == "sum":
        return None
    method: Method = balanced
    if options.loss.tap_gradients == "projected":
        method = partial(projected, seed=options.run.seed)
    others = [*net.adapters.parameters(), *net.head.parameters()]
    of_others = {id(parameter) for parameter in others}
    shared = [each for each in net.parameters() if id(each) not in of_others]
    return TapGradients(shared, others, method)


class Samplers(NamedTuple):
    """What cuts the patches.

    Attributes:
        early: For the first steps.
        late: For the others, of --late-patch-size and --late-batch-size.
        late_from: The first step of the others.
    """

    early: PatchSampler
    late: PatchSampler
    late_from: int

    def at(self, step: int) -> PatchSampler:
        """Return what cuts the patches of a step."""
        return self.early if step < self.late_from else self.late


def make_samplers(options: Options, training_images: PairSet, processes: Processes) -> Samplers:
    """Return what cuts the patches of the first steps and of the late ones."""
    patch_size = options.images.patch_size
    batch_size = options.optimiser.batch_size
    early = make_sampler(options, patch_size, batch_size, training_images, processes)
    late = early
    late_patch = late_patch_size(options.images)
    late_batch = options.optimiser.late_batch_size
    if late_batch is None:
        late_batch = batch_size
    if late_patch != patch_size or late_batch != batch_size:
        late = make_sampler(options, late_patch, late_batch, training_images, processes)
    late_from = round(options.optimiser.late_from * options.optimiser.steps)
    return Samplers(early, late, late_from)


def late_patch_size(images: Images) -> int:
    """Return the side of an LR patch in the late steps."""
    if images.late_patch_size is None:
        return images.patch_size
    return images.late_patch_size


def make_sampler(
    options: Options,
    patch_size: int,
    batch_size: int,
    training_images: PairSet,
    processes: Processes,
) -> PatchSampler:
    """Return what cuts patches and batches of one size."""
    return PatchSampler(
        training_images,
        patch_size=patch_size,
        batch_size=batch_size,
        seed=options.run.seed,
        augment=options.images.augment,
        device=processes.device,
        dtype=weight_dtype(options),
        memory_format=torch.channels_last,
        jpeg=options.degradation.patch_jpeg(),
    )


def batch_of(step: int, sampler: PatchSampler, net: ElasticWrapper) -> Batch:
    """Return the batch of a step as `TrainingStep` takes it: a function that cuts parts of it.

    The HR patches have their pixels in the order in which the network predicts them in training.
    """

    def cut_part(part: int, num_parts: int) -> tuple[Tensor, Tensor]:
        lr, hr = sampler.batch(step, part, num_parts)
        return lr, in_order_of_pixels(hr, sampler.scale, net)

    return cut_part


def batch_on_device(sampler: PatchSampler, net: ElasticWrapper) -> BatchOnDevice:
    """Return the batch as `GraphStep` takes it: the same, of a step that is on the device."""

    def cut_part(step: Tensor, part: int, num_parts: int) -> tuple[Tensor, Tensor]:
        lr, hr = sampler.batch_on_device(step, part, num_parts)
        return lr, in_order_of_pixels(hr, sampler.scale, net)

    return cut_part


def in_order_of_pixels(hr: Tensor, scale: int, net: ElasticWrapper) -> Tensor:
    """Return HR patches with their pixels in the order of the network: see `set_order_of_pixels`.

    Args:
        hr: (b, 3, scale h, scale w).
        scale: The enlargement.
        net: The network.
    """
    head = net.head
    if isinstance(head, DeconvHead) and head.subpixels_in_training:
        return subpixels_of_image(hr, scale)  # (b, 3 scale^2, h, w)
    return hr


class Steps:
    """The steps of a run: one graph each, or the host's work.

    Args:
        options: All options.
        training_step: What one step does.
        samplers: What cuts the patches.
        net: The network that is trained.
        log: It gets the losses of every step.
        with_graph: Whether the steps run by `GraphStep`.
    """

    def __init__(
        self,
        options: Options,
        training_step: TrainingStep,
        samplers: Samplers,
        net: ElasticWrapper,
        log: TrainingLog,
        with_graph: bool,
    ) -> None:
        self.options = options
        self.training_step = training_step
        self.samplers = samplers
        self.net = net
        self.log = log
        self.with_graph = with_graph
        self.graph_step: GraphStep | None = None
        self.sampler: PatchSampler | None = None  # whose patches the graph cuts

    def do(self, step: int) -> None:
        """Train on one batch. The steps follow one another."""
        sampler = self.samplers.at(step)
        if self.with_graph:
            graph_step = self._graph_step_at(step, sampler)
            graph_step()
            return
        learning_rate = learning_rate_at(step, self.options.optimiser)
        batch = batch_of(step, sampler, self.net)
        terms = self.training_step(batch, step, learning_rate)
        self.log.add(terms)

    def log_losses(self) -> None:
        """Give the log what a graph has kept on the device; needed before each line."""
        if self.graph_step is not None and self.graph_step.num_unread > 0:
            losses = self.graph_step.take_losses()
            self.log.add_rows(losses.depths, losses.rows)

    def _graph_step_at(self, step: int, sampler: PatchSampler) -> GraphStep:
        """Return the graph: a new one where the run begins, and where the late sizes do."""
        if self.graph_step is None or sampler is not self.sampler:
            self.log_losses()
            self.sampler = sampler
            self.graph_step = GraphStep(
                self.training_step,
                batch_on_device(sampler, self.net),
                partial(learning_rate_on_device, optimiser=self.options.optimiser),
                steps_done=step,
                max_unread=self.options.run.log_every,
            )
        return self.graph_step


def make_log(options: Options, run: Run, processes: Processes) -> TrainingLog:
    """Return the log of the run; it names the machine, as a resumed run may go on elsewhere."""
    precision = getattr(torch, options.compute.precision)
    return TrainingLog(
        run,
        options.optimiser.steps,
        processes,
        score_name="psnr",
        score_unit="dB",
        tensorboard=options.run.tensorboard,
        machine=machine_key(processes.device, precision),
    )


def learning_rate_at(step: int, optimiser: Optimiser) -> float:
    """Return the learning rate of a step."""
    if optimiser.schedule == "cosine":
        return optimiser.learning_rate * cosine(step, optimiser.steps, optimiser.warmup)
    return optimiser.learning_rate * halving(step, optimiser.halve_every)


def learning_rate_on_device(step: Tensor, optimiser: Optimiser) -> Tensor:
    """Return the learning rate of a step that is on the device."""
    if optimiser.schedule == "cosine":
        factor = cosine_on_device(step, optimiser.steps, optimiser.warmup)
    else:
        factor = halving_on_device(step, optimiser.halve_every)
    return optimiser.learning_rate * factor


def weight_dtype(options: Options) -> torch.dtype:
    """Return the data type of weights and patches; lower precisions are autocast's."""
    return torch.float64 if options.compute.precision == "float64" else torch.float32


# --- resume, validate, save


class Best:
    """The best network so far: the one with the highest mean PSNR over its depths.

    Only the first of several processes scores networks and keeps the best one.

    Args:
        file: Where it is kept: best.safetensors of the run folder.
        psnr: Its mean PSNR in dB; `NO_BEST_PSNR` if none is kept yet.
    """

    def __init__(self, file: Path, psnr: float = NO_BEST_PSNR) -> None:
        self.file = file
        self.psnr = psnr

    def keep_if_better(self, net: ElasticWrapper, step: int, scores: Mapping[int, float]) -> None:
        """Write a network over the best one so far, if its mean PSNR is higher."""
        psnr = mean_psnr(scores)
        if psnr > self.psnr:
            elasticnet.save(net, self.file, {"step": step, "psnr": scores})
            self.psnr = psnr


class Standing(NamedTuple):
    """Where a run stands when it begins or goes on.

    Attributes:
        steps_done: How many steps are done.
        best: The best network so far.
        recent: The weights at the last validations, as many as --mean-last says.
        log_state: The state of the log; None where nothing is done.
    """

    steps_done: int
    best: Best
    recent: RecentWeights
    log_state: Mapping[str, Any] | None


def resume(
    options: Options, run: Run, training_step: TrainingStep, processes: Processes
) -> Standing:
    """Load the newest state that the run has saved, if it has one; return where the run stands."""
    best = Best(run.folder / "best.safetensors")
    recent = RecentWeights(options.optimiser.mean_last)
    latest = run.load_latest()
    if latest is None:
        return Standing(steps_done=0, best=best, recent=recent, log_state=None)
    steps_done, state = latest
    last_step = options.optimiser.steps
    if steps_done > last_step:
        raise ValueError(
            f"--steps {last_step}: the run in {run.folder} is already at step {steps_done}"
        )
    training_step.load_state_dict(state["training"])
    # Where more processes resume than have saved, the others keep the generators of their seed.
    if processes.rank < len(state["random"]):
        set_random_state(state["random"][processes.rank])
    processes.say(f"resumed {run.folder} at step {steps_done}")
    best.psnr = kept_psnr(best.file, state["best"], processes)
    recent.load(state.get("recent", []))  # not in the states of runs without --mean-last
    return Standing(steps_done=steps_done, best=best, recent=recent, log_state=state["log"])


def kept_psnr(best_file: Path, psnr_in_state: float, processes: Processes) -> float:
    """Return the mean PSNR of the best network that was kept, in dB; NO_BEST_PSNR if there is none.

    The file is asked, and not the state: it may be of a later step than the last state of a machine
    that went down, or be missing in a copy of the run folder. `psnr_in_state` is only for the note.
    """
    try:
        scores = read_header(best_file)["notes"]["psnr"]
    except (OSError, ValueError, KeyError) as error:
        if psnr_in_state != NO_BEST_PSNR:
            processes.say(
                f"note: the best network so far, of {psnr_in_state:.2f} dB, is not there "
                f"({error}); the next one that is validated takes its place"
            )
        return NO_BEST_PSNR
    psnr = mean_psnr(scores)
    # Older versions also scored images that a network reproduces exactly, whose PSNR is infinite.
    # No later network could take the place of such a best one, so it does not count.
    return psnr if math.isfinite(psnr) else NO_BEST_PSNR


def mean_psnr(scores: Mapping[Any, float]) -> float:
    """Return the mean over the depths, in dB."""
    return sum(scores.values()) / len(scores)


def log_initial_weights(
    options: Options,
    log: TrainingLog,
    net: ElasticWrapper,
    validation: Validation,
    processes: Processes,
) -> None:
    """Log the PSNR of the weights of --init, if it is given, before they are trained further."""
    if options.setup.init is not None and processes.first:
        write_log_line(log, 0, validate(net, validation, processes.device))


def psd_share(
    options: Options, training_step: TrainingStep, net: ElasticWrapper, batch: Batch, step: int
) -> dict[str, float]:
    """Return what --log-psd-share adds to a line of the log: the share on a step's batch.

    The step is done, so that the share is that of the new weights.
    """
    if not options.loss.log_psd_share:
        return {}
    return {"psd_share": training_step.distillation_share(batch, step, module=net.blocks)}


class Due(NamedTuple):
    """What is to be done after a step.

    Attributes:
        validation: Whether the depths are scored.
        save: Whether a state to resume from is saved.
        log_line: Whether a line of the log is written.
        stop: Whether the run stops here, as Ctrl-C or a signal asks.
    """

    validation: bool
    save: bool
    log_line: bool
    stop: bool


def due_after(
    steps_done: int, options: Options, stop_signal: StopSignal, processes: Processes
) -> Due:
    """Return what is due. A validation or a stop also saves, and a save also writes a log line.

    Several processes must stop after the same step, so they decide together, and only where a log
    line is due anyway: they wait for each other then, which would cost too much at every step. One
    process alone may stop after any step.
    """
    at_the_end = steps_done == options.optimiser.steps
    validation = at_the_end or steps_done % options.run.eval_every == 0
    save = validation or steps_done % options.run.save_every == 0
    log_line = save or steps_done % options.run.log_every == 0
    if log_line:
        stop = processes.any(stop_signal.requested)
    else:
        stop = processes.count == 1 and stop_signal.requested
    if stop:
        save = True
        log_line = True
    return Due(validation=validation, save=save, log_line=log_line, stop=stop)


class Validation(NamedTuple):
    """The images that every depth is scored on.

    Attributes:
        images: As they are.
        compressed: With --degradation photo the same after JPEG, by a name such as "q30"; otherwise
            none.
    """

    images: PairSet
    compressed: Mapping[str, PairSet]


class ValidationScores(NamedTuple):
    """The PSNR of every depth, in dB.

    Attributes:
        mean: By depth; over the images as they are and all qualities, where there are several. By
            its mean over the depths the best network is chosen.
        by_quality: By "clean" or a name such as "q30", then by depth; empty without compression.
    """

    mean: dict[int, float]
    by_quality: dict[str, dict[int, float]]


def validated_qualities(options: Options) -> tuple[int, ...]:
    """Return the JPEG qualities that are validated, beside the images as they are."""
    return VALIDATED_QUALITIES if is_photo(options) else ()


def make_validation(options: Options, images: PairSet) -> Validation:
    """Return the images to validate on, compressed too where patches are."""
    compressed: dict[str, PairSet] = {}
    for quality in validated_qualities(options):
        compressed[f"q{quality}"] = with_compressed_lr(images, JpegSetting(quality))
    return Validation(images=images, compressed=compressed)


def validate(net: ElasticWrapper, validation: Validation, device: torch.device) -> ValidationScores:
    """Return the PSNR of every depth on the validation images."""
    clean = psnr_per_depth(net, validation.images, device)
    if not validation.compressed:
        return ValidationScores(mean=clean, by_quality={})
    by_quality = {CLEAN: clean}
    for name, images in validation.compressed.items():
        by_quality[name] = psnr_per_depth(net, images, device)
    mean: dict[int, float] = {}
    for depth in clean:
        of_depth = [scores[depth] for scores in by_quality.values()]
        mean[depth] = sum(of_depth) / len(of_depth)
    return ValidationScores(mean=mean, by_quality=by_quality)


def write_log_line(
    log: TrainingLog, step: int, scores: ValidationScores | None, **numbers: float
) -> None:
    """Write a line of the log, with an entry for each quality beside the mean."""
    if scores is None:
        log.write(step, None, **numbers)
        return
    columns = {f"psnr_{name}": by_depth for name, by_depth in scores.by_quality.items()}
    log.write(step, scores.mean, **numbers, **columns)


def psnr_per_depth(net: ElasticWrapper, pairs: PairSet, device: torch.device) -> dict[int, float]:
    """Return the PSNR of every depth on the validation images, in dB."""
    scores = evaluate(net, pairs, device=device, ssim=False)
    return {depth: score.psnr for depth, score in scores.items()}


def save_state(
    run: Run,
    steps_done: int,
    training_step: TrainingStep,
    log: TrainingLog,
    best: Best,
    recent: RecentWeights,
    processes: Processes,
) -> None:
    """Write the state to resume from, and the network that would be shipped now.

    All processes call it: each adds the state of its random numbers. The first one writes.
    """
    state: dict[str, Any] = {
        "training": training_step.state_dict(),
        "log": log.state_dict(),
        "best": best.psnr,
        "random": processes.gather(random_state()),
    }
    if recent.max_count > 0:
        state["recent"] = recent.states
    run.save(steps_done, state)
    if processes.first:
        last = run.folder / "last.safetensors"
        elasticnet.save(training_step.averaged_net, last, {"step": steps_done})


# --- names


def plan_of(options: Options) -> str:
    """Return in a line what the run is about to do."""
    preset = options.setup.preset
    if preset == "paper":
        preset = "paper (which --data without --preset means)"
    return (
        f"preset {preset}: {options.optimiser.steps:,} steps with a batch of "
        f"{options.optimiser.batch_size}, in {options.compute.precision}"
    )


def kind_of(options: Options) -> str:
    """Return what is trained in a word, such as x4 or denoise."""
    if options.setup.task == "sr":
        return f"x{options.images.scale}"
    return options.setup.task


def default_folder(options: Options) -> Path:
    """Return the run folder where --out is not given."""
    now = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs", f"{options.setup.preset}-{kind_of(options)}-{now}")


if __name__ == "__main__":
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # the patches of a training are all of one size
    # says where it was when the system ended it, say for a disk that is gone from under its cache
    faulthandler.enable()
    run_program(main, parse)
