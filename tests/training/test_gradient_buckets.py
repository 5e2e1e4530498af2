"""GradientBuckets: means over processes, sent while the backward pass runs, in fixed contents."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elasticnet import ElasticObjective
from elasticnet.training.gradient_buckets import GradientBuckets, bucket_mb_for
from elasticnet.training.processes import Processes
from elasticnet.training.step import TrainingStep
from ranks import start_ranks
from step_cases import LOSS, cutter, images, make_net

NUM_STEPS = 4
SIZE = 12  # images of a batch, which two and three processes can share
# Each parameter in a bucket of its own; several in one; all in one.
BUCKET_MBS = (1e-6, 1e-3, 1e3)


def use_loopback() -> None:
    """Spare gloo looking up this machine's name."""
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]


def branches(rank: int, step: int) -> tuple[nn.ModuleList, Tensor]:
    """Return layers, and a loss in which a step leaves out one of them."""
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(5, 5) for _ in range(3)])
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * step + rank))
    y = layers[0](x)
    if step % 2 == 0:
        y = layers[1](y)
    return layers, layers[2](y).square().mean()


def gradients_of(module: nn.Module) -> list[Tensor | None]:
    return [None if each.grad is None else each.grad.clone() for each in module.parameters()]


def means_by_buckets(rank: int, count: int, bucket_mb: float) -> list[list[Tensor | None]]:
    """Return the gradients of each step, whose layers are the same parameters."""
    found: list[list[Tensor | None]] = []
    layers, _ = branches(rank, step=0)
    buckets = GradientBuckets(layers.parameters(), count, bucket_mb)
    for step in range(NUM_STEPS):
        layers[1].requires_grad_(step < 2)  # frozen later
        layers.zero_grad(set_to_none=True)
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * step + rank))
        y = layers[0](x)
        if step % 2 == 0:
            y = layers[1](y)
        with buckets.averaging():
            layers[2](y).square().mean().backward()
        found.append(gradients_of(layers))
    return found


def means_behind(rank: int, processes: Processes) -> list[list[Tensor | None]]:
    """Return the same gradients, averaged together behind the backward pass."""
    found: list[list[Tensor | None]] = []
    for step in range(NUM_STEPS):
        layers, loss = branches(rank, step)
        layers[1].requires_grad_(step < 2)
        loss.backward()
        if step >= 2:
            layers[1].zero_grad(set_to_none=True)
        processes.average_gradients(layers.parameters())
        found.append(gradients_of(layers))
    return found


def make_step(processes: Processes, **options: Any) -> TrainingStep:
    net = make_net()
    objective = ElasticObjective(net, nn.MSELoss(), **LOSS)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return TrainingStep(objective, net, optimizer, processes=processes, **options)


def trained(training_step: TrainingStep, first: int, end: int) -> dict[str, Any]:
    """Return the state after the steps from `first` to before `end`."""
    for step in range(first, end):
        training_step(cutter(*images(step, SIZE)), step)
    return training_step.state_dict()


def run_rank(rank: int, count: int, folder: Path) -> None:
    torch.set_num_threads(1)
    use_loopback()
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, timedelta(seconds=120), world_size=count, rank=rank)
    processes = Processes(rank, count)
    straight = trained(make_step(processes), 0, NUM_STEPS)
    halfway = trained(make_step(processes), 0, 2)
    resumed_step = make_step(processes)
    resumed_step.load_state_dict(halfway)
    results = {
        "by buckets": [means_by_buckets(rank, count, each) for each in BUCKET_MBS],
        "behind": means_behind(rank, processes),
        "straight": straight["net"],
        "resumed": trained(resumed_step, 2, NUM_STEPS)["net"],
        # As states were made before there were buckets; `auto_batch` still averages so.
        "in one reduction": trained(make_step(processes, auto_batch=True), 0, NUM_STEPS)["net"],
        "in parts": trained(make_step(processes, parts=2), 0, NUM_STEPS)["net"],
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of several processes found."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this build of torch has no gloo")
    folder = tmp_path_factory.mktemp("buckets")
    count: int = request.param
    start_ranks(run_rank, (count, folder), count)
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def test_gradients_are_the_means_over_the_processes(results: list[dict[str, Any]]) -> None:
    """Also those of parameters that a step leaves out, or that were frozen since."""
    for result in results:
        for found in result["by buckets"]:
            torch.testing.assert_close(found, result["behind"], rtol=1e-6, atol=1e-7)
        assert result["behind"][1][2] is None  # the layer that odd steps leave out


def test_every_process_has_the_same_bits(results: list[dict[str, Any]]) -> None:
    for result in results[1:]:
        torch.testing.assert_close(result["by buckets"], results[0]["by buckets"], rtol=0, atol=0)


def test_a_resumed_run_goes_on_to_the_same_bits(results: list[dict[str, Any]]) -> None:
    """The order of sending is learned anew, and changes no sum."""
    for result in results:
        torch.testing.assert_close(result["resumed"], result["straight"], rtol=0, atol=0)


def test_several_processes_train_as_one(results: list[dict[str, Any]]) -> None:
    alone = trained(make_step(Processes()), 0, NUM_STEPS)["net"]
    for result in results:
        for name in ("straight", "in parts", "in one reduction"):
            torch.testing.assert_close(result[name], alone, rtol=1e-10, atol=1e-12)


def test_two_processes_go_on_to_the_bits_of_one_reduction(results: list[dict[str, Any]]) -> None:
    """A sum of two does not depend on the order: older states of two processes resume exactly."""
    if len(results) == 2:
        for result in results:
            torch.testing.assert_close(
                result["straight"], result["in one reduction"], rtol=0, atol=0
            )


# --- one process, which sends to itself


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this build of torch has no gloo")
    use_loopback()
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", world_size=1, rank=0)
    yield
    dist.destroy_process_group()


def test_buckets_are_sent_while_the_backward_pass_runs(
    group_of_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step on: the first one learns the order."""
    events: list[str] = []
    all_reduce = dist.all_reduce

    def noted_all_reduce(*arguments: Any, **keywords: Any) -> Any:
        events.append("sent")
        return all_reduce(*arguments, **keywords)

    monkeypatch.setattr(dist, "all_reduce", noted_all_reduce)
    first = nn.Linear(3, 3, bias=False)
    last = nn.Linear(3, 3, bias=False)
    # The one that is used last stands first, so that buckets become complete in another order.
    buckets = GradientBuckets(
        [*last.parameters(), *first.parameters()], num_processes=1, bucket_mb=1e-6
    )
    first.weight.register_post_accumulate_grad_hook(lambda _: events.append("first"))
    last.weight.register_post_accumulate_grad_hook(lambda _: events.append("last"))
    for _ in range(2):
        with buckets.averaging():
            last(first(torch.ones(2, 3))).sum().backward()
    assert events[:4] == ["last", "first", "sent", "sent"]
    assert events[4:].index("sent") < events[4:].index("first")


def test_outside_the_block_nothing_is_sent(
    group_of_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = nn.Linear(3, 3)
    buckets = GradientBuckets(layer.parameters(), num_processes=1)
    with buckets.averaging():
        layer(torch.ones(2, 3)).sum().backward()
    monkeypatch.delattr(dist, "all_reduce")
    layer(torch.ones(2, 3)).sum().backward()


def loss_in_pieces(layer: nn.Module, num_calls: int) -> Tensor:
    """A loss whose backward pass reaches a layer anew for each of its calls."""
    y = torch.ones(2, 3, requires_grad=True)
    for _ in range(num_calls):
        y = checkpoint(layer, y, use_reentrant=True)
    assert isinstance(y, Tensor)
    return y.square().sum()


def test_gradients_that_grow_in_pieces_are_sent_whole(group_of_one: None) -> None:
    layer = nn.Linear(3, 3)
    loss_in_pieces(layer, num_calls=2).backward()
    expected = gradients_of(layer)
    buckets = GradientBuckets(layer.parameters(), num_processes=1, bucket_mb=1e-6)
    for _ in range(3):
        layer.zero_grad(set_to_none=True)
        with buckets.averaging():
            loss_in_pieces(layer, num_calls=2).backward()
        torch.testing.assert_close(gradients_of(layer), expected, rtol=0, atol=0)


def test_a_gradient_that_grows_after_it_was_sent_is_an_error(group_of_one: None) -> None:
    layer = nn.Linear(3, 3)
    buckets = GradientBuckets(layer.parameters(), num_processes=1)
    with buckets.averaging():
        loss_in_pieces(layer, num_calls=1).backward()
    with (
        pytest.raises(RuntimeError, match=r"has grown after .* with use_reentrant=False"),
        buckets.averaging(),
    ):
        loss_in_pieces(layer, num_calls=2).backward()


def test_a_bucket_without_limit_holds_everything(group_of_one: None) -> None:
    layer = nn.Linear(3, 3)
    buckets = GradientBuckets(layer.parameters(), num_processes=1, bucket_mb=math.inf)
    with buckets.averaging():
        layer(torch.ones(2, 3)).sum().backward()
    torch.testing.assert_close(
        gradients_of(layer), [torch.full((3, 3), 2.0), torch.full((3,), 2.0)]
    )


def test_buckets_of_many_processes_are_larger() -> None:
    """So that the pieces of a ring do not become as short as its latency."""
    assert [bucket_mb_for(count) for count in (2, 8, 100)] == [0.25, 0.25, 3.0]


def test_what_no_bucket_holds_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"bucket_mb 0: expected a number above 0"):
        GradientBuckets([], num_processes=2, bucket_mb=0)
