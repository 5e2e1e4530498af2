"""Make an ordinary super-resolution network elastic: EDSR or RCAN, before and after.

    python recipes/sr_retrofit.py --model edsr      minutes, on scikit-image's photographs
    python recipes/sr_retrofit.py --model rcan --data DIR --valid DIR DIR     your images, scored on
                                                    benchmark sets
    python recipes/sr_retrofit.py --model edsr --weights FILE --data DIR      from the authors'
                                                    checkpoint, or ours
    python recipes/sr_retrofit.py --resume RUN      go on exactly where the run in a folder stopped

Three trainings on the same images: the ordinary network by its deepest tap alone (read instead
with --weights), an SRCNN to compare with, and the elastic network, which starts from the ordinary
one's weights. Then every depth is scored, of the ordinary network with its blocks cut away and of
the elastic one. The run folder receives options.json, log.jsonl, the states to resume from,
ordinary.safetensors, srcnn.safetensors and elastic.safetensors, table.md, table.json and a figure
for each set of images.
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported

# isort: split
import copy
import faulthandler
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import elasticnet
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet._files import write_atomic, write_json
from elasticnet._tables import aligned, table
from elasticnet.loss_weights import equal, normalised
from elasticnet.memory import keep_freed_memory
from elasticnet.sr.benchmark import (
    Row,
    benchmark,
    evaluate,
    load_sets,
    lr_line,
    scale_of,
    scorable,
)
from elasticnet.sr.benchmark.figures import elastic_curve
from elasticnet.sr.data import PairSet
from elasticnet.sr.data.image_record import keep_image_record
from elasticnet.sr.data.licences import note_licences
from elasticnet.sr.data.pair_set import listing
from elasticnet.sr.data.patches import PatchSampler
from elasticnet.sr.data.splits import HELD_OUT_PHOTOS, training_pairs
from elasticnet.sr.models.convert import BUILDERS, load_official, read_official
from elasticnet.sr.models.edsr import tap_macs
from elasticnet.sr.models.heads import bicubic_upsample
from elasticnet.sr.options import DataOptions, with_several_folders
from elasticnet.training.learning_rate import cosine
from elasticnet.training.log import TrainingLog, show_messages
from elasticnet.training.options import (
    PATHS,
    Above,
    AtLeast,
    ComputeOptions,
    LossOptions,
    OptimiserOptions,
    OptionGroup,
    RunOptions,
    as_json,
    flag,
    open_run,
    parse_options,
    resume_command,
    with_values,
)
from elasticnet.training.precision import resolve_precision
from elasticnet.training.processes import Processes, single_process
from elasticnet.training.program import run_program
from elasticnet.training.run_folder import Run
from elasticnet.training.state import seed_all
from elasticnet.training.step import TrainingStep
from elasticnet.training.stop_signal import StopSignal

# the labels of the networks in tables and figures
CUT = "ordinary, cut short"
SRCNN_LABEL = "SRCNN"
ELASTIC = "elastic"


class Size(NamedTuple):
    """An option of size.

    Attributes:
        option: The option's name.
        argument: The builder's argument that it is.
        default: The value where neither the option nor --weights gives it.
    """

    option: str
    argument: str
    default: int


EDSR_SIZES = (
    Size("scale", "scale", default=2),
    Size("num_blocks", "num_blocks", default=8),
    Size("channels", "channels", default=32),
)
# A block of the wrapped RCAN, which is a depth, is a residual group.
RCAN_SIZES = (
    Size("scale", "scale", default=2),
    Size("num_groups", "num_blocks", default=4),
    Size("group_size", "group_size", default=4),
    Size("channels", "channels", default=32),
)
SIZES = {"edsr": EDSR_SIZES, "rcan": RCAN_SIZES}
# what a resumed run cannot change
FIXED = ("model", "weights", "scale", "num_blocks", "num_groups", "group_size", "channels")


# --- options: in groups for --help and for the code below; options.json holds them without groups


@dataclass(frozen=True, kw_only=True)
class Network(OptionGroup):
    """The network."""

    model: Literal["edsr", "rcan"] = "edsr"
    """The network. A depth is a residual block of EDSR or a residual group of RCAN."""
    weights: Path | None = None
    """The ordinary network: an authors' .pth or .pt, or a .safetensors file. Default: a short
    training.
    """
    scale: Literal[2, 3, 4] | None = None
    """Enlargement. Default: that of --weights, or 2."""
    num_blocks: Annotated[int | None, AtLeast(1)] = None
    """Residual blocks of EDSR. Default: those of --weights, or 8."""
    num_groups: Annotated[int | None, AtLeast(1)] = None
    """Residual groups of RCAN. Default: those of --weights, or 4."""
    group_size: Annotated[int | None, AtLeast(1)] = None
    """Residual blocks in each of RCAN's groups. Default: those of --weights, or 4."""
    channels: Annotated[int | None, AtLeast(1)] = None
    """Width of the body. Default: that of --weights, or 32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "rcan" and self.num_blocks is not None:
            raise ValueError(
                f"--num-blocks {self.num_blocks}: RCAN has groups of blocks; give --num-groups and "
                "--group-size, or --model edsr"
            )
        for name in ("num_groups", "group_size"):
            value = getattr(self, name)
            if self.model == "edsr" and value is not None:
                raise ValueError(
                    f"{flag(name)} {value}: EDSR has no groups; give --num-blocks, or --model rcan"
                )


@dataclass(frozen=True, kw_only=True)
class Images(DataOptions):
    """The images, of which patches are cut."""

    valid: list[str] = field(default_factory=list, metadata=PATHS)
    """Images to score, one or more folders in any known layout. Default: held out of the training
    images.
    """


@dataclass(frozen=True, kw_only=True)
class Loss(LossOptions):
    """The loss of the elastic network: L1 on images in 0..1, whose taps weigh 1 together."""

    sampled_taps: Annotated[int | None, AtLeast(0)] = None
    """Train the deepest tap and this many others a step. Default: 2 for EDSR; all for RCAN, whose
    heads cost little.
    """


@dataclass(frozen=True, kw_only=True)
class Optimiser(OptimiserOptions):
    """Adam and its learning rates, a cosine in each of the three trainings."""

    train_steps: Annotated[int, AtLeast(1)] = 800
    """Steps of the ordinary network's training; none with --weights."""
    srcnn_steps: Annotated[int, AtLeast(1)] = 800
    """Steps of SRCNN's training."""
    tune_steps: Annotated[int, AtLeast(1)] = 800
    """Steps that make the network elastic."""
    srcnn_learning_rate: Annotated[float, Above(0)] = 1e-3
    """Adam's learning rate for SRCNN."""
    tune_learning_rate: Annotated[float, Above(0)] = 1e-3
    """Adam's learning rate for the elastic network."""


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """All options."""

    network: Network = Network()
    run: RunOptions = RunOptions(eval_every=200, save_every=100, log_every=20, keep=2)
    images: Images = Images(patch_size=32)
    loss: Loss = Loss(psd_weight=4e-4)
    optimiser: Optimiser = Optimiser(learning_rate=1e-3, warmup=50)
    compute: ComputeOptions = ComputeOptions(precision="float32")

    def __post_init__(self) -> None:
        if self.compute.precision == "float64":
            raise ValueError("--precision float64: expected auto, float32, bfloat16 or float16")

    @classmethod
    def with_new_names(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Return stored options by today's names: RCAN's --group-size was --num-blocks once."""
        stored = with_several_folders(stored)
        if stored.get("model") == "rcan" and "group_size" not in stored:
            return {**stored, "num_blocks": None, "group_size": stored.get("num_blocks")}
        return stored


def parse(arguments: list[str]) -> Options:
    """Return the options of a command line."""
    return parse_options(Options, arguments, default=Options(), description=__doc__, fixed=FIXED)


# --- the training


class Phase(NamedTuple):
    """One of the three trainings.

    Attributes:
        name: Also the name of the file that its network is saved in.
        number: Which training it is, from 0.
        steps_option: The option that says how many steps it has.
        steps: How many steps it has.
        learning_rate: The largest learning rate.
    """

    name: Literal["ordinary", "srcnn", "elastic"]
    number: int
    steps_option: str
    steps: int
    learning_rate: float


class Standing(NamedTuple):
    """Where a run stands.

    Attributes:
        phase: The number of the phase.
        begun: The steps of the run that were done when the phase began.
        step: The steps of the run that are done now.
        state: What was saved within the phase; None at its beginning.
    """

    phase: int
    begun: int
    step: int
    state: Mapping[str, Any] | None


class Training(NamedTuple):
    """What all phases share."""

    options: Options
    run: Run
    sampler: PatchSampler
    validation_images: PairSet
    processes: Processes
    log: TrainingLog
    stop_signal: StopSignal


def main(options: Options) -> None:
    """Train the three networks, score them, and write what came out into the run folder."""
    show_messages()
    processes = single_process(options.compute.device)
    # What auto means is decided here, once: it is stored, and a resumed run keeps it.
    precision = resolve_precision(options.compute.precision, processes)
    options = with_values(options, {"precision": precision})
    processes.say(plan_of(options))
    ordinary = ordinary_network(options).to(processes.device)
    scale = scale_of(ordinary)
    training_images, sets = load_images(options, scale, processes)
    sampler = PatchSampler(
        training_images,
        patch_size=options.images.patch_size,
        batch_size=options.optimiser.batch_size,
        seed=options.run.seed,
        device=processes.device,
        memory_format=torch.channels_last,
    )
    folder = options.run.out or default_folder(options, scale)
    with open_run(options, options.run, folder, processes) as run:
        keep_image_record(
            run,
            {"training": training_images, **dict(sets)},
            changes_allowed=options.images.changed_images,
            say=processes.say,
        )
        if options.images.data is not None:
            licences = note_licences(run.folder, options.images.data, training_images.names)
            if licences is not None:
                processes.say(licences)
        scored = ", ".join(name for name, _ in sets)
        processes.say(
            f"training on {training_images}, scoring on {scored}; run folder {run.folder}"
        )
        processes.say(tap_cost(ordinary, options))
        _, validation_images = sets[0]
        nets = train(options, run, ordinary, sampler, validation_images, processes)
        print(f"\n{write_report(options, run.folder, nets, sets)}")
        files = ", ".join(f"{name}.safetensors" for name in nets)
        print(f"written to {run.folder}: {files}, tables and figures")


def train(
    options: Options,
    run: Run,
    ordinary: ElasticWrapper,
    sampler: PatchSampler,
    validation_images: PairSet,
    processes: Processes,
) -> dict[str, ElasticWrapper]:
    """Go through the phases from where the run stands; return the networks by their names.

    A signal ends the process, after saving.
    """
    seed_all(options.run.seed)
    srcnn = ElasticWrapper([SRCNN(scale_of(ordinary))], nn.Identity())
    nets = {"ordinary": ordinary, "srcnn": srcnn}

    # Go on behind the newest state that the run has saved; a new run begins with the first phase.
    phases = phases_of(options)
    standing = where_it_stands(run, phases, processes)
    steps_left = sum(phase.steps for phase in phases[standing.phase :])
    log = TrainingLog(
        run,
        total=standing.begun + steps_left,
        processes=processes,
        score_name="psnr",
        score_unit="dB",
        tensorboard=options.run.tensorboard,
    )

    with StopSignal() as stop_signal:
        training = Training(
            options=options,
            run=run,
            sampler=sampler,
            validation_images=validation_images,
            processes=processes,
            log=log,
            stop_signal=stop_signal,
        )
        for phase in phases:
            # The elastic network starts as a copy of the ordinary one, which is trained by now.
            if phase.name == "elastic":
                nets["elastic"] = copy.deepcopy(nets["ordinary"])
            net = nets[phase.name].to(processes.device)
            net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            nets[phase.name] = net

            # The network of a phase that is done already is read from its file.
            file = run.folder / f"{phase.name}.safetensors"
            if phase.number < standing.phase:
                elasticnet.load_into(net, file)
                continue

            # Train this phase, from where it stands to its end.
            step = train_phase(training, phase, net, standing)
            if step < standing.begun + phase.steps:
                processes.say(
                    f"stopped and saved at step {step}; go on with: {resume_command(run)}"
                )
                sys.exit(stop_signal.exit_status)
            elasticnet.save(net, file, {"step": step, "phase": phase.name})
            standing = Standing(phase=phase.number + 1, begun=step, step=step, state=None)
    return nets


def train_phase(training: Training, phase: Phase, net: ElasticWrapper, standing: Standing) -> int:
    """Train one network, to the phase's end or until a signal; return the steps done so far."""
    options = training.options
    log = training.log
    step = standing.step
    end = standing.begun + phase.steps
    stopping = training.stop_signal.requested
    announce(training, phase, step, end)

    # A resumed phase goes on with its optimiser's moments and with what the log showed last.
    training_step = make_training_step(options, phase, net)
    log_state: Mapping[str, Any] = {"scores": {}, "seconds": log.seconds}
    if standing.state is not None:
        training_step.load_state_dict(standing.state["training"])
        log_state = standing.state["log"]

    with log.start(step, log_state):
        while step < end and not stopping:
            # Train on one batch. Patches, taps and learning rate are functions of the step, so that
            # no random generator's state has to be kept.
            learning_rate = learning_rate_at(step - standing.begun, phase, options)
            batch = partial(training.sampler.batch, step)
            terms = training_step(batch=batch, step=step, learning_rate=learning_rate)
            log.add(terms)
            step += 1

            # Decide what is due, and whether a signal asks to stop. Stopping saves as well.
            stopping = training.stop_signal.requested
            validating = step == end or step % options.run.eval_every == 0
            saving = validating or stopping or step % options.run.save_every == 0

            # Score the depths that this phase trains on the validation images.
            scores = None
            if validating:
                scores = psnr_per_depth(training, phase, net)

            # Write the line of the log before the save: a resumed run cuts the log back to the
            # step of the state that it continues from.
            if saving or step % options.run.log_every == 0:
                numbers = {"learning_rate": learning_rate, "phase": phase.number + 1}
                if options.loss.log_psd_share:
                    numbers["psd_share"] = training_step.distillation_share(
                        batch, step - 1, module=net.blocks
                    )
                log.write(step, scores, **numbers)
            if saving:
                save(training, phase, standing.begun, step, training_step)
    return step


# --- what the training is made of


def phases_of(options: Options) -> tuple[Phase, Phase, Phase]:
    """Return the three trainings in their order."""
    optimiser = options.optimiser
    # With --weights the first one has no step: its network is read.
    train_steps = optimiser.train_steps if options.network.weights is None else 0
    ordinary = Phase(
        name="ordinary",
        number=0,
        steps_option="train_steps",
        steps=train_steps,
        learning_rate=optimiser.learning_rate,
    )
    srcnn = Phase(
        name="srcnn",
        number=1,
        steps_option="srcnn_steps",
        steps=optimiser.srcnn_steps,
        learning_rate=optimiser.srcnn_learning_rate,
    )
    elastic = Phase(
        name="elastic",
        number=2,
        steps_option="tune_steps",
        steps=optimiser.tune_steps,
        learning_rate=optimiser.tune_learning_rate,
    )
    return ordinary, srcnn, elastic


def plan_of(options: Options) -> str:
    """Return in a line what the run is about to do."""
    steps = " + ".join(f"{phase.steps:,}" for phase in phases_of(options))
    return (
        f"{options.network.model}: {steps} steps (ordinary, srcnn, elastic) with a batch of "
        f"{options.optimiser.batch_size}, in {options.compute.precision}"
    )


def where_it_stands(run: Run, phases: Sequence[Phase], processes: Processes) -> Standing:
    """Return where the newest state of the run stands, or the beginning."""
    latest = run.load_latest()
    if latest is None:
        return Standing(phase=0, begun=0, step=0, state=None)
    step, state = latest
    processes.say(f"resumed {run.folder} at step {step}, in the phase {state['phase']}")
    names = [phase.name for phase in phases]
    number = names.index(state["phase"])
    return Standing(phase=number, begun=state["begun"], step=step, state=state)


def announce(training: Training, phase: Phase, step: int, end: int) -> None:
    """Say which phase begins or goes on; ValueError if it has done too many steps already."""
    if step > end:
        done = step - (end - phase.steps)
        raise ValueError(
            f"{flag(phase.steps_option)} {phase.steps}: the run in {training.run.folder} has done "
            f"{done} of them already"
        )
    if step < end and not training.stop_signal.requested:
        training.processes.say(f"phase {phase.number + 1} of 3: {phase.name}, {phase.steps} steps")


def make_training_step(options: Options, phase: Phase, net: ElasticWrapper) -> TrainingStep:
    """Return what does one step of a phase, with its loss and its optimiser."""
    if phase.name == "elastic":
        objective = ElasticObjective(
            net,
            task_loss=F.l1_loss,
            psd_weight=0.0,  # as its form is an option, it is one of the distillations
            distillations=[options.loss.self_distillation()],
            tap_weights=normalised(net.taps),
            sampled_taps=sampled_taps(options),
            seed=options.run.seed,
        )
    else:
        # by the deepest tap alone
        objective = ElasticObjective(
            net,
            task_loss=F.l1_loss,
            psd_weight=0.0,
            tap_weights=equal(net.taps),
            sampled_taps=0,
            seed=options.run.seed,
        )
    optimiser = torch.optim.Adam(net.parameters(), lr=phase.learning_rate, fused=True)
    return TrainingStep(objective, net, optimiser, precision=options.compute.precision)


def sampled_taps(options: Options) -> int | None:
    """Return how many taps beside the deepest a step of the elastic training takes (None: all)."""
    if options.loss.sampled_taps is not None:
        return options.loss.sampled_taps
    # EDSR's heads at all taps cost more than its blocks: see tap_macs.
    return 2 if options.network.model == "edsr" else None


def learning_rate_at(step: int, phase: Phase, options: Options) -> float:
    """Return the learning rate of a step, counted from the beginning of its phase."""
    warmup = min(options.optimiser.warmup, phase.steps // 4)
    return phase.learning_rate * cosine(step, phase.steps, warmup)


def psnr_per_depth(training: Training, phase: Phase, net: ElasticWrapper) -> dict[int, float]:
    """Return the PSNR in dB of the depths that the phase trains, on the validation images."""
    depths = net.taps if phase.name == "elastic" else net.taps[-1:]
    results = evaluate(
        net, training.validation_images, depths=depths, device=training.processes.device, ssim=False
    )
    return {depth: score.psnr for depth, score in results.items()}


def save(
    training: Training, phase: Phase, begun: int, step: int, training_step: TrainingStep
) -> None:
    """Write the state to resume from."""
    state = {
        "phase": phase.name,
        "begun": begun,
        "training": training_step.state_dict(),
        "log": training.log.state_dict(),
    }
    training.run.save(step, state)


# --- the networks


class SRCNN(nn.Module):
    """SRCNN 9-1-5 on RGB: three convolutions on the bicubic-enlarged input.

    It maps (b, 3, h, w) to (b, 3, scale h, scale w). Source: "Image Super-Resolution Using Deep
    Convolutional Networks", which works on Y alone. It starts as the enlarged input, which three of
    its channels carry; from PyTorch's own start a short training leaves it far below bicubic, and
    nothing could be measured by it.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        first = nn.Conv2d(3, 64, kernel_size=9, padding=4)
        second = nn.Conv2d(64, 32, kernel_size=1)
        third = nn.Conv2d(32, 3, kernel_size=5, padding=2)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        for conv in (first, second, third):
            _pass_three_channels(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(bicubic_upsample(x, self.scale))


@torch.no_grad()
def _pass_three_channels(conv: nn.Conv2d) -> None:
    """Make a convolution's first three outputs its first three inputs."""
    assert conv.bias is not None
    middle = conv.kernel_size[0] // 2
    conv.weight[:3] = 0
    conv.bias[:3] = 0
    for channel in range(3):
        conv.weight[channel, channel, middle, middle] = 1


def ordinary_network(options: Options) -> ElasticWrapper:
    """Return the network of --weights, or a new one, with a tap at every depth."""
    weights = options.network.weights
    if weights is None:
        return new_network(options)
    # A resumed run has its own copy, so that the file may be gone.
    file = weights
    if options.run.resume is not None:
        own = options.run.resume / "ordinary.safetensors"
        file = own if own.exists() else weights
    net = read_weights(file)
    assert net.origin is not None
    architecture, arguments = net.origin
    model = options.network.model
    if architecture != model:
        raise ValueError(f"--weights {weights}: holds {architecture}, and --model is {model}")
    for size in SIZES[model]:
        given = getattr(options.network, size.option)
        held = arguments[size.argument]
        if given is not None and given != held:
            raise ValueError(
                f"{flag(size.option)} {given}: --weights {weights} has {held}; leave the option out"
            )
    return net


def new_network(options: Options) -> ElasticWrapper:
    """Return a new network of the sizes that are asked for."""
    model = options.network.model
    arguments: dict[str, int] = {}
    for size in SIZES[model]:
        given = getattr(options.network, size.option)
        arguments[size.argument] = size.default if given is None else given
    if model == "rcan":
        # four channels inside the attention, as the published 64 / 16
        arguments["reduction"] = max(1, arguments["channels"] // 4)
    seed_all(options.run.seed)
    return BUILDERS[model](**arguments)


def read_weights(path: Path) -> ElasticWrapper:
    """Return the EDSR or RCAN of a file, with a tap everywhere.

    The file is an official checkpoint or one of `elasticnet.save`.
    """
    state = read_official(path)
    ours = any(name.startswith("blocks.") for name in state)
    if not ours:
        try:
            return load_official(state)
        except ValueError as error:
            raise ValueError(f"--weights {path}: {error}") from error
    saved = elasticnet.load(path)
    assert saved.origin is not None
    architecture = saved.origin.architecture
    if architecture not in BUILDERS:
        raise ValueError(f"--weights {path}: holds {architecture}, expected edsr or rcan")
    return saved.with_taps(None).train()


def tap_cost(net: ElasticWrapper, options: Options) -> str:
    """Return a line on what a prediction at every tap costs, and how many taps a step trains."""
    side = options.images.patch_size
    example = torch.zeros(1, 3, side, side, device=options.compute.device)
    ratio = tap_macs(net, example).ratio
    num_taps = len(net.taps)
    sampled = sampled_taps(options)
    trained = num_taps if sampled is None else min(num_taps, 1 + sampled)
    return (
        f"heads at all {num_taps} taps cost {ratio:.2f} times the multiply-adds of stem and "
        f"blocks; a step of the elastic training takes {trained}"
    )


# --- the images and the report


def load_images(
    options: Options, scale: int, processes: Processes
) -> tuple[PairSet, list[tuple[str, PairSet]]]:
    """Return the training images, and the sets to score by their names."""
    images = options.images
    if images.data is None:
        held_out = "" if images.valid else f"; held out: {', '.join(HELD_OUT_PHOTOS)}"
        processes.say(f"no --data: training on the photographs that scikit-image carries{held_out}")
    training, validation = training_pairs(
        images.data,
        images.valid[0] if images.valid else None,
        scale,
        num_valid=images.num_valid,
        held_out=images.held_out,
        published_split=images.published_split,
        licences=images.licences,
        min_size=images.patch_size,
        track=images.track,
        lr_root=images.data_lr,
        cache_dir=images.cache_dir,
        cache=images.cache,
        say=processes.say,
    )
    processes.say(lr_line(training, validation))
    if images.valid:
        sets = load_sets(
            images.valid,
            [scale],
            track=images.track,
            cache_dir=images.cache_dir,
            cache=images.cache,
        )
        for name, pairs in sets:
            if pairs.skipped:
                processes.say(
                    f"{name}: images left out: {len(pairs.skipped)}{listing(pairs.skipped)}"
                )
        return training, sets
    return training, [("validation", scorable(validation))]


def default_folder(options: Options, scale: int) -> Path:
    """Return the run folder where --out is not given."""
    now = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs", f"retrofit-{options.network.model}-x{scale}-{now}")


def write_report(
    options: Options, folder: Path, nets: dict[str, ElasticWrapper], sets: Sequence[Any]
) -> str:
    """Score every depth of the networks; write tables and figures, and return the tables."""
    named = [(CUT, nets["ordinary"]), (SRCNN_LABEL, nets["srcnn"]), (ELASTIC, nets["elastic"])]
    result = benchmark(named, sets, costs=False, device=options.compute.device, progress=True)

    origin = nets["ordinary"].origin or ("", {})
    _, arguments = origin
    sizes = ", ".join(f"{name}={value}" for name, value in arguments.items() if name != "fold")
    protocol = result.settings["protocol"]
    text = f"{options.network.model}({sizes}); PSNR-Y in dB, protocol {protocol}\n"
    for name, pairs in sets:
        rows = [row for row in result.rows if row.data == name]
        text += report_set(options, folder, name, pairs, rows, nets["elastic"].taps)
    if result.skipped:
        named = [(f"{each.data} {each.image}", each.reason) for each in result.skipped]
        text += f"\nimages left out: {len(named)}{listing(named)}\n"

    write_atomic(folder / "table.md", text)
    values = {
        "options": as_json(options),
        "network": origin,
        "settings": result.settings,
        "rows": [row._asdict() for row in result.rows],
    }
    write_json(folder / "table.json", values)
    return text


def report_set(
    options: Options,
    folder: Path,
    name: str,
    pairs: PairSet,
    rows: Sequence[Row],
    depths: Sequence[int],
) -> str:
    """Draw the figure of one set of images; return its table."""
    found = {(row.network, row.depth): row for row in rows}
    cut = {depth: found[CUT, depth].psnr for depth in depths}
    elastic = {depth: found[ELASTIC, depth].psnr for depth in depths}
    bicubic = found["bicubic", None].psnr
    srcnn = found[SRCNN_LABEL, 1].psnr

    if options.run.figures:
        elastic_curve(
            folder / f"{name}_curve.png",
            {ELASTIC: elastic, CUT: cut},
            {"bicubic": bicubic, SRCNN_LABEL: srcnn},
            f"{options.network.model.upper()}, {name} x{pairs.scale}",
            "PSNR-Y (dB)",
        )
    shown = [["depth", "parameters", CUT, ELASTIC, f"over {SRCNN_LABEL}"]]
    for depth in depths:
        parameters = found[ELASTIC, depth].parameters
        over_srcnn = elastic[depth] - srcnn
        shown.append(
            [
                f"{depth}",
                f"{parameters:,}",
                f"{cut[depth]:.2f}",
                f"{elastic[depth]:.2f}",
                f"{over_srcnn:+.2f}",
            ]
        )
    baselines = f"bicubic {bicubic:.2f}, {SRCNN_LABEL} {srcnn:.2f}"
    return f"\n{name} x{pairs.scale} ({len(pairs)} images): {baselines}\n\n{aligned(table(shown))}"


if __name__ == "__main__":
    keep_freed_memory()
    # says where it was when the system ended it, say for a disk that is gone from under its cache
    faulthandler.enable()
    run_program(main, parse)
