"""Make an ordinary super-resolution network elastic: EDSR or RCAN, before and after, at every
depth.

    python recipes/sr_retrofit.py --model edsr                  minutes, on the photographs that
    scikit-image carries python recipes/sr_retrofit.py --model rcan --data DIR --valid DIR DIR
    your images, scored on benchmark sets python recipes/sr_retrofit.py --model edsr --weights FILE
    --data DIR      from the authors' checkpoint, or ours python recipes/sr_retrofit.py --resume
    runs/NAME            go on exactly where a run stopped

Three trainings on the same images: the ordinary network by its deepest exit alone (read instead
with --weights), an SRCNN to compare with, and the elastic network, which starts from the ordinary
one's weights. Then every depth is scored, of the ordinary network with its blocks cut away and of
the elastic one. The run folder receives options.json, log.jsonl, the states to resume from,
ordinary.safetensors, srcnn.safetensors and elastic.safetensors, table.md, table.json and a figure
for each set of images.
"""

from __future__ import annotations

import copy
import faulthandler
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import elasticnet
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet._files import write_atomic, write_json
from elasticnet._tables import aligned, table
from elasticnet.loss_weights import equal, normalised
from elasticnet.memory import keep_freed_memory
from elasticnet.sr.benchmark import benchmark, evaluate, load_sets, scale_of
from elasticnet.sr.benchmark.figures import elastic_curve
from elasticnet.sr.data import PairSet
from elasticnet.sr.data.patches import PatchSampler
from elasticnet.sr.data.splits import HELD_OUT_PHOTOS, training_pairs
from elasticnet.sr.models.convert import BUILDERS, load_official, read_official
from elasticnet.sr.models.edsr import tap_macs
from elasticnet.sr.models.heads import bicubic_upsample
from elasticnet.training.learning_rate import cosine
from elasticnet.training.log import TrainingLog, show_messages, tensorboard_installed
from elasticnet.training.options import as_json, at_least_one, open_run, parse_options
from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run, differing_options
from elasticnet.training.state import seed_all
from elasticnet.training.step import TrainingStep
from elasticnet.training.stop_signal import StopSignal

PHASES = ("ordinary", "srcnn", "elastic")
LABELS = ("ordinary, cut short", "SRCNN", "elastic")
# The options of size, each with the builder's own argument and what it is where no weights tell it
EDSR_SIZES = {"scale": ("scale", 2), "num_blocks": ("num_blocks", 8), "channels": ("channels", 32)}
RCAN_SIZES = EDSR_SIZES | {"num_groups": ("num_blocks", 4), "num_blocks": ("group_size", 4)}
SIZES: dict[str, dict[str, tuple[str, int]]] = {"edsr": EDSR_SIZES, "rcan": RCAN_SIZES}
# a resumed run cannot change them
FIXED = ("model", "weights", "scale", "num_blocks", "num_groups", "channels")
# EDSR's heads at all taps cost more than its blocks: see tap_macs
SAMPLED_TAPS = {"edsr": 2, "rcan": None}
CUDA = torch.cuda.is_available()


@dataclass(frozen=True)
class Options:
    """Make an ordinary super-resolution network elastic."""

    model: Literal["edsr", "rcan"] = "edsr"
    """The network. A depth is a residual block of EDSR or a residual group of RCAN."""
    weights: Path | None = None
    """The ordinary network: an authors' .pth or .pt, or a .safetensors file. Default: a short
    training.
    """
    out: Path | None = None
    """Run folder, new or empty. Default: runs/retrofit-MODEL-xSCALE-TIME."""
    resume: Path | None = None
    """Run folder to go on with, exactly where it stopped and with the options it was started
    with.
    """

    data: Path | None = None
    """Training images: DIV2K or any flat folder of HR images. Default: scikit-image's
    photographs.
    """
    valid: list[str] = field(default_factory=list)
    """Images to score, one or more folders in any known layout. Default: held out of the training
    images.
    """
    num_valid: int = 10
    """How many images of --data are held out when --valid is not given."""

    scale: Literal[2, 3, 4] | None = None
    """Enlargement. Default: that of --weights, or 2."""
    num_blocks: int | None = None
    """Residual blocks of EDSR, or of each of RCAN's groups. Default: those of --weights, or 8 and
    4.
    """
    num_groups: int | None = None
    """Residual groups of RCAN. Default: those of --weights, or 4."""
    channels: int | None = None
    """Width of the body. Default: that of --weights, or 32."""

    train_steps: int = 800
    """Steps of the ordinary network's training; none with --weights."""
    srcnn_steps: int = 800
    """Steps of SRCNN's training."""
    tune_steps: int = 800
    """Steps that make the network elastic."""
    learning_rate: float = 1e-3
    """Adam's learning rate for the ordinary network, before its cosine."""
    srcnn_learning_rate: float = 1e-3
    """Adam's learning rate for SRCNN."""
    tune_learning_rate: float = 1e-3
    """Adam's learning rate for the elastic network."""
    warmup: int = 50
    """Steps of linear warm-up before each cosine."""
    psd_weight: float = 4e-4
    """Weight of the self-distillation, beside an L1 loss on images in 0..1 whose taps weigh 1
    together.
    """
    sampled_taps: int | None = None
    """Train the deepest tap and this many others a step. Default: 2 for EDSR; all for RCAN, whose
    heads cost little.
    """
    batch_size: int = 16
    """Patches a step."""
    patch_size: int = 32
    """Side of an LR patch in pixels."""

    eval_every: int = 200
    """Steps between validations, on the first set of images; each is followed by a save."""
    save_every: int = 100
    """Steps between states to resume from."""
    log_every: int = 20
    """Steps between lines of the log."""
    keep: int = 2
    """How many states to resume from are kept."""
    tensorboard: bool = tensorboard_installed()
    """Log to TensorBoard too."""
    device: str = "cuda" if CUDA else "cpu"
    """Where to train."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the training steps, by autocast; validation is in float32."""
    seed: int = 0
    """Seed of weights, patches and tap sampling."""

    def __post_init__(self) -> None:
        at_least_one(
            self,
            "num_valid",
            "train_steps",
            "srcnn_steps",
            "tune_steps",
            "batch_size",
            "patch_size",
        )
        at_least_one(self, "eval_every", "save_every", "log_every", "keep")
        at_least_one(self, *(name for name in FIXED[3:] if getattr(self, name) is not None))
        if self.model == "edsr" and self.num_groups is not None:
            raise ValueError(
                f"--num-groups {self.num_groups}: EDSR has no groups; "
                "give --num-blocks, or --model rcan"
            )
        if self.sampled_taps is not None and self.sampled_taps < 0:
            raise ValueError(f"--sampled-taps {self.sampled_taps}: expected at least 0")
        for name in ("learning_rate", "srcnn_learning_rate", "tune_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: expected a number above 0"
                )
        if not 0 <= self.psd_weight < math.inf:
            raise ValueError(f"--psd-weight {self.psd_weight}: expected a number from 0 up")


class SRCNN(nn.Module):
    """SRCNN 9-1-5 on RGB: three convolutions on the bicubic-enlarged input; (b, 3, h, w) -> (b, 3,
    scale h, scale w).

    Source: "Image Super-Resolution Using Deep Convolutional Networks", which works on Y alone. It
    starts as the enlarged input, which three of its channels carry; from PyTorch's own start a
    short training leaves it far below bicubic, and nothing could be measured by it.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        convs = [
            nn.Conv2d(3, 64, 9, padding=4),
            nn.Conv2d(64, 32, 1),
            nn.Conv2d(32, 3, 5, padding=2),
        ]
        self.layers = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        with torch.no_grad():
            for conv in convs:
                middle = conv.kernel_size[0] // 2
                conv.weight[:3], conv.bias[:3] = 0, 0  # pyright: ignore[reportOptionalSubscript]
                conv.weight[range(3), range(3), middle, middle] = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(bicubic_upsample(x, self.scale))


def parse(arguments: list[str]) -> Options:
    return parse_options(Options, arguments, lambda given: Options(data=given["data"]), __doc__)


def main(options: Options) -> None:
    show_messages()
    processes = Processes(device=torch.device(options.device))
    ordinary = ordinary_network(options).to(processes.device)
    scale = scale_of(ordinary)
    training, sets = image_pairs(options, scale, processes)
    sampler = PatchSampler(
        *(training, options.patch_size, options.batch_size),
        seed=options.seed,
        device=processes.device,
        memory_format=torch.channels_last,
    )
    folder = options.out or Path(
        "runs", time.strftime(f"retrofit-{options.model}-x{scale}-%Y%m%d-%H%M%S")
    )
    with open_run(options, folder, processes) as run:
        for name, (before, now) in differing_options(run.options, as_json(options)).items():
            if name in FIXED:
                option = f"--{name.replace('_', '-')} {now}"
                raise ValueError(
                    f"{option}: the run in {run.folder} was started with {before}; "
                    "start another one"
                )
        scored = ", ".join(name for name, _ in sets)
        processes.say(f"training on {training}, scoring on {scored}; run folder {run.folder}")
        processes.say(tap_cost(ordinary, options))
        nets = train(options, run, ordinary, sampler, sets[0][1], processes)
        if nets is not None:
            print(f"\n{write_report(options, run.folder, nets, sets)}")
            files = ", ".join(f"{phase}.safetensors" for phase in PHASES)
            print(f"written to {run.folder}: {files}, tables and figures")


def ordinary_network(options: Options) -> ElasticWrapper:
    """Return the network of --weights, or a new one of the sizes asked for; with a tap at every
    depth.
    """
    sizes = SIZES[options.model]
    given = {name: getattr(options, name) for name in sizes}
    if options.weights is None:
        arguments = {
            key: default if given[name] is None else given[name]
            for name, (key, default) in sizes.items()
        }
        if options.model == "rcan":  # four channels inside the attention, as the published 64 / 16
            arguments["reduction"] = max(1, arguments["channels"] // 4)
        seed_all(options.seed)
        return BUILDERS[options.model](**arguments)
    # A resumed run has its own copy, so that the file may be gone.
    own = options.resume / "ordinary.safetensors" if options.resume else options.weights
    net = read_weights(own if own.exists() else options.weights)
    assert net.origin is not None
    architecture, arguments = net.origin
    if architecture != options.model:
        raise ValueError(
            f"--weights {options.weights}: holds {architecture}, and --model is {options.model}"
        )
    for name, (key, _) in sizes.items():
        if given[name] not in (None, arguments[key]):
            option = f"--{name.replace('_', '-')} {given[name]}"
            raise ValueError(
                f"{option}: --weights {options.weights} has {arguments[key]}; leave the option out"
            )
    return net


def read_weights(path: Path) -> ElasticWrapper:
    """Return the EDSR or RCAN of an official checkpoint, or of a file of `elasticnet.save`, with a
    tap everywhere.
    """
    state = read_official(path)
    if not any(name.startswith("blocks.") for name in state):
        try:
            return load_official(state)
        except ValueError as error:
            raise ValueError(f"--weights {path}: {error}") from error
    saved = elasticnet.load(path)
    assert saved.origin is not None
    architecture, arguments = saved.origin
    if architecture not in BUILDERS:
        raise ValueError(f"--weights {path}: holds {architecture}, expected edsr or rcan")
    net = BUILDERS[architecture](**arguments)
    net.load_state_dict(saved.state_dict())
    return net


def image_pairs(
    options: Options, scale: int, processes: Processes
) -> tuple[PairSet, list[tuple[str, PairSet]]]:
    """Return the training images and the sets to score."""
    if options.data is None:
        held_out = "" if options.valid else f"; held out: {', '.join(HELD_OUT_PHOTOS)}"
        processes.say(f"no --data: training on the photographs that scikit-image carries{held_out}")
    training, validation = training_pairs(
        *(options.data, options.valid[0] if options.valid else None, scale),
        num_valid=options.num_valid,
        min_size=options.patch_size,
    )
    return training, load_sets(options.valid, [scale]) if options.valid else [
        ("validation", validation)
    ]


def sampled_taps(options: Options) -> int | None:
    return SAMPLED_TAPS[options.model] if options.sampled_taps is None else options.sampled_taps


def tap_cost(net: ElasticWrapper, options: Options) -> str:
    """Return a line that says what a prediction at every tap costs, and how many taps a step
    trains.
    """
    side, count, sampled = options.patch_size, len(net.taps), sampled_taps(options)
    ratio = tap_macs(net, torch.zeros(1, 3, side, side, device=options.device)).ratio
    heads = f"heads at all {count} taps cost {ratio:.2f} times the multiply-adds of stem and blocks"
    taken = count if sampled is None else min(count, 1 + sampled)
    return f"{heads}; a step of the elastic training takes {taken}"


def train(
    options: Options,
    run: Run,
    ordinary: ElasticWrapper,
    sampler: PatchSampler,
    pairs: PairSet,
    processes: Processes,
) -> dict[str, ElasticWrapper] | None:
    """Go through the phases from where the run stands; return the nets, or None when it was stopped
    (and saved).
    """
    steps = (0 if options.weights else options.train_steps, options.srcnn_steps, options.tune_steps)
    rates = (options.learning_rate, options.srcnn_learning_rate, options.tune_learning_rate)
    seed_all(options.seed)
    nets = {
        "ordinary": ordinary,
        "srcnn": ElasticWrapper([SRCNN(scale_of(ordinary))], nn.Identity()),
    }
    done, state = run.load_latest() or (0, None)
    begun, reached = (0, 0) if state is None else (state["begun"], PHASES.index(state["phase"]))
    if state is not None:
        processes.say(f"resumed {run.folder} at step {done}, in the phase {state['phase']}")
    log = TrainingLog(
        run,
        begun + sum(steps[reached:]),
        processes,
        score_name="psnr",
        score_unit="dB",
        tensorboard=options.tensorboard,
    )
    with StopSignal() as stop:
        for number, phase in enumerate(PHASES):
            net = nets[phase] if phase in nets else copy.deepcopy(nets["ordinary"])
            nets[phase] = net = net.to(processes.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            file = run.folder / f"{phase}.safetensors"
            if number < reached:
                net.load_state_dict(elasticnet.load(file, build=lambda net=net: net).state_dict())
                continue
            end, elastic = begun + steps[number], phase == "elastic"
            if done > end:
                option = f"--{('train', 'srcnn', 'tune')[number]}-steps {steps[number]}"
                raise ValueError(
                    f"{option}: the run in {run.folder} has done {done - begun} of them already"
                )
            if done < end and not stop.requested:
                processes.say(
                    f"phase {number + 1} of {len(PHASES)}: {phase}, {steps[number]} steps"
                )
            objective = ElasticObjective(
                net,
                task_loss=F.l1_loss,
                psd_weight=options.psd_weight if elastic else 0.0,
                tap_weights=normalised(net.taps) if elastic else equal(net.taps),
                # 0: by the deepest exit alone
                sampled_taps=sampled_taps(options) if elastic else 0,
                seed=options.seed,
            )
            optimizer = torch.optim.Adam(net.parameters(), lr=rates[number], fused=True)
            training_step = TrainingStep(objective, net, optimizer, precision=options.precision)
            if state is not None:
                training_step.load_state_dict(state["training"])
            with log.start(done, state["log"] if state else {"scores": {}, "seconds": log.seconds}):
                while done < end and not stop.requested:
                    # Patches, taps and rate are functions of the step: no generator's state has to
                    # be kept.
                    rate = rates[number] * cosine(
                        done - begun, steps[number], min(options.warmup, steps[number] // 4)
                    )
                    log.add(
                        training_step(
                            lambda part, parts, step=done: sampler.batch(step, part, parts),
                            done,
                            rate,
                        )
                    )
                    done += 1

                    evaluating = done % options.eval_every == 0 or done == end
                    saving = evaluating or done % options.save_every == 0 or stop.requested
                    scores = None
                    if evaluating:
                        depths = net.taps if elastic else net.taps[-1:]
                        results = evaluate(
                            net, pairs, depths=depths, device=processes.device, ssim=False
                        )
                        scores = {depth: score.psnr for depth, score in results.items()}
                    if saving or done % options.log_every == 0:
                        log.write(done, scores, learning_rate=rate, phase=number + 1)
                    if saving:
                        kept = {"training": training_step.state_dict(), "log": log.state_dict()}
                        run.save(done, {"phase": phase, "begun": begun, **kept})
            if done < end:
                again = f"python {sys.argv[0]} --resume {run.folder}"
                processes.say(f"stopped and saved at step {done}; go on with: {again}")
                return None
            elasticnet.save(net, file, {"step": done, "phase": phase})
            begun, state = done, None
    return nets


def write_report(
    options: Options, folder: Path, nets: dict[str, ElasticWrapper], sets: Sequence[Any]
) -> str:
    """Score every depth of `nets` on the sets; return the tables, and write them and the figures
    into `folder`.
    """
    cut, srcnn, elastic = LABELS
    named = [(label, nets[phase]) for phase, label in zip(PHASES, LABELS, strict=True)]
    result = benchmark(named, sets, costs=False, device=options.device, progress=True)
    origin = nets["ordinary"].origin or ("", {})
    sizes = ", ".join(f"{name}={value}" for name, value in origin[1].items() if name != "fold")
    text = f"{options.model}({sizes}); PSNR-Y in dB, protocol {result.settings['protocol']}\n"
    for name, pairs in sets:
        rows = {(row.network, row.depth): row for row in result.rows if row.data == name}
        curves = {
            label: {depth: rows[label, depth].psnr for depth in nets["elastic"].taps}
            for label in (elastic, cut)
        }
        lines = {"bicubic": rows["bicubic", None].psnr, srcnn: rows[srcnn, 1].psnr}
        title = f"{options.model.upper()}, {name} x{pairs.scale}"
        elastic_curve(folder / f"{name}_curve.png", curves, lines, title, "PSNR-Y (dB)")
        baselines = ", ".join(f"{label} {psnr:.2f}" for label, psnr in lines.items())
        shown = [["depth", "parameters", cut, elastic, f"over {srcnn}"]]
        for depth, psnr in curves[elastic].items():
            cells = [
                f"{depth}",
                f"{rows[elastic, depth].parameters:,}",
                f"{curves[cut][depth]:.2f}",
                f"{psnr:.2f}",
            ]
            shown.append([*cells, f"{psnr - lines[srcnn]:+.2f}"])
        text += (
            f"\n{name} x{pairs.scale} ({len(pairs)} images): {baselines}\n\n{aligned(table(shown))}"
        )
    write_atomic(folder / "table.md", text)
    about = {"options": as_json(options), "network": origin, "settings": result.settings}
    write_json(folder / "table.json", {**about, "rows": [row._asdict() for row in result.rows]})
    return text


if __name__ == "__main__":
    keep_freed_memory()
    # where it was when the system ended it, say for a disk that is gone from under its cache
    faulthandler.enable()
    try:
        main(parse(sys.argv[1:]))
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
