"""DistributedDataParallel: two processes train like one process on the joined batch."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elasticnet import ElasticObjective, ElasticWrapper
from ranks import start_ranks
from tiny_nets import TinyBlock, TogetherHead, of_outputs

NUM_RANKS = 2
NUM_STEPS = 6
SCENARIOS: dict[str, dict[str, Any]] = {
    "all taps": {"psd_weight": 0.1},
    "sampled taps with adapters": {
        "psd_weight": 0.1,
        "sampled_taps": 1,
        "tap_weights": {1: 1 / 3, 2: 1 / 3, 3: 1 / 3},
        "seed": 5,
    },
    "checkpoint_head": {"psd_weight": 0.1, "checkpoint_head": True},
    "learned weights": {"learns_weights": True},
    "learned weights and sampled taps": {"learns_weights": True, "sampled_taps": 1},
}


def learned_weights() -> dict[str, Any]:
    """Return every weight as a parameter."""
    return {
        "psd_weight": nn.Parameter(torch.tensor(0.1, dtype=torch.float64)),
        "tap_weights": nn.Parameter(torch.ones(3, dtype=torch.float64)),
        "distillations": [of_outputs(nn.Parameter(torch.tensor(0.5, dtype=torch.float64)))],
    }


def make_objective(options: dict[str, Any]) -> ElasticObjective:
    torch.manual_seed(0)
    blocks = [TinyBlock("residual", "b c h w", 4) for _ in range(3)]
    sampled = "sampled_taps" in options
    adapters = {1: nn.Conv2d(4, 4, 1), 2: nn.Conv2d(4, 4, 3, padding=1)} if sampled else None
    net = ElasticWrapper(
        blocks, TogetherHead("b c h w", 4, 2), nn.Conv2d(3, 4, 1), adapters=adapters
    )
    if options.get("learns_weights"):
        sampling = {name: value for name, value in options.items() if name == "sampled_taps"}
        return ElasticObjective(net.double(), nn.L1Loss(), **learned_weights(), **sampling)
    return ElasticObjective(net.double(), nn.L1Loss(), **options)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    size = NUM_RANKS * 2
    x = torch.randn(size, 3, 5, 6, dtype=torch.float64, generator=generator)
    return x, torch.randn(size, 2, 5, 6, dtype=torch.float64, generator=generator)


def train(objective: ElasticObjective, call: Callable[..., Any], rows: slice) -> dict[str, Any]:
    """Train on these rows of every batch; return each step's depths, gradients, and the weights."""
    optimiser = torch.optim.SGD(objective.parameters(), lr=0.05, momentum=0.9)
    depths: list[tuple[int, ...]] = []
    gradients: list[dict[str, Tensor]] = []
    for step in range(NUM_STEPS):
        x, y = batch(step)
        optimiser.zero_grad(set_to_none=True)
        terms = call(x[rows], y[rows], step=step)
        terms.total.backward()
        depths.append(tuple(terms.per_depth))
        gradients.append(
            {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
        )
        optimiser.step()
    return {"depths": depths, "gradients": gradients, "weights": objective.state_dict()}


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:  # gloo would otherwise look up this machine's name
        os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, timedelta(seconds=120), world_size=NUM_RANKS, rank=rank)
    for name, options in SCENARIOS.items():
        objective = make_objective(options)
        parallel = DistributedDataParallel(
            objective, find_unused_parameters=objective.needs_unused_search
        )
        result = train(objective, parallel, slice(2 * rank, 2 * rank + 2))
        torch.save(result, folder / f"{name} {rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every rank gave, as files; one start of two processes serves all tests."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this build of torch has no gloo")
    folder = tmp_path_factory.mktemp("ddp")
    start_ranks(run_rank, (folder,), NUM_RANKS)
    return folder


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_train_like_one_on_the_joined_batch(folder: Path, name: str) -> None:
    objective = make_objective(SCENARIOS[name])
    expected = train(objective, objective, slice(None))
    for rank in range(NUM_RANKS):
        actual = torch.load(folder / f"{name} {rank}.pt")
        assert actual["depths"] == expected["depths"], f"rank {rank} sampled other taps"
        for step in range(NUM_STEPS):
            message = f"gradients of rank {rank} at step {step}"
            torch.testing.assert_close(
                actual["gradients"][step],
                expected["gradients"][step],
                rtol=1e-10,
                atol=1e-12,
                msg=lambda text, message=message: f"{message}: {text}",
            )
        torch.testing.assert_close(
            actual["weights"], dict(expected["weights"]), rtol=1e-10, atol=1e-12
        )


def test_sampling_leaves_adapters_without_gradient(folder: Path) -> None:
    """This is what makes find_unused_parameters necessary; here each adapter is left out once."""
    result = torch.load(folder / "sampled taps with adapters 0.pt")
    assert {*result["depths"]} == {(1, 3), (2, 3)}
    for depths, gradients in zip(result["depths"], result["gradients"], strict=True):
        for depth in (1, 2):
            assert (f"net.adapters.{depth}.weight" in gradients) is (depth in depths)
        assert {f"net.blocks.{index}.last.weight" for index in range(3)} <= set(gradients)
