"""The recipe of the language model at a size of seconds: what it trains, writes, and resumes."""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file

from elasticnet.distillation_losses import cosine_distance
from elasticnet.training.options import with_values
from loading import load_recipe

ROOT = Path(__file__).parents[2]
STEPS = 6
TINY = shlex.split(
    "--taps 1 3 --width 16 --num-heads 2 --context 16 --validation-bytes 400 "
    f"--batch-size 4 --steps {STEPS} --log-every 2 --eval-every 4 --save-every 3 --no-tensorboard "
    "--prompts 1 --prompt-bytes 8 --new-bytes 6 --repeats 1"
)
NETWORKS = ("elastic", "alone_1", "alone_3")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("elastic_gpt")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small programs, some of which are for validation."""
    folder = tmp_path_factory.mktemp("sources")
    for number in range(40):
        place = folder / f"package_{number % 3}"
        place.mkdir(exist_ok=True)
        (place / f"module_{number}.py").write_text(f"def f{number}(x):\n    return x\n" * 20)
    return folder


@pytest.fixture(scope="module")
def whole(recipe: ModuleType, sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("gpt") / "whole"
    recipe.main(recipe.parse(arguments(sources, folder)))
    return folder


def arguments(sources: Path, folder: Path) -> list[str]:
    return [*TINY, "--text", str(sources), "--out", str(folder)]


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log without what time and machine decide."""
    lines: list[dict[str, Any]] = []
    for text in (folder / "log.jsonl").read_text().splitlines():
        line = json.loads(text)
        line.pop("seconds")
        line.pop("machine", None)
        lines.append(line)
    return lines


def assert_ended_alike(folder: Path, other: Path) -> None:
    for name in NETWORKS:
        ours = load_file(folder / f"{name}.safetensors")
        theirs = load_file(other / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert log_of(folder) == log_of(other)
    tables = [json.loads((each / "table.json").read_text()) for each in (folder, other)]
    assert tables[0]["bits_per_byte"] == tables[1]["bits_per_byte"]


# --- a whole run


def test_the_table_has_every_way_at_every_depth(whole: Path) -> None:
    result = json.loads((whole / "table.json").read_text())
    ways = {"elastic", "each depth alone", "deepest alone, cut short"}
    assert set(result["bits_per_byte"]) == ways
    for by_depth in result["bits_per_byte"].values():
        assert list(by_depth) == ["1", "3"]
    # the deepest network cut at its own depth is that network
    assert (
        result["bits_per_byte"]["each depth alone"]["3"]
        == result["bits_per_byte"]["deepest alone, cut short"]["3"]
    )
    assert list(result["by_assistant"]) == ["1"]
    assert list(result["by_early_exit"]) == ["1"]
    text = (whole / "table.md").read_text()
    assert "| depth | parameters | elastic | each depth alone | deepest alone, cut short |" in text
    assert Image.open(whole / "curve.png").width > 500


def test_every_depth_is_an_ordinary_model_that_gives_the_elastic_nets_bits_per_byte(
    recipe: ModuleType, sources: Path, whole: Path
) -> None:
    options = recipe.parse(arguments(sources, whole.parent / "unused"))
    samples = recipe.validation_samples(options, recipe.read_text(options)).long()  # (num, 17)
    result = json.loads((whole / "table.json").read_text())
    for depth in ("1", "3"):
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(whole / f"depth_{depth}")
        assert model.config.num_hidden_layers == int(depth)
        with torch.no_grad():
            logits = model(samples[:, :-1]).logits
        nats = F.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten()).item()
        expected = result["bits_per_byte"]["elastic"][depth]
        assert nats / math.log(2) == pytest.approx(expected, rel=1e-5)


def test_the_log_has_the_trainings_one_after_the_other(whole: Path) -> None:
    lines = log_of(whole)
    assert [line["phase"] for line in lines] == sorted(line["phase"] for line in lines)
    assert lines[-1]["step"] == 3 * STEPS
    last_of_phases = [line for line in lines if line["step"] % STEPS == 0]
    assert [list(line["bits_per_byte"]) for line in last_of_phases] == [["1", "3"], ["1"], ["3"]]


def test_samples_hold_what_each_depth_wrote(whole: Path) -> None:
    text = (whole / "samples.md").read_text()
    assert "Depth 1:" in text
    assert "Depth 3:" in text


def test_the_elastic_network_can_be_trained_without_those_to_compare_with(
    recipe: ModuleType, sources: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "elastic alone"
    recipe.main(recipe.parse([*arguments(sources, folder), "--no-alone"]))
    ours = json.loads((folder / "table.json").read_text())["bits_per_byte"]
    theirs = json.loads((whole / "table.json").read_text())["bits_per_byte"]
    assert ours == {"elastic": theirs["elastic"]}
    assert not list(folder.glob("alone_*"))
    assert "| depth | parameters | elastic |\n" in (folder / "table.md").read_text()


def test_the_form_of_the_distillation_is_an_option_and_its_share_is_logged(
    recipe: ModuleType, sources: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cosine"
    form = ["--psd-weight", "0.5", "--psd-distance", "cosine", "--psd-teacher", "deepest"]
    options = recipe.parse([*arguments(sources, folder), *form, "--log-psd-share", "--no-alone"])
    recipe.main(options)
    assert all(0 < line["psd_share"] < 1 for line in log_of(folder))
    assert all("psd_share" not in line for line in log_of(whole))

    objective = recipe.make_training_step(options, recipe.new_network(options, [1, 3])).objective
    (term,) = objective.distillations
    assert term.distillation.compare is cosine_distance
    assert term.distillation.teacher == "deepest"


def test_on_a_cpu_generation_is_timed_by_the_processor_and_one_thread(recipe: ModuleType) -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with recipe.timed_fairly(torch.device("cpu")) as clock:
            assert clock is time.process_time
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(num_threads)


def test_every_shallower_depth_drafts_in_both_ways(recipe: ModuleType) -> None:
    assert recipe.ways_of([1, 2, 6]) == [
        ("alone", 1),
        ("alone", 2),
        ("alone", 6),
        ("assistant", 1),
        ("early exit", 1),
        ("assistant", 2),
        ("early exit", 2),
    ]


# --- the parts


def test_files_are_parted_by_their_names_alone(recipe: ModuleType, sources: Path) -> None:
    options = recipe.parse(arguments(sources, sources / "unused"))
    text = recipe.read_text(options)
    files = {path.read_bytes() for path in sources.rglob("*.py")}
    training = bytes(text.training.tolist())
    validation = bytes(text.validation.tolist())
    assert len(training) + len(validation) == sum(map(len, files))
    assert all((content in training) != (content in validation) for content in files)
    assert text.num_files == 40
    assert recipe.read_text(options).checksum == text.checksum


@pytest.mark.parametrize("folder", ["test", "site-packages", "encodings", "inner/tests"])
def test_tests_tables_and_other_peoples_programs_are_no_text(
    recipe: ModuleType, sources: Path, tmp_path: Path, folder: str
) -> None:
    shutil.copytree(sources, tmp_path, dirs_exist_ok=True)
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "left_out.py").write_text("x = 1\n")
    options = recipe.parse(arguments(sources, sources / "unused"))
    text = recipe.read_text(with_values(options, {"text": tmp_path}))
    assert text.num_files == 40


def test_samples_to_measure_on_are_spread_over_the_whole_validation_text(
    recipe: ModuleType, sources: Path
) -> None:
    options = recipe.parse([*arguments(sources, sources / "unused"), "--validation-bytes", "64"])
    numbers = torch.arange(1001)
    text = recipe.Text(training=numbers, validation=numbers, num_files=1, checksum="")

    few = recipe.validation_samples(options, text)
    assert few.shape == (4, 17)
    assert few[:, 0].tolist() == [0, 250, 500, 750]
    assert torch.equal(few[3], torch.arange(750, 767))

    # more than there is: every byte but the first is predicted once
    all_of_it = recipe.validation_samples(with_values(options, {"validation_bytes": 5000}), text)
    assert all_of_it.shape == (62, 17)
    assert all_of_it[:, 1:].unique().numel() == 62 * 16


def test_bits_per_byte_of_a_network_that_knows_nothing_are_eight(
    recipe: ModuleType, sources: Path
) -> None:
    options = recipe.parse(arguments(sources, sources / "unused"))
    net = recipe.new_network(options, [1, 3])
    torch.nn.init.zeros_(net.head.model.lm_head.weight)
    samples = torch.randint(256, (40, 17), dtype=torch.uint8)
    assert recipe.bits_per_byte(net, samples) == pytest.approx({1: 8.0, 3: 8.0})


def test_a_batch_is_a_function_of_seed_and_step(recipe: ModuleType, sources: Path) -> None:
    options = recipe.parse(arguments(sources, sources / "unused"))
    training = recipe.Training(
        options=options,
        run=None,
        text=recipe.read_text(options),
        processes=recipe.Processes(),
        log=None,
        stop_signal=None,
    )
    x, target = recipe.batch_of(training, 3, 0, 1)
    again, _ = recipe.batch_of(training, 3, 0, 1)
    other, _ = recipe.batch_of(training, 4, 0, 1)
    assert x.shape == target.shape == (4, 16)
    assert torch.equal(x[:, 1:], target[:, :-1])
    assert torch.equal(x, again)
    assert not torch.equal(x, other)


# --- the page


def test_the_guide_shows_the_numbers_of_the_record() -> None:
    guide = (ROOT / "docs" / "guides" / "language_models.md").read_text()
    tables: list[Any] = []
    for name in ("elastic-gpt", "elastic-gpt-seed1"):
        tables.append(json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())["table"])
    for depth, parameters in tables[0]["parameters"].items():
        cells = [depth, f"{parameters:,}"]
        for way in ("elastic", "each depth alone", "deepest alone, cut short"):
            cells.append(", ".join(f"{each['bits_per_byte'][way][depth]:.3f}" for each in tables))
        assert f"| {' | '.join(cells)} |" in guide

    for name in ("elastic-gpt", "elastic-gpt-psd"):
        record = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
        cells = [f"{record['options']['psd_weight']:g}"]
        for bits in record["table"]["bits_per_byte"]["elastic"].values():
            cells.append(f"{bits:.3f}")
        assert f"| {' | '.join(cells)} |" in guide

    for name, layers in (("elastic-gpt", "four"), ("elastic-gpt-8", "eight")):
        numbers = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())["table"]
        for way, words in (
            ("by_assistant", "as a model of its own"),
            ("by_early_exit", "by early exit"),
        ):
            cells = [f"{layers} layers, {words}"]
            cells += [f"{each['speedup']:.2f}" for each in numbers[way].values()]
            assert f"| {' | '.join(cells)} |" in guide


# --- stopped, killed, resumed


@pytest.mark.slow
def test_a_run_that_was_killed_in_two_trainings_ends_bitwise_equal(
    recipe: ModuleType, sources: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    command = [sys.executable, __file__]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # The first process is killed in its fifth step, behind the save of the third; the second goes
    # on with the fourth step of the first training, and is killed in the third training.
    for steps, where in (
        (5, arguments(sources, folder)),
        (12, ["--resume", str(folder)]),
    ):
        process = subprocess.run([*command, str(steps), *where], env=environment, check=False)
        assert process.returncode == -signal.SIGKILL
    assert log_of(folder)[-1]["phase"] == 3
    recipe.main(recipe.parse(["--resume", str(folder)]))
    assert_ended_alike(folder, whole)


def kill_after(steps: int, command_line: list[str]) -> None:
    """Run the recipe, and kill this process at the beginning of a step."""
    recipe: Any = load_recipe("elastic_gpt")
    batch_of = recipe.batch_of
    counter = itertools.count(1)

    def batch_or_kill(*args: Any) -> Any:
        if next(counter) == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch_of(*args)

    recipe.batch_of = batch_or_kill
    recipe.main(recipe.parse(command_line))


def test_a_signal_stops_and_saves_and_the_resumed_run_ends_bitwise_equal(
    recipe: ModuleType,
    sources: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "stopped"
    batch_of = recipe.batch_of
    counter = itertools.count(1)

    def batch_and_interrupt(*args: Any) -> Any:
        if next(counter) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return batch_of(*args)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "batch_of", batch_and_interrupt)
        with pytest.raises(SystemExit) as ended:
            recipe.main(recipe.parse(arguments(sources, folder)))
    assert ended.value.code == 128 + signal.SIGINT
    assert "stopped and saved at step 8; go on with: python" in capsys.readouterr().out
    recipe.main(recipe.parse(["--resume", str(folder)]))
    assert_ended_alike(folder, whole)


def test_a_resumed_run_keeps_its_text_its_steps_and_its_network(
    recipe: ModuleType, sources: Path, whole: Path, tmp_path: Path
) -> None:
    resume = ["--resume", str(whole)]
    with pytest.raises(ValueError, match=r"--width 32: --width was 16 when this run started"):
        recipe.parse([*resume, "--width", "32"])
    with pytest.raises(ValueError, match=r"--steps 9: the run in .* was started with 6"):
        recipe.main(recipe.parse([*resume, "--steps", "9"]))

    options = recipe.parse(resume)
    (tmp_path / "one.py").write_text("x = 1\n" * 50)
    record = tmp_path / "text.json"
    record.write_text(json.dumps({"sha256": "another"}))
    with recipe.Run.create(tmp_path / "run", {}) as run:
        (run.folder / "text.json").write_text(record.read_text())
        with pytest.raises(ValueError, match=r"the text is not the one that .* was started with"):
            recipe.keep_text_record(run, recipe.read_text(options))


# --- refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"taps": []}, r"--taps \[\]: expected depths from 1 up"),
        ({"taps": [0, 2]}, r"--taps \[0, 2\]: expected depths from 1 up"),
        ({"taps": [2, 1]}, r"--taps \[2, 1\]: expected depths from 1 up"),
        ({"width": 20}, "--width 20: expected an even multiple of --num-heads 4"),
        ({"precision": "float64"}, "--precision float64: expected auto, float32"),
        ({"steps": 0}, "--steps 0: expected at least 1"),
    ],
)
def test_options_out_of_range_are_refused(
    recipe: ModuleType, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        with_values(recipe.Options(), values)


def test_a_text_that_is_too_short_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("x = 1\n")
    options = with_values(recipe.Options(), {"text": tmp_path})
    with pytest.raises(ValueError, match=r"--text .*: its \.py files give .* expected 129 at"):
        recipe.read_text(options)


def test_a_folder_of_text_that_is_not_there_is_named(recipe: ModuleType, tmp_path: Path) -> None:
    options = with_values(recipe.Options(), {"text": tmp_path / "absent"})
    with pytest.raises(ValueError, match=r"--text .*absent: there is no such folder"):
        recipe.read_text(options)


def test_several_processes_are_refused(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="trains in one process, and a launcher started 2"):
        recipe.main(recipe.Options())


if __name__ == "__main__":
    kill_after(int(sys.argv[1]), sys.argv[2:])
