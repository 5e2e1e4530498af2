"""ElasticWrapper beyond the contract: calls, other taps, to_sequential, check, and misuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from contract import same
from elasticnet import ElasticWrapper, Taps
from elasticnet.wrapper import Origin, TapReport, evaluating
from tiny_nets import (
    Case,
    GainStem,
    TinyBlock,
    TinyHead,
    call_with_gain,
    conv_blocks,
    conv_net,
    tiny_cases,
)

IMAGE = "b c h w"


def test_blocks_and_a_head_are_the_whole_interface() -> None:
    """Any iterable will do, and the net is what nn.Sequential of the same modules is."""
    blocks, head = conv_blocks(3), nn.Conv2d(4, 2, 1)
    net = ElasticWrapper((block for block in blocks), head)
    x = torch.randn(2, 4, 5, 6)
    same(net(x), nn.Sequential(*blocks, head)(x), "full depth")
    same(net(x, depth=2), nn.Sequential(*blocks[:2], head)(x), "depth 2")
    assert net.taps == (1, 2, 3)
    assert isinstance(net.forward_taps(x), Taps)
    assert list(ElasticWrapper(nn.Sequential(*blocks), head).blocks) == blocks
    assert "taps=(1, 2, 3)" in repr(net)


def test_the_net_trains_with_the_blocks_it_was_given() -> None:
    blocks, head = conv_blocks(2), nn.Conv2d(4, 2, 1)
    net = ElasticWrapper(blocks, head)
    assert net.blocks[0] is blocks[0]
    assert net.head is head
    assert net.training


def test_minus_one_is_the_deepest_tap() -> None:
    net, x = conv_net(3, taps=[-1, 1]), torch.randn(1, 4, 5, 5)
    assert net.taps == (1, 3)
    same(net(x, depth=-1), net(x, depth=3), "depth=-1")
    with net.at_depth(1):
        same(net(x, depth=-1), net(x, depth=3), "depth=-1 inside at_depth(1)")
    assert net.forward_taps(x, depths=[-1]).depths == (3,)
    assert net.forward_taps(x, depths=[3, 1]).depths == (1, 3)


# --- keyword arguments and skips


def test_keyword_arguments_reach_a_stem_that_names_them_or_takes_any() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, *, factor: float = 1.0) -> Tensor:
            return x * factor

    class TakesAny(nn.Module):
        def forward(self, x: Tensor, **options: float) -> Tensor:
            return x * options.get("factor", 1.0)

    x = torch.randn(1, 4, 3, 3)
    for stem in (Scaled(), TakesAny()):
        net = conv_net(2, stem=stem)
        same(net(x, factor=2.0), net(x * 2), type(stem).__name__)
        same(net.forward_taps(x, factor=2.0), net.forward_taps(x * 2), type(stem).__name__)


def test_unknown_keyword_arguments_raise() -> None:
    x = torch.randn(1, 4, 3, 3)
    for net in (
        conv_net(2),
        conv_net(2, stem=nn.Conv2d(4, 4, 1)),
        # this call_block sees the stem's own context, and so never the keyword
        conv_net(2, stem=GainStem(nn.Identity(), 2), call_block=call_with_gain),
    ):
        for call in (net, net.forward_taps, net.check):
            with pytest.raises(TypeError, match="unexpected keyword argument 'dpeth'"):
                call(x, dpeth=1)


def test_head_skip_hands_the_head_the_stem_output_or_the_input() -> None:
    class SkipHead(nn.Module):
        def forward(self, features: Tensor, skip: Tensor) -> Tensor:
            return torch.stack([features, skip])

    stem = nn.Conv2d(4, 4, 1)
    x = torch.randn(1, 4, 3, 3)
    for head_skip, expected in (("stem", stem(x)), ("input", x)):
        net = ElasticWrapper(conv_blocks(2), SkipHead(), stem, head_skip=head_skip)
        same(net(x, depth=1), torch.stack([net.blocks[0](stem(x)), expected]), head_skip)
    same(
        ElasticWrapper(conv_blocks(1), SkipHead(), head_skip="stem")(x)[1],
        x,
        "without a stem its output is x",
    )


# --- other taps


@given(tiny_cases(), st.data())
def test_other_taps_give_the_same_bits(case: Case, data: st.DataObject) -> None:
    """At a depth that both nets tap, prediction and features are those of the net itself."""
    chosen = data.draw(st.sets(st.sampled_from(case.net.taps)), "taps")
    other = case.net.with_taps([*(chosen - {case.net.taps[-1]}), -1])
    assert other.taps == tuple(sorted({*chosen, case.net.taps[-1]}))
    with torch.no_grad():
        expected = case.net.forward_taps(case.x, **case.keywords)
        taps = other.forward_taps(case.x, **case.keywords)
        for place, depth in enumerate(other.taps):
            place_before = case.net.taps.index(depth)
            prediction = expected.predictions[place_before]
            same(taps.predictions[place], prediction, f"prediction at depth {depth}")
            same(taps.features[place], expected.features[place_before], f"features at {depth}")
            same(other(case.x, depth=depth, **case.keywords), prediction, f"depth={depth}")


@given(tiny_cases())
def test_other_taps_share_the_modules_and_keep_the_settings(case: Case) -> None:
    other = case.net.with_taps([-1])
    assert other.taps == (other.default_depth,) == case.net.taps[-1:]
    assert list(other.blocks) == list(case.net.blocks)
    assert (other.head, other.stem) == (case.net.head, case.net.stem)
    for name in ("head_skip", "layout", "prefix_tokens", "call_block", "checkpoint_blocks"):
        assert getattr(other, name) == getattr(case.net, name), name
    shared = {id(parameter) for parameter in case.net.parameters()}
    assert {id(parameter) for parameter in other.parameters()} <= shared


def test_taps_can_be_added_and_adapters_stay_with_their_depth() -> None:
    adapters = {1: nn.Conv2d(4, 4, 1), 3: nn.Conv2d(4, 4, 1)}
    net = conv_net(3, taps=[1, 3], adapters=adapters)
    more = net.with_taps(None)
    assert more.taps == (1, 2, 3)
    assert dict(more.adapters) == {"1": adapters[1], "3": adapters[3]}
    fewer = net.with_taps([3])
    assert dict(fewer.adapters) == {"3": adapters[3]}
    assert net.taps == (1, 3)
    assert sorted(net.adapters) == ["1", "3"]


def test_other_taps_keep_modes_and_origin() -> None:
    net = conv_net(2)
    net.origin = Origin("conv", {"num_blocks": 2})
    net.blocks[0].eval()
    other = net.with_taps([2])
    assert other.origin == ("conv", {"num_blocks": 2})
    assert other.training
    assert [block.training for block in other.blocks] == [False, True]
    assert not any(module.training for module in net.eval().with_taps([2]).modules())


def test_other_taps_are_checked() -> None:
    with pytest.raises(ValueError, match="taps 1: the deepest block, 3, needs a tap"):
        conv_net(3).with_taps([1])
    with pytest.raises(ValueError, match="tap 4: taps are whole numbers from 1 to 3"):
        conv_net(3).with_taps([4, 3])


# --- to_sequential


@given(tiny_cases())
def test_to_sequential_is_the_same_function_with_the_same_keys(case: Case) -> None:
    net = case.net
    with torch.no_grad():
        expected = net(case.x, **case.keywords)
        if net.head_skip or net.call_block or any(block.kind == "tuple" for block in net.blocks):
            with pytest.raises(ValueError, match=r"not a plain sequence.*elasticnet\.export"):
                net.to_sequential()
            return
        plain = net.to_sequential()
        assert type(plain) is nn.Sequential
        same(plain(case.x), expected, "to_sequential()(x)")
        small = net.truncate(net.taps[0])
        same(
            small.to_sequential()(case.x),
            net(case.x, depth=net.taps[0]),
            "a truncated net as a sequence",
        )
    keys = {name for name in net.state_dict() if not name.startswith("adapters.")}
    assert {name for name in plain.state_dict() if not name.startswith("adapter.")} == keys
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in net.parameters()}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head_skip": "input"}, "a net with head_skip is not"),
        (
            {"call_block": lambda block, x, context, index: (block(x), context)},
            "a net with call_block is not",
        ),
    ],
)
def test_to_sequential_says_why_not(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        conv_net(2, **options).to_sequential()


def test_to_sequential_says_that_blocks_return_tuples() -> None:
    net = ElasticWrapper([TinyBlock("tuple", IMAGE, 4)], TinyHead(IMAGE, 4))
    net(torch.randn(1, 4, 3, 3))
    with pytest.raises(ValueError, match="a net with blocks that return tuples is not"):
        net.truncate(1).to_sequential()


def test_to_sequential_keeps_the_mode_of_every_module() -> None:
    net = conv_net(2)
    net.blocks[0].eval()
    plain = net.to_sequential()
    assert plain.training
    assert [module.training for module in plain.get_submodule("blocks").children()] == [False, True]
    assert not any(module.training for module in net.eval().to_sequential().modules())


# --- check


def uneven_net(**options: Any) -> ElasticWrapper:
    """Channels 4, then 6; the head takes 6."""
    return ElasticWrapper(
        [TinyBlock("conv", IMAGE, 4), TinyBlock("conv", IMAGE, 4, 6)], nn.Conv2d(6, 2, 1), **options
    )


def test_check_reports_shapes_and_the_taps_that_the_head_rejects() -> None:
    net = uneven_net()
    first, second = net.check(torch.randn(1, 4, 5, 5))
    assert first.depth == 1
    assert first.shape == (1, 4, 5, 5)
    assert first.output_shape is None
    assert first.finite
    problem = str(first.problem)
    rejection = "the head rejects the tap at depth 1, whose features have shape (1, 4, 5, 5)"
    assert problem.startswith(rejection)
    assert "adapters={1: module}" in problem
    assert problem.endswith("(the deepest tap has shape (1, 6, 5, 5))")
    assert second == TapReport(
        depth=2, shape=(1, 6, 5, 5), output_shape=(1, 2, 5, 5), finite=True, problem=None
    )
    with pytest.raises(ValueError, match=re.escape(rejection)):
        net.check(torch.randn(1, 4, 5, 5), strict=True)


def test_check_finds_no_problem_where_an_adapter_helps() -> None:
    net = uneven_net(adapters={1: nn.Conv2d(4, 6, 1)})
    report = net.check(torch.randn(1, 4, 5, 5))
    assert [tap.problem for tap in report] == [None, None]


def test_check_reports_features_that_are_not_finite_by_depth() -> None:
    net = conv_net(3)
    nn.init.constant_(net.get_parameter("blocks.1.last.bias"), float("nan"))
    report = net.check(torch.randn(1, 4, 2, 3))
    assert [tap.finite for tap in report] == [True, False, False]
    assert report[0].problem is None
    assert report[1].problem == "depth 2: 24 of 24 features are not finite (NaN or infinity)"
    with pytest.raises(ValueError, match="depth 2: 24 of 24"):
        net.check(torch.randn(1, 4, 2, 3), strict=True)


def test_check_changes_nothing() -> None:
    net = conv_net(2)
    norm = nn.BatchNorm2d(4)  # its statistics would move in training mode
    net.blocks[1] = nn.Sequential(net.blocks[1], norm)
    net.blocks[0].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    net.check(torch.randn(2, 4, 5, 5))
    same(dict(net.state_dict()), before, "state after check")
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(KeyError, match="on purpose"), evaluating(net):
        raise KeyError("on purpose")
    assert [module.training for module in net.modules()] == modes


@pytest.mark.parametrize("kind", [AssertionError, IndexError, RuntimeError, TypeError, ValueError])
def test_a_head_that_rejects_a_tap_is_named_with_the_depth(kind: type[Exception]) -> None:
    class PickyHead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != 6:
                raise kind(f"{x.shape[1]} channels")
            return x

    net = ElasticWrapper([TinyBlock("conv", IMAGE, 4), TinyBlock("conv", IMAGE, 4, 6)], PickyHead())
    x = torch.randn(1, 4, 5, 5)
    message = (
        "the head rejects the tap at depth 1, whose features have shape (1, 4, 5, 5): 4 channels. "
    )
    for call in (lambda: net(x, depth=1), lambda: net.forward_taps(x)):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            call()
    assert net(x).shape == (1, 6, 5, 5)
    assert net.check(x)[0].problem is not None


def test_a_head_that_rejects_features_other_than_tensors_names_their_type() -> None:
    def call_block(block: nn.Module, x: Tensor, context: Any, index: int) -> tuple[Any, Any]:
        return [x], context

    net = ElasticWrapper(conv_blocks(1), nn.Conv2d(4, 2, 1), call_block=call_block)
    with pytest.raises(RuntimeError, match="tap at depth 1, whose features are a list: "):
        net(torch.randn(1, 4, 5, 5))


# --- misuse


@pytest.mark.parametrize("depth", [0, True, False, 1.0, 3.0, "2", 2, 4, -2, -3])
def test_a_wrong_depth_names_the_value_and_lists_the_valid_ones(depth: Any) -> None:
    net, x = conv_net(3, taps=[1, 3]), torch.randn(1, 4, 3, 3)

    def at_depth() -> None:
        with net.at_depth(depth):
            pass

    calls = (
        lambda: net(x, depth=depth),
        lambda: net.truncate(depth),
        at_depth,
        lambda: net.forward_taps(x, [depth]),
    )
    for call in calls:
        with pytest.raises(
            ValueError, match=re.escape(f"depth {depth!r}: this net has taps at depths 1, 3 (-1 is")
        ):
            call()


@given(st.lists(st.integers(-2, 5), max_size=3))
def test_forward_taps_accepts_exactly_the_lists_of_taps(depths: list[int]) -> None:
    net, x = conv_net(4, taps=[2, 4]), torch.randn(1, 4, 3, 3)
    resolved = [4 if depth == -1 else depth for depth in depths]
    if depths and set(resolved) <= {2, 4} and len(set(resolved)) == len(resolved):
        assert net.forward_taps(x, depths).depths == tuple(sorted(resolved))
    else:
        with pytest.raises(
            ValueError, match=r"depth -?\d: this net|depths is empty|a depth is named twice"
        ):
            net.forward_taps(x, depths)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"body_blocks": []}, ValueError, "body_blocks is empty"),
        (
            {"body_blocks": nn.Identity()},
            TypeError,
            "body_blocks is a Identity: expected a list of modules",
        ),
        (
            {"adapters": [nn.Identity()]},
            TypeError,
            r"adapters is a list: expected modules by depth, \{1: module\}",
        ),
        ({"taps": "all"}, TypeError, "taps 'all': expected a list of depths, such as"),
        (
            {"body_blocks": [nn.Identity(), torch.relu]},
            TypeError,
            r"body_blocks\[1\] is a builtin_function_or_method:",
        ),
        (
            {"body_blocks": [nn.Identity(), None]},
            TypeError,
            r"body_blocks\[1\] is a NoneType: expected a torch.nn.Module",
        ),
        ({"shared_head": None}, TypeError, "shared_head is a NoneType: expected a torch.nn.Module"),
        (
            {"stem": len},
            TypeError,
            "stem is a builtin_function_or_method: expected a torch.nn.Module",
        ),
        (
            {"head_skip": "inputs"},
            ValueError,
            "head_skip 'inputs': expected None, 'stem', 'input' or 'context'",
        ),
        ({"head_skip": True}, ValueError, "head_skip True: expected None, 'stem', 'input'"),
        ({"taps": [1]}, ValueError, "taps 1: the deepest block, 3, needs a tap"),
        ({"taps": [0, 3]}, ValueError, "tap 0: taps are whole numbers from 1 to 3"),
        ({"taps": [2, 2, 3]}, ValueError, "taps 2, 2, 3: a depth is named twice"),
        (
            {"adapters": {4: nn.Identity()}},
            ValueError,
            "adapter at depth 4: this net has taps at depths 1, 2, 3",
        ),
        (
            {"adapters": {True: nn.Identity()}},
            ValueError,
            "adapter at depth True: this net has taps at depths 1, 2, 3",
        ),
        (
            {"adapters": {1.0: nn.Identity()}},
            ValueError,
            r"adapter at depth 1\.0: this net has taps",
        ),
        (
            {"adapters": {2: nn.Identity()}, "taps": [1, 3]},
            ValueError,
            "adapter at depth 2: this net has taps at depths 1",
        ),
        ({"adapters": {1: torch.relu}}, TypeError, "is not a Module subclass"),
        ({"call_block": nn.Identity()}, TypeError, "call_block is a module: expected a function"),
        ({"adaptors": {}}, TypeError, "unexpected keyword argument 'adaptors'"),
    ],
)
def test_misuse_of_the_constructor(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "body_blocks": [nn.Identity() for _ in range(3)],
        "shared_head": nn.Identity(),
    }
    with pytest.raises(error, match=message):
        ElasticWrapper(**{**arguments, **options})


def test_a_stem_context_without_call_block_is_an_error() -> None:
    net = conv_net(2, stem=GainStem(nn.Identity(), 2))
    with pytest.raises(ValueError, match=r"the stem returned \(x, context\): pass call_block"):
        net(torch.randn(1, 4, 3, 3))


# --- what depths may be


def test_whole_numbers_of_numpy_are_depths() -> None:
    x = torch.randn(1, 4, 3, 3)
    adapters = {np.int64(1): nn.Conv2d(4, 4, 1)}
    net = conv_net(3, taps=np.array([1, 3]), adapters=adapters)
    assert net.taps == (1, 3)
    assert all(type(tap) is int for tap in net.taps)
    expected = net.forward_taps(x)
    same(net(x, depth=np.int32(1)), expected.predictions[0], "depth")  # pyright: ignore[reportArgumentType]
    same(net(x, taps=np.array([1, -1])), expected, "taps")
    same(net.truncate(np.int64(1))(x), expected.predictions[0], "truncate")  # pyright: ignore[reportArgumentType]


def test_a_single_number_for_several_depths_is_refused() -> None:
    net, x = conv_net(3), torch.randn(1, 4, 3, 3)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("taps", lambda: conv_net(3, taps=3)),
        ("taps", lambda: net.with_taps(3)),  # pyright: ignore[reportArgumentType]
        ("depths", lambda: net(x, taps=3)),  # pyright: ignore[reportArgumentType, reportCallIssue]
        ("depths", lambda: net.forward_taps(x, depths=3)),  # pyright: ignore[reportArgumentType]
    ]
    for what, call in calls:
        with pytest.raises(TypeError, match=rf"{what} 3: expected a list of depths, such as \[3\]"):
            call()


def test_a_second_input_by_position_is_no_depth() -> None:
    net, x = conv_net(3), torch.randn(1, 4, 3, 3)
    message = (
        r"depth is a Tensor of shape \(50, 50\): this net has taps at depths 1, 2, 3, and other "
        r"inputs are passed by name"
    )
    with pytest.raises(ValueError, match=message):
        net(x, torch.rand(50, 50))  # pyright: ignore[reportArgumentType]


# --- what a block returns


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_a_plain_tuple_is_taken_apart_and_nothing_else() -> None:
    """The features are the first entry of a plain tuple, and anything else as it is."""

    class Returning(nn.Module):
        def __init__(self, make: Callable[[Tensor], Any]) -> None:
            super().__init__()
            self.make = make

        def forward(self, x: Tensor) -> Any:
            return self.make(x)

    x = torch.randn(2, 3)
    head = nn.Identity()
    same(ElasticWrapper([Returning(lambda x: (x, "more"))], head)(x), x, "a plain tuple")
    for make in (lambda x: Pair(x, x + 1), lambda x: [x, x + 1], lambda x: {"left": x}):
        same(ElasticWrapper([Returning(make)], head)(x), make(x), "features as they are")


def test_blocks_that_pass_on_a_tuple_are_refused() -> None:
    class TwoStreams(nn.Module):
        def forward(self, streams: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return streams

    net = ElasticWrapper([TwoStreams(), TwoStreams()], nn.Identity())
    x = torch.randn(2, 3)
    message = "block 1 takes a tuple and returns a tuple, and only the first entry would go on"
    for call in (net, net.check, net.forward_taps):
        with pytest.raises(TypeError, match=message):
            call((x, x))


def test_packed_sequences_go_from_block_to_block() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 6)

        def forward(self, packed: PackedSequence) -> PackedSequence:
            output, _ = self.lstm(packed)
            return output

    class OutputHead(nn.Module):
        def forward(self, packed: PackedSequence) -> Tensor:
            return packed.data

    packed = pack_padded_sequence(torch.randn(5, 2, 6), [5, 3])
    blocks = [Recurrent() for _ in range(3)]
    net = ElasticWrapper(blocks, OutputHead(), layout="b n c").eval()
    expected = blocks[1](blocks[0](packed)).data
    same(net(packed, depth=2), expected, "depth 2")
    same(net(packed, taps=[2, 3]).predictions[0], expected, "taps")
