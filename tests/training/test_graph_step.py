"""GraphStep on the CPU, where it is a plain function: it trains as the ordinary loop does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.distillation import Distillation
from elasticnet.training.graph_step import GraphStep, decay_complement, reasons_against
from elasticnet.training.processes import Processes
from elasticnet.training.step import TrainingStep
from elasticnet.training.tap_gradients import TapGradients, balanced
from no_device import AdamOfNoDevice, RefusingReads, StepOfNoDevice
from tiny_nets import conv_net

# A power of two: float32 holds it, so that rounding it to float32 changes nothing.
EXACT_RATE = 2.0**-7
TARGET_CHANNELS = 2  # of conv_net's head
SIDE = 6
BATCH_SIZE = 4


def make_objective(net: ElasticWrapper, **loss: Any) -> ElasticObjective:
    return ElasticObjective(net, nn.MSELoss(), **{"psd_weight": 0.1, **loss})


def make_step(
    loss: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32, **options: Any
) -> TrainingStep:
    torch.manual_seed(0)
    net = conv_net(3, 4).to(dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    return TrainingStep(make_objective(net, **(loss or {})), net, optimizer, **options)


class Batches:
    """Random batches by their step, a number or a tensor."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(1)
        size = (40, BATCH_SIZE, 4, SIDE, SIDE)
        self.x = torch.randn(size, generator=generator, dtype=dtype)
        self.y = self.x[:, :, :TARGET_CHANNELS].roll(1, dims=-1)

    def of_host(self, step: int) -> Callable[[int, int], tuple[Tensor, Tensor]]:
        return lambda part, num_parts: self.on_device(torch.tensor(step), part, num_parts)

    def on_device(self, step: Tensor, part: int, num_parts: int) -> tuple[Tensor, Tensor]:
        x = self.x.index_select(0, step.reshape(1))[0]
        y = self.y.index_select(0, step.reshape(1))[0]
        return x.chunk(num_parts)[part], y.chunk(num_parts)[part]


def rate_of_host(step: int) -> float:
    return EXACT_RATE * 0.5 ** (step // 4)


def rate_on_device(step: Tensor) -> Tensor:
    return EXACT_RATE * torch.exp2(-(step // 4).double())


def ordinary_losses(training_step: TrainingStep, batches: Batches, steps: range) -> Tensor:
    rows: list[Tensor] = []
    for step in steps:
        terms = training_step(batches.of_host(step), step, rate_of_host(step))
        values = [terms.total, terms.routine, terms.deep_supervision, terms.distillation]
        rows.append(torch.stack([*values, *terms.per_depth.values()]))
    return torch.stack(rows)


def graph_step_of(
    training_step: TrainingStep, batches: Batches, steps_done: int = 0, max_unread: int = 100
) -> GraphStep:
    return GraphStep(
        training_step,
        batches.on_device,
        rate_on_device,
        steps_done=steps_done,
        max_unread=max_unread,
    )


def assert_same_state(found: Any, wanted: Any) -> None:
    """All weights, moments and averages are equal to the bit; the optimiser's own rate is not."""
    for group in (*found["optimizer"]["param_groups"], *wanted["optimizer"]["param_groups"]):
        group.pop("lr")
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"ema": 0.9},
    "clipped": {"clip_norm": 0.02, "clip_value": 0.01},
    "parts": {"parts": 2},
    "bfloat16": {"precision": "bfloat16"},
    "float64": {"precision": "float64"},
    "all": {"ema": 0.99, "clip_norm": 0.1, "parts": 4, "precision": "bfloat16"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_weights_are_those_of_the_ordinary_loop_to_the_bit(name):
    dtype = torch.float64 if name == "float64" else torch.float32
    batches = Batches(dtype)
    ordinary = make_step(dtype=dtype, **OPTIONS[name])
    graphed = make_step(dtype=dtype, **OPTIONS[name])

    losses = ordinary_losses(ordinary, batches, range(12))
    graph_step = graph_step_of(graphed, batches)
    for _ in range(12):
        graph_step()

    found = graph_step.take_losses()
    assert found.depths == (1, 2, 3)
    assert torch.equal(found.rows, losses)
    assert_same_state(graphed.state_dict(), ordinary.state_dict())


def test_a_rate_that_float32_rounds_changes_the_weights_by_rounding_alone():
    batches = Batches()
    ordinary = make_step(ema=0.9)
    graphed = make_step(ema=0.9)
    for step in range(20):
        ordinary(batches.of_host(step), step, 1.1e-3 + 1e-5 * step)
    graph_step = GraphStep(graphed, batches.on_device, lambda step: 1.1e-3 + 1e-5 * step.double())
    for _ in range(20):
        graph_step()
    for found, wanted in zip(graphed.net.parameters(), ordinary.net.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_training_resumed_in_the_middle_goes_on_to_the_same_bits():
    batches = Batches()
    whole = make_step(ema=0.9)
    graph_step = graph_step_of(whole, batches)
    for _ in range(5):
        graph_step()
    state = whole.state_dict()
    resumed = make_step(ema=0.9)
    resumed.load_state_dict(state)
    for _ in range(5):
        graph_step()
    later = graph_step_of(resumed, batches, steps_done=5)
    for _ in range(5):
        later()
    assert_same_state(resumed.state_dict(), whole.state_dict())
    assert torch.equal(later.take_losses().rows, graph_step.take_losses().rows[5:])


def test_both_kinds_of_step_may_follow_each_other():
    batches = Batches()
    ordinary = make_step()
    ordinary_losses(ordinary, batches, range(9))
    mixed = make_step()
    ordinary_losses(mixed, batches, range(3))
    graph_step = graph_step_of(mixed, batches, steps_done=3)
    for _ in range(3):
        graph_step()
    ordinary_losses(mixed, batches, range(6, 9))
    assert_same_state(mixed.state_dict(), ordinary.state_dict())


def test_losses_are_taken_in_order_where_their_rows_are_used_again():
    batches = Batches()
    losses = ordinary_losses(make_step(), batches, range(11))
    graph_step = graph_step_of(make_step(), batches, max_unread=4)
    taken: list[Tensor] = []
    for _ in range(11):
        graph_step()
        if graph_step.steps_done % 3 == 0:
            taken.append(graph_step.take_losses().rows)
    taken.append(graph_step.take_losses().rows)
    assert [len(rows) for rows in taken] == [3, 3, 3, 2]
    assert torch.equal(torch.cat(taken), losses)


def test_losses_that_nobody_reads_are_not_overwritten():
    graph_step = graph_step_of(make_step(), Batches(), max_unread=2)
    graph_step()
    graph_step()
    with pytest.raises(RuntimeError, match="the losses of 2 steps were not read"):
        graph_step()


def test_no_losses_without_a_step():
    graph_step = graph_step_of(make_step(), Batches())
    with pytest.raises(ValueError, match="no step was done"):
        graph_step.take_losses()


def test_the_optimiser_has_its_own_settings_after_a_step():
    training_step = make_step()
    graph_step_of(training_step, Batches())()
    (group,) = training_step.optimizer.param_groups
    assert group["lr"] == 1e-3
    assert group["capturable"] is False


# --- nothing is read by the host


def test_a_step_reads_nothing():
    graph_step = graph_step_of(make_step(ema=0.9, clip_norm=0.1, parts=2), Batches())
    with RefusingReads("cpu") as mode:
        graph_step()
        graph_step()
    assert mode.num_operations > 100


def test_the_test_of_reads_finds_one():
    def with_a_branch(step: Tensor) -> Tensor:
        return step.double() if step > 0 else 1e-3 * torch.ones(())

    graph_step = GraphStep(make_step(), Batches().on_device, with_a_branch)
    with RefusingReads("cpu"), pytest.raises(AssertionError, match="waits for the device"):
        graph_step()


def test_no_number_comes_from_the_host():
    """On meta tensors a read is an error, and a tensor on the CPU one that CUDA could not record.

    The first step may make tensors from numbers. The second one is what a graph would record.
    """
    meta = torch.device("meta")
    net = conv_net(3, 4).to(meta)
    optimizer = AdamOfNoDevice(net.parameters())
    training_step = StepOfNoDevice(
        make_objective(net),
        net,
        optimizer,
        processes=Processes(device=meta),
        clip_norm=0.1,
        clip_value=0.1,
        parts=2,
    )

    def batch_at(step: Tensor, part: int, num_parts: int) -> tuple[Tensor, Tensor]:
        x = step.expand(BATCH_SIZE // num_parts, 4, SIDE, SIDE).float()
        return x, x[:, :TARGET_CHANNELS]

    graph_step = GraphStep(training_step, batch_at, rate_on_device)
    graph_step()
    with RefusingReads("meta") as mode:
        graph_step()
    assert mode.num_operations > 100


# --- the decay of the moving average


@pytest.mark.parametrize("max_decay", [0.0, 0.9, 0.999, 0.9999])
def test_the_decay_is_that_of_timm(max_decay):
    from timm.utils.model_ema import ModelEmaV3

    timm_average = ModelEmaV3(nn.Linear(1, 1), decay=max_decay, use_warmup=True)
    for step in [0, 1, 2, 10, 100, 31_000, 1_000_000]:
        wanted = 1 - timm_average.get_decay(step + 1)
        assert decay_complement(torch.tensor(step), max_decay).item() == pytest.approx(
            wanted, rel=1e-12
        )


def test_buffers_are_averaged_as_timm_does():
    def with_buffers(training_step: TrainingStep) -> TrainingStep:
        net = training_step.net
        net.register_buffer("count", torch.tensor(3))
        net.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        net.register_buffer("mean", torch.tensor([1.0, 2.0]))
        return TrainingStep(training_step.objective, net, training_step.optimizer, ema=0.9)

    batches = Batches()
    ordinary = with_buffers(make_step())
    graphed = with_buffers(make_step())
    ordinary_losses(ordinary, batches, range(6))
    graph_step = graph_step_of(graphed, batches)
    for _ in range(6):
        graph_step()
    assert_same_state(graphed.state_dict(), ordinary.state_dict())
    assert graphed.averaged_net.count == 3


# --- what a graph cannot hold


def step_of(kind: Callable[..., torch.optim.Optimizer], **settings: Any) -> TrainingStep:
    net = conv_net(3, 4)
    return TrainingStep(make_objective(net), net, kind(net.parameters(), lr=0.1, **settings))


def joined_step() -> TrainingStep:
    training_step = make_step({"by_term": True})
    training_step.tap_gradients = TapGradients(training_step.net.parameters(), [], balanced)
    return training_step


def distilled(weight: Any) -> dict[str, Any]:
    return {
        "distillations": [
            Distillation(of="predictions", compare=F.l1_loss, teacher="deepest", weight=weight)
        ]
    }


REFUSED: dict[str, tuple[Callable[[], TrainingStep], str]] = {
    "processes": (lambda: make_step(processes=Processes(count=2)), "several processes"),
    "float16": (lambda: make_step(precision="float16"), "float16 has a gradient scaler"),
    "auto_batch": (lambda: make_step(auto_batch=True), "auto_batch splits the batch"),
    "tap_gradients": (joined_step, "tap_gradients joins"),
    "SGD": (
        lambda: step_of(torch.optim.SGD, fused=True),
        "the optimizer SGD cannot be recorded: take Adam",
    ),
    "Adam that is not fused": (
        lambda: step_of(torch.optim.Adam),
        r"the optimizer Adam cannot be recorded: take Adam\(..., fused=True\)",
    ),
    "tap_weights": (
        lambda: make_step({"tap_weights": lambda step: [1, 1, 1]}),
        "tap_weights is a function of the step",
    ),
    "psd_weight": (
        lambda: make_step({"psd_weight": lambda step: 0.1}),
        "psd_weight is a function of the step",
    ),
    "distillation": (
        lambda: make_step(distilled(lambda step: 0.1)),
        r"distillations\[0\].weight is a function of the step",
    ),
    "sampled_taps": (lambda: make_step({"sampled_taps": 1}), "sampled_taps draws other taps"),
    "bfloat16 weights": (
        lambda: make_step(dtype=torch.bfloat16, ema=0.9),
        "weights in torch.bfloat16 are averaged with random rounding",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_host_does_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        graph_step_of(make(), Batches())


def test_a_constant_weight_is_no_reason():
    assert reasons_against(make_step(distilled(0.1))) == []


def test_the_number_of_unread_steps_is_checked():
    with pytest.raises(ValueError, match="max_unread 0: expected at least 1"):
        graph_step_of(make_step(), Batches(), max_unread=0)


# --- on CUDA


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_graph_trains_as_the_ordinary_loop_on_cuda():
    def on_cuda() -> TrainingStep:
        torch.manual_seed(0)
        net = conv_net(3, 4).cuda()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
        return TrainingStep(make_objective(net), net, optimizer, ema=0.9, clip_norm=0.1)

    batches = Batches()
    batches.x = batches.x.cuda()
    batches.y = batches.y.cuda()
    ordinary = on_cuda()
    for step in range(20):
        x, y = batches.x[step], batches.y[step]
        ordinary(lambda part, num_parts, x=x, y=y: (x, y), step, rate_of_host(step))
    graphed = on_cuda()
    graph_step = graph_step_of(graphed, batches)
    for _ in range(20):
        graph_step()
    for found, wanted in zip(graphed.net.parameters(), ordinary.net.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
