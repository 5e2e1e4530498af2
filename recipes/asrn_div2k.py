"""Train ASRN, the elastic super-resolution network: one training, every depth a good network.

    python recipes/asrn_div2k.py                      demo: five minutes on the photographs that scikit-image carries
    python recipes/asrn_div2k.py --download           DIV2K into datasets/, then the paper's training
    python recipes/asrn_div2k.py --data DIR           the paper's training on DIV2K or on any flat folder of images
    python recipes/asrn_div2k.py --resume runs/NAME   go on exactly where a run stopped

--preset and --resume choose the defaults, and every other option below changes one of them. The run folder receives
options.json, log.jsonl, the states to resume from, last.safetensors and best.safetensors (for elasticnet.load), the
table per depth (table.md, table.json) and the figures (curve.png, crops.png, parameters.png).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from tqdm import tqdm

import elasticnet
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.losses import LossMeter
from elasticnet.runs import Run, StopSignal, differing_options, random_state, set_random_state
from elasticnet.schedule import cosine, halving
from elasticnet.sr import asrn
from elasticnet.sr.benchmark import evaluate
from elasticnet.sr.data import PairSet, load_pairs, pairs_from_arrays, scikit_image_photos
from elasticnet.sr.download import download_div2k
from elasticnet.sr.layouts import find_layout
from elasticnet.sr.patches import PatchSampler
from elasticnet.sr.report import write_report

DOWNLOADS = Path("datasets/DIV2K")
HELD_OUT_PHOTOS = ("chelsea", "coffee", "rocket")
LOSSES = {"l1": (F.l1_loss, 1), "mse": (F.mse_loss, 2)}  # and the power with which each grows with the image scale


@dataclass(frozen=True)
class Options:
    """Train ASRN, the elastic super-resolution network."""

    preset: Literal["demo", "paper"] = "paper"
    """Set of defaults: demo (five minutes, no data set needed) or paper (the published training)."""
    out: Path | None = None
    """Run folder, new or empty. Default: runs/PRESET-xSCALE-TIME."""
    resume: Path | None = None
    """Run folder to go on with, exactly where it stopped and with the options it was started with."""
    download: bool = False
    """Download DIV2K (7 GB with one scale of LR images) into datasets/ and train on it."""

    data: Path | None = None
    """Training images: DIV2K or any flat folder of HR images. Default: scikit-image's photographs."""
    valid: Path | None = None
    """Images for validation and for the final table, in any known layout. Default: some held out of the training
    images."""
    num_valid: int = 10
    """How many training images are held out when --valid is not given."""
    scale: Literal[2, 3, 4] = 2
    """Enlargement."""
    degradation: Literal["BI", "BD", "DN"] = "BI"
    """How LR is made: bicubic, blur and downscale, or downscale and noise."""

    num_blocks: int = 5
    """Blocks of the network; every one carries a prediction."""
    channels: int = 96
    """Width of the body."""
    upsampler: Literal["deconv", "subpixel"] = "deconv"
    """Shared head: the published one, or the paper's module A."""
    init: Literal["interpolate", "default"] = "interpolate"
    """Start near an interpolator of the input, or at PyTorch's own initialisation."""
    skip: Literal["none", "bicubic"] = "none"
    """Add the enlarged input to the output; not in the paper."""

    variant: Literal["full", "dsl", "ss"] = "full"
    """full: deep supervision and self-distillation; dsl: deep supervision only; ss: the deepest exit alone."""
    loss: Literal["l1", "mse"] = "mse"
    """Task loss of every tap."""
    image_scale: float = 255.0
    """Largest image value in the loss. The paper does not give its own; 255 is our assumption."""
    psd_weight: float = 0.1
    """Weight of the self-distillation; it only means something together with --loss and --image-scale."""
    tap_weights: Literal["paper", "normalised"] = "paper"
    """Weight of each tap's loss: 1 each, or 1/taps each."""
    sampled_taps: int | None = None
    """Compute the deepest tap and this many others a step. Default: all."""

    batch_size: int = 16
    """Patches a step."""
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

    eval_every: int = 5_000
    """Steps between validations; each is followed by a save."""
    log_every: int = 100
    """Steps between lines of the log."""
    keep: int = 3
    """How many states to resume from are kept."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to train."""
    precision: Literal["float32", "bfloat16"] = "bfloat16" if torch.cuda.is_available() else "float32"
    """Precision of the training step (autocast); validation is in float32."""
    seed: int = 0
    """Seed of weights, patches, noise and tap sampling."""

    def __post_init__(self) -> None:
        counts = ("num_blocks", "batch_size", "patch_size", "steps", "halve_every", "eval_every", "log_every", "keep")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")


PRESETS = {
    "demo": Options(
        preset="demo",
        loss="l1",
        image_scale=1.0,
        psd_weight=4e-4,
        tap_weights="normalised",
        patch_size=32,
        augment="flips+rotations",
        steps=900,
        learning_rate=2e-3,
        schedule="cosine",
        warmup=50,
        eval_every=150,
        log_every=10,
    ),
    "paper": Options(),
}


def parse(arguments: list[str]) -> Options:
    """Two passes: --preset, --resume, or whether there is data, choose the defaults; then every option changes one."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", choices=PRESETS)
    first.add_argument("--resume", type=Path)
    first.add_argument("--data", type=Path)
    first.add_argument("--download", action="store_true")  # tyro's --help explains all four
    known, _ = first.parse_known_args(arguments)
    data = known.data or (DOWNLOADS if known.download or DOWNLOADS.is_dir() else None)
    if known.resume:
        with Run.resume(known.resume, writer=False) as run:
            stored = run.options
        known_names = {field.name for field in dataclasses.fields(Options)} - {"resume", "download"}
        if differing := known_names ^ stored.keys():
            raise ValueError(f"{known.resume}: its options differ from this recipe's in {', '.join(sorted(differing))}")
        paths = {name: stored[name] and Path(stored[name]) for name in ("out", "data", "valid")}
        defaults = Options(**{**stored, **paths})
    else:
        defaults = dataclasses.replace(PRESETS[known.preset or ("paper" if data else "demo")], data=data)
    return tyro.cli(Options, default=defaults, args=arguments, description=__doc__)


def main(options: Options) -> None:
    if options.download:
        download_div2k(DOWNLOADS, scale=options.scale)
    training, validation = load_data(options)
    torch.manual_seed(options.seed)
    net = build(options)
    if options.resume:
        run = Run.resume(options.resume, keep=options.keep)
        for name, (before, now) in differing_options(run.options, as_json(options)).items():
            print(f"note: --{name.replace('_', '-')} was {before} when this run started and is {now} now")
    else:
        out = options.out or Path("runs") / time.strftime(f"{options.preset}-x{options.scale}-%Y%m%d-%H%M%S")
        run = Run.create(out, as_json(options), keep=options.keep)
    with run:
        print(f"training on {training}, validating on {validation}; run folder {run.folder}")
        if train(options, run, net, training, validation):
            title = f"ASRN x{options.scale}, {options.steps} steps"
            print(f"\n{write_report(run.folder, net, validation, title, options.device)}")
            print(f"written to {run.folder}: best.safetensors, last.safetensors, table and figures")


def as_json(options: Options) -> dict[str, Any]:
    """The options that belong to the run: all but those that say how this process was started."""
    values = dataclasses.asdict(options)
    return {name: value for name, value in values.items() if name not in ("resume", "download")}


def load_data(options: Options) -> tuple[PairSet, PairSet]:
    """Return the training and the validation pairs."""
    if options.data is None:
        print(
            f"DIV2K was not found in {DOWNLOADS}. To train on it, pass --download, which fetches it there, or --data "
            "DIR for a copy of it or for any other folder of HR images.\nTraining on the photographs that scikit-image "
            f"carries instead; held out: {', '.join(HELD_OUT_PHOTOS)}."
        )
        photos = scikit_image_photos()
        pairs = pairs_from_arrays(photos, options.scale, degradation=options.degradation, seed=options.seed)
        training = pairs.subset([name for name in photos if name not in HELD_OUT_PHOTOS])
        return training, pairs.subset(HELD_OUT_PHOTOS)

    def load(root: Path, split: str, min_size: int) -> PairSet:
        split_or_none = split if find_layout(root) == "div2k" else None
        make: dict[str, Any] = {"degradation": options.degradation, "seed": options.seed, "min_size": min_size}
        return load_pairs(root, options.scale, split=split_or_none, **make)

    training = load(options.data, "train", options.patch_size)
    if options.valid is not None:
        return training, load(options.valid, "valid", 0)
    if not 0 < options.num_valid < len(training):
        raise ValueError(f"--num-valid {options.num_valid}: expected 1 to {len(training) - 1} of the training images")
    held_out = training.names[:: -(-len(training) // options.num_valid)]
    return training.subset([name for name in training.names if name not in held_out]), training.subset(held_out)


def build(options: Options) -> ElasticWrapper:
    """Return the network; the variant ss has its one tap at the deepest block."""
    net = asrn(
        options.scale,
        options.num_blocks,
        options.channels,
        upsampler=options.upsampler,
        init=options.init,
        skip=None if options.skip == "none" else options.skip,
        taps=(-1,) if options.variant == "ss" else None,
    )
    return net.to(options.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def train(options: Options, run: Run, net: ElasticWrapper, training: PairSet, validation: PairSet) -> bool:
    """Train until options.steps; False when it was stopped before (the state is saved then)."""
    loss, power = LOSSES[options.loss]
    factor = options.image_scale**power
    objective = ElasticObjective(
        net,
        task_loss=lambda prediction, target: factor * loss(prediction, target),
        psd_weight=options.psd_weight if options.variant == "full" else 0.0,
        tap_weights=options.tap_weights,
        sampled_taps=options.sampled_taps if options.variant != "ss" else None,
        seed=options.seed,
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=options.learning_rate, fused=True)
    sampler = PatchSampler(
        training,
        options.patch_size,
        options.batch_size,
        seed=options.seed,
        augment=options.augment,
        device=options.device,
        memory_format=torch.channels_last,
    )
    done, scores, best = 0, {}, -math.inf
    if latest := run.load_latest():
        done, state = latest
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"])
        scores, best = state["scores"], state["best"]
        if done > options.steps:
            raise ValueError(f"--steps {options.steps}: the run in {run.folder} is already at step {done}")
        print(f"resumed {run.folder} at step {done}")
    meter = LossMeter()

    def log(extra: dict[str, Any]) -> None:
        if (bad := meter.first_not_finite()) is not None:
            raise FloatingPointError(
                f"the loss became NaN or infinite at step {done - len(meter) + 1 + bad}; nothing was saved since, and "
                f"{run.folder} holds the last good state. Try a smaller --learning-rate"
            )
        losses = meter.means()
        run.log({"step": done, "learning_rate": optimizer.param_groups[0]["lr"], **losses, **extra})
        bar.set_postfix_str(f"loss {losses['total']:.4g} PSNR {' '.join(f'{s:.2f}' for s in scores.values())}")

    def save() -> None:
        weights = {"net": net.state_dict(), "optimizer": optimizer.state_dict()}
        run.save(done, {**weights, "random": random_state(), "scores": scores, "best": best})
        elasticnet.save(net, run.folder / "last.safetensors")

    with StopSignal() as stop, tqdm(total=options.steps, initial=done, unit="step", dynamic_ncols=True) as bar:
        while done < options.steps and not stop.requested:
            lr, hr = sampler.batch(done)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * rate(options, done)
            with torch.autocast(lr.device.type, torch.bfloat16, enabled=options.precision == "bfloat16"):
                terms = objective(lr, hr, step=done)
            optimizer.zero_grad(set_to_none=True)
            terms.total.backward()
            optimizer.step()
            meter.add(terms)
            done += 1
            bar.update()

            if done % options.eval_every == 0 or done == options.steps:
                results = evaluate(net, validation, device=options.device, ssim=False)
                scores = {depth: score.psnr for depth, score in results.items()}
                log({"psnr": scores})
                if (mean := sum(scores.values()) / len(scores)) > best:
                    best = mean
                    elasticnet.save(net, run.folder / "best.safetensors", {"step": done, "psnr": scores})
                save()
            elif done % options.log_every == 0:
                log({})
        if done < options.steps:  # stopped, perhaps between two lines of the log
            if len(meter):
                log({})
            save()
            bar.write(f"stopped and saved at step {done}; go on with: python {sys.argv[0]} --resume {run.folder}")
    return done == options.steps


def rate(options: Options, step: int) -> float:
    """Return the factor on the learning rate at `step`."""
    if options.schedule == "halving":
        return halving(step, options.halve_every)
    return cosine(step, options.steps, options.warmup)


if __name__ == "__main__":
    try:
        main(parse(sys.argv[1:]))
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
