"""TrainingStep against the naive loop: parts of a batch, memory that runs out, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elasticnet import Distillation, ElasticObjective, ElasticWrapper, LossTerms
from elasticnet.distillation_losses import Comparison, squared_unit_distance, unit_distance
from elasticnet.loss_weights import normalised
from elasticnet.training.step import Batch, TrainingStep
from step_cases import (
    LOSS,
    NUM_BLOCKS,
    assert_close,
    cutter,
    images,
    limit_memory,
    make_net,
    make_step,
    naive_training,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


# --- parts of a batch


@given(
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.sets(st.integers(1, NUM_BLOCKS)),
    st.one_of(st.none(), st.integers(0, 3)),
    st.sampled_from([unit_distance, squared_unit_distance]),
)
def test_parts_give_the_gradients_of_the_joined_batch(
    parts: int, share: int, taps: set[int], sampled: int | None, compare: Comparison
) -> None:
    depths = (*sorted(taps | {NUM_BLOCKS}),)
    loss = {
        "psd_weight": 0.0,
        "distillations": [Distillation(of="maps", compare=compare, weight=0.1)],
        "tap_weights": normalised(depths),
        "sampled_taps": sampled,
        "seed": 3,
    }
    net = make_net(depths)
    step_ = make_step(net, loss, parts=parts)
    joined = make_net(depths)
    objective = ElasticObjective(joined, nn.MSELoss(), **loss)
    optimizer = torch.optim.SGD(joined.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        x, y = images(step, share * parts)
        terms = step_(cutter(x, y), step)
        optimizer.zero_grad(set_to_none=True)
        expected = objective(x, y, step=step)
        expected.total.backward()
        optimizer.step()
        assert_close([p.grad for p in net.parameters()], [p.grad for p in joined.parameters()])
        assert_close(dict(net.state_dict()), dict(joined.state_dict()))
        assert_close([*terms[:4]], [*expected[:4]])
        assert_close(terms.per_depth, expected.per_depth)


def test_the_learning_rate_of_a_step_reaches_every_group() -> None:
    net = make_net()
    groups = [{"params": net.blocks.parameters()}, {"params": net.head.parameters(), "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.25)
    step = TrainingStep(ElasticObjective(net, nn.MSELoss(), 0.1), net, optimizer)
    step(cutter(*images(0)), 0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    step(cutter(*images(1)), 1, learning_rate=0)
    assert_close(dict(net.state_dict()), before)


def test_terms_of_a_part_outlive_memory_that_the_next_part_overwrites() -> None:
    """As a CUDA graph does it: every call writes its losses into the same tensors."""
    net = make_net()
    shared = torch.zeros(4 + NUM_BLOCKS, dtype=torch.float64)
    objective = ElasticObjective(net, nn.MSELoss(), 0.1)

    def overwriting(x: Tensor, y: Tensor, step: int) -> LossTerms:
        terms = objective(x, y)
        shared.copy_(torch.stack([*terms[:4], *terms.per_depth.values()]).detach())
        values = shared.unbind()
        return LossTerms(terms.total, *values[1:4], dict(zip(net.taps, values[4:], strict=True)))  # pyright: ignore

    x, y = images(0)
    expected = objective(x, y)
    step_ = TrainingStep(overwriting, net, torch.optim.SGD(net.parameters()), parts=4)
    terms = step_(cutter(x, y), 0)
    assert_close([*terms[:4]], [*expected[:4]])
    assert_close(terms.per_depth, expected.per_depth)


def test_gradients_of_the_first_part_outlive_memory_that_the_next_part_overwrites() -> None:
    """As a CUDA graph does it: its gradients lie where its next call writes."""
    net = make_net()
    plain = ElasticObjective(net, nn.MSELoss(), **LOSS)
    memory: dict[Tensor, Tensor] = {}

    def overwriting(x: Tensor, y: Tensor, step: int) -> LossTerms:
        for gradient in memory.values():
            gradient.fill_(math.nan)
        return plain(x, y)

    def keep_in_memory(parameter: Tensor) -> None:
        if parameter not in memory and parameter.grad is not None:
            memory[parameter] = parameter.grad
            parameter.grad = memory[parameter].view_as(parameter)

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(keep_in_memory)
    step_ = TrainingStep(overwriting, net, torch.optim.SGD(net.parameters(), lr=0.1), parts=4)
    step_(cutter(*images(0)), 0)

    joined = make_net()
    make_step(joined, LOSS)(cutter(*images(0)), 0)
    assert_close(dict(net.state_dict()), dict(joined.state_dict()))


@needs_gpu
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_a_cuda_graph(parts: int) -> None:
    """A captured backward pass writes every part's gradients into the same memory."""
    torch._dynamo.reset()  # numbers of earlier objectives would stay open and break the graph
    joined = make_net().cuda()
    net = make_net().cuda()
    compiled = torch.compile(ElasticObjective(net, nn.MSELoss(), **LOSS), mode="reduce-overhead")
    step_ = TrainingStep(compiled, net, torch.optim.SGD(net.parameters(), lr=0.1), parts=parts)
    plain = TrainingStep(
        ElasticObjective(joined, nn.MSELoss(), **LOSS), joined, torch.optim.SGD(joined.parameters())
    )
    for step in range(6):
        x, y = (tensor.cuda() for tensor in images(step))
        terms = step_(cutter(x, y), step)
        expected = plain(cutter(x, y), step, learning_rate=0.1)
        torch.testing.assert_close([*terms[:4]], [*expected[:4]], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            dict(net.state_dict()), dict(joined.state_dict()), rtol=1e-9, atol=1e-9
        )


# --- memory that runs out


@pytest.mark.parametrize("place", ["block", "head", "backward"])
@pytest.mark.parametrize(("most", "parts"), [(2, 2), (1, 4)])
def test_auto_batch_doubles_the_parts_says_so_and_trains_on(
    place: str, most: int, parts: int, caplog: pytest.LogCaptureFixture
) -> None:
    loss = {**LOSS, "sampled_taps": 2}
    expected, weights = naive_training(make_net(), 5, loss)
    net = make_net()
    step_ = make_step(net, loss, auto_batch=True)
    for step in range(5):
        if step == 2:
            limit_memory(net, place, most)
        terms = step_(cutter(*images(step)), step)
        assert step_.parts == (parts if step >= 2 else 1)
        assert_close([*terms[:4]], [*expected[step][:4]])
        assert_close(dict(net.state_dict()), weights[step])
    counts = [2, 4][: parts // 2]
    assert caplog.messages == [
        "out of GPU memory in process 0: from now on it computes its share of a batch in "
        f"{count} parts, to the same gradients"
        for count in counts
    ]


def test_without_auto_batch_the_remedy_is_named() -> None:
    net = make_net()
    limit_memory(net, "head", 3)
    with pytest.raises(
        RuntimeError, match=r"out of GPU memory at step 7; .*smaller batch.*--auto-batch"
    ) as caught:
        make_step(net)(cutter(*images(0)), 7)
    assert "(CUDA out of memory. Tried to allocate 4 GiB.)" in str(caught.value)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def chunks(x: Tensor, y: Tensor) -> Batch:
    """Another way to cut a batch, which fails at the last part, by an IndexError."""
    return lambda part, parts: (x.chunk(parts)[part], y.chunk(parts)[part])


@pytest.mark.parametrize("cut", [cutter, chunks])
def test_a_batch_that_cannot_be_split_further(cut: Callable[[Tensor, Tensor], Batch]) -> None:
    net = make_net()
    limit_memory(net, "block", 0)
    step = make_step(net, auto_batch=True)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(
        RuntimeError, match=r"the batch cannot be split into 8 parts \(.*\); take a smaller input"
    ):
        step(cut(*images(0)), 0)
    assert step.parts == 4
    assert_close(dict(net.state_dict()), before)


@needs_gpu
def test_a_small_gpu_gets_its_batch_in_parts() -> None:
    def train(net: ElasticWrapper, **options: Any) -> TrainingStep:
        step_ = make_step(net, **options)
        for step in range(2):
            x, y = (tensor.cuda() for tensor in images(step, 8, 16, 256))
            step_(cutter(x, y), step)
        return step_

    expected = make_net(channels=16).cuda()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(expected)
    peak = torch.cuda.max_memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    net = make_net(channels=16).cuda()
    try:
        torch.cuda.set_per_process_memory_fraction(0.7 * peak / total)
        assert train(net, auto_batch=True).parts > 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(
        dict(net.state_dict()), dict(expected.state_dict()), rtol=1e-9, atol=1e-9
    )


# --- clipping


@given(
    st.sampled_from([None, 1e-2, 1e3]), st.sampled_from([None, 1e-3, 1e3]), st.sampled_from([1, 2])
)
@settings(max_examples=15)
def test_clipping_as_torch_does_it(norm: float | None, value: float | None, parts: int) -> None:
    """By norm, then by value, after all parts are in."""

    def clip(net: ElasticWrapper) -> None:
        if norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), norm)
        if value is not None:
            nn.utils.clip_grad_value_(net.parameters(), value)

    _, weights = naive_training(make_net(), 3, LOSS, clip)
    net = make_net()
    step_ = make_step(net, clip_norm=norm, clip_value=value, parts=parts)
    for step in range(3):
        step_(cutter(*images(step)), step)
        assert_close(dict(net.state_dict()), weights[step])


# --- misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "half"},
            "precision 'half': expected one of float64, float32, bfloat16, float16",
        ),
        ({"ema": 1.0}, "ema 1.0: expected a decay from 0"),
        ({"ema": -0.1}, "ema -0.1: expected a decay from 0"),
        ({"clip_norm": 0.0}, "clip_norm 0.0: expected a number above 0, or None"),
        ({"clip_value": -1.0}, "clip_value -1.0: expected a number above 0, or None"),
        ({"clip_value": float("nan")}, "clip_value nan: expected a number above 0, or None"),
        ({"parts": 0}, "parts 0: expected at least 1"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_step(make_net(), **options)


def test_an_optimiser_of_learned_weights_is_refused() -> None:
    net = make_net()
    objective = ElasticObjective(
        net, nn.MSELoss(), 0.1, tap_weights=nn.Parameter(torch.ones(len(net.taps)))
    )
    optimizer = torch.optim.SGD(objective.parameters())
    with pytest.raises(ValueError, match=r"a parameter of shape .* that is not one of the net"):
        TrainingStep(objective, net, optimizer)
    TrainingStep(objective, net, torch.optim.SGD(net.parameters()))
