from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from elasticnet import ElasticWrapper
from elasticnet.card import Metric, count_parameters, depth_costs, measure
from elasticnet.card.machine import this_machine
from elasticnet.card.report import markdown_table
from elasticnet.card.timing import Timing, timing_of, unsteady
from elasticnet.sr import asrn
from tiny_nets import conv_net, rotary_net

# --- cards of real nets


def test_a_measured_card_holds_what_was_asked_for():
    net = asrn(2, num_blocks=3, channels=16, fold=False, taps=(1, 3))
    quality = {
        1: {"accuracy": torch.tensor(0.5), "perplexity": 20},
        3: {"accuracy": 0.25, "perplexity": 30},
    }
    perplexity = Metric("perplexity", lower_is_better=True)
    threads, training = torch.get_num_threads(), net.training
    measured = measure(
        net,
        torch.rand(2, 3, 5, 7),
        repeats=21,
        threads=1,
        memory=False,
        quality=quality,  # pyright: ignore[reportArgumentType] - a tensor is a number, too
        metrics=[perplexity, Metric("not_measured")],
        data="the test set",
    )
    assert (torch.get_num_threads(), net.training) == (threads, training)
    assert measured.machine == this_machine(threads=1)
    assert (measured.input_shape, measured.repeats, measured.data) == (
        (2, 3, 5, 7),
        21,
        "the test set",
    )
    # By hand: MAB of 16 channels in four groups of 4; the head reduces to 64, deconvolves, and
    # makes RGB.
    block = 16 * 16 + 4 * 4 * 4 * 9 + 16 * 16
    outside = 3 * 8 * 9 + 8 * 16 * 9 + 16 * 64 + 64 * 64 * 4 + 64 * 3 * 9 * 4
    for each in measured.rows:
        assert each.parameters == sum(
            parameter.numel() for parameter in net.truncate(each.depth).parameters()
        )
        assert each.macs == (outside + block * each.depth) * 2 * 5 * 7
        assert 0 < each.latency_ms <= each.latency_p95_ms
        assert each.memory_mb is None
        assert each.quality == quality[each.depth]
        assert {type(number) for number in each.quality.values()} == {float}
    assert measured.metrics == (perplexity, Metric("accuracy"))
    assert measured.per_pass == {"samples": 2}
    assert "accuracy falls with depth: 0.5 at depth 1, 0.25 at 3" in measured.warnings
    assert "perplexity rises with depth: 20 at depth 1, 30 at 3" in measured.warnings
    assert not any("p95" in warning for warning in measured.warnings)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_macs_of_a_folded_asrn_are_a_hand_count_a_pixel(scale):
    """Folded, the head is a conv3x3 to 3 scale^2 channels, and one of ones for its bias.

    The folding itself costs the same at every size, so that it drops out of the difference.
    """
    small, large = (
        depth_costs(asrn(scale, 4), torch.rand(1, 3, 6, width), repeats=1) for width in (5, 9)
    )
    for before, after in zip(small, large, strict=True):
        pixel = 3 * 8 * 9 + 8 * 96 * 9 + 39_168 * after.depth + (96 + 1) * 3 * scale**2 * 9
        assert after.macs - before.macs == pixel * 6 * (9 - 5)


def test_depths_take_turns_and_the_time_limit_ends_the_rounds():
    order = []
    net = conv_net(3)
    net.register_forward_pre_hook(lambda *call: order.append(call[-1]["depth"]), with_kwargs=True)
    measured = measure(net, torch.rand(1, 4, 3, 3), repeats=50, seconds=1e-9, memory=False)
    assert measured.repeats == 3
    assert order == [1, 2, 3] * (1 + 1 + 3)  # counted, warmed up, timed
    assert (
        measured.warnings[0]
        == "p95 is of only 3 passes: give more repeats, and more seconds for them"
    )


def test_inputs_that_are_no_images_and_arguments_of_the_call():
    mask = torch.ones(2, 5, dtype=torch.bool)
    measured = measure(
        rotary_net(), torch.ones(2, 5, dtype=torch.long), repeats=2, memory=False, mask=mask
    )
    assert measured.machine.dtype == "float32"  # of the weights, not of the tokens
    assert " samples/s |" in markdown_table(measured)


def test_the_throughput_is_counted_in_the_callers_units():
    measured = measure(
        conv_net(2), torch.rand(1, 4, 3, 3), repeats=1, memory=False, per_pass={"pixels": 9}
    )
    assert " pixels/s |" in markdown_table(measured)
    assert " samples/s |" not in markdown_table(measured)


def test_parameters_are_those_of_the_truncated_net_without_a_copy(monkeypatch):
    """One block at two depths, a head tied to the stem, and an adapter of one tap."""
    block, stem = nn.Linear(4, 4), nn.Linear(4, 4)
    head = nn.Linear(4, 4)
    head.weight = stem.weight
    adapters = {2: nn.Linear(4, 4)}
    net = ElasticWrapper([block, nn.Linear(4, 4), block], head, stem, adapters=adapters)
    expected = [
        sum(parameter.numel() for parameter in net.truncate(depth).parameters())
        for depth in net.taps
    ]
    monkeypatch.setattr("copy.deepcopy", None)
    assert [count_parameters(net, depth) for depth in net.taps] == expected == [44, 84, 84]


def test_wrong_arguments_of_measure_are_refused():
    net, x = conv_net(2), torch.rand(1, 4, 3, 3)
    for name, value in (("repeats", 0), ("repeats", 2.5), ("threads", 0), ("threads", True)):
        with pytest.raises(ValueError, match=f"{name} {value}: expected a whole number above 0"):
            measure(net, x, **{name: value})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="seconds 0: expected a number above 0"):
        measure(net, x, seconds=0)
    with pytest.raises(
        ValueError, match=r"quality at depths \[2\]: expected one at each of \[1, 2\]"
    ):
        measure(net, x, quality={2: {"accuracy": 0.9}})
    with pytest.raises(ValueError, match="metric 'macs': expected an identifier"):
        measure(net, x, quality={1: {"macs": 1}, 2: {"macs": 2}})
    with pytest.raises(TypeError, match="unexpected keyword argument 'repeat'"):
        measure(net, x, repeat=3)


def test_the_spread_is_half_the_distance_between_the_quartiles():
    times = [40.0, 10.0, 30.0, 20.0, 50.0]
    assert timing_of(times) == (30.0, 10.0)
    lower, upper = np.percentile(times, [25, 75])  # an independent implementation
    assert timing_of(times).spread_ms == (upper - lower) / 2
    assert timing_of([7.0, 9.0]) == (8.0, None)  # two say nothing about it


def test_a_large_spread_is_warned_of():
    steady = Timing(100.0, 10.0)
    assert unsteady({"depth 1": steady, "depth 2": Timing(5.0, None)}) == []
    (warning,) = unsteady(
        {"depth 1": steady, "depth 2": Timing(1483.0, 445.0), "depth 3": Timing(100.0, 11.0)}
    )
    assert warning.startswith("the times vary much, most at depth 2, 1,483.00 ms ± 30%: ")


def test_a_busy_machine_is_named_in_the_card(monkeypatch):
    monkeypatch.setattr(
        "elasticnet.card.measuring.time_depths",
        lambda net, *_, **__: {depth: [10.0, 10.0, 14.0, 30.0, 31.0] for depth in net.taps},
    )
    measured = measure(conv_net(2), torch.rand(1, 4, 3, 3), repeats=5, memory=False)
    assert [each.latency_spread_ms for each in measured.rows] == [10.0, 10.0]
    assert any("vary much, most at depth 1, 14.00 ms ± 71%" in each for each in measured.warnings)


# --- peak memory


class Wide(nn.Module):
    """A block of 16.8 MB of weights that holds `copies` of its input at once, touched."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.weight = nn.Parameter(torch.zeros(2**22))

    def forward(self, x):
        held = [x + index for index in range(self.copies)]
        return torch.stack(held).sum(0)


def test_peak_memory_is_what_the_pass_holds_and_rises_with_depth_and_size():
    """n copies, stacked once more, and their sum are 2 n inputs; weights and input come to it."""
    net = ElasticWrapper([Wide(1), Wide(4), Wide(10)], nn.Identity())
    size = {side: 4 * side * side / 1e6 for side in (512, 1024)}  # MB of an input
    peaks = {}
    for side in size:
        measured = measure(net, torch.rand(1, 1, side, side), repeats=1)
        assert not [warning for warning in measured.warnings if "memory" in warning]
        peaks[side] = [each.memory_mb for each in measured.rows]
        for depth, (copies, peak) in enumerate(zip((1, 4, 10), peaks[side], strict=True), start=1):
            # Input, block's input (of the depths behind the first), copies, their stack and sum,
            # with 1 MB of the rest.
            expected = (2 * copies + 1 + 1) * size[side] + 16.8 * depth
            assert peak == pytest.approx(expected, abs=1.5 * size[side] + 1)
    assert peaks[512] == sorted(peaks[512])
    assert all(large > small for small, large in zip(peaks[512], peaks[1024], strict=True))


def test_a_net_that_cannot_be_sent_to_another_process_has_a_card_without_memory():
    class Local(nn.Module):
        def forward(self, x):
            return x

    measured = measure(ElasticWrapper([Local()], nn.Identity()), torch.rand(1, 1, 4, 4), repeats=1)
    assert measured.rows[0].memory_mb is None
    (said,) = [warning for warning in measured.warnings if "memory" in warning]
    assert said.startswith(
        "peak memory was not measured: the network cannot be sent to a process of its own ("
    )
    assert "Local" in said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_allocator_tells():
    net = ElasticWrapper([Wide(1), Wide(10)], nn.Identity()).cuda()
    measured = measure(net, torch.rand(1, 1, 512, 512, device="cuda"), repeats=3)
    assert [each.memory_mb for each in measured.rows] == pytest.approx(
        [4.2 + 16.8, 23.1 + 33.6], abs=2
    )
    assert measured.machine.threads is None
