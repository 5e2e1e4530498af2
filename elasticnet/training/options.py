"""Options of a training: groups of them, their ranges, the command line, and the run folder.

A recipe's options are a dataclass whose fields are groups, each a dataclass too:

    @dataclass(frozen=True, kw_only=True)
    class Options(OptionGroup):
        run: RunOptions = RunOptions()
        optimiser: OptimiserOptions = OptimiserOptions(learning_rate=1e-3)

On the command line and in options.json the groups disappear: `--learning-rate`, `learning_rate`.
So no two groups of one recipe may have an option of the same name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_type_hints

import torch

from elasticnet._files import write_json
from elasticnet.distillation import Distillation
from elasticnet.distillation_losses import (
    Comparison,
    cosine_distance,
    squared_unit_distance,
    unit_distance,
)
from elasticnet.loss_weights import Weight
from elasticnet.training.log import tensorboard_installed
from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run, differing_options, refuse_foreign_folder

CUDA = torch.cuda.is_available()
# how JSON files of ours write the numbers that JSON does not have
JSON_NUMBERS = ("NaN", "Infinity", "-Infinity")

_STARTED = "started.json"  # in a run folder: where the run was started
_OUTPUTS = ("out", "resume")  # options with paths that are no inputs


# --- ranges: metadata of an annotation, as in `steps: Annotated[int, AtLeast(1)] = 1000`


@dataclass(frozen=True)
class AtLeast:
    """Finite numbers from `minimum` up.

    Attributes:
        minimum: The smallest number that is allowed.
    """

    minimum: float

    def accepts(self, value: float) -> bool:
        """Return whether `value` lies in the range.

        Args:
            value: The option's value.
        """
        return self.minimum <= value < math.inf

    def __str__(self) -> str:
        return f"at least {self.minimum}"


@dataclass(frozen=True)
class Above:
    """Numbers above `limit`.

    Attributes:
        limit: The largest number that is not allowed.
        finite: Whether infinity is refused.
    """

    limit: float
    finite: bool = True

    def accepts(self, value: float) -> bool:
        """Return whether `value` lies in the range.

        Args:
            value: The option's value.
        """
        if self.finite and value == math.inf:
            return False
        return value > self.limit

    def __str__(self) -> str:
        return f"a number above {self.limit}"


@dataclass(frozen=True)
class FromTo:
    """Numbers from `low` to `high`.

    Attributes:
        low: The smallest number that is allowed.
        high: The largest number that is allowed.
        below_high: Whether `high` itself is refused.
    """

    low: float
    high: float
    below_high: bool = False

    def accepts(self, value: float) -> bool:
        """Return whether `value` lies in the range.

        Args:
            value: The option's value.
        """
        if self.below_high and value == self.high:
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        below = "below " if self.below_high else ""
        return f"a number from {self.low} to {below}{self.high}"


def check_ranges(group: OptionGroup) -> None:
    """Check the options of one group, but not of groups within it, against their ranges.

    What is no number passes: an option that is off is None, and some have words beside numbers.

    Args:
        group: The options.

    Raises:
        ValueError: An option is out of its range; the message names it as the command line does.
    """
    for name, hint in get_type_hints(type(group), include_extras=True).items():
        value = getattr(group, name)
        if not isinstance(value, (int, float)):
            continue
        for allowed in getattr(hint, "__metadata__", ()):
            if isinstance(allowed, (AtLeast, Above, FromTo)) and not allowed.accepts(value):
                raise ValueError(f"{flag(name)} {value}: expected {allowed}")


# --- groups of options


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Base of a group of options, and of a recipe's options, which are groups.

    It checks the ranges that the annotations give.
    """

    def __post_init__(self) -> None:
        check_ranges(self)

    @classmethod
    def with_new_names(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a stored run by the names that they have today.

        A recipe that renamed an option overrides this.

        Args:
            stored: The options of a run, by the names that they had when it started.
        """
        return stored


# Metadata of a field, as in `resume: Path | None = field(default=None, metadata=NOT_STORED)`.
# The option says how a process is started: it does not belong to the run.
NOT_STORED = {"stored": False}


# Metadata of an option that is a list of strings, or None: they are paths of files or folders to
# read.
PATHS = {"paths": True}


def old_runs(value: Any) -> dict[str, Any]:
    """Return the metadata of an option that was added after trainings had been started without it.

    Such an option needs this if its default is not what those trainings did. A stored run that
    lacks an option takes this value, or else the option's default.

    Args:
        value: What reproduces what those trainings did.
    """
    return {"old_runs": value}


@dataclass(frozen=True, kw_only=True)
class RunOptions(OptionGroup):
    """The run: its folder, and how often something is written there."""

    out: Path | None = None
    """Run folder, new or empty. Default: runs/ and a name of what is trained and the time."""
    resume: Path | None = field(default=None, metadata=NOT_STORED)
    """Run folder to go on with, exactly where it stopped, with the options it was started with."""
    print_options: bool = field(default=False, metadata=NOT_STORED)
    """Print what options.json would hold, and do nothing else."""
    eval_every: Annotated[int, AtLeast(1)] = 5_000
    """Steps between validations; each is followed by a save."""
    save_every: Annotated[int, AtLeast(1)] = 1_000
    """Steps between states to resume from."""
    log_every: Annotated[int, AtLeast(1)] = 100
    """Steps between lines of the log."""
    keep: Annotated[int, AtLeast(1)] = 3
    """How many states to resume from are kept."""
    tensorboard: bool = tensorboard_installed()
    """Log to TensorBoard too."""
    figures: bool = True
    """Draw the figures of the report, which takes a second or two."""
    seed: int = 0
    """Seed of all that is drawn: weights, samples, noise, taps."""


PSD_DISTANCES: dict[str, Comparison] = {
    "norm": unit_distance,
    "squared": squared_unit_distance,
    "cosine": cosine_distance,
}
"""What --psd-distance names."""


@dataclass(frozen=True, kw_only=True)
class LossOptions(OptionGroup):
    """The loss of every tap."""

    psd_weight: Annotated[float, AtLeast(0)]
    """Weight of the self-distillation. It depends on the task loss and on the scale of its values.
    """
    psd_distance: Literal["norm", "squared", "cosine"] = "norm"
    """What the self-distillation compares: attention maps by the L2 norm of their difference, as in
    the paper, or by its square, or the features themselves by their cosine.
    """
    psd_power: Annotated[float, Above(0)] = 1.0
    """Power of |features| in an attention map."""
    psd_teacher: Literal["next", "deepest"] = "next"
    """Which tap teaches a shallower one: the next deeper, as in the paper, or the deepest."""
    log_psd_share: bool = False
    """Log the share of the distillation in the gradient of the blocks, as psd_share, in every line
    of the log. It takes about another step each time.
    """
    sampled_taps: Annotated[int | None, AtLeast(0)] = None
    """Compute the deepest tap and this many others a step. Default: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.psd_distance == "cosine" and self.psd_power != 1:
            raise ValueError(
                f"--psd-power {self.psd_power} with --psd-distance cosine: it compares features, "
                "and a power belongs to attention maps; leave --psd-power out"
            )

    def self_distillation(self, weight: Weight | None = None) -> Distillation:
        """Return the self-distillation of these options, for `ElasticObjective(distillations=...)`.

        Args:
            weight: Its weight. None: `psd_weight`.
        """
        return Distillation(
            weight=self.psd_weight if weight is None else weight,
            of="features" if self.psd_distance == "cosine" else "maps",
            compare=PSD_DISTANCES[self.psd_distance],
            teacher=self.psd_teacher,
            power=self.psd_power,
        )


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions(OptionGroup):
    """Adam and its learning rate."""

    batch_size: Annotated[int, AtLeast(1)] = 16
    """Samples a step, over all processes."""
    learning_rate: Annotated[float, Above(0)] = 1e-4
    """The largest learning rate."""
    warmup: Annotated[int, AtLeast(0)] = 0
    """Steps of linear warm-up before a cosine."""


@dataclass(frozen=True, kw_only=True)
class ComputeOptions(OptionGroup):
    """The device, and how it computes."""

    device: str = "cuda" if CUDA else "cpu"
    """Where to train."""
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = (
        "bfloat16" if CUDA else "float32"
    )
    """Precision of the training steps, by autocast (float64: of the weights). auto: bfloat16 where
    the device computes in it (AVX512-BF16, AMX, new GPUs), and otherwise float32. Validation is in
    the precision of the weights.
    """


@dataclass(frozen=True)
class _Resumed:
    """The run whose options are the defaults; read from the command line before the others."""

    resume: Path | None = None


Given = TypeVar("Given")
Options = TypeVar("Options", bound=OptionGroup)


# --- groups and flat values


def check_folder(path: Path, name: str) -> None:
    """Raise unless a folder that an option names is there.

    Args:
        path: The folder.
        name: The option's field, such as "data".

    Raises:
        ValueError: There is nothing, or a file.
    """
    if not path.exists():
        raise ValueError(f"{flag(name)} {path}: there is no such folder")
    if not path.is_dir():
        raise ValueError(f"{flag(name)} {path}: expected a folder, and this is a file")


def check_file(path: Path, name: str) -> None:
    """Raise unless a file that an option names is there.

    Args:
        path: The file.
        name: The option's field, such as "weights".

    Raises:
        ValueError: There is nothing, or a folder.
    """
    if not path.exists():
        raise ValueError(f"{flag(name)} {path}: there is no such file")
    if not path.is_file():
        raise ValueError(f"{flag(name)} {path}: expected a file, and this is a folder")


def flag(name: str) -> str:
    """Return how the command line names an option.

    Args:
        name: The option's name in its dataclass.
    """
    return f"--{name.replace('_', '-')}"


def flat_values(options: OptionGroup) -> dict[str, Any]:
    """Return every option's value by its name, without the groups.

    Args:
        options: A group, or groups of options.
    """
    values: dict[str, Any] = {}
    for each in dataclasses.fields(options):
        value = getattr(options, each.name)
        if isinstance(value, OptionGroup):
            values.update(flat_values(value))
        else:
            values[each.name] = value
    return values


def with_values(options: Options, values: Mapping[str, Any]) -> Options:
    """Return the options with some values changed.

    Args:
        options: A group, or groups of options.
        values: The new values by the options' names, without the groups.

    Raises:
        ValueError: There is no such option, or its value is out of range.
    """
    unknown = values.keys() - flat_values(options).keys()
    if unknown:
        raise ValueError(f"no such option: {', '.join(map(flag, sorted(unknown)))}")
    return _changed(options, values)


def _changed(options: Options, values: Mapping[str, Any]) -> Options:
    """Return the options with the values that they have a field for."""
    changes: dict[str, Any] = {}
    for each in dataclasses.fields(options):
        value = getattr(options, each.name)
        if isinstance(value, OptionGroup):
            changes[each.name] = _changed(value, values)
        elif each.name in values:
            changes[each.name] = values[each.name]
    return dataclasses.replace(options, **changes)


# --- as JSON


def as_json(options: OptionGroup) -> dict[str, Any]:
    """Return the options that belong to the run, by name and without groups; paths as strings.

    Args:
        options: A recipe's options.
    """
    declared = _declarations(options)
    stored: dict[str, Any] = {}
    for name, value in flat_values(options).items():
        if not declared[name].metadata.get("stored", True):
            continue
        stored[name] = os.fspath(value) if isinstance(value, Path) else value
    return stored


def from_json(kind: type[Options], stored: Mapping[str, Any]) -> Options:
    """Return the options that `as_json` stored, also those of an older version of the recipe.

    An option that is not stored was added later. It takes the value for old runs that it declares
    (see `old_runs`), or else its default.

    Args:
        kind: The recipe's dataclass of options; every option has a default.
        stored: Values by name.

    Raises:
        ValueError: A stored option is unknown to this version, or its value is out of range.
    """
    values = kind.with_new_names(dict(stored))
    default = kind()
    declared = _declarations(default)
    unknown = values.keys() - declared.keys()
    if unknown:
        raise ValueError(
            f"options that this version of the recipe does not know: {', '.join(sorted(unknown))}"
        )

    restored: dict[str, Any] = {}
    hints = _hints(default)
    for name, option in declared.items():
        if name in values:
            restored[name] = _restored(values[name], hints[name])
        elif "old_runs" in option.metadata:
            restored[name] = option.metadata["old_runs"]
    return with_values(default, restored)


def _declarations(options: OptionGroup) -> dict[str, dataclasses.Field[Any]]:
    """Return the field of every option by its name, without the groups."""
    declared: dict[str, dataclasses.Field[Any]] = {}
    for each in dataclasses.fields(options):
        value = getattr(options, each.name)
        if isinstance(value, OptionGroup):
            declared.update(_declarations(value))
        else:
            declared[each.name] = each
    return declared


def _hints(options: OptionGroup) -> dict[str, Any]:
    """Return the type of every option by its name, without the groups and the ranges."""
    hints: dict[str, Any] = {}
    for name, hint in get_type_hints(type(options)).items():
        value = getattr(options, name)
        if isinstance(value, OptionGroup):
            hints.update(_hints(value))
        else:
            hints[name] = hint
    return hints


def _restored(value: Any, hint: Any) -> Any:
    """Return a value of JSON as its option has it: JSON holds paths and infinities as strings."""
    if not isinstance(value, str):
        return value
    alternatives = get_args(hint) or (hint,)
    if Path in alternatives:
        return Path(value)
    if float in alternatives and value in JSON_NUMBERS:
        return float(value)
    return value


# --- the command line


def given_options(kind: type[Given], arguments: Sequence[str]) -> Given:
    """Return some options from a command line that has others, too.

    Args:
        kind: A dataclass of these options. What is not given has its default.
        arguments: The command line, without the program's name.
    """
    import tyro

    # --help is for all options; they are read later
    words = [word for word in arguments if word not in ("-h", "--help")]
    given, _others = tyro.cli(kind, args=words, return_unknown_args=True)
    return given


def parse_options(
    kind: type[Options],
    arguments: Sequence[str],
    *,
    default: Options,
    description: str | None,
    fixed: Collection[str] = (),
) -> Options:
    """Read a command line into a recipe's options; ends the process after --help or an error.

    With --resume, if the recipe has that option, the options of that run are the defaults. With
    --print-options the options are printed as JSON, and the process ends. This function needs tyro,
    which shows the docstrings of groups and options in --help.

    Args:
        kind: The recipe's dataclass of options.
        arguments: The command line, without the program's name.
        default: The options where nothing is given.
        description: The first paragraphs of --help.
        fixed: Names of the options that a resumed run cannot change, such as those of the network.

    Returns:
        The options.

    Raises:
        ValueError: The run of --resume was started with another value of a fixed option, or --out
            stands beside it.
        OSError: No run can be started in the folder of --out.
    """
    import tyro

    folder = None
    if "resume" in flat_values(default):
        folder = given_options(_Resumed, arguments).resume
        if folder is not None:
            default = stored_options(kind, folder)
    options = tyro.cli(
        kind,
        default=default,
        args=arguments,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if folder is not None:
        _refuse_changes(default, options, fixed)
    else:
        _refuse_target(flat_values(options).get("out"))
    if flat_values(options).get("print_options"):
        print(json.dumps(as_json(options), indent=2))
        sys.exit()
    return options


def _refuse_target(out: Path | None) -> None:
    """Refuse a folder that no run can be started in, before images are read for it.

    Of several processes the first one looks: when the others do, it may have begun to write.
    """
    if out is not None and int(os.environ.get("RANK", "0")) == 0:
        refuse_foreign_folder(out)


def _refuse_changes(stored: OptionGroup, options: OptionGroup, fixed: Collection[str]) -> None:
    """Refuse other values of the fixed options than those that a run was started with."""
    before = flat_values(stored)
    now = flat_values(options)
    if now.get("out") != before.get("out"):
        raise ValueError(
            f"--out {now['out']} beside --resume: a run stays in its folder; copy the folder, and "
            "resume the copy"
        )
    for name in fixed:
        if now[name] != before[name]:
            raise ValueError(
                f"{flag(name)} {now[name]}: {flag(name)} was {before[name]} when this run started, "
                "and a resumed run keeps it: leave it out, or start another run"
            )


def as_command(
    values: Mapping[str, Any], usual: Mapping[str, Any], skipped: Collection[str] = ()
) -> str:
    """Return the options that differ from the usual ones as a command line has them.

    Args:
        values: Every option's value by its name, as `as_json` returns them.
        usual: The values to compare with; they have every name that `values` has.
        skipped: Names that are left out.
    """
    words: list[str] = []
    for name, value in values.items():
        if name in skipped or value == usual[name]:
            continue
        if value is True:
            words.append(flag(name))
        elif value is False:
            words.append(flag(f"no_{name}"))
        elif isinstance(value, list):
            entries = cast("list[Any]", value)  # a list of what, isinstance does not say
            words.append(flag(name))
            words += [shlex.quote(str(entry)) for entry in entries]
        else:
            words += [flag(name), shlex.quote(str(value))]
    return " ".join(words)


# --- the run folder


def stored_options(kind: type[Options], folder: str | os.PathLike[str]) -> Options:
    """Return the options of a run, with paths that lead from here to where they led from there.

    A relative path is looked for in the folder that the run was started from, then in the run
    folder. If it is in neither, it stays as it is.

    Args:
        kind: The dataclass of options of the recipe that started it.
        folder: The run folder.

    Raises:
        ValueError: The run has options that are unknown to this version of the recipe.
    """
    with Run.resume(folder, writer=False) as run:
        stored = run.options
    try:
        return _with_found_paths(from_json(kind, stored), Path(folder))
    except ValueError as error:
        raise ValueError(
            f"{folder}: {error}; resume it with the recipe, and the version of it, that started it"
        ) from error


def _with_found_paths(options: Options, folder: Path) -> Options:
    """Return the options of the run in a folder with the paths of its inputs as seen from here."""
    note = folder / _STARTED
    started_in = None
    if note.is_file():
        started_in = Path(json.loads(note.read_text(encoding="utf-8"))["folder"])
    if started_in == Path.cwd():
        return options
    places = [folder.absolute()]
    if started_in is not None:
        places.insert(0, started_in)
    declared = _declarations(options)
    found: dict[str, Any] = {}
    for name, value in flat_values(options).items():
        if value is None:
            continue
        if declared[name].metadata.get("paths", False):
            found[name] = [os.fspath(_found(Path(path), places)) for path in value]
        elif isinstance(value, Path) and name not in _OUTPUTS:
            found[name] = _found(value, places)
    return with_values(options, found)


def _found(path: Path, places: Sequence[Path]) -> Path:
    """Return a relative path as seen from the first place where it leads somewhere; or as it is."""
    for place in places:
        if (place / path).exists():
            return place / path
    return path


def changed_options(run: Run, options: OptionGroup) -> dict[str, tuple[Any, Any]]:
    """Return the options that are not as the run has them stored.

    Args:
        run: The run.
        options: The options of its recipe, as they are now.

    Returns:
        (before, now) by the option's name.
    """
    before = _with_found_paths(from_json(type(options), run.options), run.folder)
    return differing_options(as_json(before), as_json(options))


def open_run(options: OptionGroup, run: RunOptions, folder: Path, processes: Processes) -> Run:
    """Open the run of a recipe: the one of --resume, or else a new one.

    Says which options have changed; the run keeps them from its next save on.

    Args:
        options: The recipe's options.
        run: The group among them that says how the run is kept.
        folder: The folder of a new run.
        processes: Of several processes the first one writes.

    Returns:
        The run, to be used in a `with` statement.
    """
    if run.resume is None:
        created = Run.create(folder, as_json(options), keep=run.keep, writer=processes.first)
        if processes.first:
            write_json(created.folder / _STARTED, {"folder": os.getcwd()})
        return created
    resumed = Run.resume(run.resume, keep=run.keep, writer=processes.first)
    changes = changed_options(resumed, options)
    for name, (before, now) in changes.items():
        processes.say(f"note: {flag(name)} was {before} and is {now} now")
    if changes:
        resumed.change_options(as_json(options))
    return resumed


def resume_command(run: Run) -> str:
    """Return the command line that goes on with a run, for a recipe to print.

    Args:
        run: The run; its folder holds all options that differ from the defaults.
    """
    return shlex.join(["python", sys.argv[0], "--resume", str(run.folder)])
