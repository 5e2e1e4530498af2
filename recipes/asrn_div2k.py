"""Train ASRN, the elastic super-resolution network: one training, every depth a good network.

    python recipes/asrn_div2k.py                      demo: five minutes on the photographs that
    scikit-image carries python recipes/asrn_div2k.py --download           DIV2K into datasets/,
    then the paper's training python recipes/asrn_div2k.py --data DIR           the paper's training
    on DIV2K or on any flat folder of images python recipes/asrn_div2k.py --task denoise       the
    same network at equal size: Gaussian noise, or --task deblur python recipes/asrn_div2k.py
    --resume runs/NAME   go on exactly where a run stopped torchrun --nproc-per-node 4
    recipes/asrn_div2k.py --data DIR     four processes share the batch

--preset and --resume choose the defaults, and every other option below changes one of them. The run
folder receives options.json, log.jsonl, states to resume from, last and best.safetensors (for
elasticnet.load), tables and figures.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

import elasticnet
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.card.machine import machine_key
from elasticnet.loss_weights import deepest_share, equal, normalised, rising_deepest_share
from elasticnet.losses import charbonnier
from elasticnet.memory import keep_freed_memory
from elasticnet.sr import asrn
from elasticnet.sr.benchmark import evaluate
from elasticnet.sr.benchmark.report import write_report
from elasticnet.sr.data import PairSet
from elasticnet.sr.data.download import download_div2k
from elasticnet.sr.data.patches import PatchSampler
from elasticnet.sr.data.splits import HELD_OUT_PHOTOS, training_pairs, validation_crops
from elasticnet.training.learning_rate import cosine, halving
from elasticnet.training.log import TrainingLog, show_messages, tensorboard_installed
from elasticnet.training.options import at_least_one, from_0_to_1, open_run, parse_options
from elasticnet.training.processes import Processes, join_processes
from elasticnet.training.run_folder import Run
from elasticnet.training.state import random_state, seed_all, set_random_state
from elasticnet.training.step import TrainingStep
from elasticnet.training.stop_signal import StopSignal
from elasticnet.training.warm_start import warm_start

DOWNLOADS = Path("datasets/DIV2K")
# power of the image scale
LOSSES = {"l1": (F.l1_loss, 1), "mse": (F.mse_loss, 2), "charbonnier": (charbonnier, 1)}
TASKS = {  # at scale 1 DN is the noisy photograph and BD the blurred one
    "sr": {},
    "denoise": {"scale": 1, "degradation": "DN", "noise_sigma": 25.0},
    "deblur": {"scale": 1, "degradation": "BD", "blur_sigma": 1.6},
}
# arguments of a network that may differ in a warm start: they leave its head what it is
SAME_HEAD = ("num_blocks", "fold", "tap_affine")
CUDA = torch.cuda.is_available()


@dataclasses.dataclass(frozen=True)
class Options:
    """Train ASRN, the elastic super-resolution network."""

    preset: Literal["demo", "paper", "best"] = "paper"
    """Set of defaults: demo (five minutes, no data set needed), paper (the published training) or
    best (ours).
    """
    task: Literal["sr", "denoise", "deblur"] = "sr"
    """Super-resolution, or restoration at equal size (scale 1) of noise (sigma 25) or blur (sigma
    1.6).
    """
    out: Path | None = None
    """Run folder, new or empty. Default: runs/PRESET-xSCALE-TIME, or runs/PRESET-TASK-TIME."""
    resume: Path | None = None
    """Run folder to go on with, exactly where it stopped and with the options it was started
    with.
    """
    init: Path | None = None
    """Start from the weights of this file (best.safetensors of a run): of another scale or depth,
    too.
    """
    download: bool = False
    """Download DIV2K (7 GB with one scale of LR images) into datasets/ and train on it."""

    data: Path | None = None
    """Training images: DIV2K or any flat folder of HR images. Default: scikit-image's
    photographs.
    """
    valid: Path | None = None
    """Images for validation and the final table, in any known layout. Default: held out of the
    training images.
    """
    num_valid: int = 10
    """How many training images are held out when --valid is not given."""
    scale: Literal[1, 2, 3, 4] = 2
    """Enlargement; 1 for the tasks that keep the size."""
    degradation: Literal["BI", "BD", "DN"] = "BI"
    """How LR is made: bicubic, blur and downscale, or downscale and noise."""
    blur_sigma: float | None = None
    """Of the Gaussian blur of BD and deblur, in HR pixels. Default: 1.6."""
    noise_sigma: float | None = None
    """Of the Gaussian noise of DN and denoise, on the 0..255 scale. Default: 30; denoise 25."""

    num_blocks: int = 5
    """Blocks of the network; every one carries a prediction."""
    channels: int = 96
    """Width of the body."""
    upsampler: Literal["deconv", "subpixel"] = "deconv"
    """Shared head: the published one, or the paper's module A."""
    start: Literal["interpolate", "default"] = "interpolate"
    """Start near an interpolator of the input, or at PyTorch's own initialisation."""
    skip: Literal["none", "bicubic"] = "none"
    """Add the enlarged input to the output; not in the paper."""
    tap_affine: bool = False
    """A scale and a bias per channel and tap in front of the shared head; not in the paper."""

    variant: Literal["full", "dsl", "ss"] = "full"
    """full: deep supervision and self-distillation; dsl: deep supervision only; ss: the deepest
    exit alone.
    """
    loss: Literal["l1", "mse", "charbonnier"] = "mse"
    """Task loss of every tap."""
    image_scale: float = 255.0
    """Largest image value in the loss. The paper does not give its own; 255 is our assumption."""
    psd_weight: float = 0.1
    """Weight of the self-distillation; it only means something together with --loss and
    --image-scale.
    """
    tap_weights: Literal["paper", "normalised", "deepest", "rising"] | float = "paper"
    """Each tap's weight: 1, 1/taps, or for the deepest 1/2, a rising one or a number (the others
    share the rest).
    """
    rising_from: float = 0.2
    """The deepest tap's weight at the start, with --tap-weights rising; in the end it is 1."""
    output_weight: float = 0.0
    """Weight of distilling the deepest prediction into the shallower ones, beside --loss; not in
    the paper.
    """
    sampled_taps: int | None = None
    """Compute the deepest tap and this many others a step. Default: all."""

    batch_size: int = 16
    """Patches a step, over all processes."""
    patch_size: int = 48
    """Side of an LR patch in pixels. The paper does not give its own; 48 is the field's habit."""
    augment: Literal["flips", "flips+rotations", "none"] = "flips"
    """Random symmetries of the patches."""
    steps: int = 1_000_000
    """Training steps."""
    learning_rate: float = 1e-4
    """Adam's learning rate at the start."""
    schedule: Literal["halving", "cosine"] = "halving"
    """Learning rate over the steps."""
    halve_every: int = 200_000
    """Steps between halvings."""
    warmup: int = 0
    """Steps of linear warm-up before the cosine."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then what is validated and shipped; 0 for
    none.
    """
    clip_norm: float | None = None
    """Largest norm of all gradients together."""
    clip_value: float | None = None
    """Largest absolute value of each gradient."""

    eval_every: int = 5_000
    """Steps between validations; each is followed by a save."""
    save_every: int = 1_000
    """Steps between states to resume from."""
    log_every: int = 100
    """Steps between lines of the log."""
    keep: int = 3
    """How many states to resume from are kept."""
    tensorboard: bool = tensorboard_installed()
    """Log to TensorBoard too, with validation crops of every depth."""
    device: str = "cuda" if CUDA else "cpu"
    """Where to train."""
    precision: Literal["float32", "bfloat16", "float16", "float64"] = (
        "bfloat16" if CUDA else "float32"
    )
    """Precision of the training step (by autocast; float64: of the weights); validation is in the
    weights' own.
    """
    compile: bool = False
    """Compile the step, on CUDA into a graph; on a CPU it does not pay."""
    accumulate: int = 1
    """Compute each process's share of the batch in this many parts, one after the other."""
    auto_batch: bool = False
    """When the GPU's memory runs out, double --accumulate and go on."""
    seed: int = 0
    """Seed of weights, patches, noise and tap sampling."""

    def __post_init__(self) -> None:
        at_least_one(
            self, "num_blocks", "batch_size", "patch_size", "steps", "halve_every", "accumulate"
        )
        at_least_one(self, "eval_every", "save_every", "log_every", "keep")
        if not 0 <= self.ema < 1:
            raise ValueError(
                f"--ema {self.ema}: expected a decay from 0 (none) to below 1, such as 0.999"
            )
        if not all(clip is None or clip > 0 for clip in (self.clip_norm, self.clip_value)):
            raise ValueError(
                f"--clip-norm {self.clip_norm}, --clip-value {self.clip_value}: "
                "expected numbers above 0"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"--accumulate {self.accumulate}: expected a divisor of "
                f"--batch-size {self.batch_size}"
            )
        if self.task == "sr" and self.scale == 1:
            raise ValueError(
                "--scale 1: expected 2, 3 or 4, or --task denoise or deblur, "
                "which keep the image's size"
            )
        from_0_to_1(self, "rising_from", "tap_weights")
        fixed = TASKS[self.task]
        for name in fixed.keys() & {"scale", "degradation"}:
            if (value := getattr(self, name)) != fixed[name]:
                raise ValueError(
                    f"--{name} {value}: --task {self.task} has {name} {fixed[name]}; leave it out"
                )


PRESETS = {
    "demo": Options(
        preset="demo",
        skip="bicubic",
        loss="l1",
        image_scale=1.0,
        psd_weight=8e-5,
        tap_weights="normalised",
        patch_size=32,
        augment="flips+rotations",
        steps=900,
        learning_rate=4e-3,
        schedule="cosine",
        warmup=50,
        eval_every=150,
        save_every=150,
        log_every=10,
    ),
    "paper": Options(),
    "best": Options(
        preset="best",
        skip="bicubic",
        loss="l1",
        image_scale=1.0,
        psd_weight=8e-5,
        tap_weights="deepest",
        augment="flips+rotations",
        steps=60_000,
        learning_rate=2e-3,
        schedule="cosine",
        warmup=200,
        ema=0.999,
        clip_norm=0.02,
        eval_every=2_000,
    ),
}


def defaults(given: Mapping[str, Any]) -> Options:
    """Return the defaults that every other option changes: --preset or whether there is data, and
    --task.
    """
    data = given["data"] or (DOWNLOADS if given["download"] or DOWNLOADS.is_dir() else None)
    preset = given["preset"] if given["preset"] in PRESETS else "paper" if data else "demo"
    task = given["task"] if given["task"] in TASKS else "sr"
    return dataclasses.replace(PRESETS[preset], data=data, task=task, **TASKS[task])


def parse(arguments: list[str]) -> Options:
    return parse_options(Options, arguments, defaults, __doc__)


def main(options: Options) -> None:
    show_messages()
    with join_processes(options.device) as processes:
        if options.download:
            download_div2k(DOWNLOADS, scale=options.scale if options.degradation == "BI" else None)
        if options.data is None:
            processes.say(
                f"DIV2K was not found in {DOWNLOADS}. To train on it, pass --download, "
                "which fetches it there, or --data DIR for a copy of it or for any other folder "
                "of HR images.\nTraining on the photographs that "
                f"scikit-image carries instead; held out: {', '.join(HELD_OUT_PHOTOS)}."
            )
        training, validation = training_pairs(
            *(options.data, options.valid, options.scale, options.degradation),
            seed=options.seed,
            num_valid=options.num_valid,
            min_size=options.patch_size,
            blur_sigma=options.blur_sigma,
            noise_sigma=options.noise_sigma,
        )
        seed_all(options.seed)
        net = build(options, processes)
        seed_all(options.seed, processes.rank)
        kind = f"x{options.scale}" if options.task == "sr" else options.task
        folder = options.out or Path(
            "runs", time.strftime(f"{options.preset}-{kind}-%Y%m%d-%H%M%S")
        )
        with open_run(options, folder, processes) as run:
            processes.say(
                f"training on {training}, validating on {validation}; run folder {run.folder}"
            )
            finished = train(options, run, net, training, validation, processes)
            if finished is not None and processes.first:
                title = f"ASRN {kind}, {options.steps} steps"
                net = finished.float()
                print(f"\n{write_report(run.folder, net, validation, title, processes.device)}")
                print(
                    f"written to {run.folder}: best.safetensors, last.safetensors, "
                    "table and figures"
                )


def build(options: Options, processes: Processes) -> ElasticWrapper:
    """Return the network; the variant ss has its one tap at the deepest block."""
    net = asrn(
        *(options.scale, options.num_blocks, options.channels),
        upsampler=options.upsampler,
        init=options.start,
        skip=None if options.skip == "none" else options.skip,
        tap_affine=options.tap_affine,
        taps=(-1,) if options.variant == "ss" else None,
    )
    if options.init is not None and options.resume is None:
        taken = warm_start(net, elasticnet.load(options.init), may_differ=SAME_HEAD)
        processes.say(f"warm start from {options.init}: {'; '.join(taken)}")
    dtype = torch.float64 if options.precision == "float64" else torch.float32
    return net.to(processes.device, dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def tap_weights(
    options: Options, taps: Sequence[int]
) -> Mapping[int, float] | Callable[[int], Mapping[int, float]]:
    """Return what `--tap-weights` names: a weight for every depth, or a function of the step."""
    if options.tap_weights == "paper":
        return equal(taps)
    if options.tap_weights == "normalised":
        return normalised(taps)
    if options.tap_weights == "deepest":
        return deepest_share(taps, share=0.5)
    if options.tap_weights == "rising":
        return partial(
            rising_deepest_share, taps, total=options.steps, start=options.rising_from, end=1.0
        )
    return deepest_share(taps, share=options.tap_weights)


def train(
    options: Options,
    run: Run,
    net: ElasticWrapper,
    training: PairSet,
    validation: PairSet,
    processes: Processes,
) -> ElasticWrapper | None:
    """Train until options.steps and return the network to ship; None when it was stopped before
    (and saved).
    """
    loss, power = LOSSES[options.loss]
    factor = options.image_scale**power
    objective = ElasticObjective(
        net,
        task_loss=lambda prediction, target: factor * loss(prediction, target),
        psd_weight=options.psd_weight if options.variant == "full" else 0.0,
        tap_weights=tap_weights(options, net.taps),
        sampled_taps=options.sampled_taps if options.variant != "ss" else None,
        seed=options.seed,
        output_weight=factor * options.output_weight,
    )
    training_step = TrainingStep(
        torch.compile(objective, mode="reduce-overhead" if CUDA else None)
        if options.compile
        else objective,
        net,
        torch.optim.Adam(net.parameters(), lr=options.learning_rate, fused=True),
        processes=processes,
        precision=options.precision,
        ema=options.ema,
        clip_norm=options.clip_norm,
        clip_value=options.clip_value,
        parts=options.accumulate,
        auto_batch=options.auto_batch,
    )
    sampler = PatchSampler(
        *(training, options.patch_size, options.batch_size),
        seed=options.seed,
        augment=options.augment,
        device=processes.device,
        dtype=torch.float64 if options.precision == "float64" else torch.float32,
        memory_format=torch.channels_last,
    )
    machine = machine_key(processes.device, getattr(torch, options.precision))
    log = TrainingLog(
        run,
        options.steps,
        processes,
        score_name="psnr",
        score_unit="dB",
        tensorboard=options.tensorboard,
        machine=machine,
    )
    shipped, done, best, state, stopping = training_step.averaged_net, 0, -math.inf, None, False
    if latest := run.load_latest():
        done, state = latest
        if done > options.steps:
            raise ValueError(
                f"--steps {options.steps}: the run in {run.folder} is already at step {done}"
            )
        training_step.load_state_dict(state["training"])
        if processes.rank < len(state["random"]):
            set_random_state(state["random"][processes.rank])
        best = state["best"]
        processes.say(f"resumed {run.folder} at step {done}")

    with StopSignal() as stop, log.start(done, state and state["log"]):
        if done == 0 and options.init is not None and processes.first:
            # what the file was worth
            log.write(0, psnr_per_depth(shipped, validation, processes.device))
        while done < options.steps and not stopping:
            rate = halving(done, options.halve_every)
            if options.schedule == "cosine":
                rate = cosine(done, options.steps, options.warmup)
            learning_rate = options.learning_rate * rate
            log.add(
                training_step(
                    lambda part, parts, step=done: sampler.batch(step, part, parts),
                    done,
                    learning_rate,
                )
            )
            done += 1
            evaluating = done % options.eval_every == 0 or done == options.steps
            saving = evaluating or done % options.save_every == 0
            writing = saving or done % options.log_every == 0
            # Several processes look together, and seldom, as it makes them wait for each other.
            stopping = (
                processes.any(stop.requested)
                if writing
                else processes.count == 1 and stop.requested
            )
            scores = (
                psnr_per_depth(shipped, validation, processes.device)
                if evaluating and processes.first
                else None
            )
            if writing or stopping:
                log.write(done, scores, learning_rate=learning_rate)
            if scores is not None:
                if (mean := sum(scores.values()) / len(scores)) > best:
                    best = mean
                    elasticnet.save(
                        shipped, run.folder / "best.safetensors", {"step": done, "psnr": scores}
                    )
                log.pictures(done, validation_crops(shipped, validation, processes.device))
            if saving or stopping:
                state = {
                    "training": training_step.state_dict(),
                    "log": log.state_dict(),
                    "best": best,
                }
                run.save(done, {**state, "random": processes.gather(random_state())})
                if processes.first:
                    elasticnet.save(shipped, run.folder / "last.safetensors", {"step": done})
    if done < options.steps:
        processes.say(
            f"stopped and saved at step {done}; "
            f"go on with: python {sys.argv[0]} --resume {run.folder}"
        )
    return shipped if done == options.steps else None


def psnr_per_depth(net: ElasticWrapper, pairs: PairSet, device: torch.device) -> dict[int, float]:
    return {
        depth: score.psnr
        for depth, score in evaluate(net, pairs, device=device, ssim=False).items()
    }


if __name__ == "__main__":
    keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # the patches of a training are all of one size
    # where it was when the system ended it, say for a disk that is gone from under its cache
    faulthandler.enable()
    try:
        main(parse(sys.argv[1:]))
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
