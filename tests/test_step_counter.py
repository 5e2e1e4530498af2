"""The steps that an objective counts for itself: in training, saved, loaded, averaged, compiled."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from elasticnet import ElasticObjective
from ranks import start_ranks
from tiny_nets import conv_net

X = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(2))
KEY = "step_counter.steps"


def weight_of_step(step: int) -> float:
    return float(step)


def scheduled(**options: Any) -> ElasticObjective:
    """Return an objective whose self-distillation weighs as much as the step is large."""
    arguments: dict[str, Any] = {"psd_weight": weight_of_step, **options}
    return ElasticObjective(conv_net(3), nn.L1Loss(), **arguments)


def step_of(objective: ElasticObjective, call: Callable[..., Any] | None = None) -> int:
    """Return the step of the next forward of a `scheduled` objective, as its loss shows it."""
    run = objective if call is None else call
    shown = run(X, Y).distillation / objective(X, Y, step=1).distillation
    return round(shown.item())


# --- what is counted


def test_training_forwards_without_a_step_are_counted() -> None:
    objective = scheduled()
    assert [step_of(objective) for _ in range(4)] == [0, 1, 2, 3]
    assert objective.step_counter.steps == 4


def test_a_forward_in_eval_mode_uses_the_count_and_leaves_it() -> None:
    objective = scheduled()
    objective(X, Y)
    objective.eval()
    assert [step_of(objective) for _ in range(3)] == [1, 1, 1]
    objective.train()
    assert [step_of(objective) for _ in range(2)] == [1, 2]


def test_a_validation_that_puts_the_net_alone_into_eval_mode_leaves_the_count() -> None:
    objective = scheduled()
    objective.net.eval()
    with torch.no_grad():
        objective(X, Y)
    assert objective.step_counter.steps == 0


def test_a_training_of_a_net_in_eval_mode_counts() -> None:
    objective = scheduled()
    objective.net.eval()
    assert [step_of(objective) for _ in range(3)] == [0, 1, 2]


def test_an_explicit_step_leaves_the_count() -> None:
    objective = scheduled()
    objective(X, Y)
    first = objective(X, Y, step=7)
    second = objective(X, Y, step=7)
    assert torch.equal(first.total, second.total)
    assert objective.step_counter.steps == 1


def test_several_forwards_are_one_step() -> None:
    objective = scheduled(accumulation=3)
    assert [step_of(objective) for _ in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_what_does_not_depend_on_the_step_counts_nothing() -> None:
    objective = ElasticObjective(conv_net(2), nn.L1Loss(), 0.1)
    objective(X, Y)
    assert objective.step_counter.steps == 0


def test_depths_and_tap_weights_of_the_next_step() -> None:
    net = conv_net(4)
    objective = ElasticObjective(
        net,
        nn.L1Loss(),
        0,
        sampled_taps=1,
        tap_weights=lambda step: dict.fromkeys(net.taps, 1.0 + step),
    )
    for step in range(6):
        assert objective.depths_at() == objective.depths_at(step)
        assert objective.tap_weights_at()[4] == 1.0 + step
        assert tuple(objective(X, Y).per_depth) == objective.depths_at(step)


@pytest.mark.parametrize("accumulation", [0, -1, 1.5, True])
def test_an_accumulation_that_is_no_number_of_forwards_raises(accumulation: Any) -> None:
    message = f"accumulation {accumulation!r}: expected a whole number, at least 1"
    with pytest.raises(ValueError, match=message):
        scheduled(accumulation=accumulation)


# --- where it is kept


def test_the_count_stays_a_whole_number_on_the_cpu() -> None:
    with torch.device("meta"):
        objective = scheduled()
    objective.half().to("meta").to_empty(device="meta")
    steps = objective.step_counter.steps
    assert steps.dtype == torch.int64
    assert steps.device.type == "cpu"
    assert not list(objective.buffers())


def test_a_loader_that_asks_module_by_module_finds_the_count_and_cannot_move_it() -> None:
    objective = scheduled()
    objective(X, Y)

    ((name, found),) = objective.step_counter.named_buffers(recurse=False)
    assert name == "steps"
    assert found == 1
    found.data = torch.zeros_like(found)  # as FSDP moves the buffers that it finds to a GPU

    assert objective.step_counter.steps == 1
    objective(X, Y)
    assert objective.step_counter.steps == 2


def test_the_count_goes_through_a_state_dict() -> None:
    objective = scheduled()
    for _ in range(3):
        objective(X, Y)
    state = copy.deepcopy(objective.state_dict())
    assert state[KEY] == 3

    resumed = scheduled()
    resumed.load_state_dict(state)
    assert step_of(resumed) == 3


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_without_a_count_begins_at_0(strict: bool) -> None:
    objective = scheduled()
    objective(X, Y)
    state = objective.state_dict()
    del state[KEY]
    result = objective.load_state_dict(state, strict=strict)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert step_of(objective) == 0


def test_a_wrong_key_is_still_refused() -> None:
    objective = scheduled()
    state = {**objective.state_dict(), "step_counter.stops": torch.zeros(())}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*step_counter\.stops"):
        objective.load_state_dict(state)


def test_the_count_goes_through_safetensors(tmp_path: Path) -> None:
    objective = scheduled()
    objective(X, Y)
    save_file(objective.state_dict(), tmp_path / "state.safetensors")
    save_model(objective, str(tmp_path / "model.safetensors"))
    older = {name: value for name, value in objective.state_dict().items() if name != KEY}
    save_file(older, tmp_path / "older.safetensors")

    resumed = scheduled()
    resumed.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert step_of(resumed) == 1
    load_model(resumed, tmp_path / "older.safetensors")
    assert step_of(resumed) == 0
    load_model(resumed, tmp_path / "model.safetensors")
    assert step_of(resumed) == 1


@pytest.mark.parametrize("name", ["ModelEmaV2", "ModelEmaV3"])
def test_timm_averages_an_objective_that_counts(name: str) -> None:
    model_ema = pytest.importorskip("timm.utils.model_ema")
    objective = scheduled()
    average = getattr(model_ema, name)(objective, decay=0.5)
    for _ in range(3):
        objective(X, Y)
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(1.0)
        average.update(objective)
    expected = next(objective.parameters()) - 1.0 * (0.5 + 0.25 + 0.125)
    torch.testing.assert_close(next(average.module.parameters()), expected)
    older = average.module.state_dict()
    del older[KEY]
    average.module.load_state_dict(older)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_pytorch_averages_an_objective_that_counts(use_buffers: bool) -> None:
    objective = scheduled()
    average = AveragedModel(objective, use_buffers=use_buffers)
    for _ in range(2):
        objective(X, Y)
        average.update_parameters(objective)
    state = average.state_dict()
    del state[f"module.{KEY}"]
    average.load_state_dict(state)
    assert objective.step_counter.steps == 2


def test_the_count_goes_through_a_distributed_checkpoint_s_state_dict() -> None:
    state_dicts: Any = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    objective = scheduled()
    objective(X, Y)
    state = copy.deepcopy(state_dicts.get_model_state_dict(objective))
    assert state[KEY] == 1
    objective(X, Y)
    state_dicts.set_model_state_dict(objective, state)
    assert step_of(objective) == 1


# --- compiled and on several processes


@pytest.mark.parametrize(
    "options",
    [{}, {"sampled_taps": 1}, {"sampled_taps": 1, "psd_weight": 0.1}, {"accumulation": 2}],
    ids=["schedule", "schedule and sampled taps", "sampled taps", "accumulation"],
)
def test_a_compiled_objective_counts_and_is_not_compiled_again(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    objective = scheduled(**options)
    plain = copy.deepcopy(objective)
    compiled = torch.compile(objective, backend=backend)
    depths: set[tuple[int, ...]] = set()
    for _ in range(12):
        terms = compiled(X, Y)
        depths.add(tuple(terms.per_depth))
        torch.testing.assert_close(terms, plain(X, Y))
    assert torch.equal(objective.step_counter.steps, plain.step_counter.steps)
    assert len(graphs) == len(depths)


def count_on_a_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:  # gloo would otherwise look up this machine's name
        os.environ["GLOO_SOCKET_IFNAME"] = loopback[0]
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, timedelta(seconds=120), world_size=2, rank=rank)
    objective = scheduled(sampled_taps=1, psd_weight=0.1)
    parallel = DistributedDataParallel(nn.ModuleDict({"objective": objective}))
    # As in a trainer's module, of which the objective is a part.
    parallel.module.forward = objective.forward
    depths: list[tuple[int, ...]] = []
    for _ in range(4):
        terms = parallel(X, Y)
        terms.total.backward()
        depths.append(tuple(terms.per_depth))
    torch.save((depths, objective.step_counter.steps), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="this build of torch has no gloo",
)
def test_all_processes_count_the_same_steps(tmp_path: Path) -> None:
    start_ranks(count_on_a_rank, (tmp_path,), 2)
    objective = scheduled(sampled_taps=1)
    expected = [objective.depths_at(step) for step in range(4)]
    for rank in range(2):
        depths, steps = torch.load(tmp_path / f"{rank}.pt")
        assert depths == expected
        assert steps == 4
