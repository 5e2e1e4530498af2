"""A small language model of every depth: trained once, shipped as ordinary transformers models.

    python recipes/elastic_gpt.py                     about five minutes on two CPU cores
    python recipes/elastic_gpt.py --steps 50          under a minute, to see how it goes
    python recipes/elastic_gpt.py --resume runs/NAME  go on exactly where a run stopped

The text comes with Python: the sources of its standard library, byte by byte, some of the files for
validation. The network is a Llama of transformers. Three ways to a network of every depth are
compared by their bits per byte on the files that none was trained on: the elastic network, a
network of each depth trained alone, and the deepest of these cut short. All see the same batches
and take the same number of steps. Then the elastic network becomes an ordinary model of each depth,
which generates text; the deepest is also given shallower ones as drafts (speculative decoding). The
run folder receives options.json, log.jsonl, the networks (*.safetensors), a folder depth_N for
every depth, for `from_pretrained`, the table (table.md, table.json), the figure (curve.png) and the
text that each depth wrote (samples.md).
"""

from __future__ import annotations

import elasticnet.before_torch  # sets what must be set before torch is imported

# isort: split
import hashlib
import json
import math
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

import elasticnet
from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet._files import write_atomic, write_json
from elasticnet._tables import table
from elasticnet.loss_weights import normalised
from elasticnet.memory import keep_freed_memory
from elasticnet.retrofit import to_model
from elasticnet.retrofit.transformers import split
from elasticnet.training.learning_rate import cosine
from elasticnet.training.log import TrainingLog, show_messages
from elasticnet.training.options import (
    AtLeast,
    ComputeOptions,
    LossOptions,
    OptimiserOptions,
    OptionGroup,
    RunOptions,
    as_json,
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
from elasticnet.training.state import seed_all
from elasticnet.training.step import TrainingStep
from elasticnet.training.stop_signal import StopSignal

NUM_BYTES = 256  # the vocabulary: a token is a byte
EVALUATION_BATCH = 32  # samples
FILES_PER_VALIDATION_FILE = 10  # of so many files, one is for validation
# Folders that are left out: other people's programs; tests, which hold half of the bytes and which
# some systems do not install; and tables and texts that are no programs.
SKIPPED_FOLDERS = (
    "dist-packages",
    "encodings",
    "idle_test",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
)

# the labels of the networks in table and figure
ELASTIC = "elastic"
ALONE = "each depth alone"
CUT = "deepest alone, cut short"

# what a resumed run cannot change
FIXED = ("taps", "width", "num_heads", "context", "text", "validation_bytes", "alone")

hf: Any = transformers  # its classes are annotated too narrowly


# --- options: in groups for --help and for the code below; options.json holds them without groups


@dataclass(frozen=True, kw_only=True)
class Network(OptionGroup):
    """The language model, a Llama whose tokens are bytes."""

    taps: list[int] = field(default_factory=lambda: [1, 2, 4])
    """The depths that carry a prediction, rising. The last one is the number of layers."""
    width: Annotated[int, AtLeast(1)] = 128
    """Numbers a token, an even multiple of --num-heads."""
    num_heads: Annotated[int, AtLeast(1)] = 4
    """Attention heads of every layer."""
    context: Annotated[int, AtLeast(2)] = 128
    """Bytes that a training sample holds, and that a prediction is made from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.taps or self.taps[0] < 1 or sorted(set(self.taps)) != self.taps:
            raise ValueError(f"--taps {self.taps}: expected depths from 1 up, each deeper")
        if self.width % (2 * self.num_heads) != 0:
            raise ValueError(
                f"--width {self.width}: expected an even multiple of --num-heads {self.num_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class TextOptions(OptionGroup):
    """The text."""

    text: Path | None = None
    """A folder whose .py files are read, also those in its folders; give text of another kind
    that suffix. Default: Python's own sources.
    """
    validation_bytes: Annotated[int, AtLeast(1)] = 65_536
    """The most bytes to measure on, in samples from all over the files for validation."""


@dataclass(frozen=True, kw_only=True)
class Optimiser(OptimiserOptions):
    """AdamW and its learning rate, a cosine in each training."""

    steps: Annotated[int, AtLeast(1)] = 2_500
    """Steps of every training."""
    alone: bool = True
    """Train each depth alone, too, to compare with."""


@dataclass(frozen=True, kw_only=True)
class Generation(OptionGroup):
    """What every depth writes at the end, and how its speed is measured."""

    prompts: Annotated[int, AtLeast(1)] = 3
    """How many beginnings are taken from the validation text."""
    prompt_bytes: Annotated[int, AtLeast(1)] = 64
    """Bytes of each beginning."""
    new_bytes: Annotated[int, AtLeast(1)] = 128
    """Bytes that are written behind it."""
    draft_bytes: Annotated[int, AtLeast(1)] = 6
    """Bytes that a shallow model writes in a row before the deepest one checks them."""
    repeats: Annotated[int, AtLeast(1)] = 3
    """How often each time is measured; the median counts."""


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """All options."""

    network: Network = Network()
    run: RunOptions = RunOptions(eval_every=500, save_every=250, log_every=50, keep=2)
    text: TextOptions = TextOptions()
    loss: LossOptions = LossOptions(psd_weight=0.0)
    optimiser: Optimiser = Optimiser(learning_rate=1.5e-3, warmup=50, batch_size=4)
    generation: Generation = Generation()
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
        name: Also the name of the file that its network is saved in.
        number: Which training it is, from 0.
        taps: The depths that carry a prediction in its network, the last one being its layers.
    """

    name: str
    number: int
    taps: list[int]


class Training(NamedTuple):
    """What all phases share.

    Attributes:
        options: The options.
        run: The run folder.
        text: The text to train and to measure on.
        processes: This process alone.
        log: The log of all phases together.
        stop_signal: Asks the training to stop.
    """

    options: Options
    run: Run
    text: Text
    processes: Processes
    log: TrainingLog
    stop_signal: StopSignal


def main(options: Options) -> None:
    """Train the networks, measure them, and write what came out into the run folder."""
    show_messages()
    transformers.logging.set_verbosity_error()  # it warns of its own calls when it drafts
    transformers.logging.disable_progress_bar()  # of writing a file
    processes = single_process(options.compute.device)
    # What auto means is decided here, once: it is stored, and a resumed run keeps it.
    precision = resolve_precision(options.compute.precision, processes)
    options = with_values(options, {"precision": precision})
    text = read_text(options)
    folder = options.run.out or Path("runs", time.strftime("elastic-gpt-%Y%m%d-%H%M%S"))
    with open_run(options, options.run, folder, processes) as run:
        keep_text_record(run, text)
        processes.say(plan_of(options))
        processes.say(f"training on {text}; run folder {run.folder}")
        nets = train(options, run, text, processes)
        processes.say("measuring bits per byte and the speed of generation")
        print(f"\n{write_report(options, run.folder, nets, text)}")
        print(f"written to {run.folder}: networks, a folder for each depth, table, figure, samples")


def train(
    options: Options, run: Run, text: Text, processes: Processes
) -> dict[str, ElasticWrapper]:
    """Go through the phases from where the run stands; return the networks by their names.

    A signal ends the process, after saving.
    """
    # Go on behind the newest state that the run has saved; a new run begins with the first phase.
    phases = phases_of(options)
    names = [phase.name for phase in phases]
    standing = where_it_stands(run, names, options.optimiser.steps, processes.say)
    log = TrainingLog(
        run,
        total=len(phases) * options.optimiser.steps,
        processes=processes,
        score_name="bits_per_byte",
        tensorboard=options.run.tensorboard,
    )
    nets: dict[str, ElasticWrapper] = {}
    with StopSignal() as stop_signal:
        training = Training(
            options=options,
            run=run,
            text=text,
            processes=processes,
            log=log,
            stop_signal=stop_signal,
        )
        for phase in phases:
            net = new_network(options, phase.taps).to(processes.device)
            nets[phase.name] = net

            # The network of a phase that is done already is read from its file.
            file = run.folder / f"{phase.name}.safetensors"
            if phase.number < standing.phase:
                elasticnet.load_into(net, file)
                continue

            # Train this phase, from where it stands to its end.
            step = train_phase(training, phase, net, standing)
            if step < options.optimiser.steps:
                done = phase.number * options.optimiser.steps + step
                processes.say(
                    f"stopped and saved at step {done}; go on with: {resume_command(run)}"
                )
                sys.exit(stop_signal.exit_status)
            elasticnet.save(net, file, {"phase": phase.name, "options": as_json(options)})
            standing = Standing(phase=phase.number + 1, step=0, state=None)
    return nets


def train_phase(training: Training, phase: Phase, net: ElasticWrapper, standing: Standing) -> int:
    """Train one network, to the phase's end or until a signal; return its steps done so far."""
    options = training.options
    log = training.log
    steps_before = phase.number * options.optimiser.steps  # of the run, before this phase
    end = options.optimiser.steps
    step = standing.step
    stopping = training.stop_signal.requested
    training.processes.say(f"training {phase.number + 1}: {phase.name}, {end - step} steps")

    # A resumed phase goes on with its optimiser's moments and with what the log showed last.
    training_step = make_training_step(options, net)
    log_state: Mapping[str, Any] = {"scores": {}, "seconds": log.seconds}
    if standing.state is not None:
        training_step.load_state_dict(standing.state["training"])
        log_state = standing.state["log"]

    net.train()
    with log.start(steps_before + step, log_state):
        while step < end and not stopping:
            # Train on one batch. Samples, taps and learning rate are functions of the step, so that
            # no random generator's state has to be kept.
            learning_rate = learning_rate_at(step, options)
            batch = partial(batch_of, training, step)
            terms = training_step(batch=batch, step=step, learning_rate=learning_rate)
            log.add(terms)
            step += 1

            # Decide what is due, and whether a signal asks to stop. Stopping saves as well.
            stopping = training.stop_signal.requested
            validating = step == end or step % options.run.eval_every == 0
            saving = validating or stopping or step % options.run.save_every == 0

            scores = None
            if validating:
                scores = bits_per_byte(net, validation_samples(options, training.text))

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
                save(training, phase, steps_before + step, training_step)
    return step


# --- what the trainings are made of


def phases_of(options: Options) -> list[Phase]:
    """Return the trainings in their order: the elastic network, then each depth alone."""
    phases = [Phase(name="elastic", number=0, taps=options.network.taps)]
    if options.optimiser.alone:
        for depth in options.network.taps:
            phases.append(Phase(name=f"alone_{depth}", number=len(phases), taps=[depth]))
    return phases


def plan_of(options: Options) -> str:
    """Return in a line what the run is about to do."""
    depths = ", ".join(map(str, options.network.taps))
    then_alone = ", then each depth alone" if options.optimiser.alone else ""
    return (
        f"an elastic Llama with predictions at depths {depths}{then_alone}: "
        f"{options.optimiser.steps:,} steps each with a batch of {options.optimiser.batch_size}, "
        f"in {options.compute.precision}"
    )


def save(training: Training, phase: Phase, total: int, training_step: TrainingStep) -> None:
    """Write the state to resume from; `total` counts the steps of the run."""
    state = {
        "phase": phase.name,
        "steps": training.options.optimiser.steps,
        "training": training_step.state_dict(),
        "log": training.log.state_dict(),
    }
    training.run.save(total, state)


def new_network(options: Options, taps: Sequence[int]) -> ElasticWrapper:
    """Return a new Llama with as many layers as the last tap, split, with predictions at taps."""
    network = options.network
    config = hf.LlamaConfig(
        vocab_size=NUM_BYTES,
        hidden_size=network.width,
        intermediate_size=3 * network.width,
        num_hidden_layers=taps[-1],
        num_attention_heads=network.num_heads,
        num_key_value_heads=network.num_heads,
        max_position_embeddings=8 * network.context,
        # the spread of the first weights; 0.02, which is usual, suits layers twenty times as wide
        initializer_range=network.width**-0.5,
        # every byte is text: none of them begins, ends or fills a line
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    seed_all(options.run.seed)
    model = hf.LlamaForCausalLM(config)
    example = torch.arange(16)[None]  # (1, 16) ids of tokens
    return split(model, example).wrap(taps)


def make_training_step(options: Options, net: ElasticWrapper) -> TrainingStep:
    """Return what does one step of a training, with its loss and its optimiser."""
    loss = options.loss
    if len(net.taps) == 1:  # nothing to distil, nothing to choose from
        loss = LossOptions(psd_weight=0.0, sampled_taps=None)
    objective = ElasticObjective(
        net,
        task_loss=next_byte_loss,
        psd_weight=0.0,  # as its form is an option, it is one of the distillations
        distillations=[loss.self_distillation()],
        tap_weights=normalised(net.taps),
        sampled_taps=loss.sampled_taps,
        seed=options.run.seed,
    )
    optimiser = torch.optim.AdamW(
        net.parameters(),
        lr=options.optimiser.learning_rate,
        betas=(0.9, 0.99),  # a longer memory than 0.95, as the batches are small
        weight_decay=0.1,
        fused=True,
    )
    return TrainingStep(
        objective, net, optimiser, precision=options.compute.precision, clip_norm=1.0
    )


def learning_rate_at(step: int, options: Options) -> float:
    """Return the learning rate of a step, counted from the beginning of its training."""
    steps = options.optimiser.steps
    warmup = min(options.optimiser.warmup, steps // 4)
    return options.optimiser.learning_rate * cosine(step, steps, warmup)


def next_byte_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next bytes, in nats.

    `logits` are (b, n, 256), and `target` holds the bytes (b, n) that follow.
    """
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


# --- the text


class Text(NamedTuple):
    """The bytes of files.

    Attributes:
        training: The bytes to train on, (n,).
        validation: The bytes to measure on, (m,), of other files.
        num_files: How many files both come from.
        checksum: The SHA-256 of both.
    """

    training: Tensor
    validation: Tensor
    num_files: int
    checksum: str

    def __str__(self) -> str:
        return (
            f"{len(self.training):,} bytes of Python, measuring on samples from "
            f"{len(self.validation):,} of other files"
        )


def read_text(options: Options) -> Text:
    """Return the text; which files are for validation depends on their names alone."""
    folder = options.text.text or Path(sysconfig.get_paths()["stdlib"])
    check_folder(folder, "text")
    training = bytearray()
    validation = bytearray()
    files = files_by_checksum(folder)
    for checksum, file in files:
        if checksum % FILES_PER_VALIDATION_FILE == 0:
            validation += file.read_bytes()
        else:
            training += file.read_bytes()

    shortest = options.network.context + 1
    if len(training) < shortest or len(validation) < shortest:
        raise ValueError(
            f"--text {folder}: its .py files give {len(training)} bytes to train on and "
            f"{len(validation)} to measure on; expected {shortest} at least of both. About one "
            f"file in {FILES_PER_VALIDATION_FILE} is measured on, chosen by its name"
        )
    return Text(
        training=torch.frombuffer(training, dtype=torch.uint8),
        validation=torch.frombuffer(validation, dtype=torch.uint8),
        num_files=len(files),
        checksum=hashlib.sha256(training + validation).hexdigest(),
    )


def files_by_checksum(folder: Path) -> list[tuple[int, Path]]:
    """Return the .py files below a folder, each behind the checksum of its name.

    They are in the order of the checksums: a shuffled one, and the same on every machine.
    """
    files: list[tuple[int, Path]] = []
    for file in folder.rglob("*.py"):
        name = file.relative_to(folder)
        if not any(part in SKIPPED_FOLDERS for part in name.parts):
            checksum = hashlib.sha256(name.as_posix().encode()).hexdigest()
            files.append((int(checksum, 16), file))
    return sorted(files)


def keep_text_record(run: Run, text: Text) -> None:
    """Note the text of a new run; refuse to go on with another one."""
    file = run.folder / "text.json"
    record = {
        "training_bytes": len(text.training),
        "validation_bytes": len(text.validation),
        "files": text.num_files,
        "sha256": text.checksum,
    }
    if not file.exists():
        write_json(file, record)
        return
    of_run = json.loads(file.read_text(encoding="utf-8"))
    if of_run["sha256"] != text.checksum:
        raise ValueError(
            f"the text is not the one that {run.folder} was started with: resume it with the same "
            "version of Python, or give that text by --text"
        )


def batch_of(training: Training, step: int, part: int, num_parts: int) -> tuple[Tensor, Tensor]:
    """Return a part of a step's batch: bytes (b, n), and the bytes (b, n) that follow each."""
    options = training.options
    context = options.network.context
    generator = torch.Generator().manual_seed(options.run.seed * 2**32 + step)
    last_start = len(training.text.training) - context
    starts = torch.randint(last_start, (options.optimiser.batch_size,), generator=generator)
    own_starts = starts.chunk(num_parts)[part]
    samples = torch.stack([training.text.training[at : at + context + 1] for at in own_starts])
    samples = samples.to(training.processes.device, torch.long)  # (b, n + 1)
    return samples[:, :-1], samples[:, 1:]


def validation_samples(options: Options, text: Text) -> Tensor:
    """Return the samples (num, n + 1) to measure on, spread evenly over the validation text."""
    context = options.network.context
    num_bytes = min(options.text.validation_bytes, len(text.validation) - 1)
    num_samples = max(1, num_bytes // context)
    gap = (len(text.validation) - 1) // num_samples  # from one beginning to the next
    starts = range(0, num_samples * gap, gap)
    return torch.stack([text.validation[at : at + context + 1] for at in starts])


@torch.no_grad()
def bits_per_byte(net: ElasticWrapper, samples: Tensor) -> dict[int, float]:
    """Return by depth the bits that a byte of the samples (num, n + 1) costs on average.

    Each byte but a sample's first is predicted from those before it in its sample.
    """
    device = next(net.parameters()).device
    nats = dict.fromkeys(net.taps, 0.0)  # summed over the samples
    was_training = net.training
    net.eval()
    for batch in samples.split(EVALUATION_BATCH):
        x = batch.to(device, torch.long)  # (b, n + 1)
        outputs = net.forward_taps(x[:, :-1])
        for depth, logits in zip(outputs.depths, outputs.predictions, strict=True):
            nats[depth] += next_byte_loss(logits, x[:, 1:]).item() * len(x)
    net.train(was_training)
    return {depth: total / len(samples) / math.log(2) for depth, total in nats.items()}


# --- generation


class Way(NamedTuple):
    """A way to write text.

    Attributes:
        kind: "alone", "assistant" or "early exit". The model of a depth writes alone; or the
            deepest model writes, and what a shallower depth drafts is checked by it: as a model of
            its own, or as the deepest model's own first layers.
        depth: The depth that writes alone, or that drafts.
    """

    kind: str
    depth: int


class Drafted(NamedTuple):
    """The deepest model with drafts, against the deepest alone.

    Attributes:
        speedup: How many times faster.
        same_text: Whether it wrote the same bytes.
    """

    speedup: float
    same_text: bool


class Generated(NamedTuple):
    """What was measured of generation.

    Attributes:
        milliseconds: Of a byte, by depth.
        written: What each depth wrote behind the first prompt, by depth.
        by_assistant: With the model of a depth as assistant, by that depth.
        by_early_exit: With the deepest model's own first layers, by their number.
    """

    milliseconds: dict[int, float]
    written: dict[int, bytes]
    by_assistant: dict[int, Drafted]
    by_early_exit: dict[int, Drafted]


def measure_generation(options: Options, models: Mapping[int, Any], text: Tensor) -> Generated:
    """Let the model of every depth write, and the deepest with each shallower one as a draft."""
    depths = list(models)
    deepest = depths[-1]
    prompts = prompts_of(options, text, models[deepest].device)
    for model in models.values():  # the model that drafts says how many bytes it drafts
        model.generation_config.num_assistant_tokens = options.generation.draft_bytes
        model.generation_config.num_assistant_tokens_schedule = "constant"

    written: dict[Way, list[Tensor]] = {}
    seconds: dict[Way, list[float]] = {way: [] for way in ways_of(depths)}
    with timed_fairly(models[deepest].device) as clock:
        # The first round loads and allocates; it is not counted.
        for number in range(1 + options.generation.repeats):
            # All ways take turns, so that whatever else the machine does slows them alike. Every
            # other round goes backwards, so that none always follows the same one.
            order = list(seconds) if number % 2 == 0 else list(reversed(seconds))
            for way in order:
                begun = clock()
                written[way] = [write(options, models, way, ids) for ids in prompts]
                if number > 0:
                    seconds[way].append(clock() - begun)

    num_bytes = len(prompts) * options.generation.new_bytes
    milliseconds: dict[int, float] = {}
    first_texts: dict[int, bytes] = {}
    for depth in depths:
        alone = Way("alone", depth)
        milliseconds[depth] = 1000 * statistics.median(seconds[alone]) / num_bytes
        first_texts[depth] = bytes(written[alone][0].tolist())
    return Generated(
        milliseconds=milliseconds,
        written=first_texts,
        by_assistant=gains_of("assistant", depths, written, seconds),
        by_early_exit=gains_of("early exit", depths, written, seconds),
    )


def gains_of(
    kind: str,
    depths: Sequence[int],
    written: Mapping[Way, Sequence[Tensor]],
    seconds: Mapping[Way, Sequence[float]],
) -> dict[int, Drafted]:
    """Return what the drafts of each shallower depth gain, by that depth."""
    *shallower, deepest = depths
    alone = Way("alone", deepest)
    gains: dict[int, Drafted] = {}
    for depth in shallower:
        way = Way(kind, depth)
        rounds = zip(seconds[alone], seconds[way], strict=True)
        gains[depth] = Drafted(
            speedup=statistics.median(without / with_drafts for without, with_drafts in rounds),
            same_text=all(map(torch.equal, written[alone], written[way])),
        )
    return gains


def ways_of(depths: Sequence[int]) -> list[Way]:
    """Return all ways to write that are compared; the last depth is the deepest."""
    ways = [Way("alone", depth) for depth in depths]
    for depth in depths[:-1]:
        ways.append(Way("assistant", depth))
        ways.append(Way("early exit", depth))
    return ways


@contextmanager
def timed_fairly(device: torch.device) -> Generator[Callable[[], float], None, None]:
    """Yield a clock, in seconds, that other programs on the machine disturb little.

    On a CPU it counts the processor's time, and a single thread computes: several are no faster
    with tensors of one byte's size. On a GPU it counts the time that passes.
    """
    if device.type != "cpu":
        yield time.perf_counter
        return
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield time.process_time
    finally:
        torch.set_num_threads(num_threads)


def prompts_of(options: Options, text: Tensor, device: torch.device) -> list[Tensor]:
    """Return beginnings (1, n) from the validation text, spread evenly over it."""
    generation = options.generation
    length = min(generation.prompt_bytes, len(text))
    gap = max(1, (len(text) - length) // generation.prompts)
    prompts: list[Tensor] = []
    for number in range(generation.prompts):
        start = min(number * gap, len(text) - length)
        prompts.append(text[start : start + length].to(device, torch.long)[None])
    return prompts


def write(options: Options, models: Mapping[int, Any], way: Way, ids: Tensor) -> Tensor:
    """Return the prompt (1, n) and the most probable bytes behind it, as one tensor (m,)."""
    drafts: dict[str, Any] = {}
    writer = models[max(models)]
    if way.kind == "alone":
        writer = models[way.depth]
    if way.kind == "assistant":
        drafts["assistant_model"] = models[way.depth]
    if way.kind == "early exit":
        drafts["assistant_early_exit"] = way.depth
    written = writer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=options.generation.new_bytes,
        do_sample=False,
        **drafts,
    )  # (1, m)
    return written[0].cpu()  # which waits for a GPU


# --- the report


def write_report(
    options: Options, folder: Path, nets: Mapping[str, ElasticWrapper], text: Text
) -> str:
    """Measure all networks; write models, table, figure and samples; return table.md's text."""
    from elasticnet.sr.benchmark.figures import elastic_curve

    taps = options.network.taps
    bits = compare(options, nets, text)
    models: dict[int, Any] = {}
    for depth in taps:
        models[depth] = to_model(nets["elastic"], depth)
        models[depth].save_pretrained(folder / f"depth_{depth}")
    generated = measure_generation(options, models, text.validation)
    parameters = {depth: model.num_parameters() for depth, model in models.items()}

    report = report_text(options, bits, parameters, generated)
    write_atomic(folder / "table.md", report)
    values = {
        "bits_per_byte": bits,
        "parameters": parameters,
        "milliseconds_per_byte": generated.milliseconds,
        "by_assistant": {depth: each._asdict() for depth, each in generated.by_assistant.items()},
        "by_early_exit": {depth: each._asdict() for depth, each in generated.by_early_exit.items()},
        "options": as_json(options),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
    }
    write_json(folder / "table.json", values)
    write_atomic(folder / "samples.md", samples_text(generated))
    title = f"Llama on bytes of Python, {options.optimiser.steps} steps"
    if options.run.figures:
        elastic_curve(
            folder / "curve.png", bits, title=title, ylabel="bits per byte (less is better)"
        )
    return report


def compare(
    options: Options, nets: Mapping[str, ElasticWrapper], text: Text
) -> dict[str, dict[int, float]]:
    """Return the bits per byte of every way to a network of every depth, by way and depth."""
    taps = options.network.taps
    samples = validation_samples(options, text)
    bits = {ELASTIC: bits_per_byte(nets["elastic"], samples)}
    if options.optimiser.alone:
        bits[ALONE] = {}
        for depth in taps:
            bits[ALONE].update(bits_per_byte(nets[f"alone_{depth}"], samples))
        deepest = nets[f"alone_{taps[-1]}"]
        bits[CUT] = bits_per_byte(deepest.with_taps(taps), samples)
    return bits


def report_text(
    options: Options,
    bits: Mapping[str, Mapping[int, float]],
    parameters: Mapping[int, int],
    generated: Generated,
) -> str:
    """Return the text of table.md."""
    quality = [["depth", "parameters", *bits]]
    speed = [["depth", "ms a byte", "speed-up as assistant", "speed-up by early exit"]]
    for depth in options.network.taps:
        cells = [f"{by_depth[depth]:.3f}" for by_depth in bits.values()]
        quality.append([str(depth), f"{parameters[depth]:,}", *cells])
        speed.append(
            [
                str(depth),
                f"{generated.milliseconds[depth]:.1f}",
                speedup_cell(generated.by_assistant.get(depth)),
                speedup_cell(generated.by_early_exit.get(depth)),
            ]
        )
    return (
        f"Bits per byte on {options.text.validation_bytes:,} bytes of files that were not trained "
        f"on; {options.optimiser.steps} steps each, seed {options.run.seed}\n\n{table(quality)}\n"
        "Generation with a cache, the median of "
        f"{options.generation.repeats}; speed-up of depth {options.network.taps[-1]} when a "
        f"shallower depth drafts {options.generation.draft_bytes} bytes at a time. On a CPU, the "
        "times are the processor's, on one thread\n\n"
        f"{table(speed)}"
    )


def speedup_cell(drafted: Drafted | None) -> str:
    """Return one cell of a table; the deepest depth drafts for nobody."""
    if drafted is None:
        return ""
    if drafted.same_text:
        return f"{drafted.speedup:.2f}"
    return f"{drafted.speedup:.2f} (another text)"


def samples_text(generated: Generated) -> str:
    """Return what every depth wrote behind the first prompt, as Markdown."""
    parts: list[str] = []
    for depth, written in generated.written.items():
        lines = written.decode("utf-8", errors="replace").splitlines()
        quoted = "\n".join(f"    {line}".rstrip() for line in lines)
        parts.append(f"Depth {depth}:\n\n{quoted}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    keep_freed_memory()
    run_program(main, parse)
