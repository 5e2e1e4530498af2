"""--cuda-graph: on a CPU its step is a plain function, and trains as the ordinary loop does."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import elasticnet
from elasticnet.sr.data import pairs_from_arrays
from elasticnet.sr.data.patches import PatchSampler
from elasticnet.training.graph_step import GraphStep
from elasticnet.training.options import as_json, from_json, with_values
from elasticnet.training.processes import Processes
from elasticnet.training.run_folder import Run
from no_device import AdamOfNoDevice, RefusingReads, StepOfNoDevice
from small_photos import small_photos

TINY = ["--preset", "best", "--scale", "2", "--precision", "float32", "--device", "cpu"]
TINY += ["--num-blocks", "2", "--channels", "8", "--patch-size", "8", "--batch-size", "4"]
TINY += ["--steps", "8", "--warmup", "2", "--eval-every", "4", "--log-every", "3"]
TINY += ["--num-valid", "1", "--no-figures", "--no-costs", "--no-tensorboard"]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    return small_photos(folder, num_photos=4, height=64, width=80)


def train(recipe: ModuleType, photos: Path, folder: Path, *words: object) -> None:
    arguments = [*TINY, "--data", photos, "--out", folder, *words]
    recipe.main(recipe.parse([str(each) for each in arguments]))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return elasticnet.load(folder / "last.safetensors").state_dict()


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="preset best"),
        pytest.param(["--late-patch-size", 12, "--late-batch-size", 2], id="late sizes"),
        pytest.param(["--accumulate", 2, "--schedule", "halving", "--halve-every", 3], id="parts"),
        pytest.param(["--output-weight", 1, "--output-teacher", "self-ensemble"], id="ensemble"),
        pytest.param(["--mean-last", 2, "--log-psd-share", "--tap-fusion"], id="mean and share"),
    ],
)
def test_it_trains_as_the_ordinary_loop_up_to_rounding(recipe, photos, tmp_path, words):
    train(recipe, photos, tmp_path / "off", *words)
    train(recipe, photos, tmp_path / "on", *words, "--cuda-graph", "on")

    wanted = weights_of(tmp_path / "off")
    for name, tensor in weights_of(tmp_path / "on").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
    for found, line in zip(log_of(tmp_path / "on"), log_of(tmp_path / "off"), strict=True):
        assert found["step"] == line["step"]
        assert found["learning_rate"] == line["learning_rate"]
        assert found["total"] == pytest.approx(line["total"], rel=1e-5)
        assert found["per_depth"] == pytest.approx(line["per_depth"], rel=1e-5)


def test_a_resumed_run_ends_with_the_same_bits(recipe, photos, tmp_path, capsys):
    train(recipe, photos, tmp_path / "whole", "--cuda-graph", "on", "--save-every", 5)
    train(recipe, photos, tmp_path / "cut", "--cuda-graph", "on", "--save-every", 5)
    for step, state in Run.resume(tmp_path / "cut", writer=False).checkpoints().items():
        if step != 5:
            state.unlink()
    recipe.main(recipe.parse(["--resume", str(tmp_path / "cut")]))
    assert f"resumed {tmp_path / 'cut'} at step 5" in capsys.readouterr().out
    wanted = weights_of(tmp_path / "whole")
    for name, tensor in weights_of(tmp_path / "cut").items():
        assert torch.equal(tensor, wanted[name])


def test_on_a_cpu_it_says_that_there_is_no_graph(recipe, photos, tmp_path, capsys):
    train(recipe, photos, tmp_path / "run", "--cuda-graph", "on")
    assert "--cuda-graph on: no graph on cpu, its function is called" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--warmup", "200"], id="cosine"),
        pytest.param(["--warmup", "0"], id="cosine without warm-up"),
        pytest.param(["--schedule", "halving", "--halve-every", "300"], id="halving"),
    ],
)
def test_the_learning_rate_is_that_of_the_host_rounded_to_float32(recipe, words):
    optimiser = recipe.parse([*TINY, *words, "--steps", "1000"]).optimiser
    for step in range(1000):
        on_device = recipe.learning_rate_on_device(torch.tensor(step), optimiser)
        on_host = recipe.learning_rate_at(step, optimiser)
        assert on_device.item() == pytest.approx(on_host, rel=1e-14, abs=1e-18)
        assert on_device.float() == torch.tensor(on_host, dtype=torch.float32)


OF_HOST = {
    "--curriculum rotating": ["--curriculum", "rotating"],
    "--tap-weights rising": ["--tap-weights", "rising"],
    "--sampled-taps 1": ["--sampled-taps", "1"],
    "--psd-warmup 0.5": ["--psd-warmup", "0.5"],
    "--tap-gradients balanced": ["--tap-gradients", "balanced"],
    "--precision float16": ["--precision", "float16"],
    "--checkpoint-blocks": ["--checkpoint-blocks"],
    "--auto-batch": ["--auto-batch"],
    "--degradation photo": ["--degradation", "photo"],
}


@pytest.mark.parametrize("named", OF_HOST)
def test_what_the_host_decides_is_named(recipe, caplog, named):
    options = recipe.parse([*TINY, *OF_HOST[named], "--cuda-graph", "auto"])
    with pytest.raises(ValueError, match=f"--cuda-graph on with {named}: the host decides"):
        with_values(options, {"cuda_graph": "on"})

    caplog.set_level("INFO", logger="elasticnet")
    assert not recipe.uses_graph(options, Processes(device=CUDA))
    (message,) = caplog.messages
    assert f"without a graph, because of {named}," in message


def test_several_processes_are_named(recipe, caplog):
    caplog.set_level("INFO", logger="elasticnet")
    processes = Processes(count=2, device=CUDA)
    auto = recipe.parse([*TINY, "--cuda-graph", "auto"])
    assert not recipe.uses_graph(auto, processes)
    assert "because of 2 processes" in caplog.text
    on = recipe.parse([*TINY, "--cuda-graph", "on"])
    with pytest.raises(ValueError, match="--cuda-graph on with 2 processes"):
        recipe.uses_graph(on, processes)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="preset best"),
        pytest.param(["--no-tap-fusion", "--tap-affine", "--psd-distance", "cosine"], id="affine"),
        pytest.param(["--output-weight", "1", "--output-teacher", "self-ensemble"], id="ensemble"),
        pytest.param(["--upsampler", "subpixel", "--block", "res2net"], id="subpixel"),
        pytest.param(["--loss", "charbonnier", "--variant", "ss", "--no-tap-fusion"], id="ss"),
    ],
)
def test_the_step_takes_nothing_from_the_host(recipe, words):
    """The first step may make tensors from numbers. The second one is what a graph would record."""
    meta = torch.device("meta")
    # without EMA, as timm makes no average of tensors without values
    options = recipe.parse([*TINY, "--ema", "0", "--output-weight", "0", *words])
    net = recipe.build(options, Processes()).to(meta)
    training_step = StepOfNoDevice(
        recipe.make_objective(options, net),
        net,
        AdamOfNoDevice(net.parameters()),
        processes=Processes(device=meta),
        clip_norm=0.02,
    )
    pairs = pairs_from_arrays({"black": np.zeros((60, 80, 3), np.uint8)}, scale=2)
    sampler = PatchSampler(
        pairs, patch_size=8, batch_size=4, device=meta, memory_format=torch.channels_last
    )
    graph_step = GraphStep(
        training_step,
        recipe.batch_on_device(sampler, net),
        partial(recipe.learning_rate_on_device, optimiser=options.optimiser),
    )
    graph_step()
    with RefusingReads("meta") as mode:
        graph_step()
    assert mode.num_operations > 200


@pytest.mark.parametrize(
    ("wanted", "device", "expected"),
    [
        ("off", "cuda", False),
        ("off", "cpu", False),
        ("auto", "cuda", True),
        ("auto", "cpu", False),
        ("on", "cuda", True),
        ("on", "cpu", True),
    ],
)
def test_when_a_graph_is_used(recipe, wanted, device, expected):
    options = recipe.parse([*TINY, "--cuda-graph", wanted])
    assert recipe.uses_graph(options, Processes(device=torch.device(device))) is expected


def test_a_graph_is_used_on_a_gpu_by_default(recipe):
    options = recipe.parse(TINY)
    assert recipe.uses_graph(options, Processes(device=CUDA))
    assert not recipe.uses_graph(options, Processes(device=torch.device("cpu")))


def test_a_run_from_before_the_option_goes_on_without_a_graph(recipe):
    stored = as_json(recipe.parse(TINY))
    del stored["cuda_graph"]
    options = from_json(recipe.Options, stored)
    assert options.compute.cuda_graph == "off"
    assert not recipe.uses_graph(options, Processes(device=CUDA))
