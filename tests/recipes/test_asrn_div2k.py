"""The recipe end to end, at a size of seconds: what it writes, how it stops, resumes and fails."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import elasticnet
import warm_python
from elasticnet.card.machine import machine_key
from elasticnet.checkpoint import read_header
from elasticnet.training import precision
from elasticnet.training.options import as_json, flat_values, with_values
from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run
from small_photos import small_photos

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "asrn_div2k.py"
TINY = ["--num-blocks", "2", "--channels", "8", "--patch-size", "8", "--batch-size", "2"]
TINY += ["--steps", "6", "--eval-every", "3", "--log-every", "2"]
TINY += ["--no-figures", "--no-costs"]  # most of the time of a run as small as this
REPORT = ["--figures", "--costs"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of small HR images."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    return small_photos(folder, num_photos=5, height=64, width=80)


def run(recipe: ModuleType, *arguments: object) -> None:
    recipe.main(recipe.parse([*TINY, *map(str, arguments)]))


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_without_data_it_says_so_and_trains_on_the_carried_photographs(
    recipe, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # no datasets/ here
    run(recipe, "--out", "run", *REPORT)
    said = capsys.readouterr().out
    assert "DIV2K was not found" in said
    assert "--download" in said
    assert "--data DIR" in said
    options = json.loads(Path("run/options.json").read_text())
    assert options["preset"] == "demo"

    names = {path.name for path in Path("run").iterdir()}
    files = {
        "options.json",
        "log.jsonl",
        "last.safetensors",
        "best.safetensors",
        "table.md",
        "table.json",
    }
    assert files | {"curve.png", "crops.png", "checkpoints"} <= names
    assert [line["step"] for line in log_of(Path("run"))] == [2, 3, 4, 6]
    table = json.loads(Path("run/table.json").read_text())
    assert table["images"] == ["chelsea", "coffee", "rocket"]
    assert [row["depth"] for row in table["rows"]] == [1, 2]
    assert table["rows"][0]["macs"] < table["rows"][1]["macs"]
    for row in table["rows"]:
        assert f"| {row['depth']} | {row['parameters']:,} |" in said
        assert row["psnr"] > 25
    assert Image.open("run/crops.png").width > 500
    best = max(log_of(Path("run")), key=lambda line: sum(line.get("psnr", {"": 0}).values()))
    assert read_header("run/best.safetensors")["notes"]["step"] == best["step"]
    assert best["machine"] == machine_key(dtype=getattr(torch, options["precision"]))
    assert elasticnet.load("run/last.safetensors", depth=1)(torch.rand(1, 3, 5, 4)).shape == (
        1,
        3,
        10,
        8,
    )


def test_paper_is_the_default_with_data_and_every_field_is_an_option(recipe, photos):
    options = recipe.parse(["--data", str(photos)])
    published = {
        "preset": "paper",
        "loss": "mse",
        "batch_size": 16,
        "learning_rate": 1e-4,
        "steps": 1_000_000,
        "halve_every": 200_000,
        "psd_weight": 0.1,
        "augment": "flips",
        "patch_size": 48,
        "image_scale": 255,
    }
    assert flat_values(options).items() >= published.items()

    demo = recipe.parse(["--data", str(photos), "--preset", "demo"])
    changed = recipe.parse(
        ["--data", str(photos), "--preset", "demo", "--loss", "mse", "--patch-size", "20"]
    )
    assert demo != options
    assert changed == with_values(demo, {"loss": "mse", "patch_size": 20})


def test_auto_precision_is_resolved_said_stored_and_kept(
    recipe, photos, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda device: True)
    data = ["--data", photos, "--num-valid", 1, "--out", tmp_path / "run"]
    run(recipe, "--preset", "best", *data)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line == "preset best: 6 steps with a batch of 2, in bfloat16"
    assert Run.resume(tmp_path / "run", writer=False).options["precision"] == "bfloat16"

    # on a machine where auto would mean something else
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda device: False)
    run(recipe, "--resume", tmp_path / "run", "--steps", 7)
    said = capsys.readouterr().out
    assert "7 steps with a batch of 2, in bfloat16" in said
    assert "--precision was" not in said


def test_demo_and_best_have_auto_precision_and_paper_has_not(recipe):
    for preset in ("demo", "best"):
        assert recipe.parse(["--preset", preset]).compute.precision == "auto"
    assert recipe.parse(["--preset", "paper"]).compute.precision != "auto"


def test_data_without_a_preset_says_that_it_means_paper(recipe, photos, capsys, tmp_path):
    run(recipe, "--data", photos, "--num-valid", 1, "--out", tmp_path / "run")
    first_line = capsys.readouterr().out.splitlines()[0]
    assert "preset paper (which --data without --preset means): 6 steps" in first_line


def test_a_track_given_as_degradation_is_told_how_to_be_written(recipe):
    with pytest.raises(ValueError, match=r"^--degradation mild: .*: write --track mild$"):
        recipe.parse(["--degradation", "mild"])


def test_help_shows_each_presets_values(recipe, capsys):
    with pytest.raises(SystemExit):
        recipe.parse(["--help"])
    page = capsys.readouterr().out
    shown = [line.split() for line in page.splitlines()]
    assert ["preset:", "demo", "paper", "best"] in shown
    assert ["--steps", "600", "1000000", "60000"] in shown
    assert ["--loss", "l1", "mse", "l1"] in shown
    in_one_line = " ".join(page.replace("│", " ").split())
    assert "The paper prints no total: the million of the preset paper is our assumption." in (
        in_one_line
    )


def test_the_output_distillation_is_scaled_as_the_l1_loss_that_it_is(recipe, photos):
    words = [*TINY, "--data", str(photos), "--output-weight", "0.5", "--image-scale", "255"]
    for loss in ("l1", "mse"):
        options = recipe.parse([*words, "--loss", loss, "--output-loss", "l1"])
        net = recipe.build(options, Processes())
        of_outputs = recipe.make_objective(options, net).distillations[1]
        assert of_outputs.weight == 0.5 * 255


def test_the_learning_rate_follows_its_schedule(recipe, photos, tmp_path):
    common = ["--data", photos, "--num-valid", 1, "--log-every", 1]
    run(recipe, *common, "--halve-every", 2, "--out", tmp_path / "halved")
    assert [line["learning_rate"] / 1e-4 for line in log_of(tmp_path / "halved")] == [
        1,
        1,
        0.5,
        0.5,
        0.25,
        0.25,
    ]
    run(recipe, *common, "--schedule", "cosine", "--warmup", 2, "--out", tmp_path / "cosine")
    rates = [line["learning_rate"] / 1e-4 for line in log_of(tmp_path / "cosine")]
    assert rates == pytest.approx(
        [0.5, 1, 1, *(0.5 + 0.5 * math.cos(math.pi * part / 4) for part in (1, 2, 3))]
    )


@pytest.mark.parametrize(
    ("weights", "first", "rise"),
    [(("rising", "--rising-from", 0.5), 1 / 2, 1 / 12), ((0.75,), 3 / 4, 0)],
)
def test_weights_of_the_deepest_exit_rise_to_all_or_stay_a_number(
    recipe, photos, tmp_path, weights, first, rise
):
    folder = tmp_path / "run"
    given = [
        "--data",
        photos,
        "--num-valid",
        1,
        "--variant",
        "dsl",
        "--image-scale",
        1,
        "--tap-weights",
        *weights,
    ]
    run(recipe, *given, "--log-every", 1, "--out", folder)
    assert recipe.parse(["--resume", str(folder)]).loss.tap_weights == weights[0]
    lines = log_of(folder)
    assert len(lines) == 6
    for step, line in enumerate(lines):
        share = first + step * rise  # of the deepest of two, in six steps
        assert line["routine"] == pytest.approx(share * line["per_depth"]["2"], rel=1e-5)
        assert line["deep_supervision"] == pytest.approx(
            (1 - share) * line["per_depth"]["1"], rel=1e-5
        )


def test_every_tap_has_its_own_weight_and_a_resumed_run_the_same(recipe, photos, tmp_path):
    folder = tmp_path / "run"
    given = ["--data", photos, "--num-valid", 1, "--variant", "dsl", "--image-scale", 1]
    run(recipe, *given, "--tap-weights", 0.7, 0.1, "--log-every", 1, "--out", folder)
    assert recipe.parse(["--resume", str(folder)]).loss.tap_weights == [0.7, 0.1]
    for line in log_of(folder):
        assert line["deep_supervision"] == pytest.approx(0.7 * line["per_depth"]["1"], rel=1e-5)
        assert line["routine"] == pytest.approx(0.1 * line["per_depth"]["2"], rel=1e-5)


def test_a_used_run_folder_is_refused(recipe, photos, tmp_path):
    out = tmp_path / "run"
    run(recipe, "--data", photos, "--num-valid", 1, "--out", out)
    before = (out / "last.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"run is not empty .*--resume"):
        run(recipe, "--data", photos, "--num-valid", 1, "--out", out)
    assert (out / "last.safetensors").read_bytes() == before


def test_ctrl_c_saves_and_the_resumed_run_ends_bitwise_equal(recipe, photos, tmp_path):
    arguments = [
        "--data",
        photos,
        "--num-valid",
        "1",
        "--steps",
        "200",
        "--eval-every",
        "75",
        "--log-every",
        "7",
    ]
    run(recipe, *arguments, "--out", tmp_path / "whole")

    command = [sys.executable, RECIPE, *TINY, *arguments, "--out", tmp_path / "cut"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = warm_python.Popen(
        list(map(str, command)),
        env=environment,
        stdout=warm_python.PIPE,
        stderr=warm_python.STDOUT,
        text=True,
    )
    log = tmp_path / "cut" / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, said
    assert f"--resume {tmp_path / 'cut'}" in said
    stopped = log_of(tmp_path / "cut")[-1]["step"]
    assert stopped < 200

    run(recipe, *arguments, "--resume", tmp_path / "cut")
    assert (tmp_path / "cut/last.safetensors").read_bytes() == (
        tmp_path / "whole/last.safetensors"
    ).read_bytes()
    steps = [line["step"] for line in log_of(tmp_path / "cut")]
    assert steps == sorted({*steps})
    assert {*steps} == {line["step"] for line in log_of(tmp_path / "whole")} | {stopped}


def test_a_stop_at_a_step_where_nothing_is_due_logs_and_saves_it(
    recipe, photos, tmp_path, monkeypatch, capsys
):
    original = recipe.learning_rate_at

    def interrupted_in_second_step(step, optimiser):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return original(step, optimiser)

    monkeypatch.setattr(recipe, "learning_rate_at", interrupted_in_second_step)
    arguments = ["--data", photos, "--num-valid", 1, "--eval-every", 6, "--log-every", 6]
    with pytest.raises(SystemExit):
        run(recipe, *arguments, "--out", tmp_path / "run")
    assert [line["step"] for line in log_of(tmp_path / "run")] == [2]

    run(recipe, *arguments, "--resume", tmp_path / "run")
    assert f"resumed {tmp_path / 'run'} at step 2" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    recipe, photos, tmp_path
):
    out = tmp_path / "run"
    run(recipe, "--data", photos, "--num-valid", 1, "--steps", 3, "--out", out)
    before = {
        path: path.read_bytes() for path in [out / "last.safetensors", *out.glob("checkpoints/*")]
    }
    with pytest.raises(FloatingPointError, match=r"NaN or infinite at step [56];.*last good state"):
        run(recipe, "--resume", out, "--steps", 9, "--eval-every", 9, "--learning-rate", 1e30)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_bad_training_images_are_named_and_left_out(recipe, photos, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "corrupt.png").write_bytes((photos / "brick.png").read_bytes()[:200])
    Image.fromarray(np.zeros((9, 40, 3), np.uint8)).save(folder / "thin.png")
    with pytest.warns(UserWarning, match=r"(?s)left out 2 of 7.*corrupt.*thin"):
        run(recipe, "--data", folder, "--num-valid", 1, "--out", tmp_path / "run")


def test_an_error_when_no_training_image_is_left(recipe, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"(?s)none of the 1 images.*broken"):
        run(recipe, "--data", tmp_path / "bad", "--out", tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["eval-every", "log-every", "halve-every", "steps", "batch-size", "patch-size", "keep"]
)
def test_counts_start_at_one(recipe, name):
    with pytest.raises(ValueError, match=f"--{name} 0: expected at least 1"):
        with_values(recipe.Options(), {name.replace("-", "_"): 0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ema", 2.0),
        ("clip_norm", -1.0),
        ("clip_value", 0.0),
        ("accumulate", 3),
        ("rising_from", 1.5),
        ("tap_weights", -0.1),
    ],
)
def test_options_out_of_range_are_refused_before_a_run_folder_is_made(recipe, name, value):
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')} {value}"):
        with_values(recipe.Options(), {name: value})


def test_other_images_at_resume_are_an_error_unless_it_is_said(recipe, photos, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(photos, folder)
    out = tmp_path / "run"
    run(recipe, "--data", folder, "--num-valid", 1, "--steps", 3, "--out", out)
    names = sorted(path.name for path in folder.iterdir())
    shutil.copy(folder / names[-1], folder / "zebra.png")
    changes = r"training: 1 more \(zebra\)"
    with pytest.raises(ValueError, match=rf"not those that .* was started with: {changes}"):
        run(recipe, "--resume", out)
    run(recipe, "--resume", out, "--changed-images")
    assert "note: other images from now on: training: 1 more (zebra)" in capsys.readouterr().out
    run(recipe, "--resume", out, "--steps", 7)  # these are now its images


def test_a_resumed_run_keeps_options_that_an_earlier_resume_changed(
    recipe, photos, tmp_path, capsys
):
    out = tmp_path / "run"
    run(recipe, "--data", photos, "--num-valid", 1, "--steps", 3, "--out", out)
    run(recipe, "--resume", out, "--steps", 6, "--learning-rate", 1e-3)
    capsys.readouterr()
    recipe.main(recipe.parse(["--resume", str(out)]))
    assert "note: " not in capsys.readouterr().out
    assert recipe.parse(["--resume", str(out)]).optimiser.learning_rate == 1e-3


def test_a_resumed_run_does_not_change_its_network(recipe, photos, tmp_path):
    out = tmp_path / "run"
    run(recipe, "--data", photos, "--num-valid", 1, "--steps", 3, "--out", out)
    with pytest.raises(ValueError, match="--channels 16: --channels was 8 when this run started"):
        run(recipe, "--resume", out, "--channels", 16)


def test_a_run_folder_is_gone_on_with_from_another_place(recipe, photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    run(recipe, "--data", "images", "--num-valid", 1, "--steps", 3, "--out", "run")
    shutil.copytree("run", "elsewhere/copy")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(recipe, "--resume", "copy", "--steps", 6)
    assert log_of(Path("copy"))[-1]["step"] == 6


def test_the_best_network_is_not_replaced_by_a_worse_one_after_a_crash(recipe, photos, tmp_path):
    """The machine went down between best.safetensors and the state of the same step."""
    out = tmp_path / "run"
    run(recipe, "--data", photos, "--num-valid", 1, "--out", out)
    best = out / "best.safetensors"
    elasticnet.save(elasticnet.load(best), best, {"step": 6, "psnr": {1: 90.0, 2: 91.0}})
    later = max(out.glob("checkpoints/*"))
    later.unlink()
    before = best.read_bytes()
    run(recipe, "--resume", out)
    assert best.read_bytes() == before


def test_a_missing_best_network_is_said_and_written_anew(recipe, photos, tmp_path, capsys):
    out = tmp_path / "run"
    run(recipe, "--data", photos, "--num-valid", 1, "--steps", 3, "--out", out)
    (out / "best.safetensors").unlink()
    run(recipe, "--resume", out, "--learning-rate", 0.5)  # the networks to come are worse
    assert "note: the best network so far, of " in capsys.readouterr().out
    assert read_header(out / "best.safetensors")["notes"]["step"] == 6


def test_a_run_of_other_options_is_not_resumed(recipe, tmp_path):
    (tmp_path / "options.json").write_text('{"preset": "demo", "nonsense": 1}')
    with pytest.raises(ValueError, match=r"this version of the recipe does not know: nonsense;"):
        recipe.parse(["--resume", str(tmp_path)])


def test_a_run_of_an_old_version_is_resumed(recipe, tmp_path, capsys):
    """tests/training/old_run was written before options had groups, and killed after step 3."""
    folder = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "training" / "old_run", folder)
    stored = json.loads((folder / "options.json").read_text())
    before = log_of(folder)

    options = recipe.parse(["--resume", str(folder)])
    # options that came later, at their neutral values
    newer = {
        "data_lr": None,
        "held_out": None,
        "published_split": False,
        "licences": "all",
        "uncompressed_share": None,
        "lowest_quality": None,
        "highest_quality": None,
        "freeze": None,
        "track": None,
        "cache": True,
        "cache_dir": None,
        "figures": True,
        "costs": True,
        "psd_distance": "norm",
        "psd_power": 1.0,
        "psd_teacher": "next",
        "psd_warmup": 0.0,
        "log_psd_share": False,
        "curriculum": "all",
        "curriculum_until": 0.5,
        "sandwich_taps": 1,
        "tap_gradients": "sum",
        "output_teacher": "deepest",
        "output_loss": "l1",
        "tap_fusion": False,
        "mean_last": 0,
        "late_patch_size": None,
        "late_batch_size": None,
        "late_from": 2 / 3,
        "block": "mab",
        "fusion": True,
        "residual_links": True,
        "shuffle": True,
        "residual": True,
        "checkpoint_blocks": False,
        "cuda_graph": "off",
    }
    assert as_json(options) == {**stored, **newer}
    recipe.main(options)

    said = capsys.readouterr().out
    assert f"resumed {folder} at step 3" in said
    assert "note: " not in said, "no option has changed"
    lines = log_of(folder)
    assert lines[: len(before)] == before
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[5]) == set(lines[2])
    assert read_header(folder / "last.safetensors")["notes"]["step"] == 6


def test_a_run_from_before_an_option_existed_goes_on_without_it(recipe, photos, tmp_path, capsys):
    folder = tmp_path / "run"
    run(recipe, "--data", photos, "--num-valid", 1, "--steps", 3, "--out", folder)
    stored = json.loads((folder / "options.json").read_text())
    for name in ("tap_affine", "output_weight", "ema"):
        del stored[name]
    (folder / "options.json").write_text(json.dumps(stored))
    capsys.readouterr()
    recipe.main(recipe.parse(["--resume", str(folder), "--steps", "6"]))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == ["note: --steps was 3 and is 6 now"]
    assert log_of(folder)[-1]["step"] == 6


def test_a_start_that_fails_leaves_no_run_folder(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        run(recipe, "--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_variants_differ_in_taps_and_terms(recipe, photos, tmp_path):
    for variant in ("ss", "dsl", "full"):
        run(
            recipe,
            "--data",
            photos,
            "--num-valid",
            1,
            "--variant",
            variant,
            "--out",
            tmp_path / variant,
        )
        line = log_of(tmp_path / variant)[-1]
        assert list(line["per_depth"]) == (["2"] if variant == "ss" else ["1", "2"])
        assert (line["deep_supervision"] > 0) == (variant != "ss")
        assert (line["distillation"] > 0) == (variant == "full")


def test_help_and_errors_on_the_command_line(photos, tmp_path):
    def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return warm_python.run(
            [sys.executable, str(RECIPE), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    shown = command("--help")
    assert shown.returncode == 0
    for word in (
        "--preset",
        "--psd-weight",
        "--download",
        "--resume",
        "assumption",
        "optimiser options",
    ):
        assert word in shown.stdout
    missing = command("--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert missing.returncode == 1
    assert missing.stderr.strip().startswith("error: ")
    assert "nowhere" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert command("--patchsize", "9").returncode == 2


def test_warm_starts_from_another_scale_and_another_depth(recipe, photos, tmp_path, capsys):
    common = ["--data", photos, "--num-valid", 1]
    run(recipe, *common, "--scale", 4, "--out", tmp_path / "x4")
    source = tmp_path / "x4" / "best.safetensors"
    capsys.readouterr()
    run(
        recipe,
        *common,
        "--scale",
        2,
        "--init",
        source,
        "--learning-rate",
        1e-12,
        "--out",
        tmp_path / "x2",
    )
    assert (
        "stem and 2 of 2 blocks taken; the head is made anew (scale 4 there, 2 here)"
        in capsys.readouterr().out
    )
    source_net, net = elasticnet.load(source), elasticnet.load(tmp_path / "x2" / "last.safetensors")
    name = "blocks.1.expand.weight"
    assert torch.allclose(net.state_dict()[name], source_net.state_dict()[name], atol=1e-9)
    run(
        recipe,
        *common,
        "--scale",
        4,
        "--num-blocks",
        3,
        "--init",
        source,
        "--steps",
        1,
        "--out",
        tmp_path / "deeper",
    )
    assert (
        "2 of 2 blocks taken; 1 new blocks start as identities; the head taken"
        in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match=r"stem differs: 1\.bias is \(8,\) there, \(16,\) here"):
        run(
            recipe,
            *common,
            "--scale",
            4,
            "--channels",
            16,
            "--init",
            source,
            "--out",
            tmp_path / "wider",
        )
    assert not (tmp_path / "wider").exists()


def test_the_moving_average_is_what_is_shipped(recipe, photos, tmp_path):
    common = ["--data", photos, "--num-valid", 1, "--learning-rate", 1e-2]
    run(recipe, *common, "--ema", 0.9, "--out", tmp_path / "averaged")
    run(recipe, *common, "--out", tmp_path / "plain")
    files = (tmp_path / run_name / "last.safetensors" for run_name in ("averaged", "plain"))
    averaged, plain = (elasticnet.load(file).state_dict()["head.reduce.weight"] for file in files)
    assert not torch.equal(averaged, plain)
    with Run.resume(tmp_path / "averaged", writer=False) as stored:
        latest = stored.load_latest()
    assert latest is not None
    assert torch.equal(latest[1]["training"]["ema"]["head.reduce.weight"], averaged)
    assert torch.equal(latest[1]["training"]["net"]["head.reduce.weight"], plain)


def test_tensorboard_shows_losses_scores_and_crops_of_every_depth(recipe, photos, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(recipe, "--data", photos, "--num-valid", 1, "--out", tmp_path / "run")
    events = accumulators.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"total", "distillation", "per_depth/1", "psnr/2", "learning_rate"} <= {
        *events.Tags()["scalars"]
    }
    assert [event.step for event in events.Scalars("psnr/1")] == [3, 6]
    assert {tag.rpartition("/")[2] for tag in events.Tags()["images"]} == {
        "HR",
        "depth 1",
        "depth 2",
    }


# --- validation images that cannot be scored


def test_validation_images_that_cannot_be_scored_are_named_and_spoil_nothing(
    recipe, photos, tmp_path, capsys
):
    valid = tmp_path / "valid"
    shutil.copytree(photos, valid)
    Image.new("RGB", (64, 64)).save(valid / "black.png")
    Image.new("RGB", (10, 10), "red").save(valid / "tiny.png")
    out = tmp_path / "out"
    run(recipe, "--data", photos, "--valid", valid, "--out", out, *REPORT)
    said = capsys.readouterr().out
    assert "validation image left out: black: it has one colour" in said
    assert "validation image left out: tiny: its LR image of 5x5 pixels is smaller than 8" in said
    plain = tmp_path / "plain"
    run(recipe, "--data", photos, "--valid", photos, "--out", plain)
    assert [line.get("psnr") for line in log_of(out)] == [
        line.get("psnr") for line in log_of(plain)
    ]
    assert (out / "curve.png").exists()


def test_a_validation_set_of_small_images_alone_is_refused_before_the_first_step(
    recipe, photos, tmp_path
):
    (tmp_path / "valid").mkdir()
    Image.new("RGB", (10, 10), "red").save(tmp_path / "valid" / "tiny.png")
    with pytest.raises(ValueError, match=r"none of the 1 images can be scored:\n  tiny: its LR"):
        run(recipe, "--data", photos, "--valid", tmp_path / "valid", "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "log.jsonl").exists()


def test_only_a_better_network_takes_the_place_of_the_best(recipe, tmp_path):
    net = elasticnet.sr.asrn(2, 1, 8)
    best = recipe.Best(tmp_path / "best.safetensors")
    kept: list[tuple[float, int]] = []

    for step, psnr in enumerate([20.0, 19.0, 20.0, 21.0]):
        best.keep_if_better(net, step, {1: psnr})
        kept.append((best.psnr, read_header(best.file)["notes"]["step"]))

    assert kept == [(20.0, 0), (20.0, 0), (20.0, 0), (21.0, 3)]


def test_a_best_score_that_is_infinite_counts_as_none(recipe, tmp_path):
    file = tmp_path / "best.safetensors"
    elasticnet.save(elasticnet.sr.asrn(2, 1, 8), file, {"step": 1, "psnr": {1: math.inf}})
    assert recipe.kept_psnr(file, math.inf, processes=None) == recipe.NO_BEST_PSNR


@pytest.mark.parametrize(("device", "mode"), [("cpu", None), ("cuda", "reduce-overhead")])
def test_only_a_run_on_cuda_is_compiled_into_a_graph(recipe, photos, monkeypatch, device, mode):
    modes: list[str | None] = []

    def record_mode(objective, mode):
        modes.append(mode)
        return objective

    monkeypatch.setattr(torch, "compile", record_mode)
    options = recipe.parse(["--data", str(photos), "--compile"])
    net = elasticnet.sr.asrn(2, 1, 8)
    objective = recipe.make_objective(options, net)

    recipe.make_training_step(options, net, objective, Processes(device=torch.device(device)))

    assert modes == [mode]


# --- LR images from files


def test_lr_images_that_are_given_are_trained_on_and_said(recipe, photos, tmp_path, capsys):
    low = tmp_path / "low"
    low.mkdir()
    for path in photos.iterdir():
        Image.open(path).resize((40, 32), Image.Resampling.BOX).save(low / path.name)
    size = ["--data", photos, "--num-valid", 2]
    run(recipe, *size, "--data-lr", low, "--out", tmp_path / "given")
    assert f"LR: from files ({os.path.relpath(low, photos)})" in capsys.readouterr().out
    run(recipe, *size, "--out", tmp_path / "made")
    assert "LR: made (BI)" in capsys.readouterr().out
    given, made = (log_of(tmp_path / name)[-1]["psnr"] for name in ("given", "made"))
    assert given != made
