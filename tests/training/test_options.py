"""A recipe's options: stored and read back, chosen by preset or by an earlier run, and their
changes said.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticnet.training.options import (
    as_command,
    as_json,
    at_least_one,
    open_run,
    parse_options,
    stored_options,
)
from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run


@dataclass(frozen=True)
class Options:
    """Options of every kind that a recipe has."""

    preset: Literal["demo", "paper"] = "paper"
    """Set of defaults."""
    resume: Path | None = None
    """Run to go on with."""
    download: bool = False
    """Download the data."""
    data: Path | None = None
    """Training images."""
    out: Path = Path("runs")
    """Run folder."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision."""
    num_blocks: int = 5
    """Blocks."""
    sampled_taps: int | None = None
    """Taps a step."""
    learning_rate: float = 1e-4
    """Learning rate."""
    clip_norm: float | None = None
    """Largest norm of the gradients."""
    tensorboard: bool = True
    """Log to TensorBoard."""
    keep: int = 3
    """How many states are kept."""


@dataclass(frozen=True)
class NewerOptions(Options):
    """A later version of the recipe."""

    ema: float = 0.0
    """Decay."""


floats = st.floats(allow_nan=False)
paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(
    Path
)
all_options = st.builds(
    Options,
    preset=st.sampled_from(["demo", "paper"]),
    data=st.none() | paths,
    out=paths,
    precision=st.sampled_from(["float32", "bfloat16"]),
    num_blocks=st.integers(),
    sampled_taps=st.none() | st.integers(),
    learning_rate=floats,
    clip_norm=st.none() | floats,
    tensorboard=st.booleans(),
    keep=st.integers(1, 9),
)


@given(all_options, st.none() | paths, st.booleans())
def test_a_run_gives_its_options_back(
    tmp_path_factory: pytest.TempPathFactory, options: Options, resume: Path | None, download: bool
) -> None:
    """All but those that say how the process was started."""
    folder = tmp_path_factory.mktemp("run")
    started = dataclasses.replace(options, download=download)
    with open_run(started, folder, Processes()):
        pass
    assert not {"resume", "download"} & json.loads((folder / "options.json").read_text()).keys()
    assert stored_options(Options, folder) == options
    assert as_json(dataclasses.replace(options, resume=resume)) == as_json(options)


names = st.from_regex(r"[a-z][a-z .']{0,8}[a-z]", fullmatch=True).map(Path)
on_a_command_line = st.builds(
    Options,
    preset=st.sampled_from(["demo", "paper"]),
    data=st.none() | names,
    out=names,
    num_blocks=st.integers(0),
    sampled_taps=st.none() | st.integers(0),
    clip_norm=st.none() | st.floats(0, allow_infinity=False),
    tensorboard=st.booleans(),
)


@settings(max_examples=30, deadline=None)
@given(on_a_command_line, on_a_command_line)
def test_a_command_says_what_differs(options: Options, usual: Options) -> None:
    words = shlex.split(as_command(as_json(options), as_json(usual)))
    assert parse_options(Options, words, lambda _: usual, None) == options
    shown = {
        word.removeprefix("--").removeprefix("no-").replace("-", "_")
        for word in words
        if word.startswith("--")
    }
    assert shown == {
        name for name, value in as_json(options).items() if value != as_json(usual)[name]
    }
    assert "--out" not in shlex.split(as_command(as_json(options), as_json(usual), ["out"]))


def test_infinite_options_come_back_as_numbers(tmp_path: Path) -> None:
    with open_run(Options(clip_norm=math.inf), tmp_path, Processes()):
        pass
    assert stored_options(Options, tmp_path).clip_norm == math.inf


def test_options_of_another_recipe_are_named(tmp_path: Path) -> None:
    with open_run(Options(), tmp_path, Processes()):
        pass
    with pytest.raises(
        ValueError, match=f"{tmp_path}: its options differ .* in ema; resume it with the recipe"
    ):
        stored_options(NewerOptions, tmp_path)
    other = tmp_path / "other"
    with Run.create(other, {**as_json(Options()), "width": 3, "depth": 1}):
        pass
    with pytest.raises(ValueError, match="its options differ from this recipe's in depth, width; "):
        stored_options(Options, other)
    with pytest.raises(FileNotFoundError, match="none holds no run"):
        stored_options(Options, tmp_path / "none")


# --- opening a run


def test_changed_options_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="elasticnet")
    with open_run(Options(data=Path("images")), tmp_path, Processes()) as run:
        assert run.folder == tmp_path
        assert run.writer
    changed = Options(resume=tmp_path, download=True, data=Path("others"), sampled_taps=2, keep=1)
    with open_run(changed, Path("not used"), Processes()) as run:
        assert run.folder == tmp_path
        assert run.writer
        run.load_latest()
        for step in (1, 2):
            run.save(step, {})
        assert list(run.checkpoints()) == [2], "the new keep counts"
    assert caplog.messages == [
        "note: --data was images when this run started and is others now",
        "note: --keep was 3 when this run started and is 1 now",
        "note: --sampled-taps was None when this run started and is 2 now",
    ]
    caplog.clear()
    with open_run(changed, Path("not used"), Processes(1, 2)) as run:
        assert not run.writer, "of several processes only the first one writes"
    with open_run(stored_options(Options, tmp_path), tmp_path / "new", Processes(1, 2)) as run:
        assert not run.writer
    assert not (tmp_path / "new").exists()
    assert caplog.messages == []


def test_a_used_folder_is_not_opened_as_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"is not empty \(file\): use --resume"):
        open_run(Options(), tmp_path, Processes())


# --- the command line


PRESETS = {"demo": Options("demo", learning_rate=2e-3, num_blocks=2), "paper": Options()}


def defaults(given: Mapping[str, Any]) -> Options:
    """(A preset that is unknown is left for tyro to refuse.)"""
    preset = given["preset"] if given["preset"] in PRESETS else "paper" if given["data"] else "demo"
    return dataclasses.replace(PRESETS[preset], data=given["data"])


def parse(*arguments: object) -> Options:
    pytest.importorskip("tyro", reason="needs tyro, of the extra train")
    return parse_options(Options, list(map(str, arguments)), defaults, "A recipe.")


def test_what_is_given_chooses_the_defaults_and_every_option_changes_one() -> None:
    assert parse() == PRESETS["demo"]
    assert parse("--data", "images") == Options(data=Path("images"))
    assert parse("--data=images", "--preset=demo", "--num-blocks", 7) == Options(
        "demo", data=Path("images"), learning_rate=2e-3, num_blocks=7
    )
    assert parse("--preset", "paper", "--clip-norm", 0.5, "--no-tensorboard") == Options(
        clip_norm=0.5, tensorboard=False
    )


def test_a_resumed_run_s_options_are_the_defaults(tmp_path: Path) -> None:
    stored = Options("demo", data=Path("images"), learning_rate=0.25, sampled_taps=1)
    with open_run(stored, tmp_path, Processes()):
        pass
    assert parse("--resume", tmp_path) == dataclasses.replace(stored, resume=tmp_path)
    changed = parse("--resume", tmp_path, "--sampled-taps", "None", "--keep", 9)
    assert changed == dataclasses.replace(stored, resume=tmp_path, sampled_taps=None, keep=9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-blocks", "many"], "many"),
        (["--num-block", "3"], "num-block"),
        (["--preset", "long"], "long"),
    ],
)
def test_unknown_options_and_values_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert message in capsys.readouterr().err


def test_counts_below_one_are_named_as_the_command_line_names_them() -> None:
    at_least_one(Options(num_blocks=1), "num_blocks", "keep")
    with pytest.raises(ValueError, match="--num-blocks 0: expected at least 1"):
        at_least_one(Options(num_blocks=0), "keep", "num_blocks")
