"""The options of the recipe that change its losses: what they do, and that they change no other."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from elasticnet import Distillation, ElasticObjective
from elasticnet.checkpoint import read_header
from elasticnet.distillation_losses import cosine_distance, squared_unit_distance, unit_distance
from elasticnet.training.processes import Processes
from elasticnet.training.recent_weights import RecentWeights
from elasticnet.training.run_folder import Run
from elasticnet.training.tap_gradients import balanced, projected
from tiny_training import trained_log

TINY = ["--num-blocks", "3", "--channels", "8", "--patch-size", "8", "--batch-size", "2"]
TINY += ["--steps", "4", "--eval-every", "4", "--log-every", "2", "--num-valid", "1"]
TINY += ["--preset", "demo", "--no-tensorboard", "--precision", "float32", "--device", "cpu"]
TINY += ["--no-figures", "--no-costs"]  # most of the time of a run as small as this


def train(recipe: ModuleType, photos: Path, folder: Path, *options: object) -> list[dict[str, Any]]:
    """Run the recipe and return the lines of its log."""
    return trained_log(recipe, TINY, photos, folder, *options)


def objective_of(recipe: ModuleType, *options: object) -> ElasticObjective:
    parsed = recipe.parse([str(word) for word in [*TINY, *options]])
    net = recipe.build(parsed, Processes())
    return recipe.make_objective(parsed, net)


def distillations_of(recipe: ModuleType, *options: object) -> list[Distillation]:
    """Return the self-distillation, and the distillation of predictions."""
    parsed = recipe.parse([str(word) for word in [*TINY, *options]])
    return recipe.make_distillations(parsed, recipe.build(parsed, Processes()))


# --- the task loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_l1_loss_and_its_gradient_are_those_of_pytorch(
    recipe: ModuleType, dtype: torch.dtype
) -> None:
    prediction = torch.rand(2, 3, 8, 8).to(dtype).requires_grad_()
    target = torch.rand(2, 3, 8, 8).to(dtype if dtype == torch.float64 else torch.float32)
    found = recipe.l1_loss(prediction, target)
    expected = F.l1_loss(prediction, target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    found_gradient = torch.autograd.grad(found, prediction)[0]
    expected_gradient = torch.autograd.grad(expected, prediction)[0]
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=1e-6, atol=0)


# --- the order of the pixels


@pytest.mark.parametrize(
    "options",
    [
        ["--scale", 4, "--skip", "bicubic"],
        ["--scale", 3, "--loss", "mse", "--output-weight", 0.1],
        ["--scale", 2, "--loss", "charbonnier", "--sampled-taps", 1],
        ["--task", "denoise"],
    ],
    ids=lambda options: " ".join(str(each) for each in options),
)
def test_unshuffled_predictions_train_as_images_do(
    recipe: ModuleType,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
) -> None:
    options = [*options, "--precision", "float64"]  # so that rounding does not grow
    found = train(recipe, photos, tmp_path / "unshuffled", *options)
    monkeypatch.setattr(recipe, "set_order_of_pixels", lambda *_: None)
    expected = train(recipe, photos, tmp_path / "images", *options)
    assert len(found) == len(expected)
    for line, expected_line in zip(found, expected, strict=True):
        for name in ("total", "routine", "deep_supervision", "distillation", "psnr"):
            if name in expected_line:
                assert line[name] == pytest.approx(expected_line[name], rel=1e-9)


@pytest.mark.parametrize(
    ("options", "is_unshuffled"),
    [
        ([], True),
        (["--compile"], False),
        (["--upsampler", "subpixel"], False),
        (["--output-weight", 0.1, "--output-teacher", "self-ensemble"], False),
    ],
    ids=str,
)
def test_which_trainings_unshuffle(
    recipe: ModuleType, options: list[object], is_unshuffled: bool
) -> None:
    parsed = recipe.parse([str(word) for word in [*TINY, *options]])
    net = recipe.build(parsed, Processes())
    recipe.set_order_of_pixels(parsed, net, torch.device("cpu"))
    assert getattr(net.head, "subpixels_in_training", False) == is_unshuffled


def test_on_a_gpu_predictions_stay_images(recipe: ModuleType) -> None:
    parsed = recipe.parse(TINY)
    net = recipe.build(parsed, Processes())
    recipe.set_order_of_pixels(parsed, net, torch.device("cuda"))
    assert not net.head.subpixels_in_training


# --- self-distillation


def test_every_form_of_the_self_distillation_reaches_the_objective(recipe: ModuleType) -> None:
    plain = distillations_of(recipe)[0]
    assert (plain.of, plain.compare) == ("maps", unit_distance)
    assert (plain.power, plain.teacher) == (1.0, "next")
    squared = distillations_of(recipe, "--psd-distance", "squared", "--psd-power", 2)[0]
    assert (squared.of, squared.compare, squared.power) == ("maps", squared_unit_distance, 2.0)
    cosine = distillations_of(recipe, "--psd-distance", "cosine", "--psd-teacher", "deepest")[0]
    assert (cosine.of, cosine.compare) == ("features", cosine_distance)
    assert cosine.teacher == "deepest"


def test_a_power_of_the_cosine_is_refused(recipe: ModuleType) -> None:
    message = r"--psd-power 2\.0 with --psd-distance cosine: it compares features"
    with pytest.raises(ValueError, match=message):
        recipe.Loss(psd_weight=0.1, psd_distance="cosine", psd_power=2.0)


def test_the_weight_of_the_self_distillation_rises_over_the_warm_up(recipe: ModuleType) -> None:
    options = ["--psd-weight", "0.5", "--psd-warmup", "0.5", "--steps", "8"]
    weight_at = distillations_of(recipe, *options)[0].weight
    assert callable(weight_at)
    assert [weight_at(step) for step in (0, 2, 4, 7)] == [0.0, 0.25, 0.5, 0.5]
    assert distillations_of(recipe, "--psd-weight", "0.5")[0].weight == 0.5
    assert distillations_of(recipe, *options, "--variant", "dsl")[0].weight == 0.0


# --- output distillation


def test_the_self_ensembled_teacher_is_the_mean_of_the_eight_symmetries(
    recipe: ModuleType,
) -> None:
    words = [*TINY, "--output-weight", "0.1", "--output-teacher", "self-ensemble"]
    options = recipe.parse(words)
    net = recipe.build(options, Processes())
    teacher = recipe.make_distillations(options, net)[1].teacher
    x = torch.rand(2, 3, 6, 6)
    total = torch.zeros(2, 3, 12, 12)
    for turns in range(4):
        turned = torch.rot90(x, turns, dims=(2, 3))
        total += torch.rot90(net(turned), -turns, dims=(2, 3))
        total += torch.rot90(net(turned.flip(3)).flip(3), -turns, dims=(2, 3))
    torch.testing.assert_close(teacher(x), total / 8)
    assert distillations_of(recipe, "--output-weight", "0.1")[1].teacher == "deepest"


# --- which taps a step trains


@pytest.mark.parametrize(
    ("options", "depths"),
    [
        (["all"], [(1, 2, 3), (1, 2, 3), (1, 2, 3), (1, 2, 3)]),
        (["deepest-first", "--curriculum-until", "0.5"], [(3,), (3,), (1, 2, 3), (1, 2, 3)]),
        (["alternating"], [(3,), (1, 2, 3), (3,), (1, 2, 3)]),
        (["rotating"], [(3,), (2, 3), (1, 3), (3,)]),
        (["sandwich", "--sandwich-taps", "0"], [(1, 3), (1, 3), (1, 3), (1, 3)]),
    ],
)
def test_a_curriculum_chooses_the_taps_of_a_step(
    recipe: ModuleType, options: list[str], depths: list[tuple[int, ...]]
) -> None:
    objective = objective_of(recipe, "--curriculum", *options)
    assert [objective.depths_at(step) for step in range(4)] == depths


def test_a_curriculum_takes_the_weights_of_the_other_options(recipe: ModuleType) -> None:
    objective = objective_of(recipe, "--curriculum", "alternating", "--tap-weights", "rising")
    assert objective.tap_weights_at(0) == {1: 0.0, 2: 0.0, 3: 1.0}
    rising = objective_of(recipe, "--tap-weights", "rising").tap_weights_at(1)
    assert objective.tap_weights_at(1) == rising


@pytest.mark.parametrize(
    ("weights", "variant", "taps"),
    [((0.7, 0.3), "dsl", 3), ((0.7, 0.0, 0.3), "dsl", 3), ((), "dsl", 3), ((0.7, 0.3), "ss", 1)],
)
def test_weights_that_are_not_one_for_each_tap_are_refused(
    recipe: ModuleType, weights: tuple[float, ...], variant: str, taps: int
) -> None:
    options = recipe.parse(TINY)
    loss = replace(options.loss, variant=variant, tap_weights=[*weights])
    listed = " ".join(str(weight) for weight in weights)
    message = f"--tap-weights {listed}: expected one positive number for each of the {taps} taps"
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(options, loss=loss)


def test_a_curriculum_that_trains_all_taps_leaves_none_out(recipe: ModuleType) -> None:
    options = recipe.Options(loss=recipe.Loss(psd_weight=0.1, curriculum="all"))
    with pytest.raises(ValueError, match="--curriculum all: expected one that leaves taps out"):
        recipe.curriculum_at(0, options, {1: 1.0, 2: 1.0})


def test_a_curriculum_beside_sampled_taps_is_refused(recipe: ModuleType) -> None:
    message = "--sampled-taps 1 with --curriculum rotating: both say which taps a step trains"
    with pytest.raises(ValueError, match=message):
        recipe.Loss(psd_weight=0.1, curriculum="rotating", sampled_taps=1)


def test_a_curriculum_of_a_single_tap_is_refused(recipe: ModuleType) -> None:
    message = "--curriculum sandwich with --variant ss: that trains the deepest tap alone"
    with pytest.raises(ValueError, match=message):
        recipe.Loss(psd_weight=0.1, curriculum="sandwich", variant="ss")


def test_another_teacher_of_outputs_without_a_weight_is_refused(recipe: ModuleType) -> None:
    message = "--output-teacher self-ensemble with --output-weight 0: nothing learns from it"
    with pytest.raises(ValueError, match=message):
        recipe.Loss(psd_weight=0.1, output_teacher="self-ensemble")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output-weight", "-1"], "--output-weight -1.0: expected at least 0"),
        (["--num-blocks", "0"], "--num-blocks 0: expected at least 1"),
        (
            ["--preset", "best", "--tap-affine"],
            "--tap-affine with --tap-fusion: .* --no-tap-fusion",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    recipe: ModuleType, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        recipe.parse([*TINY, *options])
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert re.search(message, said)


def test_best_distils_predictions_by_squares_where_there_are_several_taps(
    recipe: ModuleType,
) -> None:
    best = recipe.parse([*TINY, "--preset", "best"])
    assert (best.loss.output_weight, best.loss.output_loss) == (5.0, "mse")
    assert best.network.tap_fusion

    one_tap = recipe.parse([*TINY, "--preset", "best", "--variant", "ss"])
    assert one_tap.loss.output_weight == 0
    assert not one_tap.network.tap_fusion


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("mse", 2)])
def test_outputs_are_compared_by_the_loss_that_is_named(
    recipe: ModuleType, name: str, power: int
) -> None:
    options = recipe.parse(
        [*TINY, "--output-weight", "0.5", "--output-loss", name, "--image-scale", "255"]
    )
    _, of_outputs = recipe.make_distillations(options, recipe.build(options, Processes()))
    student, teacher = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    expected = ((student - teacher).abs() ** power).mean()
    torch.testing.assert_close(of_outputs.compare(student, teacher), expected)
    assert of_outputs.weight == 0.5 * 255**power


# --- how the gradients of taps are joined


@pytest.mark.parametrize("method", ["balanced", "projected"])
def test_a_training_joins_the_gradients_of_its_taps(
    recipe: ModuleType, photos: Path, tmp_path: Path, method: str
) -> None:
    plain = train(recipe, photos, tmp_path / "plain")
    joined = train(recipe, photos, tmp_path / "joined", "--tap-gradients", method)
    assert [line["step"] for line in joined] == [2, 4]
    assert joined[1]["psnr"].keys() == {"1", "2", "3"}
    if method == "balanced":
        assert joined[1]["total"] != plain[1]["total"]


def test_each_name_of_a_method_joins_by_that_method(recipe: ModuleType) -> None:
    joined_by: dict[str, Any] = {}
    for name in ("balanced", "projected"):
        options = recipe.parse([*TINY, "--seed", "7", "--tap-gradients", name])
        joined_by[name] = recipe.make_tap_gradients(options, recipe.build(options, Processes()))

    assert joined_by["balanced"].method is balanced
    assert joined_by["projected"].method.func is projected
    assert joined_by["projected"].method.keywords == {"seed": 7}
    assert recipe.make_tap_gradients(recipe.parse(TINY), net=None) is None


def test_joined_gradients_in_a_compiled_step_are_refused(recipe: ModuleType) -> None:
    message = "--compile with --tap-gradients balanced: a compiled step has one backward pass"
    with pytest.raises(ValueError, match=message):
        recipe.Options(
            loss=recipe.Loss(psd_weight=0.1, tap_gradients="balanced"),
            compute=recipe.Compute(compile=True),
        )


# --- the last steps


def test_the_mean_of_the_last_validations_is_shipped(
    recipe: ModuleType, photos: Path, tmp_path: Path
) -> None:
    """Validated after steps 1, 2 and 3: the mean of the weights after the last two."""
    states: list[dict[str, Tensor]] = []
    for steps in (2, 3):
        folder = tmp_path / f"to {steps}"
        options = ["--schedule", "halving", "--learning-rate", "1e-3", "--eval-every", 1]
        train(recipe, photos, folder, *options, "--steps", steps)
        states.append(recipe.elasticnet.load(folder / "last.safetensors").state_dict())
    folder = tmp_path / "mean"
    train(recipe, photos, folder, *options, "--steps", 3, "--mean-last", 2)

    mean = recipe.elasticnet.load(folder / "mean.safetensors").state_dict()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (states[0][name] + states[1][name]) / 2)
    last = recipe.elasticnet.load(folder / "last.safetensors").state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in last.items())
    table = json.loads((folder / "table.json").read_text())
    shipped = read_header(folder / "mean.safetensors")["notes"]["psnr"]
    assert [row["psnr"] for row in table["rows"]] == pytest.approx(list(shipped.values()))


@pytest.mark.parametrize(("psnr_of_mean", "kept"), [(21.0, 21.0), (19.0, 20.0)])
def test_a_mean_is_kept_as_the_best_only_if_it_is_better(
    recipe: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    psnr_of_mean: float,
    kept: float,
) -> None:
    def scores_of_mean(*_arguments: Any) -> dict[int, float]:
        return dict.fromkeys((1, 2, 3), psnr_of_mean)

    monkeypatch.setattr(recipe, "psnr_per_depth", scores_of_mean)
    options = recipe.parse([*TINY, "--mean-last", "1"])
    net = recipe.build(options, Processes())
    recent = RecentWeights(max_count=1)
    recent.add(net)
    run = Run.create(tmp_path / "run", {})
    best = recipe.Best(run.folder / "best.safetensors", psnr=20.0)

    validation = recipe.Validation(images=None, compressed={})
    recipe.finished_net(options, run, net, best, recent, validation, Processes())

    assert best.psnr == kept
    assert best.file.exists() == (kept == psnr_of_mean)


def test_a_resumed_run_ends_with_the_same_mean(
    recipe: ModuleType, photos: Path, tmp_path: Path
) -> None:
    options = ["--schedule", "halving", "--eval-every", 1, "--mean-last", 3]
    train(recipe, photos, tmp_path / "whole", *options, "--steps", 4)
    train(recipe, photos, tmp_path / "resumed", *options, "--steps", 2)
    recipe.main(recipe.parse(["--resume", str(tmp_path / "resumed"), "--steps", "4"]))
    whole = recipe.elasticnet.load(tmp_path / "whole" / "mean.safetensors").state_dict()
    resumed = recipe.elasticnet.load(tmp_path / "resumed" / "mean.safetensors").state_dict()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.parametrize(
    ("late", "late_shape"),
    [
        (["--late-patch-size", "10", "--late-batch-size", "4"], (4, 3, 10, 10)),
        (["--late-patch-size", "10"], (2, 3, 10, 10)),
        (["--late-batch-size", "4"], (4, 3, 8, 8)),
    ],
    ids=["both", "patches", "batches"],
)
def test_patches_and_batches_of_the_last_third_have_sizes_of_their_own(
    recipe: ModuleType, photos: Path, late: list[str], late_shape: tuple[int, ...]
) -> None:
    options = recipe.parse([*TINY, "--data", str(photos), "--steps", "6", *late])
    processes = Processes()
    images, _ = recipe.load_images(options, processes)
    samplers = recipe.make_samplers(options, images, processes)
    net = recipe.build(options, processes)
    shapes: list[tuple[int, ...]] = []
    for step in range(6):
        lr, _ = recipe.batch_of(step, samplers.at(step), net)(0, 1)
        shapes.append(tuple(lr.shape))
    assert shapes == [(2, 3, 8, 8)] * 4 + [late_shape] * 2
    from_half = recipe.with_values(options, {"late_from": 0.5})
    assert recipe.make_samplers(from_half, images, processes).late_from == 3


def test_images_too_small_for_a_late_patch_are_left_out(
    recipe: ModuleType, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    Image.new("RGB", (24, 24), "red").save(folder / "small.png")  # LR images of 12 x 12
    numbers: dict[str, int] = {}
    for size in ("12", "13"):
        options = recipe.parse([*TINY, "--data", str(folder), "--late-patch-size", size])
        training_images, _ = recipe.load_images(options, Processes())
        numbers[size] = len(training_images)
    assert numbers["12"] == numbers["13"] + 1


def test_without_late_sizes_one_sampler_serves_all_steps(recipe: ModuleType, photos: Path) -> None:
    options = recipe.parse([*TINY, "--data", str(photos)])
    images, _ = recipe.load_images(options, Processes())
    samplers = recipe.make_samplers(options, images, Processes())
    assert samplers.late is samplers.early


def test_a_late_batch_that_cannot_be_accumulated_is_refused(recipe: ModuleType) -> None:
    message = "--accumulate 2: expected a divisor of --late-batch-size 5"
    with pytest.raises(ValueError, match=message):
        recipe.Options(
            optimiser=recipe.Optimiser(late_batch_size=5), compute=recipe.Compute(accumulate=2)
        )


# --- the log


def test_the_share_is_logged_and_changes_no_bit_of_the_training(
    recipe: ModuleType, photos: Path, tmp_path: Path
) -> None:
    plain = train(recipe, photos, tmp_path / "plain")
    logged = train(recipe, photos, tmp_path / "logged", "--log-psd-share")

    assert [line["step"] for line in logged] == [2, 4]
    for line in logged:
        assert 0 < line["psd_share"] < 1
    assert all("psd_share" not in line for line in plain)
    for before, after in zip(plain, logged, strict=True):
        assert before["total"] == after["total"]
        assert before["per_depth"] == after["per_depth"]
    tensors: list[dict[str, Tensor]] = []
    for name in ("plain", "logged"):
        state = recipe.elasticnet.load(tmp_path / name / "last.safetensors").state_dict()
        tensors.append(state)
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]), name
    assert read_header(tmp_path / "logged" / "last.safetensors")["notes"]["step"] == 4
