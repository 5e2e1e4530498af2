"""Options: their ranges and groups, stored and read back, of old runs too, and the command line."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticnet.training.options import (
    NOT_STORED,
    PATHS,
    Above,
    AtLeast,
    FromTo,
    OptionGroup,
    RunOptions,
    as_command,
    as_json,
    changed_options,
    flat_values,
    from_json,
    given_options,
    old_runs,
    open_run,
    parse_options,
    resume_command,
    stored_options,
    with_values,
)
from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class Setup(OptionGroup):
    """What is trained."""

    preset: Literal["demo", "paper"] = "paper"
    """Set of defaults."""
    data: Path | None = None
    """Training images."""
    download: bool = field(default=False, metadata=NOT_STORED)
    """Download the data."""


@dataclass(frozen=True, kw_only=True)
class Network(OptionGroup):
    """The network."""

    num_blocks: Annotated[int, AtLeast(1)] = 5
    """Blocks."""
    sampled_taps: Annotated[int | None, AtLeast(0)] = None
    """Taps a step."""
    tap_weights: Annotated[Literal["paper", "rising"] | float, FromTo(0, 1)] = "paper"
    """Weights."""
    scored: list[str] = field(default_factory=list, metadata=PATHS)
    """Sets to score it on."""


@dataclass(frozen=True, kw_only=True)
class Optimiser(OptionGroup):
    """The optimiser."""

    learning_rate: Annotated[float, Above(0)] = 1e-4
    """Learning rate."""
    clip_norm: Annotated[float | None, Above(0, finite=False)] = None
    """Largest norm of the gradients."""
    ema: Annotated[float, FromTo(0, 1, below_high=True)] = 0.0
    """Decay."""


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Options of every kind that a recipe has."""

    setup: Setup = Setup()
    run: RunOptions = RunOptions(keep=2, tensorboard=True)
    network: Network = Network()
    optimiser: Optimiser = Optimiser()


def options_of(**values: object) -> Options:
    return with_values(Options(), values)


# --- ranges


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_blocks", 0, "--num-blocks 0: expected at least 1"),
        ("sampled_taps", -1, "--sampled-taps -1: expected at least 0"),
        ("learning_rate", 0.0, "--learning-rate 0.0: expected a number above 0"),
        ("learning_rate", math.inf, "--learning-rate inf: expected a number above 0"),
        ("learning_rate", math.nan, "--learning-rate nan: expected a number above 0"),
        ("clip_norm", -2.0, "--clip-norm -2.0: expected a number above 0"),
        ("ema", 1.0, "--ema 1.0: expected a number from 0 to below 1"),
        ("ema", math.nan, "--ema nan: expected a number from 0 to below 1"),
        ("tap_weights", 1.5, "--tap-weights 1.5: expected a number from 0 to 1"),
        ("keep", 0, "--keep 0: expected at least 1"),
        ("save_every", -5, "--save-every -5: expected at least 1"),
    ],
)
def test_a_number_out_of_its_range_is_named_as_the_command_line_names_it(
    name: str, value: float, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        options_of(**{name: value})


def test_numbers_at_the_ends_of_their_ranges_words_and_none_are_taken() -> None:
    values = {"num_blocks": 1, "sampled_taps": 0, "ema": 0.0, "tap_weights": 1.0}
    assert flat_values(options_of(**values)).items() >= values.items()
    assert options_of(tap_weights="rising").network.tap_weights == "rising"
    assert options_of(sampled_taps=None).network.sampled_taps is None
    assert options_of(clip_norm=math.inf).optimiser.clip_norm == math.inf


# --- groups


def test_values_have_no_groups_and_change_in_theirs() -> None:
    options = options_of(num_blocks=7, ema=0.5, keep=9)
    assert options.network == Network(num_blocks=7)
    assert options.optimiser == Optimiser(ema=0.5)
    assert options.run == RunOptions(keep=9, tensorboard=True)
    assert list(flat_values(options))[:4] == ["preset", "data", "download", "out"]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no such option: --blocks, --width"):
        options_of(width=3, blocks=2, ema=0.5)


# --- stored and read back


paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(
    Path
)
all_options = st.builds(
    options_of,
    preset=st.sampled_from(["demo", "paper"]),
    data=st.none() | paths,
    out=st.none() | paths,
    num_blocks=st.integers(1),
    sampled_taps=st.none() | st.integers(0),
    tap_weights=st.sampled_from(["paper", "rising"]) | st.floats(0, 1),
    learning_rate=st.floats(0, exclude_min=True, allow_infinity=False),
    clip_norm=st.none() | st.floats(0, exclude_min=True),
    tensorboard=st.booleans(),
    keep=st.integers(1, 9),
)


@given(all_options, st.none() | paths, st.booleans())
def test_a_run_gives_its_options_back(
    tmp_path_factory: pytest.TempPathFactory, options: Options, resume: Path | None, download: bool
) -> None:
    """All but those that say how the process was started."""
    folder = tmp_path_factory.mktemp("run")
    started = with_values(options, {"download": download})
    with open_run(started, started.run, folder, Processes()):
        pass
    stored = json.loads((folder / "options.json").read_text())
    expected = flat_values(Options()).keys() - {"resume", "download", "print_options"}
    assert stored.keys() == expected
    assert stored_options(Options, folder) == options
    assert as_json(with_values(options, {"resume": resume})) == as_json(options)


def test_infinite_options_come_back_as_numbers() -> None:
    stored = json.loads('{"clip_norm": "Infinity", "tap_weights": "paper"}')
    assert from_json(Options, stored).optimiser.clip_norm == math.inf


@dataclass(frozen=True, kw_only=True)
class NewerNetwork(Network):
    """The network of a later version: it has more options, and new runs draw taps."""

    width: int = 64
    """Was always 64."""
    stem: Literal["plain", "deep"] = field(default="deep", metadata=old_runs("plain"))
    """Was always plain."""


@dataclass(frozen=True, kw_only=True)
class NewerOptions(Options):
    """Options of a later version, in which --rate is called --learning-rate."""

    network: NewerNetwork = NewerNetwork()

    @classmethod
    def with_new_names(cls, stored: dict[str, object]) -> dict[str, object]:
        if "rate" in stored:
            stored["learning_rate"] = stored.pop("rate")
        return stored


def test_an_option_that_an_old_run_does_not_have_takes_the_value_for_old_runs() -> None:
    stored = as_json(options_of(num_blocks=3))
    read = from_json(NewerOptions, stored)
    assert read.network == NewerNetwork(num_blocks=3, width=64, stem="plain")
    assert NewerOptions().network.stem == "deep"


def test_a_new_run_keeps_what_it_was_given_of_options_that_old_runs_lack() -> None:
    options = with_values(NewerOptions(), {"stem": "deep", "width": 8})
    assert from_json(NewerOptions, as_json(options)) == options


def test_an_option_that_was_renamed_is_read_by_its_old_name() -> None:
    assert from_json(NewerOptions, {"rate": 0.25}).optimiser.learning_rate == 0.25


def test_a_stored_option_that_is_unknown_is_named(tmp_path: Path) -> None:
    with Run.create(tmp_path / "other", {**as_json(Options()), "width": 3, "deep": 1}):
        pass
    message = f"{tmp_path / 'other'}: options that this version .* know: deep, width; resume it"
    with pytest.raises(ValueError, match=message):
        stored_options(Options, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="none holds no run"):
        stored_options(Options, tmp_path / "none")


# --- opening a run


def test_changed_options_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="elasticnet")
    first = options_of(data=Path("images"))
    with open_run(first, first.run, tmp_path, Processes()) as run:
        assert run.folder == tmp_path
        assert run.writer
    changed = options_of(
        resume=tmp_path, download=True, data=Path("others"), sampled_taps=2, keep=1
    )
    with open_run(changed, changed.run, Path("not used"), Processes()) as run:
        assert run.folder == tmp_path
        assert run.writer
        run.load_latest()
        for step in (1, 2):
            run.save(step, {})
        assert list(run.checkpoints()) == [2], "the new keep counts"
    again = parse("--resume", tmp_path)
    assert (again.network.sampled_taps, again.setup.data) == (2, Path("others"))
    with open_run(again, again.run, Path("not used"), Processes()) as run:
        assert changed_options(run, again) == {}
    assert caplog.messages == [
        "note: --data was images and is others now",
        "note: --keep was 2 and is 1 now",
        "note: --sampled-taps was None and is 2 now",
    ]


def test_a_fixed_option_is_not_changed_by_a_resumed_run(tmp_path: Path) -> None:
    stored = options_of(num_blocks=3)
    with open_run(stored, stored.run, tmp_path, Processes()):
        pass
    pytest.importorskip("tyro", reason="needs tyro, of the extra train")
    words = ["--resume", str(tmp_path), "--num-blocks"]
    fixed = ["num_blocks"]
    with pytest.raises(ValueError, match="--num-blocks 4: --num-blocks was 3 when this run"):
        parse_options(Options, [*words, "4"], default=Options(), description="", fixed=fixed)
    same = parse_options(Options, [*words, "3"], default=Options(), description="", fixed=fixed)
    assert same.network.num_blocks == 3


def test_a_folder_that_no_run_can_start_in_is_refused_with_the_options(tmp_path: Path) -> None:
    """Before images are read for it, which may take long."""
    pytest.importorskip("tyro", reason="needs tyro, of the extra train")
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    for out, message in (
        ("photo.jpg", "photo.jpg is a file: choose another --out"),
        ("photo.jpg/run", "photo.jpg is a file: choose another --out"),
        (".", r"is not empty \(photo.jpg\)"),
    ):
        with pytest.raises(OSError, match=message):
            parse_options(
                Options, ["--out", str(tmp_path / out)], default=Options(), description=""
            )
    words = ["--out", str(tmp_path / "new")]
    parse_options(Options, words, default=Options(), description="")
    assert not (tmp_path / "new").exists()


def test_a_resumed_run_stays_in_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("tyro", reason="needs tyro, of the extra train")
    Run.create(tmp_path / "run", as_json(Options())).close()
    words = ["--resume", str(tmp_path / "run"), "--out", str(tmp_path / "other")]
    with pytest.raises(ValueError, match=r"--out .*other beside --resume: a run stays"):
        parse_options(Options, words, default=Options(), description="")


@pytest.mark.parametrize("place", ["start", "run", "both"])
def test_a_relative_path_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    start = tmp_path / "start"
    start.mkdir()
    monkeypatch.chdir(start)
    stored = options_of(data=Path("images"), out=Path("run"), scored=["images", "nowhere"])
    with open_run(stored, stored.run, Path("run"), Processes()):
        pass
    if place in ("start", "both"):
        (start / "images").mkdir()
    if place in ("run", "both"):
        (start / "run" / "images").mkdir()
    assert stored_options(Options, "run").setup.data == Path("images"), "as it was given"

    monkeypatch.chdir(tmp_path)
    found = stored_options(Options, "start/run")
    expected = start / "run" / "images" if place == "run" else start / "images"
    assert found.setup.data == expected
    assert found.network.scored == [str(expected), "nowhere"]
    assert found.run.out == Path("run")
    with open_run(
        with_values(found, {"resume": Path("start/run")}),
        RunOptions(resume=Path("start/run")),
        tmp_path,
        Processes(),
    ) as run:
        assert changed_options(run, found) == {}, "the same images are no change"


def test_a_relative_path_that_leads_nowhere_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = options_of(data=Path("images"))
    with open_run(stored, stored.run, tmp_path / "run", Processes()):
        pass
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert stored_options(Options, tmp_path / "run").setup.data == Path("images")


def test_the_command_that_resumes_a_run_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/recipe.py", "--steps", "5"])
    with Run.create(tmp_path / "a run", {}) as run:
        words = shlex.split(resume_command(run))
    assert words == ["python", "recipes/recipe.py", "--resume", str(tmp_path / "a run")]


def test_of_several_processes_only_the_first_one_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="elasticnet")
    first = Options()
    with open_run(first, first.run, tmp_path, Processes()):
        pass
    resumed = options_of(resume=tmp_path, ema=0.5)
    for options, folder in ((resumed, tmp_path), (first, tmp_path / "new")):
        with open_run(options, options.run, folder, Processes(1, 2)) as run:
            assert not run.writer
    assert not (tmp_path / "new").exists()
    assert caplog.messages == []


def test_options_that_were_added_are_no_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="elasticnet")
    with open_run(Options(), Options().run, tmp_path, Processes()):
        pass
    resumed = with_values(stored_options(NewerOptions, tmp_path), {"resume": tmp_path})
    with open_run(resumed, resumed.run, tmp_path, Processes()):
        pass
    assert caplog.messages == []


def test_a_used_folder_is_not_opened_as_a_new_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"is not empty \(file\): use --resume"):
        open_run(Options(), Options().run, tmp_path, Processes())


# --- the command line


DEMO = options_of(preset="demo", learning_rate=2e-3, num_blocks=2)


@dataclass(frozen=True)
class Choice:
    """What chooses the defaults."""

    preset: str | None = None
    data: Path | None = None


def parse(*arguments: object) -> Options:
    pytest.importorskip("tyro", reason="needs tyro, of the extra train")
    words = [str(argument) for argument in arguments]
    choice = given_options(Choice, words)
    default = DEMO if choice.preset == "demo" else Options()
    return parse_options(Options, words, default=default, description="A recipe.")


def test_what_is_given_chooses_the_defaults_and_every_option_changes_one() -> None:
    assert parse() == Options()
    assert parse("--preset", "demo") == DEMO
    assert parse("--data=images", "--preset=demo", "--num-blocks", 7) == with_values(
        DEMO, {"data": Path("images"), "num_blocks": 7}
    )
    assert parse("--clip-norm", 0.5, "--no-tensorboard", "--tap-weights", 0.9) == options_of(
        clip_norm=0.5, tensorboard=False, tap_weights=0.9
    )


def test_a_resumed_run_s_options_are_the_defaults(tmp_path: Path) -> None:
    stored = options_of(preset="demo", data=Path("images"), learning_rate=0.25, sampled_taps=1)
    with open_run(stored, stored.run, tmp_path, Processes()):
        pass
    assert parse("--resume", tmp_path) == with_values(stored, {"resume": tmp_path})
    changed = parse("--resume", tmp_path, "--sampled-taps", "None", "--keep", 9)
    expected = {"resume": tmp_path, "sampled_taps": None, "keep": 9}
    assert changed == with_values(stored, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-blocks", "many"], "many"),
        (["--num-block", "3"], "num-block"),
        (["--preset", "long"], "long"),
        (["--keep", "0"], "--keep 0: expected at least 1"),
    ],
)
def test_unknown_options_and_values_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_every_option_with_its_meaning_in_its_group(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--preset", "demo", "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "A recipe." in shown
    _, network, optimiser = shown.partition("network options")
    assert "optimiser options" in optimiser
    network, _, _ = optimiser.partition("optimiser options")
    for words in ("The network.", "--num-blocks INT", "Blocks. (default: 2)", "--sampled-taps"):
        assert words in network
    for name in flat_values(DEMO):
        assert f"--{name.replace('_', '-')}" in shown


def test_printed_options_are_those_of_options_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--preset", "demo", "--keep", 4, "--out", tmp_path / "run", "--print-options")
    assert ended.value.code is None
    printed = json.loads(capsys.readouterr().out)
    assert printed == as_json(with_values(DEMO, {"keep": 4, "out": tmp_path / "run"}))
    assert not (tmp_path / "run").exists()


names = st.from_regex(r"[a-z][a-z .']{0,8}[a-z]", fullmatch=True).map(Path)
on_a_command_line = st.builds(
    options_of,
    preset=st.sampled_from(["demo", "paper"]),
    data=st.none() | names,
    out=st.none() | names,
    num_blocks=st.integers(1),
    sampled_taps=st.none() | st.integers(0),
    scored=st.lists(names.map(str), max_size=2),
    clip_norm=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
    tensorboard=st.booleans(),
)


@settings(max_examples=20, deadline=None)
@given(on_a_command_line, on_a_command_line)
def test_a_command_says_what_differs(options: Options, usual: Options) -> None:
    pytest.importorskip("tyro", reason="needs tyro, of the extra train")
    words = shlex.split(as_command(as_json(options), as_json(usual)))
    assert parse_options(Options, words, default=usual, description=None) == options
    shown = {
        word.removeprefix("--").removeprefix("no-").replace("-", "_")
        for word in words
        if word.startswith("--")
    }
    assert shown == {
        name for name, value in as_json(options).items() if value != as_json(usual)[name]
    }
    skipped = shlex.split(as_command(as_json(options), as_json(usual), ["out"]))
    assert "--out" not in skipped


# --- an old run of a recipe


def test_the_options_of_a_run_of_an_old_version_are_read(tmp_path: Path) -> None:
    """Its recipe's groups were one flat dataclass; here stand those of its options that we have."""
    shutil.copytree(Path(__file__).parent / "old_run", tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "options.json").read_text())
    kept = {name: stored[name] for name in stored.keys() & flat_values(Options()).keys()}
    options = from_json(Options, kept)
    assert options.network.num_blocks == stored["num_blocks"]
    assert dataclasses.asdict(options.optimiser) == {
        "learning_rate": 0.004,
        "clip_norm": 0.5,
        "ema": 0.9,
    }
