"""accelerate: what it prepares, and what it puts around the forward, trains as the plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from plain_loop import (
    LEARNING_RATE,
    assert_equal,
    batches,
    make_net,
    make_objective,
    make_objective_by_step,
    make_optimizer,
    train,
    trained_by_sgd,
    trained_by_step,
    trained_in_bfloat16,
    trained_plainly,
)

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")


def test_a_prepared_net_trains_as_in_the_plain_loop() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    net = make_net()
    prepared, optimizer = accelerator.prepare(net, make_optimizer(net.parameters()))
    train(make_objective(prepared), optimizer, backward=accelerator.backward)
    assert_equal(net.state_dict(), trained_plainly())


@pytest.mark.parametrize("what", ["the net", "the objective"])
def test_bfloat16_reaches_every_pass_of_the_training(what: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    net = make_net()
    dtypes: list[torch.dtype] = []

    def note_dtype(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        dtypes.append(output.dtype)

    net.get_submodule("blocks.1.linear").register_forward_hook(note_dtype)
    optimizer = accelerator.prepare(make_optimizer(net.parameters()))
    if what == "the net":
        objective = make_objective(accelerator.prepare(net))
    else:
        objective = accelerator.prepare(make_objective(net))

    train(objective, optimizer, backward=accelerator.backward)
    assert dtypes == [torch.bfloat16] * len(batches())
    assert_equal(net.state_dict(), trained_in_bfloat16())


@pytest.mark.parametrize("what", ["the net", "the objective"])
def test_steps_are_counted_without_being_passed(what: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    net = make_net()
    optimizer = accelerator.prepare(make_optimizer(net.parameters()))
    if what == "the net":
        objective = make_objective_by_step(accelerator.prepare(net))
    else:
        objective = accelerator.prepare(make_objective_by_step(net))
    train(objective, optimizer, backward=accelerator.backward)
    assert_equal(net.state_dict(), trained_by_step())


def test_a_net_prepared_for_bfloat16_is_cut_after_it_is_unwrapped() -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(make_net())
    x, _ = batches()[0]
    with pytest.raises(ValueError, match=r"net\.forward was replaced.*\(del net\.forward\)"):
        prepared.truncate(2)

    net = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert_equal({"y": net.truncate(2)(x)}, {"y": net(x, depth=2)})


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_net_that_accelerate_compiles_trains_as_in_the_plain_loop(precision: str) -> None:
    torch._dynamo.reset()
    accelerator = accelerate.Accelerator(
        cpu=True, dynamo_backend="aot_eager", mixed_precision=precision
    )
    prepared = accelerator.prepare(make_net())
    optimizer = accelerator.prepare(make_optimizer(prepared.parameters()))
    train(make_objective(prepared), optimizer, backward=accelerator.backward)

    options = {"keep_fp32_wrapper": False, "keep_torch_compile": False}
    net = accelerator.unwrap_model(prepared, **options)
    # A graph casts a weight wherever it is used, as autocast does without its cache.
    in_bfloat16 = trained_in_bfloat16(cache_enabled=False)
    expected = trained_plainly() if precision == "no" else in_bfloat16
    torch.testing.assert_close(net.state_dict(), expected)
    x, _ = batches()[0]
    assert_equal({"y": net.truncate(2)(x)}, {"y": net(x, depth=2)})


@pytest.mark.slow
def test_a_saved_state_goes_on_at_its_step(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    net = make_net()
    objective, optimizer = accelerator.prepare(
        make_objective_by_step(net), make_optimizer(net.parameters())
    )
    for index, (x, target) in enumerate(batches()):
        if index == 2:
            accelerator.save_state(str(tmp_path))
            # Two steps that load_state undoes.
            train(objective, optimizer, backward=accelerator.backward)
            accelerator.load_state(str(tmp_path))
        optimizer.zero_grad()
        accelerator.backward(objective(x, target).total)
        optimizer.step()
    assert_equal(net.state_dict(), trained_by_step())


def test_a_count_beside_a_prepared_net_is_saved_if_it_is_registered(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    net = make_net()
    prepared, optimizer = accelerator.prepare(net, make_optimizer(net.parameters()))
    objective = make_objective_by_step(prepared)
    accelerator.register_for_checkpointing(objective.step_counter)

    train(objective, optimizer, backward=accelerator.backward)
    accelerator.save_state(str(tmp_path))
    train(objective, optimizer, backward=accelerator.backward)
    accelerator.load_state(str(tmp_path))

    assert objective.step_counter.steps == len(batches())
    assert_equal(net.state_dict(), trained_by_step())


def test_a_net_whose_weights_are_offloaded_is_measured_by_an_objective() -> None:
    net = make_net().eval()
    objective = make_objective(net).eval()
    x, target = batches()[0]
    with torch.no_grad():
        expected = objective(x, target)
        accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
        found = objective(x, target)
    assert all(parameter.device.type == "meta" for parameter in net.parameters())
    assert torch.equal(found.total, expected.total)


@pytest.mark.parametrize("what", ["the net", "the objective"])
def test_steps_of_accumulated_gradients_are_counted(what: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = make_net(torch.float64)
    optimizer = accelerator.prepare(make_optimizer(net.parameters()))
    if what == "the net":
        prepared = accelerator.prepare(net)
        objective = make_objective_by_step(prepared, accumulation=2)
    else:
        prepared = accelerator.prepare(make_objective_by_step(net, accumulation=2))
        objective = prepared

    for x, target in batches(torch.float64):
        for half in (slice(0, 2), slice(2, 4)):
            with accelerator.accumulate(prepared):
                accelerator.backward(objective(x[half], target[half]).total)
                optimizer.step()
                optimizer.zero_grad()

    torch.testing.assert_close(net.state_dict(), trained_by_step(torch.float64))


def test_gradient_accumulation_trains_as_one_larger_batch() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = make_net(torch.float64)
    sgd = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    prepared, optimizer = accelerator.prepare(net, sgd)
    objective = make_objective(prepared)
    for x, target in batches(torch.float64):
        for half in (slice(0, 2), slice(2, 4)):
            with accelerator.accumulate(prepared):
                accelerator.backward(objective(x[half], target[half]).total)
                optimizer.step()
                optimizer.zero_grad()
    torch.testing.assert_close(net.state_dict(), trained_by_sgd(torch.float64))
