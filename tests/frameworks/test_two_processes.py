"""Two processes, started by torchrun, train as one process on the joined batches."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

import elasticnet
from plain_loop import (
    NUM_BATCHES,
    assert_equal,
    make_learned_objective,
    make_net,
    make_optimizer,
    predictions_of,
    train,
    trained_by_step,
    trained_plainly,
)
from split_nets import CASES, case_trained_plainly

HERE = Path(__file__).parent
SCRIPT = HERE / "two_processes.py"
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

HAS_FSDP2 = TORCH >= (2, 7)

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo"
)
needs_fsdp2 = pytest.mark.skipif(not HAS_FSDP2, reason="torch 2.6 has no FSDP2 on the CPU")
pytestmark = needs_gloo


class Results(NamedTuple):
    """What the processes wrote.

    Attributes:
        folder: The folder that they wrote to.
        weights: The weights by the way in which they were trained.
    """

    folder: Path
    weights: dict[str, dict[str, Any]]


def torchrun(folder: Path, *ways: str) -> dict[str, dict[str, Any]]:
    """Return the weights of each way of two_processes.py."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE)]),
    }
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:  # gloo would otherwise look up this machine's name
        environment["GLOO_SOCKET_IFNAME"] = loopback[0]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", str(SCRIPT), str(folder), *ways]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {way: torch.load(folder / f"{way}.pt") for way in ways}


def assert_trained_as_one(weights: dict[str, Any], weight_decay: float = 0.01) -> None:
    assert_close(weights, trained_plainly(torch.float64, weight_decay=weight_decay))


def assert_close(actual: dict[Any, Any], expected: dict[Any, Any]) -> None:
    torch.testing.assert_close(actual, dict(expected), rtol=1e-7, atol=1e-10)


# --- one small case of each; one start of two processes serves them


@pytest.fixture(scope="module")
def small_cases(tmp_path_factory: pytest.TempPathFactory) -> Results:
    ways = ["ddp_around_the_objective", "ddp_around_the_net", "ddp_by_step"]
    if HAS_FSDP2:
        ways += ["fsdp2_with_the_net_as_root", "fsdp2_by_step", "fsdp2_state_from_process_0"]
        ways += ["fsdp2_with_learned_weights"]
    folder = tmp_path_factory.mktemp("small_cases")
    return Results(folder=folder, weights=torchrun(folder, *ways))


@pytest.mark.parametrize("way", ["ddp_around_the_objective", "ddp_around_the_net"])
def test_ddp(small_cases: Results, way: str) -> None:
    assert_trained_as_one(small_cases.weights[way])


def test_ddp_counts_the_same_steps_in_all_processes(small_cases: Results) -> None:
    assert_close(small_cases.weights["ddp_by_step"], trained_by_step(torch.float64))


@needs_fsdp2
def test_fsdp2(small_cases: Results) -> None:
    assert_trained_as_one(small_cases.weights["fsdp2_with_the_net_as_root"])


@needs_fsdp2
def test_all_processes_save_the_whole_net(small_cases: Results) -> None:
    weights = small_cases.weights["fsdp2_with_the_net_as_root"]
    for process in range(2):
        path = small_cases.folder / f"process_{process}.safetensors"
        loaded = elasticnet.load(path, depth=2, build=lambda: make_net(torch.float64))
        kept = {name: weights[name] for name in loaded.state_dict()}
        assert_equal(dict(loaded.state_dict()), kept)


@needs_fsdp2
def test_fsdp2_counts_the_same_steps_in_all_processes(small_cases: Results) -> None:
    assert_close(small_cases.weights["fsdp2_by_step"], trained_by_step(torch.float64))


@needs_fsdp2
def test_a_count_that_process_0_loads_reaches_all_processes(small_cases: Results) -> None:
    counts = small_cases.weights["fsdp2_state_from_process_0"]["counts"]
    assert counts.tolist() == [NUM_BATCHES, NUM_BATCHES]


@needs_fsdp2
def test_learned_weights_are_sharded_and_the_net_alone_still_runs(small_cases: Results) -> None:
    net = make_net(torch.float64)
    objective = make_learned_objective(net)
    train(objective, make_optimizer(objective.parameters()), dtype=torch.float64)

    found = small_cases.weights["fsdp2_with_learned_weights"]
    assert_close(found["weights"], objective.state_dict())
    assert_close(found["predictions"], predictions_of(net))


# --- the others


@needs_fsdp2
@pytest.mark.slow
def test_a_sharded_net_writes_the_bytes_of_a_whole_one_and_is_filled_from_them(
    tmp_path: Path,
) -> None:
    (weights,) = torchrun(tmp_path, "fsdp2_files").values()

    expected = (tmp_path / "whole_0.safetensors").read_bytes()
    for name in ("sharded_0", "sharded_1", "filled_0", "filled_1"):
        assert (tmp_path / f"{name}.safetensors").read_bytes() == expected, name
    assert_equal(weights, dict(make_net().state_dict()))


@needs_fsdp2
@pytest.mark.slow
def test_what_would_copy_a_sharded_net_says_what_to_do(tmp_path: Path) -> None:
    (said,) = torchrun(tmp_path, "fsdp2_and_copies").values()
    assert "sharded by fully_shard: call it before" in said.pop("find_unused")
    assert set(said) == {"truncate", "to_sequential", "grow"}
    for message in said.values():
        assert message.startswith("the net is sharded by fully_shard"), message


@needs_fsdp2
@pytest.mark.slow
def test_fsdp2_computes_in_bfloat16_and_keeps_float32(tmp_path: Path) -> None:
    (seen,) = torchrun(tmp_path, "fsdp2_in_bfloat16").values()
    assert seen["features"] == torch.bfloat16
    assert seen["prediction"] == torch.float32
    assert seen["weights"] == torch.float32
    assert seen["after"] < seen["before"]


@needs_fsdp2
@pytest.mark.slow
def test_fsdp2_with_the_objective_as_root(tmp_path: Path) -> None:
    (weights,) = torchrun(tmp_path, "fsdp2_with_the_objective_as_root").values()
    assert_trained_as_one(weights)


@pytest.mark.slow
def test_a_compiled_ddp(tmp_path: Path) -> None:
    (weights,) = torchrun(tmp_path, "compiled_ddp_around_the_net").values()
    assert_trained_as_one(weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", ["ddp_of_split_models", pytest.param("fsdp2_of_split_models", marks=needs_fsdp2)]
)
def test_split_models(tmp_path: Path, way: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    (by_name,) = torchrun(tmp_path, way).values()
    assert set(by_name) == set(CASES)
    for name, weights in by_name.items():
        assert_close(weights, case_trained_plainly(name))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["accelerate", "lightning", "trainer"])
def test_other_peoples_trainers(tmp_path: Path, way: str) -> None:
    package = "transformers" if way == "trainer" else way
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    (weights,) = torchrun(tmp_path, way).values()
    # The Trainer leaves biases and norms out of the weight decay, so its case has none.
    assert_trained_as_one(weights, weight_decay=0.0 if way == "trainer" else 0.01)


@needs_fsdp2
@pytest.mark.slow
@pytest.mark.parametrize("way", ["accelerate_fsdp2", "trainer_fsdp2", "lightning_model_parallel"])
def test_other_peoples_sharding_trains_and_resumes_at_its_step(tmp_path: Path, way: str) -> None:
    package = way.split("_")[0].replace("trainer", "transformers")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    net = make_net(torch.float64)
    weight_decay = 0.0 if way == "trainer_fsdp2" else 0.01
    net.load_state_dict(trained_by_step(torch.float64, weight_decay))

    (found,) = torchrun(tmp_path, way).values()

    assert_close(found["weights"], net.state_dict())
    assert_close(found["predictions"], predictions_of(net))
