"""TrainingStep: the moving average, float16 with its scaler, and exact states."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elasticnet import ElasticObjective, ElasticWrapper
from elasticnet.training.processes import Processes
from elasticnet.training.state import pack_state, unpack_state
from elasticnet.training.step import AUTOCAST_DTYPES, Batch, TrainingStep
from step_cases import LOSS, assert_close, cutter, images, make_net, make_step, naive_training

# --- averages and float16


@given(st.sampled_from([0.3, 0.5, 0.9, 0.999]))
@settings(max_examples=4)
def test_the_average_follows_timm_s_warm_up(decay: float) -> None:
    _, weights = naive_training(make_net(), 6, LOSS)
    net = make_net()
    step_ = make_step(net, ema=decay)
    average = weights[0]
    for step in range(6):
        step_(cutter(*images(step)), step)
        # 0 at the first step: the average starts from its weights
        now = min(decay, 1 - (1 + step) ** (-2 / 3))
        average = {
            name: now * average[name] + (1 - now) * tensor for name, tensor in weights[step].items()
        }
        assert_close(dict(step_.averaged_net.state_dict()), average)
    assert isinstance(step_.averaged_net, ElasticWrapper)
    assert step_.averaged_net is not net
    assert not step_.averaged_net.training
    assert net.training


def test_without_an_average_the_net_itself_is_shipped() -> None:
    net = make_net()
    assert make_step(net).averaged_net is net


def make_half(loss_factor: float, fused: bool, seed: int = 0, **options: Any) -> TrainingStep:
    """Float32 weights in channels-last and Adam, as a recipe has them.

    A large `loss_factor` makes float16 overflow.
    """
    net = make_net(seed=seed).float().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    objective = ElasticObjective(
        net, lambda p, y: loss_factor * nn.functional.mse_loss(p, y), **LOSS
    )
    return TrainingStep(
        objective, net, torch.optim.Adam(net.parameters(), lr=1e-2, fused=fused), **options
    )


def floats(step: int) -> Batch:
    return cutter(*(tensor.float() for tensor in images(step)))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_float16_step_that_overflows_is_skipped_and_the_scale_halved(
    fused: bool, clip: float | None
) -> None:
    step_ = make_half(30.0, fused, precision="float16", clip_norm=clip)
    overflows = 0
    for step in range(12):
        before = [p.clone() for p in step_.net.parameters()]
        scale = step_.scaler.get_scale()
        terms = step_(floats(step), step)
        assert terms.total.isfinite()
        skipped = all(map(torch.equal, before, step_.net.parameters()))
        assert step_.scaler.get_scale() == (scale / 2 if skipped else scale)
        overflows += skipped
    assert 0 < overflows < 12, "the factor shows both: steps that overflow, and the scale that fits"
    assert int(next(iter(step_.optimizer.state.values()))["step"]) == 12 - overflows
    assert all(p.isfinite().all() for p in step_.net.parameters())


@pytest.mark.parametrize("name", ["clip_norm", "clip_value"])
def test_float16_gradients_are_clipped_without_their_scale(name: str) -> None:
    """With SGD at a rate of 1 a step moves the weights by the clipped gradient itself."""
    net = make_net().float()
    options: dict[str, Any] = {"precision": "float16", name: 1e-3}
    step_ = TrainingStep(
        ElasticObjective(net, nn.MSELoss(), 0.1),
        net,
        torch.optim.SGD(net.parameters(), 1),
        **options,
    )
    before = nn.utils.parameters_to_vector(net.parameters()).detach()
    moved = torch.zeros(1)
    for step in range(8):
        if not moved.any():  # the first steps overflow and are skipped
            step_(floats(step), step)
            moved = nn.utils.parameters_to_vector(net.parameters()).detach() - before
    size = moved.norm() if name == "clip_norm" else moved.abs().max()
    assert size.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_autocast_computes_in_the_precision_and_keeps_the_weights(precision: str) -> None:
    step_ = make_half(1.0, True, precision=precision)
    dtypes: list[torch.dtype] = []
    step_.net.blocks[0].first.register_forward_hook(lambda *hook: dtypes.append(hook[2].dtype))  # pyright: ignore
    step_(floats(0), 0)
    assert dtypes == [AUTOCAST_DTYPES[precision]]
    assert {p.dtype for p in step_.net.parameters()} == {torch.float32}


# --- states


def bits(step_: TrainingStep) -> bytes:
    return pack_state(0, step_.state_dict())


@given(
    st.integers(0, 6),
    st.sampled_from(list(AUTOCAST_DTYPES)),
    st.sampled_from([0.0, 0.9]),
    st.sampled_from([None, 0.05]),
    st.sampled_from([1, 2]),
)
@settings(max_examples=25)
def test_a_run_cut_at_any_step_goes_on_to_the_same_bits(
    cut: int, precision: str, ema: float, clip: float | None, parts: int
) -> None:
    options = {
        "precision": precision,
        "ema": ema,
        "clip_norm": clip,
        "clip_value": clip,
        "parts": parts,
    }

    def make(seed: int) -> TrainingStep:
        step_ = make_half(30.0, True, seed=seed, **options)  # in float16 the first steps overflow
        if precision == "float64":
            step_.net.double()
            step_.averaged_net.double()
        return step_

    def train(step_: TrainingStep, first: int, last: int) -> None:
        for step in range(first, last):
            batch = cutter(*images(step)) if precision == "float64" else floats(step)
            step_(batch, step, learning_rate=0.1 / (step + 1))

    whole = make(seed=0)
    train(whole, 0, 6)
    before = make(seed=0)
    train(before, 0, cut)

    after = make(seed=1)
    _, state = unpack_state(pack_state(cut, before.state_dict()))
    after.load_state_dict(state)
    assert bits(after) == bits(before)
    train(after, cut, 6)
    assert bits(after) == bits(whole)


def test_a_new_average_starts_from_the_loaded_weights_and_a_new_scaler_afresh() -> None:
    old = make_half(1.0, True)
    old(floats(0), 0)
    new = make_half(1.0, True, seed=1, ema=0.9, precision="float16")
    _, state = unpack_state(pack_state(1, old.state_dict()))
    new.load_state_dict(state)
    assert_close(dict(new.averaged_net.state_dict()), dict(old.net.state_dict()))
    assert new.scaler.get_scale() == 2**16


@pytest.mark.parametrize(("count", "parts"), [(1, 4), (2, 2), (3, 2), (8, 1)])
def test_a_resumed_process_takes_its_share_of_the_parts(count: int, parts: int) -> None:
    """Four parts fitted one process: of several, each takes only as many as that leaves it."""
    state = make_step(make_net(), parts=4, auto_batch=True).state_dict()
    resumed = make_step(make_net(), processes=Processes(0, count), auto_batch=True)
    resumed.load_state_dict(state)
    assert resumed.parts == parts
    fixed = make_step(make_net(), parts=2)
    fixed.load_state_dict(state)
    assert fixed.parts == 2, "without auto_batch the option counts"


def test_two_steps_from_one_state_do_not_share_what_the_optimiser_keeps() -> None:
    first = make_half(1.0, True)
    first(floats(0), 0)
    state = first.state_dict()
    moments = copy.deepcopy(state["optimizer"]["state"])
    second = make_half(1.0, True, seed=1)

    second.load_state_dict(state)
    second(floats(1), 1)

    torch.testing.assert_close(state["optimizer"]["state"], moments, rtol=0, atol=0)


def test_weights_that_are_not_finite_are_never_saved() -> None:
    """A finite loss with an update that is not: no line of the log shows it before the save."""
    net = make_net()
    step = make_step(net)
    terms = step(cutter(*images(0)), 0, learning_rate=float("inf"))
    assert terms.total.isfinite()
    with pytest.raises(
        FloatingPointError, match=r"NaN or infinite \(first: blocks.0.first.weight\).*not saved"
    ):
        step.state_dict()


class Causal(nn.Module):
    """An attention block whose mask is a buffer that holds -inf."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attend(x, x, x, attn_mask=self.mask, need_weights=False)
        return x + attended


def make_causal_step(**options: Any) -> TrainingStep:
    net = ElasticWrapper([Causal(), Causal()], nn.Linear(8, 3), layout="b n c")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    objective = ElasticObjective(net, nn.L1Loss(), psd_weight=0.1)
    return TrainingStep(objective, net, optimizer, **options)


def test_a_mask_of_infinite_values_is_saved_and_averaged() -> None:
    step = make_causal_step(ema=0.9)
    for number in range(3):
        step(lambda _part, _parts: (torch.rand(2, 5, 8), torch.rand(2, 5, 3)), number)
    state = step.state_dict()
    mask = torch.full((5, 5), -torch.inf).triu(1)
    assert torch.equal(state["net"]["blocks.0.mask"], mask)
    assert torch.equal(state["ema"]["blocks.1.mask"], mask)


def test_a_buffer_that_became_nan_is_never_saved() -> None:
    step = make_causal_step()
    step.net.get_buffer("blocks.1.mask").fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"buffer blocks\.1\.mask became NaN.*not saved"):
        step.state_dict()
