"""The timm recipe at a size of seconds: what it writes, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import elasticnet
import warm_python
from elasticnet.training.options import with_values
from loading import load_recipe

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "elastic_timm.py"
TINY_VIT = ["--model-options", "img_size=16 patch_size=8 embed_dim=24 depth=3 num_heads=2"]
SHORT = ["--steps", "6", "--batch-size", "8", "--eval-every", "4", "--save-every", "2"]
SHORT += ["--log-every", "1", "--no-tensorboard", "--recalibration-batches", "2"]
# for processes, of which one runs this file
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("elastic_timm")


@pytest.fixture(scope="module")
def done(recipe: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a tiny vision transformer on the digits."""
    folder = tmp_path_factory.mktemp("vit") / "run"
    run(recipe, *TINY_VIT, *SHORT, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes, whose images differ in colour, size and suffix."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number, name in enumerate(("green", "red")):
        (root / name / "inner").mkdir(parents=True)
        for index in range(8):
            pixels = random.integers(0, 80, (20 + index, 30 - index, 3), dtype=np.uint8)
            pixels[..., 1 - number] += 150
            suffix = "png" if index % 2 else "jpg"
            folder = root / name / "inner" if index > 5 else root / name
            Image.fromarray(pixels).save(folder / f"{index}.{suffix}")
    (root / "red" / "notes.txt").write_text("no image")
    return root


def run(recipe: ModuleType, *arguments: Any) -> None:
    recipe.main(recipe.parse([str(argument) for argument in arguments]))


def table_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "table.json").read_text())


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log without what no two runs have in common."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return lines


# --- what a run writes


def test_every_depth_is_tested_beside_cut_short_and_alone(done: Path) -> None:
    accuracy = table_of(done)["accuracy"]
    assert sorted(accuracy) == ["alone", "elastic", "ordinary"]
    for by_depth in accuracy.values():
        assert sorted(by_depth) == ["1", "2", "3"]
    assert accuracy["alone"]["3"] == accuracy["ordinary"]["3"]
    assert table_of(done)["cost"]["3"] == 100
    assert 20 < table_of(done)["cost"]["1"] < 60
    assert (done / "accuracy.png").stat().st_size > 0
    text = (done / "table.md").read_text()
    assert "| depth | cost | ordinary, cut short | elastic | each depth alone |" in text


def test_the_form_of_the_distillation_is_an_option_and_its_share_is_logged(
    recipe: ModuleType, tmp_path: Path
) -> None:
    form = ["--psd-weight", "1", "--psd-distance", "squared", "--psd-power", "2", "--log-psd-share"]
    run(recipe, *TINY_VIT, *SHORT, *form, "--no-alone", "--out", tmp_path / "run")
    for line in log_of(tmp_path / "run"):
        assert (line["psd_share"] > 0) == (line["phase"] == 2), "the elastic one is the second"


def test_an_ordinary_timm_checkpoint_of_every_depth_loads_without_this_library(
    recipe: ModuleType, done: Path
) -> None:
    models = json.loads((done / "timm" / "models.json").read_text())
    assert list(models) == [f"depth_{depth}.safetensors" for depth in (1, 2, 3)]
    program = """
import json, sys
sys.modules["elasticnet"] = None  # an import of it fails
import timm, torch
models = json.load(open("models.json"))
x = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
for name, each in models.items():
    model = timm.create_model(each["model"], checkpoint_path=name, **each["arguments"]).eval()
    print(len(model.blocks), model(x).flatten().tolist())
"""
    said = subprocess.run(
        [sys.executable, "-c", program],
        cwd=done / "timm",
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout.splitlines()

    options = recipe.parse([*TINY_VIT, *SHORT])
    images = recipe.load_images(options)

    def build() -> Any:
        return recipe.split_model(options, images).wrap()

    net = elasticnet.load(done / "elastic.safetensors", build=build)
    x = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    for depth, line in zip(net.taps, said, strict=True):
        assert line == f"{depth} {net(x, depth=depth).flatten().tolist()}"


def test_all_trainings_start_from_the_same_weights_and_see_the_same_images(
    recipe: ModuleType, done: Path
) -> None:
    lines = log_of(done)
    assert [line["step"] for line in lines] == list(range(1, 25))
    # the first step's loss at depth 3 is that of the ordinary model
    ordinary = lines[0]["per_depth"]["3"]
    elastic = lines[6]["per_depth"]["3"]
    assert elastic == pytest.approx(ordinary, rel=1e-5)
    alone = lines[12]["per_depth"]["1"]
    assert alone == pytest.approx(lines[6]["per_depth"]["1"], rel=1e-5)


def test_a_network_of_stages_has_adapters_and_statistics_for_each_depth(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "test_efficientnet", "--num-taps", "3", "--no-alone", *SHORT]
    run(recipe, *arguments, "--out", tmp_path / "run")

    accuracy = table_of(tmp_path / "run")["accuracy"]
    assert sorted(accuracy) == ["elastic", "ordinary"]
    assert len(accuracy["elastic"]) == 3
    state = elasticnet.checkpoint.read_header(tmp_path / "run" / "elastic.safetensors")["sha256"]
    parts = {name.split(".")[0] for name in state}
    assert {"adapters", "head_statistics"} <= parts
    said = capsys.readouterr().out
    assert "its tap has an adapter" in said
    models = json.loads((tmp_path / "run" / "timm" / "models.json").read_text())
    ((name, each),) = models.items()
    file = tmp_path / "run" / "timm" / name
    model: Any = timm.create_model(each["model"], checkpoint_path=str(file), **each["arguments"])
    assert model.bn2.num_batches_tracked == 2  # those of the recalibration


def test_a_folder_of_images_is_learned(recipe: ModuleType, photos: Path, tmp_path: Path) -> None:
    arguments = [*TINY_VIT, *SHORT, "--steps", "30", "--learning-rate", "3e-3", "--no-alone"]
    run(recipe, *arguments, "--data", photos, "--out", tmp_path / "run")
    accuracy = table_of(tmp_path / "run")["accuracy"]["elastic"]
    assert accuracy == {"1": 100.0, "2": 100.0, "3": 100.0}


# --- weights to start from


def test_weights_of_a_file_are_taken_as_timm_takes_pretrained_ones(
    recipe: ModuleType, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3}
    sizes["num_heads"] = 2
    trained = timm.create_model("vit_small_patch16_224", **sizes)  # of 1000 classes
    file = tmp_path / "trained.pth"
    torch.save(trained.state_dict(), file)

    options = recipe.parse([*TINY_VIT, "--weights", str(file)])
    model = recipe.build_model(options, recipe.load_images(options))

    state = trained.state_dict()
    assert torch.equal(
        model.state_dict()["blocks.1.attn.qkv.weight"], state["blocks.1.attn.qkv.weight"]
    )
    assert model.head.weight.shape == (10, 24)
    assert model.pos_embed.shape == (1, 1 + 4, 24)  # resized from 16 patches to 4


# --- stopping and going on


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(
    recipe: ModuleType, done: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [*TINY_VIT, *SHORT, "--out", str(folder)]
    for phase in ("1", "2", "3"):
        command = [sys.executable, str(RECIPE), *arguments]
        process = warm_python.Popen(command, env=ENVIRONMENT, stdout=warm_python.DEVNULL)
        wait_for(folder / "log.jsonl", f'"phase": {phase}', process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        arguments = ["--resume", str(folder)]

    run(recipe, *arguments)

    for name in ("elastic.safetensors", "table.md", "timm/depth_2.safetensors"):
        assert (folder / name).read_bytes() == (done / name).read_bytes(), name
    assert log_of(folder) == log_of(done)
    assert table_of(folder)["accuracy"] == table_of(done)["accuracy"]


def wait_for(file: Path, text: str, process: warm_python.Popen) -> None:
    """Return as soon as a file holds a text, or the process has ended."""
    while process.poll() is None:
        if file.exists() and text in file.read_text():
            return
        time.sleep(0.01)


def test_the_model_of_a_resumed_run_stays(recipe: ModuleType, done: Path) -> None:
    with pytest.raises(ValueError, match=r"--num-taps 2: --num-taps was 6 when this run started"):
        recipe.parse(["--resume", str(done), "--num-taps", "2"])
    with pytest.raises(ValueError, match=r"--steps 9: the run in .* was started with 6"):
        run(recipe, "--resume", done, "--steps", "9")


# --- images


def test_every_epoch_has_each_image_once(recipe: ModuleType) -> None:
    first = recipe.shuffled(range(5), 5, seed=3)
    second = recipe.shuffled(range(5, 10), 5, seed=3)
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second
    assert recipe.shuffled(range(3, 7), 5, seed=3) == [*first[3:], *second[:2]]


def test_the_same_share_of_every_class_is_tested_on(recipe: ModuleType) -> None:
    labels = np.array([0] * 8 + [1] * 16)
    training, tested = recipe.split_places(labels, 0.25, seed=0)
    assert sorted([*training, *tested]) == list(range(24))
    assert np.bincount(labels[tested]).tolist() == [2, 4]


def test_a_crop_depends_on_its_place_and_seed_alone(recipe: ModuleType, photos: Path) -> None:
    options = recipe.parse([*TINY_VIT, "--data", str(photos)])
    images = recipe.load_images(options)
    x, labels = images.training_batch(range(4, 8), seed=0)
    again, _ = images.training_batch(range(2, 8), seed=0)
    assert x.shape == (4, 3, 16, 16)
    assert torch.equal(x, again[2:])
    assert set(labels.tolist()) <= {0, 1}
    other, _ = images.training_batch(range(4, 8), seed=1)
    assert not torch.equal(x, other)


def test_train_and_val_are_taken_as_they_are(
    recipe: ModuleType, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "train").symlink_to(photos)
    (tmp_path / "val").symlink_to(photos)
    images = recipe.load_images(recipe.parse([*TINY_VIT, "--data", str(tmp_path)]))
    assert (len(images.files), images.num_test, images.num_classes) == (16, 16, 2)


# --- options and errors


def test_taps_are_spread_evenly(recipe: ModuleType) -> None:
    assert recipe.spread_taps(12, 6) == (2, 4, 6, 8, 10, 12)
    assert recipe.spread_taps(7, 3) == (2, 5, 7)
    assert recipe.spread_taps(3, 6) == (1, 2, 3)


def test_model_options_are_words_with_values(recipe: ModuleType) -> None:
    words = "img_size=(16,32) act_layer=gelu qkv_bias=False"
    options = with_values(recipe.Options(), {"model_options": words})
    assert recipe.model_arguments(options) == {
        "img_size": (16, 32),
        "act_layer": "gelu",
        "qkv_bias": False,
    }
    with pytest.raises(ValueError, match=r"--model-options .*: expected NAME=VALUE, got 'depth'"):
        recipe.model_arguments(with_values(recipe.Options(), {"model_options": "depth 3"}))


def test_what_cannot_be_trained_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--weights w\.pth and --pretrained: give one of them"):
        with_values(recipe.Options(), {"weights": Path("w.pth"), "pretrained": True})
    (tmp_path / "only").mkdir()
    with pytest.raises(ValueError, match=r"--data .*: expected a folder of images for each of two"):
        recipe.load_images(recipe.parse(["--data", str(tmp_path)]))
    with pytest.raises(ValueError, match=r"--model vitt: timm has no such model"):
        recipe.load_images(recipe.parse(["--data", str(tmp_path), "--model", "vitt"]))
    with pytest.raises(ValueError, match=r"--batch-size 0: expected at least 1"):
        with_values(recipe.Options(), {"batch_size": 0})


def test_paths_that_are_not_there_are_named_with_their_option(
    recipe: ModuleType, tmp_path: Path
) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(ValueError, match=rf"--data {absent}: there is no such folder"):
        recipe.load_images(recipe.parse([*TINY_VIT, "--data", str(absent)]))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=rf"--data {file}: expected a folder, and this is a file"):
        recipe.load_images(recipe.parse([*TINY_VIT, "--data", str(file)]))
    images = recipe.load_images(recipe.parse(TINY_VIT))
    with pytest.raises(ValueError, match=rf"--weights {absent}: there is no such file"):
        recipe.build_model(recipe.parse([*TINY_VIT, "--weights", str(absent)]), images)
    with pytest.raises(ValueError, match=rf"--weights {tmp_path}: expected a file, and this is a"):
        recipe.build_model(recipe.parse([*TINY_VIT, "--weights", str(tmp_path)]), images)


def test_weights_of_another_model_are_refused_with_their_file(
    recipe: ModuleType, tmp_path: Path
) -> None:
    images = recipe.load_images(recipe.parse(TINY_VIT))
    other = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(3, 2).state_dict(), other)
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    for file in (other, text):
        message = rf"--weights {file}: timm cannot load this file into vit_small_patch16_224: \S"
        with pytest.raises(ValueError, match=message):
            recipe.build_model(recipe.parse([*TINY_VIT, "--weights", str(file)]), images)


def test_a_misspelt_model_is_refused_with_similar_names(recipe: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"--model resnt18: .*no such model; similar: .*resnet18"):
        recipe.check_model_name("resnt18")
    with pytest.raises(ValueError, match=r"--model vit_smal: .*similar: vit_small_patch"):
        recipe.check_model_name("vit_smal")
    recipe.check_model_name("vit_small_patch16_224.augreg_in21k_ft_in1k")


def test_an_argument_that_the_model_does_not_take_is_named(recipe: ModuleType) -> None:
    network = recipe.Network(model_options="depth=2 no_such_size=3")
    options = recipe.Options(network=network)
    images = recipe.load_images(options)
    with pytest.raises(ValueError, match=r"--model-options .*no_such_size=3': .*no_such_size"):
        recipe.build_model(options, images)


def test_the_guide_shows_mean_and_spread_of_the_records() -> None:
    guide = (ROOT / "docs" / "guides" / "elastic_timm.md").read_text()
    tables: list[Any] = []
    for name in ("elastic-timm", "elastic-timm-seed1", "elastic-timm-seed2"):
        tables.append(json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())["table"])
    for depth, cost in tables[0]["cost"].items():
        cells = [depth, f"{cost:.0f} %"]
        for way in ("ordinary", "elastic", "alone"):
            accuracies = [table["accuracy"][way][depth] for table in tables]
            cells.append(f"{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}")
        gains: list[float] = []
        for table in tables:
            gains.append(table["accuracy"]["elastic"][depth] - table["accuracy"]["alone"][depth])
        cells.append(f"{statistics.mean(gains):+.1f} ± {statistics.stdev(gains):.1f}")
        assert f"| {' | '.join(cells)} |" in guide


def test_help_shows_every_option_in_its_group() -> None:
    said = warm_python.run(
        [sys.executable, str(RECIPE), "--help"],
        env=ENVIRONMENT,
        stdout=warm_python.PIPE,
        check=True,
        text=True,
    ).stdout
    for word in ("--model-options", "--pretrained", "--data", "--num-taps", "--psd-weight"):
        assert word in said
