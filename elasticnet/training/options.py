"""A recipe's dataclass of options as a run folder keeps it: checked, stored, read back to
resume.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run, differing_options

Options = TypeVar("Options")
# they say how a process was started, and do not belong to the run
NOT_STORED = ("resume", "download")


def at_least_one(options: Any, *names: str) -> None:
    """Raise a ValueError for the first of these options that is below 1, as the command line names
    it.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} {getattr(options, name)}: expected at least 1"
            )


def from_0_to_1(options: Any, *names: str) -> None:
    """Raise a ValueError for the first of these options that is a number outside of 0 to 1."""
    for name in names:
        value = getattr(options, name)
        if isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected a number from 0 to 1")


def as_json(options: Any) -> dict[str, Any]:
    """Return the options that belong to the run, paths as strings: all but `resume` and
    `download`.
    """
    values = {
        name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_STORED
    }
    return {
        name: os.fspath(value) if isinstance(value, Path) else value
        for name, value in values.items()
    }


def as_command(
    values: Mapping[str, Any], usual: Mapping[str, Any], skipped: Sequence[str] = ()
) -> str:
    """Return the options that differ from the usual ones, but for those skipped, as a command line
    has them.
    """
    words = []
    for name, value in values.items():
        if name not in skipped and value != usual[name]:
            option = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                words.append(f"--{option} {shlex.quote(str(value))}")
    return " ".join(words)


def parse_options(
    kind: type[Options],
    arguments: Sequence[str],
    defaults: Callable[[Mapping[str, Any]], Options],
    description: str | None,
) -> Options:
    """Read a command line into the dataclass `kind`; some options choose the defaults of all the
    others.

    With --resume the defaults are those of that run; otherwise `defaults` makes them of what is
    given for preset, task, data and download (None and False where absent). Needs tyro, whose
    --help shows the fields' docstrings.
    """
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--task")
    first.add_argument("--data", type=Path)
    first.add_argument("--download", action="store_true")
    first.add_argument("--resume", type=Path)
    given = vars(first.parse_known_args(arguments)[0])
    chosen = stored_options(kind, given["resume"]) if given["resume"] else defaults(given)
    return tyro.cli(kind, default=chosen, args=arguments, description=description)


def stored_options(kind: type[Options], folder: str | os.PathLike[str]) -> Options:
    """Return the options that the run in `folder` was started with; ValueError when they are not
    those of `kind`.
    """
    with Run.resume(folder, writer=False) as run:
        stored = run.options
    fields = {
        field.name: str(field.type)
        for field in dataclasses.fields(kind)
        if field.name not in NOT_STORED
    }  # pyright: ignore[reportArgumentType]
    if differing := fields.keys() ^ stored.keys():
        raise ValueError(
            f"{folder}: its options differ from this recipe's in {', '.join(sorted(differing))}; resume it with the "
            "recipe, and the version of it, that started it"
        )
    return kind(
        **{name: _restored(annotation, stored[name]) for name, annotation in fields.items()}
    )


def open_run(options: Any, folder: Path, processes: Processes) -> Run:
    """Open the run of a recipe: `options.resume`, saying which options have changed, or else a new
    one in `folder`.

    `options.keep` checkpoints are kept. Of several processes the first one writes.
    """
    if options.resume is None:
        return Run.create(folder, as_json(options), keep=options.keep, writer=processes.first)
    run = Run.resume(options.resume, keep=options.keep, writer=processes.first)
    for name, (before, now) in differing_options(run.options, as_json(options)).items():
        processes.say(
            f"note: --{name.replace('_', '-')} was {before} when this run started and is {now} now"
        )
    return run


def _restored(annotation: str, value: Any) -> Any:
    if "Path" in annotation and value is not None:
        return Path(value)
    # "Infinity"
    return float(value) if annotation.startswith("float") and isinstance(value, str) else value
