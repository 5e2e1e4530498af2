"""Two processes, started by torchrun, train as one process on the joined batches."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import elasticnet
from plain_loop import assert_equal, make_net, trained_plainly

HERE = Path(__file__).parent
SCRIPT = HERE / "two_processes.py"
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo"
)
needs_fsdp2 = pytest.mark.skipif(TORCH < (2, 7), reason="torch 2.6 has no FSDP2 on the CPU")
pytestmark = needs_gloo


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
    expected = dict(trained_plainly(torch.float64, weight_decay=weight_decay))
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-12)


def test_ddp(tmp_path: Path) -> None:
    for weights in torchrun(tmp_path, "ddp_around_the_objective", "ddp_around_the_net").values():
        assert_trained_as_one(weights)


@needs_fsdp2
def test_fsdp2(tmp_path: Path) -> None:
    weights = torchrun(tmp_path, "fsdp2_with_the_net_as_root")["fsdp2_with_the_net_as_root"]
    assert_trained_as_one(weights)
    for process in range(2):
        path = tmp_path / f"process_{process}.safetensors"
        loaded = elasticnet.load(path, depth=2, build=lambda: make_net(torch.float64))
        kept = {name: weights[name] for name in loaded.state_dict()}
        assert_equal(dict(loaded.state_dict()), kept)


@needs_fsdp2
@pytest.mark.slow
def test_what_would_copy_a_sharded_net_says_what_to_do(tmp_path: Path) -> None:
    (said,) = torchrun(tmp_path, "fsdp2_and_copies").values()
    assert set(said) == {"truncate", "to_sequential", "grow"}
    for message in said.values():
        assert message.startswith("the net is sharded by fully_shard"), message


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
@pytest.mark.parametrize("way", ["accelerate", "lightning", "trainer"])
def test_other_peoples_trainers(tmp_path: Path, way: str) -> None:
    package = "transformers" if way == "trainer" else way
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    (weights,) = torchrun(tmp_path, way).values()
    # The Trainer leaves biases and norms out of the weight decay, so its case has none.
    assert_trained_as_one(weights, weight_decay=0.0 if way == "trainer" else 0.01)
