"""The recipe's other tasks, at equal size, and growth from fewer blocks to more."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import elasticnet
from elasticnet.cli import main
from elasticnet.sr.data import load_pairs, scikit_image_photos
from elasticnet.sr.metrics import psnr_y
from elasticnet.training.processes import join_processes
from loading import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "asrn_div2k.py"
SMALL = [
    "--num-blocks",
    "2",
    "--channels",
    "16",
    "--patch-size",
    "24",
    "--batch-size",
    "8",
    "--warmup",
    "5",
]
SMALL += ["--steps", "60", "--eval-every", "30", "--save-every", "30"]
SMALL += ["--no-figures", "--no-costs"]  # most of the time of a run as small as this


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("asrn_div2k")


@pytest.mark.parametrize(
    ("task", "steps", "least_gain"),
    [
        ("denoise", 60, 3.0),
        pytest.param("deblur", 150, 0.1, marks=pytest.mark.slow),
        pytest.param("dehaze", 60, 2.0, marks=pytest.mark.slow),
    ],
)
def test_a_task_at_equal_size_learns_at_every_depth(
    recipe, tmp_path, capsys, task, steps, least_gain
):
    given = ["--preset", "demo", *SMALL, "--steps", str(steps), "--task", task]
    recipe.main(recipe.parse([*given, "--out", str(tmp_path / "run")]))
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    assert "bicubic" not in table
    assert [row["psnr"] > table["input"]["psnr"] + least_gain for row in table["rows"]] == [
        True,
        True,
    ]
    assert "gain over input (dB)" in capsys.readouterr().out
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert (options["task"], options["scale"]) == (task, 1)

    photos = tmp_path / "photos"
    photos.mkdir()
    hr = scikit_image_photos()["coffee"][:90, :120]
    Image.fromarray(hr).save(photos / "coffee.png")
    sigmas: dict[str, Any] = {
        "denoise": {"noise_sigma": 25.0},
        "deblur": {"blur_sigma": 1.6},
        "dehaze": {},
    }[task]
    degradation = options["degradation"]
    pairs = load_pairs(photos, 1, degradation=degradation, progress=False, **sigmas)
    arguments = ["--data", str(photos), "--degradation", degradation]
    for name, value in sigmas.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    arguments += ["--no-cost", "--out", str(tmp_path / "scores")]
    assert main(["benchmark", str(tmp_path / "run" / "best.safetensors"), *arguments]) == 0
    rows = json.loads((tmp_path / "scores" / "table.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["input", "best", "best"]
    assert rows[0]["psnr"] == pytest.approx(psnr_y(pairs.lr(0), hr, 1), abs=1e-9)
    assert all(row["psnr"] > rows[0]["psnr"] for row in rows[1:])


def write_pairs(folder: Path, clear: str, degraded: str) -> None:
    """Photographs in one folder, and in another one the same with their colours exchanged."""
    for name in ("astronaut", "chelsea", "coffee"):
        photo = scikit_image_photos()[name][:60, :80]
        for kind, image in ((clear, photo), (degraded, photo[..., ::-1])):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image)).save(folder / kind / f"{name}.png")


@pytest.mark.parametrize(
    ("clear", "degraded", "options"),
    [
        ("GT", "LQ", ["--data", "."]),
        ("sharp", "blurred", ["--data", "sharp", "--data-lr", "blurred"]),
    ],
)
def test_any_pairs_of_equal_size_are_restored(
    recipe, tmp_path, monkeypatch, clear, degraded, options
):
    """The degradation is one that nothing here could have made: red and blue are exchanged."""
    write_pairs(tmp_path, clear, degraded)
    monkeypatch.chdir(tmp_path)
    given = ["--preset", "demo", *SMALL, "--task", "restore", *options, "--num-valid", "1"]
    recipe.main(recipe.parse([*given, "--no-cache", "--out", "run"]))
    table = json.loads(Path("run", "table.json").read_text())
    assert all(row["psnr"] > table["input"]["psnr"] + 1.0 for row in table["rows"])
    stored = json.loads(Path("run", "options.json").read_text())
    assert (stored["task"], stored["scale"], stored["degradation"]) == ("restore", 1, "BI")

    scored = ["benchmark", "run/best.safetensors", *options, "--no-cost", "--out", "scores"]
    assert main(scored) == 0
    rows = json.loads(Path("scores", "table.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["input", "best", "best"]
    assert all(row["psnr"] > rows[0]["psnr"] for row in rows[1:])


@pytest.mark.parametrize("valid", [False, True])
def test_restoring_needs_degraded_images(recipe, tmp_path, valid):
    write_pairs(tmp_path / "pairs", "GT", "LQ")
    write_pairs(tmp_path / "alone", "GT", "other")
    data, option = ("pairs", "--valid") if valid else ("alone", "--data")
    given = ["--task", "restore", "--data", str(tmp_path / data), "--num-valid", "1"]
    if valid:
        given += ["--valid", str(tmp_path / "alone")]
    options = recipe.parse([*SMALL, *given, "--no-cache", "--out", str(tmp_path / "run")])
    with pytest.raises(ValueError, match="no degraded images were found beside those of") as raised:
        recipe.main(options)
    assert f"beside those of {option}; give" in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "1"], "--scale 1: expected 2, 3 or 4, or a --task that keeps"),
        (
            ["--task", "denoise", "--scale", "2"],
            "--scale 2: --task denoise has scale 1; leave it out",
        ),
        (
            ["--task", "deblur", "--degradation", "DN"],
            "--degradation DN: --task deblur has degradation BD",
        ),
        (
            ["--task", "deblur", "--noise-sigma", "3"],
            "noise_sigma 3.0: degradation 'BD' has no such setting",
        ),
        (
            ["--task", "dehaze", "--noise-sigma", "3"],
            "noise_sigma 3.0: degradation 'HAZE' has no such setting",
        ),
        (
            ["--task", "restore", "--degradation", "DN"],
            "--degradation DN: --task restore has degradation BI",
        ),
        (["--noise-sigma", "3"], "noise_sigma 3.0: degradation 'BI' has no such setting"),
        (
            ["--task", "denoise", "--noise-sigma", "-3"],
            "noise_sigma -3.0: expected a positive finite number",
        ),
        (
            ["--degradation", "BD", "--uncompressed-share", "0.5"],
            "--uncompressed-share 0.5: --degradation BD compresses no patch",
        ),
        (
            ["--degradation", "photo", "--uncompressed-share", "1.5"],
            "--uncompressed-share 1.5: expected a number from 0 to 1",
        ),
        (
            ["--highest-quality", "50"],
            "--highest-quality 50: --degradation BI compresses no patch",
        ),
        (
            ["--degradation", "photo", "--lowest-quality", "0"],
            "JPEG quality 0: expected a number from 1 to 100",
        ),
        (
            ["--degradation", "photo", "--highest-quality", "20"],
            "--lowest-quality 30: expected at most the --highest-quality 20",
        ),
    ],
)
def test_options_that_do_not_fit_the_task_are_refused(recipe, tmp_path, capsys, arguments, message):
    with pytest.raises((ValueError, SystemExit)) as raised:
        recipe.main(
            recipe.parse(["--preset", "demo", *SMALL, *arguments, "--out", str(tmp_path / "run")])
        )
    said = " ".join(f"{raised.value} {capsys.readouterr().err}".replace("│", " ").split())
    assert message in said
    assert not (tmp_path / "run").exists()


def test_a_grown_network_starts_as_the_shallow_one_and_ends_better(recipe, tmp_path):
    common = ["--preset", "demo", *SMALL, "--scale", "2"]
    recipe.main(recipe.parse([*common, "--num-blocks", "1", "--out", str(tmp_path / "shallow")]))
    file = tmp_path / "shallow" / "best.safetensors"
    shallow = elasticnet.load(file).to(memory_format=torch.channels_last)

    options = recipe.parse([*common, "--num-blocks", "3", "--init", str(file)])
    with join_processes("cpu") as processes:
        grown = recipe.build(options, processes).eval()
    x = torch.rand(2, 3, 17, 13)
    with torch.inference_mode():
        expected = shallow(x)
        assert all(torch.equal(grown(x, depth=depth), expected) for depth in (1, 2, 3))

    recipe.main(
        recipe.parse(
            [*common, "--num-blocks", "3", "--init", str(file), "--out", str(tmp_path / "grown")]
        )
    )
    before = json.loads((tmp_path / "shallow" / "table.json").read_text())["rows"][0]["psnr"]
    after = [
        row["psnr"] for row in json.loads((tmp_path / "grown" / "table.json").read_text())["rows"]
    ]
    assert after[2] > before
    assert after[0] > before - 0.1
    first = json.loads((tmp_path / "grown" / "log.jsonl").read_text().splitlines()[0])
    assert (first["step"], len(first["psnr"])) == (0, 3)
    assert list(first["psnr"].values()) == pytest.approx([before] * 3, abs=0.001)
